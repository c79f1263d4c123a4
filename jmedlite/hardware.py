"""What this machine has for running a model: processor, memory, GPUs as ggml sees them, llama.cpp's build."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys
from typing import Any

GPU_MARGIN = 512 << 20


def auto_gpu_layers(free_vram: int, model_bytes: int, n_layers: int) -> int:
    """Layers to offload so that the model, a tenth more for context and buffers, and a margin fit `free_vram` bytes."""
    usable = free_vram - GPU_MARGIN
    if usable <= 0:
        return 0
    return min(n_layers + 1, int(usable / (model_bytes * 1.1) * (n_layers + 1)))


def available_processors() -> int:
    """The processors (hardware threads) this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Cores, not hardware threads: llama.cpp's matrix products gain nothing from the second thread of a core."""
    import psutil

    return max(1, min(psutil.cpu_count(logical=False) or available_processors(), available_processors()))


def devices() -> list[dict[str, Any]]:
    """Every compute device in ggml's registry (ggml-backend.h): name, description, kind, memory in bytes."""
    from jmedlite.base.native import load_library

    lib = load_library("ggml")
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.restype = ctypes.c_void_p
    lib.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    for name in ("ggml_backend_dev_name", "ggml_backend_dev_description"):
        getattr(lib, name).restype = ctypes.c_char_p
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    lib.ggml_backend_dev_type.restype = ctypes.c_int
    lib.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    size_p = ctypes.POINTER(ctypes.c_size_t)
    lib.ggml_backend_dev_memory.restype = None
    lib.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size_p, size_p]
    kinds = {0: "CPU", 1: "GPU", 2: "GPU", 3: "accelerator"}  # 2: integrated
    found = []
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        lib.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(
            {
                "name": lib.ggml_backend_dev_name(device).decode("utf-8", "replace"),
                "description": lib.ggml_backend_dev_description(device).decode("utf-8", "replace"),
                "kind": kinds.get(lib.ggml_backend_dev_type(device), "other"),
                "free_bytes": free.value,
                "total_bytes": total.value,
            }
        )
    return found


def describe_machine() -> dict[str, Any]:
    """The facts `jmedlite doctor` shows."""
    import psutil

    from jmedlite.base.native import libllama

    info = libllama().llama_print_system_info().decode("utf-8", "replace")
    features = [
        part.split("=")[0].strip() for part in info.replace(":", "|").split("|") if part.strip().endswith("= 1")
    ]
    memory = psutil.virtual_memory()
    found = devices()
    cpu = next((d["description"] for d in found if d["kind"] == "CPU"), "") or platform.processor()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "executable_bits": 64 if sys.maxsize > 1 << 32 else 32,
        "cpu": cpu,
        "cpu_features": features,
        "physical_cores": physical_cores(),
        "logical_cores": os.cpu_count() or 1,
        "ram_bytes": memory.total,
        "ram_available_bytes": memory.available,
        "gpus": [d for d in found if d["kind"] == "GPU"],
        "gpu_offload_built_in": bool(libllama().llama_supports_gpu_offload()),
        "llama_cpp_python": importlib.metadata.version("llama-cpp-python"),
        "jmedlite": importlib.metadata.version("jmedlite"),
    }
