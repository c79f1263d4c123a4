"""Loading tasks (`--task T[=PATH]`): a known task's files, local or from the Hub, or any other file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import jmedlite
from jmedlite.base.errors import DataError, InputMissing, UsageError
from jmedlite.base.hub import fetch_data
from jmedlite.base.inputs import reading
from jmedlite.base.looking import exists, is_dir, is_file
from jmedlite.base.outputs import sha256_file

from . import formats, igakuqa
from .checking import BadRow, collect, only_five, own
from .formats import MEDICAL_SUBJECTS, MMLU_COLUMNS
from .items import Dataset, Item, Left
from .registry import TASKS, Task
from .rows import SUFFIXES, Row, csv_rows, need_pyarrow, read_file, read_rows, zip_members

EXAMPLE_POOL = 1000  # rows read of a split that is only there for few-shot examples


@dataclass(frozen=True)
class _File:
    """A file to read and what it is called in messages and in the run's record."""

    path: Path
    label: str


def load_task(
    spec: str,
    languages: Sequence[str] = (),
    *,
    skip_bad: bool = False,
    five_choice: bool = False,
    with_examples: bool = False,
    revision: str | None = None,
) -> list[Dataset]:
    """The data sets of `NAME`, `NAME=PATH` or `PATH`, one per language.

    `languages` keeps those of them; `with_examples` also reads (and downloads) the split that few-shot examples come
    from; `revision` replaces the pinned one on the Hub. Raises UsageError for an unknown task or a language that it
    doesn't have, DataError for a bad row (which `skip_bad` leaves out and counts), InputMissing, Unavailable and
    NotPermitted for files.
    """
    name, path = _split(spec)
    task = TASKS.get(name)
    if revision is not None and (path is not None or task is None or not task.repo):
        raise UsageError(f"--task {spec} with a revision: only what comes from the Hub has revisions")
    if name == "igakuqa":
        if path is None:
            raise not_downloaded(TASKS[name])
        found = igakuqa.load_igakuqa(path, languages, skip_bad)
    elif task is not None and (task.repo or task.clone):
        found = [_published(task, path, skip_bad, with_examples, revision or task.revision)]
    else:
        found = _own(name, path or _demo(), skip_bad)
    return [_finished(d, five_choice) for d in _of_languages(found, languages, spec)]


def _split(spec: str) -> tuple[str, Path | None]:
    """NAME, NAME=PATH or PATH as (name, path)."""
    if spec in TASKS:
        return spec, None
    name, equals, rest = spec.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", name) and not exists(Path(spec)):
        if not rest:
            raise UsageError(f"--task {spec}: has no path after the =")
        return name, Path(rest).expanduser()
    path = Path(spec).expanduser()
    if path.suffix.lower() in SUFFIXES or (spec and exists(path)):
        return path.stem, path
    raise UsageError(f"--task {spec}: no such task or file; known are {', '.join(TASKS)}, or NAME=FILE.jsonl")


def _demo() -> Path:
    path = Path(jmedlite.__file__).parent / "demo" / "questions.jsonl"
    if not is_file(path):
        raise InputMissing(f"{path}: the demo's questions are not installed; install jmedlite again")
    return path


# ------------------------------------------------------------------------------------------ published data sets


def _published(task: Task, path: Path | None, skip_bad: bool, with_examples: bool, revision: str) -> Dataset:
    details = None
    if path is None:
        if task.clone:
            raise not_downloaded(task)
        named = (task.details,) if task.details else ()
        wanted = (*task.test, *named, *(task.examples if with_examples else ()))
        if any(name.endswith(".parquet") for name in wanted):
            need_pyarrow()  # before anything is downloaded
        fetched = fetch_data(task.repo, revision, wanted)
        test = [_File(fetched.path / name, name) for name in task.test]
        train = [_File(fetched.path / name, name) for name in task.examples] if with_examples else []
        details = _File(fetched.path / task.details, task.details) if task.details else None
        commit = fetched.revision
    else:
        test, commit = _local(task, path), None
        details = _details(task, path)
        train = _local_examples(task, path) if with_examples else []
    items, left = _read(task, test, details, skip_bad)
    return Dataset(
        name=f"{task.name}-{task.lang}",
        task=task.name,
        lang=task.lang,
        title=task.title,
        items=tuple(items),
        left=tuple(left),
        examples=_examples(task, train),
        source=task.source,
        revision=commit,
        license=task.license,
        date=task.date,
        files=_hashed((*test, *([details] if details else []), *train)),
    )


def not_downloaded(task: Task) -> InputMissing:
    """What to say where no path was given and the questions are on GitHub."""
    folder = task.clone.rpartition("/")[2]
    at = f" (commit {task.revision[:12]})" if task.revision else ""
    return InputMissing(
        f"{task.name} is not downloaded: its questions are on GitHub; git clone {task.source}{at}, then --task "
        f"{task.name}={folder}"
    )


def _read(task: Task, files: Iterable[_File], details: _File | None, skip_bad: bool) -> tuple[list[Item], list[Left]]:
    """Ids are unique over all of the files."""
    parse = task.parse
    if task.parse_with is not None and details is not None:
        parse = task.parse_with(read_file(details.path, details.label), details.label)
    if parse is not None:
        found = collect((row for f in files for row in read_rows(f.path, f.label)), parse, skip_bad)
        if task.parse is formats.medmcqa:
            formats.check_counting(found[0], task.name)
        return found
    items: list[Item] = []
    left: list[Left] = []
    for label, rows in _by_subject(files):
        more, faults = collect(rows, formats.mmlu(task.lang, label), skip_bad)
        items += more
        left += faults
    return items, left


