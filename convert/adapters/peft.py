"""PEFT adapter folder, bound to a base model: every tensor and every setting understood, or refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jmedlite.base.errors import DataError, InputMissing
from jmedlite.base.filenames import ADAPTER_BIN, ADAPTER_CONFIG, ADAPTER_WEIGHTS, MLX_ADAPTER_WEIGHTS
from jmedlite.base.inputs import read_json
from jmedlite.base.looking import is_dir, is_file
from jmedlite.base.wording import shown, some
from jmedlite.convert.families.names import NOT_TEXT, canonical, spellings, without_wrappers
from jmedlite.convert.sources.base import Base
from jmedlite.convert.sources.base_names import other_base
from jmedlite.convert.sources.checkpoint import read_weights
from jmedlite.convert.sources.mistaken import instead_of_adapter, is_mlx
from jmedlite.convert.sources.stacked import PARAMETERS
from jmedlite.convert.sources.strided import StridedTensor
from jmedlite.convert.sources.tensors import WEIGHT_DTYPES, StoredTensor, Weights

from .experts import STACKED, expert_parameters
from .lora import Factor, Update
from .patterns import ANY_PART, END, FULL, LAYER, Pattern, find
from .settings import COMPUTED, KEEPING_INITS, OF_THE_TRAINING, REFUSED, SHAPES, as_number

_COMPILED = "_orig_mod."
_LORA = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<side>A|B|embedding_A|embedding_B)|(?P<magnitude>lora_magnitude_vector))"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<leaf>weight|bias))?"
)
_SAVED = re.compile(
    r"(?P<module>.+?)(?:\.(?:modules_to_save|original_module)(?:\.(?!weight$|bias$)[^.]+)?)?\.(?P<leaf>weight|bias)"
)


class PeftAdapter:
    """One PEFT adapter: what it adds to which weights, and which it replaces (see lora.Adapter).

    Raises DataError before any output where the adapter does not fit its base.
    """

    in_gguf_order = False

    def __init__(self, folder: Path, base: Base, weight: float = 1.0) -> None:
        self.weights_file = find_weights(folder)
        self.config = read_json(folder / ADAPTER_CONFIG)
        self.folder: Path | None = folder
        self.name, self.weight, self.warnings = folder.resolve().name, weight, list[str]()
        self._base, self._parameters = base, expert_parameters(base)
        self._check_config()
        self._find_patterns()
        self._unseen: list[str] = []  # modules of the parts that see, which are not converted
        self.ties_head = base.tied and bool(self.config.get("ensure_weight_tying"))
        self.updates: dict[str, Update] = {}
        self.replaced: dict[str, Weights] = {}
        self._stacked: set[str] = set()  # parameters of all experts of a layer that it changes
        self._saved: set[str] = set()  # tensors that stand in the file whole, trained or not
        self._match(read_weights(self.weights_file))
        self._check_targets()
        self._check_saved()
        trained_on = self.config.get("base_model_name_or_path")
        self.trained_on: str | None = trained_on if isinstance(trained_on, str) and trained_on else None
        self.warnings += other_base(self.name, self.trained_on, base.names)

    @property
    def files(self) -> list[Path]:
        return [self.weights_file]

    def describe(self) -> dict[str, Any]:
        """For a manifest: the settings that decide the result."""
        return {
            "r": self.config.get("r"),
            "lora_alpha": self.config.get("lora_alpha"),
            "use_rslora": bool(self.config.get("use_rslora")),
            "use_dora": bool(self.config.get("use_dora")),
            "n_weights_changed": len(self.updates),
            "n_weights_replaced": len(self.replaced),
        }

    # ------------------------------------------------------------------------------------------- configuration

    def _fail(self, what: str) -> DataError:
        return DataError(f"adapter {self.name}: {what}")

    def _check_config(self) -> None:
        config = self.config
        if (kind := config.get("peft_type")) != "LORA":
            raise self._fail(f"is of type {shown(kind)}, expected LORA")
        if (bias := config.get("bias", "none")) not in ("none", "all", "lora_only"):
            raise self._fail(f"has bias = {shown(bias)}, expected none, all or lora_only")
        init = config.get("init_lora_weights", True)
        if not (init is None or isinstance(init, bool) or (isinstance(init, str) and init.lower() in KEEPING_INITS)):
            raise self._fail(
                f"was initialised with {shown(init)} (init_lora_weights), which changes the base weights or is "
                "unknown; save it with PEFT's path_initial_model_for_weight_conversion first"
            )
        if config.get("target_parameters") and self._base.family.experts is None:
            raise self._fail("sets target_parameters (parameters that are no layer's weight), which is not supported")
        for key, value in config.items():
            if key not in COMPUTED | OF_THE_TRAINING and value not in (None, False, [], {}, "", 0):
                about = f" ({REFUSED[key]})" if key in REFUSED else ""
                raise self._fail(f"sets {key}{about}, which is not supported")
        for key in ("r", "lora_alpha"):  # PEFT computes with an alpha of 0, too: the adapter changes nothing
            if (number := as_number(config.get(key, 8))) is None or number < 0:
                raise self._fail(f"has {key} = {shown(config[key])}, expected a positive number")
        if not config.get("r", 8):
            raise self._fail("has r = 0, expected a positive number")
        for key, (fits, expected) in SHAPES.items():
            if config.get(key) is not None and not fits(config[key]):
                raise self._fail(f"has {key} = {shown(config[key])}, expected {expected}")
        saved = config.get("modules_to_save") or []
        if self.weight != 1.0 and (config.get("use_dora") or saved or bias != "none"):
            what = "is a DoRA adapter" if config.get("use_dora") else "has fully trained parts"
            raise self._fail(f"{what}, so the weight {self.weight:g} has no meaning; give it without one")

    def _find_patterns(self) -> None:
        """What all regular expressions of the configuration find among the base's modules, in whatever spelling."""
        config, asked = self.config, list[tuple[str, Pattern]]()
        for which in ("rank_pattern", "alpha_pattern"):
            asked += [(which, (END, key)) for key in config.get(which) or {}]
        if config.get("target_modules") is not None:
            for which in ("exclude_modules", "target_modules"):
                if isinstance(config.get(which), str):
                    asked.append((which, (FULL, config[which])))
            asked += [("layers_pattern", (LAYER, p)) for p in self._layer_patterns()]
        modules = [name.rpartition(".")[0] for name in self._base.tensors]
        modules += self._parameters
        names = list(dict.fromkeys(name for module in modules for name in self._names(module)))
        self._found: dict[Pattern, Mapping[str, str | None]] = {}
        found = find([pattern for _, pattern in asked], names)
        for which, pattern in asked:
            what = found[pattern]
            if isinstance(what, str):
                raise self._fail(f"has an unusable pattern in {which}, {shown(pattern[1])} ({what})")
            self._found[pattern] = what

    def _layer_patterns(self) -> list[str]:
        """Those that take part: `layers_to_transform` is for targets that are a list of names."""
        if self.config.get("layers_to_transform") in (None, []) or isinstance(self.config.get("target_modules"), str):
            return []
        patterns = self.config.get("layers_pattern") or [ANY_PART]
        return [patterns] if isinstance(patterns, str) else patterns

    def _pattern(self, which: str, module: str, default: float) -> float:
        """PEFT's look-up: keys are regular expressions that must match the end of the module's name."""
        for key, value in (self.config.get(which) or {}).items():
            if not self._found[END, key].keys().isdisjoint(self._names(module)):
                return float(value)
        return default

    # ------------------------------------------------------------------------------------------------ matching

    def _match(self, tensors: Mapping[str, StoredTensor]) -> None:
        if tensors and all(name.startswith(_COMPILED) for name in tensors):
            raise self._fail(
                f"its names begin with torch.compile's prefix {_COMPILED}, so that PEFT would load none; save it from "
                "the model as it was before torch.compile, or rename its tensors without the prefix"
            )
        sides: dict[str, dict[str, StoredTensor]] = {}
        stacked: dict[tuple[str, bool], dict[str, StoredTensor]] = {}  # by the experts' module, and: the inner one?
        for name, tensor in tensors.items():
            if tensor.dtype not in WEIGHT_DTYPES:
                raise self._fail(f"{name} has dtype {tensor.dtype}, expected one of {', '.join(WEIGHT_DTYPES)}")
            if self._base.family.experts and (of_all := STACKED.fullmatch(name)):
                place = canonical(of_all["place"], self._base.family)
                stacked.setdefault((place, bool(of_all["inner"])), {})[of_all["side"]] = tensor
                continue
            key = canonical(name, self._base.family)
            if key.startswith(NOT_TEXT):
                self._unseen.append(key)
            elif found := _LORA.fullmatch(key):
                side = found["magnitude"] or f"{found['side']}{'.bias' if found['leaf'] == 'bias' else ''}"
                if (other := sides.setdefault(found["module"], {}).setdefault(side, tensor)) is not tensor:
                    raise self._fail(f"holds lora_{side} of {found['module']} twice: {other.name} and {name}")
            else:
                self._take_saved(name, key, tensor)
        self._take_stacked(stacked)
        if not sides and not self.replaced and not stacked:
            raise self._fail("changes only what sees images" if self._unseen else "holds no LoRA weights")
        if self._unseen:
            self.warnings.append(
                f"{self.name}: its {len(self._unseen)} tensors for what sees images ({self._unseen[0]}) are left out"
            )
        for module, found_sides in sides.items():
            if self.ties_head and f"{module}.weight" == self._base.head:
                continue  # the embedding's own, transposed
            self._take_update(module, found_sides)

    def _take_update(self, module: str, sides: dict[str, StoredTensor]) -> None:
        magnitude = sides.pop("lora_magnitude_vector", None)
        bias = sides.pop("B.bias", None)
        embedding = any(side.startswith("embedding") for side in sides)
        names = ("embedding_A", "embedding_B") if embedding else ("A", "B")
        if strangers := sorted(set(sides) - set(names)):
            raise self._fail(f"{module} has lora_{strangers[0]} beside lora_{names[0]}")
        for side in names:
            if side not in sides:
                raise self._fail(f"{module} has no lora_{side}")
        weight = self._base.tensors.get(f"{module}.weight")
        if weight is None:
            raise self._fail(f"changes {module}, which the base model does not have; it belongs to another base")
        if bool(self.config.get("use_dora")) != (magnitude is not None):
            what = "has no lora_magnitude_vector" if magnitude is None else "has one, its configuration says no DoRA"
            raise self._fail(f"{module} {what} (use_dora in {ADAPTER_CONFIG})")
        a, b = (sides[side] for side in names)
        shape = self.replaced[f"{module}.weight"].shape if f"{module}.weight" in self.replaced else weight.shape
        self.updates[f"{module}.weight"] = self._update(module, shape, a, b, embedding, magnitude)
        if bool(self.config.get("lora_bias")) != (bias is not None):
            raise self._fail(f"{module}: lora_bias in {ADAPTER_CONFIG} and the file's lora_B.bias disagree")
        if bias is not None:
            own = self._base.tensors.get(f"{module}.bias")
            if own is None:
                raise self._fail(f"adds a bias to {module} (lora_bias), which has none in the base model")
            if own.shape != bias.shape:
                raise self._fail(f"{module}: lora_B.bias is {list(bias.shape)}, the base has {list(own.shape)}")
            self.updates[f"{module}.bias"] = Update(Factor(bias), None, self._scale(module))

    def _take_stacked(self, stacked: Mapping[tuple[str, bool], Mapping[str, StoredTensor]]) -> None:
        """Pairs for all experts of a layer, by their module, and whether it is the one that PEFT wrapped first."""
        for (place, inner), sides in stacked.items():
            both = (place, not inner) in stacked
            named = [f"{place}.{name}" for name in PARAMETERS if self._is_parameter(f"{place}.{name}")]
            if len(named) != 1 + both:
                told = " and ".join(named) or "none"
                raise self._fail(f"{place} has weights for {1 + both} parameters, its target_parameters name {told}")
            if set(sides) != {"A", "B"}:
                raise self._fail(f"{place} has no lora_{'B' if 'A' in sides else 'A'}")
            name = named[0 if inner or not both else 1]
            parameter = self._parameters.get(name)
            if parameter is None:
                raise self._fail(f"changes {place}, which the base model does not have; it belongs to another base")
            if not parameter.tells_order:
                raise self._fail(
                    f"changes {name}, whose experts are square ({parameter.shape[0]:,}): versions of PEFT differ in "
                    "the order of its matrices; merge it with the PEFT that trained it"
                )
            updates = parameter.updates(sides["A"], sides["B"], self._rank(name), self._scale(name))
            if updates is None:
                raise self._fail(
                    f"{name}: A is {list(sides['A'].shape)} and B is {list(sides['B'].shape)}, expected rank "
                    f"{self._rank(name):g} for {parameter.n_expert} experts of {list(parameter.shape)}"
                )
            self.updates |= updates
            self._stacked.add(name)

    def _is_parameter(self, full: str) -> bool:
        """PEFT's rule for target_parameters, which is that for targets."""
        return any(self._goes_by(full, name) for name in self.config.get("target_parameters") or ())

    def _rank(self, module: str) -> float:
        return self._pattern("rank_pattern", module, float(self.config.get("r", 8)))

    def _scale(self, module: str) -> float:
        alpha, rank = (
            self._pattern("alpha_pattern", module, float(self.config.get("lora_alpha", 8))),
            self._rank(module),
        )
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _update(
        self,
        module: str,
        shape: tuple[int, ...],
        a: StoredTensor,
        b: StoredTensor,
        embedding: bool,
        magnitude: StoredTensor | None,
    ) -> Update:
        if len(shape) != 2 or len(a.shape) != 2 or len(b.shape) != 2:
            raise self._fail(f"{module}: A {list(a.shape)}, B {list(b.shape)}, W {list(shape)}: expected matrices")
        rank = self._rank(module)
        if a.shape[0] != b.shape[1] or a.shape[0] != rank:
            raise self._fail(
                f"{module}: A is {list(a.shape)} and B is {list(b.shape)}, expected rank {rank:g} "
                "from adapter_config.json (r, rank_pattern)"
            )
        out, in_ = shape
        product = (b.shape[0], a.shape[1])
        if embedding:
            if product != (in_, out):
                raise self._misfit(module, product[::-1], shape)
            if magnitude is not None:
                raise self._fail(f"uses DoRA on the embedding ({module}), which is not supported; merge it with PEFT")
            return Update(Factor(a, transposed=True), Factor(b, transposed=True), self._scale(module))
        # fan_in_fan_out matters for layers that store (in, out); PEFT ignores it for linear layers, and so do we
        transposed = product != (out, in_) and product == (in_, out) and bool(self.config.get("fan_in_fan_out"))
        if not transposed and product != (out, in_):
            raise self._misfit(module, product, shape)
        if transposed and magnitude is not None:
            raise self._fail(f"uses DoRA on {module}, which is stored transposed; merge it with PEFT")
        if magnitude is not None and magnitude.n_elements != out:
            raise self._fail(f"{module}: lora_magnitude_vector has {magnitude.n_elements} values, expected {out}")
        left, right = (a, b) if transposed else (b, a)
        return Update(Factor(left, transposed), Factor(right, transposed), self._scale(module), magnitude)

    def _misfit(self, module: str, product: tuple[int, ...], shape: tuple[int, ...]) -> DataError:
        return self._fail(
            f"{module}: B·A would be {list(product)}, the base weight is {list(shape)}; it belongs to another base"
        )

    # ---------------------------------------------------------------------------------- fully trained tensors

    def _take_saved(self, name: str, key: str, stored: StoredTensor) -> None:
        found = _SAVED.fullmatch(key)
        own = f"{found['module']}.{found['leaf']}" if found else ""
        base = self._base.tensors.get(own)
        if not found or base is None:
            raise self._fail(f"holds {name}, which is not a LoRA matrix this version knows")
        self._saved.add(own)
        is_transposed = own in self._base.transposed and len(stored.shape) == 2
        tensor: Weights = StridedTensor.transposed(stored) if is_transposed else stored
        is_table = own in (self._base.embedding, self._base.head)
        if tensor.shape != base.shape and not (is_table and tensor.shape[1:] == base.shape[1:]):
            raise self._fail(f"its {own} is {list(tensor.shape)}, the base has {list(base.shape)}")
        named = self._is_saved(found["module"])
        bias = found["leaf"] == "bias" and self.config.get("bias", "none") != "none"
        if tensor.shape == base.shape and (is_table or not (named or bias)) and self._base.files.equal(tensor, base):
            return  # PEFT saves untouched embeddings and heads along where one of them is a target
        if not (named or bias or is_table):
            raise self._fail(f"holds a trained {own} ({name}), which its modules_to_save do not name")
        if self.weight != 1.0:
            raise self._fail(f"has fully trained parts ({own}), so the weight {self.weight:g} has no meaning")
        if self.replaced.setdefault(own, tensor) is not tensor:
            raise self._fail(f"holds {own} twice")

    def _saved_modules(self) -> list[str]:
        return [without_wrappers(name) for name in self.config.get("modules_to_save") or []]

    def _goes_by(self, module: str, name: str) -> bool:
        """PEFT's rule for targets: a name means the modules that are it, or end with it after a dot."""
        name = without_wrappers(name)
        return any(m == name or m.endswith(f".{name}") for m in self._names(module))

    def _names(self, module: str) -> Iterable[str]:
        return spellings(module, self._base.family)

    def _is_saved(self, module: str) -> bool:
        """PEFT's rule for modules_to_save: without the dot, so that "norm" means input_layernorm too."""
        return any(m.endswith(name) for m in self._names(module) for name in self._saved_modules())

    def _check_saved(self) -> None:
        """Every module in modules_to_save has all its tensors; embedding and head have as many rows as each other."""
        embedding, head = self._base.embedding, self._base.head
        if self._base.tied and embedding in self.replaced and head in self.replaced:
            one, other = self.replaced[embedding], self.replaced[head]
            if one.shape == other.shape and (self.ties_head or self._base.files.equal(one, other)):
                del self.replaced[head]  # tied still
                self.ties_head = True
        for module in self._saved_modules():
            wanted = [n for n in self._base.tensors if self._goes_by(n.rpartition(".")[0], module)]
            missing = [n for n in wanted if n not in self._saved and not (n == head and self.ties_head)]
            if missing:
                raise self._fail(f"names {module} in modules_to_save, but its file has no {missing[0]}")
        rows = {n: t.shape[0] for n, t in self.replaced.items() if n in (embedding, head)}
        resized = {n: r for n, r in rows.items() if r != self._base.tensors[n].shape[0]}
        if resized:
            if self._base.tied and embedding in rows and head not in rows:
                self.ties_head = True  # a head of the old size could not have been used
            elif len(rows) != 2 or len(set(rows.values())) != 1:
                told = ", ".join(f"{n} has {r:,} rows" for n, r in rows.items())
                raise self._fail(f"changes the vocabulary's size, but {told}; embedding and head must be given alike")

    # ------------------------------------------------------------------------------------------------- targets

    def _is_target(self, module: str, linear: Collection[str]) -> bool:
        config, targets = self.config, self.config.get("target_modules")

        def among(names: Any) -> bool:
            if isinstance(names, str):
                return not self._found[FULL, names].keys().isdisjoint(self._names(module))
            return any(self._goes_by(module, n) for n in names)

        if config.get("exclude_modules") and among(config["exclude_modules"]):
            return False
        # here PEFT's names of modules_to_save are whole parts of a module's name
        if any(f".{name}." in f".{m}." for m in self._names(module) for name in self._saved_modules()):
            return False
        if isinstance(targets, str) and targets.lower() == "all-linear":
            return module in linear and f"{module}.weight" != self._base.head
        if not among(targets):
            return False
        if not (patterns := self._layer_patterns()):
            return True
        if any(m in (targets or ()) for m in self._names(module)):
            return True  # named in full, as a head is: no layer's
        layers = config["layers_to_transform"]
        index = next((self._found[LAYER, p][module] for p in patterns if module in self._found[LAYER, p]), None)
        return index is not None and index in [str(i) for i in ([layers] if isinstance(layers, int) else layers)]

    def _check_targets(self) -> None:
        """The modules named in the configuration and those in the file must be the same."""
        routers = {n for n in self._base.tensors if self._is_parameter(n)}
        if missing := sorted(
            {*routers, *filter(self._is_parameter, self._parameters)} - {*self.updates, *self._stacked}
        ):
            raise self._fail(f"targets parameters, but its file has no weights for {some(missing)}")
        if self.config.get("target_modules") is None:
            return
        candidates = set(_modules(self._base.tensors))
        linear = candidates - {self._base.embedding.removesuffix(".weight")}
        by_parameters = {n.removesuffix(".weight") for n in routers}
        given = set(_modules(self.updates)) - by_parameters.union(*(self._parameters[n].modules for n in self._stacked))
        wanted = {module for module in candidates if self._is_target(module, linear)}
        of_experts = set[str]().union(*(parameter.modules for parameter in self._parameters.values()))
        if given.isdisjoint(of_experts):  # to transformers 5 they are parameters, which no name of a module means
            wanted -= of_experts
        if self.ties_head:
            wanted.discard(self._base.head.removesuffix(".weight"))
        if missing := sorted(wanted - given):
            raise self._fail(f"targets {len(wanted)} modules, but its file has no weights for {some(missing)}")
        if strangers := sorted(given - wanted):
            raise self._fail(f"has weights for {some(strangers)}, which its target_modules do not name")


def find_weights(folder: Path) -> Path:
    """An adapter folder's weights file, PEFT's or mlx-lm's; raises InputMissing."""
    if not is_dir(folder):
        raise InputMissing(
            f"{folder}: no such adapter (expected a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, or a GGUF)"
        )
    names = (MLX_ADAPTER_WEIGHTS,) if is_mlx(folder) else (ADAPTER_WEIGHTS, ADAPTER_BIN)
    found = next((folder / name for name in names if is_file(folder / name)), None)
    whole = found is not None and is_file(folder / ADAPTER_CONFIG)
    if not whole and (instead := instead_of_adapter(folder)):
        raise InputMissing(f"{folder}: {instead}")
    if found is None:
        raise InputMissing(f"{folder}: has neither {ADAPTER_WEIGHTS} nor {ADAPTER_BIN}")
    return found


def _modules(names: Mapping[str, Any]) -> Iterator[str]:
    """The modules of weight matrices among tensor names."""
    for name, entry in names.items():
        if name.endswith(".weight") and len(getattr(entry, "shape", (0, 0))) == 2:
            yield name.removesuffix(".weight")
