"""PEFT's adapters of whole parameters (`target_parameters`): one pair of matrices for all experts of a layer.

For a parameter (E, d1, d2), lora_A is (E·r, in) and lora_B (out, r·E): expert e has the rows e·r to e·r + r of lora_A
and every E-th column of lora_B from e on. Where PEFT takes d2 for the inputs, ΔW_e = B_e · A_e; older versions took d1,
and ΔW_e is its transpose. Source: ParamWrapper.get_delta_weight of PEFT 0.21, tuners/lora/layer.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from jmedlite.convert.families.families import Family
from jmedlite.convert.sources.tensors import StoredTensor

from .lora import Factor, Update

GATE_UP, DOWN = "gate_up_proj", "down_proj"  # transformers' parameters of its experts' modules, in their order
STACKED = re.compile(
    r"(?P<place>.+\.experts)\.(?P<inner>base_layer\.)?lora_(?P<side>[AB])(?:\.(?!weight$)[^.]+)?\.weight"
)


@dataclass(frozen=True)
class ExpertNames:
    """What a family's tensors of experts are called: of one expert in a layer, with {e}, and without a layer's part."""

    gate: str
    up: str
    down: str

    @staticmethod
    def of(family: Family) -> ExpertNames:
        """Those of a family that has experts."""
        by_place = {rule.gguf.split(".")[2]: rule.hf for rule in family.rules if "{e}" in rule.hf}
        return ExpertNames(by_place["ffn_gate_exps"], by_place["ffn_up_exps"], by_place["ffn_down_exps"])

    @property
    def place(self) -> str:
        """The module of all experts of a layer, with {i}."""
        return self.gate.partition(".{e}")[0]

    def parts(self, parameter: str, n_out: int) -> tuple[tuple[str, slice], ...]:
        """The tensors of one expert that a parameter of `n_out` rows is made of, and which rows of it each is."""
        if parameter == DOWN:
            return ((self.down, slice(None)),)
        return (self.gate, slice(n_out // 2)), (self.up, slice(n_out // 2, None))


@dataclass(frozen=True)
class StackedPair:
    """lora_A and lora_B of one parameter of all experts of a layer, of whose `shape` (out, in) one expert's part is."""

    a: StoredTensor
    b: StoredTensor
    n_expert: int
    shape: tuple[int, int]

    @property
    def rank(self) -> int:
        return self.a.shape[0] // self.n_expert

    @property
    def fits(self) -> bool:
        """Are the matrices those of the parameter, in one of the two orders?"""
        a, b = self.a.shape, self.b.shape
        return (
            len(a) == len(b) == 2
            and a[0] == b[1]
            and a[0] % self.n_expert == 0
            and (b[0], a[1]) in (self.shape, self.shape[::-1])
        )

    def split(self, expert: int, rows: slice, scale: float) -> Update:
        """The update of some rows of one expert's part."""
        of_a, of_b = slice(expert * self.rank, (expert + 1) * self.rank), slice(expert, None, self.n_expert)
        if (self.b.shape[0], self.a.shape[1]) == self.shape:
            return Update(Factor(self.b, rows=rows, columns=of_b), Factor(self.a, rows=of_a), scale)
        return Update(
            Factor(self.a, True, rows=of_a, columns=rows), Factor(self.b, True, columns=of_b), scale
        )  # the older order
