"""`recommend`: the one level to use, and why, from run folders alone."""

from __future__ import annotations

from . import console
from .options import Folders, JsonFlag, ReportLanguage, spread
from .report import ReportOptions, read_folders, tell_verdicts


@spread
def recommend(
    folders: Folders,
    *,
    options: ReportOptions,
    lang: ReportLanguage = "en",
    as_json: JsonFlag = False,
) -> None:
    """Name the one level to use, and why."""
    from jmedlite.benchmarks.report.labels import page_text
    from jmedlite.benchmarks.report.report import recommendation

    page_text(lang)  # refuses other languages
    found = read_folders(folders, options)
    if as_json:
        console.document(recommendation(found))
    else:
        tell_verdicts(found, lang)
