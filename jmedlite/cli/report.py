"""`report`: which level to use and how sure that is, from run folders alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .options import Folders, Json, Latency, Margin, Ram, Reference, ReportLanguage, Vram

if TYPE_CHECKING:
    from jmedlite.benchmarks.report.report import Report


def report(
    folders: Folders,
    reference: Reference = None,
    margin: Margin = 2.0,
    ram: Ram = None,
    vram: Vram = None,
    max_latency: Latency = None,
    lang: ReportLanguage = "en",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="F.html", help="Default: report.html in the (first) folder.")
    ] = None,
    model_card: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a Hugging Face README for the GGUF files.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Say which level to use and how sure that is: one offline page, and the same as JSON, Markdown and CSV."""
    from jmedlite.base.errors import UsageError
    from jmedlite.base.outputs import check_target, write_text

    page = out or folders[0] / "report.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {page}: expected a name that ends in .html; the other forms are written beside it")
    found = read_folders(folders, reference, margin, ram, vram, max_latency)
    written = found.write(page, lang)
    if model_card is not None:
        check_target(model_card, overwrite=True)
        write_text(model_card, found.model_card())
        written.append(model_card)
    if as_json:
        document = found.document
        console.document({
            "files": [str(path) for path in written],
            "verdicts": document["verdicts"],
            "warnings": document["warnings"],
        })  # fmt: skip
    else:
        tell_verdicts(found, lang)
        for path in written:
            console.note(f"wrote {path}")
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def read_folders(
    folders: list[Path], reference: str | None, margin: float, ram: str | None, vram: str | None, latency: float | None
) -> Report:
    """The report of run folders under the options that both commands have."""
    from jmedlite.api.quantize import as_bytes
    from jmedlite.benchmarks.report.report import report as make

    return make(
        folders,
        reference=reference,
        margin=margin,
        ram_bytes=as_bytes(ram),
        vram_bytes=as_bytes(vram),
        max_latency=latency,
    )


def tell_verdicts(found: Report, lang: str) -> None:
    """Its warnings and verdicts on the terminal."""
    for warning in found.document["warnings"]:
        console.warn(warning[lang])
    for reason in found.reasons(lang):
        console.out(reason)
