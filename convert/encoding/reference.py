"""Reference encoder: ggml's block formats from float32 in plain numpy, to read and to hold the fast encoder against.

What is searched is in searches.py. Every step is one float32 operation of IEEE 754 in a fixed order, so an encoder that
keeps to the order gives the same bytes on every machine: sums over a sub-block's numbers take four after four where
there is one for each multiplier (`fours`), and are as `total` says everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf.constants import GGMLQuantizationType as Type

from jmedlite.base.native import F32, U8

from .blocks import FORMATS, I16, Blocks, Format, pack
from .searches import Search, Weighting, search_of

LEAST = np.float32(1e-15)  # GROUP_MAX_EPS of ggml-quants.c: below it, numbers are all zero, and weights all equal
F16_MAX = np.float32(65504)


def total(terms: F32) -> F32:
    """Sum over the last axis: first sixteens one after the other, where there are several, then halves onto halves."""
    n = terms.shape[-1]
    if n > 16:
        parts = terms.reshape(*terms.shape[:-1], n // 16, 16)
        terms = parts[..., 0, :]
        for i in range(1, n // 16):
            terms = terms + parts[..., i, :]
        n = 16
    while n > 1:
        n //= 2
        terms = terms[..., :n] + terms[..., n : 2 * n]
    found: F32 = terms[..., 0]
    return found


def fours(sums: F32, terms: F32) -> None:
    """Add four terms for every multiplier, (…, 4, multipliers), to the running `sums` (…, multipliers): pairs first."""
    sums += (terms[..., 0, :] + terms[..., 1, :]) + (terms[..., 2, :] + terms[..., 3, :])


def encode(type_: Type, rows: F32, importance: F32 | None = None) -> U8:
    """Encode float32 `rows` (n_rows, n_cols), finite, as a format in FORMATS: (n_blocks, block_bytes).

    `importance` (n_cols,) weighs the columns' squared errors; only its ratios count.
    """
    form, search = FORMATS[type_], search_of(type_, importance is not None)
    x = rows.reshape(-1, form.n_sub, form.sub)
    if search is None:
        return pack(_with_steps(form, x, _plain_step(form, x)))
    w = _weights(search, rows, x, None if importance is None else normalized(importance))
    sums = total(w)
    if importance is not None:
        w = _usable(w)
    if form.has_offsets:
        return pack(_with_offsets(form, search, x, w, sums))
    scales = _best_scale(x, w, np.array(search.multipliers, np.float32), _nearest(form))
    if form.scales is None:
        return pack(_with_steps(form, x, scales[:, 0]))
    return pack(_with_scales(form, search, x, scales, sums))


def normalized(importance: F32) -> F32:
    """Brought to a largest value of 0.5 … 1 by a power of two, which rounds nothing."""
    largest = float(importance.max(initial=0.0))
    return np.ldexp(importance, -int(np.frexp(largest)[1])) if largest > 0 else importance


def _weights(search: Search, rows: F32, x: F32, importance: F32 | None) -> F32:
    """What each number's error counts, (n_blocks, n_sub, sub)."""
    kind = search.weighting
    if kind == Weighting.SIZE:
        return np.abs(x)
    if kind == Weighting.SQUARE:
        return x * x
    if kind == Weighting.RMS_PLUS_SIZE:
        rms: F32 = np.sqrt(total(x * x) * np.float32(1 / x.shape[-1]))
        return rms[..., None] + np.abs(x)
    assert importance is not None
    q = np.broadcast_to(importance, rows.shape).reshape(x.shape)
    if kind == Weighting.IMPORTANCE:
        return q
    mean = total((x * x).reshape(len(x), -1)) * np.float32(1 / x[0].size)
    if search.over_row:
        per_row = mean.reshape(len(rows), -1)
        sums = np.zeros(len(rows), np.float32)
        for column in per_row.T:
            sums += column
        mean = np.repeat(sums / np.float32(per_row.shape[1]), per_row.shape[1])
    return q * np.sqrt((np.float32(search.sigma) * mean)[:, None, None] + x * x)


def _usable(w: F32) -> F32:
    """The weights of each sub-block; all 1 where there is next to none."""
    return np.where((total(w) > LEAST)[..., None], w, np.float32(1))


