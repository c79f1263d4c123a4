"""Benchmark items in calibration text: found wherever they stand and however they are laid out; other text passes."""

from __future__ import annotations

import json
import os
import random
import unicodedata
from pathlib import Path

import pytest

from jmedlite.base.errors import DataError
from jmedlite.calibration import overlap
from jmedlite.calibration.compute import compute_imatrix
from jmedlite.calibration.texts import shipped_text
from tests.support.commands import check, run

JA = "七十二歳の男性。三日前からの右季肋部痛と発熱のため来院した。次に行うべき検査として最も適切なものはどれか。"
EN = (
    "A 72-year-old man comes to the hospital because of pain in the right upper abdomen and fever for three days. "
    "Which examination should be performed next?"
)
SHORT = "誤っているものはどれか。"


def task(path: Path, *items: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(i, ensure_ascii=False) + "\n" for i in items), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("ＡＢＣ　ｱﾚﾙｷﾞｰ", "abcアレルギー"),
        ("Straße, 5 mg/dL.", "STRASSE5MGDL"),
        ("ﾊﾟ\nﾝ", "パン"),
        ("①胃・腸—(肝)", "1胃腸肝"),
        ("", ""),
    ],
)
def test_normal_form(one: str, two: str) -> None:
    assert overlap.normalise(one) == overlap.normalise(two)


@pytest.mark.parametrize("length", [16, 32, 64])
def test_rolling_hashes_depend_on_the_window_alone(length: int) -> None:
    rng = random.Random(length)
    text = "".join(rng.choice("abc胃腸肝𠮷") for _ in range(300))
    found = overlap.rolling(text, length)
    assert len(found) == len(text) - length + 1
    for at in (0, 1, 137, 300 - length):
        assert found[at] == overlap.rolling(text[at : at + length], length)[0]
    swapped = text[1] + text[0] + text[2:length]
    assert text[0] == text[1] or overlap.rolling(swapped, length)[0] != found[0]
    assert overlap.rolling("ab", 3).size == 0


def test_the_hash_is_what_the_shipped_file_was_made_with() -> None:
    assert int(overlap.rolling("calibration text", 16)[0]) == 0x6DDDBC8E795C2146


@pytest.mark.parametrize("item", [JA, EN])
@pytest.mark.parametrize(
    "layout",
    [
        lambda q: q,
        lambda q: f"前置き。\n問い {q}\nその後",
        lambda q: unicodedata.normalize("NFD", q.upper()),
        lambda q: "\n".join(q[i : i + 7] for i in range(0, len(q), 7)),
        lambda q: " ".join(q.replace("、", ",").replace(".", " .")),
    ],
)
def test_an_item_is_found(tmp_path: Path, item: str, layout: object) -> None:
    prints = overlap.read_task(
        task(tmp_path / "t.jsonl", {"id": "q1", "question": "別の" + JA[::-1]}, {"id": "q2", "question": item})
    )
    text = "通常の文章。\n" * 3 + layout(item)  # type: ignore[operator]
    found = overlap.find_overlaps(text, prints)
    assert [f.item for f in found] == ["q2"]
    assert found[0].line >= 4
    assert overlap.find_overlaps("通常の文章。" * 50, prints) == []


def test_a_long_text_is_searched_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "BLOCK", 50)
    prints = overlap.read_task(task(tmp_path / "t.jsonl", {"problem_text": JA}))
    for n in range(40, 60):
        (found,) = overlap.find_overlaps("胃" * n + "\n" + JA, prints)
        assert (found.item, found.line) == ("line 1", 2)


def test_what_is_no_item(tmp_path: Path) -> None:
    """Short stems, names among the choices and turns of phrase of many items may stand in any text."""
    phrase = "意識は清明。体温三十六度五分。呼吸音に異常を認めない。腹部は平坦、軟で、肝・脾を触知しない。"
    items = [{"id": f"q{i}", "question": f"{chr(0x4E00 + i) * 32}{phrase}"} for i in range(5)]
    prints = overlap.read_task(
        task(tmp_path / "t.jsonl", {"question": SHORT, "choices": ["オルニチントランスカルバミラーゼ欠損症"]}, *items)
    )
    for text in (SHORT, "オルニチントランスカルバミラーゼ欠損症は尿素回路の病気である。", phrase):
        assert overlap.find_overlaps(text, prints) == []
    assert overlap.find_overlaps(chr(0x4E03) * 32, prints)[0].item == "q3"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "line 1: is not JSON"),
        ('\n{"question": "' + JA + '"}\n[1]', "line 3: has none of the fields"),
        ('{"answer": "a"}', "line 1: has none of the fields"),
        ('{"question": 5}', "question is not text"),
        ("[" * 100_000, "line 1: is not JSON"),
        ('{"question": "' + SHORT[:9] + '"}', "nothing can be compared"),
        ("", "nothing can be compared"),
    ],
)
def test_task_files(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        overlap.read_task(path)


def test_the_command_refuses_and_says_where(tiny_gguf: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("診療の記録。\n" * 40 + JA, encoding="utf-8")
    exclude = task(tmp_path / "mine.jsonl", {"problem_id": "A7", "problem_text": JA, "choices": ["胃", "腸"]})
    command = ["imatrix", str(tiny_gguf), "--text", str(text), "--out", str(tmp_path / "i.gguf"), "--ctx", "32"]
    check(run(*command, "--exclude-task", str(exclude)), 65, "text.txt, line 41", "item A7 of mine.jsonl")
    assert run(*command).returncode == 0


@pytest.mark.parametrize("language", ["ja", "en"])
def test_the_shipped_text_holds_no_known_item(language: str) -> None:
    shipped = overlap.shipped()
    assert shipped.hashes.size > 5000
    assert len(shipped.ids) > 1000
    assert overlap.find_overlaps(shipped_text(language), shipped) == []


def test_save_and_load_are_inverse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prints = overlap.fingerprints([("IgakuQA 1", JA, False), ("IgakuQA 2", EN, False)])
    overlap.save(tmp_path / "benchmarks.npz", prints)
    monkeypatch.setattr(overlap, "files", lambda package: tmp_path)
    overlap.shipped.cache_clear()
    found = overlap.shipped()
    overlap.shipped.cache_clear()
    assert found.ids == prints.ids
    assert [o.item for o in overlap.find_overlaps(JA + EN, found)] == ["IgakuQA 1", "IgakuQA 2"]


@pytest.mark.skipif("JMEDLITE_IGAKUQA" not in os.environ, reason="JMEDLITE_IGAKUQA is not set")
def test_the_shipped_hashes_know_igakuqa(tiny_gguf: Path, tmp_path: Path) -> None:
    shipped, missed = overlap.shipped(), []
    for path in sorted(Path(os.environ["JMEDLITE_IGAKUQA"]).glob("data/*/*.jsonl")):
        if "metadata" in path.name:
            continue
        for name, text, choice in overlap.task_items(path, "IgakuQA "):
            stands = not choice and overlap.windows(overlap.normalise(text))
            if stands and name not in [o.item for o in overlap.find_overlaps("前。" + text, shipped)]:
                missed.append(name)
    assert len(missed) < 12, missed  # those whose every window is a turn of phrase
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(DataError, match="IgakuQA"):
        compute_imatrix(tiny_gguf, texts=[tmp_path / "t.txt"])
