"""Shape: what a model takes, from its header alone: weights by block, keys and values, states, the compute buffer.

The formulas are those by which llama.cpp lays out its buffers:

- the key-value cache has `n_ctx` cells in every block, each on the device of its block;
- a compute buffer is as large as the widest moment of the graph for one batch (N_UBATCH tokens, unless wished for);
- some types are rewritten at load in the order that the processor's instructions want, into memory of their own.

`tools/measure_memory.py` compares the predictions with what a running model takes.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.gguf import EXACT_CONTEXT, Tensor, nbytes

N_UBATCH = 512  # tokens evaluated at once
N_OUTPUTS = 32  # tokens of one batch whose logits are kept
CELL = 256  # llama.cpp rounds n_ctx up to a multiple of this
DEFAULT_CONTEXT = 4096  # of a model that does not say what it was trained for
MAX_SIZE = 1 << 31
CHUNKED = ("llama4",)  # most blocks see a chunk of the text, and no key says so
NO_FLASH_ATTENTION = ("grok",)  # llama.cpp turns it off, whatever is asked for
# What of a block is the experts' own, which may stay in RAM: biases and scales too (llama.cpp, common/common.h)
EXPERTS = r"ffn_(up|down|gate|gate_up)_(ch|)exps"


@dataclass(frozen=True)
class Shape:
    """What the plan must know of a model; sizes in bytes, one entry per block where there are several.

    `n_ctx_train` is no longer than what llama.cpp computes as the original does.
    """

    n_ctx_train: int
    n_vocab: int
    n_embd: int
    n_ff: int
    n_head: int
    kv_values: tuple[tuple[int, int], ...]  # values of K and of V per token
    blocks: tuple[int, ...]
    repacked: tuple[int, ...]  # the part of `blocks` that the processor wants in another order
    experts: tuple[int, ...]  # the part of `blocks` that is the experts' of a mixture
    experts_repacked: tuple[int, ...]
    largest: tuple[int, ...]  # weight of a block
    largest_of_experts: tuple[int, ...]
    output: int  # head and last norm; of a model that ties them, the embedding once more
    output_repacked: int
    output_own: int  # the part of `output` that is not the embedding once more
    rest: int  # stays in RAM: the embedding
    states: tuple[int, ...] = ()  # of a block that keeps one, for each sequence; such a block has no keys and values
    n_parts: int = 0  # values that a token's second embedding has for all blocks together
    n_masks: int = 1  # one more where some blocks have a window

    @property
    def n_layer(self) -> int:
        return len(self.blocks)

    @property
    def data_bytes(self) -> int:
        return sum(self.blocks) + self.output_own + self.rest


def repacking(cpu_features: Iterable[str]) -> dict[Type, int]:
    """Types that ggml's processor backend rewrites at load → the multiple that the number of rows must have.

    Facts of ggml-cpu/repack.cpp and amx.cpp, by the names of `llama_print_system_info`.
    """
    has = set(cpu_features)
    found: dict[Type, int] = {}
    if "REPACK" in has:
        if "AVX2" in has:
            found |= dict.fromkeys((Type.Q4_0, Type.Q4_K, Type.IQ4_NL), 8)
        if "AVX512" in has:
            found[Type.Q2_K] = 8
        if "NEON" in has and has & {"DOTPROD", "MATMUL_INT8"}:
            found |= dict.fromkeys((Type.Q4_0, Type.IQ4_NL, Type.Q8_0), 4)
            found |= dict.fromkeys((Type.Q4_K, Type.Q5_K, Type.Q6_K), 8)
    if "AMX_INT8" in has:
        amx = (Type.Q4_0, Type.Q4_1, Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_XS)
        found |= dict.fromkeys(amx, 1)
    return found


def shape_of(metadata: Mapping[str, Any], tensors: Sequence[Tensor], repack: Mapping[Type, int]) -> Shape:
    """The shape of a model from its GGUF header; a model with sliding windows counts as if it had none.

    Raises DataError where a size is none.
    """

    def number(key: str, default: int = 0) -> int:
        """The key's value; of a list with one value per block, the largest."""
        return max(_numbers(metadata, key, default))

    n_layer, n_embd, n_head = number("block_count"), number("embedding_length"), number("attention.head_count", 1)
    n_ff_experts = number("expert_feed_forward_length") * number("expert_used_count", 1)
    heads_kv = _numbers(metadata, "attention.head_count_kv", n_head)
    heads_kv = (heads_kv + [heads_kv[-1]] * n_layer)[:n_layer]
    blocks, repacked, experts, experts_repacked, largest, largest_of_experts = ([0] * n_layer for _ in range(6))
    output = output_repacked = rest = 0
    tied = not any(t.name == "output.weight" for t in tensors)
    for t in tensors:
        again = _repacked_bytes(t, repack)
        kind, _, index = t.name.partition(".")
        index, _, leaf = index.partition(".")
        if kind == "blk" and index.isdecimal() and (i := int(index)) < n_layer:
            blocks[i] += t.nbytes
            repacked[i] += again
            largest[i] = max(largest[i], t.nbytes)
            if re.match(EXPERTS, leaf):
                experts[i] += t.nbytes
                experts_repacked[i] += again
                largest_of_experts[i] = max(largest_of_experts[i], t.nbytes)
        elif kind in ("output", "output_norm"):
            output += t.nbytes
            output_repacked += again
        else:
            rest += t.nbytes
    head_copy = sum(t.nbytes for t in tensors if tied and t.name == "token_embd.weight")
    return Shape(
        n_ctx_train=min(number("context_length", DEFAULT_CONTEXT), metadata.get(EXACT_CONTEXT, MAX_SIZE)),
        n_vocab=len(metadata.get("tokenizer.ggml.tokens") or []),
        n_embd=n_embd,
        n_ff=max(number("feed_forward_length"), n_ff_experts),
        n_head=n_head,
        kv_values=tuple(
            (k * h, v * h) for h, (k, v) in zip(heads_kv, _heads_of_blocks(metadata, n_layer), strict=True)
        ),
        blocks=tuple(blocks),
        repacked=tuple(repacked),
        experts=tuple(experts),
        experts_repacked=tuple(experts_repacked),
        largest=tuple(largest),
        largest_of_experts=tuple(largest_of_experts),
        output=output + head_copy,
        output_repacked=output_repacked,
        output_own=output,
        rest=rest,
        states=_states(metadata, tensors, n_layer),
        n_parts=n_layer * number("embedding_length_per_layer_input"),
        n_masks=2 if number("attention.sliding_window") or metadata["general.architecture"] in CHUNKED else 1,
    )


