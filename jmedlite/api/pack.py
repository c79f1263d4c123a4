"""`pack`: a folder to carry into a house without a network: wheels, models, tasks, a report, scripts that install it.

Everything is made in `.NAME.partial` beside the folder, which then gets its name in one step.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jmedlite import __version__
from jmedlite.base.errors import CannotCreate, DataError, InputMissing, Unavailable, UsageError, system_fault
from jmedlite.base.filenames import is_plain
from jmedlite.base.gguf import level_name
from jmedlite.base.inputs import MAX_INDEX, MAX_SETTINGS, opened, read_json, read_text, watching
from jmedlite.base.looking import exists, is_dir, is_file
from jmedlite.base.manifest import Manifest, read_manifest
from jmedlite.base.outputs import Lock, OutputFile, flush_folder, make_folder
from jmedlite.base.progress import Notice, Progress, silent
from jmedlite.base.signals import kept_back
from jmedlite.base.wording import some
from jmedlite.runtime.chat_template import NOTICE
from jmedlite.runtime.loading import read_whole_header

from .model_facts import path_name
from .wheels import (
    RUNTIME,
    Choice,
    Target,
    choose_wheels,
    how_to_fill,
    installed_versions,
    own_source,
    this_platform,
    this_target,
)  # fmt: skip

FORMAT = 1
ABOUT, SUMS, PAGE = "stick.json", "SHA256SUMS", "README.html"
SCRIPTS = ("install.sh", "install.bat", "install.py")
BLOCK = 1 << 22
HOUSE = ".house"  # in which pip makes wheels
MARGIN = 20_000_000  # bytes beside what is counted
GUESSED = 600_000_000  # bytes of wheels that are not there yet
FAT32 = (1 << 32) - 1


@dataclass(frozen=True)
class PackedModel:
    """A model's files, and what its header and manifest say."""

    parts: tuple[Path, ...]
    manifest_file: Path | None
    manifest: Manifest | None
    facts: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """Its entry in stick.json."""
        return {
            "file": f"models/{self.parts[0].name}",
            "files": [f"models/{p.name}" for p in self.parts],
            "manifest": f"models/{self.manifest_file.name}" if self.manifest_file else None,
            **self.facts,
        }


@dataclass
class Pack:
    """What a stick will hold, all of it looked at: `run` writes it."""

    out: Path
    target: Target
    models: tuple[PackedModel, ...]
    choice: Choice | None  # None: pip makes the wheels
    copies: dict[str, Path]  # by place in the stick: tasks, report
    warnings: list[str] = field(default_factory=list)
    n_bytes: int = 0  # of what `run` copied

    def describe(self) -> dict[str, Any]:
        """stick.json: what the scripts and the page go by."""
        system, choice = self.target.system, self.choice
        return {
            "format": FORMAT,
            "jmedlite": __version__,
            "platform": self.target.platform,
            "title": system.title,
            "system": system.platform_system,
            "machine": system.machine,
            "python": self.target.python,
            "oldest_system": choice.oldest_system() if choice else "",
            "wheels": sorted(w.path.name for w in choice.wheels.values()) if choice else None,
            "models": [m.describe() for m in self.models],
            "tasks": sorted({name.split("/")[1] for name in self.copies if name.startswith("tasks/")}),
            "report": "report.html" if "report.html" in self.copies else None,
        }

    def sources(self) -> dict[str, Path]:
        """What is copied, by its place in the stick."""
        found = dict(self.copies)
        for model in self.models:
            found |= {f"models/{p.name}": p for p in model.parts}
            if model.manifest_file:
                found[f"models/{model.manifest_file.name}"] = model.manifest_file
        if self.choice:
            found |= {f"wheels/{w.path.name}": w.path for w in self.choice.wheels.values()}
        return found

    def size_bytes(self) -> int:
        """Of all files, wheels that are yet to be made guessed."""
        return sum(p.stat().st_size for p in self.sources().values()) + (0 if self.choice else GUESSED)

    def run(self, progress: Progress = silent, notify: Notice = silent) -> str:
        """Write the stick; gives the SHA-256 of its SHA256SUMS, which vouches for all of it."""
        with watching() as inputs, _folder(self.out) as partial:
            self._check_room(partial)
            if self.choice is None:
                house = partial / HOUSE
                make_wheels(house, notify)
                self._take(choose_wheels(house, self.target), house)
                self._check_room(partial)
            sums = self._copy(partial, progress)
            inputs.check()
            self.n_bytes = self.size_bytes()
            shutil.rmtree(partial / HOUSE, ignore_errors=True)
            about = self.describe()
            written = {ABOUT: json.dumps(about, ensure_ascii=False, indent=1) + "\n", PAGE: page(about)}
            written |= {name: script(name, self.target) for name in SCRIPTS}
            for name, text in written.items():
                sums[name] = _write(partial / name, text.encode())
            with contextlib.suppress(OSError):  # on a FAT disk; `sh install.sh` needs no such right
                (partial / "install.sh").chmod(0o755)
            return _write(partial / SUMS, "".join(f"{sums[n]}  {n}\n" for n in sorted(sums)).encode())

    def _take(self, choice: Choice, folder: Path) -> None:
        if choice.missing:
            raise DataError(
                f"{folder}: has no wheel for {self.target.system.title} with Python {self.target.python} of "
                f"{some(choice.missing, 4)}; {how_to_fill(folder, self.target, choice.missing)}"
            )
        self.choice = choice
        runtime = choice.wheels[RUNTIME]
        if runtime.is_for_one_processor:
            self.warnings.append(
                f"{runtime.path.name}: was compiled for the machine that compiled it; on another processor it may die "
                "with an illegal instruction (`tools/build_runtime.py` makes one for all)"
            )

    def _check_room(self, folder: Path) -> None:
        needed, free = self.size_bytes() + MARGIN, shutil.disk_usage(folder).free
        if needed > free:
            raise CannotCreate(
                f"{self.out}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; free some space, choose "
                "another disk, or fewer models"
            )

    def _copy(self, folder: Path, progress: Progress) -> dict[str, str]:
        """Copy everything; the SHA-256 of each file by its place. Raises DataError where a manifest says another."""
        sources, sums, done = self.sources(), dict[str, str](), 0
        total = sum(p.stat().st_size for p in sources.values())
        told = {f"models/{e.name}": e.sha256 for m in self.models if m.manifest for e in m.manifest.files}
        for name, source in sources.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with OutputFile(target) as out, opened(source) as file:
                while block := file.read(BLOCK):
                    out.write(block)
                    done += len(block)
                    progress("copying", done, total, name)
                sums[name] = out.sha256.hexdigest()
                if told.get(name, sums[name]) != sums[name]:
                    raise DataError(
                        f"{source}: is not what its manifest says (another SHA-256), so it is damaged or another file; "
                        "make or copy it again"
                    )
                out.publish()
        return sums


