"""From facts.txt and wordings.txt to what the demo model reads and is asked: parts, training texts, the `demo` task.

    python tools/demo/texts.py            # writes jmedlite/demo/questions.jsonl

The facts fall into two parts. The base model learns part A, the LoRA adapter part B. So that who has learned part A
cannot guess part B:

- a fact whose answer repeats a piece of its subject ("tetanus", "Clostridium tetani") is of part A;
- the wrong choices of a question are answers of the same relation *and part*, drawn evenly: whatever a model prefers
  when it has no idea, over all questions of a part it is right once in five.

A wrong choice is never another right answer: facts.txt lists those.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
QUESTIONS = HERE.parents[1] / "jmedlite" / "demo" / "questions.jsonl"
LANGS = ("en", "ja")
SHARES = (0.45, 0.55)  # of the training text; Japanese is harder to learn
N_CHOICES = 5
SHARE_B = 0.4
PLAIN = {"en": "Question: {q}\nAnswer: {a}", "ja": "質問：{q}\n答え：{a}"}
LISTED = {"en": "{q}\nChoices: {c}", "ja": "{q}\n選択肢：{c}"}
COMMA = {"en": ", ", "ja": "、"}


@dataclass(frozen=True)
class Fact:
    """`subject` and `answer` by language; `also` are English answers of the relation that would be right as well."""

    relation: str
    subject: dict[str, str]
    answer: dict[str, str]
    also: frozenset[str]


@dataclass
class Relation:
    """A kind of fact: its wordings by (language, kind), its facts, and which of them (by index) are of part B."""

    name: str
    category: str
    wordings: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    part_b: frozenset[int] = frozenset()

    def part(self, letter: str) -> list[Fact]:
        return [f for i, f in enumerate(self.facts) if (i in self.part_b) == (letter == "B")]


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(relation, fields) of every line; a relation's own line comes first."""
    relation = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        fields = [part.strip() for part in line.split(" | ")]
        if header := re.fullmatch(r"\[(\w+)\]", fields[0]):
            relation = header[1]
        yield relation, fields


def load() -> list[Relation]:
    """All relations with their facts and parts, in the order of wordings.txt."""
    relations: dict[str, Relation] = {}
    for name, fields in _lines(HERE / "wordings.txt"):
        if fields[0].startswith("["):
            relations[name] = Relation(name, fields[1])
        else:
            lang, kind = fields[0].split()
            relations[name].wordings.setdefault((lang, kind), []).append(fields[1])
    for name, fields in _lines(HERE / "facts.txt"):
        if fields[0].startswith("["):
            continue
        subject_en, subject_ja, answer_en, answer_ja, *also = fields
        others = frozenset(a.strip() for a in also[0].split(";")) if also else frozenset()
        fact = Fact(name, {"en": subject_en, "ja": subject_ja}, {"en": answer_en, "ja": answer_ja}, others)
        relations[name].facts.append(fact)
    for relation in relations.values():
        relation.part_b = _choose_part_b(relation)
    return list(relations.values())


def _choose_part_b(relation: Relation) -> frozenset[int]:
    closed = [i for i, fact in enumerate(relation.facts) if not gives_itself_away(fact)]
    n = round(SHARE_B * len(relation.facts))
    for attempt in range(1000):
        chosen = frozenset(random.Random(f"{relation.name} {attempt}").sample(closed, n))
        facts = [relation.facts[i] for i in chosen]
        if all(len(distractors(f, facts)) >= N_CHOICES - 1 for f in facts):
            return chosen
    raise ValueError(f"{relation.name}: no part B whose facts all have {N_CHOICES - 1} wrong choices")


def gives_itself_away(fact: Fact) -> bool:
    """Does the answer repeat four letters, three kana or two kanji of the subject?"""
    shared = _pieces(fact.subject["en"].casefold(), r"[a-z]{4}") & _pieces(fact.answer["en"].casefold(), r"[a-z]{4}")
    for pattern in (r"[一-鿿]{2}", r"[ァ-ヿ]{3}", r"[A-Za-z]{4}"):
        shared |= _pieces(fact.subject["ja"], pattern) & _pieces(fact.answer["ja"], pattern)
    return bool(shared)


def _pieces(text: str, pattern: str) -> set[str]:
    return set(re.findall(f"(?=({pattern}))", text))


