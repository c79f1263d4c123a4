"""Thoughts: what a model writes to itself before it answers, told apart from the answer, in every form that is known.

A thought stands at the beginning. The template may have opened it already (DeepSeek's distills), so a closing tag alone
ends one as well. A thought that is not closed has no answer behind it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

END = "<|end|>"  # ends a thought only where gpt-oss has begun one
# opening and closing: Qwen3, DeepSeek and most others; Magistral; Command A; Seed-OSS; gpt-oss
TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel|>analysis<|message|>", END),
)
_FINAL = re.compile(r"(<\|start\|>assistant)?<\|channel\|>final<\|message\|>")  # gpt-oss: what follows its thoughts


@dataclass(frozen=True)
class Said:
    """What a model wrote: its thought (None where there is none), its answer, and whether the thought goes on."""

    thought: str | None
    answer: str
    is_open: bool = False


def split_thought(text: str, *, opened: bool = False) -> Said:
    """The thought and the answer of a text; `opened` where the prompt has begun the thought."""
    begin = text.lstrip()
    for opening, closing in TAGS:
        inside = opened or begin.startswith(opening)
        thought, found, answer = text.partition(closing)
        if found and (inside or (closing != END and opening not in thought)):
            return Said(_bare(thought, opening), _FINAL.sub("", answer, count=1).lstrip())
        if begin.startswith(opening):
            return Said(_bare(text, opening), "", is_open=True)
    # a tag that is half there may become one
    if opened or any(begin and opening.startswith(begin) for opening, _ in TAGS):
        return Said(text.strip(), "", is_open=True)
    return Said(None, text)


def _bare(thought: str, opening: str) -> str:
    return thought.strip().removeprefix(opening).strip()
