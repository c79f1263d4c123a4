"""Hardware: what this machine has for running a model: processor, memory, GPUs as ggml sees them, llama.cpp's build.

As a process of its own it prints `describe_machine()` as JSON.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

from .cgroup import cpu_quota, memory_left


def available_processors() -> int:
    """The processors (hardware threads) this process may use: those it is bound to, within a container's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def physical_cores() -> int:
    """Cores, not hardware threads: llama.cpp's matrix products gain nothing from the second thread of a core."""
    import psutil

    return max(1, min(psutil.cpu_count(logical=False) or available_processors(), available_processors()))


def free_ram() -> int:
    """Bytes of memory that processes can still take: what the system has available, within a container's limit."""
    import psutil

    free, left = int(psutil.virtual_memory().available), memory_left()
    return free if left is None else max(0, min(free, left))


def has_amx() -> bool:
    """Whether this is one of Intel's processors with matrix tiles, as far as the system tells (Linux)."""
    try:
        return b" amx_tile" in Path("/proc/cpuinfo").read_bytes()
    except OSError:
        return False


def cpu_features() -> list[str]:
    """What llama.cpp's build uses of this processor, by its own names ("AVX2", "NEON", "REPACK", …)."""
    from jmedlite.base.libraries import libllama

    info = libllama().llama_print_system_info().decode("utf-8", "replace")
    return [part.split("=")[0].strip() for part in info.replace(":", "|").split("|") if part.strip().endswith("= 1")]


def devices() -> list[dict[str, Any]]:
    """Every compute device in ggml's registry (ggml-backend.h): name, description, kind, memory in bytes."""
    from jmedlite.base.libraries import load_library

    lib = load_library("ggml")
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.restype = ctypes.c_void_p
    lib.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    for name in ("ggml_backend_dev_name", "ggml_backend_dev_description"):
        getattr(lib, name).restype = ctypes.c_char_p
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    lib.ggml_backend_dev_type.restype = ctypes.c_int
    lib.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_dev_buffer_type.restype = ctypes.c_void_p
    lib.ggml_backend_dev_buffer_type.argtypes = [ctypes.c_void_p]
    size_p = ctypes.POINTER(ctypes.c_size_t)
    lib.ggml_backend_dev_memory.restype = None
    lib.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size_p, size_p]
    kinds = {0: "CPU", 1: "GPU", 2: "GPU", 3: "accelerator"}  # 2: integrated
    own = any(lib.ggml_backend_dev_type(lib.ggml_backend_dev_get(i)) == 1 for i in range(lib.ggml_backend_dev_count()))
    found = []
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        kind = lib.ggml_backend_dev_type(device)
        if kind == 2 and own:
            continue  # llama.cpp leaves an integrated GPU alone where there is a better one
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        lib.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(
            {
                "name": lib.ggml_backend_dev_name(device).decode("utf-8", "replace"),
                "description": lib.ggml_backend_dev_description(device).decode("utf-8", "replace"),
                "kind": kinds.get(kind, "other"),
                "pointer": device,
                "buffer_type": lib.ggml_backend_dev_buffer_type(device),
                "shared_memory": kind == 2 or (kind == 1 and sys.platform == "darwin"),
                "free_bytes": free.value,
                "total_bytes": total.value,
            }
        )
    return found


def likes_large_batches() -> bool:
    """Whether there is a GPU with memory of its own: one that a batch of some hundred tokens does not keep busy."""
    return any(d["kind"] == "GPU" and not d["shared_memory"] for d in devices())


def describe_machine() -> dict[str, Any]:
    """The facts `jmedlite doctor` shows."""
    import psutil

    from jmedlite.base.libraries import cpu_back_end, libllama

    memory = psutil.virtual_memory()
    import importlib.metadata  # brings a parser of mail along, which no other use of this module needs

    found = devices()
    cpu = next((d["description"] for d in found if d["kind"] == "CPU"), "") or platform.processor()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "executable_bits": 64 if sys.maxsize > 1 << 32 else 32,
        "cpu": cpu,
        "cpu_features": cpu_features(),
        "cpu_back_end": cpu_back_end(),
        "physical_cores": physical_cores(),
        "logical_cores": os.cpu_count() or 1,
        "ram_bytes": memory.total,
        "ram_available_bytes": memory.available,
        "gpus": [
            {k: v for k, v in d.items() if k not in ("pointer", "buffer_type")} for d in found if d["kind"] == "GPU"
        ],
        "gpu_offload_built_in": bool(libllama().llama_supports_gpu_offload()),
        "llama_cpp_python": importlib.metadata.version("llama-cpp-python"),
        "jmedlite": importlib.metadata.version("jmedlite"),
    }


if __name__ == "__main__":
    print(json.dumps(describe_machine()))
