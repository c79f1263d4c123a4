"""mlx-lm adapter folder, bound to a base model: W' = W + scale · (lora_a · lora_b)ᵀ, and DoRA's lengths.

mlx-lm keeps lora_a (in, r) and lora_b (r, out); an embedding's are (n_vocab, r) and (r, n_embd), not transposed. Its
scale is not divided by the rank. Source: mlx_lm/tuner/lora.py and dora.py of https://github.com/ml-explore/mlx-lm
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmedlite.base.errors import DataError
from jmedlite.base.filenames import ADAPTER_CONFIG, MLX_ADAPTER_WEIGHTS
from jmedlite.base.inputs import read_json
from jmedlite.base.records import Foreign, from_json
from jmedlite.base.wording import shown, some
from jmedlite.convert.families.names import NOT_TEXT, canonical
from jmedlite.convert.sources.base import Base
from jmedlite.convert.sources.base_names import other_base
from jmedlite.convert.sources.checkpoint import read_weights
from jmedlite.convert.sources.tensors import WEIGHT_DTYPES, StoredTensor, Weights

from .lora import Factor, Update

_KNOWN_PARAMETERS = {"rank", "scale", "alpha", "dropout", "keys"}
_PART = re.compile(r"(?P<module>.+)\.(?P<side>lora_a|lora_b|m)")


@dataclass(frozen=True, kw_only=True)
class _Parameters(Foreign):
    """`lora_parameters` of an adapter's configuration."""

    rank: int
    scale: float
    alpha: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Config(Foreign):
    """What is read of it; the rest is of the training."""

    fine_tune_type: str = "lora"
    lora_parameters: _Parameters | None = None
    model: str | None = None
    use_dora: bool | None = None


class MlxAdapter:
    """One adapter that mlx-lm trained (see lora.Adapter).

    Raises DataError before any output where the adapter does not fit its base.
    """

    in_gguf_order = False
    ties_head = False
    folder: Path | None = None  # mlx-lm puts no tokenizer there

    def __init__(self, folder: Path, base: Base, weight: float = 1.0) -> None:
        self.weights_file = folder / MLX_ADAPTER_WEIGHTS
        self.name, self.weight, self.warnings = folder.resolve().name, weight, list[str]()
        self._base = base
        given = read_json(folder / ADAPTER_CONFIG)
        config = from_json(given, _Config, f"adapter {self.name}: {ADAPTER_CONFIG}")
        kind = config.fine_tune_type
        if kind not in ("lora", "dora"):
            raise self._fail(
                f"has fine_tune_type = {shown(kind)}, expected lora or dora; merge it with `mlx_lm.fuse --dequantize` "
                "and give the result as the model"
            )
        if config.lora_parameters is None:
            raise self._fail(f"its {ADAPTER_CONFIG} has no lora_parameters")
        if config.lora_parameters.alpha is not None:
            raise self._fail(
                "gives alpha beside scale, which old versions of mlx-lm multiply and new ones leave out; merge it with "
                "the version that trained it (`mlx_lm.fuse --dequantize`), and give the result as the model"
            )
        if odd := sorted(set(given["lora_parameters"]) - _KNOWN_PARAMETERS):
            raise self._fail(f"sets {some(odd, 5)} in lora_parameters, which is not known here")
        self._dora = kind == "dora" or bool(config.use_dora)
        if self._dora and weight != 1.0:
            raise self._fail(f"is a DoRA adapter, so the weight {weight:g} has no meaning; give it without one")
        self._rank, self._scale = config.lora_parameters.rank, config.lora_parameters.scale
        self.replaced: dict[str, Weights] = {}
        self.updates = self._match(read_weights(self.weights_file))
        self.trained_on = config.model or None
        self.warnings += other_base(self.name, self.trained_on, base.names)

    @property
    def files(self) -> list[Path]:
        return [self.weights_file]

    def describe(self) -> dict[str, Any]:
        """For a manifest: the settings that decide the result; alpha as PEFT's would be."""
        return {
            "r": self._rank,
            "lora_alpha": self._scale * self._rank,
            "use_rslora": False,
            "use_dora": self._dora,
            "n_weights_changed": len(self.updates),
            "n_weights_replaced": 0,
        }

    def _fail(self, what: str) -> DataError:
        return DataError(f"adapter {self.name}: {what}")

    def _match(self, tensors: Mapping[str, StoredTensor]) -> dict[str, Update]:
        modules: dict[str, dict[str, StoredTensor]] = {}
        unseen = 0
        for name, tensor in tensors.items():
            if tensor.dtype not in WEIGHT_DTYPES:
                raise self._fail(f"{name} has dtype {tensor.dtype}, expected one of {', '.join(WEIGHT_DTYPES)}")
            key = canonical(name, self._base.family)
            if key.startswith(NOT_TEXT):
                unseen += 1
                continue
            part = _PART.fullmatch(key)
            if part is None:
                raise self._fail(f"holds {name}, expected lora_a, lora_b and m only")
            sides = modules.setdefault(part["module"], {})
            if (other := sides.setdefault(part["side"], tensor)) is not tensor:
                raise self._fail(f"holds {part['side']} of {part['module']} twice: {other.name} and {name}")
        if not modules:
            raise self._fail("holds no LoRA weights" if not unseen else "changes only what sees images")
        if unseen:
            self.warnings.append(f"{self.name}: its {unseen} tensors for what sees images are left out")
        return {f"{module}.weight": self._update(module, sides) for module, sides in modules.items()}

    def _update(self, module: str, sides: Mapping[str, StoredTensor]) -> Update:
        weight = self._base.tensors.get(f"{module}.weight")
        if weight is None:
            raise self._fail(f"changes {module}, which the base model does not have; it belongs to another base")
        for side in ("lora_a", "lora_b", *(["m"] if self._dora else [])):
            if side not in sides:
                raise self._fail(f"{module} has no {side}")
        if "m" in sides and not self._dora:
            raise self._fail(f"{module} has an m, its configuration says no DoRA")
        a, b, magnitude = sides["lora_a"], sides["lora_b"], sides.get("m")
        out, in_ = weight.shape
        embedding = f"{module}.weight" == self._base.embedding
        expected = ((out, self._rank), (self._rank, in_)) if embedding else ((in_, self._rank), (self._rank, out))
        if (a.shape, b.shape) != expected:
            raise self._fail(
                f"{module}: lora_a is {list(a.shape)} and lora_b is {list(b.shape)}, expected {list(expected[0])} and "
                f"{list(expected[1])} for a weight of {list(weight.shape)} and the rank {self._rank}"
            )
        if magnitude is not None and embedding:
            raise self._fail(
                f"uses DoRA on the embedding ({module}), which is not supported; merge it with mlx_lm.fuse"
            )
        if magnitude is not None and magnitude.n_elements != out:
            raise self._fail(f"{module}: m has {magnitude.n_elements} values, expected {out}")
        left, right = (Factor(a), Factor(b)) if embedding else (Factor(b, True), Factor(a, True))
        return Update(left, right, self._scale, magnitude)
