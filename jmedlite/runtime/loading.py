"""Loading: a GGUF model into memory, looked at first, placed by a plan, and checked against its manifest meanwhile."""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from jmedlite.base.errors import CannotCreate, DataError, UsageError
from jmedlite.base.gguf import (
    BEYOND_ADAPTERS,
    EXACT_CONTEXT,
    EXACT_CONTEXT_SETTING,
    Header,
    check_model,
    check_tensors,
    read_header,
    split_files,
)
from jmedlite.base.looking import is_dir, is_file
from jmedlite.base.publishing import check_published

from .fitting import level_shapes, shape_on_this_machine, this_machine
from .hardware import devices
from .integrity import Integrity
from .offload import MAPPED, OffloadPlan, Wish, make_offload_plan, refusal
from .protocol import Emit
from .shape import CELL, EXPERTS, N_OUTPUTS, N_UBATCH, check_kv_type
from .state_cache import StateCache, fingerprint
from .vocabulary import Vocabulary

LOAD_READ, LOAD_MAPPED = 0, 1  # llama_load_mode
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # llama_flash_attn_type


def read_whole_header(path: Path) -> tuple[list[Path], Header]:
    """A model's files, the first one first, and one header with the tensors of all."""
    files = split_files(path)
    check_published(files)
    first, *others = [read_header(file) for file in files]
    check_model(files[0], first)
    tensors = [*first.tensors, *(t for header in others for t in header.tensors)]
    by_name = {t.name: t for t in tensors}
    check_tensors(files[0], by_name)
    return files, replace(first, tensors=tuple(tensors), by_name=by_name)


