"""Error feedback: against the optimal brain surgeon's own formulas in float64, and on what it must not depend."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize

from jmedlite.base import gguf
from jmedlite.base.errors import DataError
from jmedlite.base.moments import pack_upper, unpack_upper
from jmedlite.base.native import quantize_rows
from jmedlite.convert.encoding import feedback
from jmedlite.convert.encoding.blocks import FORMATS, levels, unpack

N = 512


def inputs(rng: np.random.Generator, n_tokens: int = 2000, n: int = N) -> np.ndarray:
    """Correlated inputs, some columns much larger than others."""
    mixing = rng.normal(size=(n // 4, n)) * rng.lognormal(0, 0.7, n)
    return (rng.normal(size=(n_tokens, n // 4)) @ mixing + 0.3 * rng.normal(size=(n_tokens, n))).astype(np.float32)


def moments(x: np.ndarray) -> np.ndarray:
    return x.T @ x / len(x)


def damped_moments(h: np.ndarray, damping: float) -> np.ndarray:
    """What the factor is of, in float64."""
    damped = h.astype(np.float64) + damping * np.diag(h).mean() * np.eye(len(h))
    return damped + feedback.LEAST_SHARE * np.diag(np.diag(damped))


def encode(type_: Type, rows: np.ndarray, windows: list[feedback.Window]) -> np.ndarray:
    return feedback.encode_rows(type_, rows, windows, np.empty(gguf.nbytes(type_, rows.size), np.uint8))


def decoded(type_: Type, raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return dequantize(raw.reshape(shape[0], -1), type_).reshape(shape)


def brain_surgeon(type_: Type, rows: np.ndarray, h: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Codes (n_rows, n) by OBS (Frantar and others, arXiv 2208.11580, eq. 1), with the steps that `raw` has.

    After each column the remaining ones move by -e [H_FF⁻¹]_F,0 / [H_FF⁻¹]_00, the inverse computed anew.
    """
    form, w = FORMATS[type_], rows.astype(np.float64)
    blocks = unpack(type_, raw.reshape(-1, form.nbytes))
    steps = blocks.steps.reshape(len(rows), -1).repeat(form.sub, axis=1)
    offsets = blocks.offsets.reshape(len(rows), -1).repeat(form.sub, axis=1)
    stored = levels(type_).astype(np.float64)
    codes = np.empty(rows.shape, np.uint8)
    for j in range(rows.shape[1]):
        inverse = np.linalg.inv(h[j:, j:])
        wanted = w[:, j, None] + offsets[:, j, None] - steps[:, j, None] * stored
        codes[:, j] = np.abs(wanted).argmin(axis=1)
        lost = w[:, j] - (steps[:, j] * stored[codes[:, j]] - offsets[:, j])
        w[:, j:] -= np.outer(lost / inverse[0, 0], inverse[0])
    return codes


@pytest.mark.parametrize(
    "type_", [Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q6_K, Type.Q4_0, Type.IQ4_XS], ids=lambda t: t.name
)
def test_codes_are_those_of_the_optimal_brain_surgeon(type_: Type) -> None:
    rng = np.random.default_rng(3)
    h = moments(inputs(rng, n=256))
    rows = (0.02 * rng.normal(size=(6, 256))).astype(np.float32)
    damped = damped_moments(h, 0.1)
    raw = encode(type_, rows, [feedback.make_window(0, h, 0.1)])
    codes = unpack(type_, raw.reshape(-1, FORMATS[type_].nbytes)).codes.reshape(rows.shape)
    expected = brain_surgeon(type_, rows, damped, raw)
    # where a value lies within float32's rounding of the middle of two codes, either is right, and what follows differs
    assert (codes == expected).mean() > 0.99


def test_the_factor_is_the_inverse_s() -> None:
    h = moments(inputs(np.random.default_rng(0)))
    window = feedback.make_window(0, h, 0.05)
    damped = damped_moments(h, 0.05)
    u = window.factor.astype(np.float64)
    assert np.array_equal(u, np.triu(u))
    np.testing.assert_allclose(u.T @ u, np.linalg.inv(damped), rtol=0, atol=1e-5 * np.abs(np.linalg.inv(damped)).max())
    np.testing.assert_allclose(window.importance, 1 / np.diag(u) ** 2, rtol=1e-6)


