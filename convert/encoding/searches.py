"""Scale searches: what is tried for each block format, and how errors are weighed: as data, for every encoder of ours.

As in ggml-quants.c (make_qkx3_quants, make_qx_quants, quantize_row_iq4_nl_impl), a sub-block's numbers are brought to a
fixed range, multiplied with one of several numbers and rounded to levels; the best scale (and offset) for those levels
follows by weighted least squares, and the multiplier of the smallest weighted error wins. Errors are weighed as ggml
weighs them, with the two exceptions below.

What differs from ggml, which looks at one multiplier after the other and moves the offset on its way:

- The multipliers are tried independently of each other, eight or sixteen of them, a vector's worth. Where there are
  offsets, each has a shift of its own. They are those that together leave the least error on weights of a Qwen2 model
  and normal ones, one chosen after the other (tools/choose_multipliers.py). That is less than ggml's search leaves.
- Without importance, Q2_K's errors count squared as everywhere, not as they are; Q3_K's are weighed by |x| instead of
  x². Both leave less squared error than ggml's, Q3_K also less of the one that is weighed by x².
- The scales of a block, where ggml searches them and then moves single ones, are searched like the numbers themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from functools import cache

from gguf.constants import GGMLQuantizationType as Type

from .blocks import FORMATS


class Weighting(Enum):
    """What a squared error counts: x is the number, q its column's importance."""

    RMS_PLUS_SIZE = auto()  # √(mean of the sub-block's x²) + |x|
    SIZE = auto()  # |x|
    SQUARE = auto()  # x²
    IMPORTANCE = auto()  # q
    SPREAD = auto()  # q √(σ² + x²), where σ² is a multiple of the mean of x²: of the block, or of the row


@dataclass(frozen=True)
class Search:
    """The search of one format.

    `multipliers` give the levels of a sub-block without offset: round(multiplier × x / largest), where `largest` is the
    number that is farthest from 0. `lines` are pairs (multiplier, shift) for those with offset: round(multiplier × y −
    shift), where y is 0 for the lowest number (or 0) and 1 for the highest. `block_multipliers` do the same for the
    scales of a block; without them the largest scale becomes the largest whole number that a scale can be.
    `sigma` is σ² / mean of x², which is the row's mean with `over_row`, else the block's.
    """

    weighting: Weighting
    multipliers: tuple[float, ...] = ()
    lines: tuple[tuple[float, float], ...] = ()
    block_multipliers: tuple[float, ...] = ()
    sigma: float = 0.0
    over_row: bool = False


def _around(center: float, below: int, above: int) -> tuple[float, ...]:
    """In steps of 0.1; `center` first, which wins among equals."""
    return (center, *(round(center + 0.1 * k, 1) for k in range(-below, above + 1) if k))


