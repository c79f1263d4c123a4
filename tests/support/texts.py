"""Texts that tokenizers find hard."""

from __future__ import annotations

import random

SAMPLES = [
    "高血圧の第一選択薬は何ですか。", "Hello, world! hello hello  hello\n\n\nthe the", "ｶﾀｶﾅ ＡＢＣ　全角１２３",
    "😀👩‍⚕️🇯🇵", "    indented\n\tcode(x) { return x**2; }", "a" * 300, " " * 70, "I'll they'RE we'd 12345 3.14",
    "", " ", "\n", "<|im_start|>system", "<|im_end", "<s></s>", "が か゛ が", "\u3000\u3000問１",
    "HbA1c 7.2%、LDL-C 160 mg/dL",
]  # fmt: skip


def lines(n: int) -> list[str]:
    """Samples and seeded mixtures of them."""
    rng = random.Random(0)
    found = list(SAMPLES)
    pool = "".join(SAMPLES)
    while len(found) < n:
        found.append("".join(rng.choice(pool) for _ in range(rng.randrange(1, 60))))
    return found
