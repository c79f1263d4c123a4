"""Importance matrices: the mean square of every input column of a weight, read from and written to llama.cpp's files.

Two formats are read, as llama-quantize does: GGUF (`NAME.in_sum2` and `NAME.counts`) and the older binary one. Only
GGUF is written. Definition: tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp of llama.cpp.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from . import gguf
from .errors import DataError
from .inputs import opened
from .native import F32
from .outputs import sha256_file
from .wording import some

DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
SUMS, COUNTS = ".in_sum2", ".counts"
AGAIN = "make it again with `jmedlite imatrix` or llama-imatrix"
SHOWN = 4  # of the experts, and the blocks, that are named


@dataclass(frozen=True)
class Imatrix:
    """Mean squares by tensor name, as llama-quantize uses them: `weights[name]` has one value per column.

    A tensor of experts has (n_experts * n_per_row,) values, one matrix after the other; the columns of an expert that
    saw no token are 1, and `seen[name]` (n_experts,) says which did. `chunk_size` is None, `chunks` may be 0 and `seen`
    is empty where the (older) file does not tell.
    """

    path: Path
    sha256: str
    datasets: tuple[str, ...]
    chunk_size: int | None
    chunks: int
    weights: dict[str, F32]
    seen: dict[str, NDArray[np.bool_]]

    @property
    def unseen(self) -> str:
        """A sentence that names the experts without a token; empty where each had some."""
        blocks: dict[str, NDArray[np.bool_]] = {}
        for name, seen in self.seen.items():  # gate, up and down of a block go by one choice
            block = ".".join(name.split(".")[:2])
            blocks[block] = seen & blocks.get(block, True)
        without = {block: np.flatnonzero(~seen) for block, seen in blocks.items() if not seen.all()}
        if not without:
            return ""
        named = some([f"{block}: {some([*map(str, which)], SHOWN)}" for block, which in without.items()], SHOWN)
        n, total = sum(map(len, without.values())), sum(map(len, blocks.values()))
        return (
            f"{self.path.name}: {n:,} of {total:,} experts saw no token of its text ({named}), so all their columns "
            "count alike; a longer text reaches more"
        )


@dataclass(frozen=True)
class Squares:
    """What was summed for one tensor: `sums` (n_matrices, n_per_row) of squares, over `counts` (n_matrices,) rows."""

    sums: F32
    counts: NDArray[np.int64]


def read_imatrix(path: Path) -> Imatrix:
    """Read and check an importance matrix of either format.

    Raises InputMissing, NotPermitted, or DataError naming what is wrong.
    """
    with opened(path) as file:
        magic = file.read(4)
        if not magic:
            raise DataError(f"{path.name}: is empty, expected an importance matrix; {AGAIN}")
        found = _read_gguf(path, file) if magic == gguf.MAGIC else _read_binary(path, file)
        return Imatrix(path, sha256_file(path), *found)


Found = tuple[tuple[str, ...], int | None, int, dict[str, F32], dict[str, NDArray[np.bool_]]]


def weighted_squares(rows: F32, importance: F32 | None) -> float:
    """Σ h x² over `rows` (n, n_cols), h the columns' importance (n_cols,)."""
    squares = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
    return float(squares.sum() if importance is None else squares @ importance)


# ------------------------------------------------------------------------------------------------------- GGUF


