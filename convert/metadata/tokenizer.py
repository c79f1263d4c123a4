"""Tokenizer: a checkpoint's vocabulary as GGUF has it: tokens, types, scores, merges, pre-tokenizer.

Three kinds: byte-level BPE (`tokenizer.json`, `tekken.json`), SentencePiece-style BPE (`tokenizer.model`, or a
`tokenizer.json` with byte fallback) and SentencePiece unigram (`tokenizer.model` or `spiece.model`). What llama.cpp
could not reproduce, with the runner's help where its docs say so, is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf.constants import TokenType

from jmedlite.base.errors import DataError, InputMissing
from jmedlite.base.wording import shown
from jmedlite.runtime.words import O200K, TEKKEN

from .added_tokens import describe_flags, spaces_of
from .sentencepiece import BPE, BYTE, UNIGRAM, SentencePieceModel
from .tokenizer_files import (
    DESCRIBED,
    TokenizerFiles,
    default_template,
    described_texts,
    piece_texts,
    read_tokenizer_files,
)

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35 = _QWEN2.replace(r"\p{L}+|\p{N}|", r"[\p{L}\p{M}]+|\p{N}|").replace(
    r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+"
)
_LLAMA3 = _QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
# (steps of the pre-tokenizer, does a token that is a whole word skip the merges?) -> llama.cpp's name for it.
# llama.cpp's own regular expressions for these names: src/llama-vocab.cpp.
_PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    ((_QWEN2, "bytes"), False): "qwen2",
    ((_QWEN35, "bytes"), False): "qwen35",
    ((_LLAMA3, "bytes"), True): "llama-bpe",
    ((_LLAMA3, "bytes"), False): "smaug-bpe",
    ((TEKKEN, "bytes"), True): "tekken",
    ((O200K, "bytes"), False): "gpt-4o",
    (("words+bytes",), False): "gpt-2",
    (("digits", "words+bytes"), False): "smollm",
}


_IS_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass
class SourceVocabulary:
    """What the `tokenizer.ggml.*` keys say; `tokens[id]` as UTF-8, lists all of the embedding's length."""

    model: str  # "gpt2" (byte-level BPE), "llama" (SentencePiece BPE) or "t5" (SentencePiece unigram)
    pre: str
    tokens: list[bytes]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    add_bos: bool | None = None
    add_space_prefix: bool | None = None
    normalizer: str | None = None
    charsmap: bytes = b""
    remove_extra_whitespaces: bool | None = None
    unknown: int | None = None  # the id, where llama.cpp would guess another
    byte_fallback: bool = False  # llama.cpp has none for unigram models: jmedlite's runner does it
    space_prefix: str | None = None  # where text gets a space before it, if not where llama.cpp puts one
    flags: dict[str, list[int]] = field(default_factory=dict)  # ids of added tokens by flag (added_tokens.py)
    warnings: list[str] = field(default_factory=list)

    @property
    def begins_by_default(self) -> bool:
        """Does llama.cpp put BOS before texts where nothing is said?"""
        return self.model == "llama" or self.pre in ("llama-bpe", "tekken")


def _looks_special(token: str) -> bool:
    """Added tokens that some models forget to mark as special; the same list as llama.cpp's converter."""
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<｜") and token.endswith("｜>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def read_vocabulary(folder: Path | TokenizerFiles, n_vocab: int) -> SourceVocabulary:
    """The vocabulary of the checkpoint in `folder`, padded to the `n_vocab` rows of its embedding."""
    files = folder if isinstance(folder, TokenizerFiles) else read_tokenizer_files(folder)
    try:
        return _read_vocabulary(files, n_vocab)
    except (
        AttributeError,
        TypeError,
        KeyError,
        IndexError,
        ValueError,
        OverflowError,
    ) as e:  # JSON of another form than the library's
        raise DataError(f"{files.folder.name}: its tokenizer files are malformed ({e})") from None


