"""Computation graph: the tensors of llama.cpp's, read through ctypes; the layout is checked against the loaded library.

`ggml_tensor` (ggml.h) is not a stable ABI. Before anything relies on `GgmlTensor`, `check_layout` builds tensors with
the library's own functions and compares what it wrote with what is read back.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import NativeError
from jmedlite.base.native import libggml

F32, I32 = 0, 26  # ggml_type
N_DIMS, N_SRC, MAX_NAME = 4, 10, 64


class GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor`, up to its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * N_DIMS),
        ("nb", ctypes.c_size_t * N_DIMS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * N_SRC),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * MAX_NAME),
    )

    @property
    def title(self) -> str:
        """Its name, as text."""
        return bytes(self.name).decode("utf-8", "replace")


@dataclass(frozen=True)
class Products:
    """The numbers of the two matrix products in the loaded library's `enum ggml_op`."""

    mul_mat: int
    mul_mat_id: int


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_POINTER, _I64, _SIZE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (_POINTER, [_InitParams]),
    "ggml_free": (None, [_POINTER]),
    "ggml_new_tensor_3d": (_POINTER, [_POINTER, ctypes.c_int, _I64, _I64, _I64]),
    "ggml_set_name": (_POINTER, [_POINTER, ctypes.c_char_p]),
    "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_mul_mat_id": (_POINTER, [_POINTER, _POINTER, _POINTER, _POINTER]),
    "ggml_view_1d": (_POINTER, [_POINTER, _POINTER, _I64, _SIZE]),
    "ggml_op_name": (ctypes.c_char_p, [ctypes.c_int]),
    "ggml_nbytes": (_SIZE, [_POINTER]),
    "ggml_get_data": (_POINTER, [_POINTER]),
    "ggml_backend_cpu_buffer_type": (_POINTER, []),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, [_POINTER, _POINTER]),
    "ggml_backend_buffer_free": (None, [_POINTER]),
    "ggml_backend_buffer_is_host": (ctypes.c_bool, [_POINTER]),
    "ggml_backend_tensor_get": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
}


def library() -> ctypes.CDLL:
    """ggml with the signatures of what graphs need (ggml.h, ggml-backend.h)."""
    lib = libggml()
    for name, (restype, argtypes) in _SIGNATURES.items():
        function = getattr(lib, name, None)
        if function is None:
            raise _unsupported(f"{name} is missing")
        function.restype, function.argtypes = restype, argtypes
    return lib


def _unsupported(why: str) -> NativeError:
    return NativeError(
        f"this llama-cpp-python's tensors can't be read ({why}), so no importance matrix can be computed with it; "
        "install the version jmedlite is tested with, or make the matrix with llama-imatrix"
    )


def check_layout() -> Products:
    """Compare `GgmlTensor` with tensors that the loaded library makes; raises NativeError where they differ."""
    lib = library()
    context = lib.ggml_init(_InitParams(1 << 16, None, True))
    if not context:
        raise _unsupported("ggml_init failed")
    try:
        a = lib.ggml_new_tensor_3d(context, F32, 8, 6, 2)
        b = lib.ggml_new_tensor_3d(context, F32, 8, 2, 5)
        ids = lib.ggml_new_tensor_3d(context, I32, 2, 5, 1)
        lib.ggml_set_name(a, b"blk.0.probe.weight")
        plain, view = lib.ggml_mul_mat(context, a, a), lib.ggml_view_1d(context, b, 4, 16)
        experts = lib.ggml_mul_mat_id(context, a, b, ids)
        buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(context, lib.ggml_backend_cpu_buffer_type())
        t, v, e = (GgmlTensor.from_address(x) for x in (a, view, experts))
        read = {
            "name": (t.title, "blk.0.probe.weight"),
            "type": ((t.type, GgmlTensor.from_address(ids).type), (F32, I32)),
            "ne": (tuple(t.ne), (8, 6, 2, 1)),
            "nb": (tuple(t.nb), (4, 32, 192, 384)),
            "src": (tuple(e.src)[:4], (a, b, ids, None)),
            "op": (lib.ggml_op_name(e.op), b"MUL_MAT_ID"),
            "view": ((v.view_src, v.view_offs), (b, 16)),
            "data": ((t.data, v.data), (lib.ggml_get_data(a), lib.ggml_get_data(b) + 16)),
            "buffer": (t.buffer, buffer),
            "host": (lib.ggml_backend_buffer_is_host(buffer), True),
        }
        products = Products(GgmlTensor.from_address(plain).op, e.op)
        lib.ggml_backend_buffer_free(buffer)
    finally:
        lib.ggml_free(context)
    for what, (found, expected) in read.items():
        if found != expected:
            raise _unsupported(f"ggml_tensor's {what} reads {found!r}, expected {expected!r}")
    return products


def values(lib: ctypes.CDLL, address: int) -> NDArray[Any]:
    """A float32 or int32 tensor's values as an array of four dimensions, slowest first, whatever its strides.

    Of memory the processor can read this is a view, to be used before the graph goes on; a device's memory is copied.
    """
    t = GgmlTensor.from_address(address)
    n_bytes = lib.ggml_nbytes(address)
    # a view has no buffer of its own in every backend
    buffer = GgmlTensor.from_address(t.view_src).buffer if t.view_src else t.buffer
    if lib.ggml_backend_buffer_is_host(buffer):
        memory = (ctypes.c_char * n_bytes).from_address(t.data)
    else:
        memory = (ctypes.c_char * n_bytes)()
        lib.ggml_backend_tensor_get(address, memory, 0, n_bytes)
    dtype = {F32: np.float32, I32: np.int32}[t.type]
    return np.ndarray(tuple(t.ne)[::-1], dtype, memory, strides=tuple(t.nb)[::-1])


def weight_name(raw: str) -> str:
    """A weight's name in the file: a copy for a device is called "CUDA0#blk.0.attn_k.weight#0"."""
    return raw.split("#")[1] if "#" in raw else raw
