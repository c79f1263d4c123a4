"""The plan: what fits, as arithmetic over shapes of models that nobody here needs to hold."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import GGMLQuantizationType as Type

import jmedlite
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.gguf import Header, Tensor, read_header
from jmedlite.runtime.offload import (
    MAPPED,
    MARGIN,
    READ,
    Gpu,
    Machine,
    OffloadPlan,
    Wish,
    make_offload_plan,
    refusal,
    row_of_plans,
)
from jmedlite.runtime.shape import Shape, check_kv_type, compute_bytes, head_sizes, kv_bytes, repacking, shape_of
from tests.support import builders

GB = 10**9
AVX512 = ("AVX2", "AVX512", "REPACK")
# bits per weight of the linear layers, roughly
LEVELS = {
    "Q2_K": Type.Q2_K, "Q3_K_M": Type.Q3_K, "Q4_K_M": Type.Q4_K, "Q5_K_M": Type.Q5_K, "Q6_K": Type.Q6_K,
    "Q8_0": Type.Q8_0, "BF16": Type.BF16,
}  # fmt: skip


def model(
    type_: Type = Type.Q4_K, *, n_layer: int = 28, n_embd: int = 3584, n_ff: int = 18944, n_head: int = 28,
    n_head_kv: int | list[int] = 4, n_vocab: int = 152064, tied: bool = False, n_ctx: int = 32768, **metadata: Any,
) -> tuple[dict[str, Any], list[Tensor]]:  # fmt: skip
    """Metadata and tensors of a Qwen2-7B, unless told otherwise."""
    kv = n_embd // n_head * (n_head_kv if isinstance(n_head_kv, int) else max(n_head_kv))
    meta = {
        "general.architecture": "qwen2", "qwen2.block_count": n_layer, "qwen2.context_length": n_ctx,
        "qwen2.embedding_length": n_embd, "qwen2.feed_forward_length": n_ff, "qwen2.attention.head_count": n_head,
        "qwen2.attention.head_count_kv": n_head_kv, "tokenizer.ggml.tokens": [b""] * n_vocab, **metadata,
    }  # fmt: skip
    tensors = [Tensor("token_embd.weight", (n_embd, n_vocab), type_), Tensor("output_norm.weight", (n_embd,), Type.F32)]
    if not tied:
        tensors.append(Tensor("output.weight", (n_embd, n_vocab), Type.Q6_K))
    for i in range(n_layer):
        rows = {"attn_q": n_embd, "attn_k": kv, "attn_v": kv, "attn_output": n_embd, "ffn_gate": n_ff, "ffn_up": n_ff}
        tensors += [Tensor(f"blk.{i}.{name}.weight", (n_embd, n), type_) for name, n in rows.items()]
        tensors.append(Tensor(f"blk.{i}.ffn_down.weight", (-(-n_ff // 256) * 256, n_embd), type_))
    return meta, tensors


def shape(*args: Any, features: tuple[str, ...] = (), **kwargs: Any) -> Shape:
    return shape_of(*model(*args, **kwargs), repacking(features))


LLAMA_70B = {"n_layer": 80, "n_embd": 8192, "n_ff": 28672, "n_head": 64, "n_head_kv": 8, "n_vocab": 32000}


def plan(s: Shape, ram: float, *vram: float, **wish: Any) -> OffloadPlan:
    gpus = tuple(Gpu(f"GPU{i}", int(v * GB)) for i, v in enumerate(vram))
    return make_offload_plan(s, Machine(int(ram * GB), gpus), Wish(**wish))


def test_the_key_value_cache_is_counted_by_heads_and_type() -> None:
    s = shape()
    assert sum(kv_bytes(s, 4096, "f16")) == 4096 * 28 * 2 * 512 * 2 == 224 << 20  # as llama.cpp logs it for a Qwen2-7B
    assert sum(kv_bytes(s, 4096, "q8_0")) == 4096 * 28 * 2 * 512 * 34 // 32
    assert sum(kv_bytes(s, 4000, "f16")) == sum(kv_bytes(s, 4096, "f16"))  # cells come in groups of 256
    per_layer = shape(n_layer=2, n_head_kv=[0, 4])
    assert kv_bytes(per_layer, 256, "f16") == [0, 256 * 2 * 512 * 2]
    wide = shape(n_layer=1, **{"qwen2.attention.key_length": 256, "qwen2.attention.value_length": 128})
    assert wide.kv_values == ((4 * 256, 4 * 128),)


@pytest.mark.parametrize(
    ("n_ctx", "flash_attn", "mib"),
    # llama.cpp 0.3.36's log for a Qwen2-7B: "compute buffer size"
    [(512, True, 139.51), (4096, True, 143.01), (32768, True, 171.01), (4096, False, 269.01), (16384, False, 965.01)],
)
def test_the_compute_buffer_is_what_llama_cpp_takes(n_ctx: int, flash_attn: bool, mib: float) -> None:
    found = compute_bytes(shape(), n_ctx, flash_attn=flash_attn) / (1 << 20)
    assert found == pytest.approx(mib, rel=0.01 if flash_attn else 0.1)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("vram", [0, 4, 8, 24])
def test_a_7b_at_every_level(level: str, vram: float) -> None:
    s = shape(LEVELS[level])
    p = plan(s, 32, vram) if vram else plan(s, 32)
    assert p.fits
    if vram == 0:
        assert p.n_gpu_layers == 0
        assert p.n_ctx == s.n_ctx_train
        return
    (gpu,) = p.gpus
    assert gpu.total + MARGIN < vram * GB
    assert p.split == (p.n_gpu_layers,)
    if s.data_bytes + MARGIN + GB < vram * GB:
        assert p.n_gpu_layers == s.n_layer + 1
    if s.data_bytes > vram * GB:
        assert 0 < p.n_gpu_layers < s.n_layer + 1
        # one layer more, or 256 cells more, would be too much
        assert not plan(s, 32, vram, n_gpu_layers=p.n_gpu_layers + 1, n_ctx=4096).fits
    if p.n_ctx < s.n_ctx_train:
        assert not plan(s, 32, vram, n_gpu_layers=p.n_gpu_layers, n_ctx=p.n_ctx + 256).fits


def test_more_memory_never_means_less() -> None:
    s = shape()
    plans = [plan(s, 16, v / 2) for v in range(1, 40)]
    assert all(a.n_gpu_layers <= b.n_gpu_layers for a, b in itertools.pairwise(plans))
    contexts = [plan(s, r / 2).n_ctx for r in range(11, 40)]
    assert contexts == sorted(contexts)
    assert contexts[0] < contexts[-1]


def test_a_70b_on_a_laptop_a_workstation_and_two_gpus() -> None:
    s = shape(**LLAMA_70B, n_ctx=4096)
    assert not plan(s, 16).fits
    assert not plan(s, 16, 24).fits
    assert plan(s, 64).fits
    half = plan(s, 64, 24)
    assert half.fits
    assert 30 < half.n_gpu_layers < 60
    both = plan(s, 16, 24, 24)
    assert both.fits
    assert both.n_gpu_layers == 81
    assert sum(both.split) == 81
    assert all(g.fits for g in both.gpus)


def test_several_gpus() -> None:
    s = shape()
    assert plan(s, 16, 24, 24).split in ((29, 0), (0, 29))  # one is enough
    s = shape(Type.Q8_0)
    mixed = plan(s, 16, 4, 8)
    assert mixed.n_gpu_layers == 29
    assert 0 < mixed.split[0] < mixed.split[1]  # llama.cpp's order of devices, not ours
    assert sum(g.weights for g in mixed.gpus) == sum(s.blocks) + s.output
    assert plan(s, 16, 0.3, 0.3).n_gpu_layers == 0
    shared = make_offload_plan(shape(), Machine(8 * GB, (Gpu("iGPU", 8 * GB, shared=True),)), Wish())
    assert shared.fits
    assert shared.gpus[0].total + shared.ram.total + MARGIN <= 8 * GB + MARGIN


def test_a_tied_head_is_offloaded_as_a_copy_of_the_embedding() -> None:
    tied, untied = shape(tied=True), shape()
    embedding = 3584 * 152064 // 256 * 144
    assert tied.rest == untied.rest == embedding
    assert tied.output == embedding + 4 * 3584
    assert tied.data_bytes == untied.data_bytes - 3584 * 152064 // 256 * 210
    p = plan(tied, 16, 24)
    assert p.gpus[0].weights == sum(tied.blocks) + tied.output
    assert p.ram.weights == embedding


def test_repacked_weights_are_counted_twice_where_mapped_and_read_where_that_is_too_much() -> None:
    assert repacking(AVX512).keys() >= {Type.Q4_K, Type.Q4_0, Type.Q2_K}
    assert not repacking(("AVX2",))
    assert Type.Q6_K in repacking(("NEON", "DOTPROD", "REPACK"))
    s = shape(features=AVX512)
    assert sum(s.repacked) == sum(s.blocks)
    roomy, tight = plan(s, 16, n_ctx=4096), plan(s, 7, n_ctx=4096)
    assert (roomy.loading, tight.loading) == (MAPPED, READ)
    assert roomy.ram.weights == s.data_bytes + sum(s.repacked)
    assert tight.ram.weights == s.data_bytes
    assert tight.fits


def test_wishes_are_kept() -> None:
    s = shape()
    assert plan(s, 16, 24, n_gpu_layers=5).n_gpu_layers == 5
    assert plan(s, 16, 24, n_gpu_layers=999).n_gpu_layers == 29
    assert plan(s, 16, n_gpu_layers=29).n_gpu_layers == 0  # no GPU there
    assert plan(s, 16, n_ctx=5000).n_ctx == 5000
    assert plan(shape(n_ctx=1024), 16).n_ctx == 1024
    small = plan(s, 5.6)
    assert small.n_ctx > plan(s, 5.6, flash_attn=False).n_ctx
    assert small.n_ctx < plan(s, 5.6, kv_type="q8_0").n_ctx


@pytest.mark.parametrize(
    ("ram", "vram", "wish", "words"),
    [
        (5.6, [], {"n_ctx": 32768}, [r"32,768 tokens needs 6\.\d GB of RAM", r"5\.6 GB are free", r"fits: --ctx \d+ "]),
        (4.5, [], {}, [r"fits: the level Q[23]\w+ with a context of up to [\d,]+ tokens"]),
        (1, [], {}, ["no level of it; free memory or take a smaller model"]),
        (16, [4], {"n_gpu_layers": 29}, [r"of GPU0", r"4\.0 GB are free", r"fits: --gpu-layers \d+ "]),
    ],
)
def test_what_can_not_fit_is_refused_with_what_would(
    ram: float, vram: list[float], wish: dict[str, Any], words: list[str]
) -> None:
    s = shape()
    machine = Machine(int(ram * GB), tuple(Gpu(f"GPU{i}", int(v * GB)) for i, v in enumerate(vram)))
    wanted = Wish(**wish)
    levels = {name: shape(LEVELS[name]) for name in reversed(LEVELS)}
    p = make_offload_plan(s, machine, wanted)
    assert not p.fits
    text = refusal("m.gguf", p, s, machine, wanted, levels)
    for word in [*words, r"^m\.gguf", r"\(--force tries all the same\)$"]:
        assert re.search(word, text), text
    if found := re.search(r"--ctx (\d+)", text):
        assert make_offload_plan(s, machine, Wish(n_ctx=int(found[1]))).fits


@pytest.mark.parametrize("value", ["wide", -1, 1 << 31, [], 1.5, [1, "x"]])
@pytest.mark.parametrize(
    "key", ["embedding_length", "attention.head_count_kv", "attention.key_length", "context_length"]
)
def test_sizes_that_are_none(key: str, value: Any) -> None:
    with pytest.raises(DataError, match=f"qwen2.{key} is .*, expected whole numbers"):
        shape(**{f"qwen2.{key}": value})


def test_the_table_has_every_context_that_the_model_knows() -> None:
    machine = Machine(6 * GB)
    row = row_of_plans(shape(), machine, Wish())
    assert [p.n_ctx for p in row] == [2048, 4096, 8192, 16384, 32768]
    assert [p.fits for p in row] == sorted((p.fits for p in row), reverse=True)
    assert {p.fits for p in row} == {True, False}
    assert [p.n_ctx for p in row_of_plans(shape(n_ctx=512), machine, Wish())] == [512]


@pytest.fixture(scope="module")
def logged(tiny_gguf: Path) -> tuple[Header, dict[str, float]]:
    return log_of(tiny_gguf, "KV|compute|model")


def log_of(path: Path, kinds: str) -> tuple[Header, dict[str, float]]:
    """A model's header, and the buffers in MiB that llama.cpp says it takes for a context of 512 tokens."""
    from jmedlite.base.libraries import libllama
    from jmedlite.base.native import capture_log
    from jmedlite.runtime.shape import N_OUTPUTS, N_UBATCH

    lines: list[str] = []
    capture_log(lambda level, text: lines.append(text))
    llama = libllama()
    llama.llama_backend_init()
    loaded = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_outputs_max = 512, N_UBATCH, N_UBATCH, N_OUTPUTS
    params.flash_attn_type = 1
    context = llama.llama_init_from_model(loaded, params)
    llama.llama_free(context)
    llama.llama_model_free(loaded)
    found = re.findall(rf"({kinds}) buffer size = +([\d.]+) MiB", "\n".join(lines))
    return read_header(path), {kind: sum(float(size) for k, size in found if k == kind) for kind, _ in found}