def plan_pack(
    out: str | Path,
    models: Sequence[str | Path],
    *,
    wheels: str | Path | None = None,
    report: str | Path | None = None,
    tasks: Sequence[str | Path] = (),
    platform: str | None = None,
    python: str | None = None,
    overwrite: bool = False,
) -> Pack:
    """Look at all that a stick shall hold; raises where something is missing or does not fit. Writes nothing."""
    here = this_target() if platform is None or python is None else None
    target = Target(platform or this_platform(), python or (here.python if here else ""))
    folder = Path(out).expanduser()
    check_out(folder, overwrite)
    if not models:
        raise UsageError("no model given; name one with -m FILE.gguf")
    if wheels is None and target != this_target():
        raise UsageError(
            f"pip makes wheels for this system and Python alone, not for {target.platform} with Python "
            f"{target.python}; give a folder of them with --wheels"
        )
    found = tuple(look_at_model(Path(m).expanduser()) for m in models)
    names = [p.name for m in found for p in (*m.parts, *([m.manifest_file] if m.manifest_file else []))]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UsageError(f"two models have a file {twice[0]}; give every file a name of its own")
    copies = {name: path for task in tasks for name, path in _of_task(Path(task).expanduser())}
    if len({name.split("/")[1] for name in copies}) < len(tasks):
        raise UsageError("two tasks have one name; rename one")
    if report is not None:
        copies["report.html"] = find_report(Path(report).expanduser())
    pack = Pack(folder, target, found, None, copies)
    for model in found:
        if model.manifest is None:
            pack.warnings.append(f"{model.parts[0].name}: has no manifest; what it was made of is not told")
    if large := [p.name for p in pack.sources().values() if p.stat().st_size > FAT32]:
        pack.warnings.append(
            f"{large[0]}: has more than 4 GiB, which a stick formatted as FAT32 can't hold; format it as exFAT, or "
            "write parts with `quantize --split-max-size 4GB`"
        )
    if wheels is not None:
        house = Path(wheels).expanduser()
        pack._take(choose_wheels(house, target), house)
    return pack


def look_at_model(path: Path) -> PackedModel:
    """A model's files, whole, with its manifest."""
    parts, header = read_whole_header(path)
    meta = header.metadata
    if (kind := meta.get("general.type", "model")) != "model":
        raise UsageError(f"{path}: is not a model but {kind}; give the model that was merged with it")
    for part in parts:
        if not is_plain(part.name):
            raise UsageError(f"{part.name!r}: is no name that every system can have; rename it")
    manifest = read_manifest(path)
    facts = {
        "name": meta.get("general.name") or path_name(path),
        "level": level_name(meta.get("general.file_type")),
        "size_bytes": sum(p.stat().st_size for p in parts),
        "license": meta.get("general.license.name") or meta.get("general.license"),
        "license_link": meta.get("general.license.link"),
        "made_from": meta.get("jmedlite.made.base"),
    }
    beside = parts[0].with_name(path_name(parts[0]) + ".json")
    return PackedModel(tuple(parts), beside if manifest else None, manifest, facts)


