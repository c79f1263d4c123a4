"""Wheels: which of a folder's install jmedlite on a named system and Python, and what is missing for that."""

from __future__ import annotations

import platform
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from jmedlite import __version__
from jmedlite.base.errors import DataError, InputMissing, UsageError
from jmedlite.base.inputs import MAX_SETTINGS, opened, parse_json, reading

NEWEST_GLIBC = 45  # 2.x; which one the chosen wheels need is told
NEWEST_MACOS = 26
RUNTIME = "llama-cpp-python"
# a back end for one kind of processor, of those of which llama.cpp takes what the machine can
_VARIANT = re.compile(r"(?:^|/)(?:lib)?ggml-cpu-\w+\.(?:so|dll|dylib)$")
_GLIBC, _MACOS = re.compile(r"manylinux_(\d+)_(\d+)_"), re.compile(r"macosx_(\d+)_(\d+)_")
_LEGACY = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}


@dataclass(frozen=True, kw_only=True)
class System:
    """What wheels, and their markers, call a system."""

    title: str
    os_name: str
    sys_platform: str
    platform_system: str
    machine: str

    def platforms(self) -> list[str]:
        """The tags of wheels that run there, the best first."""
        if self.platform_system == "Linux":
            legacy = {version: name for name, version in _LEGACY.items()}
            found = [f"linux_{self.machine}"]
            for minor in range(NEWEST_GLIBC, 4, -1):
                found.append(f"manylinux_2_{minor}_{self.machine}")
                if name := legacy.get((2, minor)):
                    found.append(f"{name}_{self.machine}")
            return found
        if self.platform_system == "Darwin":
            return list(mac_platforms((NEWEST_MACOS, 0), self.machine))
        return ["win_amd64"]


SYSTEMS = {
    "linux-x86_64": System(
        title="Linux, x86-64", os_name="posix", sys_platform="linux", platform_system="Linux", machine="x86_64"
    ),
    "linux-arm64": System(
        title="Linux, arm64", os_name="posix", sys_platform="linux", platform_system="Linux", machine="aarch64"
    ),
    "macos-arm64": System(
        title="macOS, Apple silicon", os_name="posix", sys_platform="darwin", platform_system="Darwin", machine="arm64"
    ),
    "windows-x86_64": System(
        title="Windows, 64 bits", os_name="nt", sys_platform="win32", platform_system="Windows", machine="AMD64"
    ),
}


def this_platform() -> str:
    """This system's name, of SYSTEMS; raises UsageError where it has none."""
    for name, system in SYSTEMS.items():
        if (system.platform_system, system.machine) == (platform.system(), platform.machine()):
            return name
    raise UsageError(f"{platform.system()} on {platform.machine()}: give --platform {', '.join(SYSTEMS)}")


@dataclass(frozen=True)
class Wheel:
    """A wheel of the folder, and what its metadata say."""

    path: Path
    name: str
    version: Version
    tags: frozenset[Tag]
    requires: tuple[Requirement, ...]
    python: SpecifierSet
    has_variants: bool

    @property
    def is_for_one_processor(self) -> bool:
        """Was llama.cpp compiled for the processor, or the system, of the machine that compiled it?"""
        native = any(t.platform.startswith("linux_") for t in self.tags)
        return self.name == RUNTIME and (native or not self.has_variants)


@dataclass(frozen=True)
class Target:
    """A system with a Python."""

    platform: str
    python: str  # "3.11"

    def __post_init__(self) -> None:
        if self.platform not in SYSTEMS:
            raise UsageError(f"--platform {self.platform}: expected {', '.join(SYSTEMS)}")
        if not re.fullmatch(r"3\.\d{1,2}", self.python) or int(self.python[2:]) < 11:
            raise UsageError(f"--python {self.python}: expected 3.11 or newer, such as 3.12")

    @property
    def system(self) -> System:
        return SYSTEMS[self.platform]

    def tags(self) -> dict[Tag, int]:
        """Every tag that fits, with its rank: 0 is the best."""
        version = (3, int(self.python[2:]))
        abi, platforms = f"cp3{version[1]}", self.system.platforms()
        found = [
            *cpython_tags(version, [abi], platforms),
            *compatible_tags(version, abi, platforms),
        ]
        return {tag: rank for rank, tag in reversed(list(enumerate(found)))}

    def needs(self, requirement: Requirement, extras: Sequence[str]) -> bool:
        """Is it needed there? A marker that goes by the third number of Python's version holds where it may."""
        if requirement.marker is None:
            return True
        s = self.system
        return any(
            requirement.marker.evaluate({
                "os_name": s.os_name, "sys_platform": s.sys_platform, "platform_system": s.platform_system,
                "platform_machine": s.machine, "platform_python_implementation": "CPython",
                "implementation_name": "cpython", "python_version": self.python, "platform_release": "",
                "platform_version": "", "python_full_version": full, "implementation_version": full, "extra": extra,
            })
            for full in (f"{self.python}.0", f"{self.python}.99")
            for extra in ("", *extras)
        )  # fmt: skip


