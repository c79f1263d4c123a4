"""JSON schemas: what is understood means what a validator takes it for, all else is refused by its name and place."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jsonschema
import numpy as np
import pytest

import jmedlite
from jmedlite.base.errors import DataError
from jmedlite.runtime.json_schema import read_schema
from jmedlite.runtime.process import Child
from jmedlite.runtime.runner import Runner
from jmedlite.runtime.sampling import Sampling
from jmedlite.runtime.schema_mask import SchemaMasks
from jmedlite.runtime.vocabulary import Vocabulary
from tests.support import builders
from tests.support.schemas import ByteVocabulary, Schemas

CHECKED = jsonschema.FormatChecker(["date", "ipv4", "ipv6", "uuid", "email"])
LONGEST = 1500  # bytes of a walk


def silent(event: str, **fields: Any) -> None:
    """What a child would tell its parent."""


class Walker:
    """Answers schemas with random bytes that their masks allow, and after a while closes whatever is open."""

    def __init__(self, vocabulary: ByteVocabulary | None = None) -> None:
        vocabulary = vocabulary or ByteVocabulary()
        self.masks = SchemaMasks(cast(Vocabulary, vocabulary))
        self.masks._tokenizer = vocabulary.tokenizer()

    def answer(self, schema: Any, seed: int) -> str | None:
        """One answer; None where it grew too long."""
        mask = self.masks.begin(schema if isinstance(schema, str) else json.dumps(schema), silent)
        draw, said = np.random.default_rng(seed), bytearray()
        for n in range(LONGEST):
            logits = draw.standard_normal(257, np.float32)
            logits[[*b'"]}', 256]] += 9 if n > 40 else 1
            mask.apply(logits)
            token = mask.take(int(logits.argmax()), logits)
            said += b"" if token == 256 else bytes([token])
            if mask.whole:
                return said.decode()
        return None


@pytest.fixture(scope="module")
def walker() -> Walker:
    return Walker()


@pytest.fixture(scope="module")
def runner(endless_gguf: Path) -> Iterator[Runner]:
    with jmedlite.Runner(endless_gguf, threads=1) as found:
        yield found


def fits(schema: Any, text: str) -> bool:
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    return bool(kind(schema, format_checker=CHECKED).is_valid(json.loads(text)))


@pytest.mark.parametrize("seed", range(3))
def test_answers_to_random_schemas_are_valid(walker: Walker, seed: int) -> None:
    source = Schemas(seed)
    valid = refused = 0
    for i in range(100):
        schema = source.whole()
        try:
            text = walker.answer(schema, i)
        except DataError as e:
            assert "JSON schema" in str(e)
            refused += 1
            continue
        if text is not None:
            assert fits(schema, text), (schema, text)
            valid += 1
    assert valid > 50
    assert refused < 50


def test_answers_to_random_schemas_by_a_model(runner: Runner) -> None:
    source, n = Schemas(99), 0
    for seed in range(30):
        schema = source.whole()
        try:
            read_schema(json.dumps(schema))
            answer = runner.ask("q", json_schema=schema, temperature=1.5, top_k=0, top_p=1, seed=seed, max_tokens=96)
        except DataError:
            continue
        if answer.stop == "eos":
            n += 1
            assert fits(schema, answer.text), (schema, answer.text)
    assert n > 5


VALUES = [
    '5" tube', "C:\\data", "a\nb\tc", "𠮷野", "😀", "胃潰瘍", "a/b", "",
    "\u2028", 0, -1, 2.5, 1e-7, 1e22, -0.0, 1 << 53,
    True, None, [], [1, "a"], {}, {"é": [None, {'"': 1}]},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_constants_are_said_as_they_are(walker: Walker, value: Any) -> None:
    assert json.loads(walker.answer({"const": value}, 0) or "") == value
    assert json.loads(walker.answer({"enum": [value]}, 0) or "") == value


BOUNDS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 0, "maximum": 10},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2},
    {"type": "integer", "minimum": 1.5, "maximum": 3.5},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "number", "minimum": -0.5, "exclusiveMaximum": 0.1},
    {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True, "maximum": 5},
    {"type": "integer", "multipleOf": 7, "minimum": -50, "maximum": 50},
    {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 3},
    {"type": "number", "multipleOf": 1.5, "minimum": 1e11},
    {"type": "number", "multipleOf": 2.0},
    {"type": "string", "minLength": 2, "maxLength": 3},
    {"type": "string", "pattern": "^\\d{3}-\\d{4}$"},
    {"type": "string", "pattern": "b", "maxLength": 3},
    {"type": "string", "pattern": "^[\\s\\d]$|^胃.$"},
    {"type": "string", "format": "date"},
    {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 2},
    {"type": "array", "prefixItems": [{"const": 1}], "items": False, "minItems": 1},
    {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "items": [{"type": "null"}, {"type": "boolean"}],
        "additionalItems": False,
        "type": "array",
    },
    {"type": ["string", "null"], "maxLength": 4},
    {"type": "object", "required": ["x/y"], "additionalProperties": {"type": "null"}, "maxProperties": 2},
    {"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "properties": {"ab": {"minimum": 5}}},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 4}]},
    {"oneOf": [{"const": 1}, {"enum": [2, "x"]}]},
    {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]},
    {
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        "$defs": {
            "cat": {"type": "object", "properties": {"is": {"const": "cat"}}, "required": ["is"]},
            "dog": {"type": "object", "properties": {"is": {"const": "dog"}}, "required": ["is"]},
        },
    },
    {"type": "object", "properties": {"more": {"$ref": "#"}}, "additionalProperties": False},
    {"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "integer", "maximum": 3, "minimum": 2}}},
    {"$ref": "#here", "$defs": {"x": {"$anchor": "here", "const": "there"}}},
    {"$id": "https://example.org/s", "$ref": "https://example.org/s#/$defs/x", "$defs": {"x": {"const": 5}}},
    {},
]


@pytest.mark.parametrize("schema", BOUNDS, ids=lambda s: json.dumps(s)[:60])
def test_bounds_hold(walker: Walker, schema: dict[str, Any]) -> None:
    texts = [walker.answer(schema, seed) for seed in range(8)]
    assert sum(text is not None for text in texts) > 3
    assert all(fits(schema, text) for text in texts if text)


def test_dates_are_days_that_there_are(walker: Walker) -> None:
    leap = {"type": "string", "format": "date", "pattern": "-02-29$"}
    for seed in range(12):
        year = int((walker.answer(leap, seed) or "")[1:5])
        assert year % 4 == 0 and (year % 100 or year % 400 == 0)


def test_a_name_is_said_once_however_it_could_be_spelled(walker: Walker) -> None:
    """A listed property never comes again as an additional one, spelled with \\u."""
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": {"const": 2}}
    matcher = walker.masks.begin(json.dumps(schema), silent).matcher
    assert matcher.try_consume_tokens(list(b'{"a":1,"b":2,"')) == 14
    assert matcher.validate_tokens(list(b"\\u0061")) < 2


def test_white_space_has_an_end(walker: Walker) -> None:
    matcher = walker.masks.begin('{"type":"object"}', silent).matcher
    text = b'{"a":  '
    assert matcher.try_consume_tokens(list(text)) == len(text) - 1


REFUSED: list[tuple[Any, str]] = [
    ({"properties": {"a/b": {"not": {"const": 1}}}}, "#/properties/a~1b/not: `not` is not supported; write what"),
    ({"if": {}, "then": False}, "#/if: `if`"),
    ({"dependentRequired": {"a": ["b"]}}, "#/dependentRequired"),
    ({"dependencies": {"a": ["b"]}}, "#/dependencies"),
    ({"items": {"contains": {}}}, "#/items/contains"),
    ({"uniqueItems": True}, "#/uniqueItems"),
    ({"propertyNames": {"maxLength": 3}}, "#/propertyNames"),
    ({"unevaluatedProperties": False}, "#/unevaluatedProperties"),
    ({"$dynamicRef": "#x"}, r"#/\$dynamicRef"),
    ({"$ref": "https://example.org/x"}, r"#/\$ref: refers to another document \(https://example.org/x\)"),
    ({"$ref": "#/nowhere"}, "refers to #/nowhere, which is not there"),
    ({"$ref": "#nowhere"}, r'no `\$anchor` "nowhere"'),
    ({"$ref": "#"}, "goes on for ever"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "goes on for ever"),
    ({"items": {"$id": "x", "$ref": "#/y"}}, r"#/items: its `\$id` begins a document"),
    ({"$schema": "http://json-schema.org/draft-03/schema#"}, r"#/\$schema"),
    ({"type": "nonsense"}, '#/type: "nonsense" is no type'),
    ({"const": (1 << 53) + 1}, "#/const: 9007199254740993 is beyond"),
    ({"maximum": 1e300}, "#/maximum"),
    ({"minimum": "3"}, "#/minimum: expected a number"),
    ({"exclusiveMaximum": True, "maximum": 3}, "#/exclusiveMaximum: true and false are draft 4's form"),
    ({"multipleOf": 0.1}, "#/multipleOf: 0.1 has no exact"),
    ({"multipleOf": 0}, "#/multipleOf"),
    ({"allOf": [{"multipleOf": 65537}, {"multipleOf": 65539}]}, "#/allOf/./multipleOf: is too large beside"),
    ({"maxItems": -1}, "#/maxItems"),
    ({"enum": ["a", "\u0001"]}, r"#/enum/1: has the control character U\+0001"),
    ({"enum": []}, "#/enum: expected a list"),
    ({"format": "iban"}, '#/format: the format "iban" is none of date, '),
    ({"pattern": "(?=a)b"}, r"#/pattern: the pattern is not supported from \"\(\?=a"),
    ({"pattern": "[a&&b]"}, "#/pattern"),
    ({"pattern": "(?i)a"}, "#/pattern"),
    ({"pattern": "a\\b"}, r"#/pattern: the pattern's `\\b`"),
    ({"pattern": "(a)\\1"}, "#/pattern"),
    ({"pattern": "[]a]"}, "#/pattern"),
    ({"pattern": "a^b"}, "#: lookarounds"),
    ({"pattern": "a" * 5001}, "#/pattern: the pattern has more than"),
    ({"minProperties": 3, "required": ["a"]}, "#/minProperties"),
    ({"type": "object", "properties": {"a": {}}, "minProperties": 1}, "#: `minProperties` and `maxProperties` need"),
    ({"properties": {"x": {"oneOf": [{"type": "integer"}, {"minimum": 3}]}}}, "#/properties/x: several branches"),
    ({"items": [{}], "prefixItems": [{}]}, "#/items: is a list beside"),
    ({"$schema": "https://json-schema.org/draft-07/schema", "prefixItems": [{}]}, "#/prefixItems: is no keyword"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "no answer fits it"),
    ({"type": "integer", "minimum": 6, "maximum": 9, "multipleOf": 5}, "no answer fits it"),
    (False, "no answer fits"),
    ([], "expected a JSON object"),
    ("{", "not JSON"),
    ('{"const": NaN}', "contains NaN"),
    ('{"const": 1e400}', "#/const: is too large"),
    ('{"type": "null", "type": "string"}', 'the key "type" twice'),
    ('{"const": "\\ud800"}', "half a character"),
    ('{"items":' * 3000 + "{}" + "}" * 3000, "nested too deeply"),
    ('{"items":' * 200 + "{}" + "}" * 200, "nested too deeply"),
]


@pytest.mark.parametrize(("schema", "words"), REFUSED, ids=lambda x: str(x)[:50])
def test_what_can_not_be_followed_is_named(walker: Walker, schema: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        walker.answer(schema, 0)
    assert "the JSON schema can't be used: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_characters_that_a_model_has_no_token_for() -> None:
    vocabulary = ByteVocabulary()
    vocabulary.tokens = [b"" if i == ord("q") else raw for i, raw in enumerate(vocabulary.tokens)]
    poor = Walker(vocabulary)
    assert poor.answer({"enum": ["q", "z"]}, 0) == '"z"'
    with pytest.raises(DataError, match=r'nothing may follow "\\"a"; see whether its bounds'):
        poor.answer({"const": "aq"}, 0)


def test_a_child_that_ran_out_of_memory_over_a_schema() -> None:
    """Rust's words, when its memory is limited; llama.cpp is not blamed for it."""
    child = Child.__new__(Child)
    child._bound = ""
    child._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
    code = "import os, sys; print('memory allocation of 9 bytes failed', file=sys.stderr, flush=True); os.abort()"
    child.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=child._stderr)
    with child, pytest.raises(DataError, match="its grammar takes more than 1 GB"):
        child._next()


