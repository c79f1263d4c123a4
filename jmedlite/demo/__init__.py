"""The embedded demo: a small model that learned some textbook facts, an adapter that learned others, and questions.

`model/` is a Qwen2 checkpoint, `adapter/` its LoRA adapter in PEFT's layout, `questions.jsonl` the `demo` task. They
are made by tools/train_demo.py and tools/demo/texts.py.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

# the package is never imported from a zip: llama.cpp and the converter read real files
FOLDER = Path(str(files("jmedlite.demo")))
MODEL, ADAPTER, QUESTIONS = FOLDER / "model", FOLDER / "adapter", FOLDER / "questions.jsonl"
