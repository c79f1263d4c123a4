"""Back ends of llama.cpp that are libraries of their own: found beside it, and said where none can be loaded."""

from __future__ import annotations

import ctypes
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from jmedlite.base import libraries
from jmedlite.base.errors import NativeError


class Function:
    """A function of a C library: gives what `does` gives, whatever types are set."""

    def __init__(self, does: object) -> None:
        self.does = does

    def __call__(self, *arguments: object) -> object:
        return self.does(*arguments) if callable(self.does) else self.does


class Loadable:
    """ggml without a CPU back end until one is loaded from `folder`."""

    def __init__(self, folder: Path | None) -> None:
        self.asked: list[bytes] = []
        self.folder = folder
        self.ggml_backend_dev_by_type = Function(lambda _: 1 if self.folder and self.asked else None)
        self.ggml_backend_load_all_from_path = Function(self.asked.append)


def use(monkeypatch: pytest.MonkeyPatch, folder: Path, ggml: Loadable, *, linked_in: bool = False) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(folder))
    monkeypatch.setattr(libraries, "_linked", lambda name: ggml)
    monkeypatch.setattr(libraries, "_is_linked_in", lambda: linked_in)
    monkeypatch.setattr(libraries, "_silence", nullcontext)


def test_loadable_back_ends_are_loaded_by_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ggml = Loadable(tmp_path)
    use(monkeypatch, tmp_path, ggml)
    libraries._load_back_ends()
    libraries._load_back_ends()
    assert ggml.asked == [os.fsencode(tmp_path)]  # once: what is loaded already is kept


def test_threads_wait_for_the_one_that_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The pass's threads ask for libraries at once: half loaded was "no back end" to the second."""
    ggml = Loadable(tmp_path)

    def slowly(folder: bytes) -> None:
        time.sleep(0.05)
        ggml.asked.append(folder)

    ggml.ggml_backend_load_all_from_path = Function(slowly)
    use(monkeypatch, tmp_path, ggml)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(libraries._load_back_ends) for _ in range(2)]:
            done.result()
    assert len(ggml.asked) == 1


def test_back_ends_that_are_linked_in_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ggml = Loadable(None)
    use(monkeypatch, tmp_path, ggml, linked_in=True)
    libraries._load_back_ends()
    assert ggml.asked == []


def test_this_build_is_one_or_the_other() -> None:
    libraries.libllama()
    assert libraries._is_linked_in() == (not libraries._variants())


def test_no_back_end_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libggml-cpu-haswell.so").touch()
    use(monkeypatch, tmp_path, Loadable(None))
    with pytest.raises(NativeError) as caught:
        libraries._load_back_ends()
    assert "\n" not in str(caught.value)
    assert "no CPU back end" in str(caught.value) and "install" in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="named otherwise there")
def test_the_best_back_end_is_named_by_its_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scores = {"libggml-cpu-x64.so": 1, "libggml-cpu-haswell.so": 60, "libggml-cpu-icelake.so": 0}
    for name in scores:
        (tmp_path / name).touch()

    def opened(path: str) -> object:
        return type("Library", (), {"ggml_backend_score": Function(scores[Path(path).name])})()

    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    monkeypatch.setattr(libraries, "libllama", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", opened)
    assert libraries.cpu_back_end() == "haswell"


def test_ggml_is_silent_for_a_while_and_then_heard_as_before() -> None:
    heard: list[bytes] = []
    listener = libraries.LogCallback(lambda level, text, context: heard.append(text))
    libllama = libraries.libllama()
    base = libraries._linked("ggml-base")
    try:
        libllama.llama_log_set(listener, None)
        with libraries._silence():
            base.gguf_init_from_file(b"/nonexistent", ctypes.c_int64(0), ctypes.c_void_p())
        assert heard == []
        base.gguf_init_from_file(b"/nonexistent", ctypes.c_int64(0), ctypes.c_void_p())
        assert heard
    finally:
        # both have it: libllama too would call what is no more, with the next model that is loaded in this process
        libllama.llama_log_set(libraries.LogCallback(), None)  # NULL
