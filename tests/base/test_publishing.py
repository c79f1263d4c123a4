"""Results of several files: whole, as before, or absent, wherever a run ends; and what the next one makes of it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from jmedlite.base.errors import Busy, CannotCreate, DataError, Interrupted, IoFault, JmedliteError
from jmedlite.base.outputs import Lock, OutputFile
from jmedlite.base.publishing import Publication, check_published, check_target, write_texts
from jmedlite.base.signals import Terminated, catch_ending, kept_back
from tests.support.limits import largest_file

NAMES = ("m-00002-of-00002.gguf", "m.json", "m-00001-of-00002.gguf")
CALLS = ("fsync", "replace", "link", "unlink")  # of os: all that a publication asks of the system after writing
OLD, NEW = {n: f"old {n}" for n in NAMES}, {n: f"new {n}" for n in NAMES}


@pytest.fixture(autouse=True)
def _the_machine_stays_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def publish(folder: Path, overwrite: bool) -> None:
    for name in NAMES:
        check_target(folder / name, overwrite)
    with Publication() as result:
        for name, text in NEW.items():
            result.add(folder / name).write(text.encode())
        result.publish([folder / name for name in NAMES])


def there(folder: Path) -> dict[str, str]:
    return {f.name: f.read_text() for f in folder.iterdir() if not f.name.startswith(".")}


def hidden(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.name.startswith("."))


def begin(folder: Path, old: bool) -> dict[str, str]:
    """A folder with an older result, or an empty one."""
    folder.mkdir()
    for name, text in OLD.items() if old else ():
        (folder / name).write_text(text)
    return OLD if old else {}


class AtCall:
    """Patched functions of `os`: before, or after, the k-th call of any of them, `action` is done once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, k: int, after: bool, action: Callable[[], object]) -> None:
        self.n, self.k, self.after, self.action = 0, k, after, action
        for name in CALLS:
            monkeypatch.setattr(os, name, self.patched(getattr(os, name)))

    def patched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.n += 1
            mine = self.n == self.k
            if mine and not self.after:
                self.action()
            try:
                return real(*args, **options)
            finally:
                if mine and self.after:
                    self.action()

        return call


