"""LoRA adapters in PEFT's layout: what they change, checked both ways, and the share they add to any rows of a weight.

The update of a weight W (out, in) is ΔW = s · B·A with A (r, in), B (out, r) and s = lora_alpha / r, or
lora_alpha / √r with rank-stabilised scaling (https://arxiv.org/abs/2106.09685, https://arxiv.org/abs/2312.03732).
Whatever in an adapter's configuration is not known to leave the weights alone is refused by name, never ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jmedlite.base.errors import DataError, InputMissing, UsageError
from jmedlite.base.native import F32, widen

from .checkpoint import DTYPE_BYTES, WEIGHT_DTYPES, Checkpoint, StoredTensor, read_json, read_safetensors_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")

# Configuration keys that say how the adapter was trained or named, and change nothing in what it adds.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "alpha_pattern", "rank_pattern", "loftq_config",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora", "lora_ga_config",
}  # fmt: skip
# Initialisations under which PEFT rewrites the base weights on loading, so that base + B·A is not the model.
_REWRITING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Pair:
    """One weight's update: `a` (r, in), `b` (out, r), `scale`; `transposed` when it applies to a (in, out) weight."""

    a: StoredTensor
    b: StoredTensor
    scale: float
    transposed: bool = False


@dataclass(frozen=True)
class LoadedPair:
    """A pair's matrices in float32, the scale and the adapter's weight already in `b`: ΔW = b @ a."""

    a: F32
    b: F32

    def add_to(self, rows: F32, start: int, scratch: F32) -> None:
        """Add ΔW[start : start + n] to `rows` (n, in), in place; `scratch` has the shape of `rows`."""
        np.matmul(self.b[start : start + rows.shape[0]], self.a, out=scratch)
        np.add(rows, scratch, out=rows)


def parse_spec(spec: str) -> tuple[str, float]:
    """`ADAPTER[:WEIGHT]` as (adapter, weight); a colon not followed by a number belongs to the path."""
    name, colon, weight = spec.rpartition(":")
    if colon:
        try:
            value = float(weight)
        except ValueError:
            return spec, 1.0
        if not math.isfinite(value):
            raise UsageError(f"--lora {spec}: the weight must be a finite number")
        if not name:
            raise UsageError(f"--lora {spec}: names no adapter")
        return name, value
    return spec, 1.0


