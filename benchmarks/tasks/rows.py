"""Rows of the files that tasks come in (JSON lines, JSON, CSV, parquet, CSV in a zip), each with its place."""

from __future__ import annotations

import csv
import io
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.halves import HALF, has_halves
from jmedlite.base.inputs import MAX_VALUES, open_file, opened
from jmedlite.runtime.bounded import limited_memory

MAX_BYTES = 256 << 20  # of a file, and of what a compressed one unpacks to; the largest test split has 6 MB
MAX_ROW_BYTES = 1 << 20
MEMORY = 2 << 30  # bytes of address space, which pyarrow reserves far more of than it takes
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".zip")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One row: its place ("q.jsonl, line 3"), its number from 1, and its fields, or why it can't be read."""

    place: str
    number: int
    fields: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None


def read_rows(path: Path, label: str, columns: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a file by its suffix; `label` is its name in messages, `columns` those of a CSV without header.

    A row that can't be read comes with its fault. Raises DataError for what spoils the whole file, InputMissing and
    NotPermitted, and UsageError for an unknown suffix or a missing pyarrow.
    """
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            rows = json_lines(read_file(path, label), label)
        case ".json":
            rows = _json(read_file(path, label), label)
        case ".csv":
            rows = csv_rows(read_file(path, label), label, columns)
        case ".parquet":
            rows = _parquet(path, label)
        case _:
            with opened(path):
                raise UsageError(f"{path}: expected a file that ends with {', '.join(SUFFIXES[:-1])}")
    return rows


def read_file(path: Path, label: str) -> bytes:
    """All of a file; raises DataError for one that is empty or larger than a task."""
    with opened(path) as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise DataError(f"{label}: has more than {MAX_BYTES:,} bytes, expected the questions of one task")
    if not raw.strip():
        raise DataError(f"{label}: is empty, expected one question a line")
    return raw


def json_lines(raw: bytes, label: str) -> Iterator[Row]:
    """The rows of JSON lines, blank ones passed over."""
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            yield _object(line, f"{label}, line {number}", number)


def _object(line: bytes, place: str, number: int) -> Row:
    if number == 1 and line.startswith(_BOM):
        # RFC 8259 forbids it, and readers differ in what they do with it
        return Row(place, number, fault="starts with a byte order mark (BOM), expected UTF-8 without one")
    if len(line) > MAX_ROW_BYTES:
        return Row(place, number, fault=f"has {len(line):,} bytes, more than the {MAX_ROW_BYTES:,} of a question")
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as e:
        return Row(place, number, fault=f"is not UTF-8 (byte {e.start + 1} of the line)")
    except json.JSONDecodeError as e:
        return Row(place, number, fault=f"is not JSON ({e.msg} at column {e.colno})")
    except (ValueError, RecursionError) as e:
        return Row(place, number, fault=f"is not JSON ({str(e).splitlines()[0]})")
    if has_halves(line, value):
        return Row(place, number, fault=f"holds {HALF}, expected whole ones")
    return _row(value, place, number)


def _row(value: Any, place: str, number: int) -> Row:
    if not isinstance(value, dict):
        return Row(place, number, fault=f"is {_kind(value)}, expected an object with the fields of one question")
    return Row(place, number, value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _json(raw: bytes, label: str) -> Iterator[Row]:
    """A list of objects, an object of objects by id (PubMedQA's own release), or, under this suffix too, lines."""
    if raw.startswith(_BOM):
        raise DataError(f"{label}, line 1: starts with a byte order mark (BOM), expected UTF-8 without one")
    if raw.count(b",") > MAX_VALUES:
        raise DataError(f"{label}: has over {MAX_VALUES:,} values, too much for one JSON; give JSON lines (.jsonl)")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as e:
        raise DataError(f"{label}, line {_line(raw, e.start)}: is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as e:
        if e.msg != "Extra data":
            raise DataError(f"{label}, line {e.lineno}: is not JSON ({e.msg} at column {e.colno})") from None
        yield from json_lines(raw, label)
        return
    except (ValueError, RecursionError) as e:
        raise DataError(f"{label}: is not JSON ({str(e).splitlines()[0]})") from None
    if has_halves(raw, value):
        raise DataError(f"{label}: holds {HALF}, expected whole ones")
    if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
        value = [{"id": key, **entry} for key, entry in value.items()]
    if not isinstance(value, list):
        value = [value]
    for number, entry in enumerate(value, 1):
        yield _row(entry, f"{label}, entry {number}", number)


def _line(raw: bytes, position: int) -> int:
    return raw.count(b"\n", 0, position) + 1


def csv_rows(raw: bytes, label: str, columns: Sequence[str] = ()) -> Iterator[Row]:
    """CSV with a header row, or without one where `columns` names its cells. A BOM is fine: spreadsheets write one."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{label}, line {_line(raw, e.start)}: is not UTF-8; save the file as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names, line, number = list(columns), 1, 0
    try:
        for cells in reader:
            place, line = f"{label}, line {line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not number and "question" in (heads := [cell.strip() for cell in cells]):
                names = heads
                continue
            number += 1
            if not names:
                raise DataError(f"{place}: is no header, expected column names, among them question and answer")
            if len(cells) != len(names):
                yield Row(place, number, fault=f"has {len(cells)} cells, expected {len(names)} ({', '.join(names)})")
            else:
                yield Row(place, number, dict(zip(names, cells, strict=True)))
    except csv.Error as e:
        raise DataError(f"{label}, line {reader.line_num}: is not CSV ({e})") from None


def need_pyarrow() -> None:
    """Raises UsageError where parquet files can't be read."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UsageError(
            'reading parquet files needs pyarrow: pip install "jmedlite[parquet]", or give a .jsonl, .json or .csv file'
        ) from None


def _parquet(path: Path, label: str) -> Iterator[Row]:
    with opened(path):
        need_pyarrow()
    import pyarrow

    try:
        with limited_memory(MEMORY):
            rows = _read_parquet(path, label)
    except MemoryError:
        raise DataError(f"{label}: takes more than {MEMORY:,} bytes of memory to unpack, too much for a task") from None
    # the last two: durations and times that Python has no value for, names of no time zone
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise DataError(f"{label}: is not a parquet file that can be read ({reason})") from None
    yield from (Row(f"{label}, row {number}", number, fields) for number, fields in enumerate(rows, 1))


def _read_parquet(path: Path, label: str) -> list[dict[str, Any]]:
    """All rows. A dictionary has one value for many rows, and sizes are the file's own word: both are counted."""
    import pyarrow.parquet

    rows: list[dict[str, Any]] = []
    with open_file(path) as raw, pyarrow.parquet.ParquetFile(raw) as file:
        n_bytes = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if n_bytes > MAX_BYTES:
            raise DataError(f"{label}: unpacks to {n_bytes:,} bytes, more than the {MAX_BYTES:,} of a task")
        n_bytes = 0
        for batch in file.iter_batches(batch_size=8, use_threads=False):
            n_bytes += batch.nbytes
            if n_bytes > MAX_BYTES:
                raise DataError(f"{label}: unpacks to more than the {MAX_BYTES:,} bytes of a task")
            rows += batch.to_pylist()
    return rows


# all that zipfile and what it decompresses with let through
_BAD_ZIP = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error, zlib.error,
    lzma.LZMAError,
)  # fmt: skip


def zip_members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The files of these names from an archive, from its `test` folder where there are several; nothing is unpacked.

    Raises DataError for what is no zip archive, lacks one of them, or is larger than a task.
    """
    found: dict[str, bytes] = {}
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            for name in names:
                # archives made on a Mac hold a second entry ._NAME for each file
                places = [i for i in archive.infolist() if PurePosixPath(i.filename).name == name]
                places.sort(key=lambda i: PurePosixPath(i.filename).parent.name != "test")
                if not places:
                    raise DataError(f"{path.name}: holds no {name}, expected {', '.join(names)}")
                if places[0].file_size > MAX_BYTES:
                    raise DataError(
                        f"{path.name}: {name} unpacks to {places[0].file_size:,} bytes, too much for a task"
                    )
                try:
                    with archive.open(places[0]) as member:
                        found[name] = member.read(MAX_BYTES)
                except OSError as e:  # as bz2 calls damage; the disk's own faults are told in the same words
                    raise zipfile.BadZipFile(str(e)) from None
    except _BAD_ZIP as e:
        raise DataError(f"{path.name}: is not a zip archive that can be read ({e})") from None
    return found


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