@dataclass
class Choice:
    """The wheels that install jmedlite on the target, by name, and the requirements that none of the folder meets."""

    target: Target
    wheels: dict[str, Wheel] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def oldest_system(self) -> str:
        """The oldest system that all wheels run on, in words; "" where they say nothing of it, as `linux_…` does."""
        ranks = self.target.tags()
        least: tuple[int, int] = (0, 0)
        for wheel in self.wheels.values():
            if any(tag.platform.startswith("linux_") for tag in wheel.tags):
                return ""
            versions = [_version_of(tag.platform) for tag in wheel.tags & ranks.keys()]
            least = max(least, min(versions, default=(0, 0)))
        if least == (0, 0):
            return ""
        named = {"Linux": "glibc", "Darwin": "macOS"}[self.target.system.platform_system]
        return f"{named} {least[0]}.{least[1]}"


def _version_of(tag: str) -> tuple[int, int]:
    if found := _GLIBC.match(tag) or _MACOS.match(tag):
        return int(found[1]), int(found[2])
    return _LEGACY.get(tag.partition("_")[0], (0, 0))


def choose_wheels(folder: Path, target: Target) -> Choice:
    """One wheel for jmedlite and each of its dependencies, the newest that everything agrees on."""
    with reading(folder):
        paths = sorted(p for p in folder.iterdir() if p.suffix == ".whl")
    if not paths:
        raise InputMissing(f"{folder}: holds no wheels (*.whl); {how_to_fill(folder, target, [])}")
    shelf = _Shelf(paths, target)
    said: dict[str, list[Requirement]] = {}  # every demand on a name so far
    while True:
        choice = _walk(shelf, target, said)
        if choice is not None:
            return choice


def _walk(shelf: _Shelf, target: Target, said: dict[str, list[Requirement]]) -> Choice | None:
    """Follow all requirements; None where one was met that a wheel chosen before does not fulfil."""
    choice, seen = Choice(target), set[str]()
    queue = [Requirement(f"jmedlite=={__version__}")]
    while queue:
        requirement = queue.pop(0)
        name, mark = canonicalize_name(requirement.name), str(requirement)
        if mark in seen:
            continue
        seen.add(mark)
        demands = said.setdefault(name, [])
        if mark not in map(str, demands):
            demands.append(requirement)
            if name in choice.wheels and not _fits(choice.wheels[name], requirement):
                return None
        wheel = choice.wheels.get(name) or shelf.best(name, demands)
        if wheel is None:
            choice.missing = [m for m in choice.missing if canonicalize_name(_name_of(m)) != name]
            choice.missing.append(requirement.name + ",".join(sorted({str(r.specifier) for r in demands} - {""})))
            continue
        choice.wheels[name] = wheel
        extras = sorted(requirement.extras)
        queue += [_bare(r) for r in wheel.requires if target.needs(r, extras)]
    return choice


def _bare(requirement: Requirement) -> Requirement:
    """The requirement without its marker, which was heard."""
    bare = Requirement(str(requirement))
    bare.marker = None
    return bare


def _name_of(demand: str) -> str:
    return re.split(r"[^\w.-]", demand, maxsplit=1)[0]


def _fits(wheel: Wheel, requirement: Requirement) -> bool:
    return requirement.specifier.contains(wheel.version, prereleases=True)


