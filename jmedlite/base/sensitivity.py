"""Sensitivities: what rounding each weight of a model costs its answers, measured; the file, read and written.

For every weight: it alone was rounded to a probe type, which made a squared error relative to its own squares, each
column weighed by its importance, and moved the model's next-token distribution by a KL divergence (nats a token). For
small errors the divergence is their multiple (linearity: HIGGS, arXiv 2411.17525), so divergence over error is the
weight's sensitivity, and times the error of another type the harm that it would do. Format: docs/converting.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import DataError
from .inputs import MAX_INDEX, read_json
from .outputs import sha256_file
from .records import from_json

FORMAT = "jmedlite-sensitivity-1"
AGAIN = "make it again with `jmedlite sensitivity`"


@dataclass(frozen=True, kw_only=True)
class WeightEntry:
    """One weight: rounded to `type` with the relative squared `error`, it moves the model by `kl` ± `kl_error` nats.

    What was not `measured` lies between two blocks that were.
    """

    type: str
    error: float
    kl: float
    kl_error: float
    measured: bool = True


@dataclass(frozen=True, kw_only=True)
class MatrixEntry:
    """The importance matrix whose weights the errors have."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SensitivityFile:
    """The file's own fields; `n_positions` distributions were compared, in chunks of `ctx` tokens."""

    format: str
    model: str
    architecture: str
    datasets: tuple[str, ...]
    ctx: int
    n_positions: int
    every: int
    imatrix: MatrixEntry | None
    versions: dict[str, str]
    seconds: float
    weights: dict[str, WeightEntry]


@dataclass(frozen=True)
class Sensitivities:
    """A file that was read, and its hash."""

    path: Path
    sha256: str
    content: SensitivityFile

    def of(self, name: str) -> float | None:
        """Nats a token for each unit of the weight's relative squared error; None where it is not in the file."""
        entry = self.content.weights.get(name)
        return entry.kl / entry.error if entry else None


def read_sensitivities(path: Path) -> Sensitivities:
    """Read and check a file; raises InputMissing, NotPermitted, or DataError naming what is wrong."""
    value = read_json(path, MAX_INDEX)
    if value.get("format") != FORMAT:
        raise DataError(f"{path.name}: is not a sensitivity file of this version (format {FORMAT!r}); {AGAIN}")
    content = from_json(value, SensitivityFile, path.name)
    if not content.weights:
        raise DataError(f"{path.name}: has no weights; {AGAIN}")
    for name, entry in content.weights.items():
        if not (entry.error > 0 and entry.kl >= 0 and entry.kl_error >= 0):
            raise DataError(
                f"{path.name}: {name} has the error {entry.error:g} and the divergence {entry.kl:g}, expected a "
                f"positive and a non-negative number; {AGAIN}"
            )
    return Sensitivities(path, sha256_file(path), content)
