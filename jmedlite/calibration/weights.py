"""Weights in memory: those of a loaded model, found in its graph, rounded to another type in place, and put back."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from jmedlite.base.errors import DataError, NativeError
from jmedlite.base.gguf import Header, Tensor, nbytes, read_header, split_files
from jmedlite.base.imatrix import weighted_squares
from jmedlite.base.inputs import opened
from jmedlite.base.native import F32, U8, quantize_rows, widen
from jmedlite.runtime.loading import LoadedModel

from .graph import GgmlTensor, check_layout, library, weight_name

KEPT_IN = ("F32", "BF16", "F16", "Q8_0")  # finer than any probe type, and quick to write again
BLOCK = 1 << 20  # elements rounded at once by a thread
COMPARED = 4096  # bytes at either end of a weight that must be the file's


class Finder:
    """Listens to the graph for the weights that it multiplies with, or looks rows up in; wants no result."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.addresses: dict[str, int] = {}  # of their ggml_tensor
        check_layout()

    def __call__(self, address: int, asked: bool, _: object) -> bool:
        """ggml_backend_sched_eval_callback."""
        if asked:
            source = GgmlTensor.from_address(address).src[0]
            if source:
                name = weight_name(GgmlTensor.from_address(source).title)
                if name in self.header.by_name:
                    self.addresses.setdefault(name, source)
            return False
        return True


class Weights:
    """The weights of a model that was loaded to be written to, at the addresses that its graph told."""

    def __init__(self, loaded: LoadedModel, addresses: dict[str, int], n_threads: int) -> None:
        self._places = _places(loaded.path)
        self._memory = {
            name: _memory(loaded.header.by_name[name], address)
            for name, address in addresses.items()
            if loaded.header.by_name[name].type.name in KEPT_IN and len(loaded.header.by_name[name].shape) > 1
        }
        self._tensors = loaded.header.by_name
        self._pool = ThreadPoolExecutor(n_threads)
        for name, memory in self._memory.items():
            ends = (0, min(COMPARED, memory.size)), (max(0, memory.size - COMPARED), memory.size)
            if any(not np.array_equal(memory[a:b], self._stored(name, a, b)) for a, b in ends):
                raise NativeError(
                    f"{name}: llama.cpp holds it otherwise than the file does, so it can't be rounded in place; "
                    "this llama-cpp-python version is not supported"
                )

    @property
    def names(self) -> list[str]:
        """The weights that can be rounded, in the file's order."""
        return [name for name in self._tensors if name in self._memory]

    @contextmanager
    def rounded(self, name: str, probe: GGMLQuantizationType, importance: F32 | None) -> Iterator[float]:
        """Meanwhile the weight is what `probe` makes of it; yields Σ h (rounded - w)² / Σ h w², h the importance."""
        tensor, memory = self._tensors[name], self._memory[name]
        n_cols = tensor.shape[0]
        step = max(1, BLOCK // n_cols) * n_cols

        def work(start: int) -> tuple[float, float]:
            return _round(tensor, memory, start, min(step, tensor.n_elements - start), probe, importance)

        try:
            parts = list(self._pool.map(work, range(0, tensor.n_elements, step)))
            energy = math.fsum(e for _, e in parts)
            if not energy:
                raise DataError(f"{name}: all its weights are zero where the importance matrix looks")
            yield math.fsum(error for error, _ in parts) / energy
        finally:
            self._restore(name)

    def _restore(self, name: str) -> None:
        memory = self._memory[name]
        for at in range(0, memory.size, 1 << 24):
            memory[at : at + (1 << 24)] = self._stored(name, at, min(at + (1 << 24), memory.size))

    def _stored(self, name: str, start: int, end: int) -> U8:
        path, offset = self._places[name]
        with opened(path) as file:
            file.seek(offset + start)
            raw = file.read(end - start)
        if len(raw) != end - start:
            raise DataError(f"{path.name}: ends inside {name}; copy it again")
        return np.frombuffer(raw, np.uint8)


def probe_type(tensor: Tensor, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    """`wanted`, or Q4_0 where its blocks do not fit the weight's rows."""
    fits = tensor.shape[0] % GGML_QUANT_SIZES[wanted][0] == 0
    return wanted if fits else GGMLQuantizationType.Q4_0


def _places(path: Path) -> dict[str, tuple[Path, int]]:
    """{tensor: (file, its first byte there)} of a model in one or several files."""
    found = {}
    for file in split_files(path):
        header = read_header(file)
        found.update({t.name: (file, header.data_offset + t.offset) for t in header.tensors})
    return found


def _memory(tensor: Tensor, address: int) -> U8:
    t, lib = GgmlTensor.from_address(address), library()
    if not lib.ggml_backend_buffer_is_host(t.buffer) or lib.ggml_nbytes(address) != tensor.nbytes:
        raise NativeError(
            f"{tensor.name}: llama.cpp does not hold it in memory as the file does, so it can't be rounded in place; "
            "this llama-cpp-python version is not supported"
        )
    return np.ctypeslib.as_array((ctypes.c_uint8 * tensor.nbytes).from_address(t.data))


def _round(
    tensor: Tensor, memory: U8, start: int, n: int, probe: GGMLQuantizationType, importance: F32 | None
) -> tuple[float, float]:
    """Round `n` elements from `start` on; (Σ h (rounded - w)², Σ h w²)."""
    n_cols = tensor.shape[0]
    at, end = nbytes(tensor.type, start), nbytes(tensor.type, start + n)
    exact, rounded = np.empty(n, np.float32), np.empty(n, np.float32)
    widen(memory[at:end], tensor.type.name, exact)
    rows = exact.reshape(-1, n_cols)
    widen(quantize_rows(probe, rows, np.empty(nbytes(probe, n), np.uint8), importance), probe.name, rounded)
    quantize_rows(tensor.type, rounded.reshape(-1, n_cols), memory[at:end])
    rounded -= exact
    return weighted_squares(rounded.reshape(-1, n_cols), importance), weighted_squares(rows, importance)
