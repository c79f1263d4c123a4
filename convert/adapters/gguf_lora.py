"""Adapters in llama.cpp's own form: a GGUF with `NAME.lora_a` and `NAME.lora_b`, read for merging, and written.

Format: src/llama-adapter.cpp of llama.cpp. The scale is alpha / r, and 1 where alpha is 0; the embedding's pair stands
the other way round. Names and rows are those of the GGUF model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import DataError
from jmedlite.base.native import F32, U8, quantize_rows
from jmedlite.base.outputs import OutputFile
from jmedlite.convert.families.row_order import Order, TiledHeads
from jmedlite.convert.sources.tensors import Files, StoredTensor, Weights, check_decodable, stored_tensors

from .lora import Adapter, Factor, Update, load_update

ALPHA, KIND = "adapter.lora.alpha", "adapter.type"
EMBEDDING = "token_embd.weight"


class GgufAdapter:
    """A GGUF adapter for a model of `architecture` with the GGUF tensors `shapes` (row-major); see lora.Adapter."""

    in_gguf_order = True
    ties_head = False
    folder: Path | None = None

    def __init__(
        self, path: Path, architecture: str, shapes: Mapping[str, tuple[int, ...]], weight: float = 1.0
    ) -> None:
        self.path, self.name, self.weight, self.warnings = path, path.stem, weight, list[str]()
        self.replaced: dict[str, Weights] = {}
        header = gguf.read_header(path)
        meta = header.metadata
        if meta.get("general.type") != "adapter" or meta.get(KIND) != "lora":
            raise self._fail(
                f"is a GGUF of type {str(meta.get('general.type', 'model'))!r} ({KIND}: {str(meta.get(KIND))!r}), "
                "expected a LoRA adapter"
                + ("; give it as the model" if meta.get("general.type", "model") == "model" else "")
            )
        if (arch := meta.get("general.architecture")) != architecture:
            raise self._fail(f"is for the architecture {arch}, the base is {architecture}")
        base = meta.get("jmedlite.made.base") or meta.get("general.base_model.0.name")
        self.trained_on = base if isinstance(base, str) else None
        self._alpha = meta.get(ALPHA, 0.0)
        if isinstance(self._alpha, bool) or not isinstance(self._alpha, int | float) or not np.isfinite(self._alpha):
            raise self._fail(f"has {ALPHA} = {self._alpha!r}, expected a number")
        self.updates = self._match(stored_tensors(path, header), shapes)

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def describe(self) -> dict[str, Any]:
        """For a manifest: the settings that decide the result."""
        return {"lora_alpha": self._alpha, "n_weights_changed": len(self.updates), "n_weights_replaced": 0}

    def _fail(self, what: str) -> DataError:
        return DataError(f"adapter {self.path.name}: {what}")

    def _match(self, tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Update]:
        sides: dict[str, dict[str, StoredTensor]] = {}
        for name, tensor in tensors.items():
            weight, dot, side = name.rpartition(".")
            if side not in ("lora_a", "lora_b") or not dot:
                raise self._fail(f"holds {name}, expected only .lora_a and .lora_b")
            sides.setdefault(weight, {})[side] = tensor
        if not sides:
            raise self._fail("holds no LoRA weights")
        found = {}
        for name, pair in sides.items():
            if missing := {"lora_a", "lora_b"} - set(pair):
                raise self._fail(f"{name} has no {missing.pop()}")
            if name not in shapes:
                raise self._fail(f"changes {name}, which the base model does not have; it belongs to another base")
            found[name] = self._update(name, shapes[name], pair["lora_a"], pair["lora_b"])
        return found

    def _update(self, name: str, shape: tuple[int, ...], a: StoredTensor, b: StoredTensor) -> Update:
        if not len(shape) == len(a.shape) == len(b.shape) == 2:
            raise self._fail(f"{name}: A {list(a.shape)}, B {list(b.shape)}, W {list(shape)}: expected matrices")
        check_decodable(a)
        check_decodable(b)
        rank = b.shape[1]
        scale = float(self._alpha) / rank if self._alpha else 1.0
        if name == EMBEDDING:
            expected, found = (shape[0], rank, shape[1], rank), (*a.shape, *b.shape)
            left, right = Factor(a), Factor(b, transposed=True)
        else:
            expected, found = (rank, shape[1], shape[0], rank), (*a.shape, *b.shape)
            left, right = Factor(b), Factor(a)
        if found != expected:
            raise self._fail(
                f"{name}: A is {list(a.shape)} and B is {list(b.shape)}, the base weight is {list(shape)}; "
                "it belongs to another base"
            )
        return Update(left, right, scale)


@dataclass(frozen=True)
class RuntimeWeight:
    """One weight of an adapter file to be written: the updates it gets, and how its rows and columns move."""

    name: str
    shape: tuple[int, ...]
    updates: tuple[tuple[Adapter, str], ...]
    order: Order | None
    columns: TiledHeads | None

    @property
    def rank(self) -> int:
        return sum(adapter.updates[key].rank for adapter, key in self.updates)

    @property
    def alpha(self) -> float:
        """The alpha under which llama.cpp applies this weight's factors as they are stored."""
        if len(self.updates) > 1:
            return float(self.rank)  # each update's scale goes into its own factor
        ((adapter, key),) = self.updates
        return adapter.updates[key].scale * adapter.weight * self.rank

    def factors(self, files: Files, alpha: float) -> tuple[F32, F32]:
        """(left, right) in float32 for a file that says `alpha`: ΔW = alpha / rank · left · right."""
        loaded = [
            load_update(adapter, key, files, self.order, self.columns, scaled=len(self.updates) > 1)
            for adapter, key in self.updates
        ]
        left = np.concatenate([u.left for u in loaded], axis=1)
        if self.alpha != alpha:
            left = left * np.float32(self.alpha / alpha)
        return left, np.concatenate([u.right for u in loaded], axis=0)

    def entries(self, type_: GGMLQuantizationType) -> tuple[gguf.Tensor, gguf.Tensor]:
        """The two tensors as the header lists them, A first."""
        (out, in_), r = self.shape, self.rank
        a, b = ((r, out), (r, in_)) if self.name == EMBEDDING else ((in_, r), (r, out))
        return gguf.Tensor(f"{self.name}.lora_a", a, type_), gguf.Tensor(f"{self.name}.lora_b", b, type_)