def _read_vocabulary(files: TokenizerFiles, n_vocab: int) -> SourceVocabulary:
    described, added = files.described, _added_tokens(files)
    left_out = _take_placeholders(files, added, n_vocab)
    is_pieces = _counts(files)
    if is_pieces:
        vocabulary = _from_sentencepiece(files, added, n_vocab)
    elif described is None:
        raise InputMissing(
            f"{files.folder}: has no tokenizer.json, tokenizer.model or tekken.json; download the whole model"
        )
    elif (kind := (described.get("model") or {}).get("type")) == "Unigram":
        vocabulary = _from_unigram(described, added, n_vocab)
    elif kind != "BPE":
        raise DataError(f"{DESCRIBED}: is of type {kind}, expected BPE or Unigram; llama.cpp can't reproduce it")
    elif described["model"].get("byte_fallback"):
        vocabulary = _from_byte_fallback(described, added, n_vocab)
    else:
        vocabulary = _from_byte_level(described, added, n_vocab)
    _set_add_bos(vocabulary, files)
    describe_flags(vocabulary, described, files.settings, is_pieces)
    vocabulary.warnings += left_out
    return vocabulary


def _take_placeholders(files: TokenizerFiles, added: dict[int, tuple[str, bool]], n_vocab: int) -> list[str]:
    """Take placeholders beyond the embedding out of `added`, with a warning: no text can use them.

    Gemma 3's text models keep the place of an image in their tokenizer, a base model may have a padding token that was
    never given a row. Where one begins or ends texts, or stands for what is unknown, tokenizer and model differ.
    """
    beyond = {
        i: text
        for i, (text, control) in sorted(added.items())
        if i >= n_vocab and (control or re.fullmatch(r"<.*>|\[.*\]", text))
    }
    if not beyond or {files.token(role) for role in ("bos", "eos", "unk")} & set(beyond.values()):
        return []  # _place will refuse it
    for i in beyond:
        del added[i]
    name = files.folder.name
    names = ", ".join(list(beyond.values())[:3]) + (", …" if len(beyond) > 3 else "")
    warnings = [f"{name}: the embedding has no row for {names} (id {min(beyond):,}); left out"]
    template = default_template(files.template) or ""
    if used := [text for text in beyond.values() if text in template]:
        warnings.append(f"{name}: the chat template writes {used[0]}, which will be read as plain text")
    return warnings


def _counts(files: TokenizerFiles) -> bool:
    """Is the SentencePiece model the vocabulary? Not where tokenizer.json has other tokens: transformers reads that.

    Raises DataError where it has, and tokenizer.json is of a kind that can't be reproduced.
    """
    if files.pieces_file is None or files.described is None:
        return files.pieces_file is not None
    model = files.described.get("model") or {}
    reproducible = model.get("type") in ("BPE", "Unigram")
    try:
        theirs = piece_texts(files.pieces)
    except DataError:
        if not reproducible:
            raise
        differ = f"{files.pieces_file.name} is none that SentencePiece reads"
    else:
        ours = described_texts(files.described)
        ids = sorted(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i) and i not in files.added)
        if not ids:
            return True
        differ = (
            f"token {ids[0]} is {_shown(ours.get(ids[0]))} in {DESCRIBED} and {_shown(theirs.get(ids[0]))} in "
            f"{files.pieces_file.name}"
        )
    if not reproducible:
        raise DataError(
            f"{differ}; transformers reads {DESCRIBED}, whose type {model.get('type')} llama.cpp can't reproduce here"
        )
    files.warnings.append(f"{files.folder.name}: {differ}; {DESCRIBED} is taken, as in transformers")
    return False


def _shown(text: str | None) -> str:
    return "missing" if text is None else repr(text)


