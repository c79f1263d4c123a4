"""PEFT's adapters of whole parameters (`target_parameters`): one pair of matrices for all experts of a layer.

For a parameter (E, d1, d2), lora_A is (E·r, in) and lora_B (out, r·E): expert e has the rows e·r to e·r + r of lora_A
and every E-th column of lora_B from e on. Where PEFT takes d2 for the inputs, ΔW_e = B_e · A_e; older versions took d1,
and ΔW_e is its transpose. Where a family's parameters are (E, in, out) and transformers says so (gpt-oss), all versions
agree: ΔW_e = B_e · A_e. Llama 4's are and nothing says so: there the two orders have changed places. Source:
ParamWrapper.get_delta_weight of PEFT 0.21, tuners/lora/layer.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from jmedlite.convert.families.family import TURNS
from jmedlite.convert.sources.base import Base
from jmedlite.convert.sources.stacked import PARAMETERS
from jmedlite.convert.sources.tensors import StoredTensor

from .lora import Factor, Update

# A side of such an adapter. Where both parameters of a module have one, PEFT wraps the second around the first.
STACKED = re.compile(
    r"(?P<place>.+\.experts)\.(?P<inner>base_layer\.)?lora_(?P<side>[AB])(?:\.(?!weight$)[^.]+)?\.weight"
)


@dataclass(frozen=True)
class ExpertParameter:
    """One parameter of all experts of a layer. `shape` (out, in) is that of one expert's part, and with `one_order`
    that of every adapter's product; `parts` are its tensors: their names, one for each expert, and which rows of the
    parameter they are."""

    name: str
    shape: tuple[int, int]
    one_order: bool
    parts: tuple[tuple[tuple[str, ...], slice], ...]

    @property
    def n_expert(self) -> int:
        return len(self.parts[0][0])

    @property
    def modules(self) -> set[str]:
        """The modules of its tensors."""
        return {name.removesuffix(".weight") for names, _ in self.parts for name in names}

    @property
    def tells_order(self) -> bool:
        """Do the shapes of an adapter's matrices tell in which of the two orders they are?"""
        return self.one_order or self.shape[0] != self.shape[1]

    def updates(self, a: StoredTensor, b: StoredTensor, rank: float, scale: float) -> dict[str, Update] | None:
        """The update of every tensor; None where the matrices are not those of this parameter at this rank."""
        if not (len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1] == rank * self.n_expert):
            return None
        given = (b.shape[0], a.shape[1])
        if given != self.shape and (self.one_order or given != self.shape[::-1]):
            return None
        found, r = {}, a.shape[0] // self.n_expert
        for names, rows in self.parts:
            for e, name in enumerate(names):
                of_a, of_b = slice(e * r, (e + 1) * r), slice(e, None, self.n_expert)
                if given == self.shape:
                    left, right = Factor(b, rows=rows, columns=of_b), Factor(a, rows=of_a)
                else:
                    left, right = Factor(a, True, rows=of_a, columns=rows), Factor(b, True, columns=of_b)
                found[name] = Update(left, right, scale)
        return found


def expert_parameters(base: Base) -> dict[str, ExpertParameter]:
    """All such parameters of a base, by the names that PEFT has for them in the family's spelling."""
    family, found = base.family, {}
    if family.experts is None:
        return {}
    take_turns = family.experts.crosswise == TURNS
    for parameter, tensors in PARAMETERS.items():
        names = [family.by_gguf[f"blk.{{i}}.{tensor}.weight"] for tensor in tensors]
        for layer in _layers(base.tensors, names[0]):
            of_layer = [_of_layer(base.tensors, name, layer) for name in names]
            shapes = [base.tensors[experts[0]].shape for experts in of_layer]
            ends = [sum(shape[0] for shape in shapes[: i + 1]) for i in range(len(shapes))]
            rows = [slice(end - shape[0], end) for end, shape in zip(ends, shapes, strict=True)]
            if take_turns:
                rows = [slice(i, None, len(names)) for i in range(len(names))]
            place = of_layer[0][0].partition(".experts.")[0]
            full = f"{place}.experts.{parameter}"
            found[full] = ExpertParameter(
                full, (ends[-1], shapes[0][1]), take_turns, tuple(zip(of_layer, rows, strict=True))
            )
    return found


def _layers(tensors: Mapping[str, object], name: str) -> list[int]:
    """The layers that have experts."""
    pattern = re.compile(re.escape(name).replace(r"\{i\}", r"(\d+)").replace(r"\{e\}", "0"))
    return sorted(int(found[1]) for tensor in tensors if (found := pattern.fullmatch(tensor)))


def _of_layer(tensors: Mapping[str, object], name: str, layer: int) -> tuple[str, ...]:
    """The names of all experts' tensors in a layer."""
    found: list[str] = []
    while (one := name.replace("{i}", str(layer)).replace("{e}", str(len(found)))) in tensors:
        found.append(one)
    return tuple(found)
