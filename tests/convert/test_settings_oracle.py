"""Every setting that transformers knows of each family: the logits are its own, or the setting's name is said.

Run with `pytest -m oracle`. The outcomes are the table in docs/families.md, made by tools/make_settings_table.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import builders
from tests.support.settings_table import read_table

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("family", builders.FAMILIES)
def test_every_setting_is_computed_or_named(tmp_path: Path, family: str) -> None:
    from tests.support.settings import outcomes

    assert outcomes(tmp_path, family) == read_table()[family]
