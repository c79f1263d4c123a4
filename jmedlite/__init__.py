"""Medical language models on one laptop: quantize them in one pass, ask them offline.

The public names load on first use, so that `import jmedlite` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Runner", "__version__", "bench", "compute_imatrix", "inspect", "quantize", "report", "verify"]

if TYPE_CHECKING:
    from jmedlite.api.bench import bench
    from jmedlite.api.quantize import quantize
    from jmedlite.api.verify import inspect, verify
    from jmedlite.benchmarks.report.report import report
    from jmedlite.calibration.compute import compute_imatrix
    from jmedlite.runtime.runner import Runner

_HOMES = {
    "Runner": "jmedlite.runtime.runner",
    "bench": "jmedlite.api.bench",
    "compute_imatrix": "jmedlite.calibration.compute",
    "inspect": "jmedlite.api.verify",
    "quantize": "jmedlite.api.quantize",
    "report": "jmedlite.benchmarks.report.report",
    "verify": "jmedlite.api.verify",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jmedlite' has no attribute {name!r}")