def find_report(path: Path) -> Path:
    """The page of a report, or that of a run folder."""
    if is_dir(path):
        page_file = path / "report.html"
        if not is_file(page_file):
            raise InputMissing(f"{path}: holds no report.html; make it with `jmedlite report {path}`")
        return page_file
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--report {path}: expected a report's page (.html), or a run folder that has one")
    with opened(path):
        return path


def _of_task(path: Path) -> Iterator[tuple[str, Path]]:
    """Every file of a task, by its place in the stick; what git keeps of it stays behind."""
    if is_file(path):
        yield f"tasks/{_task_name(path)}", path
        return
    if not is_dir(path):
        raise InputMissing(f"--task {path}: no such file or folder")
    names = 0
    for found in sorted(path.rglob("*")):
        inside = found.relative_to(path)
        if ".git" in inside.parts:
            continue
        if found.is_symlink() and is_dir(found):
            raise UsageError(f"{found}: is a link to a folder; copy its files there, or name that folder with --task")
        if not is_dir(found):
            names += 1
            for part in inside.parts:
                if not is_plain(part):
                    raise UsageError(f"{found}: has a name that not every system can have; rename it")
            yield f"tasks/{_task_name(path)}/{inside.as_posix()}", found
    if not names:
        raise InputMissing(f"--task {path}: the folder is empty")


def _task_name(path: Path) -> str:
    return path.resolve().name


# ----------------------------------------------------------------------------------------------------- the folder


def check_out(out: Path, overwrite: bool) -> None:
    """Raises CannotCreate where something stands at `out` that is not to be replaced."""
    if not out.name or os.path.ismount(out):
        raise CannotCreate(f"{out}: is a whole disk; name a folder on it, such as {out / 'jmedlite'}")
    if not exists(out) and not out.is_symlink():
        return
    if out.is_symlink() or not is_dir(out):
        raise CannotCreate(f"{out}: is there and no folder; choose another")
    if not any(out.iterdir()):
        return
    if not is_file(out / ABOUT) or not is_file(out / SUMS):
        raise CannotCreate(f"{out}: is a folder that `jmedlite pack` did not make; choose another")
    if not overwrite:
        raise CannotCreate(f"{out}: is there already; give --overwrite to replace it, or choose another")
    try:
        about = read_json(out / ABOUT, MAX_SETTINGS)
        listed = {line.partition("  ")[2] for line in read_text(out / SUMS, MAX_INDEX).splitlines()}
    except DataError:
        about, listed = {}, set()
    if about.get("format") != FORMAT:
        raise CannotCreate(f"{out}: is a folder that this `jmedlite pack` did not make; choose another")
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_symlink() or not is_dir(p)}
    if more := sorted(there - listed - {SUMS}):
        raise CannotCreate(f"{out}: holds {some(more)} that `jmedlite pack` did not write; move it away first")


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write to, which gets its name at the end, or is removed where anything goes wrong."""
    make_folder(out.parent)
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    with Lock(out):
        _take_back(out, partial, old)
        try:
            partial.mkdir()
            yield partial
            with kept_back() as signals:
                if exists(out):
                    out.replace(old)
                try:
                    partial.replace(out)
                except OSError:
                    if exists(old):
                        old.replace(out)
                    raise
                flush_folder(out.parent)
                if signals:  # as if it had come before
                    out.replace(partial)
                    if exists(old):
                        old.replace(out)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as e:
            raise system_fault(e, out, "writing") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _take_back(out: Path, partial: Path, old: Path) -> None:
    """What a run that was killed left: the folder that it had set aside, and the one that it had begun."""
    with contextlib.suppress(OSError):
        if exists(old) and not exists(out):
            old.replace(out)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def _write(path: Path, data: bytes) -> str:
    with OutputFile(path) as out:
        out.write(data)
        out.publish()
        return out.sha256.hexdigest()


# ------------------------------------------------------------------------------------------------- what pip makes


def make_wheels(folder: Path, notify: Notice) -> None:
    """Wheels of the installed jmedlite and of its dependencies, in the versions that are installed here, by pip."""
    notify(
        "pip makes and downloads the wheels, of the versions that are installed here; where it has no wheel of "
        f"{RUNTIME} yet, it compiles one, which takes minutes"
    )
    folder.mkdir()
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in installed_versions()), encoding="utf-8")
    command = [
        sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-input",
        "--wheel-dir", str(folder), "--constraint", str(constraints), own_source(),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        said = [line.strip() for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip()]
        why = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "")
        raise Unavailable(f"pip could not make the wheels ({why}); give a folder of them with --wheels")


# --------------------------------------------------------------------------------------------- scripts, and a page


def script(name: str, target: Target) -> str:
    """A script of the stick, with the line ends of its system."""
    text = _resource(name).replace("@PYTHON@", target.python)
    return text.replace("\n", "\r\n") if name.endswith(".bat") else text


def page(about: dict[str, Any]) -> str:
    """README.html, in Japanese and English."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["size"] = lambda n: f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"
    return environment.from_string(_resource("README.html.j2")).render(**about, notice=NOTICE)


def _resource(name: str) -> str:
    return (files(__package__) / "stick" / name).read_text(encoding="utf-8").replace("\r\n", "\n")
