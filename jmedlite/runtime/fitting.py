"""Fitting: from a GGUF file and this machine to the numbers that a plan is made of."""

from __future__ import annotations

from collections.abc import Sequence

from gguf.constants import GGMLQuantizationType as Type
from gguf.constants import LlamaFileType

from jmedlite.base.errors import JmedliteError
from jmedlite.base.gguf import ARRAY, Header, Tensor

from .hardware import cpu_features, devices, free_ram
from .offload import Gpu, Machine
from .shape import Shape, repacking, shape_of

LEVELS = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")  # the widest first


def this_machine(*, with_gpus: bool = True) -> Machine:
    """Memory that can be had now: of the system, and of every GPU as ggml reports it.

    To ask a GPU's driver takes some of its memory, so who wants none of it does not ask.
    """
    found = devices() if with_gpus else []
    gpus = [Gpu(d["name"], d["free_bytes"], d["shared_memory"]) for d in found if d["kind"] == "GPU"]
    return Machine(free_ram(), tuple(gpus))


def shape_on_this_machine(header: Header, tensors: Sequence[Tensor] | None = None) -> Shape:
    """The model's shape with what this processor rewrites at load."""
    return shape_of(header.metadata, header.tensors if tensors is None else tensors, repacking(cpu_features()))


def level_shapes(header: Header) -> dict[str, Shape]:
    """The shape this model would have at every level, by llama.cpp's own choice of types; {} where it gives none."""
    from .type_probe import probe_types

    ftypes = {level: int(LlamaFileType[f"MOSTLY_{level}"]) for level in LEVELS}
    unquantized = [Tensor(t.name, t.shape, t.type if t.type == Type.F32 else Type.BF16) for t in header.tensors]
    entries = {
        key: (value, *((ARRAY, types[1]) if (types := header.types[key])[0] == ARRAY else (types[0], None)))
        for key, value in header.metadata.items()
    }
    try:
        chosen = probe_types(list(ftypes.values()), entries, unquantized)
    except JmedliteError:
        return {}
    return {
        level: shape_on_this_machine(header, [Tensor(t.name, t.shape, chosen[ftype][t.name]) for t in unquantized])
        for level, ftype in ftypes.items()
    }