def moments() -> Iterator[tuple[int, bool]]:
    return ((k, after) for k in range(1, 100) for after in (False, True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of itself")
@pytest.mark.parametrize("old", [False, True], ids=["fresh", "overwriting"])
def test_killed_at_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    """Every name is old, new or absent; what could be taken for whole is; the same command then makes it, cleanly."""
    taken_back = 0
    for k, after in moments():
        folder = tmp_path / f"{k}{after}"
        before = begin(folder, old)
        if (child := os.fork()) == 0:
            try:
                AtCall(monkeypatch, k, after, lambda: os._exit(9))
                publish(folder, old)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            break
        assert status == 9
        found = there(folder)
        assert all(text in (OLD[n], NEW[n]) for n, text in found.items())
        mixed = found not in (before, NEW)
        if mixed and NAMES[-1] in found:  # the part that is opened
            with pytest.raises(DataError, match="half published"):
                check_published([folder / NAMES[-1]])
        try:
            publish(folder, old)
            taken_back += mixed
        except CannotCreate:  # nothing was left to do
            assert found == NEW
            assert not mixed
            publish(folder, overwrite=True)  # which also removes the locks that nobody holds
        assert there(folder) == NEW
        assert hidden(folder) == []
    assert k > 10
    assert taken_back > 3


@pytest.mark.parametrize(
    ("kind", "old"),
    [("signal", False), ("signal", True), ("EIO", False), ("EIO", True), ("EIO without links", True)],
)
def test_a_fault_or_a_signal_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, old: bool
) -> None:
    def fail() -> None:
        if kind == "signal":
            signal.raise_signal(signal.SIGINT)
        else:
            raise OSError(errno.EIO, "Input/output error")

    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    for k, after in moments():
        folder = tmp_path / f"{k}{after}"
        before = begin(folder, old)
        with monkeypatch.context() as patch:
            if "without" in kind:
                patch.setattr(os, "link", no_links)
            calls = AtCall(patch, k, after and kind == "signal", fail)
            try:
                publish(folder, old)
            except (KeyboardInterrupt, JmedliteError):
                assert there(folder) in (before, NEW)
                # where the journal itself can't be removed, it stays for the next run
                assert hidden(folder) == [] or kind != "signal"
        if calls.n < k:
            break
        if there(folder) == before:
            publish(folder, old)
            assert there(folder) == NEW
    assert k > 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of itself")
def test_a_file_of_somebody_else_is_not_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put there since is neither removed nor replaced by what stood there before."""
    folder = tmp_path / "m"
    begin(folder, old=False)
    if (child := os.fork()) == 0:
        AtCall(monkeypatch, 8, True, lambda: os._exit(9))
        publish(folder, overwrite=False)
        os._exit(0)
    os.waitpid(child, 0)
    assert there(folder).keys() < set(NAMES)
    (folder / NAMES[0]).write_text("mine")
    with pytest.raises(CannotCreate, match=f"{NAMES[0]}: exists"):
        publish(folder, overwrite=False)
    assert there(folder) == {NAMES[0]: "mine"}
    assert hidden(folder) == []


def test_who_publishes_is_alone(tmp_path: Path) -> None:
    with Publication() as result:
        result.add(tmp_path / "a").write(b"1")
        with Publication() as other, pytest.raises(Busy):
            other.add(tmp_path / "a")
        with pytest.raises(Busy):
            check_target(tmp_path / "a", overwrite=True)
        assert result.publish([tmp_path / "a"]) is None
    assert there(tmp_path) == {"a": "1"}
    assert hidden(tmp_path) == []


def test_a_signal_waits_and_what_follows_is_undone(tmp_path: Path) -> None:
    """Also where the program's own handler only takes note of it."""
    seen: list[int] = []
    old = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with Publication() as result:
            result.add(tmp_path / "a").write(b"1")
            result.add(tmp_path / "b").write(b"2")
            order = [tmp_path / "a", tmp_path / "b"]
            with pytest.raises(Interrupted, match="nothing was"):
                result.publish(order, then=lambda: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, old)
    assert seen == [signal.SIGINT]
    assert there(tmp_path) == {}
    assert hidden(tmp_path) == []


def test_the_next_run_sweeps_what_dead_ones_left_under_other_names(tmp_path: Path) -> None:
    """Locks that nobody holds, and what was not finished; nothing of the living, nothing of other programs."""
    dead = (".n-Q4.gguf.lock", ".r.html.lock", ".r.html.partial")
    theirs = {".other.lock": "", ".m.json.lock": "", ".held.gguf.lock": "", ".full.gguf.lock": "1234"}
    for name, content in {**dict.fromkeys(dead, ""), **theirs}.items():
        (tmp_path / name).write_text(content)
    with FileLock(tmp_path / ".held.gguf.lock", timeout=0):
        check_target(tmp_path / "k.gguf", overwrite=False)
        assert hidden(tmp_path) == sorted(theirs)


def test_a_lock_that_was_let_go_in_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sweeps holds a lock for a moment, and takes its file away: that is no other run that writes."""
    acquire, tries = FileLock.acquire, iter((True, False))

    def swept(self: FileLock, *arguments: Any, **options: Any) -> Any:
        if next(tries):
            raise Timeout(str(self.lock_file))
        return acquire(self, *arguments, **options)

    monkeypatch.setattr(FileLock, "acquire", swept)
    with Lock(tmp_path / "m.gguf"):
        assert hidden(tmp_path) == [".m.gguf.lock"]
    assert hidden(tmp_path) == []


def test_a_signal_while_a_lock_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AtCall(monkeypatch, 1, False, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), Lock(tmp_path / "run", tmp_path / ".lock"):
        pass
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_ends_is_an_exception_once(name: str) -> None:
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip("this system has no such signal")
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, number)}
    try:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        catch_ending()
        with pytest.raises(Terminated) as caught, kept_back() as kept:
            signal.raise_signal(number)
            assert kept.came == [number]  # and this line is reached
        assert (caught.value.code, caught.value.name) == (128 + number, name)
        assert {signal.getsignal(s) for s in before} == {signal.SIG_DFL}  # the second one ends at once
        signal.signal(number, signal.SIG_IGN)  # as nohup does
        catch_ending()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@pytest.mark.parametrize("what", ["the lock", "the partial file"])
def test_a_signal_while_a_file_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Ctrl-C at the moment when the first hidden file has come to be leaves none."""
    owner: Any = FileLock if what == "the lock" else Path
    name = "acquire" if what == "the lock" else "open"
    original = getattr(owner, name)

    def then_interrupted(*arguments: Any, **options: Any) -> Any:
        found = original(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(owner, name, then_interrupted)
    with pytest.raises(KeyboardInterrupt), Publication() as result:
        result.add(tmp_path / "a.gguf")
    with pytest.raises(KeyboardInterrupt), OutputFile(tmp_path / "b.gguf"):
        raise AssertionError("not reached")
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("old", [False, True], ids=["fresh", "overwriting"])
def test_disk_full_at_every_tenth(tmp_path: Path, old: bool) -> None:
    """Of texts that are published together, as a report's four forms are."""
    texts = {tmp_path / f"r.{i}": "x" * (1000 * i) for i in range(1, 5)}
    for path in texts if old else ():
        path.write_text("old")
    before = there(tmp_path)
    for tenth in range(10):
        with largest_file(400 * tenth), pytest.raises(IoFault, match="ulimit -f"):
            write_texts(texts)
        assert there(tmp_path) == before
        assert hidden(tmp_path) == []
    write_texts(texts)
    assert there(tmp_path) == {path.name: text for path, text in texts.items()}


def test_no_room_for_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if ".pending" in self.name and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opening(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(IoFault, match="disk is full"):
        publish(tmp_path, overwrite=False)
    assert there(tmp_path) == {}
    assert hidden(tmp_path) == []