def _states(metadata: Mapping[str, Any], tensors: Sequence[Tensor], n_layer: int) -> tuple[int, ...]:
    """Bytes of state for each block, in float32: of its convolution, and what it remembers (llama-hparams.cpp)."""
    kernel, inner, groups, size = (
        max(_numbers(metadata, f"ssm.{key}", 0)) for key in ("conv_kernel", "inner_size", "group_count", "state_size")
    )
    short, n_embd = (max(_numbers(metadata, key, 0)) for key in ("shortconv.l_cache", "embedding_length"))
    of_block = {
        "ssm_conv1d": 4 * (max(0, kernel - 1) * (inner + 2 * groups * size) + size * inner),
        "shortconv.conv": 4 * max(0, short - 1) * n_embd,
    }
    names = {t.name for t in tensors}
    return tuple(
        sum(state for name, state in of_block.items() if f"blk.{i}.{name}.weight" in names) for i in range(n_layer)
    )


def _numbers(metadata: Mapping[str, Any], key: str, default: int) -> list[int]:
    """The values of an architecture's key, one or one per block; raises DataError where they are no sizes."""
    name = f"{metadata['general.architecture']}.{key}"
    value = metadata.get(name, default)
    values = [*value] if isinstance(value, list | array) else [value]
    if not values or not all(isinstance(v, int) and 0 <= v < MAX_SIZE for v in values):
        raise DataError(f"the model's {name} is {str(value)[:80]}, expected whole numbers below {MAX_SIZE:,}")
    return values


