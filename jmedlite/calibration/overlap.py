"""Overlap: does a text contain items of a benchmark? Hashes of stretches of the items are rolled over the text.

A matrix calibrated on a benchmark's questions would make the model look better on exactly that benchmark. Texts are
compared in a normal form (NFKC, casefold, only letters, marks and digits), so that layout and punctuation don't matter.

An item gives up to four windows of its normal form, evenly spread, the first and the last included. Their length is 32,
24 or 16 characters where the item has Japanese script, 64, 48 or 32 elsewhere: the longest that fits; shorter items are
turns of phrase and left out, as is a window that stands in more than three items. A window of n characters c hashes to
sum(mix(c[i]) * B**i) mod 2**64, which rolls over a text in a few array operations; `mix` is splitmix64.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import DataError
from jmedlite.base.inputs import parse_json, read_bytes
from jmedlite.runtime.chat_template import language_of

WINDOWS_JA, WINDOWS = (32, 24, 16), (64, 48, 32)
PER_ITEM, COMMON = 4, 3
STEMS, CHOICES, IDS = ("question", "problem_text", "problem_text_en"), ("choices", "choices_en"), ("problem_id", "id")
MAX_TASK_BYTES = 1 << 28
BLOCK = 1 << 20
U64 = NDArray[np.uint64]
BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses


@dataclass(frozen=True)
class Fingerprints:
    """Sorted `hashes`, for each the index into `ids` of its item, and the window length it was made with."""

    hashes: U64
    items: NDArray[np.uint16]
    lengths: NDArray[np.uint8]
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """An item found in a text, and the line (from 1) where its first matching window begins."""

    item: str
    line: int


def normalise(text: str) -> str:
    """NFKC, casefold, then letters, marks and digits only."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = {c for c in set(folded) if unicodedata.category(c)[0] in "LMN"}
    return "".join(c for c in folded if c in kept)


def windows(item: str, smallest: bool = True) -> list[str]:
    """The stretches of an item's normal form that stand for it; only those of full length without `smallest`."""
    lengths = WINDOWS_JA if language_of(item) == "ja" else WINDOWS
    length = next((n for n in (lengths if smallest else lengths[:1]) if n <= len(item)), None)
    if length is None:
        return []
    n = min(PER_ITEM, -(-len(item) // length))
    starts = [i * (len(item) - length) // max(1, n - 1) for i in range(n)]
    return [item[s : s + length] for s in dict.fromkeys(starts)]


def _mix(codes: U64) -> U64:
    x = codes + np.uint64(BASE)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _powers(base: int, n: int) -> U64:
    steps = np.full(n, base, np.uint64)
    steps[:1] = 1
    return np.cumprod(steps, dtype=np.uint64)


def rolling(text: str, length: int) -> U64:
    """The hash of every window of `length` characters of `text`."""
    n = len(text) - length + 1
    if n < 1:
        return np.zeros(0, np.uint64)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    # with powers that grow along the text, a window's hash is a difference of sums, scaled back to its start
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mix(codes) * _powers(BASE, len(text)), dtype=np.uint64)])
    scaled: U64 = (sums[length:] - sums[:-length]) * _powers(pow(BASE, -1, 1 << 64), n)
    return scaled


def fingerprints(items: Iterable[tuple[str, str, bool]]) -> Fingerprints:
    """Of (id, text, is a choice) triples; a choice counts only where it is as long as a full window.

    A disease's name alone is no item, though it may be a choice.
    """
    ids: dict[str, int] = {}
    owners: dict[str, set[str]] = {}
    owner_of: dict[str, int] = {}
    for name, text, is_choice in items:
        plain = normalise(text)
        for window in windows(plain, smallest=not is_choice):
            owners.setdefault(window, set()).add(plain)
            owner_of.setdefault(window, ids.setdefault(name, len(ids)))
    found = [(int(rolling(w, len(w))[0]), item, len(w)) for w, item in owner_of.items() if len(owners[w]) <= COMMON]
    found.sort()
    if len(ids) > np.iinfo(np.uint16).max:
        raise DataError(f"a task with {len(ids):,} items is too large to compare with; split it")
    hashes, owner, lengths = zip(*found, strict=True) if found else ((), (), ())
    return Fingerprints(
        np.array(hashes, np.uint64), np.array(owner, np.uint16), np.array(lengths, np.uint8), tuple(ids)
    )