def _by_subject(files: Iterable[_File]) -> Iterator[tuple[str, Iterator[Row]]]:
    """MMLU's and JMMLU's files, those of an archive one by one."""
    for file in files:
        if file.path.suffix.lower() == ".zip":
            for name, raw in zip_members(file.path, [f"{s}.csv" for s in MEDICAL_SUBJECTS]).items():
                yield name, csv_rows(raw, f"{file.label}/{name}", MMLU_COLUMNS)
        else:
            yield file.label, read_rows(file.path, file.label, MMLU_COLUMNS)


def _examples(task: Task, files: Sequence[_File]) -> tuple[Item, ...]:
    """The first rows of a split that is not scored; what is no item is passed over, since nothing is counted there."""
    found = []
    for file in files:
        parse = task.parse or formats.mmlu(task.lang, file.label)
        for row in islice(read_rows(file.path, file.label, MMLU_COLUMNS), EXAMPLE_POOL):
            try:
                item = None if row.fault else parse(row)
            except BadRow:
                continue
            if isinstance(item, Item):
                found.append(replace(item, id=f"example-{item.id}"))
    return tuple(found)


def _local(task: Task, path: Path) -> list[_File]:
    """The file itself, or the task's files in a folder that is laid out as on the Hub or as its authors publish it."""
    with reading(path):
        path.stat()
    if not is_dir(path):
        return [_File(path, f"{path.parent.name}/{path.name}" if formats.subject_in(path.parent.name) else path.name)]
    for names in (task.test, *_other_names(task)):
        if files := _find(path, names):
            return files
    expected = " or ".join(dict.fromkeys(names[0] for names in (task.test, *_other_names(task))))
    more = f", and so for {', '.join(MEDICAL_SUBJECTS)}" if not task.own_rows else ""
    raise InputMissing(f"{path}: has no {expected}{more}; expected a copy of {task.source}")


def _details(task: Task, path: Path) -> _File | None:
    """The file that says more of the rows: below the folder that was given, or beside the file or its folder."""
    if not task.details:
        return None
    folders = [path] if is_dir(path) else [path.parent, path.parent.parent]
    for folder in folders:
        if is_file(folder / task.details):
            return _File(folder / task.details, task.details)
        if files := _find(folder, [task.details]) if is_dir(path) else []:
            return files[0]
    raise InputMissing(f"{path}: has no {task.details} beside it; expected a copy of {task.source}")


def _local_examples(task: Task, path: Path) -> list[_File]:
    folder = path if is_dir(path) else path.parent
    by_subject = not task.own_rows
    names = [task.examples, tuple(f"{s}_dev.csv" for s in MEDICAL_SUBJECTS)] if by_subject else [task.examples]
    return next((files for n in names if n and (files := _find(folder, n))), [])


def _other_names(task: Task) -> list[tuple[str, ...]]:
    """Each of `local`, once for all subjects where it has a place for them."""
    return [tuple(n.format(s) for s in MEDICAL_SUBJECTS) if "{}" in n else (n,) for n in task.local]


def _find(folder: Path, names: Sequence[str]) -> list[_File]:
    """All of the names below a folder, or none; the folder may also be the one that directly holds the file."""
    found = []
    for name in names:
        places = sorted(p for p in folder.rglob(name) if is_file(p))
        if not places and len(names) == 1 and is_file(folder / Path(name).name):
            places = [folder / Path(name).name]
        if not places:
            return []
        if len(places) > 1:
            raise UsageError(f"{folder}: has {len(places)} files {name}; give the path of the one to use")
        found.append(_File(places[0], name))
    return found


# ------------------------------------------------------------------------------------------------- any other file


def _own(name: str, path: Path, skip_bad: bool) -> list[Dataset]:
    """A file in the project's own format: a data set for each language in it."""
    file = _File(path, path.name)
    items, left = collect(read_rows(path, file.label), own, skip_bad)
    if not items:
        raise DataError(f"{path}: has no question that can be asked ({len(left)} rows left out)")
    files = _hashed([file])
    found: list[Dataset] = []
    for lang in sorted({item.lang for item in items}, key=("ja", "en").index):
        found.append(
            Dataset(
                name=name if name.endswith(f"-{lang}") else f"{name}-{lang}",
                task=name,
                lang=lang,
                title=TASKS[name].title if name in TASKS else name,
                items=tuple(item for item in items if item.lang == lang),
                left=() if found else tuple(left),  # a row that can't be read has no language; it is counted once
                source="built in" if name == "demo" else path.name,
                license=TASKS[name].license if name in TASKS else None,
                files=files,
            )
        )
    return found


def _hashed(files: Iterable[_File]) -> tuple[dict[str, Any], ...]:
    found = []
    for file in files:
        found.append({"name": file.label, "sha256": sha256_file(file.path)})
    return tuple(found)


def _of_languages(found: Sequence[Dataset], languages: Sequence[str], spec: str) -> list[Dataset]:
    kept = [d for d in found if not languages or d.lang in languages]
    if not kept:
        has = " and ".join(d.lang for d in found)
        raise UsageError(f"--task {spec} --lang {' '.join(languages)}: the task has only {has}")
    return kept


def _finished(dataset: Dataset, five_choice: bool) -> Dataset:
    items, left = only_five(dataset.items) if five_choice else (list(dataset.items), [])
    if not items:
        reasons = ", ".join(sorted({entry.reason for entry in (*dataset.left, *left)})[:3])
        raise DataError(f"{dataset.name}: has no question that can be asked ({reasons or 'it has no rows'})")
    examples = tuple(e for e in dataset.examples if not five_choice or len(e.choices) == 5)
    return replace(dataset, items=tuple(items), left=(*dataset.left, *left), examples=examples)
