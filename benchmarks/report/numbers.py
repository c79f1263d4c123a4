"""How numbers are written: percent, points, gigabytes, p-values; with a true minus sign, and a dash for what is not."""

from __future__ import annotations

import math

MISSING = "–"


def fixed(value: float | None, digits: int = 1) -> str:
    """A number with so many decimals; never a negative zero.

    Sizes and times (two decimals) have more where fewer than two digits would be left of a small one.
    """
    if value is None:
        return MISSING
    if digits == 2 and 0 < abs(value) < 0.1:
        digits = 1 - math.floor(math.log10(abs(value)))
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) != 0 else text.lstrip("-")


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage, without the sign for percent."""
    return fixed(None if share is None else 100 * share, digits)


def points(share: float | None, digits: int = 1) -> str:
    """A difference of shares in points, with its sign."""
    text = percent(share, digits)
    return text if share is None or text.startswith("−") or float(text.replace(",", "")) == 0 else "+" + text


def gigabytes(n_bytes: float | None, digits: int = 2) -> str:
    """Decimal gigabytes, as disks and model pages have them."""
    return fixed(None if n_bytes is None else n_bytes / 1e9, digits)


def p_value(p: float | None) -> str:
    """Three decimals, or that it is smaller."""
    if p is None:
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def plain(value: float) -> str:
    """A setting as a person would write it: 2, 1.5."""
    return f"{value:g}"