def find_overlaps(text: str, prints: Fingerprints) -> list[Overlap]:
    """Every item of which a window stands in `text`, each once, in the order of the text."""
    # line by line: composition never crosses a line's end, and every kept character knows its line
    lines = [normalise(line) for line in text.split("\n")]
    ends = np.cumsum([len(line) for line in lines])
    whole = "".join(lines)
    first: dict[int, int] = {}
    for length in sorted(set(prints.lengths.tolist())):
        mine = prints.lengths == length
        known, items = prints.hashes[mine], prints.items[mine]
        for start in range(0, len(whole), BLOCK):
            hashes = rolling(whole[start : start + BLOCK + length - 1], length)
            places = np.flatnonzero(np.isin(hashes, known))
            for place in places.tolist():
                item = int(items[np.searchsorted(known, hashes[place])])
                first[item] = min(first.get(item, len(whole)), start + place)
    found = sorted((at, item) for item, at in first.items())
    return [Overlap(prints.ids[item], int(np.searchsorted(ends, at, "right")) + 1) for at, item in found]


def save(path: Path, prints: Fingerprints) -> None:
    """As `shipped` reads it."""
    ids = np.array([i.encode() for i in prints.ids])
    with path.open("wb") as out:
        np.savez_compressed(out, hashes=prints.hashes, items=prints.items, lengths=prints.lengths, ids=ids)


@cache
def shipped() -> Fingerprints:
    """The hashes that come with jmedlite (made by tools/hash_benchmark.py)."""
    source = files("jmedlite.calibration") / "benchmarks.npz"
    with source.open("rb") as raw, np.load(raw, allow_pickle=False) as box:
        ids = tuple(i.decode() for i in box["ids"].tolist())
        return Fingerprints(box["hashes"], box["items"], box["lengths"], ids)


# ----------------------------------------------------------------------------------------------- tasks as files


def task_items(path: Path, prefix: str = "") -> Iterator[tuple[str, str, bool]]:
    """(id, text, is a choice) of a task's JSONL; raises DataError with the line's number."""
    for number, line in enumerate(read_bytes(path, MAX_TASK_BYTES).splitlines(), 1):
        if not line.strip():
            continue
        try:
            item: Any = parse_json(line.removeprefix(codecs.BOM_UTF8))
        except ValueError:
            raise DataError(f"{path.name}, line {number}: is not JSON; expected one object per line") from None
        known = [k for k in (*STEMS, *CHOICES) if isinstance(item, dict) and k in item]
        if not known:
            raise DataError(f"{path.name}, line {number}: has none of the fields {', '.join((*STEMS, *CHOICES))}")
        name = prefix + str(next((item[k] for k in IDS if k in item), f"line {number}"))[:80]
        for key in known:
            value = item[key]
            texts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
            if not all(isinstance(t, str) for t in texts):
                raise DataError(f"{path.name}, line {number}: {key} is not text")
            yield from ((name, t, key in CHOICES) for t in texts)


def read_task(path: Path) -> Fingerprints:
    """The fingerprints of a local task; raises DataError where it has nothing to compare with."""
    prints = fingerprints(task_items(path))
    if not prints.hashes.size:
        raise DataError(
            f"{path.name}: has no item of {WINDOWS_JA[-1]} (Japanese) or {WINDOWS[-1]} characters, so nothing can be "
            "compared with it"
        )
    return prints


def check_no_overlap(name: str, text: str, tasks: Iterable[tuple[str, Fingerprints]]) -> None:
    """Refuse a text that holds an item of a task: DataError with the line and the item."""
    for task, prints in tasks:
        if found := find_overlaps(text, prints):
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise DataError(
                f"{name}, line {found[0].line}: contains item {found[0].item} of {task}{more}; calibrating on a "
                "benchmark's questions would falsify its result, take them out"
            )
