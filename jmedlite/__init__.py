"""Medical language models on one laptop: quantize them in one pass, ask them offline.

The public names load on first use, so that `import jmedlite` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Conversation",
    "Runner",
    "Sampling",
    "ThoughtPiece",
    "__version__",
    "bench",
    "errors",
    "imatrix",
    "inspect",
    "moments",
    "quantize",
    "report",
    "sensitivity",
    "verify",
]

if TYPE_CHECKING:
    from jmedlite.api.bench import bench
    from jmedlite.api.quantize import quantize
    from jmedlite.api.verify import inspect, verify
    from jmedlite.base import errors
    from jmedlite.benchmarks.report.report import report
    from jmedlite.calibration.compute import compute_imatrix as imatrix
    from jmedlite.calibration.moments import gather_moments as moments
    from jmedlite.calibration.sensitivity import compute_sensitivities as sensitivity
    from jmedlite.runtime.answers import Answer, ThoughtPiece
    from jmedlite.runtime.conversation import Conversation
    from jmedlite.runtime.runner import Runner
    from jmedlite.runtime.sampling import Sampling

_HOMES = {
    "Answer": ("jmedlite.runtime.answers", "Answer"),
    "Conversation": ("jmedlite.runtime.conversation", "Conversation"),
    "Runner": ("jmedlite.runtime.runner", "Runner"),
    "Sampling": ("jmedlite.runtime.sampling", "Sampling"),
    "ThoughtPiece": ("jmedlite.runtime.answers", "ThoughtPiece"),
    "bench": ("jmedlite.api.bench", "bench"),
    "imatrix": ("jmedlite.calibration.compute", "compute_imatrix"),
    "inspect": ("jmedlite.api.verify", "inspect"),
    "moments": ("jmedlite.calibration.moments", "gather_moments"),
    "quantize": ("jmedlite.api.quantize", "quantize"),
    "report": ("jmedlite.benchmarks.report.report", "report"),
    "sensitivity": ("jmedlite.calibration.sensitivity", "compute_sensitivities"),
    "verify": ("jmedlite.api.verify", "verify"),
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("jmedlite.base.errors")
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'jmedlite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
