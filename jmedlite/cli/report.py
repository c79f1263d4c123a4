"""The commands that read run folders: `report` and `recommend`. They need no model and no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console

if TYPE_CHECKING:
    from jmedlite.benchmarks.report.report import Report

Folders = Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="Folders that `jmedlite bench` wrote.")]
Reference = Annotated[
    str | None, typer.Option(metavar="MODEL", help="What the levels are compared with; default: BF16, or the widest.")
]
Margin = Annotated[float, typer.Option(help="The largest loss, in points, that would not matter.")]
Ram = Annotated[str | None, typer.Option(metavar="SIZE", help="Memory that may be used, such as 8GB.")]
Vram = Annotated[str | None, typer.Option(metavar="SIZE", help="GPU memory that may be used, such as 6GB.")]
Latency = Annotated[
    float | None, typer.Option("--max-latency", metavar="SECONDS", help="95 % of questions must be answered within.")
]
Language = Annotated[str, typer.Option("--lang", help="en or ja.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def report(
    folders: Folders,
    reference: Reference = None,
    margin: Margin = 2.0,
    ram: Ram = None,
    vram: Vram = None,
    max_latency: Latency = None,
    lang: Language = "en",
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
    found = _read(folders, reference, margin, ram, vram, max_latency)
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
        _tell(found, lang)
        for path in written:
            console.note(f"wrote {path}")
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def recommend(
    folders: Folders,
    reference: Reference = None,
    margin: Margin = 2.0,
    ram: Ram = None,
    vram: Vram = None,
    max_latency: Latency = None,
    lang: Language = "en",
    as_json: Json = False,
) -> None:
    """Name the one level to use, and why."""
    from jmedlite.benchmarks.report.labels import page_text
    from jmedlite.benchmarks.report.report import recommendation

    page_text(lang)  # refuses other languages
    found = _read(folders, reference, margin, ram, vram, max_latency)
    if as_json:
        console.document(recommendation(found))
    else:
        _tell(found, lang)


def _read(
    folders: list[Path], reference: str | None, margin: float, ram: str | None, vram: str | None, latency: float | None
) -> Report:
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


def _tell(found: Report, lang: str) -> None:
    for warning in found.document["warnings"]:
        console.warn(warning[lang])
    for reason in found.reasons(lang):
        console.out(reason)
