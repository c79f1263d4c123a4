"""Quantization levels: what `--bits` and `--type` mean, and the type each tensor gets, which is llama.cpp's own choice.

The type mix of a level (a Q4_K_M has some tensors in Q6_K, falls back where a row is not a multiple of 256, and
depends on layer count and grouped attention) is not written again here: llama.cpp is asked (runtime/type_probe.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf.constants import GGMLQuantizationType, LlamaFileType

from jmedlite.base import gguf
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.imatrix import Imatrix
from jmedlite.runtime.type_probe import probe_types

BITS = {2: "Q2_K", 3: "Q3_K_M", 4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 8: "Q8_0", 16: "BF16"}
LEVELS = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS",
    "Q4_1", "Q4_0", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
)  # fmt: skip
NEED_IMATRIX = (
    "Q2_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip
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


def choose_types(
    levels: Sequence[Level], metadata: gguf.Entries, tensors: Sequence[gguf.Tensor], imatrix: Imatrix | None = None
) -> dict[str, dict[str, GGMLQuantizationType]]:
    """{level name: {tensor name: type}} for tensors as llama.cpp's converter would type them (BF16 and F32).

    Raises DataError where a type was chosen that can't do without an importance matrix, and `imatrix` has none for
    the tensor.
    """
    probed = probe_types([x.ftype for x in levels], metadata, tensors, sorted(imatrix.weights) if imatrix else ())
    found = {level.name: probed[level.ftype] for level in levels}
    if imatrix:
        for level in levels:
            _check_importance(level, found[level.name], imatrix)
    return found


def _check_importance(level: Level, types: Mapping[str, GGMLQuantizationType], imatrix: Imatrix) -> None:
    """Source of the rule: `tensor_requires_imatrix` of llama.cpp's llama-quant.cpp."""
    needy = (*NEEDY_TYPES, "Q2_K") if level.name == "Q2_K_S" else NEEDY_TYPES
    for name, type_ in types.items():
        exempt = name in ("token_embd.weight", "output.weight")
        if type_.name in needy and not exempt and name not in imatrix.weights:
            raise DataError(
                f"{imatrix.path.name}: has no values for {name}, which {level.name} stores as {type_.name}; "
                "make the matrix for this model, or choose Q2_K or wider"
            )
