"""The command that shows everything on a model that ships with jmedlite: `demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console
from .options import JsonFlag

if TYPE_CHECKING:
    from jmedlite.api.demo import Demo


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything; nothing else is touched.")] = Path(
        "jmedlite-demo"
    ),
    limit: Annotated[
        int | None, typer.Option(help="Only so many questions in each language: quicker, and less sure.")
    ] = None,
    lang: Annotated[str, typer.Option("--lang", help="Language of the report: en or ja.")] = "en",
    show: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the whole way, offline, on a small model that learned some textbook facts."""
    from jmedlite.api.demo import Demo
    from jmedlite.benchmarks.report.labels import page_text
    from jmedlite.runtime.chat_template import NOTICE

    page_text(lang)  # refuses other languages
    started = time.monotonic()
    shown = Demo(out, limit)
    shown.check()
    console.note("A model of 4 million parameters that ships with jmedlite: a demonstration, not a medical model.")
    _step(
        1, "merge the adapter and quantize, seven levels in one pass", "quantize MODEL --lora ADAPTER -b 8 -b 4 -o gguf"
    )
    with console.progress("quantizing") as quantizing:
        files = shown.quantize(quantizing)
    for path in files:
        console.note(f"   {path}  {console.size(path.stat().st_size)}")
    asked = "788 questions" if limit is None else f"{limit:,} questions in each language"
    _step(2, f"ask every level {asked}, and measure what it costs", "bench gguf --task igakuqa=IgakuQA -o run")
    with console.progress() as benching:
        shown.bench(benching)
    if not as_json:
        _accuracies(shown)
    _step(3, "write the report: which level to use, and how sure that is", "report run")
    found, written = shown.report(lang)
    verdicts = found.reasons(lang)
    for verdict in verdicts:
        console.note(f"   {verdict}")
    console.note(f"   wrote {', '.join(str(p) for p in written)}")
    _step(4, "ask it", 'ask -m gguf/MODEL-Q4_K_M.gguf "高血圧の第一選択薬は何ですか。"')
    answers = _ask(shown, silent=as_json)
    if as_json:
        console.document(
            {
                "folder": str(out),
                "files": [str(p) for p in files],
                "accuracies": shown.accuracies(),
                "report": str(shown.page),
                "verdict": verdicts,
                "answers": answers,
                "seconds": round(time.monotonic() - started, 1),
                "notice": NOTICE["en"],
            }
        )
    console.note(f"\ndone in {time.monotonic() - started:.0f} s; everything is in {out}, the report: {shown.page}")
    console.note(NOTICE["ja" if lang == "ja" else "en"])
    if show:
        import webbrowser

        webbrowser.open(shown.page.resolve().as_uri())


def _step(number: int, what: str, command: str) -> None:
    console.note(f"\n{number}. {what}\n   with a real model: jmedlite {command}")


def _accuracies(shown: Demo) -> None:
    """Right answers with 95 % intervals, by what taught the facts."""
    rows = [[row["model"], *(_percent(part) for part in row["parts"].values())] for row in shown.accuracies()]
    columns = (("model", "left"), ("facts of the base", "right"), ("facts of the adapter", "right"))
    console.table(columns, rows)
    console.note("   five choices: chance is 20 %; the base never saw the adapter's facts")


def _percent(part: dict[str, Any]) -> str:
    return f"{part['percent']:.1f} % ({part['low']:.0f}–{part['high']:.0f})" if part["n"] else "–"


def _ask(shown: Demo, *, silent: bool) -> list[dict[str, str]]:
    answers = []
    for question, pieces in shown.ask():
        if not silent:
            console.out(f"   {question}\n   → ", end="")
        text = ""
        for piece in pieces:
            text += piece
            if not silent:
                console.out(piece, end="")
        if not silent:
            console.out("")
        answers.append({"question": question, "answer": text})
    return answers