class _Shelf:
    """The wheels of a folder that fit the target, by name; each is read once it is asked for."""

    def __init__(self, paths: Sequence[Path], target: Target) -> None:
        self.target, self.ranks, self._paths = target, target.tags(), dict[str, list[Path]]()
        self._read: dict[Path, Wheel] = {}
        for path in paths:
            try:
                name, _, _, tags = parse_wheel_filename(path.name)
            except InvalidWheelFilename as e:
                raise DataError(f"{path}: {e}; give wheels the names they were made with") from None
            if tags & self.ranks.keys():
                self._paths.setdefault(name, []).append(path)

    def best(self, name: str, demands: Sequence[Requirement]) -> Wheel | None:
        """The newest that meets all demands, and of several of that version the one whose tags fit best."""
        fitting = [
            w
            for w in self._of(name)
            if all(_fits(w, r) for r in demands) and w.python.contains(f"{self.target.python}.99", prereleases=True)
        ]
        rank = {w.path: min(self.ranks[t] for t in w.tags & self.ranks.keys()) for w in fitting}
        # a runtime for every processor goes before one for this machine's
        return max(fitting, key=lambda w: (w.version, not w.is_for_one_processor, -rank[w.path]), default=None)

    def _of(self, name: str) -> Iterator[Wheel]:
        for path in self._paths.get(name, ()):
            if path not in self._read:
                self._read[path] = read_wheel(path)
            yield self._read[path]


def read_wheel(path: Path) -> Wheel:
    """A wheel's metadata; raises DataError where it is damaged."""
    name, version, _, tags = parse_wheel_filename(path.name)
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.namelist()
            (inside,) = [m for m in members if re.fullmatch(r"[^/]+\.dist-info/METADATA", m)]
            with archive.open(inside) as entry:
                text = entry.read(MAX_SETTINGS + 1)
        told = parse_email(text)[0]
        requires = tuple(Requirement(r) for r in told.get("requires_dist", ()))
        python = SpecifierSet(told.get("requires_python", ""))
        own = Version(told["version"])
    except (
        zipfile.BadZipFile, zlib.error, ValueError, KeyError, InvalidRequirement, InvalidSpecifier, EOFError,
        NotImplementedError,
    ) as e:  # fmt: skip
        raise DataError(f"{path}: is a damaged wheel ({e}); make or download it again") from None
    if own != version:
        raise DataError(f"{path}: holds version {own}; give wheels the names they were made with")
    return Wheel(path, name, version, tags, requires, python, any(map(_VARIANT.search, members)))


def how_to_fill(folder: Path, target: Target, missing: Sequence[str]) -> str:
    """The command that puts what is missing into the folder."""
    source = own_source()
    names = set(map(_name_of, missing))
    if target == this_target():
        return f"fill it with `pip wheel --wheel-dir {folder} {source}`"
    if "jmedlite" in names or not missing:
        return f"begin with `pip wheel --no-deps --wheel-dir {folder} {source}`"
    if RUNTIME in names:
        build = f"python tools/build_runtime.py {folder} --wheelhouse"
        return f"make them on such a machine, in jmedlite's sources: `{build}`"
    tags = [p for p in target.system.platforms() if not p.startswith("linux_")]
    wanted = [t for t in tags if "_2_28_" in t or "_2_17_" in t or "2014" in t or t.startswith("macosx_14_0")] or tags
    return (
        f"fetch them with `pip download --only-binary :all: {' '.join(f'--platform {t}' for t in wanted)} "
        f"--python-version {target.python} --find-links {folder} --dest {folder} jmedlite`"
    )


def this_target() -> Target:
    """This system and this Python."""
    return Target(this_platform(), f"{sys.version_info[0]}.{sys.version_info[1]}")


def own_source() -> str:
    """What pip makes the installed jmedlite's wheel of: the folder or address that it was installed from."""
    told = distribution("jmedlite").read_text("direct_url.json")
    facts = parse_json(told.encode()) if told else None
    if not facts:
        return f"jmedlite=={__version__}"
    url = str(facts["url"])
    if url.startswith("file:"):
        return url2pathname(urlsplit(url).path)
    kind = facts.get("vcs_info") or {}
    return f"{kind['vcs']}+{url}@{kind['commit_id']}" if kind else url


def installed_versions() -> list[str]:
    """`name==version` of jmedlite's dependencies as they are installed here, for pip's constraints."""
    target, found, queue = this_target(), dict[str, str](), [Requirement("jmedlite")]
    seen = set[str]()
    while queue:
        requirement = queue.pop()
        if (mark := str(requirement)) in seen:
            continue
        seen.add(mark)
        try:
            there = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        found[canonicalize_name(requirement.name)] = there.version
        inner = [Requirement(r) for r in there.requires or ()]
        queue += [_bare(r) for r in inner if target.needs(r, sorted(requirement.extras))]
    del found["jmedlite"]
    return [f"{name}=={version}" for name, version in sorted(found.items())]