def head_sizes(metadata: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(values of K, of V) of one head: in blocks that see the whole text, and in those with a sliding window.

    As llama.cpp reads them (llama-model.cpp, load_hparams): a model whose first block has no heads counts as one
    without attention; of latent attention, the compressed rows are what is kept.
    """

    def number(key: str, default: int) -> int:
        return max(_numbers(metadata, f"attention.{key}", default))

    n_head = _numbers(metadata, "attention.head_count", 0)[0]
    if not n_head:
        return (0, 0), (0, 0)
    head = _numbers(metadata, "embedding_length", 0)[0] // n_head
    k, v = number("key_length", head), number("value_length", head)
    return (k, v), (number("key_length_swa", k), number("value_length_swa", v))


def _heads_of_blocks(metadata: Mapping[str, Any], n_layer: int) -> list[tuple[int, int]]:
    """`head_sizes` of every block; nothing for the last ones, where these take the keys and values of earlier ones.

    Where the header does not say which blocks have a window, each counts with the larger of both sizes.
    """
    whole, windowed = head_sizes(metadata)
    pattern = metadata.get(f"{metadata['general.architecture']}.attention.sliding_window_pattern")
    if isinstance(pattern, list | array) and len(pattern) == n_layer:
        found = [windowed if has_window else whole for has_window in pattern]
    else:
        found = [(max(whole[0], windowed[0]), max(whole[1], windowed[1]))] * n_layer
    n_own = n_layer - max(_numbers(metadata, "attention.shared_kv_layers", 0))
    return [sizes if i < n_own else (0, 0) for i, sizes in enumerate(found)]


def check_kv_type(name: str, metadata: Mapping[str, Any], kv_type: str) -> None:
    """Raises UsageError where llama.cpp can't keep this model's keys and values as `kv_type`.

    It would make no context (llama-context.cpp, llama_init_from_model), after the model was loaded: a quantized type
    takes whole blocks of every head, and flash attention.
    """
    block = GGML_QUANT_SIZES[Type[kv_type.upper()]][0]
    if block == 1:
        return
    arch = metadata["general.architecture"]
    if arch in NO_FLASH_ATTENTION:
        raise UsageError(f"{name}: --kv-type {kv_type} needs flash attention, which {arch} has not; take f16")
    odd = sorted({size for sizes in head_sizes(metadata) for size in sizes if size % block})
    if odd:
        raise UsageError(
            f"{name}: its attention heads have {' and '.join(map(str, odd))} values, which --kv-type {kv_type} can't "
            f"hold (blocks of {block}); take f16"
        )


def _repacked_bytes(tensor: Tensor, repack: Mapping[Type, int]) -> int:
    rows = tensor.shape[1] if len(tensor.shape) > 1 else 0
    fits = rows and not rows % repack.get(tensor.type, rows + 1)
    is_table = tensor.name in ("token_embd.weight", "per_layer_token_embd.weight")
    return tensor.nbytes if fits and not is_table else 0


def row_bytes(kv_type: str, n_values: int) -> int:
    """Bytes of `n_values` in the cache type ("f16", "q8_0", "q4_0"); a part of a block of 32 counts whole."""
    return nbytes(Type[kv_type.upper()], -(-n_values // 32) * 32)


def kv_bytes(shape: Shape, n_ctx: int, kv_type: str, n_states: int = 1) -> list[int]:
    """What each block keeps, in bytes: keys and values of `n_ctx` tokens, or the states of `n_states` sequences."""
    cells = -(-n_ctx // CELL) * CELL
    found = [cells * (row_bytes(kv_type, k) + row_bytes(kv_type, v)) for k, v in shape.kv_values]
    states = shape.states or (0,) * len(found)
    return [n_states * state or kv for state, kv in zip(states, found, strict=True)]


def compute_bytes(
    shape: Shape, n_ctx: int, *, flash_attn: bool = True, n_batch: int = N_UBATCH, n_outputs: int = N_OUTPUTS
) -> int:
    """The compute buffer: activations of one batch, the attention mask, without flash attention all its scores too."""
    n = min(n_batch, n_ctx)
    cells = -(-n_ctx // CELL) * CELL
    feed_forward = 4 * n * (3 * shape.n_ff + 4 * shape.n_embd)
    if shape.n_parts:
        feed_forward += 4 * n * (shape.n_parts + 3 * shape.n_embd)
    masks = 2 * cells * n * shape.n_masks
    logits = 4 * n_outputs * shape.n_vocab
    if flash_attn:
        return max(feed_forward, logits) + masks
    scores = 4 * n * (shape.n_head + 1) * cells + 4 * n * 6 * shape.n_embd
    return max(feed_forward + masks, logits, scores)
