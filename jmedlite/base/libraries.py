"""Libraries: loading llama.cpp, with the back ends that stand beside it, for whoever uses it; needs no numpy.

Ordinary builds of llama-cpp-python are for the processor that compiled them, and have their back ends linked in. Those
for other machines (tools/build_runtime.py) have a library for each kind of processor, of which ggml takes the best one
that runs. It has to be told where they are before anything is asked of it: by itself it would look beside Python's
executable and in the working directory, where anybody's library may lie.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from .errors import NativeError

LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_loading = threading.Lock()  # ggml's registry has none, and the pass has many threads
CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU


@cache
def libllama() -> Any:
    """llama-cpp-python's own bindings (`llama_cpp.llama_cpp`), ready to compute; raises NativeError."""
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # ggml starts a debugger on an abort unless told not to
    try:
        import llama_cpp.llama_cpp as bindings

        _load_back_ends()
    except (ImportError, OSError, RuntimeError, AttributeError) as e:
        raise NativeError(f"llama-cpp-python could not be loaded ({e}); install it again") from None
    return bindings


def load_library(name: str) -> ctypes.CDLL:
    """A shared library that llama-cpp-python ships beside its own, such as "ggml"."""
    libllama()  # first: it says what is wrong with the installation
    return _open(name)


def _folder() -> Path:
    """Where the bindings look for libllama."""
    if given := os.environ.get("LLAMA_CPP_LIB_PATH"):
        return Path(given)
    import llama_cpp

    return Path(str(llama_cpp.__file__)).parent / "lib"


def _open(name: str) -> ctypes.CDLL:
    from llama_cpp._ctypes_extensions import load_shared_library

    lib: ctypes.CDLL = load_shared_library(name, _folder())
    return lib


def _linked(name: str) -> ctypes.CDLL:
    """The library as libllama has it: wheels have a second copy under a versioned name, with a registry of its own."""
    import llama_cpp.llama_cpp as bindings

    lib: ctypes.CDLL = _open(name) if os.name == "nt" else bindings._lib  # which finds what it depends on too
    return lib


def _is_linked_in() -> bool:
    if os.name != "nt":
        return hasattr(_linked("ggml-cpu"), "ggml_backend_cpu_reg")
    try:
        return not hasattr(_open("ggml-cpu"), "ggml_backend_init")  # which only loadable ones have
    except FileNotFoundError:  # one for each kind of processor instead
        return False


def _load_back_ends() -> None:
    """Have ggml load the back ends beside it, where they are not linked in; raises NativeError without one for CPUs."""
    with _loading:
        if not _is_linked_in():
            _load_from_folder()


def _load_from_folder() -> None:
    ggml = _linked("ggml")
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    if not ggml.ggml_backend_dev_by_type(CPU):
        with _silence():  # ggml tells on standard error what it loaded
            ggml.ggml_backend_load_all_from_path(os.fsencode(_folder()))
    if not ggml.ggml_backend_dev_by_type(CPU):
        found = ", ".join(sorted(_variants())) or "none"
        raise NativeError(
            f"no CPU back end of llama.cpp could be loaded from {_folder()} (there: {found}); "
            "install llama-cpp-python again"
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing of ggml's log; whoever listened before does so again after it."""
    base = _linked("ggml-base")
    listener, context = ctypes.c_void_p(), ctypes.c_void_p()
    deaf = LogCallback(lambda level, text, context: None)
    base.ggml_log_get(ctypes.byref(listener), ctypes.byref(context))
    base.ggml_log_set(deaf, None)
    try:
        yield
    finally:
        base.ggml_log_set(listener, context)


def _variants() -> dict[str, Path]:
    """The CPU back ends that ggml chooses from, by the kind of processor they are named after: none if linked in."""
    suffixes = (".dll",) if os.name == "nt" else (".so",)  # on macOS too
    found = [p for p in _folder().glob("*ggml-cpu-*") if p.suffix in suffixes]
    return {p.stem.partition("ggml-cpu-")[2]: p for p in found}


def cpu_back_end() -> str | None:
    """The kind of processor that the loaded CPU back end is for ("haswell"), by ggml's own rule; None if linked in."""
    libllama()
    scores = {name: ctypes.CDLL(str(path)).ggml_backend_score() for name, path in _variants().items()}
    return max(scores, key=lambda name: scores[name], default=None)