def test_states_take_the_place_of_keys_and_values(tmp_path: Path) -> None:
    """Qwen3.5-9B's shape: 8 of 32 blocks keep keys and values, each of the others 2.2 MB for a sequence."""
    config = {
        "qwen35.block_count": 32, "qwen35.embedding_length": 4096, "qwen35.attention.head_count": 16,
        "qwen35.attention.head_count_kv": 4, "qwen35.attention.key_length": 256, "qwen35.attention.value_length": 256,
        "qwen35.feed_forward_length": 12288, "qwen35.context_length": 32768, "qwen35.ssm.conv_kernel": 4,
        "qwen35.ssm.state_size": 128, "qwen35.ssm.group_count": 16, "qwen35.ssm.inner_size": 4096,
        "general.architecture": "qwen35",
    }  # fmt: skip
    nets = [Tensor(f"blk.{i}.ssm_conv1d.weight", (4, 8192), Type.F32) for i in range(32) if (i + 1) % 4]
    s = shape_of(config, nets, {})
    state = 4 * (3 * 8192 + 128 * 4096)
    assert kv_bytes(s, 4096, "f16", n_states=1) == ([state] * 3 + [4096 * 2 * 1024 * 2]) * 8
    assert kv_bytes(s, 4096, "f16", n_states=8)[0] == 8 * state


