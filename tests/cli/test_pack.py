"""`pack`: the stick is whole, says what is missing, is made in one step, and its script refuses what was changed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jmedlite
from jmedlite.api import pack as packing
from jmedlite.api.wheels import Target, choose_wheels
from tests.support.commands import check, run, run_text

RUNTIME = "llama_cpp_python-0.3.36-py3-none-manylinux_2_28_x86_64.whl"
SYSTEM = ("--platform", "linux-x86_64", "--python", "3.12")


def wheel(folder: Path, name: str, *requires: str, members: tuple[str, ...] = (), python: str = ">=3.11") -> Path:
    """A wheel that holds its metadata, and files of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    project, version = name.split("-")[:2]
    lines = ["Metadata-Version: 2.1", f"Name: {project}", f"Version: {version}", f"Requires-Python: {python}"]
    lines += [f"Requires-Dist: {r}" for r in requires]
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr(f"{project}-{version}.dist-info/METADATA", "\n".join(lines) + "\n\n")
        for member in members:
            archive.writestr(member, "")
    return folder / name


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A wheelhouse for Linux and Python 3.12, of jmedlite with four dependencies."""
    folder = tmp_path / "house"
    wheel(
        folder, f"jmedlite-{jmedlite.__version__}-py3-none-any.whl",
        "llama-cpp-python>=0.3.36", "one>=1", 'colour; sys_platform == "win32"', 'tests; extra == "test"', "two[fast]",
    )  # fmt: skip
    wheel(folder, RUNTIME, members=("llama_cpp/lib/libggml-cpu-haswell.so", "llama_cpp/lib/libllama.so"))
    wheel(folder, "one-1.5-cp312-cp312-manylinux2014_x86_64.whl")
    wheel(folder, "one-1.6-cp313-cp313-manylinux2014_x86_64.whl")  # another Python's
    wheel(folder, "two-2.0-cp311-abi3-manylinux_2_31_x86_64.whl", 'three; extra == "fast"', "one<2")
    wheel(folder, "three-3.0-py3-none-any.whl")
    wheel(folder, "stranger-1.0-py3-none-any.whl")
    return folder


@pytest.fixture
def pack(house: Path, tiny_gguf: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    def made(*more: str, model: Path = tiny_gguf) -> subprocess.CompletedProcess[bytes]:
        return run("pack", str(tmp_path / "stick"), "-m", str(model), "--wheels", str(house), *SYSTEM, *more)

    return made


Pack = Callable[..., subprocess.CompletedProcess[bytes]]


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def install_script(stick: Path) -> Any:
    spec = importlib.util.spec_from_file_location("install_of_a_stick", stick / "install.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    shutil.rmtree(stick / "__pycache__", ignore_errors=True)
    return made


def test_the_stick_is_whole(pack: Pack, tiny_gguf: Path, tmp_path: Path) -> None:
    task, report = tmp_path / "questions", tmp_path / "run" / "report.html"
    for path, text in ((task / "a" / "q.jsonl", "{}"), (task / ".git" / "HEAD", "x"), (report, "<!DOCTYPE html>")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    done = pack("--task", str(task), "--report", str(report.parent), "--json")
    assert done.returncode == 0, done.stderr.decode()
    stick, told = tmp_path / "stick", json.loads(done.stdout)
    sums = (stick / "SHA256SUMS").read_bytes()
    assert told["sha256"] == hashlib.sha256(sums).hexdigest()
    listed = dict(reversed(line.split("  ")) for line in sums.decode().splitlines())
    assert tree(stick) == listed.keys() | {"SHA256SUMS"}
    assert all(hashlib.sha256((stick / n).read_bytes()).hexdigest() == digest for n, digest in listed.items())
    assert {n for n in listed if "/" in n} == {
        f"models/{tiny_gguf.name}", f"models/{tiny_gguf.stem}.json", "tasks/questions/a/q.jsonl",
        f"wheels/jmedlite-{jmedlite.__version__}-py3-none-any.whl", f"wheels/{RUNTIME}",
        "wheels/one-1.5-cp312-cp312-manylinux2014_x86_64.whl", "wheels/three-3.0-py3-none-any.whl",
        "wheels/two-2.0-cp311-abi3-manylinux_2_31_x86_64.whl",
    }  # fmt: skip
    assert (told["oldest_system"], told["python"], told["report"]) == ("glibc 2.31", "3.12", "report.html")
    assert b"warning" not in done.stderr
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    for name in packing.SCRIPTS:
        assert "@PYTHON@" not in (stick / name).read_text(encoding="utf-8")
    batch = (stick / "install.bat").read_bytes()
    assert batch.isascii()
    assert batch.count(b"\n") == batch.count(b"\r\n") > 10
    assert b"\r" not in (stick / "install.sh").read_bytes()
    assert subprocess.run(["sh", "-n", str(stick / "install.sh")], check=False).returncode == 0


def test_the_page(pack: Pack, tmp_path: Path) -> None:
    assert pack().returncode == 0
    page = (tmp_path / "stick" / "README.html").read_text(encoding="utf-8")
    for words in ("研究用の出力です", "For research only", "sh install.sh", "glibc 2.31", "Python 3.12", "not stated"):
        assert words in page
    assert not any(word in page for word in ("http:", "https:", "<script", "src=", "install.bat"))
    about = json.loads((tmp_path / "stick" / "stick.json").read_text(encoding="utf-8"))
    about["models"][0]["name"] = "<b>x"
    assert "<b>x" not in packing.page(about)
    assert "install.bat" in packing.page(about | {"system": "Windows"})


def test_what_was_changed_is_refused(pack: Pack, tmp_path: Path, tiny_gguf: Path) -> None:
    assert pack().returncode == 0
    stick = tmp_path / "stick"
    script = install_script(stick)
    assert script.broken_files(stick) == []
    wheel(stick / "wheels", "jmedlite-9.0-py3-none-any.whl")
    (stick / "models" / tiny_gguf.name).write_bytes(b"GGUF")
    (stick / "README.html").unlink()
    assert set(script.broken_files(stick)) == {
        "wheels/jmedlite-9.0-py3-none-any.whl", f"models/{tiny_gguf.name}", "README.html",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "word"),
    [({"system": "Plan9"}, "Plan9"), ({"python": "3.1"}, "Python 3.1;"), ({"oldest_system": "glibc 9.1"}, "glibc 9.1")],
)
def test_the_script_knows_its_system(
    pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], word: str
) -> None:
    assert pack().returncode == 0
    script = install_script(tmp_path / "stick")
    here = script.platform
    fits = {"system": here.system(), "machine": here.machine(), "python": ".".join(here.python_version_tuple()[:2])}
    about = {"title": "Plan9", "oldest_system": "", **fits}
    script.check_system(about)
    if "oldest_system" in change and not here.libc_ver()[1]:
        pytest.skip("no glibc here")
    with pytest.raises(SystemExit):
        script.check_system(about | change)
    assert word in capsys.readouterr().err


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="of this Python's wheels another command is named")
def test_what_is_missing_is_named_with_the_command(pack: Pack, house: Path, tmp_path: Path) -> None:
    (house / "three-3.0-py3-none-any.whl").unlink()
    line = check(pack(), 65, "three", "pip download", "--python-version 3.12", "manylinux_2_28_x86_64")
    assert "one" not in line.partition(";")[0]
    (house / RUNTIME).unlink()
    check(pack(), 65, "llama-cpp-python>=0.3.36", "tools/build_runtime.py")
    for path in house.glob("jmedlite-*"):
        path.unlink()
    check(pack(), 65, "jmedlite", "pip wheel --no-deps")
    for path in house.iterdir():
        path.unlink()
    check(pack(), 66, "holds no wheels")
    assert not (tmp_path / "stick").exists()


def test_demands_that_come_late_count(tmp_path: Path) -> None:
    """`one` is chosen before `two` says that it must be older."""
    wheel(tmp_path, f"jmedlite-{jmedlite.__version__}-py3-none-any.whl", "one", "two")
    for version in ("1.0", "2.0", "2.1"):
        wheel(tmp_path, f"one-{version}-py3-none-any.whl", python=">=3.13" if version == "2.0" else ">=3.11")
    wheel(tmp_path, "two-1.0-py3-none-any.whl", "one<2.1")
    found = choose_wheels(tmp_path, Target("windows-x86_64", "3.12"))
    assert {n: str(w.version) for n, w in found.wheels.items() if n != "jmedlite"} == {"one": "1.0", "two": "1.0"}
    assert not found.missing


@pytest.mark.parametrize("platform", ["windows-x86_64", "macos-arm64", "linux-arm64"])
def test_wheels_of_another_system_do_not_fit(house: Path, platform: str) -> None:
    missing = choose_wheels(house, Target(platform, "3.12")).missing
    assert {m.split(">")[0] for m in missing} >= {"llama-cpp-python", "one"}
    assert ("colour" in missing) == (platform == "windows-x86_64")


def test_a_runtime_for_one_processor_is_warned_of(pack: Pack, house: Path) -> None:
    built = "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"
    wheel(house, built, members=("llama_cpp/lib/libggml-cpu.so",))
    assert b"illegal instruction" not in pack("--dry-run").stderr  # the one for all goes before it
    (house / RUNTIME).unlink()
    done = pack("--dry-run", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["oldest_system"] == ""  # nobody knows
    assert b"illegal instruction" in done.stderr
    (house / built).rename(house / RUNTIME)  # without variants, whatever it is called
    assert b"illegal instruction" in pack("--dry-run").stderr


def test_only_what_pack_made_is_replaced(pack: Pack, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    assert pack().returncode == 0  # an empty folder is none of anybody's
    check(pack(), 73, "--overwrite")
    before = (stick / "SHA256SUMS").stat().st_ino
    assert pack("--overwrite").returncode == 0
    assert (stick / "SHA256SUMS").stat().st_ino != before
    (stick / "models" / "notes.txt").write_text("mine")
    check(pack("--overwrite"), 73, "models/notes.txt", "move it away")
    assert (stick / "models" / "notes.txt").read_text() == "mine"
    shutil.rmtree(stick)
    stick.mkdir()
    (stick / "thesis.txt").write_text("mine")
    check(pack("--overwrite"), 73, "did not make")
    assert tree(stick) == {"thesis.txt"}


def test_a_fault_leaves_what_was_there(
    pack: Pack, tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pack().returncode == 0
    before = {p: (tmp_path / "stick" / p).read_bytes() for p in tree(tmp_path / "stick")}
    broken = tmp_path / tiny_gguf.name
    shutil.copy(tiny_gguf.with_suffix(".json"), tmp_path)
    blob = bytearray(tiny_gguf.read_bytes())
    blob[-1] ^= 1
    broken.write_bytes(blob)
    check(pack("--overwrite", model=broken), 65, "another SHA-256")
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    check(pack("--overwrite"), 73, "are needed")
    assert {p: (tmp_path / "stick" / p).read_bytes() for p in tree(tmp_path / "stick")} == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_what_a_killed_run_left_is_taken_back(pack: Pack, tmp_path: Path) -> None:
    assert pack().returncode == 0
    (tmp_path / "stick").rename(tmp_path / ".stick.old")
    (tmp_path / ".stick.partial" / "models").mkdir(parents=True)
    assert pack().returncode == 0
    assert (tmp_path / "stick" / "SHA256SUMS").is_file()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("before", [False, True])
def test_a_signal_while_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    out = tmp_path / "stick"
    if before:
        out.mkdir()
        (out / "old").touch()
    monkeypatch.setattr(packing, "flush_folder", lambda folder: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), packing._folder(out) as partial:
        (partial / "new").touch()
    assert tree(tmp_path) == ({"stick/old"} if before else set())


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--platform", "amiga"), 2, "expected linux-x86_64"),
        (("--python", "3.9"), 2, "3.11 or newer"),
        (("--task", "{tmp}/nothing"), 66, "no such file or folder"),
        (("--report", "{tmp}/house"), 66, "jmedlite report"),
        (("--report", "{gguf}"), 2, "report's page"),
        (("-m", "{gguf}"), 2, "two models"),
    ],
)
def test_wrong_arguments(
    pack: Pack, tmp_path: Path, tiny_gguf: Path, arguments: tuple[str, str], code: int, word: str
) -> None:
    check(pack(*(a.format(tmp=tmp_path, gguf=tiny_gguf) for a in arguments)), code, word)
    assert not (tmp_path / "stick").exists()


def test_damaged_wheels(pack: Pack, house: Path) -> None:
    (house / "one-1.5-cp312-cp312-manylinux2014_x86_64.whl").write_bytes(b"PK")
    check(pack(), 65, "one-1.5", "damaged wheel")
    wheel(house, "one.whl-1.whl")
    check(pack(), 65, "names they were made with")


def test_pip_makes_wheels_for_this_system_alone(tiny_gguf: Path, tmp_path: Path) -> None:
    done = run_text(
        "pack", str(tmp_path / "s"), "-m", str(tiny_gguf), "--platform", "windows-x86_64", "--python", "3.12"
    )
    assert done.returncode == 2
    assert "--wheels" in done.stderr
