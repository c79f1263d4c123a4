"""What was made, what is the default of it, and how another is chosen; the environment's names for options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.core import TyperOption
from typer.main import get_command

from jmedlite.api.made_models import (
    MadeModel,
    Verdict,
    choose_model,
    made_models,
    remember_models,
    remember_verdicts,
    state_folder,
)
from jmedlite.base.errors import DataError
from jmedlite.cli.app import app
from jmedlite.cli.command import OTHERS, SHARED
from jmedlite.runtime.state_cache import nothing_kept
from tests.support import runs
from tests.support.commands import check, run, run_text


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMEDLITE_STATE", str(tmp_path / "state"))


def make(folder: Path, gguf: Path, name: str, **levels: float) -> list[Path]:
    """Files of a model at levels with so many bits per weight, remembered as made together."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}-{level}.gguf" for level in levels]
    for path in paths:
        shutil.copy(gguf, path)
    remember_models(
        MadeModel(path=str(p), name=name, level=level, bits_per_weight=bits, sha256=f"{name}-{level}")
        for p, (level, bits) in zip(paths, levels.items(), strict=True)
    )
    return paths


def test_the_default_is_never_simply_the_last(tmp_path: Path, tiny_gguf: Path) -> None:
    assert made_models().default() is None
    q8, q4, q2 = make(tmp_path / "a", tiny_gguf, "m", Q8_0=8.5, Q4_K_M=6.3, Q2_K=5.4)  # of a small model
    assert made_models().default() == q4
    (q3,) = make(tmp_path / "a", tiny_gguf, "m", Q3_K_M=3.9)
    assert made_models().default() == q4
    (other,) = make(tmp_path / "a", tiny_gguf, "other", Q2_K=2.6)
    assert made_models().default() == other
    choose_model(q2)
    make(tmp_path / "a", tiny_gguf, "m", Q4_K_M=4.8)
    assert made_models().default() == q2
    q2.unlink()
    check(run("ask", "q"), 66, f"{q2}: was chosen by `jmedlite use` and is gone; choose another")
    assert run_text("use", "--reset").returncode == 0
    assert made_models().default() == q4
    assert {m.file for m in made_models().there} == {q8, q4, q3, other}


def test_models_and_use(tmp_path: Path, tiny_gguf: Path) -> None:
    _, q4 = make(tmp_path / "a", tiny_gguf, "m", Q8_0=8.5, Q4_K_M=4.8)
    remember_verdicts([Verdict(sha256="m-Q8_0", report="report.html", reason="Q8_0: no meaningful loss")])
    listed = json.loads(run_text("models", "--json").stdout)
    assert listed["default"] == str(q4)
    assert [m["level"] for m in listed["models"]] == ["Q4_K_M", "Q8_0"]
    assert [m["fits"] for m in listed["models"]] == [True, True]
    assert [m["default"] for m in listed["models"]] == [True, False]
    assert listed["models"][1]["verdict"] == {"reason": "Q8_0: no meaningful loss", "report": "report.html"}
    assert "*  m-Q4_K_M" in run_text("models").stdout
    for name in ("q8_0", "m-Q8_0", "m-Q8_0.gguf", str(tmp_path / "a" / "m-Q8_0.gguf")):
        assert run_text("use", "--reset").returncode == 0
        assert run_text("use", name).returncode == 0
        assert run_text("use").stdout == f"{tmp_path / 'a' / 'm-Q8_0.gguf'}\n"
    check(run("use", "Q5_K_M"), 66, "Q5_K_M: no such GGUF file; `jmedlite models` lists m-Q4_K_M.gguf, m-Q8_0.gguf")
    make(tmp_path / "b", tiny_gguf, "m", Q8_0=8.5)
    check(run("use", "Q5_K_M"), 66, "`jmedlite models` lists m-Q8_0.gguf, m-Q4_K_M.gguf")  # a name once
    check(run("use", "Q8_0", "--reset"), 2, "give one")
    assert run_text("ask", "-m", "Q4_K_M", "--max-tokens", "1", "--no-cache", "hello").returncode == 0


def test_a_foreign_state_file_is_named(tmp_path: Path) -> None:
    state_folder().mkdir()
    (state_folder() / "models.json").write_text('{"format": 1, "models": [], "verdicts": [], "later": 1}')
    with pytest.raises(DataError, match=r'models\.json: has an unknown field "later"'):
        made_models()
    check(run("ask", "q"), 65, "unknown field")
    (state_folder() / "models.json").write_text('{"format": 9}')
    check(run("ask", "q"), 65, "models.json: is not of format 1; move it away")


def test_where_nothing_can_be_remembered_a_note_says_so(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JMEDLITE_STATE", str(tiny_gguf / "state"))  # where no folder can be made, for root neither
    monkeypatch.setenv("JMEDLITE_CACHE", str(tiny_gguf / "cache"))
    done = run_text("quantize", str(tiny_gguf), "-b", "8", "--allow-requantize", "-j", "1", "-o", str(tmp_path))
    assert done.returncode == 0
    assert "(not remembered, so `ask` needs its name by -m: " in done.stderr
    done = run_text("report", str(runs.small(tmp_path / "run", n=9)))
    assert "(what it chose is not remembered: " in done.stderr
    done = run_text("ask", "-m", str(tiny_gguf), "--max-tokens", "1", "-j", "1", "hello")
    assert done.returncode == 0
    assert "(nothing is cached, every prompt is read anew: " in done.stderr
    for name in ("JMEDLITE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert "JMEDLITE_CACHE" in nothing_kept()


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_report_offers_its_choice(tmp_path: Path, tiny_gguf: Path) -> None:
    folder = runs.small(tmp_path / "run")
    run_text("report", str(folder))
    (said,) = made_models().verdicts
    make(tmp_path / "a", tiny_gguf, "m", Q8_0=8.5)
    state = made_models()
    remember_models([MadeModel(**{**vars(state.models[0]), "sha256": said.sha256})])
    done = run_text("report", str(folder))
    assert "next: jmedlite use m-Q8_0 " in done.stderr
    assert made_models().verdict_of(made_models().models[0]) == said


def test_variables_have_the_names_of_the_flags(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for option in command.params:
            if isinstance(option, TyperOption):
                flag = max(option.opts, key=len).lstrip("-").replace("-", "_").upper()
                assert option.envvar[0] == f"JMEDLITE_{name.upper()}_{flag}"
                assert set(option.envvar[1:]) <= {f"JMEDLITE_{n}" for n in SHARED}
    assert not set(SHARED) & set(OTHERS)
    monkeypatch.setenv("JMEDLITE_MODEL", str(tiny_gguf))
    monkeypatch.setenv("JMEDLITE_LANG", "ja")
    done = run_text("ask", "hello", "--max-tokens", "1", "--no-cache")
    assert "研究用" in done.stderr
    monkeypatch.setenv("JMEDLITE_ASK_LANG", "en")
    assert "研究用" not in run_text("ask", "hello", "--max-tokens", "1", "--no-cache").stderr


def test_variables_that_nothing_reads_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMEDLITE_ASK_LANGUAGE", "ja")
    monkeypatch.setenv("JMEDLITE_MODLE", "x")
    monkeypatch.setenv("JMEDLITE_REAL_MODELS", "x")  # somebody else's
    told = run_text("models").stderr
    assert "warning: JMEDLITE_ASK_LANGUAGE: no setting has this name; is JMEDLITE_ASK_LANG meant?" in told
    assert "warning: JMEDLITE_MODLE: no setting has this name; is JMEDLITE_MODEL meant?" in told
    assert "REAL_MODELS" not in told