@pytest.mark.parametrize(("family", "full"), [("qwen3_5_text", (3,)), ("lfm2", (1, 3))])
def test_the_sizes_of_states_are_those_that_llama_cpp_logs(tmp_path: Path, family: str, full: tuple[int, ...]) -> None:
    builders.checkpoint(tmp_path / "m", family)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["Q8_0"], out=tmp_path, threads=1)
    header, sizes = log_of(path, "KV|RS")
    s = shape_of(header.metadata, header.tensors, {})
    kept = kv_bytes(s, 512, "f16")
    kv = sum(kept[i] for i in full)
    assert kv / (1 << 20) == pytest.approx(sizes["KV"], abs=0.01)
    assert (sum(kept) - kv) / (1 << 20) == pytest.approx(sizes["RS"], abs=0.01)


def test_blocks_that_take_anothers_keys_keep_none(tmp_path: Path) -> None:
    """Gemma 4's: heads of two sizes, and the last two of four blocks without any of their own."""
    builders.checkpoint(tmp_path / "m", "gemma4_text", sliding_window=4096)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["Q8_0"], out=tmp_path, threads=1)
    header, sizes = log_of(path, "KV|compute")
    s = shape_of(header.metadata, header.tensors, {})
    assert s.kv_values == ((128, 128), (256, 256), (0, 0), (0, 0))
    assert sum(kv_bytes(s, 512, "f16")) / (1 << 20) == pytest.approx(sizes["KV"], abs=0.01)
    assert 1 <= compute_bytes(s, 512) / (1 << 20) / sizes["compute"] < 1.5


