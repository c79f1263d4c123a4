"""JSON schema: what of one is understood, and its form for the grammar: every keyword kept, refused by name, or named.

llguidance makes the grammar (schema_mask.py). It passes over some of what a schema says, and takes some of it otherwise
than a validator does, so it is given only what means the same to both. Drafts 4 to 2020-12.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, NoReturn
from urllib.parse import unquote

from jmedlite.base.errors import DataError

Json = Any
Path = tuple[str, ...]  # keys and indices from the root

MOST_LEVELS = 100  # of arrays and objects within each other; the grammar's JSON reader takes 128
MOST_SCHEMAS = 20_000
LONGEST_PATTERN = 5_000  # characters
LARGEST_COUNT = (1 << 32) - 1  # of characters, items, properties
SMALLEST_STEP = 0.001
LARGEST_FRACTION = 10**12  # beyond, floats do not tell all multiples of a step with decimals apart
LARGEST_STEP = 1_000_000  # of multipleOf: the grammar has as many states
LARGEST_STEP_PRODUCT = (1 << 32) - 1
LARGEST_EXACT = 1 << 53  # whole numbers beyond are rounded by the grammar, and by many a reader of the answer
SIGNIFICANT = 15  # decimal digits that a float keeps

DRAFTS = {"draft-04": 4, "draft-06": 6, "draft-07": 7, "2019-09": 2019, "2020-12": 2020}
TYPES = ("null", "boolean", "number", "integer", "string", "array", "object")

ANNOTATIONS = frozenset((
    "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment", "$defs",
    "definitions", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "contentMediaType", "contentEncoding", "contentSchema",
))  # fmt: skip
JOINING = frozenset(("$ref", "allOf", "anyOf", "oneOf"))
CASES = "write the cases that are allowed as `anyOf`"
UNSUPPORTED = {
    "not": "write what is allowed instead, with `enum` or `anyOf`",
    "if": CASES, "then": CASES, "else": CASES,
    "dependentRequired": CASES, "dependentSchemas": CASES, "dependencies": CASES,
    "contains": "give the items one by one, with `prefixItems`",
    "minContains": "give the items one by one, with `prefixItems`",
    "maxContains": "give the items one by one, with `prefixItems`",
    "uniqueItems": "leave it out and check the answer, or name a property for each item",
    "propertyNames": 'use `patternProperties` with `"additionalProperties": false`',
    "unevaluatedProperties": "list all properties in one place and use `additionalProperties`",
    "unevaluatedItems": "use `prefixItems` and `items` in one place",
    "$dynamicRef": "use `$ref`", "$recursiveRef": "use `$ref`",
    "extends": "use `allOf`", "disallow": "write what is allowed instead", "divisibleBy": "use `multipleOf`",
}  # fmt: skip
# where these say nothing, nothing is lost
HARMLESS: dict[str, tuple[Json, ...]] = {
    "uniqueItems": (False,), "unevaluatedProperties": (True, {}), "unevaluatedItems": (True, {}),
    "dependentRequired": ({},), "dependentSchemas": ({},), "dependencies": ({},), "propertyNames": (True, {}),
}  # fmt: skip

_DAY = (  # the 29th of February in leap years only, and no year that some calendars lack
    r"(?:[1-9]\d{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))"
    r"|(?:[1-9]\d(?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
# llguidance knows these three too, but lets 30 February's neighbours and leap seconds of any minute through
EXACT_FORMATS = {"date": f"^{_DAY}$", "time": f"^{_TIME}$", "date-time": f"^{_DAY}T{_TIME}$"}
FORMATS = (*EXACT_FORMATS, "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")

# a pattern's pieces that mean the same in ECMA 262 and in the grammar; nested classes and `&&`, `--`, `~~` do not
_PIECE = re.compile(
    r"(?P<class>\[\^?(?:[^\\\[\]&~-]|\\.|&(?!&)|~(?!~)|-(?!-))+\])"
    r"|(?P<escape>\\(?:u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|[pP]\{[A-Za-z_=]+\}|.))"
    r"|(?P<group>\((?:\?(?::|<[A-Za-z]\w*>))?(?!\?))"
    r"|(?P<times>(?:[*+?]|\{\d+(?:,\d*)?\})\??(?![*+?{]))"
    r"|(?P<dot>\.)"
    r"|(?P<plain>[^\\\[\](){}*+?.])"
    r"|(?P<close>\))",
    re.DOTALL,
)
_ESCAPES = frozenset("dDwWsSnrtfv") | frozenset("^$\\.*+?()[]{}|/-_!\"#%&',:;<=>@`~ ")
_SPACES = r" \t\n\r\f\v"


@dataclass(frozen=True)
class JsonSchema:
    """A schema as the grammar takes it; `warnings` are sentences about what of it does nothing.

    `parts` are the places of the schema that was given, innermost first, with their form here.
    """

    form: dict[str, Json]
    parts: tuple[tuple[str, Json], ...]
    warnings: tuple[str, ...]


def read_schema(text: str) -> JsonSchema:
    """A schema from its text; raises DataError that names what can't be followed, where, and what to do instead."""
    try:
        root = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_object, parse_constant=_constant)
        return _Reader(root).read()
    except RecursionError:
        raise _fault("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise _fault("it has half a character (a lone surrogate such as \\ud800)") from None
    except ValueError as e:
        raise _fault(f"it is not JSON ({e})") from None


def _fault(what: str) -> DataError:
    return DataError(f"the JSON schema can't be used: {what}")


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [k for k, _ in pairs]
        raise _fault(f"an object has the key {json.dumps(next(k for k in keys if keys.count(k) > 1))} twice; keep one")
    return found


def _constant(name: str) -> NoReturn:
    raise _fault(f"it contains {name}, which JSON does not have")


def _pointer(at: Sequence[str]) -> str:
    return "#" + "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in at)


def _levels(value: Json) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(_levels, parts), default=0)


