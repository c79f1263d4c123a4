"""llama.cpp's shared libraries through ctypes: the quantizer, conversions, log capture, build facts.

The libraries are those that llama-cpp-python ships. ctypes releases the GIL during each call, so a thread pool scales.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from .errors import NativeError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@cache
def libllama() -> Any:
    """llama-cpp-python's own bindings (`llama_cpp.llama_cpp`)."""
    try:
        import llama_cpp.llama_cpp as bindings
    except (ImportError, OSError, RuntimeError) as e:
        raise NativeError(f"llama-cpp-python could not be loaded ({e}); install it again") from None
    return bindings


def load_library(name: str) -> ctypes.CDLL:
    """A shared library that llama-cpp-python ships beside its own, such as "ggml"."""
    libllama()  # first: it says what is wrong with the installation
    import llama_cpp
    from llama_cpp._ctypes_extensions import load_shared_library

    lib: ctypes.CDLL = load_shared_library(name, Path(llama_cpp.__file__).parent / "lib")
    return lib


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
    lib.ggml_type_name.restype = ctypes.c_char_p
    lib.ggml_type_name.argtypes = [ctypes.c_int]
    return lib


@cache
def type_names() -> dict[str, GGMLQuantizationType]:
    """ggml's own type names, as its log prints them, for every type both ggml and gguf-py know."""
    return {libggml().ggml_type_name(t.value).decode(): t for t in GGMLQuantizationType}


@cache
def _to_float(dtype: str) -> Any:
    """ggml's own conversion of a format's rows to float32."""
    names = {"BF16": "ggml_bf16_to_fp32_row", "F16": "ggml_fp16_to_fp32_row"}
    name = names.get(dtype)
    if name is None:
        name = f"dequantize_row_{libggml().ggml_type_name(GGMLQuantizationType[dtype].value).decode()}"
    try:
        convert = getattr(libggml(), name)
    except AttributeError:
        raise NativeError(f"this llama-cpp-python can't decode {dtype} (no {name} in its library)") from None
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
    """
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


_callbacks: list[Any] = []  # ctypes callbacks must outlive their registration


def capture_log(sink: Callable[[int, str], None]) -> None:
    """Send llama.cpp's log lines (level 1 debug … 4 error, text) to `sink` instead of stderr."""

    def receive(level: int, text: bytes, _: object) -> None:
        sink(level, text.decode("utf-8", "replace"))

    callback = LogCallback(receive)
    _callbacks.append(callback)
    libllama().llama_log_set(callback, None)
