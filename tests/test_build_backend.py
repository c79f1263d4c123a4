"""`pip install .` where nothing can compile: one sentence before anything is downloaded, and no false alarm."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """On a machine with nothing."""
    pytest.importorskip("setuptools")  # newer Pythons' environments are without
    monkeypatch.syspath_prepend(TOOLS)
    for name in ("build_backend", "compile_ahead"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("build_backend")
    for name in [
        n for n in os.environ if n in ("CC", "CXX", module.SKIP) or n.upper().startswith(("PIP_", "PROGRAMFILES"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module, "has_runtime", lambda: False)
    monkeypatch.setattr(module, "_parent", lambda: "python -m pip install .")
    monkeypatch.setattr(module, "compile_ahead", lambda command: False)
    for kind in ("wheel", "editable"):
        monkeypatch.setattr(module.build_meta, f"prepare_metadata_for_build_{kind}", lambda folder: folder)
    return module


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_no_compiler_is_one_line_in_each_language(backend: ModuleType, kind: str) -> None:
    with pytest.raises(SystemExit) as caught:
        getattr(backend, f"prepare_metadata_for_build_{kind}")("out")
    english, japanese = str(caught.value).splitlines()
    for line, word in ((english, "compiler"), (japanese, "コンパイラ")):
        assert word in line and "llama-cpp-python" in line and "--find-links" in line and "build-essential" in line


@pytest.mark.parametrize(
    "way",
    [
        "compiler",
        "CC",
        "visual studio",
        "runtime",
        "find-links",
        "PIP_FIND_LINKS",
        "PIP_NO_INDEX",
        "JMEDLITE_NO_COMPILER_CHECK",
    ],
)
def test_where_it_can_go_on_it_does(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    if way == "compiler":
        monkeypatch.setattr(backend.shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    elif way == "visual studio":
        (tmp_path / backend.VSWHERE).parent.mkdir(parents=True)
        (tmp_path / backend.VSWHERE).touch()
        monkeypatch.setenv("PROGRAMFILES(X86)", str(tmp_path))
    elif way == "runtime":
        monkeypatch.setattr(backend, "has_runtime", lambda: True)
    elif way == "find-links":
        monkeypatch.setattr(backend, "_parent", lambda: "pip install --find-links=wheels .")
    else:
        monkeypatch.setenv(way, "1")
    assert backend.prepare_metadata_for_build_wheel("out") == "out"


@pytest.mark.parametrize(
    ("command", "ahead"),
    [
        ("/v/bin/python /v/bin/pip install .", True),
        ("/v/bin/python -m pip install -e .[test] -q", True),
        ("/v/bin/python3 -I /v/bin/pip3.13 wheel . --config-settings=editable_mode=strict", True),
        ("pip install --no-cache-dir .", False),
        ("pip install --find-links=wheels .", False),
        ("pip install --no-deps .", False),
        ("pip install -c constraints.txt .", False),
        ("uv pip install .", False),
        ("python -m build --wheel", False),
        ("", False),
    ],
)
def test_llama_cpp_is_compiled_ahead_of_a_plain_pip_only(backend: ModuleType, command: str, ahead: bool) -> None:
    fits = importlib.import_module("compile_ahead").fits
    assert fits(command, {}) is ahead
    assert not fits(command, {"CMAKE_ARGS": "-DCMAKE_PROJECT_INCLUDE=mine.cmake"})


def test_the_wheel_is_built_by_the_same_pip(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = importlib.import_module("compile_ahead")
    calls: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], *, env: dict[str, str], **settings: object) -> SimpleNamespace:
        calls.append((command, env))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(tool.subprocess, "run", run)
    monkeypatch.setattr(tool, "tell", lambda text: None)
    for name, value in (("PYTHONPATH", "isolated"), ("PIP_BUILD_TRACKER", "x"), ("SKBUILD_CMAKE_DEFINE", "A=1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
    assert tool.compile_ahead("pip install .")
    assert calls[0][0] == [sys.executable, "-m", "pip", "cache", "dir"]
    command, environment = calls[1]
    assert command[:4] == [sys.executable, "-m", "pip", "wheel"] and command[-1].startswith("llama-cpp-python>=")
    assert "PYTHONPATH" not in environment and "PIP_BUILD_TRACKER" not in environment
    assert environment["CMAKE_ARGS"] == "-DGGML_CUDA=on"
    first, include = environment["SKBUILD_CMAKE_DEFINE"].split(";")
    assert first == "A=1" and Path(include.removeprefix("CMAKE_PROJECT_INCLUDE=")).is_file()
    assert not tool.compile_ahead("pip install --no-cache-dir .") and len(calls) == 2


TILES = """
#include <immintrin.h>
struct tiles { char palette = 0, start = 0, reserved[14] = {}; short width[16] = {}; char rows[16] = {}; };
void configure() {
    alignas(64) tiles t = {};
    t.palette = 1;
    for (int i = 0; i < 8; i++) { t.width[i] = 64; t.rows[i] = 16; }
    _tile_loadconfig(&t);
}
"""


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("g++") is None, reason="needs GCC for x86-64")
def test_what_configures_amx_is_kept(tmp_path: Path) -> None:
    """Of 64 bytes GCC 12.2 keeps the first 16; what the header adds makes it keep the others."""
    (tmp_path / "tiles.cpp").write_text(TILES)
    made = subprocess.run(
        ["g++", "-O3", "-mamx-tile", "-include", TOOLS / "gcc_amx.h", "-S", "-o", "-", tmp_path / "tiles.cpp"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "ldtilecfg" in made
    assert any(rows in made for rows in (str(0x10101010_10101010), str(0x10101010), ".byte\t16"))


def test_every_package_is_in_the_wheel() -> None:
    """Tests import the folders themselves, so nothing else would miss one that no wheel has."""
    root = TOOLS.parent
    setup = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {
        ".".join((name, *path.parent.relative_to(root / folder).parts))
        for name, folder in setup["package-dir"].items()
        for path in (root / folder).rglob("__init__.py")
    }
    assert sorted(setup["packages"]) == sorted(found)