def _nodes(value: Json, at: Path = ()) -> Iterator[tuple[Path, dict[str, Json]]]:
    """All objects in a document, outermost first."""
    if isinstance(value, dict):
        yield at, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _nodes(part, (*at, str(key)))


def _finite(parts: dict[str, Json]) -> set[str]:
    """The parts, which may hold themselves and each other, that have answers which end."""
    finite: set[str] = set()

    def ends(part: Json) -> bool:
        if not isinstance(part, dict) or "const" in part or "enum" in part:
            return True
        if "$ref" in part and part["$ref"].rpartition("/")[2] not in finite:
            return False
        if not all(map(ends, part.get("allOf", ()))):
            return False
        if any(key in part and not any(map(ends, part[key])) for key in ("anyOf", "oneOf")):
            return False
        types = part.get("type", TYPES)
        return any(kind(name, part) for name in (types if isinstance(types, list | tuple) else [types]))

    def kind(name: str, part: dict[str, Json]) -> bool:
        if name == "object":
            others = part.get("additionalProperties", True)
            return all(ends(part.get("properties", {}).get(key, others)) for key in part.get("required", ()))
        if name == "array":
            first = part.get("prefixItems", [])
            least = part.get("minItems", 0)
            return all(map(ends, first[:least])) and (least <= len(first) or ends(part.get("items", True)))
        return True

    for _ in parts:  # each round finds one more at least, or no more
        more = {name for name, part in parts.items() if name not in finite and ends(part)}
        if not more:
            break
        finite |= more
    return finite


