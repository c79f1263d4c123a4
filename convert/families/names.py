"""Names: the many spellings of one tensor or module, brought to the one in the family's table.

transformers 4 and 5, PEFT and what is built on it, torch.compile, DDP, FSDP and the multimodal classes each put parts
of their own into a name, in any order: `_orig_mod.base_model.model.language_model.layers.0…` is `model.layers.0…`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from jmedlite.base.errors import DataError

from .family import Family

T = TypeVar("T")

# Parts of a name that stand for a module around another one and say nothing of the weights. No family has a module of
# such a name.
WRAPPERS = frozenset(
    {
        "_orig_mod",  # torch.compile
        "module",  # DDP, DeepSpeed
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_forward_module",  # Lightning
        "base_layer",  # PEFT, around the weight that an adapter changes
    }
)
# Before a text model's own modules: PEFT's, transformers' and the multimodal classes' names for the model around it.
_AROUND = frozenset({"base_model", "model", "language_model", "text_model"})
# What PEFT's settings may call the place of the text model's modules, by the class that was trained.
_PREFIXES = ("model.", "model.language_model.", "language_model.model.", "language_model.", "model.text_model.", "")
_HEADS = ("lm_head", "embed_out")
# of MedGemma, Mistral 3, Qwen3.5, Gemma 4, Llama 4: never converted
NOT_TEXT = (
    "vision_tower.", "vision_model.", "multi_modal_projector.", "visual.", "audio_tower.", "embed_vision.",
    "embed_audio.", "vision_embedder.",
)  # fmt: skip


def without_wrappers(name: str) -> str:
    """A name without the parts that training frameworks put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def canonical(name: str, family: Family) -> str:
    """The family's own name for a tensor or module; the name itself where the family has none like it.

    The parts that see begin with one of NOT_TEXT.
    """
    parts = without_wrappers(name).split(".")
    start = next((i for i, part in enumerate(parts) if part not in _AROUND and part != family.root), len(parts))
    rest = ".".join(parts[start:])
    first = rest.partition(".")[0]
    if first in family.inner_modules:
        if family.renamed:
            rest = ".".join(family.renamed[1] if part == family.renamed[0] else part for part in rest.split("."))
        return f"{family.root}.{rest}"
    if first in _HEADS:
        return family.head_module + rest.removeprefix(first)
    return rest if rest.startswith(NOT_TEXT) else name


def canonical_names(tensors: Mapping[str, T], family: Family, label: str) -> dict[str, T]:
    """`tensors` under the family's own names; raises DataError where two are the same tensor."""
    found: dict[str, T] = {}
    given: dict[str, str] = {}
    for name, tensor in tensors.items():
        ours = canonical(name, family)
        if (other := given.setdefault(ours, name)) != name:
            raise DataError(f"{label}: {other} and {name} are two names of one tensor; keep the right one")
        found[ours] = tensor
    return found


def spellings(module: str, family: Family) -> Iterable[str]:
    """What a module of the family's table may be called where an adapter was trained, its own name first."""
    yield module
    if module == family.head_module:
        yield from (f"{prefix}{head}" for head in _HEADS for prefix in ("", "language_model."))
    elif module.startswith(family.root + "."):
        yield from (prefix + module.removeprefix(family.root + ".") for prefix in _PREFIXES)
        if family.renamed:
            yield ".".join(family.renamed[0] if part == family.renamed[1] else part for part in module.split("."))
