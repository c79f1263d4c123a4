"""A model to convert, whatever it comes as: its output tensors, what adapters may change in it, its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jmedlite.base.gguf import Entries
from jmedlite.base.native import F32
from jmedlite.convert.families.family import Family
from jmedlite.convert.families.row_order import Order, TiledHeads
from jmedlite.convert.metadata.specials import AdapterFiles

from .tensors import Files, Weights


@dataclass(frozen=True)
class Spec:
    """One tensor of the output, before any adapter: `shape` row-major, `key` the name that PEFT knows it by.

    `order` and `columns` are how rows and columns move from Hugging Face's order to GGUF's; they apply to the source
    unless `in_order`. `plus` is added to values in Hugging Face's form, of which -e^x is taken with `negated_exp`.
    `constant` holds the values of a tensor that no checkpoint has. A tensor of experts has `parts` instead of a key and
    a source: each matrix by the name that PEFT knows it by.
    """

    name: str
    shape: tuple[int, ...]
    source: Weights | None
    key: str | None = None
    order: Order | None = None
    plus: float = 0.0
    columns: TiledHeads | None = None
    negated_exp: bool = False
    in_order: bool = False
    constant: F32 | None = None
    parts: tuple[tuple[str, Weights], ...] = ()

    def adaptable(self) -> dict[str, Weights]:
        """What an adapter may change of it, by PEFT's names."""
        found = dict(self.parts)
        return {self.key: self.source, **found} if self.key and self.source else found


@dataclass(frozen=True)
class Base:
    """The model an adapter is for, under the family's own names; where the head is tied, it stands there as well.

    `names` are what it calls itself, the most certain first; empty where nothing but its folder's name is known.
    `transposed` are the tensors that its checkpoints have as (in, out); here they are (out, in) as all others.
    """

    names: tuple[str, ...]
    tensors: Mapping[str, Weights]
    family: Family
    tied: bool
    files: Files
    transposed: frozenset[str] = frozenset()

    @property
    def embedding(self) -> str:
        return self.family.embedding

    @property
    def head(self) -> str:
        return self.family.head


class SourceModel(Protocol):
    """What planning needs of a model."""

    label: str  # the name of its folder or file
    title: str  # of its family
    architecture: str
    quantized: str | None  # how its weights are stored where that is no format of floating-point numbers
    specs: Sequence[Spec]
    head: Spec | None  # to be added where an adapter unties a tied head; None where llama.cpp can't

    def base(self) -> Base:
        """What PEFT adapters are matched against; raises DataError where the family is not known."""
        ...

    def metadata(
        self, name: str | None, n_weights: int, n_vocab: int, adapters: Sequence[AdapterFiles]
    ) -> tuple[Entries, list[str]]:
        """The metadata of a file with `n_vocab` tokens, and warnings; `adapters` may bring tokenizers of their own."""
        ...