def test_the_sizes_are_those_that_llama_cpp_logs(logged: tuple[Header, dict[str, float]]) -> None:
    header, sizes = logged
    s = shape_of(header.metadata, header.tensors, {})
    assert sum(kv_bytes(s, 512, "f16")) / (1 << 20) == pytest.approx(sizes["KV"], abs=0.01)
    assert 1 <= compute_bytes(s, 512) / (1 << 20) / sizes["compute"] < 1.25  # never too little
    assert s.data_bytes / (1 << 20) == pytest.approx(sizes["model"], abs=0.01)
    assert s.data_bytes == sum(t.nbytes for t in header.tensors)
    assert math.isclose(sum(t.n_elements for t in header.tensors), header.n_weights)


@pytest.mark.parametrize(
    ("metadata", "sizes"),
    [
        ({}, ((128, 128), (128, 128))),
        ({"head_count": [32, 28]}, ((112, 112), (112, 112))),  # the first block's, as llama.cpp has it
        ({"head_count": 0}, ((0, 0), (0, 0))),  # no attention
        ({"key_length": 96}, ((96, 128), (96, 128))),
        ({"key_length": 576, "value_length": 512, "key_length_mla": 192, "value_length_mla": 128}, ((576, 512),) * 2),
        ({"key_length_swa": 80, "value_length_swa": 64}, ((128, 128), (80, 64))),
    ],
)
def test_head_sizes_are_those_that_llama_cpp_reads(metadata: dict[str, Any], sizes: Any) -> None:
    found = model(**{f"qwen2.attention.{key}": value for key, value in metadata.items()})[0]
    assert head_sizes(found) == sizes


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"key_length": 80}, "have 80 values"),
        ({"value_length": 72}, "have 72 values"),
        ({"key_length": 48, "value_length": 40}, "have 40 and 48 values"),
        ({"key_length_swa": 80}, "have 80 values"),
        ({"head_count": 64}, "have 56 values"),
    ],
)
def test_heads_that_a_quantized_cache_cannot_hold(metadata: dict[str, Any], named: str) -> None:
    found = model(**{f"qwen2.attention.{key}": value for key, value in metadata.items()})[0]
    for kv_type in ("q8_0", "q4_0"):
        with pytest.raises(UsageError, match=rf"m\.gguf: .*{named}, which --kv-type {kv_type} can't hold"):
            check_kv_type("m.gguf", found, kv_type)
    for kv_type in ("f16", "f32"):
        check_kv_type("m.gguf", found, kv_type)


