"""Cut the font of the report's plots out of Noto Sans CJK: the characters that the plots may need, and no others.

    python tools/subset_font.py /usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc

Needs Debian's fonts-noto-cjk, or any other copy of that file. Run it again when a label with new characters comes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTCollection

from jmedlite.benchmarks.report.labels import page_text
from jmedlite.benchmarks.report.plots import FONT, FONT_NAME

JAPANESE = "Noto Sans CJK JP"


def main(collection: Path) -> None:
    """Write the font into the package."""
    fonts = TTCollection(collection).fonts
    font = next(f for f in fonts if f["name"].getDebugName(1) == JAPANESE)
    text = "".join(page_text("ja").values()) + "–−…•→≤≥±×µ°"
    text += "".join(chr(c) for block in ((0x20, 0x7F), (0xA0, 0x100), (0x3041, 0x3097), (0x30A1, 0x30FD))
                    for c in range(*block))  # fmt: skip
    options = subset.Options(
        layout_features=[], hinting=False, name_IDs=[0, 1, 2, 3, 4, 5, 6, 13, 14], notdef_outline=True
    )
    cutter = subset.Subsetter(options)
    cutter.populate(text=text)
    cutter.subset(font)
    for record in font["name"].names:  # another family than the system's, so that neither is taken for the other
        if record.nameID in (1, 4):
            font["name"].setName(FONT_NAME, record.nameID, record.platformID, record.platEncID, record.langID)
    font.save(FONT)
    print(f"{FONT}: {len(font.getGlyphOrder())} glyphs, {FONT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
