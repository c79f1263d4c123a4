"""bitsandbytes: NF4 and FP4, with plain and with nested statistics, and LLM.int8().

Two codes of 4 bits in a byte, the higher first, in the order of the flat matrix; `quant_map` says what they stand for,
`absmax` has a scale for every block of them: https://github.com/bitsandbytes-foundation/bitsandbytes
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import DataError
from jmedlite.base.inputs import parse_json
from jmedlite.base.native import F32, U8
from jmedlite.base.records import Foreign, from_json
from jmedlite.convert.sources.tensors import Files, StoredTensor

from .codes import by_groups, look_up
from .rows import PackedTensor, check_dtype, check_shape, take
from .scaled import ScaledBytes

_DESCRIBED = ".quant_state.bitsandbytes__"
MAX_STATE = 1 << 16  # bytes of a weight's description
INT8_FACTOR = 7.874015718698502e-3  # 1/127 as bitsandbytes multiplies it


@dataclass(frozen=True, kw_only=True)
class _State(Foreign):
    """What the description of one weight says."""

    quant_type: str
    blocksize: int
    shape: tuple[int, ...]
    nested_blocksize: int | None = None
    nested_offset: float | None = None


@dataclass(frozen=True)
class FourBits:
    """See rows.Decoder. Held are `absmax`, `quant_map` and, where those are nested, their own two."""

    n_cols: int
    blocksize: int
    nested_blocksize: int | None
    nested_offset: float

    def hold(self, arrays: Sequence[NDArray[Any]]) -> tuple[F32, F32]:
        """(the scale of every block, the table of pairs by byte)."""
        absmax, quant_map = arrays[0], arrays[1]
        if self.nested_blocksize is not None:
            nested_absmax, nested_map = arrays[2], arrays[3]
            of_block = nested_absmax[np.arange(absmax.size) // self.nested_blocksize]
            absmax = nested_map[absmax] * of_block + np.float32(self.nested_offset)
        byte = np.arange(256)
        return absmax, np.stack([quant_map[byte >> 4], quant_map[byte & 15]], axis=1)

    def decode(self, streams: Sequence[U8], held: tuple[F32, F32], first: int, out: F32) -> None:
        """See rows.Decoder."""
        absmax, pairs = held
        look_up(pairs, streams[0], out)
        begin, n = first * self.n_cols, out.size
        if self.n_cols % self.blocksize == 0:
            scales = absmax[begin // self.blocksize : (begin + n) // self.blocksize]
            by_groups(np.multiply, out, scales.reshape(out.shape[0], -1), self.blocksize)
        else:
            flat = out.reshape(-1)
            flat *= absmax[(begin + np.arange(n)) // self.blocksize]


def gather(tensors: dict[str, StoredTensor], files: Files) -> dict[str, PackedTensor]:
    """Take the weights of 4 and 8 bits out of `tensors`; `files` reads their descriptions. Raises DataError."""
    found = {}
    described = {name: n for n in tensors for name, mark, _ in [n.partition(_DESCRIBED)] if mark}
    for name in [n for n in tensors if n.endswith(".weight")]:
        if name in described:
            packed = _four_bits(name, described[name], tensors, files)
            if packed is not None:
                found[name] = packed
        elif (scale_name := name.removesuffix("weight") + "SCB") in tensors and tensors[name].dtype == "I8":
            found[name] = _eight_bits(name, scale_name, tensors, files)
    return found


def _four_bits(name: str, described: str, tensors: dict[str, StoredTensor], files: Files) -> PackedTensor | None:
    taken = take(tensors, name, "", ".absmax", ".quant_map")
    if taken is None:
        return None
    weight, absmax, quant_map = taken
    state = _read_state(tensors.pop(described), files)
    word = state.quant_type.upper()
    check_dtype(weight, "U8")
    check_dtype(quant_map, "F32")
    check_shape(quant_map, (16,))
    if len(state.shape) != 2 or min(state.shape) < 1 or state.shape[1] % 2 or state.blocksize < 1:
        raise DataError(
            f"{weight.path.name}: {name} is described as {list(state.shape)} in blocks of {state.blocksize}, expected "
            "two dimensions and an even number of columns"
        )
    n_rows, n_cols = state.shape
    n, n_blocks = n_rows * n_cols, -(-n_rows * n_cols // state.blocksize)
    check_shape(weight, (n // 2, 1), (1, n // 2), (n // 2,))
    check_shape(absmax, (n_blocks,))
    held = [absmax, quant_map]
    nested = take(tensors, name, ".nested_absmax", ".nested_quant_map")
    if nested:
        if state.nested_blocksize is None or state.nested_offset is None or state.nested_blocksize < 1:
            raise DataError(f"{weight.path.name}: {name} has nested statistics that its description does not have")
        of_absmax, of_codes = nested
        check_dtype(absmax, "U8")
        check_dtype(of_absmax, "F32")
        check_dtype(of_codes, "F32")
        check_shape(of_absmax, (-(-n_blocks // state.nested_blocksize),))
        check_shape(of_codes, (256,))
        held += [of_absmax, of_codes]
    else:
        check_dtype(absmax, "F32")
    decoder = FourBits(n_cols, state.blocksize, state.nested_blocksize if nested else None, state.nested_offset or 0.0)
    return PackedTensor(name, f"{word} (bitsandbytes)", (n_rows, n_cols), (weight,), tuple(held), decoder)


def _read_state(tensor: StoredTensor, files: Files) -> _State:
    """The description of a weight: JSON, a byte in each element."""
    where = f"{tensor.path.name}: {tensor.name}"
    check_dtype(tensor, "U8")
    if tensor.nbytes > MAX_STATE:
        raise DataError(f"{where} has {tensor.nbytes:,} bytes, expected a few hundred")
    try:
        found = parse_json(files.array(tensor).tobytes())
    except (ValueError, json.JSONDecodeError) as e:
        raise DataError(f"{where} is not valid JSON ({e})") from None
    return from_json(found, _State, where)


def _eight_bits(name: str, scale_name: str, tensors: dict[str, StoredTensor], files: Files) -> PackedTensor:
    weight, scale = tensors.pop(name), tensors.pop(scale_name)
    n_rows, n_cols = (*weight.shape, 0, 0)[:2]
    check_shape(weight, (max(n_rows, 1), max(n_cols, 1)))
    check_dtype(scale, "F32")
    check_shape(scale, (n_rows,), (n_rows, 1))
    layout = tensors.pop(name.removesuffix("weight") + "weight_format", None)
    if layout is not None and files.array(layout).any():
        raise DataError(
            f"{weight.path.name}: {name} is stored in a GPU's own order (weight_format), expected row after row; load "
            "it with transformers and save it again"
        )
    decoder = ScaledBytes("I8", (1, n_cols), factor=INT8_FACTOR)
    return PackedTensor(name, "INT8 (bitsandbytes)", (n_rows, n_cols), (weight,), (scale,), decoder)
