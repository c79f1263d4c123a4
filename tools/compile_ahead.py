"""llama-cpp-python compiled ahead of pip, in half of the time: pip then finds the wheel in its own cache.

PyPI has only its source, whose build compiles what no Python package loads, and a project can't give options to the
build of what it depends on. But pip asks for this project's metadata before it looks for what that names, and keeps the
wheels that it has built. So the same pip, with the same settings, is called here to build that one wheel with
compile_ahead.cmake. Where anything is unusual nothing is done, and pip builds it as always.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNTIME = "llama-cpp-python"
DEFINE = "SKBUILD_CMAKE_DEFINE"  # scikit-build-core's, beside CMAKE_ARGS, which a space in a path would break
# With these on its command line pip looks for the wheel where, and as, the pip that is called here does; the rest it
# reads from the environment and from its configuration files, as that does too.
HARMLESS = frozenset((
    "-e", "--editable", "-q", "--quiet", "-v", "-vv", "-vvv", "--verbose", "-U", "--upgrade", "--user", "-C",
    "--config-settings", "--break-system-packages", "--no-input", "--no-warn-script-location", "--progress-bar",
    "--disable-pip-version-check", "--root-user-action",
))  # fmt: skip
# what pip sets for the processes of a build
OF_THIS_BUILD = ("PYTHON", "PIP_BUILD_TRACKER", "_PYPROJECT_HOOKS", "PEP517")
BEFORE = (
    "jmedlite: compiling llama.cpp, which takes some minutes (about {minutes} on this machine)\n"
    "jmedlite: llama.cpp をコンパイルしています（このパソコンでは約 {minutes} 分）\n"
)
CORE_MINUTES = 6  # docs/install.md


def compile_ahead(command: str) -> bool:
    """Put the wheel into pip's cache, where pip, whose `command` line is given, will look for it. Was it done?"""
    if not fits(command, os.environ):
        return False
    pip = [sys.executable, "-m", "pip"]
    environment = cleaned(os.environ)
    if subprocess.run([*pip, "cache", "dir"], env=environment, capture_output=True, check=False).returncode:
        return False  # no pip of this environment's own, or one that keeps nothing
    tell(BEFORE.format(minutes=max(1, round(CORE_MINUTES / (os.cpu_count() or 1)))))
    with tempfile.TemporaryDirectory() as folder:
        build = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, requirement()]
        done = subprocess.run(build, env=environment, capture_output=True, text=True, check=False)
    print(done.stderr)  # which `pip -v` shows
    return not done.returncode


def fits(command: str, environment: Mapping[str, str]) -> bool:
    """Whether it is pip that installs or builds, told nothing that changes where it looks for the wheel or keeps it."""
    words = command.split()
    program = [Path(word).name.removesuffix(".exe") for word in words]
    verb = next((i for i, word in enumerate(words) if word in ("install", "wheel")), 0)
    is_pip = any(name == "pip" or name.startswith("pip3") for name in program[:verb]) and "uv" not in program
    options = {word.partition("=")[0] for word in words[verb:] if word.startswith("-")}
    told = environment.get("CMAKE_ARGS", "") + environment.get(DEFINE, "")
    return is_pip and options <= HARMLESS and "CMAKE_PROJECT_INCLUDE" not in told


def cleaned(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment as the person's pip has it, without what it sets for this build, and with our switches."""
    kept = {k: v for k, v in environment.items() if not k.startswith(OF_THIS_BUILD)}
    theirs = [kept[DEFINE]] if kept.get(DEFINE) else []
    return {**kept, DEFINE: ";".join([*theirs, f"CMAKE_PROJECT_INCLUDE={(HERE / 'compile_ahead.cmake').as_posix()}"])}


def requirement() -> str:
    """What pyproject.toml says of llama-cpp-python."""
    told = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    return next(line for line in told["project"]["dependencies"] if line.startswith(RUNTIME))


def tell(text: str) -> None:
    """Text on the terminal: pip keeps what a build says to itself."""
    terminal = Path("CONOUT$" if os.name == "nt" else "/dev/tty")
    with contextlib.suppress(OSError), terminal.open("w", encoding="utf-8") as to:
        to.write("\n" + text)
