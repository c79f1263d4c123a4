"""MLX: whole numbers of 2 to 8 bits, a scale and a bias for every group of a row: w = scale · code + bias.

Codes stand one after the other in words of 32 bits, the lowest bit first; those of 3, 5 and 6 bits go over a byte's
edge. Source: https://ml-explore.github.io/mlx (mlx.core.quantize)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import DataError
from jmedlite.base.native import F32, U8
from jmedlite.convert.sources.tensors import StoredTensor

from .codes import by_groups, codes
from .rows import PackedTensor, check_dtype, check_shape, take, two_dimensions

_BITS = (2, 3, 4, 5, 6, 8)
_FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Affine:
    """See rows.Decoder. A row's words are streamed; held are scales and biases (n_rows, n_groups)."""

    bits: int
    group_size: int

    def hold(self, arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """See rows.Decoder."""
        return arrays

    def decode(self, streams: Sequence[U8], held: Sequence[F32], first: int, out: F32) -> None:
        """See rows.Decoder."""
        rows = slice(first, first + out.shape[0])
        codes(streams[0], self.bits, out)
        by_groups(np.multiply, out, held[0][rows], self.group_size)
        by_groups(np.add, out, held[1][rows], self.group_size)


def gather(tensors: dict[str, StoredTensor], sizes: Mapping[str, tuple[int, int]]) -> dict[str, PackedTensor]:
    """Take MLX's weights out of `tensors`.

    `sizes` are (bits, columns of a group) by module, and under "" those of all others. Raises DataError.
    """
    found = {}
    for name in [n for n in tensors if n.endswith(".scales")]:
        stem = name.removesuffix("scales")
        taken = take(tensors, stem, "weight", "scales", "biases")
        if taken is None:
            continue
        weight, scales, biases = taken
        check_dtype(weight, "U32")
        for tensor in (scales, biases):
            check_dtype(tensor, *_FLOATS)
        (n_rows, n_words), n_groups = two_dimensions(weight), two_dimensions(scales)[1]
        given = sizes.get(stem.removesuffix("."), sizes.get(""))
        fits = [
            (bits, n_words * 32 // bits // n_groups)
            for bits in _BITS
            if n_groups and n_words * 32 % (bits * n_groups) == 0
        ]
        if given not in fits:
            said = f"{given[0]} bits in groups of {given[1]}" if given else "nothing"
            raise DataError(
                f"{weight.path.name}: {weight.name} has {n_words:,} words and {n_groups:,} groups in a row, "
                f"config.json says {said} (quantization)"
            )
        bits, group_size = given
        check_shape(scales, (n_rows, n_groups))
        check_shape(biases, (n_rows, n_groups))
        found[stem + "weight"] = PackedTensor(
            stem + "weight", f"MLX, {bits} bits", (n_rows, n_groups * group_size), (weight,), (scales, biases),
            Affine(bits, group_size),
        )  # fmt: skip
    return found
