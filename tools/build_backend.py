"""Build backend of this project: setuptools', after a look whether pip can go on to build llama-cpp-python.

PyPI has only llama-cpp-python's source. Without a compiler its build fails minutes later, with pages of CMake's; pip
asks a project for its metadata before it downloads what that names, so the reason can be said here (PEP 517, PEP 660);
with a compiler it can be built faster than pip would (compile_ahead.py). None of this concerns `pip install` from
a wheel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compile_ahead import compile_ahead
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401 - the hooks of PEP 517 and PEP 660 that stay as they are
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

COMPILERS = ("cc", "gcc", "clang", "c++", "g++", "clang++", "cl", "clang-cl")
VSWHERE = "Microsoft Visual Studio/Installer/vswhere.exe"  # how CMake finds Visual Studio, which is on no PATH
SKIP = "JMEDLITE_NO_COMPILER_CHECK"
MESSAGE = f"""\
jmedlite: no C/C++ compiler was found, and llama-cpp-python (llama.cpp) would have to be compiled here; \
install one (Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install; Windows: Visual Studio Build \
Tools with C++), or install from a folder of wheels made elsewhere: pip install --find-links FOLDER . \
(a wheel of llama-cpp-python is expected somewhere else? set {SKIP}=1)
jmedlite: C/C++ コンパイラが見つかりません。llama-cpp-python(llama.cpp)をここでコンパイルする必要があります。\
コンパイラを入れるか(Debian・Ubuntu: apt install build-essential、macOS: xcode-select --install、\
Windows: Visual Studio Build Tools の C++)、別の機械で作った wheel のフォルダを指定してください: \
pip install --find-links フォルダ . \
(llama-cpp-python の wheel が別の場所にある場合は {SKIP}=1 を設定してください)"""


def prepare_metadata_for_build_wheel(*arguments: Any, **settings: Any) -> str:
    """The hook of PEP 517, which pip calls first."""
    return _checked(build_meta.prepare_metadata_for_build_wheel, *arguments, **settings)


def prepare_metadata_for_build_editable(*arguments: Any, **settings: Any) -> str:
    """The hook of PEP 660, which pip calls first for `-e`."""
    return _checked(build_meta.prepare_metadata_for_build_editable, *arguments, **settings)


def _checked(hook: Callable[..., str], *arguments: Any, **settings: Any) -> str:
    command = _parent()
    if not has_runtime():
        if has_compiler():
            compile_ahead(command)
        elif not (os.environ.get(SKIP) or brings_wheels(command, os.environ)):
            sys.exit(MESSAGE)
    return hook(*arguments, **settings)


def has_compiler() -> bool:
    """Whether CMake could find one: by CC or CXX, by a usual name, or with Visual Studio."""
    if os.environ.get("CC") or os.environ.get("CXX") or any(map(shutil.which, COMPILERS)):
        return True
    programs = os.environ.get("PROGRAMFILES(X86)") or os.environ.get("PROGRAMFILES")
    return programs is not None and (Path(programs) / VSWHERE).exists()


def has_runtime() -> bool:
    """Whether llama-cpp-python is installed in the environment for which pip builds (its own is hidden from here)."""
    return any((Path(sysconfig.get_path(kind)) / "llama_cpp").is_dir() for kind in ("purelib", "platlib"))


def brings_wheels(command: str, environment: Mapping[str, str]) -> bool:
    """Whether pip was told of a folder or index of its own, or to install nothing else: it may not have to compile."""
    words = command.split()
    options = ("-f", "--find-links", "-i", "--index-url", "--extra-index-url", "--no-deps", "--no-index")
    named = any(word.split("=")[0] in options for word in words)
    return named or any(
        environment.get(f"PIP_{o.upper()}") for o in ("find_links", "index_url", "extra_index_url", "no_index")
    )


def _parent() -> str:
    """The command line of pip, which has started this process; empty where the system does not tell."""
    try:
        asked = ["ps", "-o", "args=", "-p", str(os.getppid())]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
