"""A conversion that was cut goes on where it was, and comes to the same bytes; whatever is not the same begins anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmedlite
from jmedlite.api.quantize import plan_quantization
from jmedlite.base import kept
from jmedlite.base.errors import CannotCreate, IoFault
from jmedlite.base.outputs import OutputFile
from tests.support import builders

LEVELS = ["Q4_K_M", "Q8_0"]
N_TENSORS = 3 + 12 * builders.LAYERS


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tensors = builders.checkpoint(tmp_path / "m", "qwen2", shards=2)
    builders.adapter(tmp_path / "a", tensors)
    return tmp_path / "m"


def run(tmp_path: Path, out: str, *, resume: bool = True, **changes: Any) -> list[str]:
    """What the run says of resuming."""
    given: dict[str, Any] = {"lora": [str(tmp_path / "a")], "types": LEVELS, **changes}
    said: list[str] = []
    job = plan_quantization(str(tmp_path / "m"), out=tmp_path / out, resume=resume, **given)
    job.run(threads=2, remember=False, notify=said.append)
    return said


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    """Let writing fail after so many bytes of the first file, and write every finished tensor down at once."""
    monkeypatch.setattr(kept, "EVERY_SECONDS", 0.0)
    write = OutputFile.write

    def after(n_bytes: int, fault: BaseException) -> None:
        def failing(self: OutputFile, data: Any) -> None:
            if self.path.name.endswith("-Q4_K_M.gguf") and self.size_bytes >= n_bytes:
                raise fault
            write(self, data)

        monkeypatch.setattr(OutputFile, "write", failing if n_bytes >= 0 else write)

    return after


Cut = Callable[[int, BaseException], None]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), IoFault("disk full"), SystemExit(143)])
def test_a_cut_run_goes_on_to_the_same_bytes(tmp_path: Path, base: Path, cut: Cut, fault: BaseException) -> None:
    run(tmp_path, "whole", resume=False)
    whole = contents(tmp_path / "whole")
    size = len(whole["m-a-Q4_K_M.gguf"])
    for at in (size // 10, size // 3, size * 2 // 3, size - 10_000):
        cut(at, fault)
        said: list[str] = []
        with pytest.raises(type(fault)):
            given: dict[str, Any] = {"lora": [str(tmp_path / "a")], "types": LEVELS, "resume": True}
            job = plan_quantization(str(base), out=tmp_path / "cut", **given)
            job.run(threads=2, remember=False, notify=said.append)
        assert "tensors are kept" in said[-1]
        assert not list((tmp_path / "cut").glob("*.gguf"))
    cut(-1, fault)
    said = run(tmp_path, "cut")
    assert f"of {N_TENSORS} tensors" in said[0]
    assert int(said[0].split()[3]) > N_TENSORS // 2
    assert contents(tmp_path / "cut") == whole  # and nothing else is left


def test_killed_it_goes_on_too(tmp_path: Path, base: Path) -> None:
    """A process that has no time for anything."""
    run(tmp_path, "whole", resume=False)
    code = (
        "import os, sys\n"
        "from jmedlite.base import kept\n"
        "from jmedlite.base.outputs import OutputFile\n"
        "import jmedlite\n"
        "kept.EVERY_SECONDS, write = 0.0, OutputFile.write\n"
        "def dying(self, data):\n"
        "    if self.path.name.endswith('Q8_0.gguf') and self.size_bytes > 600_000:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    write(self, data)\n"
        "OutputFile.write = dying\n"
        "jmedlite.quantize(sys.argv[1], lora=[sys.argv[2]], types=sys.argv[4:], out=sys.argv[3], resume=True)\n"
    )
    arguments = [str(base), str(tmp_path / "a"), str(tmp_path / "cut"), *LEVELS]
    died = subprocess.run([sys.executable, "-c", code, *arguments], cwd=Path.cwd(), check=False)
    assert died.returncode == (-signal.SIGKILL if os.name == "posix" else 9)
    assert list((tmp_path / "cut").glob(".*.partial"))
    assert "going on after" in run(tmp_path, "cut")[0]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def left(tmp_path: Path, base: Path, cut: Cut) -> Path:
    """A folder in which a run was cut."""
    cut(400_000, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "cut")
    cut(-1, KeyboardInterrupt())
    assert list((tmp_path / "cut").glob(".*.kept"))
    return tmp_path / "cut"


def another_base(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "qwen2", shards=2, seed=5)


def another_adapter(tmp_path: Path) -> None:
    builders.adapter(tmp_path / "a", builders.weights(json.loads((tmp_path / "m" / "config.json").read_text())), seed=9)


@pytest.mark.parametrize("change", [another_base, another_adapter])
def test_another_input_begins_anew(tmp_path: Path, base: Path, cut: Cut, change: Callable[[Path], None]) -> None:
    folder = left(tmp_path, base, cut)
    change(tmp_path)
    assert "beginning anew" in run(tmp_path, "cut")[0]
    run(tmp_path, "whole", resume=False)
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("changes", [{"lora": []}, {"types": ["Q4_K_M"]}, {"tensor_types": ["attn_q=Q8_0"]}])
def test_other_options_begin_anew(tmp_path: Path, base: Path, cut: Cut, changes: dict[str, Any]) -> None:
    folder = left(tmp_path, base, cut)
    run(tmp_path, "cut", name="m-a", **changes)
    run(tmp_path, "whole", name="m-a", resume=False, **changes)
    found = {name: data for name, data in contents(folder).items() if not name.startswith(".")}
    assert found == contents(tmp_path / "whole")


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit of a file": lambda folder: damaged(next(folder.glob(".*Q8_0.gguf.partial"))),
    "a file cut short": lambda folder: os.truncate(next(folder.glob(".*Q4_K_M.gguf.partial")), 100_000),
    "a file gone": lambda folder: next(folder.glob(".*Q8_0.gguf.partial")).unlink(),
    "the record gone": lambda folder: next(folder.glob(".*.kept")).unlink(),
    "the record empty": lambda folder: next(folder.glob(".*.kept")).write_bytes(b""),
    "the record of another format": lambda folder: next(folder.glob(".*.kept")).write_bytes(b'{"format": 9}\n'),
    "a record of no files": lambda folder: next(folder.glob(".*.kept")).write_bytes(
        b'{"format": 1, "plan": "", "files": []}\n'
    ),
    "a record of a nameless file": lambda folder: next(folder.glob(".*.kept")).write_bytes(
        b'{"format": 1, "plan": "", "files": [""]}\n'
    ),
    "the record's numbers": lambda folder: damaged(next(folder.glob(".*.kept"))),
    "the record's last line cut": lambda folder: os.truncate(
        kept_ := next(folder.glob(".*.kept")), kept_.stat().st_size - 30
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_kept_and_is_damaged_counts_for_nothing(tmp_path: Path, base: Path, cut: Cut, damage: str) -> None:
    folder = left(tmp_path, base, cut)
    DAMAGE[damage](folder)
    run(tmp_path, "cut")
    run(tmp_path, "whole", resume=False)
    assert contents(folder) == contents(tmp_path / "whole")


def test_without_the_option_nothing_is_kept(tmp_path: Path, base: Path, cut: Cut) -> None:
    cut(400_000, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "cut", resume=False)
    assert not list((tmp_path / "cut").iterdir())
    folder = left(tmp_path, base, cut)
    run(tmp_path, "cut", resume=False)  # begins anew, and takes away what was kept
    run(tmp_path, "whole", resume=False)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_base_that_changes_meanwhile_leaves_nothing(tmp_path: Path, base: Path, cut: Cut) -> None:
    class Changing(KeyboardInterrupt):
        pass

    write = OutputFile.write

    def failing(self: OutputFile, data: Any) -> None:
        if self.path.name.endswith("-Q8_0.gguf") and self.size_bytes > 400_000:
            another_base(tmp_path)
            raise Changing
        write(self, data)

    cut(-1, KeyboardInterrupt())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Changing):
        patch.setattr(OutputFile, "write", failing)
        run(tmp_path, "cut")
    assert not list((tmp_path / "cut").iterdir())


def test_other_results_leave_it_alone(tmp_path: Path, base: Path, cut: Cut) -> None:
    folder = left(tmp_path, base, cut)
    before = {n for n in contents(folder) if n.startswith(".")}
    jmedlite.quantize(base, types=["Q6_K"], name="other", out=folder)
    assert {n for n in contents(folder) if n.startswith(".")} == before
    assert "going on after" in run(tmp_path, "cut")[0]


def test_a_result_that_is_there_is_not_replaced(tmp_path: Path, base: Path, cut: Cut) -> None:
    run(tmp_path, "cut")
    with pytest.raises(CannotCreate, match="--overwrite"):
        run(tmp_path, "cut")


def test_split_files_and_error_feedback_go_on(tmp_path: Path, base: Path, cut: Cut) -> None:
    """Whose ways of rounding the manifest has to know."""
    (bf16,) = jmedlite.quantize(base, types=["BF16"], out=tmp_path)
    (tmp_path / "t.txt").write_text("hello the thing " * 400)
    jmedlite.moments(bf16, texts=[tmp_path / "t.txt"], ctx=128, out=tmp_path / "mo.gguf")
    given: dict[str, Any] = {"split_max_size": 300_000, "rounding": "best", "moments": tmp_path / "mo.gguf"}
    run(tmp_path, "whole", resume=False, **given)
    assert any(b"feedback:" in data for name, data in contents(tmp_path / "whole").items() if name.endswith(".json"))
    with pytest.MonkeyPatch.context() as patch:
        write = OutputFile.write

        def failing(self: OutputFile, data: Any) -> None:
            if "Q4_K_M-00002" in self.path.name and self.size_bytes > 50_000:
                raise KeyboardInterrupt
            write(self, data)

        patch.setattr(OutputFile, "write", failing)
        patch.setattr(kept, "EVERY_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "cut", **given)
    assert "going on after" in run(tmp_path, "cut", **given)[0]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_lengths_are_those_of_finished_tensors(tmp_path: Path, base: Path) -> None:
    plan = plan_quantization(str(base), types=["Q8_0"], split_max_size=300_000, out=tmp_path / "o").plan
    files = plan.levels[0].files
    assert len(files) > 2
    for n in range(len(plan.jobs) + 1):
        lengths = [f.bytes_of(n) - len(f.header) for f in files]
        assert np.cumsum([0, *lengths])[-1] == sum(-(-t.nbytes // 32) * 32 for t in plan.levels[0].tensors[:n])
    assert [f.bytes_of(len(plan.jobs)) for f in files] == [f.total_bytes for f in files]
