"""Vocabulary: a loaded model's tokens, text to ids and back, with control tokens only where the text is trusted."""

from __future__ import annotations

import ctypes
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby, takewhile
from typing import Any

from gguf.constants import TokenType

from jmedlite.base.errors import DataError
from jmedlite.base.gguf import Header

from .chat_template import Part


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of leading tokens that two sequences share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


class Vocabulary:
    """Tokens as llama.cpp sees them; `model` is a llama_model pointer that must outlive this."""

    def __init__(self, llama: Any, model: Any, header: Header) -> None:
        self.llama, self.metadata = llama, header.metadata
        self.vocab = llama.llama_model_get_vocab(model)
        self.n_tokens = int(llama.llama_vocab_n_tokens(self.vocab))
        self._control = self._control_tokens()
        # longest first: "<|im_start|>" must win over a control token that is its beginning
        names = sorted(self._control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")

        further = self.metadata.get("jmedlite.tokenizer.end_token_ids")
        self._ends = frozenset(further if isinstance(further, list) else ())

        self._bytes: dict[int, int] | None = None
        if self.metadata.get("jmedlite.tokenizer.byte_fallback"):
            self._bytes, self._alphabet = self._spelling()

    def _spelling(self) -> tuple[dict[int, int], frozenset[str]]:
        """Token ids of the 256 bytes, and the characters that are tokens of their own.

        A trained unigram model has a token for every character that occurs in any of its tokens, so only text outside
        this alphabet is unknown to it. llama.cpp gives such text one unknown token, SentencePiece its bytes.
        """
        tokens, types = self.metadata["tokenizer.ggml.tokens"], self.metadata["tokenizer.ggml.token_type"]
        byte, ordinary = int(TokenType.BYTE), (int(TokenType.NORMAL), int(TokenType.USER_DEFINED))
        numbers = {int(t[3:5], 16): i for i, t in enumerate(tokens) if types[i] == byte and len(t) == 6}
        if len(numbers) != 256:
            raise DataError(f"the vocabulary spells unknown characters as bytes, but has {len(numbers)} of the 256")
        texts = (t.decode("utf-8", "replace") for i, t in enumerate(tokens) if types[i] in ordinary)
        return numbers, frozenset(t for t in texts if len(t) == 1)

    def _control_tokens(self) -> dict[str, int]:
        """Text of every control token (llama.cpp's own view, after its corrections at load) to its id."""
        return {
            raw.decode("utf-8", "replace"): i
            for i, raw in enumerate(self.metadata["tokenizer.ggml.tokens"])
            if raw and self.llama.llama_vocab_is_control(self.vocab, i)
        }

    @property
    def controls(self) -> Collection[str]:
        """The texts of all control tokens."""
        return self._control.keys()

    def text_of(self, key: str) -> str:
        """The text of the token that the header names `tokenizer.ggml.KEY_token_id`, "" where it names none."""
        i = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return "" if i is None else self.metadata["tokenizer.ggml.tokens"][i].decode("utf-8", "replace")

    def tokenize(self, text: str, parse_special: bool = False) -> list[int]:
        """Tokens of one stretch of text, without BOS; control tokens only with `parse_special`."""
        if self._bytes is None:
            return self._tokenize(text, parse_special)
        tokens: list[int] = []
        for known, run in groupby(self._known_forms(text), self._is_known):
            part = "".join(run)
            tokens += self._tokenize(part, parse_special) if known else [self._bytes[b] for b in part.encode()]
        return tokens

    def _known_forms(self, text: str) -> str:
        """Unknown characters in their compatibility form, where the vocabulary normalizes text that way."""
        if "tokenizer.ggml.precompiled_charsmap" not in self.metadata:
            return text
        return "".join(c if self._is_known(c) else unicodedata.normalize("NFKC", c) for c in text)

    def _is_known(self, c: str) -> bool:
        """Can llama.cpp's unigram tokenizer spell this character? Spaces and controls it replaces itself."""
        return c in self._alphabet or c.isspace() or unicodedata.category(c) in ("Cc", "Cf")

    def _tokenize(self, text: str, parse_special: bool) -> list[int]:
        raw = text.encode("utf-8")
        room = len(raw) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            n = self.llama.llama_tokenize(self.vocab, raw, len(raw), tokens, room, False, parse_special)
            if n >= 0:
                return list(tokens[:n])
            room = -n

    def tokenize_parts(self, parts: Sequence[Part]) -> list[int]:
        """Tokens of a prompt: control tokens from trusted parts only, all other text joined before it is tokenized.

        This is what tokenizing the whole text would give if nobody had typed a control token's name.
        """
        parts = [replace(p, text=self.normalize(p.text)) for p in parts]
        tokens: list[int] = []
        text = ""
        for part in parts:
            if not part.trusted:
                text += part.text
                continue
            at = 0
            for found in self._control_pattern.finditer(part.text):
                tokens += self._plain(text + part.text[at : found.start()], tokens)
                tokens.append(self._control[found[0]])
                text, at = "", found.end()
            text += part.text[at:]
        tokens += self._plain(text, tokens)
        bos = self.llama.llama_vocab_bos(self.vocab)
        if self.llama.llama_vocab_get_add_bos(self.vocab) and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    def normalize(self, text: str) -> str:
        """The text in the Unicode form that the model's tokenizer gives it, where it gives one (llama.cpp does not)."""
        form = self.metadata.get("jmedlite.tokenizer.normalizer")
        return unicodedata.normalize(form, text) if form in ("NFC", "NFD", "NFKC", "NFKD") else text

    def _plain(self, text: str, before: list[int]) -> list[int]:
        llama = self.llama
        if before and llama.llama_vocab_get_attr(self.vocab, before[-1]) & llama.LLAMA_TOKEN_ATTR_RSTRIP:
            text = text.lstrip()
        return self.tokenize(text) if text else []

    def public_prefix(self, parts: Sequence[Part]) -> list[int]:
        """Tokens of what stands before the first private part, as if nothing came after it.

        No private text has a share in them; where text is joined across the boundary, the prompt may leave this
        sequence a token early.
        """
        return self.tokenize_parts(list(takewhile(lambda p: not p.private, parts)))

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the answer."""
        buffer = ctypes.create_string_buffer(256)
        n = self.llama.llama_token_to_piece(self.vocab, token, buffer, 256, 0, False)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self.llama.llama_token_to_piece(self.vocab, token, buffer, -n, 0, False)
        return buffer.raw[: max(0, n)]

    def ends(self, token: int) -> bool:
        """Whether the token ends an answer: llama.cpp knows some, the header may name more."""
        return token in self._ends or bool(self.llama.llama_vocab_is_eog(self.vocab, token))