def _set_add_bos(vocabulary: SourceVocabulary, files: TokenizerFiles) -> None:
    """Say whether texts begin with BOS, where llama.cpp would not find out by itself."""
    flag, adds = files.settings.get("add_bos_token"), files.adds_bos
    if adds is None:
        return
    if files.described is not None and isinstance(flag, bool) and flag is not adds:
        files.warnings.append(
            f"{files.folder.name}: add_bos_token is {str(flag).lower()} in tokenizer_config.json, but {DESCRIBED} "
            f"{'puts a control token' if adds else 'puts nothing'} before every text; the latter is taken, as in "
            "transformers"
        )
    silent = files.described is not None and not isinstance(files.described.get("post_processor"), dict)
    if silent and not isinstance(flag, bool) and not vocabulary.begins_by_default:
        return
    vocabulary.add_bos = adds


def _added_tokens(files: TokenizerFiles) -> dict[int, tuple[str, bool]]:
    """{id: (text, is it a control token?)} of the added tokens."""
    special = files.special
    return {
        i: (token.text, token.special or token.text in special or _looks_special(token.text))
        for i, token in files.added.items()
    }


def _check_size(largest: int, n_vocab: int) -> None:
    if largest >= n_vocab:
        raise DataError(
            f"the tokenizer has token ids up to {largest:,}, the embedding has {n_vocab:,} rows; "
            "they belong to different models"
        )


def _place(
    vocab: Iterable[tuple[int, bytes, int]], added: dict[int, tuple[str, bool]], n_vocab: int
) -> tuple[list[bytes], list[int]]:
    """Tokens and types by id; ids that nothing uses become [PADn] of type UNUSED."""
    tokens = [f"[PAD{i}]".encode() for i in range(n_vocab)]
    types = [int(TokenType.UNUSED)] * n_vocab
    for i, text, kind in vocab:
        _check_size(i, n_vocab)
        tokens[i], types[i] = text, kind
    for i, (added_text, control) in added.items():
        _check_size(i, n_vocab)
        # llama.cpp matches these in the raw text, where SentencePiece's "▁" is a space
        tokens[i] = (added_text if control else added_text.replace("▁", " ")).encode()
        types[i] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
    if len(set(tokens)) != n_vocab:
        seen: set[bytes] = set()
        twice = next(t for t in tokens if t in seen or seen.add(t))  # type: ignore[func-returns-value]
        raise DataError(f"the tokenizer has the token {twice.decode('utf-8', 'replace')!r} twice")
    return tokens, types


# ----------------------------------------------------------------------------------------------- byte-level BPE


def _steps(pre_tokenizer: Any) -> tuple[str, ...]:
    """A pre-tokenizer as a tuple that _PRE_TOKENIZERS knows, or its JSON where it has an unknown step."""
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if isinstance(pre_tokenizer, dict) else []
    found = []
    for part in parts:
        kind = part.get("type")
        pattern = (part.get("pattern") or {}).get("Regex")
        if kind == "Split" and pattern and part.get("behavior") == "Isolated" and not part.get("invert"):
            found.append(pattern)
        elif kind == "Digits" and part.get("individual_digits"):
            found.append("digits")
        elif kind == "ByteLevel" and not part.get("add_prefix_space"):
            found.append("words+bytes" if part.get("use_regex", True) else "bytes")
        else:
            found.append(json.dumps(part, ensure_ascii=False))
    return tuple(found)


def _pre_tokenizer(described: dict[str, Any]) -> str:
    steps = _steps(described.get("pre_tokenizer"))
    name = _PRE_TOKENIZERS.get((steps, bool(described["model"].get("ignore_merges"))))
    if name is None:
        raise DataError(
            f"tokenizer.json: its pre-tokenizer is none of {', '.join(sorted(set(_PRE_TOKENIZERS.values())))} "
            f"({' → '.join(steps) or 'none'}); llama.cpp would tokenize differently, so it is refused"
        )
    return name


