"""Records: dataclasses as JSON, written by `to_json` and read back, checked, by `from_json`."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache, partial
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import DataError

MAX_INTEGER = 1 << 63

T = TypeVar("T")


class Foreign:
    """What dataclasses of other programs' JSON derive from: fields that they do not name are left out."""


def along(name: str) -> dict[str, str]:
    """The metadata of a field that stands in the JSON wherever the field `name` is not None."""
    return {"along": name}


def to_json(record: Any) -> dict[str, Any]:
    """A dataclass as the JSON object that `from_json` reads: its fields in their order.

    A field that is None by default is left out where it is None, or with `along` where that other field is.
    """
    return {f.name: _plain(getattr(record, f.name)) for f in fields(record) if _is_there(record, f)}


def _is_there(record: Any, f: Field[Any]) -> bool:
    return f.default is not None or getattr(record, f.metadata.get("along", f.name)) is not None


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def from_json(value: Any, kind: type[T], where: str) -> T:
    """A JSON value as `kind`: a dataclass, a plain type, Any, or a tuple, dict or union of them.

    Raises DataError, which begins with `where` and the place in the value, for a field that the dataclass has not
    (unless it derives from `Foreign`), one without a default that is missing, and a value of another type: of numbers,
    only finite ones of 64 bits. Lists become tuples, whole numbers floats where floats are expected.
    """
    found: T = _reader(kind)(value, where)  # type: ignore[arg-type]  # to mypy a class is not hashable
    return found


# A function for each type, made once: a run has a hundred thousand lines
@cache
def _reader(kind: Any) -> Callable[[Any, str], Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        readers = {f.name: _reader(hints[f.name]) for f in fields(kind)}
        needed = [f.name for f in fields(kind) if f.default is MISSING]
        names = None if isinstance(kind, type) and issubclass(kind, Foreign) else readers.keys()
        return lambda value, where: kind(**_read_fields(value, readers, needed, names, where))  # type: ignore[operator]
    if origin in (Union, types.UnionType):
        others = [a for a in arguments if a is not types.NoneType]
        plain, last = {a: _reader(a) for a in others[:-1]}, _reader(others[-1])
        none = len(others) < len(arguments)
        expected = " or ".join(map(_word, others)) if plain else ""
        fits = _JSON_TYPE.get(get_origin(others[-1]))

        def read(value: Any, where: str) -> Any:
            if none and value is None:
                return None
            if expected and type(value) not in plain and fits and type(value) is not fits:
                raise DataError(f"{where}: is {_short(value)}, expected {expected}")
            return plain.get(type(value), last)(value, where)

        return read
    if origin in (tuple, dict):
        return partial(_read_list if origin is tuple else _read_dict, _reader(arguments[0 if origin is tuple else 1]))
    return partial(_read_plain, kind)


def _read_fields(
    value: Any,
    readers: dict[str, Callable[[Any, str], Any]],
    needed: list[str],
    names: Collection[str] | None,
    where: str,
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: is {_short(value)}, expected an object")
    for name in value:
        if names is not None and name not in names:
            raise DataError(
                f"{where}: has an unknown field {_short(name)}; was it edited, or written by a newer jmedlite?"
            )
    for name in needed:
        if name not in value:
            raise DataError(f"{where}: has no {name}")
    return {name: readers[name](v, f"{where}: {name}") for name, v in value.items() if name in readers}


def _read_list(reader: Callable[[Any, str], Any], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}: is {_short(value)}, expected a list")
    return tuple(reader(v, f"{where}[{i}]") for i, v in enumerate(value))


def _read_dict(reader: Callable[[Any, str], Any], value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: is {_short(value)}, expected an object")
    return {k: reader(v, f"{where}: {k}") for k, v in value.items()}


def _read_plain(kind: Any, value: Any, where: str) -> Any:
    if type(value) is kind or kind is Any:
        if (kind is int and not -MAX_INTEGER <= value < MAX_INTEGER) or (kind is float and not math.isfinite(value)):
            raise DataError(f"{where}: is {_short(value)}, expected a number of 64 bits")
        return value
    if kind is float and type(value) is int and -MAX_INTEGER <= value < MAX_INTEGER:
        return float(value)
    raise DataError(f"{where}: is {_short(value)}, expected {_WORDS[kind]}")


_JSON_TYPE: dict[Any, type] = {tuple: list, dict: dict}


def _word(kind: Any) -> str:
    return {tuple: "a list", dict: "an object"}.get(get_origin(kind)) or _WORDS.get(kind, "an object")


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "something deep"
    return text if len(text) <= 40 else text[:40] + "…"
