"""`pip install .` where nothing can compile: one sentence before anything is downloaded, and no false alarm."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "build_backend.py"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """On a machine with nothing."""
    pytest.importorskip("setuptools")  # newer Pythons' environments are without
    spec = importlib.util.spec_from_file_location("build_backend", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in [
        n for n in os.environ if n in ("CC", "CXX", module.SKIP) or n.upper().startswith(("PIP_", "PROGRAMFILES"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module, "has_runtime", lambda: False)
    monkeypatch.setattr(module, "_parent", lambda: "python -m pip install .")
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
    "way", ["compiler", "CC", "visual studio", "runtime", "find-links", "PIP_FIND_LINKS", "JMEDLITE_NO_COMPILER_CHECK"]
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
