"""JSON schemas drawn at random over the keywords that are understood, and a vocabulary of bytes to answer them with."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import llguidance

KEYS = ("a", "b", "c", "ab", "d\n", 'q"', "胃", "x/y")
TEXTS = ("a", "b", '5" tube', "C:\\x", "a\nb", "𠮷", "😀", "胃", "a/b", "~", "é", "", "%41")
NUMBERS = (0, 1, -1, 2, 3, 10, -5, 100, 0.5, -0.5, 0.1, 1.5, 2.25, -3.75, 1e-3, 1e6, 7, 13, 99.9, -0.1, 1 << 53)
PATTERNS = (
    "^a",
    "b$",
    "a|b",
    "^[a-c]{2}$",
    "^\\d+$",
    "^\\w+$",
    "^[^a]$",
    "^(?:ab)+$",
    "^.{2}$",
    "^(a|b)?c*$",
    "胃",
    "^\\u0041",
)
FORMATS = ("date", "ipv4", "ipv6", "uuid", "email", "time", "date-time")
KINDS = ("number", "integer", "string", "array", "object", "enum", "const", "combined", "reference", "several", "any")


class Schemas:
    """A source of schemas, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def whole(self) -> dict[str, Any]:
        """A schema with two parts that it may refer to."""
        return {**self.object_schema(0), "$defs": {"p": self.schema(2), "q": self.schema(1)}}

    def schema(self, depth: int) -> Any:
        return self.random.choice([True, {}, False]) if self.random.random() < 0.05 else self.object_schema(depth)

    def object_schema(self, depth: int) -> dict[str, Any]:
        draw = self.random
        kind = draw.choice(KINDS if depth < 3 else KINDS[:3])
        made: dict[str, Any] = {"type": kind} if kind in KINDS[:5] else {}
        if kind == "several":
            made["type"] = draw.sample(["null", "string", "integer", "number", "boolean", "array", "object"], 2)
        elif kind == "combined":
            made[draw.choice(["anyOf", "allOf", "oneOf"])] = [self.schema(depth + 1) for _ in range(draw.randint(1, 3))]
        elif kind == "reference":
            made["$ref"] = draw.choice(["#/$defs/p", "#/$defs/q", "#"])
        elif kind == "enum":
            made["enum"] = [self.value(0) for _ in range(draw.randint(1, 4))]
        elif kind == "const":
            made["const"] = self.value(0)
        if kind in ("combined", "reference") and draw.random() < 0.4:
            made = {**self.object_schema(depth + 1), **made}
        for types, share, key, of in self.keywords(depth):
            if (kind in types.split() or kind in ("several", "any")) and draw.random() < share:
                made[key] = of()
        return made

    def keywords(self, depth: int) -> list[tuple[str, float, str, Callable[[], Any]]]:
        draw = self.random
        number, part = (lambda: draw.choice(NUMBERS)), (lambda: self.schema(depth + 1))
        return [
            ("number integer", 0.4, "minimum", number),
            ("number integer", 0.4, "maximum", number),
            ("number integer", 0.25, "exclusiveMinimum", number),
            ("number integer", 0.25, "exclusiveMaximum", number),
            ("number integer", 0.2, "multipleOf", lambda: draw.choice([1, 2, 3, 5, 0.5, 0.25, 12, 100, 1.5])),
            ("string", 0.4, "minLength", lambda: draw.randint(0, 3)),
            ("string", 0.4, "maxLength", lambda: draw.randint(2, 6)),
            ("string", 0.3, "pattern", lambda: draw.choice(PATTERNS)),
            ("string", 0.15, "format", lambda: draw.choice(FORMATS)),
            ("array", 0.5, "items", part),
            ("array", 0.3, "prefixItems", lambda: [part() for _ in range(draw.randint(1, 3))]),
            ("array", 0.3, "minItems", lambda: draw.randint(0, 2)),
            ("array", 0.6, "maxItems", lambda: draw.randint(1, 4)),
            ("object", 0.7, "properties", lambda: {k: part() for k in draw.sample(KEYS, draw.randint(1, 3))}),
            ("object", 0.5, "required", lambda: draw.sample(KEYS, draw.randint(0, 2))),
            ("object", 0.4, "additionalProperties", lambda: draw.choice([False, False, True, part()])),
            ("object", 0.2, "patternProperties", lambda: {p: part() for p in draw.sample(["^a", "^x", "b$"], 2)}),
            ("object", 0.15, "minProperties", lambda: draw.randint(0, 2)),
            ("object", 0.15, "maxProperties", lambda: draw.randint(1, 3)),
        ]

    def value(self, depth: int) -> Any:
        draw = self.random
        kind = draw.randint(0, 6 if depth < 2 else 4)
        if kind == 5:
            return [self.value(depth + 1) for _ in range(draw.randint(0, 2))]
        if kind == 6:
            return {draw.choice(KEYS): self.value(depth + 1) for _ in range(draw.randint(0, 2))}
        return draw.choice([(None, True, False), NUMBERS, TEXTS][kind % 3])


class ByteVocabulary:
    """What a mask needs of a vocabulary: a token for each byte, and one that ends."""

    n_tokens, eos_token_id, bos_token_id = 257, 256, None
    tokens = [*(bytes([i]) for i in range(256)), b"\xff<eos>"]  # noqa: RUF012
    special_token_ids = [256]  # noqa: RUF012

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def piece(self, token: int) -> bytes:
        return self.tokens[token]

    def ends(self, token: int) -> bool:
        return token == 256

    def tokenizer(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(self), eos_token=[256], slices=[])
