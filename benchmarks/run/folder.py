"""Run folder, written: what a run is about, once, and results, appended; format: docs/runs.md."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from jmedlite.base.errors import CannotCreate, DataError, system_fault
from jmedlite.base.halves import has_halves
from jmedlite.base.inputs import MAX_INDEX, opened, read_bytes
from jmedlite.base.looking import exists
from jmedlite.base.outputs import Lock, make_folder
from jmedlite.base.publishing import take_back, write_texts
from jmedlite.base.records import from_json, to_json
from jmedlite.base.signals import kept_back
from jmedlite.benchmarks.records import FORMAT, VERSION, AnswerKey, AnswerRecord, QuestionRecord
from jmedlite.benchmarks.views import primary_view

RUN, QUESTIONS, ITEMS = "run.json", "questions.jsonl", "items.jsonl"
MEASURES, NOISE, DISTANCE = "measures.jsonl", "noise.jsonl", "distance.jsonl"
# what a resumed run may find changed: nothing that a score depends on
FREE = {("created",), ("settings", "rounds"), ("machine", "system"), ("machine", "ram_bytes"), ("machine", "gpus")}
# facts of a model that follow from its file, and are not in runs of before they were kept, or were found otherwise
OF_FILES = {"base", "quantized_base", "label", "made_here", "quantized_by", "matrix", "types", "tensor_types"}
SHOWN = 4  # changes named in a message

T = TypeVar("T")


def dumps(value: Any) -> str:
    """One line of a `.jsonl` file, of a record or plain JSON; the same text for the same value."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=to_json)


