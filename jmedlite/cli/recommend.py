"""`recommend`: the one level to use, and why, from run folders alone."""

from __future__ import annotations

from . import console
from .options import Folders, Json, Latency, Margin, Ram, Reference, ReportLanguage, Vram
from .report import read_folders, tell_verdicts


def recommend(
    folders: Folders,
    reference: Reference = None,
    margin: Margin = 2.0,
    ram: Ram = None,
    vram: Vram = None,
    max_latency: Latency = None,
    lang: ReportLanguage = "en",
    as_json: Json = False,
) -> None:
    """Name the one level to use, and why."""
    from jmedlite.benchmarks.report.labels import page_text
    from jmedlite.benchmarks.report.report import recommendation

    page_text(lang)  # refuses other languages
    found = read_folders(folders, reference, margin, ram, vram, max_latency)
    if as_json:
        console.document(recommendation(found))
    else:
        tell_verdicts(found, lang)