@pytest.mark.parametrize("type_", sorted(FORMATS), ids=lambda t: t.name)
def test_outputs_are_nearer_than_ggml_s_for_tokens_not_seen(type_: Type) -> None:
    rng = np.random.default_rng(1)
    x = inputs(rng, 2500)
    h, held_out = moments(x[:2000]), x[2000:]
    rows = (0.02 * rng.normal(size=(40, N))).astype(np.float32)
    windows = [feedback.make_window(0, h[:256, :256], 0.1), feedback.make_window(256, h[256:, 256:], 0.1)]
    plain = quantize_rows(type_, rows, np.empty(gguf.nbytes(type_, rows.size), np.uint8), np.diag(h).copy())
    errors = [
        feedback.output_error(held_out, rows, decoded(type_, raw, rows.shape))
        for raw in (encode(type_, rows, windows), plain)
    ]
    assert errors[0] < 0.7 * errors[1]


def test_rows_do_not_depend_on_each_other() -> None:
    rng = np.random.default_rng(2)
    window = [feedback.make_window(0, moments(inputs(rng)), 0.1)]
    rows = (0.02 * rng.normal(size=(feedback.ROWS + 70, N))).astype(np.float32)
    whole = encode(Type.Q4_K, rows, window).reshape(len(rows), -1)
    # tiles are what the pass hands over, whole but for the last one
    parts = [encode(Type.Q4_K, rows[a : a + feedback.ROWS], window) for a in range(0, len(rows), feedback.ROWS)]
    assert np.array_equal(whole.ravel(), np.concatenate(parts))
    assert np.array_equal(encode(Type.Q4_K, rows, window).reshape(len(rows), -1), whole)


@pytest.mark.parametrize("type_", sorted(FORMATS), ids=lambda t: t.name)
def test_zeros_and_dead_inputs(type_: Type) -> None:
    """A column whose input is always zero costs nothing; rows of zeros stay zeros; nothing is divided by zero."""
    rng = np.random.default_rng(4)
    x = inputs(rng)
    x[:, 5:40] = 0
    rows = (0.02 * rng.normal(size=(8, N))).astype(np.float32)
    rows[3] = 0
    rows[4, 256:] = 0
    with np.errstate(all="raise", under="ignore"):
        found = decoded(type_, encode(type_, rows, [feedback.make_window(0, moments(x), 0.05)]), rows.shape)
    assert np.isfinite(found).all()
    assert not found[3].any()
    nothing = feedback.make_window(0, np.zeros((N, N), np.float32), 0.05)
    np.testing.assert_allclose(nothing.factor, np.eye(N) / np.sqrt(1 + feedback.LEAST_SHARE), rtol=1e-6)


def test_moments_rounded_beside_a_huge_input() -> None:
    """What 16 bits leave of the moments is not positive definite; it grows until it is, and the others still gain."""
    rng = np.random.default_rng(6)
    x = inputs(rng)
    x[:, 7] *= 3000
    h = moments(x)
    scale, packed = pack_upper(h)
    kept = unpack_upper(packed, scale)
    assert np.linalg.eigvalsh(kept.astype(np.float64)).min() < 0
    rows = (0.02 * rng.normal(size=(40, N))).astype(np.float32)
    plain = quantize_rows(Type.Q4_K, rows, np.empty(gguf.nbytes(Type.Q4_K, rows.size), np.uint8), np.diag(h).copy())
    raw = encode(Type.Q4_K, rows, [feedback.make_window(0, kept, 1e-9)])
    errors = [feedback.output_error(x, rows, decoded(Type.Q4_K, r, rows.shape)) for r in (raw, plain)]
    assert errors[0] < errors[1]


def test_moments_that_no_inputs_have() -> None:
    h = np.full((64, 64), 9.0, np.float32)
    np.fill_diagonal(h, 1)
    with pytest.raises(DataError, match="not positive definite"):
        feedback.make_window(0, h, 0.01)


@pytest.mark.parametrize("type_", sorted(FORMATS), ids=lambda t: t.name)
def test_what_numba_makes_of_it_is_the_same_to_the_byte(type_: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from jmedlite.convert.encoding import feedback_fast

    rng = np.random.default_rng(5)
    window = [feedback.make_window(0, moments(inputs(rng)), 0.1)]
    rows = (0.02 * rng.standard_t(4, size=(37, N))).astype(np.float32)
    rows[3, 64:300] = 0
    made = []
    for rounder in (feedback.round_columns, feedback_fast.round_columns):
        monkeypatch.setattr(feedback, "_fastest", lambda rounder=rounder: rounder)
        made.append(encode(type_, rows, window))
    assert np.array_equal(*made)
