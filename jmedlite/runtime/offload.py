"""Offload plan: what fits this machine, the largest offload and the largest context for a model, from numbers alone.

Every function here is pure: sizes in, a plan out. The sizes come from the model's own header (`shape`), the free memory
from ggml and the system (`hardware`), and where things go from how llama.cpp places them:

- blocks are offloaded from the last one backwards, the output head first of all; the embedding stays in RAM;
- of a mixture, the experts of the first blocks stay in RAM while the rest of these blocks goes to the GPU, since a
  token reads few of them; only where that is not enough do whole blocks stay in RAM;
- for large batches llama.cpp copies what lies in RAM to the first GPU, one weight after the other, and computes there;
- weights that the processor wants in another order take memory of their own, while the mapped file stays resident
  beside them; where that is too much the file is read instead of mapped.

`tools/measure_memory.py` compares the predictions with what a running model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .shape import CELL, DEFAULT_CONTEXT, N_OUTPUTS, N_UBATCH, Shape, compute_bytes, kv_bytes

KEPT, MOST_KEPT = (
    4,
    32,
)  # sequences for each answer that there may be at once, since conversations go on; no more of them
FLOORS = (DEFAULT_CONTEXT, 2048, 1024, 512)  # contexts worth having, the best first
CONTEXTS = (2048, 4096, 8192, 16384, 32768)  # columns of the table
MARGIN = 512 << 20  # of free memory, for the system and for what the formulas don't know
GPU_SHARE = 0.03  # further margin of a GPU's need: drivers round and keep buffers of their own
LARGE_BATCH = 32  # tokens from which on a weight in RAM is copied to the GPU (ggml's back ends, offload_op)
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


def n_sequences(n_lanes: int) -> int:
    """Sequences of a context that gives `n_lanes` answers at once; llama.cpp reserves logits for each of them."""
    return max(n_lanes, min(KEPT * n_lanes, MOST_KEPT))


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
    """How a model is loaded: `n_gpu_layers` counts the output head, `split` the layers of each GPU.

    `n_cpu_moe` is the number of first blocks whose experts stay in RAM wherever the rest of the block is.
    """

    n_gpu_layers: int
    n_layers: int
    n_cpu_moe: int
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
    def n_without_experts(self) -> int:
        """Blocks on a GPU whose experts are in RAM."""
        return max(0, self.n_cpu_moe - max(0, self.n_layers + 1 - self.n_gpu_layers))

    @property
    def short(self) -> list[Need]:
        """The places whose memory does not do."""
        return [need for need in (self.ram, *self.gpus) if need.total and not need.fits]

    def figures(self) -> dict[str, Any]:
        """The plan for machines: JSON-able, sizes in bytes."""
        return {
            "n_gpu_layers": self.n_gpu_layers,
            "n_cpu_moe": self.n_cpu_moe,
            "n_without_experts": self.n_without_experts,
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
            if self.n_without_experts:
                where += f", without the experts of {self.n_without_experts} of them"
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
    n_cpu_moe: int | None = None  # None: as few blocks as must be
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
        return _place(shape, machine, wish, min(most, n_cells * CELL), plan.n_gpu_layers, plan.n_cpu_moe)

    n = largest(lambda n: at(n).fits, -(-plan.n_ctx // CELL), -(-most // CELL))
    return at(n)


def _with_offload(shape: Shape, machine: Machine, wish: Wish, n_ctx: int) -> OffloadPlan:
    """The plan for one context, with the largest offload that fits it (or the one asked for)."""
    layers = range(shape.n_layer + 1, -1, -1)
    if wish.n_gpu_layers is not None or not machine.gpus:
        layers = range(n := min(wish.n_gpu_layers or 0, shape.n_layer + 1), n - 1, -1)
    least, most = 0, shape.n_layer if any(shape.experts) and machine.gpus else 0
    if wish.n_cpu_moe is not None:
        least = most = min(wish.n_cpu_moe, most)
    # all layers with ever fewer experts, then ever fewer layers without any
    pairs = [(layers[0], n_cpu_moe) for n_cpu_moe in range(least, most)] + [(n, most) for n in layers]
    plans = (_place(shape, machine, wish, n_ctx, *pair) for pair in pairs)
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


def _place(shape: Shape, machine: Machine, wish: Wish, n_ctx: int, n_gpu_layers: int, n_cpu_moe: int) -> OffloadPlan:
    """Layers to places: the last `n_gpu_layers` ones go to the GPUs, the roomiest first, what is left to the RAM."""
    if not machine.gpus:
        n_gpu_layers = 0
    kv = [*kv_bytes(shape, n_ctx, wish.kv_type, wish.n_states), 0]
    first = shape.n_layer + 1 - n_gpu_layers
    left = {i: shape.experts[i] for i in range(first, min(n_cpu_moe, shape.n_layer))}  # experts in RAM, by block
    layers = [block - left.get(i, 0) for i, block in enumerate((*shape.blocks, shape.output))]
    compute = compute_bytes(shape, n_ctx, flash_attn=wish.flash_attn, n_batch=wish.n_batch, n_outputs=wish.n_outputs)
    copied = max(
        (0, *shape.largest[: min(first, shape.n_layer)], *(shape.largest_of_experts[i] for i in left))
        if n_gpu_layers and wish.n_batch >= LARGE_BATCH
        else (0,)
    )
    counts = _split(machine.gpus, [layers[i] + kv[i] for i in range(first, len(layers))], compute + copied)
    gpus, at = [], first
    for gpu, n in zip(machine.gpus, counts, strict=True):
        own = slice(at, at + n)
        at += n
        used = compute + copied if n else 0
        driver = DRIVER_BYTES.get(gpu.name.rstrip("0123456789"), 0) if n else 0
        gpus.append(Need(gpu.name, sum(layers[own]), sum(kv[own]), used, 0, gpu.free_bytes, n, driver))
    # an integrated GPU's buffers are taken from the same RAM
    shared = sum(n.total for n, g in zip(gpus, machine.gpus, strict=True) if g.shared)
    ram, loading = _ram(shape, machine.ram_free - shared, wish, first, left, sum(kv[:first]), compute)
    return OffloadPlan(n_gpu_layers, shape.n_layer, n_cpu_moe, counts, n_ctx, wish.kv_type, loading, ram, tuple(gpus))


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


def _ram(
    shape: Shape, free: int, wish: Wish, n_blocks: int, experts: Collection[int], kv: int, compute: int
) -> tuple[Need, str]:
    """RAM for the first `n_blocks` layers and other blocks' `experts`; mapped if what is repacked has room."""
    n = min(n_blocks, shape.n_layer)
    weights = shape.rest + sum(shape.blocks[:n]) + sum(shape.experts[i] for i in experts)
    repacked = sum(shape.repacked[:n]) + sum(shape.experts_repacked[i] for i in experts)
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