class Adapter:
    """One PEFT adapter, bound to a checkpoint: `pairs[weight name]` is what it adds.

    `warnings` collects what is odd but harmless. Raises DataError before any output where the adapter does not fit.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint, weight: float = 1.0) -> None:
        if not folder.is_dir():
            raise InputMissing(f"{folder}: no such adapter folder (expected {CONFIG} and {WEIGHTS} in it)")
        self.folder, self.weight, self.warnings = folder, weight, list[str]()
        self.config = read_json(folder / CONFIG)
        self._refuse_unsupported()
        if not (folder / WEIGHTS).is_file():
            hint = "; its .bin weights are not read by this version" if any(folder.glob("*.bin")) else ""
            raise InputMissing(f"{folder / WEIGHTS}: no such file{hint}")
        self._checkpoint = checkpoint
        self.pairs = self._match(read_safetensors_header(folder / WEIGHTS))
        self._check_targets()
        base, own = self.config.get("base_model_name_or_path"), checkpoint.config.get("_name_or_path")
        if isinstance(base, str) and isinstance(own, str) and Path(base).name != Path(own).name:
            self.warnings.append(f"{folder.name}: was trained on {base}, the base calls itself {own}")

    # ------------------------------------------------------------------------------------------------ checking

    def _fail(self, what: str) -> DataError:
        return DataError(f"adapter {self.folder.name}: {what}")

    def _refuse_unsupported(self) -> None:
        config = self.config
        if (kind := config.get("peft_type")) != "LORA":
            raise self._fail(f"is of type {kind}, expected LORA")
        if config.get("use_dora"):
            raise self._fail("uses DoRA (use_dora), which is not supported yet; merge it with PEFT first")
        if config.get("modules_to_save"):
            saved = config["modules_to_save"]
            names = ", ".join(map(str, saved)) if isinstance(saved, list) else str(saved)
            raise self._fail(f"has fully trained modules (modules_to_save: {names}), which are not supported yet")
        if config.get("bias", "none") != "none" or config.get("lora_bias"):
            raise self._fail("has trained biases (bias / lora_bias), which are not supported yet")
        init = config.get("init_lora_weights", True)
        if isinstance(init, str) and init.lower().startswith(_REWRITING_INITS):
            raise self._fail(
                f"was initialised with {init}, which changes the base weights; save it with PEFT's "
                "path_initial_model_for_weight_conversion first"
            )
        for key, value in config.items():
            if key not in _HARMLESS and value not in (None, False, [], {}, "", 0):
                raise self._fail(f"sets {key}, which is not supported")
        for key in ("r", "lora_alpha"):
            value = config.get(key, 8)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise self._fail(f"has {key} = {value!r}, expected a positive number")
        for key in ("rank_pattern", "alpha_pattern"):
            if not isinstance(config.get(key) or {}, dict):
                raise self._fail(f"has a {key} that is not an object")

    def _pattern(self, which: str, module: str, default: float) -> float:
        """PEFT's look-up: keys are regular expressions that must match the end of the module's name."""
        for key, value in (self.config.get(which) or {}).items():
            try:
                if re.match(rf"(.*\.)?({key})$", module):
                    if not math.isfinite(float(value)):
                        raise ValueError("not a finite number")
                    return float(value)
            except (re.error, TypeError, ValueError) as e:
                raise self._fail(f"has the unusable {which} entry {key!r}: {value!r} ({e})") from None
        return default

    def _match(self, tensors: Mapping[str, StoredTensor]) -> dict[str, Pair]:
        sides: dict[str, dict[str, StoredTensor]] = {}
        for name, tensor in tensors.items():
            if "lora_embedding_" in name:
                raise self._fail(f"trains embeddings ({name}), which is not supported yet")
            if "lora_magnitude_vector" in name:
                raise self._fail(f"uses DoRA ({name}), which is not supported yet; merge it with PEFT first")
            found = _KEY.fullmatch(name)
            if not found:
                if self._is_copy_of_base(name, tensor):
                    continue
                raise self._fail(self._describe_stranger(name, tensor))
            if tensor.dtype not in WEIGHT_DTYPES:
                raise self._fail(f"{name} has dtype {tensor.dtype}, expected one of {', '.join(WEIGHT_DTYPES)}")
            if sides.setdefault(found["module"], {}).setdefault(found["side"], tensor) is not tensor:
                raise self._fail(f"holds lora_{found['side']} of {found['module']} twice")
        if not sides:
            raise self._fail("holds no LoRA weights")
        return {f"{module}.weight": self._pair(module, two) for module, two in sides.items()}

    def _is_copy_of_base(self, name: str, tensor: StoredTensor) -> bool:
        """PEFT saves untouched embeddings and heads along where the head is a target; such a copy changes nothing."""
        key = name.removeprefix("base_model.model.").replace(".base_layer.weight", ".weight")
        base = self._checkpoint.tensors.get(key)
        if base is None or base.shape != tensor.shape or not {base.dtype, tensor.dtype} <= set(WEIGHT_DTYPES):
            return False
        n, step = math.prod(base.shape), 1 << 20
        values = np.empty((2, min(n, step)), np.float32)
        for start in range(0, n, step):
            k = min(step, n - start)
            for row, t in zip(values, (base, tensor), strict=True):
                width = DTYPE_BYTES[t.dtype]
                raw = np.empty(k * width, np.uint8)
                self._checkpoint.read(t, start * width, raw)
                widen(raw, t.dtype, row[:k])
            if not np.array_equal(values[0, :k], values[1, :k]):
                return False
        return True

    def _describe_stranger(self, name: str, tensor: StoredTensor) -> str:
        for end in ("embed_tokens.weight", "lm_head.weight", "embed_in.weight", "embed_out.weight"):
            base = next((t for t in self._checkpoint.tensors.values() if t.name.endswith(end)), None)
            if name.endswith(end) and base and tensor.shape and tensor.shape[0] != base.shape[0]:
                return (
                    f"adds tokens: its {end} has {tensor.shape[0]:,} rows, the base has {base.shape[0]:,}; "
                    "resized vocabularies are not supported yet"
                )
            if name.endswith(end):
                return f"holds a trained {end} ({name}); fully trained embeddings and heads are not supported yet"
        return f"holds {name}, which is not a LoRA matrix this version knows"

    def _pair(self, module: str, sides: Mapping[str, StoredTensor]) -> Pair:
        if missing := {"A", "B"} - set(sides):
            raise self._fail(f"{module} has no lora_{missing.pop()}")
        a, b = sides["A"], sides["B"]
        weight = self._checkpoint.tensors.get(f"{module}.weight")
        if weight is None:
            raise self._fail(f"changes {module}, which the base model does not have; it belongs to another base")
        if len(weight.shape) != 2 or len(a.shape) != 2 or len(b.shape) != 2:
            raise self._fail(
                f"{module}: A {list(a.shape)}, B {list(b.shape)}, W {list(weight.shape)}: expected matrices"
            )
        rank = self._pattern("rank_pattern", module, float(self.config.get("r", 8)))
        if a.shape[0] != b.shape[1] or a.shape[0] != rank:
            raise self._fail(
                f"{module}: A is {list(a.shape)} and B is {list(b.shape)}, expected rank {rank:g} "
                "from adapter_config.json (r, rank_pattern)"
            )
        out_, in_ = weight.shape
        transposed = False
        if (b.shape[0], a.shape[1]) != (out_, in_):
            # fan_in_fan_out matters for layers that store (in, out); PEFT ignores it for linear layers, and so do we
            if not (self.config.get("fan_in_fan_out") and (b.shape[0], a.shape[1]) == (in_, out_)):
                raise self._fail(
                    f"{module}: B·A would be {[b.shape[0], a.shape[1]]}, the base weight is {[out_, in_]}; "
                    "it belongs to another base"
                )
            transposed = True
        alpha = self._pattern("alpha_pattern", module, float(self.config.get("lora_alpha", 8)))
        scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        return Pair(a, b, scale, transposed)

    def _is_target(self, module: str, linear: Iterable[str]) -> bool:
        config, targets = self.config, self.config.get("target_modules")

        def among(names: Any) -> bool:
            if isinstance(names, str):
                try:
                    return re.fullmatch(names, module) is not None
                except re.error as e:
                    raise self._fail(f"has the unusable pattern {names!r} ({e})") from None
            return any(module == n or module.endswith(f".{n}") for n in names)

        if config.get("exclude_modules") and among(config["exclude_modules"]):
            return False
        if isinstance(targets, str) and targets.lower() == "all-linear":
            return module in linear and not module.endswith(("lm_head", "embed_out"))
        if not among(targets):
            return False
        layers = config.get("layers_to_transform")
        if layers in (None, []) or isinstance(targets, str):
            return True
        patterns = config.get("layers_pattern") or [r"[^.]*"]
        patterns = [patterns] if isinstance(patterns, str) else patterns
        index = next((m for p in patterns if (m := re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", module))), None)
        return index is not None and int(index[1]) in ([layers] if isinstance(layers, int) else layers)

    def _check_targets(self) -> None:
        """The modules named in the configuration and those in the file must be the same."""
        if self.config.get("target_modules") is None:
            return
        embeddings = {"model.embed_tokens", "gpt_neox.embed_in"}
        linear = {
            name.removesuffix(".weight")
            for name, t in self._checkpoint.tensors.items()
            if name.endswith(".weight") and len(t.shape) == 2 and name.removesuffix(".weight") not in embeddings
        }
        given = {name.removesuffix(".weight") for name in self.pairs}
        try:
            wanted = {module for module in linear if self._is_target(module, linear)}
        except (TypeError, re.error) as e:
            names = "target_modules, exclude_modules, layers_to_transform or layers_pattern"
            raise self._fail(f"has unusable {names} ({e})") from None
        if missing := sorted(wanted - given):
            raise self._fail(f"targets {len(wanted)} modules, but its file has no weights for {_some(missing)}")
        if strangers := sorted(given - wanted):
            raise self._fail(f"has weights for {_some(strangers)}, which its target_modules do not name")

    # ------------------------------------------------------------------------------------------------- loading

    def load(self, name: str) -> LoadedPair:
        """The float32 matrices of the update of weight `name`, in the weight's own orientation."""
        pair = self.pairs[name]
        a, b = (self._matrix(t) for t in (pair.a, pair.b))
        if pair.transposed:  # (B·A)ᵀ = Aᵀ·Bᵀ
            a, b = np.ascontiguousarray(b.T), np.ascontiguousarray(a.T)
        return LoadedPair(a, b * np.float32(pair.scale * self.weight))

    def _matrix(self, tensor: StoredTensor) -> F32:
        out = np.empty(math.prod(tensor.shape), np.float32)
        widen(self._checkpoint.read_all(tensor), tensor.dtype, out)
        if bad := int(out.size - np.isfinite(out).sum()):
            raise self._fail(f"{tensor.name} has {bad:,} values that are not finite")
        return out.reshape(tensor.shape)


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if names[1:] else "")
