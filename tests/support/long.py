"""Which cases of a test are left to `pytest -m long`: they repeat at length what the others show."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def long_but_for(values: Iterable[Any], short: Collection[Any]) -> list[Any]:
    """Cases for `parametrize`: those of `short` always run, the others are marked long."""
    return [v if v in short else _marked(v) for v in values]


def _marked(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.long)
