"""Quantization levels: what `--bits` and `--type` mean, and the type each tensor gets, which is llama.cpp's own choice.

The type mix of a level (a Q4_K_M has some tensors in Q6_K, falls back where a row is not a multiple of 256, and
depends on layer count and grouped attention) is not written again here: llama.cpp is asked (runtime/type_probe.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf.constants import GGMLQuantizationType, LlamaFileType

from jmedlite.base import gguf
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.imatrix import Imatrix
from jmedlite.base.native import needs_importance
from jmedlite.runtime.type_probe import TypeRule, Types, probe_types

from .overrides import decide, warn_of_other_types

BITS = {2: "Q2_K", 3: "Q3_K_M", 4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 8: "Q8_0", 16: "BF16"}
LEVELS = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS",
    "Q4_1", "Q4_0", "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
)  # fmt: skip
NEED_IMATRIX = (
    "Q2_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
SECOND_EMBEDDING = "per_layer_token_embd.weight"  # Gemma 4's
BF16, F32 = GGMLQuantizationType.BF16, GGMLQuantizationType.F32
NEEDY_TYPES = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")


@dataclass(frozen=True)
class Level:
    """One quantization level by llama.cpp's name, and its number in `general.file_type`."""

    name: str
    ftype: int


def parse_levels(bits: Sequence[int], types: Sequence[str], *, has_imatrix: bool = False) -> list[Level]:
    """The levels asked for, each once, in the order given; 4 bits where nothing is asked. Raises UsageError."""
    names = []
    for b in bits:
        if b not in BITS:
            raise UsageError(f"--bits {b}: expected one of {', '.join(map(str, BITS))}")
        names.append(BITS[b])
    for t in types:
        name = t.upper()
        if name in NEED_IMATRIX and not has_imatrix:
            raise UsageError(
                f"--type {name}: needs an importance matrix, without which its answers are useless; "
                "make one with `jmedlite imatrix` and give it with --imatrix, or choose Q2_K or wider"
            )
        if name not in (*LEVELS, *NEED_IMATRIX):
            raise UsageError(f"--type {t}: unknown; known are {', '.join((*LEVELS, *NEED_IMATRIX))}")
        names.append(name)
    names = list(dict.fromkeys(names or [BITS[4]]))
    return [Level(n, int(LlamaFileType["ALL_F32" if n == "F32" else f"MOSTLY_{n}"])) for n in names]


@dataclass(frozen=True)
class ChosenTypes:
    """`types` is {level name: {tensor name: type}}; `n_decided` says of every override how many tensors it decides
    about."""

    types: dict[str, Types]
    n_decided: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


def choose_types(
    levels: Sequence[Level],
    metadata: gguf.Entries,
    tensors: Sequence[gguf.Tensor],
    imatrix: Imatrix | None = None,
    rules: Sequence[TypeRule] = (),
) -> ChosenTypes:
    """llama.cpp's choice, under `rules`, for tensors as its converter would type them (BF16 and F32).

    Raises UsageError for a rule that can't be followed, DataError or UsageError where a type was chosen that can't do
    without an importance matrix, and there is none for the tensor.
    """
    if not levels:
        return ChosenTypes({})
    decided = decide(rules, {x.ftype: x.name for x in levels}, metadata, tensors) if rules else {}
    weighed = sorted(imatrix.weights) if imatrix else ()
    probed = probe_types([x.ftype for x in levels], metadata, tensors, weighed, rules)
    warnings: list[str] = []
    for level in levels:
        own = decided.get(level.ftype, {})
        found = _all_wide(probed[level.ftype], own) if level.name == "F32" else probed[level.ftype]
        types = probed[level.ftype] = _with_kept(found, tensors, own)
        warnings += warn_of_other_types(rules, own, types, tensors)
        _check_importance(level, types, tensors, imatrix, {name: rules[i].text for name, i in own.items()})
    counts = Counter(decided[levels[0].ftype].values()) if rules else Counter()
    return ChosenTypes(
        {level.name: probed[level.ftype] for level in levels},
        tuple(counts[i] for i in range(len(rules))),
        tuple(dict.fromkeys(warnings)),
    )


def _all_wide(types: Types, decided: Mapping[str, int]) -> Types:
    """`types` of the level F32: what llama-quantize leaves alone has the type of its converter, which is F32 there.

    What a rule has `decided` counts all the same.
    """
    return {name: F32 if type_ == BF16 and name not in decided else type_ for name, type_ in types.items()}


def _with_kept(types: Types, tensors: Sequence[gguf.Tensor], decided: Mapping[str, int]) -> Types:
    """`types` with MXFP4 as it is wherever that takes no more room than the type that llama.cpp chose.

    Weights that were trained in MXFP4 (gpt-oss's experts) lose nothing so; in any other type they would lose something,
    or take more room for the same numbers. What a rule has `decided` counts all the same.
    """
    kept = {
        t.name: t.type
        for t in tensors
        if t.type == GGMLQuantizationType.MXFP4 and t.name not in decided
        if gguf.nbytes(t.type, t.n_elements) <= gguf.nbytes(types[t.name], t.n_elements)
    }
    return {**types, **kept}


def requires_importance(tensor: str, type_: GGMLQuantizationType, level: str = "") -> bool:
    """Can't a tensor have this type without an importance of its columns?

    Source of the rule: `tensor_requires_imatrix` of llama.cpp's llama-quant.cpp, which leaves out embedding and head;
    of these ggml's quantizer requires it for some types.
    """
    if tensor in (EMBEDDING, SECOND_EMBEDDING, HEAD):
        return needs_importance(type_.name)
    return type_.name in NEEDY_TYPES or (type_.name == "Q2_K" and level == "Q2_K_S")


def _check_importance(
    level: Level, types: Types, tensors: Sequence[gguf.Tensor], imatrix: Imatrix | None, asked: Mapping[str, str]
) -> None:
    for t in tensors:
        type_ = types[t.name]
        found = None if imatrix is None else imatrix.weights.get(t.name)
        if not requires_importance(t.name, type_, level.name) or (
            found is not None and found.size == t.shape[0] * math.prod(t.shape[2:])
        ):
            continue
        by = asked.get(t.name, level.name)
        if imatrix is None:
            raise UsageError(
                f"{by}: {t.name} would be {type_.name}, which needs an importance matrix; make one with "
                "`jmedlite imatrix` and give it with --imatrix, or choose Q2_K or wider"
            )
        raise DataError(
            f"{imatrix.path.name}: has no values for {t.name}, which {by} stores as {type_.name}; "
            "make the matrix for this model, or choose Q2_K or wider"
        )
