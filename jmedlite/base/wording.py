"""Wording: how several names are told in one line."""

from __future__ import annotations

from collections.abc import Sequence


def some(names: Sequence[str], shown: int = 1) -> str:
    """The first `shown` names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