def _nearest(form: Format) -> Callable[[F32], F32]:
    """The function from numbers in steps to the nearest of the format's levels."""
    levels = np.array(form.levels, np.float32)
    if np.all(np.diff(levels) == 1):
        return lambda v: np.clip(np.rint(v), levels[0], levels[-1])
    middles = (levels[1:] + levels[:-1]) / 2

    def look_up(v: F32) -> F32:
        found: F32 = levels[np.searchsorted(middles, v, "right")]
        return found

    return look_up


def _largest(x: F32) -> F32:
    """The number that is farthest from 0, with its sign; the negative one of two."""
    low, high = x.min(axis=-1), x.max(axis=-1)
    found: F32 = np.where(high > -low, high, low)
    return found


def _running_sums(n: int, x: F32, multipliers: F32) -> list[F32]:
    """n sums for each sub-block of x and each multiplier, which begin with 0."""
    return [np.zeros((*x.shape[:-1], len(multipliers)), np.float32) for _ in range(n)]


def _best_scale(v: F32, w: F32, multipliers: F32, nearest: Callable[[F32], F32]) -> F32:
    """The scale s of v ≈ s × level that has the least Σ w (v − s level)², over the last axis.

    With levels from the multiplier m, l = nearest(m v / largest), the best scale is Σ w v l / Σ w l², and the error is
    smallest where (Σ w v l)² / Σ w l² is largest. 0 for numbers that are all zero.
    """
    largest = _largest(v)
    zero = np.abs(largest) < LEAST
    z = v * np.reciprocal(np.where(zero, np.float32(1), largest))[..., None]
    wz = w * z
    sum_zl, sum_ll = _running_sums(2, v, multipliers)
    for i in range(0, v.shape[-1], 4):
        level = nearest(z[..., i : i + 4, None] * multipliers)
        fours(sum_ll, w[..., i : i + 4, None] * level * level)
        fours(sum_zl, wz[..., i : i + 4, None] * level)
    found = sum_ll > 0
    scale = sum_zl / np.where(found, sum_ll, np.float32(1))
    gain = np.where(found, scale * sum_zl, np.float32(-1))
    best = gain.argmax(axis=-1)[..., None]
    chosen = np.take_along_axis(scale, best, -1)[..., 0]
    none = np.take_along_axis(gain, best, -1)[..., 0] < 0  # no number that has a weight has a level other than 0
    chosen = np.where(none, np.float32(1) / multipliers[0], chosen)
    return np.where(zero, np.float32(0), chosen * largest)


def _best_line(x: F32, w: F32, search: Search, n_levels: int) -> tuple[F32, F32]:
    """(scale s, minimum m ≥ 0) of x ≈ s × level − m with the least weighted error, over the last axis.

    With y = (x − low) / range in 0 … 1 and levels from a multiplier, least squares gives y ≈ a l + b; where that makes
    m negative, m is 0 and a is fitted alone. Errors are compared in y, less what is the same for all multipliers.
    """
    one, top = np.float32(1), np.float32(n_levels - 1)
    multipliers, shifts = np.array(search.lines, np.float32).T
    low = np.minimum(x.min(axis=-1), np.float32(0))
    span = x.max(axis=-1) - low
    flat = ~(span >= LEAST)
    inverse = np.reciprocal(np.where(flat, one, span))
    y = (x - low[..., None]) * inverse[..., None]
    wy = w * y
    sum_w, sum_y = total(w)[..., None], total(wy)[..., None]
    sum_l, sum_ll, sum_yl = _running_sums(3, x, multipliers)
    for i in range(0, x.shape[-1], 4):
        level = np.clip(np.rint(y[..., i : i + 4, None] * multipliers - shifts), np.float32(0), top)
        term = w[..., i : i + 4, None] * level
        fours(sum_l, term)
        fours(sum_ll, term * level)
        fours(sum_yl, wy[..., i : i + 4, None] * level)
    determinant = sum_w * sum_ll - sum_l * sum_l
    usable = determinant > 0
    inverse_determinant = np.reciprocal(np.where(usable, determinant, one))
    a = (sum_w * sum_yl - sum_y * sum_l) * inverse_determinant
    b = (sum_ll * sum_y - sum_l * sum_yl) * inverse_determinant
    zero = (-low * inverse)[..., None]  # where x = 0 is in y
    above = b > zero
    a = np.where(above, (sum_yl - zero * sum_l) / np.where(usable, sum_ll, one), a)
    b = np.where(above, zero, b)
    error = a * (a * sum_ll - 2 * sum_yl) + b * (2 * (a * sum_l - sum_y) + b * sum_w)
    error = np.where(usable, error, np.float32(np.inf))
    best = error.argmin(axis=-1)[..., None]
    found = np.take_along_axis(usable, best, -1)[..., 0]
    a = np.where(found, np.take_along_axis(a, best, -1)[..., 0], one / top)
    b = np.where(found, np.take_along_axis(b, best, -1)[..., 0], np.float32(0))
    scale = np.where(flat, np.float32(0), np.maximum(a, np.float32(0)) * span)
    return scale, np.maximum(-(np.where(flat, np.float32(0), b) * span + low), np.float32(0))


