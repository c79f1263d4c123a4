"""What a person asks is in memory only, while commands run and after: in no file, argument, environment, log or core.

Names in a network are in test_offline.py, what `chat --save` keeps in test_chat.py, tokens of a question in
tests/runtime/test_state_cache.py, servers and clusters in tests/benchmarks/backends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.long import long_but_for
from tests.support.warm import COMMAND

SECRET = "Zq7 private Xk"
FORMS = [form for text in (SECRET, SECRET[::-1]) for form in (text.encode(), text.encode("utf-16-le"))]
COMMANDS = {  # arguments, what is typed, and the files where a question is meant to be
    "ask": (["ask", "-m", "{model}", "--max-tokens", "9"], SECRET, set()),
    "chat": (["chat", "-m", "{model}", "--max-tokens", "9"], f"{SECRET}\nnext\n", set()),
    "bench": (
        ["bench", "{model}", "--task", "own={task}", "--method", "generate", "--out", "{folder}/run", "--rounds", "0"],
        "",
        {"task.jsonl", "questions.jsonl", "run.json"},  # the first prompt, see docs/runs.md
    ),
}


def said(found: bytes) -> bool:
    return any(form in found for form in FORMS)


def kept(folder: Path) -> set[str]:
    """Names of the files below a folder that hold the question, and of those that are called by it."""
    names = set()
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            if said(os.fsencode(path.name)) or (path.is_file() and said(path.read_bytes())):
                names.add(path.name.removeprefix(".").removesuffix(".partial"))  # what it is about to be
    return names


def of_processes(pid: int, folder: Path) -> Iterator[tuple[int, str, bool]]:
    """(process, place, whether what must not be there is): arguments, environment, files without a name, core's limit.

    Among those files is a child's standard error, where llama.cpp logs, and here Python each module that it imports.
    """
    with suppress(psutil.NoSuchProcess):
        for process in [(top := psutil.Process(pid)), *top.children(recursive=True)]:
            proc = Path("/proc") / str(process.pid)
            with suppress(OSError):  # it ended meanwhile
                for name in ("cmdline", "environ", "comm"):
                    yield process.pid, name, said((proc / name).read_bytes())
                for fd in (proc / "fd").iterdir():
                    target = str(fd.readlink())
                    if str(folder) in target and "(deleted)" in target:
                        content = fd.read_bytes()
                        yield process.pid, "file without a name", said(content) or b"diskcache" in content
                        if b"llama_cpp" in content:
                            yield process.pid, "imports", False
                core = next(line for line in (proc / "limits").read_text().splitlines() if "core file" in line)
                yield process.pid, "core", core.split()[4:6] not in (["0", "0"], ["1", "1"])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("name", long_but_for(COMMANDS, ["ask"]))
def test_a_question_is_in_memory_only(endless_gguf: Path, tmp_path: Path, name: str) -> None:
    arguments, typed, meant = COMMANDS[name]
    task = tmp_path / "task.jsonl"
    if meant:
        task.write_text(json.dumps({"question": SECRET, "choices": ["heart", "liver"], "answer": [0]}) + "\n")
    home = tmp_path / "home"
    home.mkdir()
    places = dict.fromkeys(("HOME", "TMPDIR", "JMEDLITE_STATE", "JMEDLITE_CACHE", "XDG_CACHE_HOME"), str(home))
    filled = [a.format(model=endless_gguf, task=task, folder=tmp_path) for a in arguments]
    log = tmp_path / "log"
    with log.open("wb") as err:
        running = subprocess.Popen(
            [*COMMAND, *filled], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, cwd=home,
            env=os.environ | places | {"PYTHONPATH": str(Path.cwd()), "PYTHONPROFILEIMPORTTIME": "1"},
        )  # fmt: skip
        talking = threading.Thread(target=running.communicate, args=(typed.encode(),))
        talking.start()
        seen: set[tuple[int, str, bool]] = set()
        files: set[str] = set()
        ready = False  # limits are set before anything is read: there is no child yet
        while talking.is_alive():
            found = set(of_processes(running.pid, tmp_path))
            ready = ready or len({pid for pid, _, _ in found}) > 1
            seen |= found if ready else set()
            files |= kept(tmp_path)
            talking.join(0.02)
    assert running.returncode == 0, log.read_text()
    looked_at = {place for pid, place, _ in seen if pid != running.pid}
    assert looked_at == {"cmdline", "environ", "comm", "file without a name", "imports", "core"}
    assert not {one for one in seen if one[2]}
    assert files | kept(tmp_path) == meant
    assert list(home.rglob("*")) or name == "bench"  # where the system prompt is kept
