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
from jmedlite.base.outputs import OutputFile
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


@pytest.mark.parametrize(
    ("number", "kind", "words"), [(errno.ENOSPC, IoFault, "disk is full"), (errno.EIO, IoFault, "writing failed")]
)
def test_disk_fails_midway(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], words: str
) -> None:
    (kept,) = jmedlite.quantize(model, bits=[4], out=tmp_path / "out")
    before = kept.read_bytes()
    written = 0

    class Failing:
        """A file that fails after 100 kB."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: memoryview) -> int:
            nonlocal written
            written += len(data)
            if written > 100_000:
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
    with pytest.raises(kind, match=words) as caught:
        jmedlite.quantize(model, bits=[4, 8], out=tmp_path / "out", overwrite=True)
    assert caught.value.exit_code == 74  # type: ignore[attr-defined]
    assert names(tmp_path / "out") == ["m-Q4_K_M.gguf", "m-Q4_K_M.json"]
    assert kept.read_bytes() == before


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


def test_two_writers(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with OutputFile(out / "m-Q8_0.gguf"):
        started = time.monotonic()
        with pytest.raises(Busy, match="another run") as caught:
            jmedlite.quantize(model, bits=[8], out=out)
        assert caught.value.exit_code == 75
        assert time.monotonic() - started < 20
    assert names(out) == []
    jmedlite.quantize(model, bits=[8], out=out)
    assert names(out) == ["m-Q8_0.gguf", "m-Q8_0.json"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="only POSIX can kill without notice")
def test_killed_run_leaves_no_name_and_the_next_cleans_up(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", hidden_size=512, intermediate_size=4096, num_hidden_layers=6)
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