class _Reader:
    """One schema being read: references are followed by name, so that schemas may hold themselves."""

    def __init__(self, root: Json, endless: frozenset[Path] = frozenset()) -> None:
        if root is False:
            raise _fault("it is `false`, which no answer fits")
        self.root = {} if root is True else root
        if not isinstance(self.root, dict):
            raise _fault("expected a JSON object")
        if _levels(root) > MOST_LEVELS:
            raise _fault("it is nested too deeply")
        self.draft = self._draft()
        self.base = str(self.root.get("$id") or self.root.get("id") or "").partition("#")[0]
        self.endless = endless  # parts that no answer may come to, since none would end
        self.names: dict[Path, str] = {}  # of the parts that references lead to
        self.waiting: list[Path] = []
        self.inlined: list[Path] = []
        self.parts: list[tuple[str, Json]] = []
        self.size = 0
        self.steps: set[Fraction] = set()
        self.joins = any(not JOINING.isdisjoint(node) for _, node in _nodes(self.root))
        self.unknown: dict[Path, str] = {}
        self.warnings: list[str] = []

    def read(self) -> JsonSchema:
        form: dict[str, Json] = {"$ref": self._name(()), "$defs": {}}
        while self.waiting:
            at = self.waiting.pop()
            form["$defs"][self.names[at]] = self.schema(self._find(at), at)
        json.dumps(form, ensure_ascii=False).encode("utf-8")
        finite = _finite(form["$defs"])
        if self.names[()] not in finite:
            raise _fault("every answer that fits it goes on for ever; let a part that refers to itself be left out")
        if endless := frozenset(at for at, name in self.names.items() if name not in finite):
            return _Reader(self.root, endless).read()
        for at, word in self.unknown.items():
            if not any(target[: len(at)] == at for target in self.names):  # a store of parts, such as OpenAPI's
                self.warnings.append(word)
        return JsonSchema(form, tuple(self.parts), tuple(self.warnings))

    def _draft(self) -> int:
        named = self.root.get("$schema")
        found = next((n for mark, n in DRAFTS.items() if isinstance(named, str) and mark in named), None)
        if named is not None and found is None:
            self._refuse(("$schema",), f"{json.dumps(named)} is no draft that is known; expected 4 to 2020-12")
        return found or 2020

    def _refuse(self, at: Path, why: str) -> NoReturn:
        raise _fault(f"{_pointer(at)}: {why}")

    # --------------------------------------------------------------------------------------------- references

    def _name(self, at: Path) -> str:
        if at not in self.names:
            self.names[at] = str(len(self.names))
            self.waiting.append(at)
        return f"#/$defs/{self.names[at]}"

    def _find(self, at: Path) -> Json:
        found: Json = self.root
        for key in at:
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found

    def _target(self, reference: Json, at: Path) -> Path:
        """Where in this document a reference leads."""
        if not isinstance(reference, str):
            self._refuse(at, "expected a text")
        base, _, fragment = reference.partition("#")
        fragment = unquote(fragment)
        if base not in ("", self.base):
            self._refuse(at, f"refers to another document ({reference}), which is not fetched; copy it into `$defs`")
        if fragment and not fragment.startswith("/"):
            for place, node in _nodes(self.root):
                if fragment in (node.get("$anchor"), node.get("$dynamicAnchor")) or node.get("$id") == f"#{fragment}":
                    return place
            self._refuse(at, f"there is no `$anchor` {json.dumps(fragment, ensure_ascii=False)}")
        target = tuple(k.replace("~1", "/").replace("~0", "~") for k in fragment.split("/")[1:])
        try:
            self._find(target)
        except (KeyError, IndexError, ValueError, TypeError):
            self._refuse(at, f"refers to {reference}, which is not there")
        return target

    # ------------------------------------------------------------------------------------------------ schemas

    def schema(self, node: Json, at: Path) -> Json:
        """The form of one schema; `at` is its place."""
        self.size += 1
        if self.size > MOST_SCHEMAS:
            raise _fault(f"it has more than {MOST_SCHEMAS:,} parts, those counted again that `oneOf` refers to")
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            self._refuse(at, "expected a schema: an object, true or false")
        if "$ref" in node and self.endless and self._target(node["$ref"], (*at, "$ref")) in self.endless:
            return False
        inner = node.get("id" if self.draft == 4 else "$id") if at else None
        if isinstance(inner, str) and not inner.startswith("#") and any("$ref" in n for _, n in _nodes(node)):
            self._refuse(at, "its `$id` begins a document of its own, with references in it; leave the `$id` out")
        simple: dict[str, Json] = {}
        applied: dict[str, Json] = {}
        rules: list[Json] = []  # that need a schema of their own
        for key, value in node.items():
            place = (*at, key)
            if key in ANNOTATIONS:
                continue
            if key in UNSUPPORTED:
                if not any(value == harmless and type(value) is type(harmless) for harmless in HARMLESS.get(key, ())):
                    self._refuse(place, f"`{key}` is not supported; {UNSUPPORTED[key]}")
            elif key in _APPLIED:
                applied |= _APPLIED[key](self, value, place)
            elif key in _SIMPLE:
                simple |= (found := _SIMPLE[key](self, value, place, node))
                rules += [simple.pop("")] if "" in found else []
            else:
                self._warn_unknown(key, place)
        if rules:
            applied["allOf"] = [*applied.get("allOf", []), *rules]
        made = simple | applied
        self.parts.append((_pointer(at), made))
        return made

    def _warn_unknown(self, key: str, at: Path) -> None:
        if key.startswith("x-") and key != "x-guidance":
            return
        near = get_close_matches(key, [*_SIMPLE, *_APPLIED, *UNSUPPORTED, *ANNOTATIONS], 1, 0.8)
        advice = f"; did you mean `{near[0]}`?" if near else ""
        self.unknown[at] = f"the JSON schema: {_pointer(at)}: `{key}` is no keyword, so it has no effect{advice}"

    def schemas(self, value: Json, at: Path) -> list[Json]:
        if not isinstance(value, list) or not value:
            self._refuse(at, "expected a list of schemas")
        return [self.schema(part, (*at, str(i))) for i, part in enumerate(value)]

    def named(self, value: Json, at: Path) -> dict[str, Json]:
        if not isinstance(value, dict):
            self._refuse(at, "expected an object of schemas")
        return {key: self.schema(part, (*at, key)) for key, part in value.items()}

    # ------------------------------------------------------------------- what joins schemas, and what lists values

    def ref(self, value: Json, at: Path) -> dict[str, Json]:
        return {"$ref": self._name(self._target(value, at))}

    def all_of(self, value: Json, at: Path) -> dict[str, Json]:
        return {"allOf": self.schemas(value, at)}

    def any_of(self, value: Json, at: Path) -> dict[str, Json]:
        return {"anyOf": self.schemas(value, at)}

    def one_of(self, value: Json, at: Path) -> dict[str, Json]:
        """Exactly one: a list of values where that is all it is, else left to the grammar, which must prove it."""
        if not isinstance(value, list) or not value:
            self._refuse(at, "expected a list of schemas")
        values = [v for part in value for v in self._values(part) or [None]]
        if all(self._values(part) for part in value):
            texts = [json.dumps(v, sort_keys=True) for v in values]
            if len(set(texts)) == len(texts) and not any(isinstance(v, float | bool | dict | list) for v in values):
                return {"enum": self.enum(values, at)["enum"]}
        return {"oneOf": [self._opened(part, (*at, str(i))) for i, part in enumerate(value)]}

    def _values(self, part: Json) -> list[Json] | None:
        if not isinstance(part, dict) or set(part) - ANNOTATIONS not in ({"const"}, {"enum"}):
            return None
        found = [part["const"]] if "const" in part else part["enum"]
        return found if isinstance(found, list) else None

    def _opened(self, part: Json, at: Path) -> Json:
        """A branch's form, its reference replaced by what it leads to: whether branches differ is seen only there."""
        if isinstance(part, dict) and "$ref" in part and not set(part) - ANNOTATIONS - {"$ref"}:
            target = self._target(part["$ref"], (*at, "$ref"))
            if target not in self.inlined:
                self.inlined.append(target)
                made = self._opened(self._find(target), target)
                self.inlined.pop()
                return made
        return self.schema(part, at)

    def const(self, value: Json, at: Path) -> dict[str, Json]:
        self._check_value(value, at)
        return {"const": value}

    def enum(self, value: Json, at: Path) -> dict[str, Json]:
        if not isinstance(value, list) or not value:
            self._refuse(at, "expected a list of values")
        for i, one in enumerate(value):
            self._check_value(one, (*at, str(i)))
        return {"enum": value}

    def _check_value(self, value: Json, at: Path) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                self._check_text(key, at)
                self._check_value(part, (*at, key))
        elif isinstance(value, list):
            for i, part in enumerate(value):
                self._check_value(part, (*at, str(i)))
        elif isinstance(value, str):
            self._check_text(value, at)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self._number(value, at)

    def _check_text(self, text: str, at: Path) -> None:
        for c in text:
            if (c < " " and c not in "\b\t\n\f\r") or c == "\x7f":
                self._refuse(at, f"has the control character U+{ord(c):04X}, which no answer can say; leave it out")

    # ---------------------------------------------------------------------------------- what one value must be

    def type_(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        for name in value if isinstance(value, list) and value else [value]:
            if name not in TYPES:
                self._refuse(at, f"{json.dumps(name)} is no type; expected some of {', '.join(TYPES)}")
        return {"type": value}

    def _number(self, value: Json, at: Path) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(at, "expected a number")
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(at, "is too large for a number; leave it out")
        if isinstance(value, int) and abs(value) > LARGEST_EXACT:
            self._refuse(at, f"{value} is beyond the whole numbers that are exact (2⁵³); use a text instead")
        return value

    def _limit(self, value: Json, at: Path) -> int | float:
        if abs(limit := self._number(value, at)) > LARGEST_EXACT:
            self._refuse(at, f"{value} is beyond the whole numbers that are exact (2⁵³); leave it out")
        return limit

    def bound(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        """A bound; an exclusive one of floats becomes the next number that a float tells from it."""
        end = at[-1][-7:].lower()  # minimum, maximum
        sign = 1 if end == "minimum" else -1
        limits = [self._limit(node[end], (*at[:-1], end))] if end in node else []
        name = f"exclusive{end.title()}"
        outside = node.get(name)
        place = (*at[:-1], name)
        if isinstance(outside, bool):
            if self.draft != 4:
                self._refuse(place, f"true and false are draft 4's form; write the bound itself here, without `{end}`")
            outside = limits[0] if outside and limits else None
        if outside is not None:
            exact = Decimal(str(self._limit(outside, place)))
            if node.get("type") == "integer":
                whole = math.floor(exact) + 1 if sign > 0 else math.ceil(exact) - 1
                limits.append(whole)
            else:
                step = Decimal(1).scaleb(max(exact.adjusted() if exact else 0, 0) - SIGNIFICANT + 1)
                limits.append(float(exact + sign * step))
        return {end: max(limits, key=lambda limit: sign * limit)} if limits else {}

    def multiple(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        step = self._number(value, at)
        if not SMALLEST_STEP <= step <= LARGEST_STEP:
            self._refuse(at, f"expected a number from 0.001 to {LARGEST_STEP:,}")
        if Decimal(str(step)) != Decimal(step):
            self._refuse(
                at, f"{step} has no exact binary form, so validators refuse some multiples; count in whole units"
            )
        self.steps.add(Fraction(step))
        if self.joins and self._common_step() > LARGEST_STEP_PRODUCT:
            self._refuse(at, "is too large beside `allOf`, `anyOf`, `oneOf` or `$ref`; leave it out")
        if step == int(step):
            return {"multipleOf": int(step)}
        return {"multipleOf": step, "": {"minimum": -LARGEST_FRACTION, "maximum": LARGEST_FRACTION}}

    def _common_step(self) -> int:
        """What the grammar computes, in 32 bits, where two schemas with these steps become one."""
        decimals = max(-Decimal(str(float(step))).as_tuple().exponent for step in self.steps)  # type: ignore[operator]
        whole = [int(step * 10 ** max(0, decimals)) for step in self.steps]
        return math.lcm(*whole) * max(whole)

    def count(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
            self._refuse(at, "expected a whole number, 0 or above")
        if value > LARGEST_COUNT:
            if at[-1].startswith("max"):
                return {}  # no answer is that long
            self._refuse(at, f"is more than {LARGEST_COUNT:,}")
        return {at[-1]: int(value)}

    def pattern(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        return {"pattern": self._regex(value, at)}

    def format(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        if not isinstance(value, str):
            self._refuse(at, "expected a text")
        types = node.get("type")
        if types is not None and "string" not in (types if isinstance(types, list) else [types]):
            self.warnings.append(f"the JSON schema: {_pointer(at)}: formats are of texts alone, so it has no effect")
            return {}
        if value not in FORMATS:
            self._refuse(at, f"the format {json.dumps(value)} is none of {', '.join(FORMATS)}; use `pattern`")
        if value not in EXACT_FORMATS:
            return {"format": value}
        rule = {"pattern": EXACT_FORMATS[value]}
        return {"": rule} if "pattern" in node else rule

    def _regex(self, value: Json, at: Path) -> str:
        """A pattern, if it is one that ECMA 262 and the grammar read alike; white space and `.` as in ECMA 262."""
        if not isinstance(value, str):
            self._refuse(at, "expected a text")
        self._check_text(value, at)
        if len(value) > LONGEST_PATTERN:
            self._refuse(at, f"the pattern has more than {LONGEST_PATTERN:,} characters")
        made, i = "", 0
        while i < len(value):
            found = _PIECE.match(value, i)
            if not found:
                self._refuse(at, f"the pattern is not supported from {json.dumps(value[i : i + 12])} on")
            piece, i = found[0], found.end()
            for escape in re.findall(r"\\(.)", piece, re.DOTALL):
                if not (escape in _ESCAPES or (escape in "uxpP" and len(piece) > 2)):
                    self._refuse(at, f"the pattern's `\\{escape}` is not supported")
            if found["dot"]:
                piece = r"[^\n\r\u2028\u2029]"
            elif piece == r"\s":
                piece = f"[{_SPACES}]"
            elif found["class"] and not piece.startswith("[^"):
                piece = re.sub(r"(\\[^s])|\\s", lambda m: m[1] or _SPACES, piece)
            made += piece
        return made

    def items(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        if not isinstance(value, list):
            return {"items": self.schema(value, at)}
        if "prefixItems" in node:
            self._refuse(at, "is a list beside `prefixItems`; give one of them")
        rest = {"items": self.schema(node["additionalItems"], (*at[:-1], "additionalItems"))}
        return {"prefixItems": self.schemas(value, at), **(rest if "additionalItems" in node else {})}

    def prefix_items(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        if self.draft < 2020:
            self._refuse(at, "is no keyword of this draft; write the list as `items`")
        return {"prefixItems": self.schemas(value, at)}

    def properties(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        return {"properties": self.named(value, at)}

    def pattern_properties(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        made = self.named(value, at)
        return {"patternProperties": {self._regex(key, (*at, key)): part for key, part in made.items()}}

    def additional_properties(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        return {"additionalProperties": self.schema(value, at)}

    def required(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            self._refuse(at, "expected a list of property names")
        return {"required": value}

    def least_properties(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        """`minProperties`, where the properties can be told apart: the grammar may say one of the others twice."""
        made = self.count(value, at, node)
        required = node.get("required")
        if made["minProperties"] > 1 + len(required if isinstance(required, list) else ()):
            self._refuse(at, "more properties than `required` names, and one; name them in `required`")
        return made

    def nothing(self, value: Json, at: Path, node: Json) -> dict[str, Json]:
        return {}


_APPLIED = {
    "$ref": _Reader.ref,
    "allOf": _Reader.all_of,
    "anyOf": _Reader.any_of,
    "oneOf": _Reader.one_of,
    "const": _Reader.const,
    "enum": _Reader.enum,
}
_SIMPLE = {
    "type": _Reader.type_,
    "minimum": _Reader.bound,
    "maximum": _Reader.bound,
    "exclusiveMinimum": _Reader.bound,
    "exclusiveMaximum": _Reader.bound,
    "multipleOf": _Reader.multiple,
    "minLength": _Reader.count,
    "maxLength": _Reader.count,
    "pattern": _Reader.pattern,
    "format": _Reader.format,
    "items": _Reader.items,
    "prefixItems": _Reader.prefix_items,
    "additionalItems": _Reader.nothing,  # read with `items`, and of no effect without
    "minItems": _Reader.count,
    "maxItems": _Reader.count,
    "properties": _Reader.properties,
    "patternProperties": _Reader.pattern_properties,
    "additionalProperties": _Reader.additional_properties,
    "required": _Reader.required,
    "minProperties": _Reader.least_properties,
    "maxProperties": _Reader.count,
}


def schema_text(schema: str | Mapping[str, Json] | bool) -> str:
    """The text of a schema that may be given as a dictionary."""
    return schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