class BufferOverride(ctypes.Structure):
    """llama.h's llama_model_tensor_buft_override: tensors whose name the regular expression finds, and their place."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


class LoadedModel:
    """One loaded model; the request names `path`, and may have `gpu_layers`, `n_cpu_moe`, `ctx`, `kv_type`,
    `flash_attn`, `lora` (pairs of path and weight), `cache` (a folder), `n_batch` and `n_outputs` (of the largest
    batch), `n_states` (sequences at once), `force`, `checked` (its hash is known to be right) and `writable` (weights
    in memory of its own, as the file has them). `emit` gets a `plan` event before the model is loaded.
    """

    def __init__(self, request: dict[str, Any], emit: Emit) -> None:
        defaults = {"gpu_layers": "auto", "n_cpu_moe": "auto", "kv_type": "f16", "flash_attn": "auto", "lora": []}
        self.request = {**defaults, "n_batch": N_UBATCH, "n_outputs": N_OUTPUTS, **request}
        files, self.header = read_whole_header(Path(request["path"]))
        self.path = files[0]
        self.mark = fingerprint(files)
        from jmedlite.base.libraries import libllama
        from jmedlite.base.native import capture_log

        # chat templates need it, and it loads while llama.cpp does
        threading.Thread(target=importlib.import_module, args=("jinja2.sandbox",), daemon=True).start()
        self.errors: list[str] = []
        capture_log(lambda level, text: self.errors.append(text.strip()) if level == 4 else None)
        self.llama = llama = libllama()
        llama.llama_backend_init()
        self.cache = StateCache(Path(request["cache"])) if request.get("cache") else None
        self.plan = self._plan(emit)
        self.integrity = Integrity(self.path, self.mark, self.cache, known=bool(request.get("checked")))
        started = time.monotonic()
        self.model = llama.llama_model_load_from_file(os.fsencode(self.path), self._params())
        if not self.model:
            raise DataError(f"{self.path.name}: llama.cpp could not load it ({self.reason()})")
        self.vocabulary = Vocabulary(llama, self.model, self.header)
        self.adapters = self._load_adapters()
        self.load_seconds = time.monotonic() - started

    def reason(self) -> str:
        """What llama.cpp complained of first: the lines after it only say what failed because of it."""
        return re.sub(r"^\w+: (error loading model: )?", "", self.errors[0]) if self.errors else "it gave no reason"

    @property
    def n_ctx_train(self) -> int:
        """Tokens that the model was trained for, and that llama.cpp computes as the original does."""
        n_ctx = int(self.llama.llama_model_n_ctx_train(self.model))
        return min(n_ctx, int(self.header.metadata.get(EXACT_CONTEXT, n_ctx)), self.n_positions or n_ctx)

    @property
    def n_positions(self) -> int | None:
        """Rows of a model's table of positions, beyond which llama.cpp ends its process; None where it has no table."""
        table = self.header.by_name.get("position_embd.weight")
        return table.shape[-1] if table else None

    @property
    def n_ctx_short(self) -> int | None:
        """The largest context for which llama.cpp takes a longrope model's factors for short texts; None: no matter.

        transformers goes by the text's length, llama.cpp by the context's, which it rounds up.
        """
        if "rope_factors_long.weight" not in self.header.by_name:
            return None
        arch = self.header.metadata["general.architecture"]
        short = self.header.metadata.get(f"{arch}.rope.scaling.original_context_length")
        return short // CELL * CELL if isinstance(short, int) and CELL <= short < self.n_ctx_train else None

    @property
    def context_ends(self) -> str:
        """Why no context may be longer, as the end of a sentence; "" where it may."""
        metadata = self.header.metadata
        if EXACT_CONTEXT not in metadata:
            return ""
        setting = str(metadata.get(EXACT_CONTEXT_SETTING, "setting"))[:80]
        return f" (beyond {metadata[EXACT_CONTEXT]:,} tokens its {setting} acts, which llama.cpp does not compute)"

    def _plan(self, emit: Emit) -> OffloadPlan:
        """How to load the model; raises CannotCreate where it does not fit and nobody said --force."""
        check_kv_type(self.path.name, self.header.metadata, self.request["kv_type"])
        shape = shape_on_this_machine(self.header)
        n_gpu_layers, n_cpu_moe = (
            None if wanted == "auto" else most if wanted == "all" else int(wanted)
            for wanted, most in (
                (self.request["gpu_layers"], shape.n_layer + 1),
                (self.request["n_cpu_moe"], shape.n_layer),
            )
        )
        machine = this_machine(with_gpus=n_gpu_layers != 0)
        wish = Wish(
            n_gpu_layers=n_gpu_layers,
            n_cpu_moe=n_cpu_moe,
            n_ctx=self.request.get("ctx"),
            kv_type=self.request["kv_type"],
            flash_attn=self.request["flash_attn"] != "off",
            n_batch=self.request["n_batch"],
            n_outputs=self.request["n_outputs"],
            n_states=self.request.get("n_states", self.request.get("lanes", 1)),
            extra=sum(Path(p).stat().st_size for p, _ in self.request["lora"] if is_file(Path(p))),
        )
        exact = self.header.metadata.get(EXACT_CONTEXT)
        if wish.n_ctx and exact and wish.n_ctx > exact:
            raise UsageError(
                f"{self.path.name}: a context of {wish.n_ctx:,} tokens would be answered differently than by the "
                f"original{self.context_ends}; take at most {exact:,}"
            )
        if wish.n_ctx and self.n_positions and wish.n_ctx > self.n_positions:
            raise UsageError(
                f"{self.path.name}: has a table of {self.n_positions:,} positions, which a context of {wish.n_ctx:,} "
                f"tokens would exceed; take at most {self.n_positions:,}"
            )
        plan = make_offload_plan(shape, machine, wish)
        if not plan.fits and not self.request.get("force"):
            raise CannotCreate(refusal(self.path.name, plan, shape, machine, wish, level_shapes(self.header)))
        emit("plan", sentence=plan.sentence(grows=wish.n_ctx is None) + self.context_ends, **plan.figures())
        return plan

    def _params(self) -> Any:
        llama, plan = self.llama, self.plan
        params = llama.llama_model_default_params()
        writable = bool(self.request.get("writable"))
        params.load_mode = LOAD_MAPPED if plan.loading == MAPPED and not writable else LOAD_READ
        params.use_extra_bufts = not writable  # where weights are put into another order
        params.n_gpu_layers = plan.n_gpu_layers
        # Named one by one, so that llama.cpp's order and number of devices is the plan's; none without a layer, or it
        # would be taken for large batches all the same, with memory that no plan has.
        every = devices() if plan.gpus and plan.n_gpu_layers else []
        gpus = zip((d for d in every if d["kind"] == "GPU"), plan.split, strict=True) if every else ()
        used = [(device["pointer"], n) for device, n in gpus if n]
        self._devices = (ctypes.c_void_p * (len(used) + 1))(*(pointer for pointer, _ in used), None)
        params.devices = ctypes.addressof(self._devices)
        if used:
            self._split = (ctypes.c_float * llama.llama_max_devices())(*(float(n) for _, n in used))
            params.tensor_split = self._split
        if plan.n_without_experts:
            processor = next(d["buffer_type"] for d in every if d["kind"] == "CPU")
            patterns = (rf"blk\.{i}\.{EXPERTS}".encode() for i in range(plan.n_cpu_moe))
            overrides = [*(BufferOverride(pattern, processor) for pattern in patterns), BufferOverride()]
            self._overrides = (BufferOverride * len(overrides))(*overrides)
            params.tensor_buft_overrides = ctypes.addressof(self._overrides)
        return params

    @property
    def has_state(self) -> bool:
        """Does it keep a state for each sequence, in some layers at least? It can be copied, and not wound back."""
        return bool(self.llama.llama_model_is_recurrent(self.model) or self.llama.llama_model_is_hybrid(self.model))

    def _load_adapters(self) -> list[tuple[Any, float]]:
        found = []
        for path, scale in self.request["lora"]:
            if is_dir(Path(path)):
                raise DataError(
                    f"{path}: is a folder, at run time llama.cpp takes GGUF adapters; write one with "
                    f"`jmedlite quantize MODEL --lora {path} --adapter-only`, or merge it into the model"
                )
            changed = {t.name.removesuffix(".lora_a") for t in read_header(Path(path)).tensors}
            if beyond := sorted(changed.intersection(BEYOND_ADAPTERS)):
                raise DataError(
                    f"{Path(path).name}: changes {beyond[0]}, to which llama.cpp adds no adapter at run time; merge it "
                    "with `jmedlite quantize --lora`"
                )
            adapter = self.llama.llama_adapter_lora_init(self.model, os.fsencode(path))
            if not adapter:
                raise DataError(f"{Path(path).name}: is not a LoRA adapter for this model ({self.reason()})")
            found.append((adapter, scale))
        return found
