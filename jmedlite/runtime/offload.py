"""Offload plan: what fits this machine, the largest offload and the largest context for a model, from numbers alone.

Every function here is pure: sizes in, a plan out. The sizes come from the model's own header, the free memory from ggml
and the system (`hardware`), and the formulas from how llama.cpp lays out its buffers:

- blocks are offloaded from the last one backwards, the output head first of all; the embedding stays in RAM;
- the key-value cache has `n_ctx` cells in every block, each on the device of its block;
- a compute buffer is as large as the widest moment of the graph for one batch (N_UBATCH tokens, unless wished for);
- some types are rewritten at load in the order that the processor's instructions want, into memory of their own, while
  the mapped file stays resident beside them; where that is too much the file is read instead of mapped.

`tools/measure_memory.py` compares the predictions with what a running model takes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.gguf import EXACT_CONTEXT, Tensor, nbytes

N_UBATCH = 512  # tokens evaluated at once
N_OUTPUTS = 32  # tokens of one batch whose logits are kept
CELL = 256  # llama.cpp rounds n_ctx up to a multiple of this
KEPT, MOST_KEPT = (
    4,
    32,
)  # sequences for each answer that there may be at once, since conversations go on; no more of them
FLOORS = (4096, 2048, 1024, 512)  # contexts worth having, the best first
CONTEXTS = (2048, 4096, 8192, 16384, 32768)  # columns of the table
MARGIN = 512 << 20  # of free memory, for the system and for what the formulas don't know
GPU_SHARE = 0.03  # further margin of a GPU's need: drivers round and keep buffers of their own
MAX_SIZE = 1 << 31
NO_FLASH_ATTENTION = ("grok",)  # llama.cpp turns it off, whatever is asked for
MAPPED, READ = "mapped", "read"

# Measured: both processes of jmedlite with their libraries, and what they and llama.cpp keep of the vocabulary.
PROCESS_BYTES = 92_000_000
TOKEN_BYTES = 420
# Measured on an H100 on 2026-11-27: what CUDA's driver takes of a GPU for a process, besides all buffers. It is taken
# as soon as free memory is asked for, so it is neither in what is free nor in a plan's total. Others: not measured.
DRIVER_BYTES = {"CUDA": 600_000_000}


@dataclass(frozen=True)
class Gpu:
    """A device that llama.cpp can offload to, in the order of ggml's registry."""

    name: str
    free_bytes: int
    shared: bool = False  # its memory is the RAM


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


