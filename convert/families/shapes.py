"""From settings to tensors: the numbers that shapes are made of, the types of layers, and the rules that apply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from jmedlite.base.errors import DataError
from jmedlite.base.gguf import MAX_BLOCKS, MAX_EXPERTS
from jmedlite.base.wording import shown

from .config import context_length, has_experts, integer, is_tied
from .family import (
    CONV,
    DENSE,
    FULL_SHARED,
    LINEAR,
    LINEAR_SETTINGS,
    MIXTURE,
    MIXTURE_LAYERS,
    SLIDING_SHARED,
    Experts,
    Family,
    Rule,
)
from .rope import FULL, SLIDING, n_rotary
from .row_order import Order, RowOrder, TiledHeads


def dimensions(family: Family, config: Mapping[str, Any]) -> dict[str, int]:
    """The numbers that shapes are made of, from `text_config`."""
    n_embd, n_head = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    n_head_kv = integer(config, "num_key_value_heads", n_head) if family.grouped else n_head
    head_dim = integer(config, "head_dim", family.head_dim or max(1, n_embd // n_head))
    if n_head % n_head_kv:
        raise DataError(f"config.json: {n_head} attention heads can't share {n_head_kv} key-value heads")
    if (n_layer := integer(config, "num_hidden_layers")) > MAX_BLOCKS:
        raise DataError(f"config.json: num_hidden_layers is {n_layer:,}, llama.cpp reads at most {MAX_BLOCKS}")
    if head_dim % 2:
        raise DataError(f"config.json: heads of {head_dim} dimensions, expected an even number")
    n_rot = n_rotary(config, head_dim, family.rotary_share)
    experts = _expert_dimensions(family.experts, config) if family.experts and has_experts(family, config) else {}
    sizes = _two_sizes(config) if family.two_sizes else {}
    linear = _linear_dimensions(config) if family.mixes_linear else {}
    if family.mixes_conv:
        linear |= {"3·n_embd": 3 * n_embd, "n_taps": integer(config, "conv_L_cache")}
        config = {**config, "intermediate_size": _adjusted(config)}
    n_q, n_kv, n_ff = (
        n_head * head_dim,
        n_head_kv * head_dim,
        integer(config, family.width, experts.get("n_ff_exp") or (family.widens and family.widens * n_embd)),
    )
    return {
        "n_embd": n_embd,
        "n_head": n_head,
        "n_head_kv": n_head_kv,
        "n_q": n_q,
        "2·n_q": 2 * n_q,
        "1": 1,
        "n_kv": n_kv,
        "n_qkv": n_q + 2 * n_kv,
        "head_dim": head_dim,
        "n_rot": n_rot,
        "n_ff": n_ff,
        "2·n_ff": 2 * n_ff,
        "n_vocab": integer(config, "vocab_size"),
        "n_ctx": context_length(config),
        "n_layer": n_layer,
        **experts,
        **linear,
        **sizes,
    }


def _two_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """What layers without a window have of their own, and the part of the second embedding that a layer gets."""
    n_head, (head_dim, n_head_kv) = integer(config, "num_attention_heads"), _full_heads(config)
    if n_head % n_head_kv:
        raise DataError(f"config.json: {n_head} attention heads can't share {n_head_kv} key-value heads")
    if head_dim % 2:
        raise DataError(f"config.json: heads of {head_dim} dimensions, expected an even number")
    found = {
        "head_dim_full": head_dim, "n_head_kv_full": n_head_kv, "n_q_full": n_head * head_dim,
        "n_kv_full": n_head_kv * head_dim,
    }  # fmt: skip
    if not config["hidden_size_per_layer_input"]:
        return found
    n_part, n_rows = integer(config, "hidden_size_per_layer_input"), integer(config, "vocab_size_per_layer_input")
    if n_rows != (n_vocab := integer(config, "vocab_size")):
        raise DataError(
            f"config.json: vocab_size is {n_vocab:,}, vocab_size_per_layer_input {n_rows:,}; llama.cpp computes this "
            "family only where they are equal"
        )
    return found | {"n_part": n_part, "n_parts": n_part * integer(config, "num_hidden_layers")}


def _full_heads(config: Mapping[str, Any]) -> tuple[int, int]:
    """(dimensions of a head, key-value heads) of layers without a window: from `per_layer_config` if it is there."""
    usual = {key: integer(config, key) for key in ("head_dim", "num_key_value_heads")}
    own = config.get("per_layer_config")
    if own is None:
        n_kv = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
        n_kv = usual["num_key_value_heads"] if n_kv is None else integer(config, "num_global_key_value_heads")
        return integer(config, "global_head_dim", 512), n_kv
    types = _types_of_two_sizes(config)
    of_full = [own.get(str(i), {}) for i, kind in enumerate(types) if kind.startswith(FULL)]
    n_others = len(set(own) - {str(i) for i, kind in enumerate(types) if kind.startswith(FULL)})
    if (
        n_others
        or any(o != of_full[0] for o in of_full)
        or not isinstance(of_full[0], dict)
        or set(of_full[0]) - set(usual)
    ):
        raise DataError(
            f"config.json: its per_layer_config is {shown(own)}; llama.cpp computes this family only with one head_dim "
            f"and one num_key_value_heads for all layers of {FULL}, and none for others"
        )
    full = usual | of_full[0]
    return integer(full, "head_dim"), integer(full, "num_key_value_heads")


def _types_of_two_sizes(config: Mapping[str, Any]) -> list[str]:
    """The types of Gemma 4's layers; raises DataError for what llama.cpp does not compute."""
    n_layer, n_shared = integer(config, "num_hidden_layers"), config["num_kv_shared_layers"]
    types = list(config.get("layer_types") or [FULL if (i + 1) % 6 == 0 else SLIDING for i in range(n_layer)])
    types[-1:] = [FULL]  # as transformers does, whatever was said
    if len(types) != n_layer or set(types) != {FULL, SLIDING}:
        raise DataError(
            f"config.json: layer_types is {shown(types)}, expected {SLIDING} or {FULL} for each of {n_layer} layers; "
            "llama.cpp computes this family only with both among them"
        )
    n_own = n_layer - n_shared
    if n_shared and (n_shared < 0 or types[: max(0, n_own)][-2:] != [SLIDING, FULL]):
        raise DataError(
            f"config.json: {n_shared} of {n_layer} layers share keys and values (num_kv_shared_layers); llama.cpp "
            f"takes those of the two layers before them, which must be of {SLIDING} and {FULL}"
        )
    return [kind + "+shared" * (i >= n_own) for i, kind in enumerate(types)]


