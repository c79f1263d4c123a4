"""Lean imports: what they spare, and that nothing is missing for whoever asks."""

from __future__ import annotations

import subprocess
import sys

LOOK = """
import sys
from jmedlite.base.lean import import_leanly
import_leanly()
import llama_cpp.llama_cpp as bindings
from gguf.constants import GGMLQuantizationType
heavy = {"jinja2", "diskcache", "yaml", "numpy"}
print(sorted(heavy & set(sys.modules)))
import gguf, llama_cpp
assert llama_cpp.llama_cpp is bindings and llama_cpp.llama_backend_init is bindings.llama_backend_init
print(gguf.GGUFReader.__name__, llama_cpp.Llama.__name__, gguf.GGMLQuantizationType is GGMLQuantizationType)
try:
    gguf.no_such_name
except AttributeError as e:
    print(e)
"""


def test_only_what_is_asked_for_and_all_of_it() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[]", "GGUFReader Llama True", "module 'gguf' has no attribute 'no_such_name'",
    ]  # fmt: skip