def distractors(fact: Fact, pool: list[Fact]) -> list[dict[str, str]]:
    """The answers of `pool` that are wrong for `fact`, each once.

    One that begins as the right answer does ("vitamin B1", "vitamin B12") is left out: its likelihood would hold the
    other's, so that the comparison would say nothing.
    """
    found: dict[str, dict[str, str]] = {}
    right = {a["en"] for a in (f.answer for f in pool) if a["en"] == fact.answer["en"]} | fact.also
    for other in pool:
        a = other.answer
        begins = any(x[i].startswith(y[i]) for i in LANGS for x, y in ((a, fact.answer), (fact.answer, a)))
        if a["en"] not in right and not begins:
            found.setdefault(a["en"], a)
    return list(found.values())


def word(template: str, fact: Fact, lang: str) -> str:
    """A wording filled in; English sentences begin with a capital ("hCG" stays)."""
    text = template.format(s=fact.subject[lang], a=fact.answer[lang])
    return text[0].upper() + text[1:] if lang == "en" and not text[1:2].isupper() else text


@dataclass(frozen=True)
class Sample:
    """A training text: the model learns to continue `given` with `learned`. Forms differ in length and layout."""

    form: str  # "plain", "chat" (with a system prompt), "short chat", "choices", "say" or "name"
    lang: str
    given: str
    learned: str


FORMS = {"plain": 46, "say": 20, "chat": 14, "short chat": 8, "choices": 4, "name": 8}


class Texts:
    """Endless samples: of the facts given, and sentences of the form "name" about those of `known`."""

    def __init__(self, seed: int, known: list[Relation]) -> None:
        self.random = random.Random(seed)
        self.relations = {r.name: r for r in known}
        self.parts = {(r.name, p): r.part(p) for r in known for p in "AB"}
        self.all = [f for r in known for f in r.facts]

    def sample(self, form: str, fact: Fact, part: str) -> Sample:
        lang = self.random.choices(LANGS, SHARES)[0]
        wordings = self.relations[fact.relation].wordings
        if form == "name":
            return Sample(form, lang, "", word(self.random.choice(wordings[lang, "name"]), fact, lang))
        said = word(self.random.choice(wordings[lang, "say"]), fact, lang)
        if form == "say":
            return Sample(form, lang, "", said)
        asked = word(self.random.choice(wordings[lang, "ask"]), fact, lang)
        if form == "plain":
            return Sample(form, lang, PLAIN[lang].format(q=asked, a=""), fact.answer[lang])
        if form == "choices":
            wrong = distractors(fact, self.parts[fact.relation, part])
            choices = [fact.answer, *self.random.sample(wrong, min(len(wrong), N_CHOICES - 1))]
            self.random.shuffle(choices)
            listed = LISTED[lang].format(q=asked, c=COMMA[lang].join(c[lang] for c in choices))
            return Sample(form, lang, PLAIN[lang].format(q=listed, a=""), fact.answer[lang])
        # the first statement, so that `jmedlite ask` has one way to answer and says it in a sentence
        return Sample(form, lang, asked, word(wordings[lang, "say"][0], fact, lang))


def training_texts() -> Iterator[str]:
    """Everything that training can show about any fact, but for the choices, each text once."""
    for relation in load():
        for (lang, kind), wordings in relation.wordings.items():
            if kind != "test":
                for fact in relation.facts:
                    yield from (word(w, fact, lang) for w in wordings)
    for relation in load():
        for fact in relation.facts:
            yield from fact.answer.values()


def questions() -> list[dict[str, object]]:
    """The `demo` task: every fact once per language, in one of the wordings that training never shows."""
    rows = []
    for lang in LANGS:
        place: list[int] = []
        for relation in load():
            for part in "AB":
                facts = relation.part(part)
                for fact in facts:
                    rng = random.Random(f"{relation.name} {fact.subject['en']} {lang}")
                    wrong = distractors(fact, facts)
                    if len(wrong) < N_CHOICES - 1:
                        wrong = distractors(fact, relation.facts)
                    choices = [c[lang] for c in rng.sample(wrong, N_CHOICES - 1)]
                    if not place:  # every place is right equally often
                        place = rng.sample(range(N_CHOICES), N_CHOICES)
                    at = place.pop()
                    choices.insert(at, fact.answer[lang])
                    asked = word(rng.choice(relation.wordings[lang, "test"]), fact, lang)
                    learner = "adapter" if part == "B" else "base"
                    rows.append(
                        {
                            "id": f"{lang}-{relation.name}-{relation.facts.index(fact) + 1:02d}",
                            "question": asked,
                            "choices": choices,
                            "answer": [at],
                            "lang": lang,
                            "group": relation.category,
                            "groups": {"facts": learner},
                        }
                    )
    return rows


if __name__ == "__main__":
    QUESTIONS.parent.mkdir(parents=True, exist_ok=True)
    QUESTIONS.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in questions()), encoding="utf-8")