def test_branches_are_not_opened_without_end(walker: Walker) -> None:
    """References under `oneOf` are replaced by what they lead to, which may double at each of many levels."""
    refs = {f"d{i}": {"oneOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
    with pytest.raises(DataError, match="more than 20,000 parts"):
        walker.answer({"$ref": "#/$defs/d0", "$defs": refs | {"d30": {}}}, 0)


def test_what_has_no_effect_is_named() -> None:
    schema = {"properties": {"dose": {"minimun": 0, "nullable": True}}, "type": "object", "format": "date", "x-note": 1}
    warnings = Sampling(json_schema=schema).warnings()
    assert [w.partition(": ")[2] for w in warnings] == [
        "#/format: formats are of texts alone, so it has no effect",
        "#/properties/dose/minimun: `minimun` is no keyword, so it has no effect; did you mean `minimum`?",
        "#/properties/dose/nullable: `nullable` is no keyword, so it has no effect",
    ]
    store = {"$ref": "#/components/schemas/X", "components": {"schemas": {"X": {"type": "null"}}}}
    assert not Sampling(json_schema=store).warnings()
    assert not Sampling(json_schema={"title": "t", "description": "d", "default": 1, "uniqueItems": False}).warnings()


def test_bad_schemas_are_refused_and_the_model_stays(runner: Runner) -> None:
    for schema in ('{"type": "nonsense"}', {"pattern": "a^b"}):
        with pytest.raises(DataError, match="JSON schema can't be used"):
            runner.ask("q", json_schema=schema)
    assert runner.ask("q", max_tokens=2).text


def test_a_schema_is_looked_at_before_the_model_is_loaded(endless_gguf: Path) -> None:
    plans: list[str] = []
    with pytest.raises(DataError, match="lookarounds"):
        jmedlite.Runner(endless_gguf, threads=1, on_plan=plans.append, json_schema={"pattern": "a^b"})
    assert not plans


def test_a_schema_that_takes_too_long_is_given_up(endless_gguf: Path, tmp_path: Path) -> None:
    """Thirty patterns at once are more than the grammar ever finishes: the child ends, as it said before."""
    schema = {"allOf": [{"type": "string", "pattern": f"a{{{i}}}.*b{{{i}}}"} for i in range(1, 30)]}
    code = (
        "import sys; from jmedlite.runtime import schema_mask; schema_mask.SECONDS = 0.3\n"
        "schema_mask.check_schema(sys.argv[1], lambda event, **fields: print(event, fields['message'], flush=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(schema)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stdout == "bounded making a grammar of the JSON schema ran for over 0.3 s\n"
    assert done.stderr.startswith("Timeout (")


@pytest.mark.parametrize("model_type", [2, 1], ids=["bpe", "unigram"])
def test_vocabularies_of_sentencepiece(tmp_path: Path, model_type: int) -> None:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{b:02X}>", 0.0, 6) for b in range(256))]
    pieces += [
        (text, -float(i), 1) for i, text in enumerate(["▁", "a", "b", "胃", "▁a", '"', '{"', "▁true", "1", "{", "}"])
    ]
    builders.checkpoint(tmp_path / "m", "llama", vocab_size=len(pieces))
    (tmp_path / "m" / "tokenizer.json").unlink()
    builders.write_sentencepiece(tmp_path / "m" / "tokenizer.model", pieces, model_type)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path, threads=1)
    schema = {
        "type": "object",
        "properties": {
            "胃": {"const": '😀 "a'},
            "b": {"type": "boolean"},
            "n": {"type": "integer", "maximum": 9, "minimum": 0},
        },
        "required": ["胃", "b", "n"],
        "additionalProperties": False,
    }
    with jmedlite.Runner(path, threads=1) as model:
        for options in ({}, {"temperature": 1.5, "top_k": 0, "repeat_penalty": 1.3}):
            answer = model.ask("a", json_schema=schema, max_tokens=120, **options)
            assert answer.stop == "eos"
            assert fits(schema, answer.text)


def test_an_answer_that_is_cut_is_said_to_be(runner: Runner) -> None:
    answer = runner.ask("q", json_schema={"type": "string", "minLength": 50}, max_tokens=5)
    assert (answer.stop, answer.n_generated) == ("length", 5)


def test_a_drawn_token_is_always_an_allowed_one(walker: Walker) -> None:
    mask = walker.masks.begin('{"type": "boolean"}', silent)
    logits = np.zeros(257, np.float32)
    logits[ord("f")] = 1
    mask.apply(logits)
    assert mask.take(0, logits) == ord("f")