def test_a_quantized_cache_needs_flash_attention() -> None:
    found = {k.replace("qwen2", "grok"): v for k, v in model()[0].items()} | {"general.architecture": "grok"}
    with pytest.raises(UsageError, match="which grok has not"):
        check_kv_type("m.gguf", found, "q8_0")


def test_the_driver_s_own_memory_is_told_apart() -> None:
    """It is taken when free memory is asked for: counted in no total, shown by name."""
    for name, driver in (("CUDA0", 600_000_000), ("Vulkan0", 0)):
        machine = Machine(64 * GB, (Gpu(name, 24 * GB), Gpu("CUDA1", 2 * GB)))
        found = make_offload_plan(shape(), machine, Wish())
        _, gpu, unused = found.figures()["places"]
        assert (gpu["driver"], unused["driver"]) == (driver, 0)
        assert gpu["total"] == gpu["weights"] + gpu["kv"] + gpu["compute"]
        assert ("(its driver has 0.6 GB)" in found.sentence()) is bool(driver)


def mixture(n_layer: int = 48, n_expert: int = 128, **changes: Any) -> Shape:
    """A Qwen3-30B-A3B at 4 bits."""
    sizes = {"n_embd": 2048, "n_ff": 6144, "n_head": 32, "n_vocab": 151936, **changes}
    meta, tensors = model(n_layer=n_layer, n_ctx=32768, **sizes)
    dense = [t for t in tensors if "ffn_" not in t.name]
    experts = [
        Tensor(f"blk.{i}.ffn_{name}_exps.weight", (*rows, n_expert), Type.Q4_K)
        for i in range(n_layer) for name, rows in (("gate", (2048, 768)), ("up", (2048, 768)), ("down", (768, 2048)))
    ]  # fmt: skip
    counts = {"qwen2.expert_count": n_expert, "qwen2.expert_used_count": 8, "qwen2.expert_feed_forward_length": 768}
    return shape_of({**meta, **counts, "qwen2.feed_forward_length": 6144}, [*dense, *experts], {})


