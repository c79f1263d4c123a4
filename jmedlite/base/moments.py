"""Second moments: those of what enters a model's weights, for error feedback; the file, read and written.

A GGUF of type "moments". For every input that is gathered, named after the first weight that it enters, and every
window of its columns (k = 0, 1, …):

- `NAME.scale.k` (n,) F32: √ of the diagonal of H = mean of x xᵀ over the tokens;
- `NAME.upper.k` (n (n + 1) / 2,) F16: the rows of H's upper triangle, one after the other, each value divided by the
  scales of its row and column, so between -1 and 1.

`NAME.held_out` (n_tokens, n_cols) F16 are inputs of tokens that are not in H, divided by `NAME.held_out_scale` (1,).
The metadata `moments.inputs` and `moments.weights` are of one length: which input enters which weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from . import gguf
from .errors import DataError
from .inputs import open_file
from .native import F32
from .outputs import sha256_file

TYPE = "moments"
DATASETS, CHUNK_SIZE, TOKENS = "moments.datasets", "moments.chunk_size", "moments.tokens"
INPUTS, WEIGHTS = "moments.inputs", "moments.weights"
AGAIN = "make it again with `jmedlite moments`"
WIDEST = 4096  # columns of an input that are kept whole; a wider one's are cut into windows
WINDOW = 3072  # at most then
STEP = 256  # windows end at multiples of it, where a row's blocks do


def windows(n_cols: int) -> list[tuple[int, int]]:
    """[start, end) of the windows of an input of `n_cols` columns."""
    if n_cols <= WIDEST:
        return [(0, n_cols)]
    n_steps = -(-n_cols // STEP)
    n = -(-n_steps // (WINDOW // STEP))
    bounds = [min(i * n_steps // n * STEP, n_cols) for i in range(n)] + [n_cols]
    return list(itertools.pairwise(bounds))


@dataclass(frozen=True)
class Gathered:
    """One input: `moments` (n, n) of every window, in order, and `held_out` (n_tokens, n_cols)."""

    moments: tuple[F32, ...]
    held_out: F32


class Moments:
    """A file, opened: which weights it serves, and an input's values when they are asked for.

    Raises InputMissing, NotPermitted, or DataError naming what is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = header = gguf.read_header(path)
        if header.metadata.get("general.type") != TYPE:
            raise DataError(f"{path.name}: is no file of second moments; {AGAIN}")
        names = [self._names(key) for key in (INPUTS, WEIGHTS)]
        if len(names[0]) != len(names[1]) or not names[0]:
            raise DataError(f"{path.name}: its inputs and weights are not of one length; {AGAIN}")
        self.input_of: dict[str, str] = dict(zip(names[1], names[0], strict=True))
        self.datasets = tuple(self._names(DATASETS))
        self.n_tokens = int(header.metadata.get(TOKENS, 0))
        self.sha256 = sha256_file(path)
        self._file = open_file(path)
        self._n_cols = {name: self._check(name) for name in dict.fromkeys(self.input_of.values())}

    def _names(self, key: str) -> list[str]:
        if self.header.types.get(key) != (gguf.ARRAY, gguf.STRING):
            raise DataError(f"{self.path.name}: has no list {key}; {AGAIN}")
        return [x.decode("utf-8", "replace") for x in self.header.metadata[key]]

    def _check(self, name: str) -> int:
        """Columns of an input, all of whose parts are there; raises DataError."""
        held = self.header.by_name.get(f"{name}.held_out")
        n_cols = held.shape[0] if held else 0
        if held is None or len(held.shape) > 2:
            raise DataError(f"{self.path.name}: has no right {name}.held_out; {AGAIN}")
        expected = {f"{name}.held_out": (held.shape, "F16"), f"{name}.held_out_scale": ((1,), "F32")}
        for k, (start, end) in enumerate(windows(n_cols)):
            n = end - start
            expected[f"{name}.scale.{k}"] = ((n,), "F32")
            expected[f"{name}.upper.{k}"] = ((n * (n + 1) // 2,), "F16")
        for part, (shape, type_) in expected.items():
            t = self.header.by_name.get(part)
            if t is None or t.shape != shape or t.type.name != type_:
                raise DataError(f"{self.path.name}: has no right {part}, expected {type_} of shape {shape}; {AGAIN}")
        return n_cols

    def n_cols(self, weight: str) -> int | None:
        """Columns of the input of a weight; None where nothing was gathered for it."""
        found = self.input_of.get(weight)
        return None if found is None else self._n_cols[found]

    def read(self, weight: str) -> Gathered:
        """What was gathered for a weight's input; raises DataError for values that are not finite."""
        name = self.input_of[weight]
        moments = []
        for k in range(len(windows(self._n_cols[name]))):
            scale = self._values(f"{name}.scale.{k}").astype(np.float32)
            moments.append(unpack_upper(self._values(f"{name}.upper.{k}"), scale))
        held_out = self._values(f"{name}.held_out").astype(np.float32).reshape(-1, self._n_cols[name])
        held_out *= self._values(f"{name}.held_out_scale")[0]
        if not (np.isfinite(held_out).all() and all(np.isfinite(m).all() for m in moments)):
            raise DataError(f"{self.path.name}: {name} has values that are not finite; {AGAIN}")
        return Gathered(tuple(moments), held_out)

    def _values(self, name: str) -> NDArray[Any]:
        t = self.header.by_name[name]
        self._file.seek(self.header.data_offset + t.offset)
        raw = self._file.read(t.nbytes)
        if len(raw) != t.nbytes:
            raise DataError(f"{self.path.name}: ends inside {name}; {AGAIN}")
        return np.frombuffer(raw, "<f4" if t.type.name == "F32" else "<f2")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def pack_upper(moments: F32) -> tuple[F32, NDArray[np.float16]]:
    """(scales (n,), upper triangle (n (n + 1) / 2,)) of symmetric `moments` (n, n), of which the upper part is read."""
    n = len(moments)
    scale = np.sqrt(np.maximum(np.diagonal(moments), 0)).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    packed, at = np.empty(n * (n + 1) // 2, np.float16), 0
    for i in range(n):
        packed[at : at + n - i] = moments[i, i:] * (inverse[i] * inverse[i:])
        at += n - i
    return scale, packed


def unpack_upper(packed: NDArray[np.float16], scale: F32) -> F32:
    """The symmetric matrix (n, n) that `pack_upper` was given, to the 11 bits of its values."""
    n, at = len(scale), 0
    found = np.empty((n, n), np.float32)
    for i in range(n):
        found[i, i:] = packed[at : at + n - i] * (scale[i] * scale[i:])
        found[i:, i] = found[i, i:]
        at += n - i
    return found


def layout(
    inputs: Mapping[str, int],
    weights: Mapping[str, str],
    n_held_out: int,
    entries: Mapping[str, tuple[Any, int, int | None]],
) -> tuple[bytes, dict[str, gguf.Tensor]]:
    """(header, {tensor's name: its place}) of a file for `inputs` (columns by name) that enter `weights`."""
    tensors = []
    half, single = GGMLQuantizationType.F16, GGMLQuantizationType.F32
    for name, n_cols in inputs.items():
        for k, (start, end) in enumerate(windows(n_cols)):
            n = end - start
            tensors.append(gguf.Tensor(f"{name}.scale.{k}", (n,), single))
            tensors.append(gguf.Tensor(f"{name}.upper.{k}", (n * (n + 1) // 2,), half))
        tensors.append(gguf.Tensor(f"{name}.held_out_scale", (1,), single))
        tensors.append(gguf.Tensor(f"{name}.held_out", (n_cols, n_held_out), half))
    for t in tensors:
        if len(t.name.encode()) >= gguf.MAX_NAME:
            raise DataError(f"the tensor name {t.name} is longer than a GGUF can hold")
    metadata: gguf.Entries = {
        "general.type": (TYPE, gguf.STRING, None),
        **entries,
        INPUTS: (list(weights.values()), gguf.ARRAY, gguf.STRING),
        WEIGHTS: (list(weights), gguf.ARRAY, gguf.STRING),
    }
    placed, _ = gguf.layout(tensors)
    header = gguf.pack_header([gguf.pack_metadata(metadata)], len(metadata), placed)
    return header, {t.name: t for t in placed}


def parts(name: str, moments: Sequence[F32], held_out: F32) -> Iterator[tuple[str, NDArray[Any]]]:
    """(tensor's name, its values) of one input."""
    for k, window in enumerate(moments):
        scale, packed = pack_upper(window)
        yield f"{name}.scale.{k}", scale
        yield f"{name}.upper.{k}", packed
    largest = float(np.abs(held_out).max(initial=0.0)) or 1.0
    yield f"{name}.held_out_scale", np.array([largest / 1024], np.float32)
    yield f"{name}.held_out", (held_out * np.float32(1024 / largest)).astype(np.float16)
