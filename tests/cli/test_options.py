"""Options stand once: what the command line takes, what it makes of it, and what both it and Python refuse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import jmedlite
from jmedlite.api.bench_options import BenchOptions
from jmedlite.base.errors import UsageError
from jmedlite.base.options import check, option, options_of, parse_memory, same_as
from jmedlite.cli.options import spread
from jmedlite.cli.report import ReportOptions
from jmedlite.runtime.load_options import LoadOptions
from jmedlite.runtime.sampling import Sampling


@dataclass(frozen=True)
class Heat:
    degrees: int | str = option("auto", choices=("auto",), low=1, high=1000, flags=("--heat", "-t"), help="How hot.")
    names: tuple[str, ...] = option(("a",), name="called", choices=("a", "b"), help="What it is called.")
    size: int | None = option(None, typed=str, read=parse_memory, metavar="SIZE", help="How large.")
    fast: bool = option(False, help="At once.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Cold:
    fast: bool = option(True, flags=("--fast/--slow",), help="At once.")
    low: float = option(1.5, low=0, high=2, help="How low.")
    size: int | None = same_as(Heat, "size")


def call(*arguments: str, **environment: str) -> tuple[Any, ...]:
    """What a command got."""
    got: list[Any] = []

    @spread
    def command(
        what: Annotated[str, typer.Argument()] = "it",
        *,
        heat: Annotated[Heat, "degrees", "names", "size"],
        cold: Annotated[Cold, "fast", "low"],
        last: Annotated[bool, typer.Option("--last")] = False,
    ) -> None:
        got.extend((what, heat, cold, last))

    app = typer.Typer(context_settings={"auto_envvar_prefix": "MADE"})
    app.command()(command)
    done = CliRunner().invoke(app, arguments, env=environment, standalone_mode=False)
    if done.exception:
        raise done.exception
    return tuple(got)


def test_a_command_gets_its_dataclasses() -> None:
    assert call() == ("it", Heat(), Cold(), False)
    given = ["x", "-t", "7", "--called", "b", "--called", "a", "--size", "2kB", "--slow", "--low", "0.5", "--last"]
    assert call(*given) == ("x", Heat("7", ("b", "a"), 2000), Cold(False, 0.5), True)
    assert call(MADE_DEGREES="8", MADE_CALLED="b b") == ("it", Heat("8", ("b", "b")), Cold(), False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--heat", "x"], "--heat x: expected auto or a whole number"),
        (["--heat", "0"], "--heat 0: expected auto or 1 to 1,000"),
        (["--called", "a", "--called", "c"], "--called c: expected a or b"),
        (["--size", "much"], "much: is not an amount of memory"),
    ],
)
def test_a_command_refuses(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call(*arguments)


@pytest.mark.parametrize("kind", [Sampling, LoadOptions, BenchOptions, ReportOptions])
def test_every_option_has_help_and_a_default_that_it_takes(kind: type[Any]) -> None:
    check(kind())
    for name, about in options_of(kind).items():
        assert about.help.endswith(".")
        assert getattr(kind, name) == about.default


def test_bench_loads_as_ask_does() -> None:
    shared = ("gpu_layers", "kv_type", "flash_attn", "threads", "force")
    assert [options_of(BenchOptions)[n] for n in shared] == [options_of(LoadOptions)[n] for n in shared]
    asked, loading = LoadOptions(), BenchOptions(threads=3).loading()
    assert vars(loading) == {"threads": 3, "pack": 512} | {n: getattr(asked, n) for n in shared if n != "threads"}


def test_a_gpu_gets_larger_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is there and asked for, not by what is free, so that a run goes on as it began."""
    gpu = {"kind": "GPU", "shared_memory": False}
    for found, changes, pack in (
        ([gpu], {}, 2048), ([gpu], {"gpu_layers": "0"}, 512), ([gpu], {"cluster": "tcp://x:1"}, 512),
        ([{**gpu, "shared_memory": True}], {}, 512), ([{"kind": "CPU"}], {}, 512),
    ):  # fmt: skip
        monkeypatch.setattr("jmedlite.runtime.hardware.devices", lambda found=found: found)
        options = BenchOptions(**changes)
        assert options.loading().pack == options.describe()["pack"] == pack


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (Sampling, {"max_tokens": None}, "--max-tokens None: expected 1 to"),
        (LoadOptions, {"gpu_layers": True}, "--gpu-layers True: expected auto, all or a whole number"),
        (LoadOptions, {"ctx": 8}, "--ctx 8: expected auto or 16 to"),
        (LoadOptions, {"kv_type": "q4_0", "flash_attn": "off"}, "needs flash attention"),
        (BenchOptions, {"kv_type": "q8_0", "flash_attn": "off"}, "needs flash attention"),
        (BenchOptions, {"methods": "text"}, "--method t: expected letter, text or generate"),
        (BenchOptions, {"languages": ("fr",)}, "--lang fr: expected ja or en"),
        (BenchOptions, {"threads": 0}, "--threads 0: expected 1 to"),
        (BenchOptions, {"text_ctx": 3}, "--text-ctx 3: expected 16 to"),
        (BenchOptions, {"text": ("a/exam.txt", "exam=b.txt")}, "two texts are called exam; name them"),
        (BenchOptions, {"text": "exam="}, "--text exam=: names no file"),
        (BenchOptions, {"text": {"": "a.txt"}}, "--text =a.txt: expected a name"),
    ],
)
def test_python_refuses_the_same(kind: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        kind(**given)


def test_texts_by_name() -> None:
    files = ("notes.txt", "exam-ja=a=b.txt", "./x=y.txt")
    expected = {"notes": Path("notes.txt"), "exam-ja": Path("a=b.txt"), "x=y": Path("x=y.txt")}
    assert BenchOptions(text=files).texts == expected
    assert BenchOptions(text=Path("notes.txt")).texts == {"notes": Path("notes.txt")}


def test_a_runner_names_what_it_does_not_know(tiny_gguf: Path) -> None:
    with pytest.raises(UsageError, match="nonsense"):
        jmedlite.Runner(tiny_gguf, nonsense=1)
