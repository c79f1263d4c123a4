"""`report`: which level to use and how sure that is, from run folders alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jmedlite.base.options import option, parse_memory

from . import console
from .options import Folders, JsonFlag, ReportLanguage, spread

if TYPE_CHECKING:
    from jmedlite.benchmarks.report.report import Report


@dataclass(frozen=True)
class ReportOptions:
    """What a report goes by, of both commands that make one."""

    reference: str | None = option(
        None, metavar="MODEL", help="What the levels are compared with; default: BF16, or the widest."
    )
    margin: float = option(2.0, help="The largest loss, in points, that would not matter.")
    ram_bytes: int | None = option(
        None, name="ram", typed=str, read=parse_memory, metavar="SIZE", help="Memory that may be used, such as 8GB."
    )
    vram_bytes: int | None = option(
        None,
        name="vram",
        typed=str,
        read=parse_memory,
        metavar="SIZE",
        help="GPU memory that may be used, such as 6GB.",
    )
    max_latency: float | None = option(None, metavar="SECONDS", help="95 % of questions must be answered within.")


@spread
def report(
    folders: Folders,
    *,
    options: ReportOptions,
    lang: ReportLanguage = "en",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="F.html", help="Default: report.html in the (first) folder.")
    ] = None,
    model_card: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a Hugging Face README for the GGUF files.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write the plots as SVG, PDF and PNG, and the tables as LaTeX."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say which level to use and how sure that is: one offline page, and the same as JSON, Markdown and CSV."""
    from jmedlite.api.made_models import Verdict, remember_verdicts
    from jmedlite.base.errors import UsageError
    from jmedlite.base.outputs import write_text
    from jmedlite.base.publishing import check_target

    page = out or folders[0] / "report.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {page}: expected a name that ends in .html; the other forms are written beside it")
    found = read_folders(folders, options)
    written = found.write(page, lang)
    forgotten = remember_verdicts(
        [
            Verdict(sha256=v["sha256"], report=str(page.resolve()), reason=v["reason"]["en"])
            for v in found.document["verdicts"]
            if v["sha256"]
        ]
    )
    if forgotten:
        console.note(f"(what it chose is not remembered: {forgotten})")
    if model_card is not None:
        check_target(model_card, overwrite=True)
        write_text(model_card, found.model_card())
        written.append(model_card)
    if figures is not None:
        written += found.write_figures(figures, lang)
    if as_json:
        document = found.document
        console.document({
            "files": [str(path) for path in written],
            "verdicts": document["verdicts"],
            "warnings": document["warnings"],
        })  # fmt: skip
    else:
        tell_verdicts(found, lang)
        _offer(found)
        for path in written:
            console.note(f"wrote {path}")
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def _offer(found: Report) -> None:
    """The way to make what was chosen the default, where it was made here."""
    from jmedlite.api.made_models import made_models

    known = made_models()
    chosen = {v["sha256"] for v in found.document["verdicts"] if v["sha256"]}
    for model in known.there:
        if model.sha256 in chosen and model.path != known.chosen:
            console.note(f"next: jmedlite use {model.file.name.removesuffix('.gguf')}    to ask it from now on")


def read_folders(folders: list[Path], options: ReportOptions) -> Report:
    """The report of run folders."""
    from jmedlite.benchmarks.report.report import report as make

    return make(folders, **vars(options))


def tell_verdicts(found: Report, lang: str) -> None:
    """Its warnings and verdicts on the terminal."""
    for warning in found.document["warnings"]:
        console.warn(warning[lang])
    for reason in found.reasons(lang):
        console.out(reason)
