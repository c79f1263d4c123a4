"""The report's types against real reports: no field without a type, no type without its field."""

from __future__ import annotations

import types
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from jmedlite.benchmarks.report import sections
from jmedlite.benchmarks.report.report import report
from tests.support import runs as run_builder

Seen = dict[Any, set[str]]  # the keys of every section and of every map with named keys


def check(value: Any, kind: Any, seen: Seen, where: str = "document") -> None:
    """`value` is of the type `kind`, all the way down."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        assert set(value) == set(hints), (where, set(value) ^ set(hints))
        seen[kind] |= set(hints)
        for key, of in hints.items():
            check(value[key], of, seen, f"{where}.{key}")
    elif origin in (Union, types.UnionType):
        kinds = [k for k in arguments if k is not types.NoneType]
        assert value is not None or len(kinds) < len(arguments), where
        for of in kinds if value is not None else ():
            check(value, of, seen, where)
    elif origin is list:
        assert type(value) is list, (where, value)
        for i, part in enumerate(value):
            check(part, arguments[0], seen, f"{where}[{i}]")
    elif origin is dict:
        assert type(value) is dict, (where, value)
        seen[arguments[0]] |= set(value)
        for key, part in value.items():
            check(key, arguments[0], seen, f"{where} key")
            check(part, arguments[1], seen, f"{where}.{key}")
    elif origin is Literal:
        assert value in arguments, (where, value)
    elif kind is not Any:
        assert type(value) in ((int, float) if kind is float else (kind,)), (where, value)


def full(folder: Path, base: str) -> Path:
    """A run that has something to say in every section."""
    names = [f"{base}-{level}" for level in ("BF16", "Q8_0", "Q4_K_M")]
    run_builder.small(
        folder, n=20, base=base, settings={"preset": "jmedllm"}, methods=("letter", "text", "generate"),
        measures=[run_builder.measure(name, r, vram_bytes={"CUDA0": 5}) for r in range(2) for name in names],
        distance=run_builder.distances(names),
    )  # fmt: skip
    head = (folder / "run.json").read_text(encoding="utf-8")
    questions = folder / "questions.jsonl"
    marked = questions.read_text(encoding="utf-8").replace(
        '"excluded": null', '"excluded": null, "marks": {"exam": "112", "section": "general", "points": 1}'
    )
    questions.write_text(marked, encoding="utf-8")
    matrix = '"matrix": {"file": "m", "dataset": null, "n_tensors": 3, "n_chunks": 9}'
    adapted = head.replace('"adapters": []', f'"adapters": [{{"name": "a", "weight": 1.0}}], {matrix}')
    (folder / "run.json").write_text(adapted, encoding="utf-8")
    return folder


def with_a_conflict(folder: Path) -> Path:
    """A partial run whose narrowest level loses all that it loses in one group, and whose widest is the fastest."""
    models = [run_builder.model(level) for level in ("BF16", "Q8_0", "Q4_K_M")]
    questions = [run_builder.question(i, group="b" if i < 40 else "a") for i in range(600)]
    items = [run_builder.answer(q, m["name"], not (rank == 2 and i < 9))
             for rank, m in enumerate(models) for i, q in enumerate(questions)]  # fmt: skip
    measures = [run_builder.measure(m["name"], question_seconds=[1.0 + rank]) for rank, m in enumerate(models)]
    return run_builder.write(folder, models, questions, items[:-1], measures=measures)


def test_every_field_of_the_document_has_its_type_and_every_type_its_fields(tmp_path: Path) -> None:
    seen: Seen = defaultdict(set)
    found = report([full(tmp_path / "qwen", "qwen"), full(tmp_path / "llama", "llama")])
    check(found.document, sections.Document, seen)
    check(report([with_a_conflict(tmp_path / "conflict")]).document, sections.Document, seen)
    typed = {kind for kind in vars(sections).values() if is_typeddict(kind)}
    # only others are made of these
    assert typed - set(seen) == {sections.Compared, sections.Counts, sections.Asked}
    for names in (sections.Baseline, sections.Kind):
        assert seen[names] == set(get_args(names))


def test_a_report_without_answers_has_the_same_fields(tmp_path: Path) -> None:
    empty = run_builder.small(tmp_path / "empty", n=5, keep=lambda line: False, measures=(), noise=())
    check(report([empty]).document, sections.Document, defaultdict(set))
