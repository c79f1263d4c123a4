"""Half characters: lone surrogates, which JSON's escapes can name and no file, terminal or tokenizer can hold."""

from __future__ import annotations

import json
import re
from typing import Any

HALF = "half a character (an escape such as \\ud800 by itself)"
# what may be one; a whole character in escapes is a high half and a low one
_MAYBE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)


def has_halves(raw: bytes, found: Any) -> bool:
    """Whether JSON holds one: `raw`, which was read as `found`."""
    if not _MAYBE.search(raw):
        return False
    try:
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def without_halves(found: Any) -> Any:
    """The same JSON with U+FFFD for each."""
    text = json.dumps(found, ensure_ascii=False)
    return json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