def _linear_dimensions(config: Mapping[str, Any]) -> dict[str, int]:
    """Of layers of linear attention; raises DataError for what llama.cpp's graph does not compute."""
    n_kernel, k_head_dim, v_head_dim, n_k_head, n_v_head = (integer(config, key) for key in LINEAR_SETTINGS)
    if k_head_dim != v_head_dim:
        raise DataError(
            f"config.json: linear_key_head_dim is {k_head_dim}, linear_value_head_dim {v_head_dim}; llama.cpp computes "
            "this family only where they are equal"
        )
    if n_v_head % n_k_head:
        raise DataError(
            f"config.json: {n_v_head} value heads can't share {n_k_head} key heads (linear_num_value_heads)"
        )
    n_value = n_v_head * v_head_dim
    return {
        "n_kernel": n_kernel, "v_head_dim": v_head_dim, "n_k_head": n_k_head, "n_v_head": n_v_head, "n_value": n_value,
        "n_key": n_k_head * k_head_dim, "n_conv": 2 * n_k_head * k_head_dim + n_value,
    }  # fmt: skip


def _adjusted(config: Mapping[str, Any]) -> int:
    """The width of LFM2's feed-forward layers: two thirds of what is said, times a factor, rounded up."""
    width, step = integer(config, "intermediate_size"), integer(config, "block_multiple_of")
    if not config["block_auto_adjust_ff_dim"]:
        return width
    width = int(config["block_ffn_dim_multiplier"] * int(2 * width / 3))
    return step * -(-width // step)


def types_of_layers(family: Family, config: Mapping[str, Any]) -> list[str]:
    """What kind each layer is; "" where a family has one kind only."""
    n_layer = integer(config, "num_hidden_layers")
    if family.mixes_linear:
        return _types_of_layers(n_layer, full_interval(config))
    if family.two_sizes:
        return _types_of_two_sizes(config)
    if family.experts and family.experts.step:
        return _mixtures(family.experts.step, config)
    if not family.mixes_conv:
        return [""] * n_layer
    full = config.get("full_attn_idxs")
    types = config.get("layer_types") or [FULL if full is None or i in full else CONV for i in range(n_layer)]
    if len(types) != n_layer or set(types) != {FULL, CONV}:  # llama.cpp's memory for them wants layers of both types
        raise DataError(
            f"config.json: layer_types (or full_attn_idxs) gives {shown(list(types))}, expected {FULL} or {CONV} for "
            f"each of {n_layer} layers, and both among them"
        )
    return list(types)


def _mixtures(step: str, config: Mapping[str, Any]) -> list[str]:
    """Every n-th layer is a mixture; raises DataError where `moe_layers`, by which transformers goes, differs."""
    n_layer, every = integer(config, "num_hidden_layers"), integer(config, step)
    found = [MIXTURE if (i + 1) % every == 0 else DENSE for i in range(n_layer)]
    given, expected = config.get(MIXTURE_LAYERS), [i for i, kind in enumerate(found) if kind == MIXTURE]
    if given is not None and sorted(given) != expected:
        raise DataError(
            f"config.json: its {MIXTURE_LAYERS} are {shown(list(given))}; llama.cpp computes this family only with "
            f"those of {step} ({every}): {shown(expected)}"
        )
    if not expected:
        raise DataError(f"config.json: {step} is {every}, which leaves no mixture among {n_layer} layers")
    return found


def full_interval(config: Mapping[str, Any]) -> int:
    """Every how many layers one has full attention, the others linear; raises DataError where they follow no such rule.

    `layer_types` counts where it is there, as for transformers.
    """
    n_layer, given = integer(config, "num_hidden_layers"), config.get("layer_types")
    asked = given or _types_of_layers(n_layer, integer(config, "full_attention_interval"))
    for interval in range(2, n_layer + 1):  # llama.cpp's memory for them wants layers of both types
        if list(asked) == _types_of_layers(n_layer, interval):
            return interval
    raise DataError(
        f"config.json: layer_types (or full_attention_interval) gives {str(list(asked))[:80]}, llama.cpp computes this "
        f"family only with {FULL} in every n-th of {n_layer} layers and {LINEAR} in the others"
    )


def _types_of_layers(n_layer: int, interval: int) -> list[str]:
    return [FULL if (i + 1) % interval == 0 else LINEAR for i in range(n_layer)]


def _expert_dimensions(experts: Experts, config: Mapping[str, Any]) -> dict[str, int]:
    n_expert, n_used = integer(config, experts.count), integer(config, "num_experts_per_tok")
    if n_used > n_expert or n_expert > MAX_EXPERTS:
        raise DataError(
            f"config.json: {n_used} of {n_expert} experts answer each token, expected no more than there are, and "
            f"llama.cpp knows {MAX_EXPERTS} at most"
        )
    found = {"n_expert": n_expert, "n_ff_exp": integer(config, experts.width)}
    if experts.shared_width:
        found["n_ff_shexp"] = integer(config, experts.shared_width)
    return found


def check_attention(family: Family, config: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    """Refuse what llama.cpp's graph does not compute: a size of heads, a share of rotated dimensions, a scale."""
    n_rot, head_dim = dims["n_rot"], dims["head_dim"]
    if family.splits_width and dims["n_q"] != dims["n_embd"]:
        raise DataError(
            f"config.json: head_dim is {head_dim}, its {dims['n_head']} heads share {dims['n_embd']} dimensions; "
            f"llama.cpp computes {family.title} only where they share them evenly"
        )
    if n_rot % 2 or (n_rot != head_dim and not family.partly_rotated):
        raise DataError(
            f"config.json: {n_rot} of a head's {head_dim} dimensions are rotated (partial_rotary_factor), llama.cpp "
            f"does not do that for {family.title}"
        )
    if family.chunked:
        _check_chunked(config, dims)
    if family.scales_by_width:
        by_width = dims["n_layer"] == family.scales_by_width
        expected = dims["n_embd"] // dims["n_head"] if by_width else head_dim
        if (given := config.get("query_pre_attn_scalar")) != expected:
            raise DataError(f"config.json: query_pre_attn_scalar is {given}, llama.cpp would compute with {expected}")


ROPE_PERIOD = 4  # of Llama 4's layers: the last of so many sees all of the text, and has no positions
UNNORMED = 128  # a Llama 4 with so many experts has no norms of queries and keys, for llama.cpp


def _check_chunked(config: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    """What llama.cpp takes for granted of Llama 4 (llama4.cpp); raises DataError for all else."""
    has_rope = [(i + 1) % ROPE_PERIOD != 0 for i in range(dims["n_layer"])]
    given = config.get("no_rope_layers")
    if given and [bool(x) for x in given] != has_rope:
        raise DataError(
            f"config.json: its no_rope_layers are {shown(list(given))}; llama.cpp computes this family only with 0 in "
            f"every {ROPE_PERIOD}th layer and 1 in the others"
        )
    types = config.get("layer_types")
    if types and list(types) != ["chunked_attention" if rope else FULL for rope in has_rope]:
        raise DataError(
            f"config.json: its layer_types are {shown(list(types))}; llama.cpp computes this family only with {FULL} "
            f"in every {ROPE_PERIOD}th layer and chunked_attention in the others"
        )
    normed = dims["n_expert"] != UNNORMED
    if bool(config.get("use_qk_norm")) != normed:
        raise DataError(
            f"config.json: use_qk_norm is {config.get('use_qk_norm')}; llama.cpp goes by the number of experts, and "
            f"computes a model of {dims['n_expert']} only with {normed}"
        )


def row_order(name: str | None, dims: Mapping[str, int]) -> Order | None:
    """How rows (or columns) move on their way to GGUF, by a rule's name for it; None where they stay."""
    if name is None:
        return None
    if name == "rotary":
        return RowOrder(dims["head_dim"], interleave=True)
    if name == "fused":
        return RowOrder(dims["head_dim"], parts=3)
    return column_order(name, dims)


def column_order(name: str | None, dims: Mapping[str, int]) -> TiledHeads | None:
    """The same of what may also be columns: value heads of linear attention."""
    if name is None or dims["n_v_head"] == dims["n_k_head"]:
        return None
    head_dim = 1 if name == "value-heads" else dims["v_head_dim"]
    offset = 2 * dims["n_key"] if name == "values-of-qkv" else 0
    return TiledHeads(head_dim, dims["n_k_head"], dims["n_v_head"] // dims["n_k_head"], offset)


def _is_on(switch: str, config: Mapping[str, Any]) -> bool:
    if switch == "untied":
        return not is_tied(config)
    return bool(config.get(switch.removeprefix("!"))) != switch.startswith("!")


def switches_of(family: Family, has: Callable[[str], bool]) -> dict[str, bool]:
    """The switches that the tensors of a GGUF were written under; `has` tells which names it has."""
    named = {rule.when: rule.gguf.replace("{i}", "0") for rule in family.rules if rule.when not in (None, "untied")}
    return {str(when).removeprefix("!"): has(name) != str(when).startswith("!") for when, name in named.items()}


def expected_rules(family: Family, config: Mapping[str, Any]) -> list[Rule]:
    """The rules that apply to this configuration, layers filled in, in the order they are written."""
    found: list[Rule] = []
    layered: list[Rule] = []
    for rule in family.rules:
        if rule.when is not None and not _is_on(rule.when, config):
            continue
        (layered if "{i}" in rule.hf else found).append(rule)
    for i, type_ in enumerate(types_of_layers(family, config)):
        found += [
            replace(r, hf=r.hf.replace("{i}", str(i)), gguf=r.gguf.replace("{i}", str(i)))
            for r in layered
            if not r.layers or type_ in r.layers
        ]
    return found


def unread_names(family: Family, config: Mapping[str, Any]) -> frozenset[str]:
    """What a checkpoint may have and its model does not read: keys and values of layers that take an earlier one's."""
    types = types_of_layers(family, config) if family.two_sizes else []
    shared = [i for i, kind in enumerate(types) if kind in (FULL_SHARED, SLIDING_SHARED)]
    own = [rule.hf for rule in family.rules if rule.layers in ((SLIDING,), (FULL,))]
    return frozenset(hf.replace("{i}", str(i)) for hf in own for i in shared)


def transposed_names(rules: Iterable[Rule]) -> frozenset[str]:
    """The checkpoint's tensors that are stored as (columns, rows)."""
    return frozenset(rule.hf for rule in rules if rule.transposed)
