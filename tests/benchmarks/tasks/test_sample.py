"""Sample, examples and orders follow from the seed and the ids alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from jmedlite.base.errors import UsageError
from jmedlite.benchmarks.tasks.items import Dataset, Item
from jmedlite.benchmarks.tasks.sample import USED, draw_examples, orders, stratified

SIZES = {"心臓": 50, "lung": 30, "skin": 15, "eye": 4, None: 1}
ITEMS = [
    Item(f"{group}-{i}", f"question {group} {i}", ("x", "y", "z"), (i % 3,), "en", group=group)
    for group, size in SIZES.items()
    for i in range(size)
]
DATA = Dataset("t-en", "t", "en", "T", tuple(ITEMS))


@pytest.mark.parametrize("n", [1, 7, 10, 33, 99])
def test_groups_keep_their_share(n: int) -> None:
    chosen = stratified(ITEMS, n, seed=0)
    assert len(chosen) == len(set(chosen)) == n
    assert chosen == sorted(chosen)
    counts = Counter(ITEMS[i].group for i in chosen)
    for group, size in SIZES.items():
        assert abs(counts[group] - n * size / len(ITEMS)) <= 1


def test_declared_groups_keep_their_share_too() -> None:
    items = [replace(item, groups={"facts": "old" if i % 3 else "new"}) for i, item in enumerate(ITEMS)]
    counts = Counter((items[i].group, items[i].groups["facts"]) for i in stratified(items, 20, seed=0))
    for key, size in Counter((item.group, item.groups["facts"]) for item in items).items():
        assert abs(counts[key] - 20 * size / len(items)) <= 1


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    samples = [set(stratified(ITEMS, n, seed=3)) for n in range(len(ITEMS) + 1)]
    assert all(small < large for small, large in pairwise(samples))


def test_samples_do_not_depend_on_the_order_of_the_source() -> None:
    there = {ITEMS[i].id for i in stratified(ITEMS, 20, seed=1)}
    back = ITEMS[::-1]
    assert {back[i].id for i in stratified(back, 20, seed=1)} == there
    assert {ITEMS[i].id for i in stratified(ITEMS, 20, seed=2)} != there


def test_samples_of_all_and_of_none() -> None:
    assert stratified(ITEMS, 1000, seed=0) == list(range(len(ITEMS)))
    assert stratified(ITEMS, 0, seed=0) == []
    assert stratified([], 5, seed=0) == []


def test_the_same_on_every_machine() -> None:
    """Written down once: a change of these would make old runs incomparable with new ones."""
    assert stratified(ITEMS, 5, seed=0) == [25, 32, 36, 64, 85]
    assert orders(4, 3, 0, "112A1") == [(0, 1, 2, 3), (3, 0, 2, 1), (1, 2, 3, 0)]
    assert [e.id for e in draw_examples(DATA, 3, seed=0)[0]] == ["lung-19", "lung-18", "skin-2"]


def test_examples_taken_from_the_items_are_not_asked() -> None:
    examples, rest = draw_examples(DATA, 3, seed=0)
    assert len(examples) == 3
    assert not {e.id for e in examples} & {i.id for i in rest.items}
    assert [(entry.item, entry.reason) for entry in rest.left] == [(item, USED) for item in ITEMS if item in examples]
    assert len(rest.items) + len(rest.left) == len(ITEMS)
    more, _ = draw_examples(DATA, 5, seed=0)
    assert more[:3] == examples
    assert draw_examples(DATA, 3, seed=1)[0] != examples


def test_examples_of_their_own_split() -> None:
    pool = tuple(replace(ITEMS[0], id=f"example-{i}", question=f"other {i}") for i in range(9))
    copy = replace(ITEMS[5], id="example-copy")
    examples, rest = draw_examples(replace(DATA, examples=(*pool, copy)), 9, seed=0)
    assert {e.id for e in examples} == {e.id for e in pool}  # never the copy of a question that is asked
    assert rest.items == DATA.items
    examples, rest = draw_examples(replace(DATA, examples=pool[:2]), 3, seed=0)
    assert {e.id for e in examples} <= {i.id for i in ITEMS}  # too few there
    assert len(rest.items) == len(ITEMS) - 3


def test_no_examples() -> None:
    assert draw_examples(DATA, 0, seed=0) == ((), DATA)


def test_too_many_examples() -> None:
    with pytest.raises(UsageError, match=r"--shots 100: t-en has only 100 questions"):
        draw_examples(DATA, 100, seed=0)


def test_orders_differ_while_there_are_that_many() -> None:
    found = orders(5, 20, 7, "q")
    assert found[0] == (0, 1, 2, 3, 4)
    assert len(set(found)) == 20
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in found)
    assert orders(5, 4, 7, "q") == found[:4]
    assert orders(5, 20, 7, "r")[1:] != found[1:]
    assert orders(5, 20, 8, "q")[1:] != found[1:]


def test_more_orders_than_there_are_come_round_again() -> None:
    assert orders(2, 5, 0, "q") == [(0, 1), (1, 0), (0, 1), (1, 0), (0, 1)]
    assert len(set(orders(3, 6, 0, "q"))) == 6


def test_every_choice_comes_to_every_place() -> None:
    firsts = Counter(orders(4, 2, 0, f"q{i}")[1][0] for i in range(2000))
    assert all(400 < n < 600 for n in firsts.values())
    assert len(firsts) == 4


def test_no_copy_of_an_example_is_asked() -> None:
    """The same question under another id, with its choices in another order, or with other wrong ones."""
    forms = [
        ("どれか。症例{}", ("右a", "乙", "丙")),
        ("どれか。 症例{}", ("丙", "右A", "乙")),
        ("どれか。症例{}", ("右a", "丁")),
    ]
    copies = [
        Item(f"{i}-{k}", question.format(i), choices, (1 if k == 1 else 0,), "ja")
        for i in range(6)
        for k, (question, choices) in enumerate(forms)
    ]
    dataset = Dataset("t-ja", "t", "ja", "T", tuple(copies))
    examples, rest = draw_examples(dataset, 3, seed=0)
    shown = {e.id.split("-")[0] for e in examples}
    assert len(shown) == 3  # three different ones
    assert len(rest.items) == 9
    assert not shown & {item.id.split("-")[0] for item in rest.items}
    assert Counter(left.reason for left in rest.left) == {USED: 9}
    with pytest.raises(UsageError, match="only 6 questions"):
        draw_examples(dataset, 6, seed=0)
    pool = replace(dataset, examples=(copies[0], *(replace(c, question=f"other {c.id}") for c in copies[1:9:3])))
    examples, rest = draw_examples(pool, 2, seed=0)
    assert rest is pool
    assert all(e.question.startswith("other") for e in examples)


def test_one_stem_with_other_choices_is_another_question() -> None:
    items = [Item(str(i), "正しいのはどれか。", (f"右{i}", f"左{i}"), (0,), "ja") for i in range(5)]
    _, rest = draw_examples(Dataset("t-ja", "t", "ja", "T", tuple(items)), 2, seed=0)
    assert len(rest.items) == 3
