"""Wording: how several names, and values that a file holds, are told in one line."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def some(names: Sequence[str], shown: int = 1) -> str:
    """The first `shown` names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def shown(value: Any) -> str:
    """A value of JSON, which may be of any size and depth, in some hundred characters at most."""
    text = _SHORT.repr(value)
    return text if len(text) <= 100 else text[:99] + "…"
