"""Outputs under bad luck: no room, no permission, two writers, a killed run. Nothing half-written ever has a name."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jmedlite
from jmedlite.base.errors import Busy, CannotCreate, DataError, IoFault, NotPermitted, UsageError
from jmedlite.base.gguf import read_header
from jmedlite.base.outputs import OutputFile, temporary_folder
from jmedlite.cli.open_model import find_gguf
from jmedlite.convert import planning
from tests.support import builders


@pytest.fixture
def model(tmp_path: Path) -> Path:
    builders.checkpoint(tmp_path / "m")
    return tmp_path / "m"


def names(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


def test_no_room_is_known_before_the_first_byte(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CannotCreate, match=r"0\.1 GB are needed .* 0\.0 GB are free") as caught:
        jmedlite.quantize(model, bits=[8], out=tmp_path / "out")
    assert caught.value.exit_code == 73
    assert names(tmp_path / "out") == []


def disk_fails(monkeypatch: pytest.MonkeyPatch, after: int, number: int) -> None:
    """All outputs together take `after` bytes, and then no more."""
    written = 0

    class Failing:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: memoryview) -> int:
            nonlocal written
            written += len(data)
            if written > after:
                raise OSError(number, os.strerror(number))
            return int(self.file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    enter = OutputFile.__enter__

    def entering(self: OutputFile) -> OutputFile:
        enter(self)
        self._file = Failing(self._file)  # type: ignore[assignment]
        return self

    monkeypatch.setattr(OutputFile, "__enter__", entering)


@pytest.mark.parametrize(
    ("number", "kind", "words"), [(errno.ENOSPC, IoFault, "disk is full"), (errno.EIO, IoFault, "writing failed")]
)
def test_disk_fails_midway(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], words: str
) -> None:
    (kept,) = jmedlite.quantize(model, bits=[4], out=tmp_path / "out")
    before = kept.read_bytes()
    disk_fails(monkeypatch, 100_000, number)
    with pytest.raises(kind, match=words) as caught:
        jmedlite.quantize(model, bits=[4, 8], out=tmp_path / "out", overwrite=True)
    assert caught.value.exit_code == 74  # type: ignore[attr-defined]
    assert names(tmp_path / "out") == ["m-Q4_K_M.gguf", "m-Q4_K_M.json"]
    assert kept.read_bytes() == before


def test_disk_full_at_every_tenth(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first byte to the last of the manifest, which comes after all others."""
    size = sum(f.stat().st_size for f in tiny_gguf.parent.glob(f"{tiny_gguf.stem}.*"))
    for tenth in range(10):
        with monkeypatch.context() as patch:
            disk_fails(patch, size * tenth // 9 - 100, errno.ENOSPC)
            with pytest.raises(IoFault, match="disk is full"):
                jmedlite.quantize(tiny_gguf, types=["F32"], name=tiny_gguf.stem.removesuffix("-F32"), out=tmp_path)
        assert names(tmp_path) == []


def test_bad_weights_midway_leave_nothing(tmp_path: Path) -> None:
    cfg = builders.config("qwen2", builders.n_tokens(builders.byte_level_tokenizer()))
    tensors = builders.weights(cfg)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    builders.checkpoint(tmp_path / "m", tensors=tensors)
    with pytest.raises(DataError, match=r"model\.layers\.1\.mlp\.down_proj\.weight: 1 weights"):
        jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_existing_output_needs_overwrite(model: Path, tmp_path: Path) -> None:
    (path,) = jmedlite.quantize(model, bits=[8], out=tmp_path / "out")
    path.write_bytes(b"mine")
    with pytest.raises(CannotCreate, match="--overwrite"):
        jmedlite.quantize(model, bits=[8], out=tmp_path / "out")
    assert path.read_bytes() == b"mine"
    jmedlite.quantize(model, bits=[8], out=tmp_path / "out", overwrite=True)
    assert read_header(path).tensors


def _folder_in_the_way(out: Path) -> None:
    (out / "m-Q8_0.gguf").mkdir(parents=True)


def _file_instead_of_folder(out: Path) -> None:
    out.write_text("")


@pytest.mark.parametrize("prepare", [_folder_in_the_way, _file_instead_of_folder])
def test_what_stands_in_the_way(model: Path, tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    prepare(tmp_path / "out")
    with pytest.raises(CannotCreate, match="is a f") as caught:
        jmedlite.quantize(model, bits=[8], out=tmp_path / "out", overwrite=True)
    assert caught.value.exit_code == 73


def test_no_permission(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = Path.open

    def refusing(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "w" in mode and self.suffix == ".partial":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opening(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(NotPermitted, match="--out") as caught:
        jmedlite.quantize(model, bits=[8], out=tmp_path / "out")
    assert caught.value.exit_code == 77
    assert names(tmp_path / "out") == []


def test_input_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "m-Q8_0.gguf"
    try:
        os.link(model / "model.safetensors", target)
    except OSError:
        pytest.skip("this file system has no hard links")
    with pytest.raises(UsageError, match="is the input itself"):
        jmedlite.quantize(model, bits=[8], out=tmp_path, overwrite=True)
    assert target.samefile(model / "model.safetensors")


@pytest.mark.parametrize("name", ["m-Q8_0.gguf", "m-Q8_0.json"])
def test_two_writers(model: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with OutputFile(out / name):
        started = time.monotonic()
        with pytest.raises(Busy, match="another run") as caught:
            jmedlite.quantize(model, bits=[8], out=out)
        assert caught.value.exit_code == 75
        assert time.monotonic() - started < 20
    assert names(out) == []
    jmedlite.quantize(model, bits=[8], out=out)
    assert names(out) == ["m-Q8_0.gguf", "m-Q8_0.json"]


def _changed(path: Path) -> None:
    """Other bytes, and the old modification time."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(bytes(8))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replaced(path: Path) -> None:
    """Another file under the same name; who has opened the old one reads that."""
    new = path.with_name("new")
    shutil.copyfile(path, new)
    new.replace(path)


def _removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("m/model.safetensors", _changed),
        ("m/model.safetensors", _replaced),
        ("m/model.safetensors", _removed),
        ("m/tokenizer.json", _replaced),
        ("m/config.json", _changed),
        ("a/adapter_model.safetensors", _changed),
        ("a/adapter_config.json", _replaced),
    ],
)
def test_an_input_that_changes_while_it_is_read(
    model: Path, tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    """At the first report of the pass: what was planned, hashed and read is no longer the same."""
    cfg = builders.config("qwen2", builders.n_tokens(builders.byte_level_tokenizer()))
    builders.adapter(tmp_path / "a", builders.weights(cfg))
    done = False

    def progress(*_: Any) -> None:
        nonlocal done
        if not done:
            change(tmp_path / name)
            done = True

    with pytest.raises(IoFault, match=rf"{Path(name).name}: was changed or replaced") as caught:
        jmedlite.quantize(
            model, lora=[str(tmp_path / "a")], types=["BF16"], out=tmp_path / "out", threads=1, progress=progress
        )
    assert caught.value.exit_code == 74
    assert names(tmp_path / "out") == []


def test_a_fault_that_a_change_explains_is_the_change(model: Path, tmp_path: Path) -> None:
    def progress(*_: Any) -> None:
        (model / "model.safetensors").write_bytes(b"")  # the next block is not there

    with pytest.raises(IoFault, match="was changed or replaced"):
        jmedlite.quantize(model, types=["BF16"], out=tmp_path / "out", threads=1, progress=progress)


def test_no_folder_for_temporary_files(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(CannotCreate, match="TMPDIR"):
        jmedlite.Runner(tiny_gguf)
    with pytest.raises(CannotCreate, match="TMPDIR"), temporary_folder():
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
@pytest.mark.parametrize(
    ("limit", "amount", "words"), [("RLIMIT_FSIZE", 100_000, "ulimit -f"), ("RLIMIT_NOFILE", 12, "ulimit -n")]
)
def test_limits_of_the_system(tiny_gguf: Path, tmp_path: Path, limit: str, amount: int, words: str) -> None:
    """In a process of its own, whose limits are lowered once all is imported."""
    code = (
        "import resource, sys, jmedlite.cli.app, jmedlite.api.quantize\n"
        f"most = resource.getrlimit(resource.{limit})[1]\n"
        f"resource.setrlimit(resource.{limit}, ({amount}, most))\n"
        "jmedlite.cli.app.main()"
    )
    command = [sys.executable, "-c", code, "quantize", str(tiny_gguf), "-t", "F16", "-o", str(tmp_path / "out")]
    if words == "ulimit -n":
        command += ["--split-max-size", "400kB"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 74, done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert names(tmp_path / "out") == []


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no such signals")
@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_run_that_is_asked_to_end(tiny_gguf: Path, tmp_path: Path, number: str, code: int) -> None:
    """In the middle of the pass."""
    asking = (
        "import signal, jmedlite.cli.app, jmedlite.convert.pipeline as p\n"
        "put = p._Outputs.put\n"
        f"p._Outputs.put = lambda *a: (put(*a), signal.raise_signal(signal.{number}))\n"
        "jmedlite.cli.app.main()"
    )
    command = [sys.executable, "-c", asking, "quantize", str(tiny_gguf), "-t", "F16", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == f"jmedlite: ended by {number}; what was begun is removed"
    assert "Traceback" not in done.stderr
    assert names(tmp_path / "out") == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of itself")
@pytest.mark.parametrize("n_named", [1, 2, 3], ids=["a part", "the manifest", "all"])
def test_a_model_whose_run_died_while_it_was_published(tiny_gguf: Path, tmp_path: Path, n_named: int) -> None:
    """What is there is called half a model, or is whole; the same command then makes it, and leaves nothing else."""
    out = tmp_path / "out"

    def make() -> list[Path]:
        return jmedlite.quantize(tiny_gguf, types=["F16"], out=out, name="m", split_max_size="1500kB", threads=1)

    if (child := os.fork()) == 0:
        given: list[Path] = []
        name = OutputFile.name

        def dying(self: OutputFile) -> None:
            name(self)
            given.append(self.path)
            if len(given) == n_named:
                os._exit(9)

        OutputFile.name = dying  # type: ignore[method-assign]
        make()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    order = ["m-F16-00002-of-00002.gguf", "m-F16.json", "m-F16-00001-of-00002.gguf"]
    assert [n for n in names(out) if not n.startswith(".")] == sorted(order[:n_named])
    first = out / order[-1]
    if n_named < 3:
        for look in (lambda: find_gguf(str(first)), lambda: jmedlite.inspect(out / order[0])):
            with pytest.raises(DataError, match=r"is half published.*the same command again"):
                look()
    else:
        assert jmedlite.inspect(first, check=True)["broken"] == []
    assert make() == [first]
    assert names(out) == sorted(order)
    assert jmedlite.inspect(first, check=True)["broken"] == []


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="only POSIX can kill without notice")
def test_killed_run_leaves_no_name_and_the_next_cleans_up(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", hidden_size=512, intermediate_size=4096, num_hidden_layers=3)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jmedlite", "quantize", str(tmp_path / "m"), "-b", "4", "-o", str(out)]
    child = subprocess.Popen([*command, "--threads", "1"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    partial = out / ".m-Q4_K_M.gguf.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 1_000_000):
        assert child.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert partial.exists()
    assert not (out / "m-Q4_K_M.gguf").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert names(out) == ["m-Q4_K_M.gguf", "m-Q4_K_M.json"]
    read_header(out / "m-Q4_K_M.gguf")
