"""Packs depend on order and lengths alone; every token is evaluated once, and every token of a choice is scored."""

from __future__ import annotations

import itertools

import pytest

from jmedlite.benchmarks.backends.local_engine import shared_head, split
from jmedlite.benchmarks.backends.packing import (
    GPU_PACK,
    PACK,
    PackedRequest,
    batches,
    n_outputs,
    n_sequences,
    packs,
    rows,
)


def request(stem: int, *branches: int, reserve: int = 0) -> PackedRequest:
    numbers = itertools.count(100)
    return PackedRequest(tuple(range(stem)), tuple(tuple(next(numbers) for _ in range(b)) for b in branches), reserve)


def test_a_choice_costs_one_token_less_than_it_has() -> None:
    r = request(10, 1, 3, 8)
    assert r.n_evaluated == 10 + 0 + 2 + 7
    assert r.n_longest == 10 + 7
    assert r.n_sequences == 2  # the one-token choice is scored where the stem ends
    assert request(10, 1, 1).n_sequences == 1
    assert PackedRequest(()).n_sequences == 0


def test_packs_are_consecutive_full_and_within_bounds() -> None:
    requests = [request(n, 1, 4) for n in (30, 30, 30, 200, 5, 5, 5, 90, 1)]
    found = packs(requests, 100, 63)
    assert [i for p in found for i in p] == list(range(len(requests)))
    for p in found:
        tokens = sum(requests[i].n_evaluated for i in p)
        assert tokens <= 100 or len(p) == 1
        if p.stop < len(requests):  # the next one would not have fitted
            assert tokens + requests[p.stop].n_evaluated > 100


def test_packs_are_bounded_by_sequences_too() -> None:
    assert [len(p) for p in packs([request(2, 2, 2, 2)] * 5, 1000, 7)] == [2, 2, 1]


def test_packs_are_bounded_by_what_is_written_too() -> None:
    long = [PackedRequest((1,) * 4, reserve=100)] * 5
    assert [len(p) for p in packs(long, 1000, 63, 220)] == [2, 2, 1]
    assert [len(p) for p in packs(long, 1000, 63, 50)] == [1] * 5


def test_whoever_begins_later_gets_the_same_packs() -> None:
    """A pack's composition does not depend on what comes after it."""
    requests = [request(7 + i % 5, 2, 3) for i in range(40)]
    whole = packs(requests, 64, 63)
    for cut in range(1, 40):
        assert packs(requests[:cut], 64, 63)[:-1] == whole[: len(packs(requests[:cut], 64, 63)) - 1]


def test_rows_score_every_token_of_every_branch_once() -> None:
    requests = [request(4, 1, 3), request(2, 5), request(3), request(1, 2, 2, 2)]
    found = list(rows(requests))
    assert len(found) == sum(r.n_evaluated for r in requests)
    read = [(row.request, *at) for row in found for at in row.reads]
    assert sorted(read) == [
        (i, b, k) for i, r in enumerate(requests) for b, branch in enumerate(r.branches) for k in range(len(branch))
    ]
    assert sum(row.last for row in found) == len(requests)


def test_a_branch_sees_its_own_stem_and_nothing_of_another_request() -> None:
    requests = [request(4, 3, 2), request(3, 4, 4)]
    found = list(rows(requests))
    for row in found:
        seen = {r.request for r in found if row.sequences[0] in r.sequences}
        assert seen == {row.request}
    # positions along each sequence go up one by one
    for sequence in {s for row in found for s in row.sequences}:
        positions = [row.position for row in found if sequence in row.sequences]
        assert positions == list(range(len(positions)))


def test_batches_are_bounded_by_tokens_and_outputs() -> None:
    found = list(rows([request(20, 9, 9, 9)]))
    parts = list(batches(found, 16, 5))
    assert [row for part in parts for row in part] == found
    assert all(len(p) <= 16 and sum(r.is_output for r in p) <= 5 for p in parts)


@pytest.mark.parametrize(
    ("contexts", "expected"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2], [1, 2, 3]], 1),
        ([[1, 2, 3]] * 3, 2),
        ([[1], [1]], 0),
        ([[5, 1], [6, 1]], 0),
    ],
)
def test_the_head_leaves_a_token_to_each(contexts: list[list[int]], expected: int) -> None:
    assert shared_head(contexts) == expected


def test_choices_are_scored_from_where_the_first_of_them_leaves_the_context() -> None:
    # the second choice merges with the context's last token
    assert split([1, 2, 3], [[1, 2, 3, 7], [1, 2, 9, 8]]) == ([1, 2], [(3, 7), (9, 8)])
    assert split([1, 2, 3], [[1, 2, 3, 7], [1, 2, 3, 7, 8]]) == ([1, 2, 3], [(7,), (7, 8)])


@pytest.mark.parametrize(("pack", "outputs"), [(PACK, 64), (GPU_PACK, 256)])
def test_the_bounds_of_a_batch(pack: int, outputs: int) -> None:
    assert n_outputs(pack) == outputs == n_sequences(pack) + 1 <= 256  # llama.cpp's LLAMA_MAX_SEQ
