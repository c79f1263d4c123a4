"""FP8 and INT8 weights: a byte for each, and a scale for the whole, each row, or each block.

DeepSeek's and Qwen's FP8 (`weight_scale_inv`, which is multiplied whatever its name says), FBGEMM's, ModelOpt's and
compressed-tensors' (`weight_scale`): https://github.com/neuralmagic/compressed-tensors. E4M3 and E5M2 are those of
arXiv 2209.05433 (E4M3 without infinities).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.native import F32, U8
from jmedlite.convert.sources.tensors import WEIGHT_DTYPES, StoredTensor

from .codes import by_groups
from .rows import PackedTensor, check_dtype, check_shape, take, two_dimensions

FP8 = ("F8_E4M3", "F8_E5M2")
_EXPONENTS = ("F8_E8M0", "U8")  # of which a scale is 2^(byte − 127)
# of activations and of the key-value cache, which llama.cpp keeps in full
RUN_TIME = (".input_scale", ".activation_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale")


@cache
def _values(dtype: str) -> F32:
    """(256, 1): the number that each byte stands for."""
    byte = np.arange(256)
    if dtype == "I8":
        return np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)[:, None]
    n_mantissa, bias = (3, 7) if dtype == "F8_E4M3" else (2, 15)
    exponent, mantissa = (byte & 0x7F) >> n_mantissa, byte & ((1 << n_mantissa) - 1)
    fraction = mantissa / (1 << n_mantissa) + (exponent > 0)
    found = np.ldexp(fraction, np.maximum(exponent, 1) - bias)
    if dtype == "F8_E4M3":
        found[(byte & 0x7F) == 0x7F] = np.nan
    else:
        found[exponent == 31] = np.where(mantissa[exponent == 31] == 0, np.inf, np.nan)
    signed: F32 = np.where(byte < 128, found, -found).astype(np.float32)[:, None]
    return signed


@dataclass(frozen=True)
class ScaledBytes:
    """See rows.Decoder. `block` are the rows and columns that share a scale, `factor` is one more for all.

    Held are the scales (n_row_blocks, n_col_blocks) and, with `has_zeros`, the zero points, of the same shape.
    """

    dtype: str
    block: tuple[int, int]
    has_zeros: bool = False
    factor: float = 1.0

    def hold(self, arrays: Sequence[NDArray[Any]]) -> list[F32]:
        """(scales,) or (scales, zeros), each (n_row_blocks, n_col_blocks)."""
        found = []
        for i, array in enumerate(arrays):
            values = np.exp2(array.astype(np.float32) - 127) if i == 0 and array.dtype == np.uint8 else array
            found.append(values.reshape(-1, 1 if values.ndim < 2 else values.shape[-1]).astype(np.float32))
        return found

    def decode(self, streams: Sequence[U8], held: list[F32], first: int, out: F32) -> None:
        """See rows.Decoder."""
        n_rows, width = out.shape[0], self.block[1]
        block_of_row = (first + np.arange(n_rows)) // self.block[0]
        np.take(_values(self.dtype), streams[0], axis=0, out=out[:, :, None], mode="clip")
        if self.has_zeros:
            by_groups(np.subtract, out, held[1][block_of_row], width)
        by_groups(np.multiply, out, held[0][block_of_row], width)
        if self.factor != 1.0:
            out *= np.float32(self.factor)


def gather(
    tensors: dict[str, StoredTensor], block: tuple[int, int] | None = None
) -> tuple[dict[str, PackedTensor], list[str]]:
    """Take the FP8 and INT8 weights out of `tensors`; also what is left out of it that acts at run time only.

    `block` is the rows and columns of a block, where the configuration has it. Raises DataError for scales of a shape
    that fits nothing.
    """
    found = {}
    for name, weight in list(tensors.items()):
        if weight.dtype not in (*FP8, "I8") or not name.endswith(".weight"):
            continue
        taken = take(tensors, name, "_scale_inv") or take(tensors, name, "_scale")
        if taken is None:
            continue
        (scale,) = taken
        check_dtype(scale, *WEIGHT_DTYPES, *_EXPONENTS)
        held = [scale]
        zeros = tensors.pop(name + "_zero_point", None)
        if zeros is not None:
            check_shape(zeros, scale.shape)
            held.append(zeros)
        shape, blocks = two_dimensions(weight), _blocks(weight, scale, block)
        word = "INT8" if weight.dtype == "I8" else "FP8"
        del tensors[name]
        found[name] = PackedTensor(
            name, word, shape, (weight,), tuple(held), ScaledBytes(weight.dtype, blocks, zeros is not None)
        )
    left_out = [name for name in tensors if found and name.endswith(RUN_TIME)]
    for name in left_out:
        del tensors[name]
    return found, left_out


def _blocks(weight: StoredTensor, scale: StoredTensor, block: tuple[int, int] | None) -> tuple[int, int]:
    """The rows and columns that share a scale."""
    n_rows, n_cols = two_dimensions(weight)
    if scale.n_elements == 1:
        return n_rows, n_cols
    fits = [(n_rows, 1), (n_rows,)]
    if block is not None:
        fits.append((-(-n_rows // block[0]), -(-n_cols // block[1])))
    if scale.shape in fits[:2]:
        return 1, n_cols
    if len(scale.shape) == 2 and scale.shape[0] == n_rows and n_cols % scale.shape[1] == 0 and block is None:
        return 1, n_cols // scale.shape[1]  # groups of columns in each row
    check_shape(scale, *fits)
    assert block is not None
    return block
