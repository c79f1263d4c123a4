"""Write the table of settings in docs/families.md: what becomes of each, tried on tiny models of every family.

python tools/make_settings_table.py

Needs torch and transformers, and takes some minutes; `pytest -m oracle tests/convert/test_settings_oracle.py` holds
the table against the same trials.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support import builders
from tests.support.settings import outcomes
from tests.support.settings_table import write_table

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_table({family: outcomes(Path(folder), family) for family in builders.FAMILIES})