# of the format, without and with importance; the first is ggml's first
_LINES = {
    Type.Q2_K: (
        (
            (3.0, 0.0), (3.6, 0.3), (3.2, -0.1), (3.2, 0.3), (2.6, 0.3), (3.8, 0.2), (3.4, 0.3), (3.2, 0.4),
            (3.2, 0.0), (3.2, -0.2), (3.0, 0.1), (2.0, 0.0), (4.0, 0.7), (3.6, 0.2), (3.0, -0.4), (3.0, 0.5),
        ),
        (
            (3.0, 0.0), (4.2, 0.4), (3.8, 0.7), (4.0, 0.0), (4.6, 1.5), (3.8, 0.5), (2.4, 0.2), (3.2, -0.1),
            (5.4, 0.4), (4.4, 1.6), (5.4, 1.6), (3.0, 0.2), (5.2, -0.1), (4.8, 0.9), (3.8, 0.1), (4.4, 1.2),
        ),
    ),
    Type.Q4_K: (
        (
            (15.0, 0.0), (14.4, 0.2), (15.2, -0.1), (15.2, 0.3), (14.0, -0.1), (15.4, 0.2), (13.4, 0.2), (14.2, 0.3),
            (15.2, -0.2), (15.2, 0.4), (14.8, 0.0), (15.0, -0.1), (15.4, 0.3), (14.2, -0.1), (14.0, 0.1), (15.6, 0.2),
        ),
        (
            (15.0, 0.0), (15.4, -0.2), (15.4, 0.5), (14.2, 0.1), (15.8, 0.3), (13.2, 0.1), (16.6, 1.4), (16.8, 0.1),
            (15.0, -0.2), (14.8, 0.1), (16.4, 0.3), (16.6, 1.0), (16.4, 1.6), (14.0, 0.2), (14.0, -0.2), (17.4, 0.1),
        ),
    ),
    Type.Q5_K: (
        (
            (31.0, 0.0), (30.2, 0.1), (31.0, 0.2), (31.0, -0.2), (29.2, 0.1), (30.2, -0.1), (30.0, 0.2), (31.2, 0.2),
            (29.2, -0.1), (29.0, 0.2), (31.0, -0.1), (31.2, 0.4), (29.8, -0.1), (31.2, -0.2), (29.0, 0.5),
            (31.6, 0.2),
        ),
        (
            (31.0, 0.0), (30.4, 0.2), (31.4, 0.5), (31.4, -0.1), (29.2, 0.1), (29.6, -0.2), (29.0, 0.5), (32.0, -0.1),
            (31.8, 0.5), (32.4, 1.3), (30.0, 0.2), (30.0, -0.2), (29.0, -0.2), (33.0, 0.0), (29.0, 0.2), (30.8, 0.1),
        ),
    ),
}  # fmt: skip
# likewise, for formats without offsets
_MULTIPLIERS = {
    Type.Q3_K: (
        (
            -4.0, -3.1, -4.3, -3.7, -3.3, 2.2, -2.9, -4.5,
        ),
        (
            -4.0, -4.9, -3.2, -6.5, -4.4, 3.6, -5.6, -2.9, -3.7, -2.4, -4.2, -5.2, -4.6, -6.0, -3.4, -3.0,
        ),
    ),
    Type.Q6_K: (
        (
            -32.0, -31.1, -30.0, -30.8, -31.8, -30.2, -32.3, -29.8,
        ),
        (
            -32.0, -30.1, -31.0, -33.0, -34.4, -29.8, -32.4, -33.6, -31.4, -30.6, -31.7, -34.5, -30.4, -32.7, -32.2,
            -34.0,
        ),
    ),
    Type.Q4_0: (
        (),
        (
            -8.0, -8.8, -7.1, -10.0, -6.2, -8.3, -7.7, -9.4, -10.5, -6.8, -7.3, -8.6, -5.9, -9.1, 7.6, -8.1,
        ),
    ),
    Type.Q5_0: (
        (),
        (
            -16.0, -15.0, -16.8, -14.0, -18.5, -17.6, -15.6, -16.4, -14.7, -15.3, -13.8, -14.3, -17.2, -18.0, -16.2,
            -15.8,
        ),
    ),
}  # fmt: skip
# the largest number becomes the lowest value, or one up to 7 nearer or farther, or the value that is opposite to it
_IQ4 = (127.0, *(float(k - 127) for k in range(-7, 8)))


@cache
def search_of(type_: Type, weighted: bool) -> Search | None:
    """The search of a format in FORMATS, with or without importance; None where its scale follows from its numbers."""
    form, spread = FORMATS[type_], Weighting.SPREAD
    if type_ in _LINES:
        lines = _LINES[type_][weighted]
        if weighted:
            blocks = _around(form.scale_high, 7, 8)
            return Search(spread, lines=lines, block_multipliers=blocks, sigma=1 if type_ == Type.Q2_K else 2)
        return Search(Weighting.SIZE if type_ == Type.Q2_K else Weighting.RMS_PLUS_SIZE, lines=lines)
    if type_ in (Type.IQ4_NL, Type.IQ4_XS):
        return Search(spread if weighted else Weighting.SQUARE, _IQ4, sigma=2)
    multipliers = _MULTIPLIERS.get(type_, ((), ()))[weighted]
    if type_ == Type.Q3_K:
        if weighted:
            return Search(spread, multipliers, block_multipliers=_around(form.scale_low, 8, 7), sigma=2)
        return Search(Weighting.SIZE, multipliers)
    if type_ == Type.Q6_K:
        return Search(Weighting.IMPORTANCE if weighted else Weighting.SQUARE, multipliers)
    return Search(spread, multipliers, sigma=1, over_row=True) if multipliers else None
