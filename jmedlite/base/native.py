"""llama.cpp's shared libraries through ctypes: the quantizer, conversions, log capture, build facts.

The libraries are those that llama-cpp-python ships. ctypes releases the GIL during each call, so a thread pool scales.

ggml ends the process over what its callers must not give it. Models are loaded and asked in child processes, whose end
is an error here; the rows of the pass are decoded and encoded in this process, which would otherwise copy every model
between two. That is safe because what ggml needs there is little, and all of it is checked before: the type is one that
it decodes or encodes (`decodes`, `encodes`), a row is a multiple of the type's block and all the file has (the header's
reader), the numbers are finite and of bounded size (rows.check_finite, MAX_IMPORTANCE). Any bytes of a block are
some weights: its decoders look nothing up beyond their tables. Should it end the process all the same, `_last_words`
says so in a line.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from .errors import DataError, NativeError
from .libraries import LogCallback, libllama, load_library

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
AbortCallback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
MAX_IMPORTANCE = 1e4
_PLAIN = {"F32", "F16", "BF16"}
_callbacks: list[Any] = []  # ctypes callbacks must outlive their registration


@cache
def libggml() -> ctypes.CDLL:
    """ggml's base library, with the signatures of what is used here (ggml.h)."""
    lib = load_library("ggml-base")
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    lib.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    lib.ggml_type_name.restype = ctypes.c_char_p
    lib.ggml_type_name.argtypes = [ctypes.c_int]
    lib.ggml_set_abort_callback.argtypes = [AbortCallback]
    lib.ggml_set_abort_callback.restype = ctypes.c_void_p
    _callbacks.append(AbortCallback(_last_words))
    lib.ggml_set_abort_callback(_callbacks[-1])
    return lib


def _last_words(message: bytes) -> None:
    """End the process as a fault does, where ggml is about to do it with a signal."""
    text = " ".join(message.decode("utf-8", "replace").split())
    with contextlib.suppress(OSError):
        os.write(2, f"jmedlite: ggml gave up ({text[-200:]}); is a file damaged?\n".encode())
    os._exit(NativeError.exit_code)


@cache
def type_names() -> dict[str, GGMLQuantizationType]:
    """ggml's own type names, as its log prints them, for every type both ggml and gguf-py know."""
    return {libggml().ggml_type_name(t.value).decode(): t for t in GGMLQuantizationType}


def _ggml_name(dtype: str) -> str:
    return str(libggml().ggml_type_name(GGMLQuantizationType[dtype].value).decode())


@cache
def decodes(dtype: str) -> bool:
    """Can ggml make float32 of this format? It can't of whole numbers, doubles, and what it only computes with."""
    return dtype in _PLAIN or hasattr(libggml(), f"dequantize_row_{_ggml_name(dtype)}")


@cache
def encodes(dtype: str) -> bool:
    """Can ggml make this format of float32? Over any other its quantizer ends the process."""
    return dtype in _PLAIN or hasattr(libggml(), f"quantize_{_ggml_name(dtype)}")


@cache
def needs_importance(dtype: str) -> bool:
    """Can ggml make this format only with an importance of every column? Without one its quantizer ends the process."""
    return bool(libggml().ggml_quantize_requires_imatrix(GGMLQuantizationType[dtype].value))


@cache
def _to_float(dtype: str) -> Any:
    """ggml's own conversion of a format's rows to float32."""
    if not decodes(dtype):
        raise DataError(f"the number format {dtype} can't be decoded here")
    names = {"BF16": "ggml_bf16_to_fp32_row", "F16": "ggml_fp16_to_fp32_row"}
    convert = getattr(libggml(), names.get(dtype) or f"dequantize_row_{_ggml_name(dtype)}")
    convert.restype = None
    convert.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return convert


def widen(raw: U8, dtype: str, out: F32) -> None:
    """Stored bytes of `dtype` (F32, F16, BF16, a ggml format) to float32, into `out` (1-D, as many as `raw` holds)."""
    if dtype == "F32":
        out[:] = raw.view(np.float32)
    else:
        _to_float(dtype)(raw.ctypes.data, out.ctypes.data, out.size)


def quantize_rows(type_: GGMLQuantizationType, rows: F32, out: U8, importance: F32 | None = None) -> U8:
    """Encode float32 `rows` (n_rows, n_per_row), C-contiguous, as `type_` into `out`; returns the part written.

    `importance` (n_per_row,) weighs the columns' errors.

    Some of ggml's quantizers end the process where their sums overflow. Weights are at most F16_MAX where anything
    narrower is made of them (check_finite), and importance is brought below MAX_IMPORTANCE here: a power of
    four changes nothing that is computed from it but the exponents.
    """
    if not encodes(type_.name):
        raise DataError(f"the number format {type_.name} can't be made here")
    if importance is not None and (largest := float(importance.max(initial=0.0))) > MAX_IMPORTANCE:
        importance = importance * np.float32(4.0 ** -math.ceil(math.log(largest / MAX_IMPORTANCE, 4)))
    written = libggml().ggml_quantize_chunk(
        type_.value,
        rows.ctypes.data,
        out.ctypes.data,
        0,
        rows.shape[0],
        rows.shape[1],
        None if importance is None else importance.ctypes.data,
    )
    return out[:written]


def capture_log(sink: Callable[[int, str], None]) -> None:
    """Send llama.cpp's log lines (level 1 debug … 4 error, text) to `sink` instead of stderr."""

    def receive(level: int, text: bytes, _: object) -> None:
        sink(level, text.decode("utf-8", "replace"))

    callback = LogCallback(receive)
    _callbacks.append(callback)
    libllama().llama_log_set(callback, None)