def write_adapter(
    path: Path,
    weights: Sequence[RuntimeWeight],
    files: Files,
    metadata: Mapping[str, tuple[Any, int, int | None]],
    type_: GGMLQuantizationType = GGMLQuantizationType.F32,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Write an adapter for use at run time; `metadata` says architecture and name, the rest is added here.

    `check` is called before the file gets its name, and may raise.

    A and B stay as they were trained. llama.cpp's scale is alpha / r, so for rsLoRA the alpha written is
    lora_alpha · √r; where weights differ in scale (rank and alpha patterns), the most frequent alpha is written and
    the others' B carries the ratio.
    """
    alphas = [w.alpha for w in weights if w.alpha]
    if not alphas:
        raise DataError(f"{path.name}: would have an alpha of 0, which llama.cpp takes for a scale of 1; leave it away")
    alpha = max(alphas, key=alphas.count)
    entries = {
        "general.type": ("adapter", gguf.STRING, None),
        KIND: ("lora", gguf.STRING, None),
        ALPHA: (alpha, gguf.FLOAT32, None),
        **metadata,
    }
    tensors, _ = gguf.layout([t for w in weights for t in w.entries(type_)])
    with OutputFile(path) as out:
        out.write(gguf.pack_header([gguf.pack_metadata(entries)], len(entries), tensors))
        for w in weights:
            left, right = w.factors(files, alpha)
            both = (left, np.ascontiguousarray(right.T)) if w.name == EMBEDDING else (right, left)
            for values in both:
                data = _encode(np.ascontiguousarray(values), type_)
                out.write(data)
                out.write(bytes(gguf.pad(data.size) - data.size))
        check()
        out.publish()


def _encode(values: F32, type_: GGMLQuantizationType) -> U8:
    if type_ == GGMLQuantizationType.F32:
        return values.reshape(-1).view(np.uint8)
    return quantize_rows(type_, values, np.empty(gguf.nbytes(type_, values.size), np.uint8))