def _normalizer(described: dict[str, Any]) -> str | None:
    normalizer = described.get("normalizer")
    if not normalizer:
        return None
    kinds = [n.get("type") for n in normalizer.get("normalizers", [normalizer])]
    if kinds in (["NFC"], ["NFD"], ["NFKC"], ["NFKD"]):
        return str(kinds[0])
    raise DataError(f"tokenizer.json: normalizes text with {', '.join(map(str, kinds))}, which llama.cpp does not do")


def _model_parts(described: dict[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    vocab, merges = described["model"].get("vocab"), described["model"].get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list) or not merges:
        raise DataError("tokenizer.json: its model has no vocab or no merges")
    if any(type(i) is not int or i < 0 for i in vocab.values()):
        raise DataError("tokenizer.json: a token's id is not a number")
    pairs: list[Any] = [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges]
    if any(len(p) != 2 or not all(isinstance(x, str) and x for x in p) for p in pairs):
        raise DataError("tokenizer.json: a merge is not a pair of tokens")
    return vocab, pairs


def _from_byte_level(described: dict[str, Any], added: dict[int, tuple[str, bool]], n_vocab: int) -> SourceVocabulary:
    vocab, merges = _model_parts(described)
    normal = int(TokenType.NORMAL)
    tokens, types = _place(((i, text.encode(), normal) for text, i in vocab.items()), added, n_vocab)
    # GGUF keeps a merge as "left right"; a space inside a part is written as byte-level BPE writes it, "Ġ"
    joined = [f"{a.replace(' ', 'Ġ')} {b.replace(' ', 'Ġ')}" for a, b in merges]
    return SourceVocabulary(
        "gpt2", _pre_tokenizer(described), tokens, types, merges=joined, normalizer=_normalizer(described)
    )


# ------------------------------------------------------------------------------------------------ SentencePiece


def _from_sentencepiece(files: TokenizerFiles, added: dict[int, tuple[str, bool]], n_vocab: int) -> SourceVocabulary:
    path, model = files.pieces_file, files.pieces
    assert path is not None
    if model.model_type not in (UNIGRAM, BPE):
        raise DataError(f"{path.name}: is a SentencePiece model of words or characters; expected BPE or unigram")
    _check_size(len(model.pieces) - 1, n_vocab)
    tokens, types = _place(((i, text, kind) for i, (text, _, kind) in enumerate(model.pieces)), added, n_vocab)
    scores = [-10000.0] * n_vocab
    for i, (_, score, _) in enumerate(model.pieces):
        scores[i] = score
    for i in added:
        scores[i] = -1000.0
    vocabulary = SourceVocabulary("llama" if model.model_type == BPE else "t5", "default", tokens, types, scores)
    prefix = files.settings.get("add_prefix_space")
    if model.model_type == UNIGRAM:
        _describe_unigram(path, model, vocabulary)
        return vocabulary
    vocabulary.add_space_prefix = prefix if isinstance(prefix, bool) else None if model.add_dummy_prefix else False
    if model.normalizer not in ("", "identity"):
        vocabulary.warnings.append(
            f"{path.name} normalizes text with {model.normalizer}; llama.cpp does not, so unusual characters may be "
            "tokenized differently"
        )
    return vocabulary


def _describe_unigram(path: Path, model: SentencePieceModel, vocabulary: SourceVocabulary) -> None:
    """What llama.cpp's unigram tokenizer (`t5`) needs beside pieces and scores."""
    if model.whitespace_as_suffix or not model.escape_whitespaces:
        raise DataError(f"{path.name}: puts spaces after words or keeps them as they are, which llama.cpp does not do")
    kinds = [kind for _, _, kind in model.pieces]
    vocabulary.byte_fallback = BYTE in kinds
    if vocabulary.byte_fallback and (model.add_dummy_prefix or model.remove_extra_whitespaces):
        raise DataError(
            f"{path.name}: is a unigram model with byte fallback that also adds or removes spaces; jmedlite can't "
            "reproduce both together"
        )
    if int(TokenType.UNKNOWN) in kinds:
        vocabulary.unknown = kinds.index(int(TokenType.UNKNOWN))
    vocabulary.charsmap = model.charsmap
    vocabulary.add_space_prefix = model.add_dummy_prefix
    vocabulary.remove_extra_whitespaces = model.remove_extra_whitespaces
    vocabulary.add_bos = False


def _from_byte_fallback(
    described: dict[str, Any], added: dict[int, tuple[str, bool]], n_vocab: int
) -> SourceVocabulary:
    """A SentencePiece vocabulary that survives only as tokenizer.json (Llama 2's and its children's).

    llama.cpp merges the pair whose result has the highest score; Hugging Face the pair of the lowest rank. With the
    score -rank both do the same. (llama.cpp's converter gives every token the same score here.)
    """
    vocab, merges = _model_parts(described)
    scores = [-1e6] * n_vocab
    for rank, (a, b) in reversed(list(enumerate(merges))):
        if (i := vocab.get(a + b)) is not None and i < n_vocab:
            scores[i] = -float(rank)
    unknown = described["model"].get("unk_token")

    def kind(text: str) -> int:
        if _IS_BYTE.fullmatch(text):
            return int(TokenType.BYTE)
        return int(TokenType.UNKNOWN if text == unknown else TokenType.NORMAL)

    tokens, types = _place(((i, text.encode(), kind(text)) for text, i in vocab.items()), added, n_vocab)
    for i in added:
        scores[i] = -1000.0
    vocabulary = SourceVocabulary("llama", "default", tokens, types, scores)
    vocabulary.add_space_prefix = _prepends_space(described)
    return vocabulary


def _from_unigram(described: dict[str, Any], added: dict[int, tuple[str, bool]], n_vocab: int) -> SourceVocabulary:
    """A unigram vocabulary with byte fallback that survives only as tokenizer.json (LLM-jp's)."""
    model = described["model"]
    entries = model.get("vocab")
    if not isinstance(entries, list) or not all(
        isinstance(e, list) and len(e) == 2 and isinstance(e[0], str) and type(e[1]) in (int, float) for e in entries
    ):
        raise DataError(f"{DESCRIBED}: its Unigram model has no vocab of tokens with scores")
    if not all(math.isfinite(score) for _, score in entries):
        raise DataError(f"{DESCRIBED}: a token's score is not finite")
    unknown = model.get("unk_id")
    if unknown is not None and (type(unknown) is not int or not 0 <= unknown < len(entries)):
        raise DataError(f"{DESCRIBED}: its unk_id is {shown(unknown)}, expected the number of a token")
    if not model.get("byte_fallback"):
        raise DataError(f"{DESCRIBED}: is of type Unigram without byte fallback, which jmedlite can't reproduce")

    def kind(i: int, text: str) -> int:
        if i == unknown:
            return int(TokenType.UNKNOWN)
        return int(TokenType.BYTE if _IS_BYTE.fullmatch(text) else TokenType.NORMAL)

    tokens, types = _place(((i, text.encode(), kind(i, text)) for i, (text, _) in enumerate(entries)), added, n_vocab)
    scores = [float(score) for _, score in entries] + [-1000.0] * (n_vocab - len(entries))
    vocabulary = SourceVocabulary("t5", "default", tokens, types, scores)
    vocabulary.byte_fallback, vocabulary.unknown = True, unknown
    vocabulary.remove_extra_whitespaces = False
    vocabulary.add_space_prefix = spaces_of(described)[0] not in ("replace", "never")
    return vocabulary


def _prepends_space(described: dict[str, Any]) -> bool:
    """Does the text get a leading "▁"? By a Prepend normalizer or a Metaspace pre-tokenizer."""
    normalizer, pre = described.get("normalizer") or {}, described.get("pre_tokenizer") or {}
    if any(n.get("type") == "Prepend" for n in normalizer.get("normalizers", [normalizer])):
        return True
    for step in pre.get("pretokenizers", [pre]):
        if step.get("type") == "Metaspace":
            return bool(step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True))
    return False
