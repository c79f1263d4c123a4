"""What chance decides about a run, from a seed and the items' ids alone: the sample, the examples, the orders.

Everything is ordered by SHA-256 of the seed and a name: the same on every machine and with every version of Python and
numpy (whose generators promise their streams only within limits), and independent of the order of the source.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

from jmedlite.base.errors import UsageError

from .items import Dataset, Item, Left

USED = "used as an example"


def _key(seed: int, *names: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, (seed, *names))).encode("utf-8")).digest()


def stratified(items: Sequence[Item], n: int, seed: int) -> list[int]:
    """Indices of `n` items (all, where there are fewer) in source order, each group in proportion to its size.

    Items are of one group where all that `group` and `groups` say of them is the same.

    The item of rank r (from 0) in a group of s gets the place (2r + 1) / s, and the n smallest places are taken
    (Sainte-Laguë). Like largest remainders that keeps the groups near their share, and besides a sample of fewer items
    is always part of one of more, which largest remainders can't promise.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault((item.group, *sorted(item.groups.items())), []).append(i)
    places = []
    for members in groups.values():
        members.sort(key=lambda i: _key(seed, "sample", items[i].id))
        places += [
            (Fraction(2 * r + 1, len(members)), _key(seed, "tie", items[i].id), i) for r, i in enumerate(members)
        ]
    return sorted(i for _, _, i in sorted(places)[: max(n, 0)])


def shuffled(items: Sequence[Item], seed: int) -> tuple[Item, ...]:
    """The items in an order that has nothing to do with their source: what an early stop needs."""
    return tuple(sorted(items, key=lambda item: _key(seed, "shuffle", item.id)))


def draw_examples(dataset: Dataset, shots: int, seed: int) -> tuple[tuple[Item, ...], Dataset]:
    """`shots` few-shot examples, and the data set without them: nothing that is shown is scored.

    They come from `dataset.examples` where it has enough that are no copy of an item, else from the items, which then
    are left out, with every copy under another id. Fewer shots are the first of more. Raises UsageError where no item
    would be left to ask.
    """
    if not shots:
        return (), dataset
    asked = {text for item in dataset.items for text in _texts(item)}
    pool = _different([e for e in dataset.examples if asked.isdisjoint(_texts(e))], seed)
    own = len(pool) < shots
    if own:
        pool = _different(dataset.items, seed)
        if len(pool) <= shots:
            raise UsageError(
                f"--shots {shots}: {dataset.name} has only {len(pool)} questions, none would be left to ask"
            )
    drawn = tuple(pool[:shots])
    if not own:
        return drawn, dataset
    used = {text for item in drawn for text in _texts(item)}
    kept = tuple(item for item in dataset.items if used.isdisjoint(_texts(item)))
    gone = tuple(Left(item.id, USED, item) for item in dataset.items if not used.isdisjoint(_texts(item)))
    return drawn, replace(dataset, items=kept, left=(*dataset.left, *gone))


def _different(items: Sequence[Item], seed: int) -> list[Item]:
    """The items in the order in which they become examples, each once whatever its ids."""
    found: list[Item] = []
    seen: set[tuple[str, ...]] = set()
    for item in sorted(items, key=lambda item: _key(seed, "example", item.id)):
        if seen.isdisjoint(_texts(item)):
            found.append(item)
        seen.update(_texts(item))
    return found


def _texts(item: Item) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What makes two items one: the same question with the same choices in any order, or with the same right answer."""

    def normal(texts: Iterable[str]) -> list[str]:
        return ["".join(unicodedata.normalize("NFKC", t).casefold().split()) for t in texts]

    question = normal((item.question, item.context))
    right = sorted(normal(item.choices[i] for i in item.answers))
    return ("choices", *question, *sorted(normal(item.choices))), ("answer", *question, *right)


def orders(n_choices: int, n_permutations: int, seed: int, item_id: str) -> list[tuple[int, ...]]:
    """Orders in which an item's choices are shown; `order[i]` is which choice stands at place i. The first is as given.

    They differ as long as there are that many (n_choices!), then they come round again. Fewer are the first of more.
    """
    found = [tuple(range(n_choices))]
    wanted = min(n_permutations, math.factorial(n_choices))
    attempt = 0
    while len(found) < wanted:
        attempt += 1
        order = tuple(sorted(range(n_choices), key=lambda i: _key(seed, "order", item_id, attempt, i)))
        if order not in found:
            found.append(order)
    return [found[i % len(found)] for i in range(n_permutations)]
