"""Medical language models on one laptop: quantize them in one pass, ask them offline.

The public names load on first use, so that `import jmedlite` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Runner", "__version__", "bench", "compute_imatrix", "inspect", "quantize", "report", "verify"]

if TYPE_CHECKING:
    from jmedlite.benchmarks.report import report

    from .benching import bench
    from .imatrix import compute_imatrix
    from .quantizing import quantize
    from .runner import Runner
    from .verifying import inspect, verify

_HOMES = {
    "Runner": "jmedlite.runner",
    "bench": "jmedlite.benching",
    "compute_imatrix": "jmedlite.imatrix",
    "inspect": "jmedlite.verifying",
    "quantize": "jmedlite.quantizing",
    "report": "jmedlite.benchmarks.report",
    "verify": "jmedlite.verifying",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jmedlite' has no attribute {name!r}")
