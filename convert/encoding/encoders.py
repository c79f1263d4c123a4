"""Encoders: who makes ggml's blocks of float32 rows, as one object that a plan hands on to the pass.

ggml's own is the default, the same to the bit as llama-quantize. The fast one has searches of its own (searches.py) and
leaves to ggml's what it does not have, or would not do faster.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from typing import Protocol

from gguf.constants import GGMLQuantizationType as Type

from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.native import F32, U8, quantize_rows

from .blocks import FORMATS
from .searches import search_of

MADE_WITH_ENCODER = "jmedlite.made.encoder"  # the key of GGUF metadata that names the encoder, where it is not ggml's
ROUNDED = (Type.F32, Type.F16, Type.BF16)  # numbers that stand for themselves: no encoder chooses anything


class Encoder(Protocol):
    """What encodes a tensor's rows. `versions` are of what it needs beside jmedlite, by name, for the manifest."""

    @property
    def name(self) -> str: ...

    @property
    def versions(self) -> dict[str, str]: ...

    @property
    def memory(self) -> int:
        """Bytes that it needs beside the buffers of the pass."""

    def has(self, type_: Type, weighted: bool) -> bool:
        """Does it encode this format itself, with or without importance? ggml does it otherwise."""

    def encode(self, type_: Type, rows: F32, out: U8, importance: F32 | None = None) -> U8:
        """Encode finite `rows` (n_rows, n_cols) into `out`, flat; `importance` (n_cols,). Returns the part written."""


@dataclass(frozen=True)
class GgmlEncoder:
    """ggml's quantizer, as llama-quantize uses it."""

    name: str = "ggml"
    memory: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def has(self, type_: Type, weighted: bool) -> bool:
        return True

    def encode(self, type_: Type, rows: F32, out: U8, importance: F32 | None = None) -> U8:
        return quantize_rows(type_, rows, out, importance)


@dataclass(frozen=True)
class FastEncoder:
    """The reference encoder's arithmetic, compiled (fast.py). `versions` as for Encoder."""

    versions: dict[str, str]
    name: str = "fast"
    memory: int = 220 << 20  # numba while it compiles: 210 MB were measured

    def has(self, type_: Type, weighted: bool) -> bool:
        """All formats of blocks.py but Q4_0 and Q5_0 without importance, where there is nothing to search."""
        return type_ in FORMATS and (type_ == Type.Q8_0 or search_of(type_, weighted) is not None)

    def encode(self, type_: Type, rows: F32, out: U8, importance: F32 | None = None) -> U8:
        from . import fast

        if not self.has(type_, importance is not None):
            return quantize_rows(type_, rows, out, importance)
        return fast.encode(type_, rows, out, importance)


GGML = GgmlEncoder()
NAMES = (GGML.name, FastEncoder.name)


def find_encoder(name: str) -> Encoder:
    """The encoder of this name; UsageError where there is none, or where what it needs is not installed."""
    if name == GGML.name:
        return GGML
    if name != FastEncoder.name:
        raise UsageError(f"--encoder {name}: expected one of {', '.join(NAMES)}")
    try:
        from . import fast  # noqa: F401
    except (ImportError, OSError) as e:  # OSError: what numba is built on can't be loaded
        raise UsageError(f'the encoder fast needs numba ({e}): pip install "jmedlite[fast]"') from None
    return FastEncoder({name: importlib.metadata.version(name) for name in ("numba", "llvmlite")})


def recorded_encoder(name: object, where: str) -> Encoder:
    """The encoder that a file says it was made with; DataError, which begins with `where`, for one not known here."""
    if name not in NAMES:
        known = ", ".join(NAMES)
        raise DataError(
            f"{where}: was made with the encoder {name}, expected one of {known}; use the jmedlite that made it"
        )
    return find_encoder(str(name))
