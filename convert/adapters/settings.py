"""Every setting of PEFT's LoRA configuration, and what it means for a merge: computed, of the training, or refused.

`tools/make_adapter_docs.py` writes the tables into docs/families.md; a test against PEFT proves each line and that
none is missing (tests/convert/test_peft_settings.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

# They decide the result, and are computed.
COMPUTED = {
    "peft_type": "LORA alone",
    "r": "the rank",
    "lora_alpha": "the scale is `lora_alpha / r`",
    "use_rslora": "the scale is `lora_alpha / √r`",
    "rank_pattern": "regular expressions for the end of a module's name, as PEFT matches them",
    "alpha_pattern": "likewise",
    "use_dora": "the sum's rows get the lengths of the file",
    "lora_bias": "added to the base's bias; refused where it has none",
    "bias": "trained biases replace the base's",
    "fan_in_fan_out": "for layers that are stored transposed",
    "modules_to_save": "fully trained parts replace the base's",
    "ensure_weight_tying": "one table stays one",
    "target_modules": "compared with the file: nothing more, nothing less",
    "target_parameters": "likewise: of a mixture, all experts of a layer, and its router",
    "exclude_modules": "likewise",
    "layers_to_transform": "likewise",
    "layers_pattern": "likewise",
    "init_lora_weights": "refused where it changes the base, or is unknown",
}
# They say how the adapter was trained, or name it; the weights in the file are what they are.
OF_THE_TRAINING = {
    "task_type": "what the model was wrapped as",
    "base_model_name_or_path": "compared with the base's name: a warning",
    "revision": "of the base",
    "auto_mapping": "the base's class",
    "peft_version": "who wrote the file",
    "inference_mode": "whether gradients were kept",
    "lora_dropout": "off when a model answers",
    "eva_config": "of an initialisation that changes the adapter alone",
    "corda_config": "means something with `init_lora_weights` alone",
    "loftq_config": "likewise",
    "lora_ga_config": "likewise",
    "megatron_core": "the name of a library",
    "qalora_group_size": "means something with `use_qalora` alone",
    "runtime_config": "where weights lay in memory",
    "modules_to_tie": "PEFT's own note on `ensure_weight_tying`",
    "target_modules_to_tie": "likewise",
}
# They would change the result, and jmedlite does not compute them. So is any setting that stands in no list.
REFUSED = {
    "trainable_token_indices": "single rows of the embedding",
    "alora_invocation_tokens": "the adapter acts after certain tokens only",
    "use_qalora": "inputs are averaged in groups",
    "velora_config": "tensors of its own beside A and B",
    "use_bdlora": "matrices in blocks",
    "monteclora_config": "weights are drawn at random",
    "kasa_config": "the base loses its smallest singular values",
    "arrow_config": "several adapters, chosen by the input",
    "layer_replication": "layers of the base stand twice",
    "megatron_config": "layers of another library",
}
# Initialisations that leave the base as it is. Others may have PEFT rewrite its weights on loading, so that base + B·A
# is not the model.
KEEPING_INITS = ("gaussian", "eva", "orthogonal", "mica")


def as_number(value: Any) -> float | None:
    """A finite number of JSON as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _layers(value: Any) -> bool:
    return all(type(i) is int for i in (value if isinstance(value, list) else [value]))


def _numbers(above: float) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return isinstance(value, dict) and all((n := as_number(v)) is not None and n > above for v in value.values())

    return fits


_FLAG = (lambda value: isinstance(value, bool), "true or false")
_PATTERNS = (lambda value: isinstance(value, str) or _names(value), "a pattern or a list of names")
# What each setting that is computed must look like: (whether a value does, in words).
SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "ensure_weight_tying"), _FLAG),
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern"), _PATTERNS),
    "modules_to_save": (_names, "a list of names"),
    "layers_to_transform": (_layers, "a whole number or a list of them"),
    "rank_pattern": (_numbers(0), "an object of patterns to positive numbers"),
    "alpha_pattern": (_numbers(-math.inf), "an object of patterns to numbers"),
}