def _read_gguf(path: Path, file: BinaryIO) -> Found:
    header = gguf.read_header(path)
    kind = header.metadata.get("general.type")
    if kind not in (None, "imatrix") or "general.architecture" in header.metadata:
        raise DataError(f"{path.name}: is a GGUF of type {str(kind or 'model')[:40]!r}, expected 'imatrix'; {AGAIN}")
    wanted: tuple[tuple[str, tuple[int, ...]], ...] = (
        (DATASETS, (gguf.ARRAY, gguf.STRING)),
        (CHUNK_COUNT, (gguf.UINT32,)),
        (CHUNK_SIZE, (gguf.UINT32,)),
    )
    for key, type_ in wanted:
        if header.types.get(key) != type_:
            absent = key not in header.types
            raise DataError(
                f"{path.name}: {'has no' if absent else 'has the wrong type of'} {key}, which every importance matrix "
                f"has; {AGAIN}"
            )
    stems: dict[str, None] = {}
    for t in header.tensors:
        stem = next((t.name.removesuffix(end) for end in (SUMS, COUNTS) if t.name.endswith(end)), "")
        if not stem:
            raise DataError(f"{path.name}: has the tensor {t.name}, expected names in {SUMS} and {COUNTS}; {AGAIN}")
        stems[stem] = None
    if not stems:
        raise DataError(f"{path.name}: has no entries; {AGAIN}")
    weights, seen = {}, {}
    for stem in stems:
        sums, counts = (_tensor(path, file, header, stem + end) for end in (SUMS, COUNTS))
        weights[stem], reached = _means(path, stem, sums, counts)
        if len(reached) > 1:
            seen[stem] = reached
    datasets = tuple(d.decode("utf-8", "replace") for d in header.metadata[DATASETS])
    return datasets, header.metadata[CHUNK_SIZE], header.metadata[CHUNK_COUNT], weights, seen


def _tensor(path: Path, file: BinaryIO, header: gguf.Header, name: str) -> F32:
    t = header.by_name.get(name)
    if t is None:
        partner = name.removesuffix(SUMS) + COUNTS if name.endswith(SUMS) else name.removesuffix(COUNTS) + SUMS
        raise DataError(f"{path.name}: has {partner} but no {name}; {AGAIN}")
    if t.type is not GGMLQuantizationType.F32:
        raise DataError(f"{path.name}: {name} is {t.type.name}, expected F32; {AGAIN}")
    file.seek(header.data_offset + t.offset)
    raw = file.read(t.nbytes)
    if len(raw) != t.nbytes:
        raise DataError(f"{path.name}: truncated in {name}: needs {t.nbytes:,} bytes, has {len(raw):,}; {AGAIN}")
    return np.frombuffer(raw, "<f4").astype(np.float32, copy=False)


def _means(path: Path, stem: str, sums: F32, counts: F32) -> tuple[F32, NDArray[np.bool_]]:
    """(sums over counts, in float32 as llama-quantize divides, an expert without a token counting all columns alike;
    which matrices had one).
    """
    _check_sums(path, stem, sums)
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise DataError(f"{path.name}: {stem}{COUNTS} has negative or non-finite values; {AGAIN}")
    if sums.size % counts.size:
        raise DataError(
            f"{path.name}: {stem} has {sums.size:,} sums for {counts.size:,} counts, expected a multiple; {AGAIN}"
        )
    whole = np.floor(counts + np.float32(0.5))
    if not whole.any():
        raise DataError(f"{path.name}: {stem} was computed over 0 tokens; {AGAIN}")
    rows = sums.reshape(counts.size, -1)
    seen = whole[:, None] > 0
    means = np.where(seen, rows / np.where(seen, whole[:, None], np.float32(1)), np.float32(1)).ravel()
    return means, seen[:, 0]


def _check_sums(path: Path, stem: str, sums: F32) -> None:
    if bad := int(np.count_nonzero(~np.isfinite(sums))):
        raise DataError(f"{path.name}: {stem} has {bad:,} values that are not finite; {AGAIN}")
    if bad := int(np.count_nonzero(sums < 0)):
        raise DataError(f"{path.name}: {stem} has {bad:,} negative sums of squares; {AGAIN}")


# --------------------------------------------------------------------------------------- the older binary format


