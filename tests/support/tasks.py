"""A small task in two languages, as a JSONL file."""

from __future__ import annotations

import json
from pathlib import Path

ORGANS = ["heart", "lung", "liver", "spleen", "kidney", "brain", "skin", "bone"]


LANGUAGES = {"en": "Which organ is number {}?", "ja": "{}番目の臓器はどれか。"}


def write_task(path: Path, n: int = 12) -> Path:
    rows = [
        {
            "id": f"{lang}{i}",
            "question": text.format(i),
            "choices": ORGANS[: 5 if i else 8],
            "answer": [i % 5] if i % 4 else [0, 2],
            "lang": lang,
            "group": f"group {i % 3}",
        }
        for lang, text in LANGUAGES.items()
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path
