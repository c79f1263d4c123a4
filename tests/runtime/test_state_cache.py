"""The cache of evaluated prompts: what it holds, what it must not hold, and what damage does to it."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import jmedlite
from jmedlite.runtime.runner import Answer
from jmedlite.runtime.state_cache import MAGIC, StateCache, cache_folder, fingerprint, key_of

posix = pytest.mark.skipif(os.name != "posix", reason="file modes of POSIX")
SECRET = "Zq7-private-Xk"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JMEDLITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(folder: Path) -> Iterator[Path]:
    return (f for f in folder.iterdir() if f.stat().st_size > 1000)  # a note that a file was checked is tiny


def answer(model: Path, question: str, **options: object) -> Answer:
    with jmedlite.Runner(model, threads=1, **options) as runner:  # type: ignore[arg-type]
        return runner.ask(question, max_tokens=12)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    cache = StateCache(tmp_path / "c")
    key = key_of({"tokens": [1, 2]})
    assert cache.load(key) is None
    assert cache.save(key, b"state")
    assert cache.load(key) == b"state"
    assert cache.load(key_of({"tokens": [1, 3]})) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "magic", "swapped"])
def test_a_damaged_entry_is_a_miss(tmp_path: Path, damage: str) -> None:
    cache = StateCache(tmp_path)
    key, other = key_of({"a": 1}), key_of({"a": 2})
    cache.save(key, b"content" * 100)
    cache.save(other, b"others" * 100)
    path = tmp_path / f"{key}.state"
    raw = bytearray(path.read_bytes())
    if damage == "cut":
        raw = raw[:-1]
    elif damage == "flipped":
        raw[-1] ^= 1
    elif damage == "empty":
        raw.clear()
    elif damage == "magic":
        raw[: len(MAGIC)] = b"X" * len(MAGIC)
    else:  # a sound entry under another one's name
        raw = bytearray((tmp_path / f"{other}.state").read_bytes())
    path.write_bytes(raw)
    assert cache.load(key) is None
    assert not path.exists()
    assert cache.load(other) is not None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = StateCache(tmp_path, limit=3500)
    keys = [key_of({"n": n}) for n in range(4)]
    for age, key in zip((400, 300, 200), keys, strict=False):
        cache.save(key, bytes(1000))
        then = time.time() - age
        os.utime(tmp_path / f"{key}.state", (then, then))
    assert cache.load(keys[0]) is not None  # used now
    cache.save(keys[3], bytes(1000))
    assert [cache.load(k) is not None for k in keys] == [True, False, True, True]
    assert not cache.save(key_of({}), bytes(4000))  # more than all the room there is
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= 3500


@posix
def test_only_the_user_can_read_it(tmp_path: Path) -> None:
    cache = StateCache(tmp_path / "c")
    old = os.umask(0)
    try:
        cache.save(key_of({}), b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    assert [stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "c").iterdir()] == [0o600]


def test_a_folder_that_can_not_be_written_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = StateCache(tmp_path / "file")
    assert not cache.save(key_of({}), b"x")
    assert cache.load(key_of({})) is None


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMEDLITE_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")
    monkeypatch.delenv("JMEDLITE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    for platform, expected in (
        ("linux", Path("/xdg/jmedlite")),
        ("win32", Path("/local/jmedlite/cache")),
        ("darwin", Path.home() / "Library/Caches/jmedlite"),
    ):
        monkeypatch.setattr("jmedlite.runtime.state_cache.sys.platform", platform)
        assert cache_folder() == expected


def test_a_changed_model_is_another_model(tiny_gguf: Path, tmp_path: Path) -> None:
    blob = bytearray(tiny_gguf.read_bytes())
    path = tmp_path / "m.gguf"
    path.write_bytes(blob)
    times = path.stat()
    before = fingerprint([path])
    assert fingerprint([path]) == before
    blob[-100] ^= 1
    path.write_bytes(blob)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint([path]) != before


def test_the_second_answer_is_the_first_one_with_and_without_the_cache(tiny_gguf: Path, folder: Path) -> None:
    question = "What is a fever?"
    without = answer(tiny_gguf, question, cache=False)
    assert not folder.exists()
    first, second = (answer(tiny_gguf, question) for _ in range(2))
    assert [a.text for a in (first, second)] == [without.text] * 2
    assert without.n_cached == first.n_cached == 0
    assert 30 < second.n_cached < second.n_prompt
    other = answer(tiny_gguf, "And a cough, " + "and " * 40)
    assert other.n_cached == second.n_cached
    assert len(list(entries(folder))) == 1


@pytest.mark.parametrize("options", [{"kv_type": "q8_0"}, {"flash_attn": "off"}, {"threads": 2}])
def test_another_way_of_computing_is_another_entry(tiny_gguf: Path, folder: Path, options: dict[str, object]) -> None:
    answer(tiny_gguf, "q")
    with jmedlite.Runner(tiny_gguf, **({"threads": 1} | options)) as runner:  # type: ignore[arg-type]
        assert runner.ask("q", max_tokens=2).n_cached == 0
    assert len(list(entries(folder))) == 2


def test_a_damaged_cache_changes_nothing(tiny_gguf: Path, folder: Path) -> None:
    expected = answer(tiny_gguf, "q").text
    (path,) = entries(folder)
    path.write_bytes(path.read_bytes()[:-7])
    again = answer(tiny_gguf, "q")
    assert (again.text, again.n_cached) == (expected, 0)


def test_a_sound_entry_that_llama_cpp_refuses_is_evaluated_anew(
    tiny_gguf: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(tiny_gguf, "q").text
    (path,) = entries(folder)
    StateCache(folder).save(path.stem, b"\0" * 5000)
    again = answer(tiny_gguf, "q")
    assert (again.text, again.n_cached) == (expected, 0)


def test_the_question_is_in_no_file(tiny_gguf: Path, folder: Path) -> None:
    """Neither its text nor its tokens: the entry is the same whatever was asked."""
    answer(tiny_gguf, f"What is {SECRET}?")
    (path,) = entries(folder)
    one = path.read_bytes()
    path.unlink()
    answer(tiny_gguf, "Something else entirely, in more words than before.")
    (path,) = entries(folder)
    assert path.read_bytes() == one
    assert all(SECRET.encode() not in f.read_bytes() for f in folder.rglob("*") if f.is_file())
