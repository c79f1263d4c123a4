"""Made models: what jmedlite remembers between runs: the GGUFs this user quantized, the one chosen, what reports said.

All of it is in one file of the user's state folder, which holds paths and no text of anybody's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jmedlite.base.errors import CannotCreate, DataError, InputMissing, JmedliteError, as_expected, system_fault
from jmedlite.base.gguf import split_files
from jmedlite.base.inputs import read_json
from jmedlite.base.looking import is_file
from jmedlite.base.outputs import write_text
from jmedlite.base.records import from_json, to_json

FORMAT = 1
FILE = "models.json"
USUAL, USUAL_BITS = "Q4_K_M", 4.8  # the level that is asked for most, and its bits per weight in a 7B
KEPT = 200  # models, and verdicts


def _is_file(path: Path) -> bool:
    try:
        return is_file(path)
    except OSError:  # a name that is too long for any file
        return False


@dataclass(frozen=True, kw_only=True)
class MadeModel:
    """A GGUF that was quantized; `name` is that of all levels that were made of the same model."""

    path: str
    name: str
    level: str
    bits_per_weight: float
    sha256: str

    @property
    def file(self) -> Path:
        return Path(self.path)

    @property
    def size_bytes(self) -> int:
        """Of all parts, as far as they are there."""
        return sum(p.stat().st_size for p in split_files(self.file) if is_file(p))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a report chose: the file of this SHA-256, for `reason`."""

    sha256: str
    report: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MadeModels:
    """All that is remembered, the newest last; `chosen` is the path that `jmedlite use` named."""

    format: int = FORMAT
    chosen: str | None = None
    models: tuple[MadeModel, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    @property
    def chosen_is_there(self) -> bool:
        return bool(self.chosen) and _is_file(Path(str(self.chosen)))

    @property
    def there(self) -> list[MadeModel]:
        """Those whose file still is there."""
        return [m for m in self.models if _is_file(m.file)]

    def verdict_of(self, model: MadeModel) -> Verdict | None:
        """The newest report's word on a model."""
        return next((v for v in reversed(self.verdicts) if v.sha256 == model.sha256), None)

    def default(self) -> Path | None:
        """What `ask` takes where nothing is named: what was chosen, else the model made last, nearest to Q4_K_M.

        Raises InputMissing where what was chosen is gone.
        """
        if self.chosen:
            if not self.chosen_is_there:
                raise InputMissing(f"{self.chosen}: was chosen by `jmedlite use` and is gone; choose another")
            return Path(self.chosen)
        if not self.there:
            return None
        newest = self.there[-1]
        levels = [m for m in self.there if (m.name, m.file.parent) == (newest.name, newest.file.parent)]
        return min(levels, key=lambda m: from_usual(m.level, m.bits_per_weight)).file

    def find(self, name: str) -> Path | None:
        """A model by its file's name, with or without .gguf, or by a level that only one model has."""
        named = [m for m in self.there if name in (m.file.name, m.file.name.removesuffix(".gguf"))]
        found = named[-1:] or [m for m in self.there if m.level.lower() == name.lower()]
        return found[0].file if len(found) == 1 else None


def from_usual(level: str, bits_per_weight: float) -> tuple[bool, float]:
    """How far a level is from the usual one: by its name, since narrow rows make every level of a small model wider."""
    return level != USUAL, abs(bits_per_weight - USUAL_BITS)


def state_folder() -> Path:
    """Where this user's state is kept: $JMEDLITE_STATE, else the system's place for it; CannotCreate where none is."""
    if named := os.environ.get("JMEDLITE_STATE"):
        return Path(named)
    import typer

    folder = Path(typer.get_app_dir("jmedlite"))
    if folder.parts[0] == "~":  # which would be a folder of that name, here
        raise CannotCreate("no home folder is known (HOME is not set); name a folder in the variable JMEDLITE_STATE")
    return folder


def made_models() -> MadeModels:
    """What is remembered, nothing where there is no state folder; DataError where the file is not one of jmedlite's."""
    try:
        path = state_folder() / FILE
        if not is_file(path):
            return MadeModels()
    except (OSError, CannotCreate):
        return MadeModels()
    found = read_json(path)
    if found.get("format") != FORMAT:
        raise DataError(f"{path}: is not of format {FORMAT}; move it away, and name the model with -m")
    return from_json(found, MadeModels, str(path))


def remember_models(made: Iterable[MadeModel]) -> str:
    """Keep models that were just made; why it can't be done, which is no fault, "" where it was."""
    new = tuple(made)
    paths = {m.path for m in new}
    return _change(lambda kept: replace(kept, models=(*(m for m in kept.models if m.path not in paths), *new)[-KEPT:]))


def remember_verdicts(said: Sequence[Verdict]) -> str:
    """Keep what a report chose; as `remember_models`."""
    new = {v.sha256 for v in said}
    return _change(
        lambda kept: replace(kept, verdicts=(*(v for v in kept.verdicts if v.sha256 not in new), *said)[-KEPT:])
    )


def choose_model(path: Path | None) -> None:
    """Make a model the default, or with None leave the choice to jmedlite; raises CannotCreate."""
    _write(replace(made_models(), chosen=None if path is None else str(path.resolve())))


def _change(change: Callable[[MadeModels], MadeModels]) -> str:
    try:
        _write(change(made_models()))
    except (OSError, JmedliteError) as e:
        return str(as_expected(e))
    return ""


def _write(models: MadeModels) -> None:
    folder = state_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise system_fault(e, folder, "making the folder") from None
    write_text(folder / FILE, json.dumps(to_json(models), ensure_ascii=False, indent=1) + "\n")
