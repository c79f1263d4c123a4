"""A SentencePiece model file (`tokenizer.model`) read without native code: pieces, scores, types and what matters else.

Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto (protocol buffers wire format,
https://protobuf.dev/programming-guides/encoding/). Only the fields named below are read, every length is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jmedlite.base.errors import DataError
from jmedlite.base.inputs import check_stand_in, read_bytes

# ModelProto
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
# ModelProto.SentencePiece
_PIECE, _SCORE, _TYPE = 1, 2, 3
# TrainerSpec, NormalizerSpec
_MODEL_TYPE, _SUFFIX = 3, 24
_NAME, _CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 1, 2, 3, 4, 5
UNIGRAM, BPE = 1, 2
NORMAL, BYTE = 1, 6
MAX_BYTES = 64_000_000
MAX_PIECES = 1 << 20  # the largest there are have 256,000


@dataclass
class SentencePieceModel:
    """`pieces[id]` is (text as UTF-8, score, type); types are numbered as GGUF's token types are."""

    pieces: list[tuple[bytes, float, int]] = field(default_factory=list)
    model_type: int = UNIGRAM
    normalizer: str = ""
    charsmap: bytes = b""  # what the normalizer replaces, compiled
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    whitespace_as_suffix: bool = False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number runs past the end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            number_value, at = _varint(data, at)
            yield number, number_value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")
        if length > len(data) - at:
            raise ValueError("a field runs past the end")
        yield number, data[at : at + length]
        at += length


def _raw(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes are expected")
    return value


def _whole(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number is expected")
    return value


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read `tokenizer.model`; raises DataError."""
    blob = read_bytes(path, MAX_BYTES)
    check_stand_in(path, blob[:512])
    model = SentencePieceModel()
    try:
        for number, value in _fields(blob):
            if number == _PIECES:
                text, score, kind = b"", 0.0, NORMAL
                for inner, v in _fields(_raw(value)):
                    if inner == _PIECE:
                        text = _raw(v)
                    elif inner == _SCORE:
                        (score,) = struct.unpack("<f", _raw(v))
                    elif inner == _TYPE:
                        kind = _whole(v)
                model.pieces.append((text, score, kind))
                if len(model.pieces) > MAX_PIECES:
                    raise ValueError(f"it has over {MAX_PIECES:,} pieces")
            elif number == _TRAINER:
                for inner, v in _fields(_raw(value)):
                    if inner == _MODEL_TYPE:
                        model.model_type = _whole(v)
                    elif inner == _SUFFIX:
                        model.whitespace_as_suffix = bool(_whole(v))
            elif number == _NORMALIZER:
                for inner, v in _fields(_raw(value)):
                    if inner == _NAME:
                        model.normalizer = _raw(v).decode()
                    elif inner == _CHARSMAP:
                        model.charsmap = _raw(v)
                    elif inner == _DUMMY_PREFIX:
                        model.add_dummy_prefix = bool(_whole(v))
                    elif inner == _REMOVE_SPACES:
                        model.remove_extra_whitespaces = bool(_whole(v))
                    elif inner == _ESCAPE_SPACES:
                        model.escape_whitespaces = bool(_whole(v))
    except (ValueError, struct.error) as e:
        raise DataError(f"{path.name}: is not a SentencePiece model ({e})") from None
    if not model.pieces:
        raise DataError(f"{path.name}: is not a SentencePiece model (it has no pieces)")
    return model
