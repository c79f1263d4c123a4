"""Vocabulary: a loaded model's tokens, text to ids and back, with control tokens only where the text is trusted."""

from __future__ import annotations

import ctypes
import unicodedata
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import groupby, takewhile
from typing import Any

from gguf.constants import TokenType

from jmedlite.base.gguf import Header

from .added_tokens import HIDDEN, AddedTokens, trusted_after
from .chat_template import Part
from .unigram import Unigram, byte_tokens
from .words import RULES, ByteLevel, is_odd, merge, split

_KEYS = "jmedlite.tokenizer."


class Vocabulary:
    """Tokens as llama.cpp sees them; `model` is a llama_model pointer that must outlive this."""

    def __init__(self, llama: Any, model: Any, header: Header) -> None:
        self.llama, self.metadata = llama, header.metadata
        self.vocab = llama.llama_model_get_vocab(model)
        self.n_tokens = int(llama.llama_vocab_n_tokens(self.vocab))
        self._maps = "tokenizer.ggml.precompiled_charsmap" in self.metadata
        self._ends = frozenset(self.metadata.get("jmedlite.tokenizer.end_token_ids", ()))
        self._bytes: dict[int, int] | None = None
        # of a unigram vocabulary that writes its spaces itself, nothing is left to llama.cpp
        self._cuts = (
            self.metadata.get("tokenizer.ggml.model") == "t5"
            and bool(self.metadata.get("jmedlite.tokenizer.byte_fallback"))
            and f"{_KEYS}space_prefix" in self.metadata
        )
        if not self._cuts and self.metadata.get("jmedlite.tokenizer.byte_fallback"):
            self._bytes, self._alphabet = self._spelling()
        self._rule, self._whole_words = RULES.get(str(self.metadata.get("tokenizer.ggml.pre")), ("", False))
        # llama.cpp's SentencePiece vocabularies put a space before every stretch of text, or before none
        self._merges = self.metadata.get("tokenizer.ggml.model") == "llama"
        self._adds_space = self._merges and self.metadata.get("tokenizer.ggml.add_space_prefix", True)
        # its unigram ones forget it before text that is all spaces
        self._adds_to_spaces = (
            self.metadata.get("tokenizer.ggml.model") == "t5"
            and self.metadata.get("tokenizer.ggml.add_space_prefix", True)
            and not self.metadata.get("tokenizer.ggml.remove_extra_whitespaces")
            and not self._cuts
        )
        usual = "prepend" if self._adds_space else "replace" if self._merges else "none"
        self._prefix: str = self.metadata.get(f"{_KEYS}space_prefix", usual)
        self._added, self._late = self._added_tokens()
        self._tags: dict[tuple[tuple[str, ...], ...], frozenset[int]] = {}

    def _added_tokens(self) -> tuple[AddedTokens, AddedTokens]:
        """Added tokens that are found in the text as it was written, and those found in the normalized text."""
        llama = self.llama
        attributes = [llama.llama_vocab_get_attr(self.vocab, i) for i in range(self.n_tokens)]
        flags = {flag: self._flagged(flag) for flag in ("lstrip", "rstrip", "single_word", "normalized", "typed")}
        if not any(f"{_KEYS}{flag}" in self.metadata for flag in flags):  # llama.cpp guesses them by the model's name
            for flag, bit in (("lstrip", llama.LLAMA_TOKEN_ATTR_LSTRIP), ("rstrip", llama.LLAMA_TOKEN_ATTR_RSTRIP)):
                flags[flag] = frozenset(i for i, attribute in enumerate(attributes) if attribute & bit)
        late, typed = flags.pop("normalized"), flags.pop("typed")
        control = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
        found: dict[bool, tuple[dict[str, int], dict[str, int]]] = {False: ({}, {}), True: ({}, {})}
        for i, raw in enumerate(self.metadata["tokenizer.ggml.tokens"]):
            anywhere = i in typed or not attributes[i] & control
            if raw and (i in typed or attributes[i] & (control | llama.LLAMA_TOKEN_ATTR_USER_DEFINED)):
                text = raw.decode("utf-8", "replace")
                found[i in late][anywhere][self._normalize(text) if i in late else text] = i
        self._typed = typed
        self._control = frozenset(i for i, bits in enumerate(attributes) if bits & llama.LLAMA_TOKEN_ATTR_CONTROL)
        of_tokens = flags["lstrip"], flags["rstrip"], flags["single_word"]
        return AddedTokens(*found[False], *of_tokens), AddedTokens(*found[True], *of_tokens)

    def _flagged(self, flag: str) -> frozenset[int]:
        return frozenset(self.metadata.get(f"{_KEYS}{flag}", ()))

    def _spelling(self) -> tuple[dict[int, int], frozenset[str]]:
        """Token ids of the 256 bytes, and the characters that are tokens of their own.

        A trained unigram model has a token for every character that occurs in any of its tokens, so only text outside
        this alphabet is unknown to it. llama.cpp gives such text one unknown token, SentencePiece its bytes.
        """
        tokens, types = self.metadata["tokenizer.ggml.tokens"], self.metadata["tokenizer.ggml.token_type"]
        ordinary = (int(TokenType.NORMAL), int(TokenType.USER_DEFINED))
        texts = (t.decode("utf-8", "replace") for i, t in enumerate(tokens) if types[i] in ordinary)
        return byte_tokens(tokens, types), frozenset(t for t in texts if len(t) == 1)

    @property
    def chat_template(self) -> str | None:
        """The model's own, which stands among the metadata of its vocabulary."""
        template: str | None = self.metadata.get("tokenizer.chat_template")
        return template

    @property
    def controls(self) -> Collection[str]:
        """The texts of all control tokens."""
        tokens = self.metadata["tokenizer.ggml.tokens"]
        return {tokens[i].decode("utf-8", "replace") for i in self._control}

    def text_of(self, key: str) -> str:
        """The text of the token that the header names `tokenizer.ggml.KEY_token_id`, "" where it names none."""
        i = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return "" if i is None else self.metadata["tokenizer.ggml.tokens"][i].decode("utf-8", "replace")

    def tokenize(self, text: str, parse_special: bool = False) -> list[int]:
        """Tokens of one stretch of text, without BOS; control tokens only with `parse_special`."""
        return self._tokens([Part(text, parse_special)])

    def _known_forms(self, text: str) -> str:
        """Unknown characters in their compatibility form, where the vocabulary normalizes text that way."""
        if not self._maps:
            return text
        return "".join(c if self._is_known(c) else unicodedata.normalize("NFKC", c) for c in text)

    def _is_known(self, c: str) -> bool:
        """Can llama.cpp's unigram tokenizer spell this character? Spaces and controls its map may replace."""
        if c in self._alphabet or c == " ":
            return True
        return self._maps and (c.isspace() or unicodedata.category(c) in ("Cc", "Cf"))

    def tokenize_parts(self, parts: Sequence[Part]) -> list[int]:
        """Tokens of a prompt: control tokens from trusted parts only, all other text joined before it is tokenized.

        This is what tokenizing the whole text would give if nobody had typed a control token's name.
        """
        tokens = self._tokens(parts)
        bos = self.llama.llama_vocab_bos(self.vocab)
        if self.llama.llama_vocab_get_add_bos(self.vocab) and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    def _tokens(self, parts: Sequence[Part]) -> list[int]:
        text = "".join(p.text for p in parts)
        trusted = "".join(p.text if p.trusted else HIDDEN * len(p.text) for p in parts)
        tokens: list[int] = []
        for i, start, end in self._added.split(text, trusted):
            tokens += self._between(text[start:end], trusted[start:end], start == 0) if i is None else [i]
        return tokens

    def _between(self, text: str, trusted: str, first: bool) -> list[int]:
        """Tokens of text without added tokens, but for those that are found in the normalized text."""
        whole = self._normalize(text)
        if not (self._late.control or self._late.typed):
            return self._plain(whole, first)
        if self._late.control:
            trusted = trusted_after(self._normalize, text, trusted)
        tokens: list[int] = []
        for i, start, end in self._late.split(whole, trusted):
            tokens += self._plain(whole[start:end], first and start == 0) if i is None else [i]
        return tokens

    def _normalize(self, text: str) -> str:
        """The text in the form that the model's tokenizer gives it (llama.cpp does not), with a space before it."""
        form = self.metadata.get("jmedlite.tokenizer.normalizer")
        if form in ("NFC", "NFD", "NFKC", "NFKD"):
            text = unicodedata.normalize(form, text)
        if self._prefix in ("prepend", "replace"):
            text = text.replace(" ", "▁")
        return "▁" * (self._prefix == "prepend") + text

    def _plain(self, text: str, first: bool) -> list[int]:
        """Tokens of normalized text; `first` where it begins the prompt."""
        if (self._prefix == "always" or (self._prefix == "first" and first)) and text[0] not in " ▁":
            text = f" {text}"
        if self._adds_to_spaces and not text.strip(None if self._maps else " "):
            text = f" {text}"
        if not self._adds_space:
            tokens = self._by_llama_cpp(text)
        elif text[0] in " ▁" and len(text) > 1:
            tokens = self._by_llama_cpp(text[1:])
        else:  # a character that merges with nothing keeps the text and llama.cpp's space apart
            mark, n = self._separator
            tokens = self._by_llama_cpp(mark + text)[n:]
        # SentencePiece's merges go by the tokens' texts: nothing typed may become a control token in this way
        return self._merge(text) if self._merges and not self._control.isdisjoint(tokens) else tokens

    @cached_property
    def _unigram(self) -> Unigram:
        return Unigram(*(self.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "scores")))

    def _by_llama_cpp(self, text: str) -> list[int]:
        if self._cuts:
            return self._unigram.tokens(text.replace(" ", "▁"))
        if self._bytes is None:
            return self._by_words(text) if self._rule and is_odd(text) else self._tokenize(text)
        tokens: list[int] = []
        for known, run in groupby(self._known_forms(text), self._is_known):
            part = "".join(run)
            tokens += self._tokenize(part) if known else [self._bytes[b] for b in part.encode()]
        return tokens

    def _by_words(self, text: str) -> list[int]:
        """Tokens of text that llama.cpp would cut otherwise than the model's own rule does."""
        tokens: list[int] = []
        for word in split(self._rule, text):
            tokens += self._byte_level.tokens(word) if is_odd(word) else self._tokenize(word)
        return tokens

    @cached_property
    def _byte_level(self) -> ByteLevel:
        tokens, merges = (self.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges"))
        return ByteLevel(tokens, merges, whole_words=self._whole_words)

    def _tokenize(self, text: str) -> list[int]:
        raw = text.encode("utf-8")
        room = len(raw) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            n = self.llama.llama_tokenize(self.vocab, raw, len(raw), tokens, room, False, False)
            if n >= 0:
                return list(tokens[:n])
            room = -n

    @cached_property
    def _separator(self) -> tuple[str, int]:
        """A character that occurs in no token, and the number of tokens that it becomes after a space."""
        everything = b"".join(self.metadata["tokenizer.ggml.tokens"])
        mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c.encode() not in everything)
        return mark, len(self._tokenize(mark))

    def _merge(self, text: str) -> list[int]:
        """SentencePiece's BPE as llama.cpp does it, by tokens that are no control tokens."""
        tokens, scores = self.metadata["tokenizer.ggml.tokens"], self.metadata["tokenizer.ggml.scores"]
        known = {raw.decode("utf-8", "replace"): i for i, raw in enumerate(tokens) if i not in self._control}
        unknown = self.metadata.get("tokenizer.ggml.unknown_token_id", 0)

        def rank(left: str, right: str) -> float | None:
            i = known.get(left + right)
            return None if i is None else -scores[i]

        found: list[int] = []
        for symbol in merge(text.replace(" ", "▁"), rank):
            i = known.get(symbol)
            found += [i] if i is not None else [known.get(f"<0x{b:02X}>", unknown) for b in symbol.encode()]
        return found

    def public_prefix(self, parts: Sequence[Part]) -> list[int]:
        """Tokens of what stands before the first private part, as if nothing came after it.

        No private text has a share in them; where text is joined across the boundary, the prompt may leave this
        sequence a token early.
        """
        return self.tokenize_parts(list(takewhile(lambda p: not p.private, parts)))

    def controls_in(self, tags: tuple[tuple[str, ...], ...]) -> frozenset[int]:
        """Control tokens that these texts hold, of each group if the first text of it holds one."""
        if tags not in self._tags:
            texts = self.metadata["tokenizer.ggml.tokens"]
            named = [(i, text) for i in self._control if (text := texts[i].decode("utf-8", "replace"))]
            groups = [[i for i, text in named if any(text in tag for tag in group)] for group in tags]
            firsts = [any(text in group[0] for _, text in named) for group in tags]
            self._tags[tags] = frozenset(i for group, first in zip(groups, firsts, strict=True) if first for i in group)
        return self._tags[tags]

    def piece(self, token: int, *, shown: bool = False) -> bytes:
        """The bytes that a token adds to the answer; a control token adds some where it is `shown`."""
        buffer = ctypes.create_string_buffer(256)
        shown = shown or token in self._typed
        n = self.llama.llama_token_to_piece(self.vocab, token, buffer, 256, 0, shown)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self.llama.llama_token_to_piece(self.vocab, token, buffer, -n, 0, shown)
        return buffer.raw[: max(0, n)]

    def ends(self, token: int) -> bool:
        """Whether the token ends an answer: llama.cpp knows some, the header may name more."""
        return token in self._ends or bool(self.llama.llama_vocab_is_eog(self.vocab, token))