def n_sequences(n_lanes: int) -> int:
    """Sequences of a context that gives `n_lanes` answers at once; llama.cpp reserves logits for each of them."""
    return max(n_lanes, min(KEPT * n_lanes, MOST_KEPT))


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
    experts = number("expert_feed_forward_length") * number("expert_used_count", 1)
    heads_kv = _numbers(metadata, "attention.head_count_kv", n_head)
    heads_kv = (heads_kv + [heads_kv[-1]] * n_layer)[:n_layer]
    blocks, repacked = [0] * n_layer, [0] * n_layer
    output = output_repacked = rest = 0
    tied = not any(t.name == "output.weight" for t in tensors)
    for t in tensors:
        again = _repacked_bytes(t, repack)
        kind, _, index = t.name.partition(".")
        index = index.partition(".")[0]
        if kind == "blk" and index.isdecimal() and int(index) < n_layer:
            blocks[int(index)] += t.nbytes
            repacked[int(index)] += again
        elif kind in ("output", "output_norm"):
            output += t.nbytes
            output_repacked += again
        else:
            rest += t.nbytes
    head_copy = sum(t.nbytes for t in tensors if tied and t.name == "token_embd.weight")
    return Shape(
        n_ctx_train=min(number("context_length", FLOORS[0]), metadata.get(EXACT_CONTEXT, MAX_SIZE)),
        n_vocab=len(metadata.get("tokenizer.ggml.tokens") or []),
        n_embd=n_embd,
        n_ff=max(number("feed_forward_length"), experts),
        n_head=n_head,
        kv_values=tuple(
            (k * h, v * h) for h, (k, v) in zip(heads_kv, _heads_of_blocks(metadata, n_layer), strict=True)
        ),
        blocks=tuple(blocks),
        repacked=tuple(repacked),
        output=output + head_copy,
        output_repacked=output_repacked,
        output_own=output,
        rest=rest,
        states=_states(metadata, tensors, n_layer),
        n_parts=n_layer * number("embedding_length_per_layer_input"),
        n_masks=2 if number("attention.sliding_window") else 1,
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


@dataclass(frozen=True)
class Need:
    """What one place must hold, in bytes."""

    place: str
    weights: int
    kv: int
    compute: int
    other: int
    free: int
    n_layers: int
    driver: int = 0  # what a GPU's driver has taken already, of neither `free` nor `total`

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute + self.other

    @property
    def margin(self) -> int:
        return MARGIN if self.place == "RAM" else MARGIN + int(GPU_SHARE * self.total)

    @property
    def fits(self) -> bool:
        return self.total + self.margin <= self.free


@dataclass(frozen=True)
class OffloadPlan:
    """How a model is loaded: `n_gpu_layers` counts the output head, `split` the layers of each GPU."""

    n_gpu_layers: int
    n_layers: int
    split: tuple[int, ...]
    n_ctx: int
    kv_type: str
    loading: str  # MAPPED or READ
    ram: Need
    gpus: tuple[Need, ...] = ()

    @property
    def fits(self) -> bool:
        return not self.short

    @property
    def short(self) -> list[Need]:
        """The places whose memory does not do."""
        return [need for need in (self.ram, *self.gpus) if need.total and not need.fits]

    def figures(self) -> dict[str, Any]:
        """The plan for machines: JSON-able, sizes in bytes."""
        return {
            "n_gpu_layers": self.n_gpu_layers,
            "n_layers": self.n_layers,
            "n_ctx": self.n_ctx,
            "kv_type": self.kv_type,
            "loading": self.loading,
            "fits": self.fits,
            "places": [{**asdict(need), "total": need.total} for need in (self.ram, *self.gpus)],
        }

    def sentence(self, *, grows: bool = False) -> str:
        """The plan in one line; `grows`: the context is the longest there may be, not what is taken at once."""
        where = "on the processor"
        if self.n_gpu_layers:
            places = ", ".join(
                f"{g.place} {_gb(g.total)} of {_gb(g.free)}" + f" (its driver has {_gb(g.driver)})" * bool(g.driver)
                for g in self.gpus
                if g.n_layers
            )
            where = f"{self.n_gpu_layers} of {self.n_layers + 1} layers on {places}"
        return (
            f"{where}; context {'up to ' if grows else ''}{self.n_ctx:,} tokens ({self.kv_type}); "
            f"RAM {_gb(self.ram.total)} of {_gb(self.ram.free)} available"
        )


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"


@dataclass(frozen=True)
class Machine:
    """Memory that can be had now, in bytes."""

    ram_free: int
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Wish:
    """What the person asked for; None means as much as fits."""

    n_gpu_layers: int | None = None
    n_ctx: int | None = None
    kv_type: str = "f16"
    flash_attn: bool = True
    n_batch: int = N_UBATCH
    n_outputs: int = N_OUTPUTS
    n_states: int = 1  # sequences at once, of a model that keeps a state for each
    extra: int = 0  # adapters, a draft model: bytes of RAM


def make_offload_plan(shape: Shape, machine: Machine, wish: Wish) -> OffloadPlan:
    """The largest offload, and with it the largest context, that fit; look at `fits` before loading.

    A context of the first of FLOORS that fits anywhere counts more than offload, offload more than a longer context.
    """
    if wish.n_ctx is not None:
        return _with_offload(shape, machine, wish, wish.n_ctx)
    most = max(1, shape.n_ctx_train)
    floors = list(dict.fromkeys(min(f, most) for f in FLOORS))
    plan = None
    for floor in floors:
        plan = _with_offload(shape, machine, wish, floor)
        if plan.fits:
            break
    assert plan is not None
    if not plan.fits:
        return plan

    def at(n_cells: int) -> OffloadPlan:
        return _place(shape, machine, wish, min(most, n_cells * CELL), plan.n_gpu_layers)

    n = largest(lambda n: at(n).fits, -(-plan.n_ctx // CELL), -(-most // CELL))
    return at(n)


def _with_offload(shape: Shape, machine: Machine, wish: Wish, n_ctx: int) -> OffloadPlan:
    """The plan for one context, with the largest offload that fits it (or the one asked for)."""
    if wish.n_gpu_layers is not None or not machine.gpus:
        return _place(shape, machine, wish, n_ctx, min(wish.n_gpu_layers or 0, shape.n_layer + 1))
    plans = (_place(shape, machine, wish, n_ctx, n) for n in range(shape.n_layer + 1, -1, -1))
    plan = next(plans)
    for other in plans:
        if plan.fits:
            break
        plan = other
    return plan


def largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest n in [low, high] that fits, where every smaller one does too and `low` is known to."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _place(shape: Shape, machine: Machine, wish: Wish, n_ctx: int, n_gpu_layers: int) -> OffloadPlan:
    """Layers to places: the last `n_gpu_layers` ones go to the GPUs, the roomiest first, what is left to the RAM."""
    if not machine.gpus:
        n_gpu_layers = 0
    kv = [*kv_bytes(shape, n_ctx, wish.kv_type, wish.n_states), 0]
    layers = [*shape.blocks, shape.output]
    compute = compute_bytes(shape, n_ctx, flash_attn=wish.flash_attn, n_batch=wish.n_batch, n_outputs=wish.n_outputs)
    first = len(layers) - n_gpu_layers
    counts = _split(machine.gpus, [layers[i] + kv[i] for i in range(first, len(layers))], compute)
    gpus, at = [], first
    for gpu, n in zip(machine.gpus, counts, strict=True):
        own = slice(at, at + n)
        at += n
        used = compute if n else 0
        driver = DRIVER_BYTES.get(gpu.name.rstrip("0123456789"), 0) if n else 0
        gpus.append(Need(gpu.name, sum(layers[own]), sum(kv[own]), used, 0, gpu.free_bytes, n, driver))
    # an integrated GPU's buffers are taken from the same RAM
    shared = sum(n.total for n, g in zip(gpus, machine.gpus, strict=True) if g.shared)
    ram, loading = _ram(shape, machine.ram_free - shared, wish, first, sum(kv[:first]), compute)
    return OffloadPlan(n_gpu_layers, shape.n_layer, counts, n_ctx, wish.kv_type, loading, ram, tuple(gpus))


def _split(gpus: Sequence[Gpu], layers: Sequence[int], compute: int) -> tuple[int, ...]:
    """How many of `layers` (bytes, in order) each GPU takes: the roomiest are filled first, the last takes the rest."""
    counts = [0] * len(gpus)
    order = sorted(range(len(gpus)), key=lambda i: -gpus[i].free_bytes)
    used: list[int] = []
    for k in range(1, len(order) + 1):  # the fewest devices that hold them
        used = sorted(order[:k])
        counts, at = [0] * len(gpus), 0
        for i in used:
            need = Need(gpus[i].name, 0, 0, compute, 0, gpus[i].free_bytes, 0)
            room = int((need.free - MARGIN) / (1 + GPU_SHARE)) - compute
            while at < len(layers) and layers[at] <= room:
                room -= layers[at]
                counts[i] += 1
                at += 1
        if at == len(layers):
            return tuple(counts)
    if used:
        counts[used[-1]] += len(layers) - sum(counts)
    return tuple(counts)


def _ram(shape: Shape, free: int, wish: Wish, n_blocks: int, kv: int, compute: int) -> tuple[Need, str]:
    """RAM for the first `n_blocks` layers, mapped where there is room for the repacked ones beside the file."""
    n = min(n_blocks, shape.n_layer)
    weights = shape.rest + sum(shape.blocks[:n])
    repacked = sum(shape.repacked[:n])
    if n_blocks > shape.n_layer:
        weights += shape.output_own
        repacked += shape.output_repacked
    logits = 4 * shape.n_vocab
    other = PROCESS_BYTES + TOKEN_BYTES * shape.n_vocab + logits + wish.extra

    def need(loaded: int) -> Need:
        return Need("RAM", loaded, kv, compute, other, free, n_blocks)

    mapped = need(weights + repacked)
    return (mapped, MAPPED) if mapped.fits else (need(weights), READ)


def refusal(
    name: str, plan: OffloadPlan, shape: Shape, machine: Machine, wish: Wish, levels: Mapping[str, Shape]
) -> str:
    """Why a model can't be loaded as asked, in numbers, and what would fit; `levels` from the widest down."""
    short = plan.short[0]
    what = (
        " or ".join(_ways(plan, shape, machine, wish, levels)) or "no level of it; free memory or take a smaller model"
    )
    return (
        f"{name} with a context of {plan.n_ctx:,} tokens needs {_gb(short.total)} of {short.place} "
        f"({_gb(short.weights)} weights, {_gb(short.kv)} cache) and a margin of {_gb(short.margin)}, "
        f"{_gb(short.free)} are free; what fits: {what} "
        "(--force tries all the same)"
    )


def _ways(plan: OffloadPlan, shape: Shape, machine: Machine, wish: Wish, levels: Mapping[str, Shape]) -> list[str]:
    ways = []
    if wish.n_gpu_layers:
        other = make_offload_plan(shape, machine, replace(wish, n_gpu_layers=None))
        ways += [f"--gpu-layers {other.n_gpu_layers}"] if other.fits else []
    other = make_offload_plan(shape, machine, replace(wish, n_ctx=None))
    if other.fits and other.n_ctx < plan.n_ctx:
        ways.append(f"--ctx {other.n_ctx}")
    for level, narrower in levels.items():
        if ways or narrower.data_bytes >= shape.data_bytes:
            continue
        other = make_offload_plan(narrower, machine, replace(wish, n_gpu_layers=None, n_ctx=None))
        ways += [f"the level {level} with a context of up to {other.n_ctx:,} tokens"] if other.fits else []
    return ways


def row_of_plans(shape: Shape, machine: Machine, wish: Wish) -> list[OffloadPlan]:
    """One plan for every context of CONTEXTS that the model was trained for: a row of the table."""
    wanted = [n for n in CONTEXTS if n <= shape.n_ctx_train] or [shape.n_ctx_train]
    return [make_offload_plan(shape, machine, replace(wish, n_ctx=n)) for n in wanted]