def _half(v: F32) -> F32:
    """The nearest F16 number, in float32; the largest one for anything beyond it."""
    return np.clip(v, -F16_MAX, F16_MAX).astype(np.float16).astype(np.float32) + np.float32(0)  # no −0


def _inverse(steps: F32) -> F32:
    """1 / step, and 0 for 0."""
    found: F32 = np.where(steps != 0, np.reciprocal(np.where(steps != 0, steps, np.float32(1))), np.float32(0))
    return found


def _quantize_scales(v: F32, w: F32, multipliers: tuple[float, ...], low: int, high: int) -> tuple[F32, I16]:
    """(d, whole numbers k) of v ≈ d × k, k in low … high; v (n_blocks, n_sub), d an F16 number in float32.

    With `multipliers`, d is the best for the weights w of the sub-blocks; else the largest of v becomes the number of
    the range that is farthest from 0.
    """
    if multipliers:
        d = _best_scale(v, _usable(w), np.array(multipliers, np.float32), lambda n: np.clip(np.rint(n), low, high))
    else:
        d = _largest(v) * (np.float32(1) / np.float32(low if low < 0 else high))
    d = _half(d)
    return d, np.clip(np.rint(v * _inverse(d)[:, None]), low, high).astype(np.int16)


def _codes(form: Format, x: F32, steps: F32, offsets: F32 | None) -> U8:
    """The code of the level that is nearest to each number; that of level 0 where the step is 0."""
    if offsets is not None:
        x = x + offsets[..., None]
    level = _nearest(form)(x * _inverse(steps)[..., None])
    return np.searchsorted(np.array(form.levels, np.float32), level).astype(np.uint8).reshape(-1, form.block)


def _with_offsets(form: Format, search: Search, x: F32, w: F32, sums: F32) -> Blocks:
    """Blocks with offsets; `sums` are the weights of whole sub-blocks."""
    scale, minimum = _best_line(x, w, search, len(form.levels))
    d, scales = _quantize_scales(scale, sums, search.block_multipliers, 0, form.scale_high)
    dmin, minima = _quantize_scales(minimum, sums, search.block_multipliers, 0, form.scale_high)
    codes = _codes(form, x, d[:, None] * scales.astype(np.float32), dmin[:, None] * minima.astype(np.float32))
    return Blocks(form.type, d.astype(np.float16), dmin.astype(np.float16), scales, minima, codes)


def _with_scales(form: Format, search: Search, x: F32, scale: F32, sums: F32) -> Blocks:
    """Blocks of sub-blocks with these scales, which are rounded."""
    d, scales = _quantize_scales(scale, sums, search.block_multipliers, form.scale_low, form.scale_high)
    codes = _codes(form, x, d[:, None] * scales.astype(np.float32), None)
    return Blocks(form.type, d.astype(np.float16), np.zeros(len(d), np.float16), scales, np.zeros_like(scales), codes)


def _with_steps(form: Format, x: F32, d: F32) -> Blocks:
    """Blocks that have a single step, d (n_blocks,)."""
    d = _half(d)
    ones, zeros = np.ones((len(d), 1), np.int16), np.zeros((len(d), 1), np.int16)
    codes = _codes(form, x, d[:, None], None)
    return Blocks(form.type, d.astype(np.float16), np.zeros(len(d), np.float16), ones, zeros, codes)


def _plain_step(form: Format, x: F32) -> F32:
    """The step by which the number farthest from 0 becomes the level farthest from 0 (of Q8_0: 127 or −127)."""
    if form.type == Type.Q8_0:
        sizes: F32 = np.abs(x).max(axis=(1, 2))
        return sizes * (np.float32(1) / np.float32(127))
    return _largest(x)[:, 0] * (np.float32(1) / np.float32(form.levels[0]))
