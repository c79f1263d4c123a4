"""Fast encoder: the reference encoder's arithmetic, step by step the same, compiled for the processor by numba.

The innermost loops go over the multipliers that are tried, which depend on nothing but themselves: a vector instruction
does 8 or 16 of them at once, and no sum has to be put together from parts. Nothing is rearranged or fused, so the bytes
are the reference encoder's (reference.py) on every processor.

What is compiled is kept in the user's cache folder, under a hash of this package's sources: numba itself looks only at
the date and the size of a function's own file.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from gguf.constants import GGMLQuantizationType as Type

from jmedlite.base.native import F32, U8
from jmedlite.base.outputs import joint_sha256, sha256_file
from jmedlite.runtime.state_cache import cache_folder

from .blocks import FORMATS, Field, Format, Run
from .reference import F16_MAX, LEAST, normalized
from .searches import Search, Weighting, search_of

F = TypeVar("F", bound=Callable[..., Any])

# No rearranging and no fusing: all that numba may take for granted is that every number is finite, and that the two
# zeros are one, by which minimum and maximum are one instruction each
_OPTIONS = {"nogil": True, "fastmath": {"nnan", "ninf", "nsz"}, "error_model": "numpy"}
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
BEYOND = np.finfo(np.float32).max  # an error that none has
_declaring = threading.Lock()  # two workers that come at once would each have a kernel of their own, compiled twice
BYTES = 0x0101010101010101  # 1 in each byte of a word
F16_LEAST = np.float32(2.0**-14)  # the smallest normal F16 number
F16_STEP, INVERSE_F16_STEP = np.float32(2.0**-24), np.float32(2.0**24)  # between the F16 numbers below it


def _sources() -> str:
    """A hash of all that is compiled here, as instructions or as numbers in them."""
    names = ("fast.py", "feedback_fast.py", "reference.py", "searches.py", "blocks.py")
    return joint_sha256([sha256_file(Path(__file__).with_name(name)) for name in names])[:16]


def _kept() -> Path | None:
    """The folder for what is compiled; None where no place for caches is known."""
    folder = cache_folder()
    return folder and folder / "compiled" / _sources()


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    """What is declared in it is kept in jmedlite's cache folder; others' functions are left where they are."""
    folder, before = _kept(), numba.config.CACHE_DIR
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # what lies there will be run
        numba.config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def compiled(function: F, *example: Any) -> F:
    """`function`, compiled by a call with `example`, and kept on the disk where there is a place for it."""
    try:
        with _own_cache():
            kernel = cast(F, numba.njit(function, cache=True, **_OPTIONS))
        kernel(*example)
    except Exception:  # numba found no folder that it can write to, or something else than what it once wrote there
        if folder := _kept():
            shutil.rmtree(folder, ignore_errors=True)
        kernel = cast(F, numba.njit(function, **_OPTIONS))
        kernel(*example)
    return kernel


def _part(function: F) -> F:
    """`function` as a part of kernels: put into each, so that their constants are known to it."""
    return cast(F, numba.njit(function, forceinline=True, **_OPTIONS))


@_part
def _total(terms: Any, n: Any) -> Any:
    """Sum of the first n of `terms`, which it changes; in the order of reference.total. n is a multiple of 16."""
    for i in range(16, n, 16):
        for k in range(16):
            terms[k] += terms[i + k]
    for k in range(8):
        terms[k] += terms[k + 8]
    for k in range(4):
        terms[k] += terms[k + 4]
    return (terms[0] + terms[2]) + (terms[1] + terms[3])


@_part
def _half(v: Any, found: Any) -> Any:
    """The F16 number nearest to v, in float32; found[0] gets its sixteen bits."""
    size = min(abs(v), F16_MAX)
    if size < F16_LEAST:
        steps = np.rint(size * INVERSE_F16_STEP)
        size = steps * F16_STEP
        bits = np.uint32(steps)
    else:
        word = np.float32(size).view(np.uint32)
        word = np.uint32((word + np.uint32(0xFFF) + ((word >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13))
        size = np.uint32(word << np.uint32(13)).view(np.float32)
        bits = np.uint32(word - np.uint32((127 - 15) << 10))
    if v < ZERO and bits != 0:
        found[0] = bits | np.uint32(0x8000)
        return -size
    found[0] = bits
    return size


@_part
def _write(numbers: Any, words: Any, places: Any, runs: Any, added: Any, out: Any, at: Any) -> None:
    """Field.write of blocks.py, for the block at out[at], by what `_runs` gives; `words` are the bytes of `numbers`.

    Eight bytes at once where that many numbers lie side by side: their bits stay in their bytes, as what would come out
    of them is masked.
    """
    for p in range(len(places)):
        start, count, eights = at + places[p, 0], places[p, 1], places[p, 4]
        for i in range(eights):
            word = np.uint64(0)
            for r in range(places[p, 2], places[p, 3]):
                stored = words[(runs[r, 0] >> np.uint64(3)) + np.uint64(i)] ^ added
                word |= ((stored >> runs[r, 1]) & runs[r, 2]) << runs[r, 3]
            for k in range(8):
                out[start + 8 * i + k] = (word >> np.uint64(8 * k)) & np.uint64(255)
        for i in range(8 * eights, count):
            word = np.uint64(0)
            for r in range(places[p, 2], places[p, 3]):
                stored = np.uint64(numbers[runs[r, 0] + np.uint64(i)]) ^ added
                word |= ((stored >> runs[r, 1]) & runs[r, 2]) << runs[r, 3]
            out[start + i] = word & np.uint64(255)


@_part
def _level(v: Any, low: Any, high: Any, even: Any, values: Any) -> Any:
    """The nearest level: by rounding where levels are even, else looked up, as it is the same from half to half."""
    if even:
        return min(max(np.rint(v), low), high)
    return values[int(min(max(np.floor(TWO * v), TWO * low), TWO * high) - TWO * low)]


@_part
def _largest(v: Any, at: Any, n: Any) -> Any:
    """reference._largest of the n numbers v[at] …"""
    lowest, highest = v[at], v[at]
    for i in range(at + 1, at + n):
        lowest, highest = min(lowest, v[i]), max(highest, v[i])
    return highest if highest > -lowest else lowest


@_part
def _best_scale(v: Any, at: Any, w: Any, n: Any, m: Any, low: Any, high: Any, even: Any, values: Any, sums: Any) -> Any:
    """reference._best_scale of the n numbers v[at] … with weights w, by the multipliers m; `sums` has running sums."""
    n_tried = len(m)
    largest = _largest(v, at, n)
    if abs(largest) < LEAST:
        return ZERO
    inverse = ONE / largest
    for k in range(2 * n_tried):
        sums[k] = ZERO
    for i in range(0, n, 4):
        z0, z1 = v[at + i] * inverse, v[at + i + 1] * inverse
        z2, z3 = v[at + i + 2] * inverse, v[at + i + 3] * inverse
        w0, w1, w2, w3 = w[i], w[i + 1], w[i + 2], w[i + 3]
        wz0, wz1, wz2, wz3 = w0 * z0, w1 * z1, w2 * z2, w3 * z3
        for k in range(n_tried):
            l0, l1 = _level(z0 * m[k], low, high, even, values), _level(z1 * m[k], low, high, even, values)
            l2, l3 = _level(z2 * m[k], low, high, even, values), _level(z3 * m[k], low, high, even, values)
            sums[k] += (w0 * l0 * l0 + w1 * l1 * l1) + (w2 * l2 * l2 + w3 * l3 * l3)
            sums[n_tried + k] += (wz0 * l0 + wz1 * l1) + (wz2 * l2 + wz3 * l3)
    for k in range(n_tried):
        found = sums[k] > ZERO
        scale = sums[n_tried + k] / (sums[k] if found else ONE)
        sums[k] = scale * sums[n_tried + k] if found else -ONE
        sums[n_tried + k] = scale
    most = sums[0]
    for k in range(1, n_tried):
        most = max(most, sums[k])
    best = n_tried
    for k in range(n_tried):
        best = min(best, k if sums[k] == most else n_tried)
    if most < ZERO:
        return ONE / m[0] * largest
    return sums[n_tried + best] * largest


@_part
def _best_line(x: Any, at: Any, w: Any, n: Any, m: Any, shifts: Any, top: Any, work: Any, sums: Any) -> Any:
    """reference._best_line of the n numbers x[at] … with weights w: (scale, minimum)."""
    n_tried = len(m)
    low, high = x[at], x[at]
    for i in range(at + 1, at + n):
        low, high = min(low, x[i]), max(high, x[i])
    low = min(low, ZERO)
    span = high - low
    if span < LEAST:
        return ZERO, max(-low, ZERO)
    inverse = ONE / span
    for i in range(n):
        work[i] = w[i]
    sum_w = _total(work, n)
    for i in range(n):
        y = (x[at + i] - low) * inverse
        work[i] = w[i] * y
        work[n + i] = y
        work[2 * n + i] = w[i] * y
    sum_y = _total(work, n)
    for k in range(3 * n_tried):
        sums[k] = ZERO
    for i in range(0, n, 4):
        y0, y1, y2, y3 = work[n + i], work[n + i + 1], work[n + i + 2], work[n + i + 3]
        w0, w1, w2, w3 = w[i], w[i + 1], w[i + 2], w[i + 3]
        wy0, wy1, wy2, wy3 = work[2 * n + i], work[2 * n + i + 1], work[2 * n + i + 2], work[2 * n + i + 3]
        for k in range(n_tried):
            l0 = min(max(np.rint(y0 * m[k] - shifts[k]), ZERO), top)
            l1 = min(max(np.rint(y1 * m[k] - shifts[k]), ZERO), top)
            l2 = min(max(np.rint(y2 * m[k] - shifts[k]), ZERO), top)
            l3 = min(max(np.rint(y3 * m[k] - shifts[k]), ZERO), top)
            t0, t1, t2, t3 = w0 * l0, w1 * l1, w2 * l2, w3 * l3
            sums[k] += (t0 + t1) + (t2 + t3)
            sums[n_tried + k] += (t0 * l0 + t1 * l1) + (t2 * l2 + t3 * l3)
            sums[2 * n_tried + k] += (wy0 * l0 + wy1 * l1) + (wy2 * l2 + wy3 * l3)
    zero = -low * inverse
    for k in range(n_tried):
        sum_l, sum_ll, sum_yl = sums[k], sums[n_tried + k], sums[2 * n_tried + k]
        determinant = sum_w * sum_ll - sum_l * sum_l
        usable = determinant > ZERO
        inverse_determinant = ONE / (determinant if usable else ONE)
        a = (sum_w * sum_yl - sum_y * sum_l) * inverse_determinant
        b = (sum_ll * sum_y - sum_l * sum_yl) * inverse_determinant
        above = b > zero
        alone = (sum_yl - zero * sum_l) / (sum_ll if usable else ONE)
        a = alone if above else a
        b = zero if above else b
        error = a * (a * sum_ll - TWO * sum_yl) + b * (TWO * (a * sum_l - sum_y) + b * sum_w)
        sums[k], sums[n_tried + k] = a, b
        sums[2 * n_tried + k] = error if usable else BEYOND
    least = sums[2 * n_tried]
    for k in range(1, n_tried):
        least = min(least, sums[2 * n_tried + k])
    best = n_tried
    for k in range(n_tried):
        best = min(best, k if sums[2 * n_tried + k] == least else n_tried)
    found = least < BEYOND
    a = sums[best] if found else ONE / top
    b = sums[n_tried + best] if found else ZERO
    return max(a, ZERO) * span, max(-(b * span + low), ZERO)


@_part
def _whole_scales(
    v: Any, w: Any, n: Any, m: Any, low: Any, high: Any, work: Any, sums: Any, whole: Any, bits: Any
) -> Any:
    """reference._quantize_scales of one block: d; `whole` gets the whole numbers, bits[0] those of d."""
    if len(m):
        for i in range(16):
            work[i] = w[i] if i < n else ZERO
        none = not _total(work, 16) > LEAST
        for i in range(n):
            work[i] = ONE if none else w[i]
        d = _half(_best_scale(v, 0, work, n, m, low, high, True, m, sums), bits)
    else:
        d = _half(_largest(v, 0, n) * (ONE / (low if low < ZERO else high)), bits)
    inverse = ONE / d if d != ZERO else ZERO
    for i in range(n):
        whole[i] = min(max(np.rint(v[i] * inverse), low), high)
    return d


def _halves(form: Format) -> tuple[F32, U8]:
    """For every half from the lowest level to the highest: the level nearest to what follows it, and its code."""
    levels = np.array(form.levels, np.float32)
    halves = np.arange(2 * form.levels[0], 2 * form.levels[-1] + 1, dtype=np.float32) / 2
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, halves, "right")
    return levels[codes], codes.astype(np.uint8)


def _runs(field: Field | None) -> tuple[Any, Any, Any]:
    """The runs of a field by the bytes they lie in, for _write: (places, runs, what is added in every byte of a word).

    A place is (first byte, bytes, first run, end of its runs, groups of eight bytes that can be made at once), a run
    (first number, number_shift, mask for eight bytes, byte_shift).
    """
    if field is None:
        return np.empty((0, 5), np.int64), np.empty((0, 4), np.uint64), np.uint64(0)
    at: dict[tuple[int, int], list[Run]] = {}
    for run in field.runs:
        at.setdefault((run.start, run.length), []).append(run)
    places: list[tuple[int, ...]] = []
    runs: list[tuple[int, ...]] = []
    for (start, length), those in at.items():
        aligned = all(run.first % 8 == 0 for run in those)
        places.append((start, length, len(runs), len(runs) + len(those), length // 8 if aligned else 0))
        runs += [(run.first, run.number_shift, BYTES * ((1 << run.bits) - 1), run.byte_shift) for run in those]
    # adding 128 modulo 256 is turning the highest bit
    return np.array(places, np.int64), np.array(runs, np.uint64), np.uint64(BYTES * field.added)


@cache
def _encoder(type_: Type, weighted: bool) -> Callable[..., None]:
    """The kernel of one format: (all rows in one, n_cols, normalized importance or none, bytes to fill, scratch)."""
    form = FORMATS[type_]
    search = search_of(type_, weighted) or Search(Weighting.SIZE)
    n, n_sub, block, nbytes = form.sub, form.n_sub, form.block, form.nbytes
    low, high = np.float32(form.levels[0]), np.float32(form.levels[-1])
    even = all(b - a == 1 for a, b in zip(form.levels, form.levels[1:], strict=False))
    values, codes_of = _halves(form)
    rms, size = search.weighting == Weighting.RMS_PLUS_SIZE, search.weighting == Weighting.SIZE
    square, plain = search.weighting == Weighting.SQUARE, search.weighting == Weighting.IMPORTANCE
    spread = search.weighting == Weighting.SPREAD
    over_row, block_spread, sigma = search.over_row, spread and not search.over_row, np.float32(search.sigma)
    share, block_share = np.float32(1 / n), np.float32(1 / block)
    multipliers = np.array(search.multipliers, np.float32)
    lines, shifts = (np.array([line[i] for line in search.lines], np.float32) for i in (0, 1))
    block_multipliers = np.array(search.block_multipliers, np.float32)
    searched, signed_bytes = bool(search.multipliers), type_ == Type.Q8_0
    plain_scale = not (search.multipliers or search.lines or signed_bytes)
    has_scales, has_offsets = form.scales is not None, form.has_offsets
    scale_low, scale_high = np.float32(form.scale_low), np.float32(form.scale_high)
    code_places, code_runs, code_added = _runs(form.codes)
    scale_places, scale_runs, scale_added = _runs(form.scales)
    d_at, dmin_at = form.d_at, form.dmin_at or 0

    def encode(rows: Any, n_cols: Any, importance: Any, out: Any, f: Any, bytes_: Any, words: Any, bits: Any) -> None:
        codes, numbers = bytes_
        code_words, number_words = words
        w, work, sums, scales, minima, sum_w, whole, whole_minima = f
        n_blocks = n_cols // block
        variance = ZERO
        for r in range(len(rows) // n_cols):
            if over_row:
                variance = ZERO
                for b in range(n_blocks):
                    at = r * n_cols + b * block
                    for i in range(block):
                        work[i] = rows[at + i] * rows[at + i]
                    variance += _total(work, block) * block_share
                variance = sigma * (variance / np.float32(n_blocks))
            for b in range(n_blocks):
                start = r * n_cols + b * block
                if block_spread:
                    for i in range(block):
                        work[i] = rows[start + i] * rows[start + i]
                    variance = sigma * (_total(work, block) * block_share)
                for j in range(n_sub):
                    at, column = start + j * n, b * block + j * n
                    if rms:
                        for i in range(n):
                            work[i] = rows[at + i] * rows[at + i]
                        root = np.sqrt(_total(work, n) * share)
                        for i in range(n):
                            w[i] = root + abs(rows[at + i])
                    if size:
                        for i in range(n):
                            w[i] = abs(rows[at + i])
                    if square:
                        for i in range(n):
                            w[i] = rows[at + i] * rows[at + i]
                    if plain:
                        for i in range(n):
                            w[i] = importance[column + i]
                    if spread:
                        for i in range(n):
                            w[i] = importance[column + i] * np.sqrt(variance + rows[at + i] * rows[at + i])
                    if weighted:
                        for i in range(n):
                            work[i] = w[i]
                        sum_w[j] = _total(work, n)
                        if not sum_w[j] > LEAST:
                            for i in range(n):
                                w[i] = ONE
                    if has_offsets:
                        scales[j], minima[j] = _best_line(rows, at, w, n, lines, shifts, high, work, sums)
                    if searched:
                        scales[j] = _best_scale(rows, at, w, n, multipliers, low, high, even, values, sums)
                    if signed_bytes:
                        scales[j] = abs(_largest(rows, at, n)) * (ONE / high)
                    if plain_scale:
                        scales[j] = _largest(rows, at, n) * (ONE / low)
                dmin = ZERO
                if has_offsets:
                    dmin = _whole_scales(
                        minima, sum_w, n_sub, block_multipliers, scale_low, scale_high, work, sums, whole_minima, bits
                    )
                    bits[1] = bits[0]
                if has_scales:
                    d = _whole_scales(
                        scales, sum_w, n_sub, block_multipliers, scale_low, scale_high, work, sums, whole, bits
                    )
                else:
                    d = _half(scales[0], bits)
                for j in range(n_sub):
                    at = start + j * n
                    step, offset = d * whole[j], dmin * whole_minima[j]
                    inverse = ONE / step if step != ZERO else ZERO
                    if even:
                        for i in range(n):
                            v = np.rint((rows[at + i] + offset) * inverse)
                            codes[j * n + i] = np.uint8(np.int32(min(max(v, low), high) - low))
                    else:
                        for i in range(n):
                            codes[j * n + i] = _level((rows[at + i] + offset) * inverse, low, high, False, codes_of)
                made = (r * n_blocks + b) * nbytes
                _write(codes, code_words, code_places, code_runs, code_added, out, made)
                if has_scales:
                    for j in range(n_sub):
                        numbers[j] = np.uint8(np.int32(whole[j] - scale_low))
                        numbers[n_sub + j] = np.uint8(np.int32(whole_minima[j]))
                    _write(numbers, number_words, scale_places, scale_runs, scale_added, out, made)
                out[made + d_at], out[made + d_at + 1] = bits[0] & 255, bits[0] >> 8
                if has_offsets:
                    out[made + dmin_at], out[made + dmin_at + 1] = bits[1] & 255, bits[1] >> 8

    no_rows = np.zeros(0, np.float32)
    return compiled(encode, no_rows, block, no_rows, np.zeros(0, np.uint8), *_scratch(form))


def _scratch(form: Format) -> tuple[Any, ...]:
    """What a kernel works in: floats, bytes and the same as words, and the bits of F16 numbers."""
    n_sub = form.n_sub
    floats = [np.empty(n, np.float32) for n in (form.sub, 256, 128, n_sub, n_sub, n_sub)]
    floats += [np.ones(n_sub, np.float32), np.zeros(n_sub, np.float32)]
    words = tuple(np.empty(n, np.uint64) for n in (form.block // 8, -(-n_sub // 4)))
    return tuple(floats), tuple(a.view(np.uint8) for a in words), words, np.zeros(2, np.uint32)


def encode(type_: Type, rows: F32, out: U8, importance: F32 | None = None) -> U8:
    """Encode float32 `rows` (n_rows, n_cols), C-contiguous and finite, as a format in FORMATS into `out`, a flat array.

    Returns the part written; `importance` (n_cols,) weighs the columns' squared errors; only its ratios count.
    """
    form = FORMATS[type_]
    made = out[: rows.size // form.block * form.nbytes]
    q = np.empty(0, np.float32) if importance is None else np.ascontiguousarray(normalized(importance), np.float32)
    with _declaring:
        kernel = _encoder(type_, importance is not None)
    kernel(rows.reshape(-1), rows.shape[1], q, made, *_scratch(form))
    return made
