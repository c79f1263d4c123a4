"""Points: what a level earns in each licensing exam, and the chance that it passes (docs/report.md).

The exam is what its printed order is: of a question that was asked in several orders of its choices, the first counts.
An answer that was too long is wrong; what was not asked (images, a sample, an unfinished run) is open.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jmedlite.benchmarks.passing import Gate, Kind, chance
from jmedlite.benchmarks.records import QuestionRecord
from jmedlite.benchmarks.tasks.exams import EXAMS, Exam
from jmedlite.benchmarks.views import View

from .ages import age_of
from .labels import LANGUAGES, say
from .pool import Entrant, Pool
from .sections import SECTIONS, Bilingual, ExamPoints, SectionPoints, Sitting

SURE = 0.95  # probability from which a level is said to pass, or to fail


@dataclass(frozen=True)
class _Answered:
    """What came of one question: None in `right` where it is open."""

    question: QuestionRecord
    right: bool | None
    harmful: bool


def exam_points(laid: Pool, view: View) -> list[ExamPoints]:
    """Every exam of every task that has points, with what each model that was asked any of it earned."""
    found: list[ExamPoints] = []
    for task in dict.fromkeys(t.name for run in laid.runs for t in run.tasks):
        exams: dict[str, dict[str, QuestionRecord]] = defaultdict(dict)
        for run in laid.runs:
            for q in run.questions.values():
                if q.task == task and q.marks is not None and q.marks.exam in EXAMS:
                    exams[q.marks.exam].setdefault(q.id, q)
        found += [_exam(laid, view, task, number, list(exams[number].values())) for number in sorted(exams)]
    return [exam for exam in found if exam["sittings"]]


def _exam(laid: Pool, view: View, task: str, number: str, questions: Sequence[QuestionRecord]) -> ExamPoints:
    exam = EXAMS[number]
    totals = {s: sum(q.marks.points for q in questions if q.marks and q.marks.section == s) for s in SECTIONS}
    marked = any(q.contraindicated for q in questions)
    whole = all(totals[s] == exam.lines[s].of for s in SECTIONS)
    sittings = []
    for entrant in laid.entrants:
        answered = _answers(laid, view, entrant, task, questions)
        if any(a.right is not None for a in answered):
            sittings.append(_sitting(entrant, exam, answered, whole, marked))
    return {
        "task": task,
        "exam": number,
        "held": exam.date,
        "whole": whole,
        "reference": exam.reference,
        "lines": {s: exam.lines[s].points for s in SECTIONS},
        "points": totals,
        "harmful": exam.harmful if marked else None,
        "sittings": sittings,
    }


def _answers(
    laid: Pool, view: View, entrant: Entrant, task: str, questions: Sequence[QuestionRecord]
) -> list[_Answered]:
    sheet = laid.sheets.get(view.method, {}).get(entrant.key, {})
    first = {unit[0].id: answer for unit, answer in sheet.items() if unit[0].task == task and unit[1] == 0}
    long = {unit[0].id for unit in laid.too_long.get(view.method, {}).get(entrant.key, ()) if unit[0].task == task}
    found = []
    for q in questions:
        answer = first.get(q.id)
        right = view.correct(answer) if answer else False if q.id in long else None
        taken = bool(answer and set(view.picks(answer)) & set(q.contraindicated))
        found.append(_Answered(q, right, taken))
    return found


def _sitting(entrant: Entrant, exam: Exam, answered: Sequence[_Answered], whole: bool, marked: bool) -> Sitting:
    sections: list[SectionPoints] = []
    gates, again, least, most = [], [], True, True
    for section in SECTIONS:
        kinds = _kinds(answered, section)
        earned = sum(k.points * k.right for k in kinds)
        asked = sum(k.points * k.n for k in kinds)
        rest = sum(k.points * k.open for k in kinds)
        line = exam.lines[section].points
        sections.append({"section": section, "points": earned, "asked": asked, "of": asked + rest,
                         "share": asked / (asked + rest) if asked + rest else None})  # fmt: skip
        gates.append(Gate(kinds, earned, least=line))
        again.append(Gate(tuple(_anew(k) for k in kinds), 0, least=line))
        least, most = least and earned >= line, most and earned + rest >= line
    harmful = None
    if marked:
        known = [a for a in answered if a.question.contraindicated]
        asked_ = [a for a in known if a.right is not None]
        harmful = sum(a.harmful for a in asked_)
        kind = Kind(1, harmful, len(asked_), len(known) - len(asked_))
        gates.append(Gate((kind,), harmful, most=exam.harmful))
        again.append(Gate((_anew(kind),), 0, most=exam.harmful))
        # all others wrong: each of them with the contraindicated choice, where there is one
        least, most = least and harmful + kind.open <= exam.harmful, most and harmful <= exam.harmful
    mean, interval = chance(gates) if whole else (None, None)
    new, new_interval = chance(again) if whole else (None, None)
    age = age_of(entrant.model)
    return {
        "model": entrant.key,
        "sections": sections,
        "harmful": harmful,
        "least": least if whole else None,
        "most": most if whole else None,
        "chance": mean,
        "interval": list(interval) if interval else None,
        "another": new,
        "another_interval": list(new_interval) if new_interval else None,
        "newer": age.newer_than(exam.date) if age else None,
    }


def _kinds(answered: Sequence[_Answered], section: str) -> tuple[Kind, ...]:
    """Of a section, the questions of each worth; what was taken out of the scoring is worth nothing."""
    of: dict[int, list[bool | None]] = defaultdict(list)
    for a in answered:
        if a.question.marks and a.question.marks.section == section and a.question.marks.points:
            of[a.question.marks.points].append(a.right)
    return tuple(
        Kind(points, sum(r is True for r in of[points]), sum(r is not None for r in of[points]), of[points].count(None))
        for points in sorted(of)
    )


def _anew(kind: Kind) -> Kind:
    """The same questions, all of them to come."""
    return Kind(kind.points, kind.right, kind.n, kind.n + kind.open)


# ------------------------------------------------------------------------------------------------------- sentences


def outcome_of(sitting: Sitting) -> str | None:
    """ "passes", "fails" or "open"; None where the exam is not whole."""
    if sitting["chance"] is None:
        return None
    if sitting["chance"] >= SURE:
        return "passes"
    return "fails" if sitting["chance"] <= 1 - SURE else "open"


def sentences(laid: Pool, exams: Sequence[ExamPoints], references: Mapping[str, str]) -> list[Bilingual]:
    """Who passes what: a sentence for each level, beside its reference's."""
    found: list[Bilingual] = []
    langs = {t.name: t.lang for run in laid.runs for t in run.tasks}
    for lang in dict.fromkeys(langs[e["task"]] for e in exams):
        own = [e for e in exams if langs[e["task"]] == lang]
        several = len({langs[e["task"]] for e in exams}) > 1
        for family in laid.families:
            entrants = laid.family(family)
            outcomes = {e.key: _outcome(e.key, own) for e in entrants}
            reference = next((e for e in entrants if e.key == references.get(family)), None)
            before = outcomes.get(reference.key) if reference else None
            for e in sorted(entrants, key=lambda e: e is not reference):
                outcome = outcomes[e.key]
                if outcome is None:
                    continue
                name = e.label if len(laid.families) == 1 else f"{family} {e.label}"
                level = f"{name} ({lang})" if several else name
                if reference is None or e is reference or before is None:
                    found.append(say("x_reference", level=level, outcome=outcome))
                elif outcome == before:
                    found.append(say("x_same", level=level, outcome=outcome, reference=reference.label))
                else:
                    found.append(say("x_other", level=level, outcome=outcome, reference=reference.label, before=before))
    return found


def _outcome(key: str, exams: Sequence[ExamPoints]) -> Bilingual | None:
    """ "passes 2019–2020, fails 2018", in both languages."""
    years: dict[str, list[int]] = {"passes": [], "fails": [], "open": []}
    for exam in exams:
        for sitting in exam["sittings"]:
            if sitting["model"] == key and (outcome := outcome_of(sitting)):
                years[outcome].append(int(exam["held"][:4]))
    parts = [say(f"x_{outcome}", years=_ranges(sorted(set(found)))) for outcome, found in years.items() if found]
    if not parts:
        return None
    return _joined("x_joiner", parts)


def _joined(joiner: str, parts: Sequence[Bilingual]) -> Bilingual:
    return {lang: say(joiner)[lang].join(part[lang] for part in parts) for lang in LANGUAGES}


def _ranges(years: Sequence[int]) -> Bilingual:
    """Years, those in a row as one range."""
    rows: list[list[int]] = []
    for year in years:
        if rows and year == rows[-1][-1] + 1:
            rows[-1].append(year)
        else:
            rows.append([year])
    parts = [say("x_years" if len(row) > 1 else "x_year", first=row[0], last=row[-1]) for row in rows]
    return _joined("x_and", parts)
