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


Units = tuple[tuple[float, str], ...]
BYTES: Units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
SECONDS: Units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def size(n_bytes: float | None) -> str:
    """Bytes in the decimal unit that fits, with three digits: 4.70 GB, 517 MB."""
    return MISSING if n_bytes is None else " ".join(in_units(n_bytes, BYTES))


def seconds(value: float | None) -> str:
    """A time in the unit that fits, with three digits: 1.24 s, 7.60 ms."""
    return MISSING if value is None else " ".join(in_units(value, SECONDS))


def in_units(value: float, units: Units) -> tuple[str, str]:
    """A number with three digits, and its unit."""
    scale, unit = fitting_unit(value, units)
    scaled = value / scale
    return fixed(scaled, max(0, 2 - math.floor(math.log10(abs(scaled) * 1.0005))) if scaled else 0), unit


def fitting_unit(value: float, units: Units) -> tuple[float, str]:
    """The largest unit of which there is one, rounded to three digits: 999.6 MB are 1.00 GB."""
    return next((unit for unit in units if abs(value) >= 0.9995 * unit[0]), units[-1])


def thousands(n: int) -> str:
    """A whole number, its thousands apart."""
    return f"{n:,}"


def p_value(p: float | None) -> str:
    """Three decimals, or that it is smaller."""
    if p is None:
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def plain(value: float) -> str:
    """A setting as a person would write it: 2, 1.5."""
    return f"{value:g}"