def test_experts_stay_in_ram_before_whole_blocks_do() -> None:
    s = mixture()
    assert sum(s.experts) > 0.8 * s.data_bytes
    plans = [plan(s, 64, vram, n_ctx=8192) for vram in (3, 6, 12, 24)]
    assert all(p.fits and p.n_gpu_layers == 49 for p in plans)
    assert [p.n_without_experts for p in plans] == sorted((p.n_without_experts for p in plans), reverse=True)
    assert plans[0].n_without_experts > plans[2].n_without_experts > plans[3].n_without_experts == 0
    for p in plans:
        assert p.ram.weights == s.rest + sum(s.experts[: p.n_cpu_moe])
        assert p.ram.weights + p.gpus[0].weights == s.data_bytes
        if p.n_cpu_moe:  # the experts of one block more would be too much
            assert not plan(s, 64, p.gpus[0].free / GB, n_gpu_layers=49, n_cpu_moe=p.n_cpu_moe - 1, n_ctx=8192).fits
    assert "49 of 49 layers on GPU0" in plans[1].sentence()
    assert f", without the experts of {plans[1].n_without_experts} of them;" in plans[1].sentence()
    small = plan(s, 64, 1.5, n_ctx=8192)  # not even without any experts
    assert small.fits
    assert 0 < small.n_gpu_layers < 49
    assert small.n_without_experts == small.n_gpu_layers - 1
    assert plan(s, 64, 1.5, n_ctx=8192, n_gpu_layers=small.n_gpu_layers + 1).fits is False


def test_wishes_for_experts_are_kept() -> None:
    s = mixture()
    assert plan(s, 64, 24, n_cpu_moe=7).n_without_experts == 7
    assert plan(s, 64, 24, n_cpu_moe=999).n_without_experts == 48
    assert plan(s, 64, 24, n_cpu_moe=7, n_gpu_layers=10).n_without_experts == 0  # the last nine blocks have theirs
    assert plan(s, 64, 24, n_cpu_moe=40, n_gpu_layers=10).n_without_experts == 1
    assert plan(s, 64, n_cpu_moe=7).n_without_experts == 0  # no GPU there
    assert plan(shape(), 16, 4, n_cpu_moe=7).n_without_experts == 0  # no experts
    assert plan(s, 64, 24, 24).n_without_experts == 0
    both = plan(s, 64, 6, 6, n_ctx=8192)
    assert both.fits
    assert both.n_gpu_layers == sum(both.split) == 49
    assert 0 < both.n_without_experts < plan(s, 64, 6, n_ctx=8192).n_without_experts


def test_what_is_copied_to_the_gpu_for_large_batches_is_counted() -> None:
    s = mixture()
    whole, part = plan(s, 64, 24, n_ctx=4096), plan(s, 64, 24, n_ctx=4096, n_cpu_moe=1)
    assert part.gpus[0].compute - whole.gpus[0].compute == 2048 * 768 * 128 // 256 * 144
    single = plan(s, 64, 24, n_ctx=4096, n_cpu_moe=1, n_batch=16)
    assert single.gpus[0].compute < whole.gpus[0].compute
    dense = shape()
    difference = plan(dense, 16, 4, n_ctx=4096).gpus[0].compute - plan(dense, 16, 24, n_ctx=4096).gpus[0].compute
    assert difference == 3584 * 18944 // 256 * 144


def test_larger_batches_are_planned_for() -> None:
    """Their activations and logits lie on the GPU: where it is full, layers give way to them."""
    machine = Machine(64 * GB, (Gpu("CUDA0", 24 * GB),))
    small, large = (
        make_offload_plan(shape(), machine, Wish(n_ctx=4096, n_batch=n, n_outputs=n // 8)) for n in (512, 2048)
    )
    assert small.n_gpu_layers == large.n_gpu_layers == 29
    # 2048 tokens of a Qwen2-7B: three times the feed-forward, four times the stream, and the mask in half precision
    assert large.gpus[0].compute == 4 * 2048 * (3 * 18944 + 4 * 3584) + 2 * 4096 * 2048
    assert large.gpus[0].compute == pytest.approx(4 * small.gpus[0].compute)
    full = replace(machine, gpus=(Gpu("CUDA0", small.gpus[0].total + small.gpus[0].margin),))
    fewer = make_offload_plan(shape(), full, Wish(n_ctx=4096, n_batch=2048, n_outputs=256))
    assert fewer.fits
    assert 20 < fewer.n_gpu_layers < 29