def _read_binary(path: Path, file: BinaryIO) -> Found:
    """n_entries, then per entry: length, name, ncall, n values, values; then chunks, and the data set's name."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)

    def take(n: int, what: str) -> bytes:
        if n < 0 or n > size - file.tell():
            raise DataError(
                f"{path.name}: truncated or not an importance matrix: {what} needs {n:,} bytes, "
                f"{size - file.tell():,} are left; {AGAIN}"
            )
        return file.read(n)

    def number(what: str) -> int:
        return int(struct.unpack("<i", take(4, what))[0])

    n_entries = number("the number of entries")
    if not 1 <= n_entries <= size // 17:  # the least an entry takes
        raise DataError(
            f"{path.name}: is not an importance matrix (neither a GGUF, nor can its {size:,} bytes hold "
            f"{n_entries:,} entries of the older format); {AGAIN}"
        )
    weights: dict[str, F32] = {}
    for i in range(n_entries):
        name = _name(path, take(number(f"the name of entry {i + 1}"), f"the name of entry {i + 1}"), i)
        if name in weights:
            raise DataError(f"{path.name}: has the entry {name} twice; {AGAIN}")
        n_calls, n_values = number(name), number(name)
        if n_calls < 1 or n_values < 1:
            raise DataError(f"{path.name}: {name} has {n_values:,} values over {n_calls:,} chunks; {AGAIN}")
        sums = np.frombuffer(take(4 * n_values, name), "<f4").astype(np.float32, copy=False)
        _check_sums(path, name, sums)
        weights[name] = sums / np.float32(n_calls)
    datasets: tuple[str, ...] = ()
    chunks = number("the number of chunks") if file.tell() < size else 0
    if file.tell() < size and (length := number("the data set's name")):
        datasets = (take(length, "the data set's name").decode("utf-8", "replace"),)
    if chunks < 0 or file.tell() != size:
        raise DataError(f"{path.name}: has {chunks:,} chunks and {size - file.tell():,} bytes too many; {AGAIN}")
    return datasets, None, chunks, weights, {}


def _name(path: Path, raw: bytes, i: int) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    if not name or not name.isprintable() or len(raw) >= gguf.MAX_NAME:
        raise DataError(
            f"{path.name}: the name of entry {i + 1} is not a tensor's ({len(raw):,} bytes); is it an importance "
            f"matrix? {AGAIN}"
        )
    return name


# ----------------------------------------------------------------------------------------------------- writing


def pack_imatrix(
    squares: Mapping[str, Squares], *, datasets: Sequence[str], chunk_size: int, chunks: int
) -> Iterator[bytes]:
    """`squares` by tensor name as llama-imatrix writes them: same keys, tensors sorted, byte for byte.

    Raises DataError for a name too long for a GGUF.
    """
    tensors: list[gguf.Tensor] = []
    data: list[F32] = []
    for name in sorted(squares):
        s = squares[name]
        counts = s.counts.astype(np.float32)
        for end, array in ((SUMS, s.sums), (COUNTS, counts[:, None])):
            if len((name + end).encode()) >= gguf.MAX_NAME:
                raise DataError(f"the tensor name {name + end} is longer than a GGUF can hold")
            n_matrices, n = array.shape
            # ggml drops trailing dimensions of one
            shape = (n, n_matrices) if n_matrices > 1 else (n,)
            tensors.append(gguf.Tensor(name + end, shape, GGMLQuantizationType.F32))
            data.append(np.ascontiguousarray(array, "<f4"))
    entries: dict[str, tuple[Any, int, int | None]] = {
        "general.type": ("imatrix", gguf.STRING, None),
        DATASETS: (list(datasets), gguf.ARRAY, gguf.STRING),
        CHUNK_COUNT: (chunks, gguf.UINT32, None),
        CHUNK_SIZE: (chunk_size, gguf.UINT32, None),
    }
    placed, _ = gguf.layout(tensors)
    yield gguf.pack_header([gguf.pack_metadata(entries)], len(entries), placed)
    for t, array in zip(placed, data, strict=True):
        yield array.tobytes() + bytes(gguf.pad(t.nbytes) - t.nbytes)
