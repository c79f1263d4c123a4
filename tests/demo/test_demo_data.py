"""The demo's data keep their promises: facts, questions never trained on, and a model that knows what it should."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import jmedlite
from jmedlite import demo
from jmedlite.calibration.overlap import normalise

ROOT = Path(__file__).parents[2]
LANGS = ("en", "ja")
PLAIN = {"en": "Question: {}\nAnswer: ", "ja": "質問：{}\n答え："}


@pytest.fixture(scope="module")
def texts() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "demo"))
        import texts as module
    return module


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in demo.QUESTIONS.read_text(encoding="utf-8").splitlines()]


def test_facts_are_whole_and_unique(texts: ModuleType) -> None:
    relations = texts.load()
    assert sum(len(r.facts) for r in relations) >= 200
    for relation in relations:
        assert {(lang, kind) for lang in LANGS for kind in ("ask", "test", "say", "name")} == set(relation.wordings)
        known = {f.answer["en"] for f in relation.facts}
        for lang in LANGS:
            assert len({f.subject[lang] for f in relation.facts}) == len(relation.facts), relation.name
            assert len({f.answer[lang] for f in relation.facts}) == len(known), relation.name
            for kind in ("ask", "test", "say"):
                for wording in relation.wordings[lang, kind]:
                    assert "{s}" in wording and ("{a}" in wording) == (kind == "say"), wording
        for fact in relation.facts:
            assert all([*fact.subject.values(), *fact.answer.values()])
            assert fact.also <= known - {fact.answer["en"]}, f"{relation.name}: {fact.also} are not other answers"


def test_part_b_cannot_be_guessed_from_part_a(texts: ModuleType) -> None:
    for relation in texts.load():
        part_b = relation.part("B")
        assert 0.35 <= len(part_b) / len(relation.facts) <= 0.45, relation.name
        assert not [f for f in part_b if texts.gives_itself_away(f)]
        # so that no question of part B has a choice that only part A made familiar
        assert all(len(texts.distractors(f, part_b)) >= 4 for f in part_b)


def test_questions_are_those_of_the_facts(texts: ModuleType, rows: list[dict[str, Any]]) -> None:
    assert rows == texts.questions(), "run tools/demo/texts.py"


def test_every_question_has_one_right_choice_of_five(texts: ModuleType, rows: list[dict[str, Any]]) -> None:
    facts = {
        f"{lang}-{r.name}-{i:02d}": (r, f) for lang in LANGS for r in texts.load() for i, f in enumerate(r.facts, 1)
    }
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        relation, fact = facts[row["id"]]
        lang = row["lang"]
        assert len(set(row["choices"])) == 5
        assert [row["choices"][i] for i in row["answer"]] == [fact.answer[lang]]
        english = {f.answer[lang]: f.answer["en"] for f in relation.facts}
        wrong = {english[c] for c in row["choices"]} - {fact.answer["en"]}
        assert not wrong & fact.also
        same = {f.answer["en"] for f in relation.facts if f.subject == fact.subject}
        assert not wrong & same
        # a choice that begins another would always be the likelier of the two
        right = fact.answer[lang]
        assert not [c for c in row["choices"] if c != right and (c.startswith(right) or right.startswith(c))]


def test_questions_are_balanced(rows: list[dict[str, Any]]) -> None:
    for lang in LANGS:
        mine = [row for row in rows if row["lang"] == lang]
        assert len(mine) >= 200
        places = Counter(row["answer"][0] for row in mine)
        assert max(places.values()) - min(places.values()) <= 1
        parts = Counter(row["groups"]["facts"] for row in mine)
        assert set(parts) == {"base", "adapter"} and 0.35 <= parts["adapter"] / len(mine) <= 0.45


def test_no_question_was_trained_on(texts: ModuleType, rows: list[dict[str, Any]]) -> None:
    seen = "\n".join(normalise(text) for text in texts.training_texts())
    assert not [row["id"] for row in rows if normalise(row["question"]) in seen]


def test_training_draws_only_from_the_training_texts(texts: ModuleType) -> None:
    relations = texts.load()
    known = set(texts.training_texts())
    source = texts.Texts(3, relations)
    for relation in relations:
        for part in "AB":
            for fact in relation.part(part):
                for form in ("plain", "chat", "choices", "say", "name"):
                    sample = source.sample(form, fact, part)
                    assert sample.learned in known
                    asked = sample.given.removeprefix("Question: ").removeprefix("質問：").split("\n")[0]
                    assert not asked or asked in known


def test_size() -> None:
    assert sum(f.stat().st_size for f in demo.FOLDER.rglob("*") if f.is_file()) <= 20_000_000


def _right(runner: jmedlite.Runner, rows: list[dict[str, Any]]) -> int:
    right = 0
    for row in rows:
        scores = [s.total for s in runner.loglikelihoods(PLAIN[row["lang"]].format(row["question"]), row["choices"])]
        right += scores.index(max(scores)) == row["answer"][0]
    return right


def test_the_adapter_is_what_knows_part_b(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    (base,) = jmedlite.quantize(demo.MODEL, bits=[16], out=tmp_path, name="base", threads=2)
    (merged,) = jmedlite.quantize(demo.MODEL, lora=[str(demo.ADAPTER)], bits=[16], out=tmp_path, name="both", threads=2)
    of_base = [row for row in rows if row["groups"]["facts"] == "base"][::40]
    of_adapter = [row for row in rows if row["groups"]["facts"] == "adapter"][::26]
    with jmedlite.Runner(base, threads=1) as model:
        assert _right(model, of_base) >= 0.9 * len(of_base)
        assert _right(model, of_adapter) <= 0.5 * len(of_adapter)
    with jmedlite.Runner(merged, threads=1) as model:
        assert _right(model, of_base) >= 0.9 * len(of_base)
        assert _right(model, of_adapter) >= 0.9 * len(of_adapter)
        answer = "".join(
            p for p in model.stream("壊血病の原因となる欠乏栄養素を挙げてください。") if isinstance(p, str)
        )
        assert answer.strip() == "壊血病はビタミンCの欠乏によって起こります。"