class RunFolder:
    """An open run folder; a context manager, and the only one who writes there meanwhile.

    `document` is `run.json` (but for its format and version), `questions` the lines of `questions.jsonl`, `keys` those
    of all results in their order; `check` is called before anything is appended, and may raise. A folder that holds the
    beginning of the same run is resumed. Raises DataError where it is another run, Busy where another process writes
    it.
    """

    def __init__(
        self,
        folder: Path,
        document: Mapping[str, Any],
        questions: Sequence[QuestionRecord],
        keys: Sequence[AnswerKey],
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._check = check
        self.folder, self.document, self.keys = folder, {"format": FORMAT, "version": VERSION, **document}, keys
        self.questions = "".join(dumps(q) + "\n" for q in questions)
        self.n_items = 0  # results that are there
        self.resumed = False

    def __enter__(self) -> RunFolder:
        folder = self.folder
        make_folder(folder)
        self._files: dict[str, BinaryIO] = {}
        with ExitStack() as stack:
            with kept_back():
                stack.enter_context(Lock(folder, folder / ".lock"))
            stack.callback(self._close_files)
            self._begin()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()

    # ----------------------------------------------------------------------------------------------- beginning

    def _begin(self) -> None:
        run = self.folder / RUN
        for path in (self.folder / QUESTIONS, run):
            take_back(path)  # of a run that died while it wrote them
        if exists(run):
            self._check_same(run)
            self.resumed = True
        else:
            others = sorted(p.name for p in self.folder.iterdir() if not p.name.startswith("."))
            if others:
                raise CannotCreate(
                    f"{self.folder}: holds {others[0]} but no {RUN}, so it is no run folder; choose an empty --out"
                )
            document = json.dumps(self.document, ensure_ascii=False, indent=1) + "\n"
            write_texts({self.folder / QUESTIONS: self.questions, run: document})
        self.n_items = self._count_items()

    def _check_same(self, run: Path) -> None:
        raw = read_bytes(run, MAX_INDEX)
        try:
            there = json.loads(raw)
        except (ValueError, RecursionError):
            raise DataError(f"{run}: is damaged (no JSON); choose another --out") from None
        if not isinstance(there, dict) or (there.get("format"), there.get("version")) != (FORMAT, VERSION):
            raise DataError(f"{run}: is no run of format {VERSION}; choose another --out")
        now = json.loads(json.dumps(self.document))
        _declare(there)
        _declare(now)
        changed = [c for c in document_differences(there, now) if not _is_free(c[0])]
        if changed:
            named = "; ".join(f"{'.'.join(map(str, at))} was {old}, is {new}" for at, old, new in changed[:SHOWN])
            more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise DataError(
                f"{self.folder}: holds another run ({named}{more}); repeat that one to resume it, or choose another "
                "--out"
            )
        questions = self.questions.encode("utf-8")
        with opened(self.folder / QUESTIONS) as file:
            same = file.read(len(questions) + 1) == questions
        if not same:
            raise DataError(f"{self.folder / QUESTIONS}: the questions are not those of this run; choose another --out")

    def _count_items(self) -> int:
        """How many whole, expected results are there; a torn last line is dropped."""
        path = self.folder / ITEMS
        if not exists(path):
            return 0
        n = size = 0
        with opened(path) as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                key = _key(_parsed(line, path, n + 1))
                if n >= len(self.keys) or key != self.keys[n]:
                    expected = self.keys[n] if n < len(self.keys) else "nothing more"
                    raise DataError(
                        f"{path}, line {n + 1}: is the result of {key}, expected {expected}; was it edited?"
                    )
                n, size = n + 1, size + len(line)
        self._truncate(path, size)
        return n

    def _truncate(self, path: Path, size: int) -> None:
        try:
            if path.stat().st_size != size:
                os.truncate(path, size)
        except OSError as e:
            raise system_fault(e, path, "writing") from None

    # ------------------------------------------------------------------------------------------------- results

    def keep_items(self, n: int) -> None:
        """Drop all but the first `n` results: a pack that was cut is evaluated again as a whole."""
        if n >= self.n_items:
            return
        assert ITEMS not in self._files
        path = self.folder / ITEMS
        with opened(path) as file:
            size = sum(len(file.readline()) for _ in range(n))
        self._truncate(path, size)
        self.n_items = n

    def items(self, start: int, stop: int | None = None) -> list[AnswerRecord]:
        """The results that are there, from number `start` to before `stop`."""
        lines = islice(enumerate(read_lines(self.folder / ITEMS), 1), start, stop)
        return [from_json(line, AnswerRecord, f"{self.folder / ITEMS} line {n}") for n, line in lines]

    def add_items(self, results: Sequence[AnswerRecord]) -> None:
        """Append results, in one write that is on the disk when this returns."""
        assert [r.key for r in results] == list(self.keys[self.n_items : self.n_items + len(results)])
        self.append(ITEMS, *results)
        self.n_items += len(results)

    def append(self, name: str, *values: Any) -> None:
        """Append records to one of the `.jsonl` files. Raises IoFault where the disk is full; what was there stays."""
        self._check()
        path = self.folder / name
        try:
            if name not in self._files:
                self._mend(path)
                self._files[name] = path.open("ab", buffering=0)
            file = self._files[name]
            data = memoryview("".join(dumps(v) + "\n" for v in values).encode("utf-8"))
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError as e:
            raise system_fault(e, path, "writing") from None

    def _mend(self, path: Path) -> None:
        """Cut a torn last line off."""
        if exists(path):
            with opened(path) as file:
                whole = sum(len(line) for line in file if line.endswith(b"\n"))
            self._truncate(path, whole)

    def records(self, name: str, kind: type[T]) -> list[T]:
        """What one of the `.jsonl` files holds."""
        path = self.folder / name
        return [from_json(line, kind, f"{path} line {n}") for n, line in enumerate(read_lines(path), 1)]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a `.jsonl` file; none where there is no file. Raises DataError for one that is damaged."""
    if exists(path):
        with opened(path) as file:
            for n, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield _parsed(line, path, n)


def _is_free(at: tuple[str, ...]) -> bool:
    """Whether a resumed run may differ there."""
    return at in FREE or (at[:1] == ("models",) and len(at) > 2 and at[2] in OF_FILES)


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """`AnswerRecord.key` of a line that may be damaged."""
    return tuple(line.get(k) for k in ("model", "task", "method", "permutation", "id"))


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
        found = None if has_halves(line, found) else found
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(
            f"{path}, line {number}: is damaged (no JSON object); remove the folder, or choose another --out"
        )
    return found


def _declare(document: dict[str, Any]) -> None:
    """Give a run from before primary analyses were declared the one that its report goes by."""
    settings, asks = document.get("settings"), document.get("asks")
    if isinstance(settings, dict) and isinstance(asks, list) and asks:
        methods = [str(ask.get("method")) for ask in asks if isinstance(ask, dict)]
        settings.setdefault("primary", primary_view(None, methods).name)


def document_differences(old: Any, new: Any, at: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], str, str]]:
    """(path, old, new) wherever two JSON documents differ; entries of lists go by their names where they have them."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from document_differences(old.get(key), new.get(key), (*at, key))
    elif _named(old) and _named(new) and list(_named(old)) == list(_named(new)):
        for name, entry in _named(old).items():
            yield from document_differences(entry, _named(new)[name], (*at, name))
    elif old != new:
        yield at, _short(old), _short(new)


def _named(value: Any) -> dict[str, Any]:
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        names = [v.get("name") or f"{v.get('task')}/{v.get('method')}" for v in value]
        if len(set(names)) == len(names):
            return dict(zip(names, value, strict=True))
    return {}


def _short(value: Any) -> str:
    if _named(value):
        return ", ".join(_named(value))
    text = dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
