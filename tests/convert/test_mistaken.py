"""What is given by mistake, or damaged on its way here: the refusal says what it is, and what to give instead."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import jmedlite
from jmedlite.api.quantize import export_adapters
from jmedlite.base.errors import DataError, InputMissing, JmedliteError, NotPermitted
from jmedlite.base.gguf import read_header
from jmedlite.base.hub import resolve
from jmedlite.base.inputs import check_links, read_json
from jmedlite.convert.adapters.peft import find_weights
from jmedlite.convert.metadata.sentencepiece import read_sentencepiece
from jmedlite.convert.planning import assemble
from jmedlite.convert.sources.checkpoint import Checkpoint, read_weights
from jmedlite.convert.sources.checkpoint_model import CheckpointModel
from jmedlite.convert.sources.tensors import Files
from tests.support import builders

Q0 = "model.layers.0.self_attn.q_proj"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def refused(call: Callable[[], Any], *words: str, kind: type[JmedliteError] = InputMissing) -> None:
    with pytest.raises(JmedliteError) as caught:
        call()
    assert type(caught.value) is kind, caught.value
    for word in words:
        assert word in str(caught.value)


def touch(folder: Path, *files: str, content: str = "{}") -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)
    return folder


# ------------------------------------------------------------------------------------------------------------ folders

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
MODEL = ("config.json", "model.safetensors")
MODELS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "an adapter": (ADAPTER, ["is an adapter", "--lora"]),
    "an adapter with a config.json": ((*ADAPTER, "config.json"), ["is an adapter", "--lora"]),
    "an MLX adapter": (("adapter_config.json", "adapters.safetensors"), ["is an adapter"]),
    "training checkpoints": (
        tuple(f"checkpoint-{n}/{f}" for n in (500, 1000, 90) for f in MODEL),
        ["training checkpoints", "newest", "f/checkpoint-1000"],
    ),
    "training checkpoints of an adapter": (
        tuple(f"checkpoint-{n}/{f}" for n in (9, 10) for f in ADAPTER),
        ["training checkpoints", "with --lora", "f/checkpoint-10"],
    ),
    "training checkpoints, the last one cut": (
        (*(f"checkpoint-5/{f}" for f in MODEL), "checkpoint-10/optimizer.pt"), ["newest is", "f/checkpoint-5"],
    ),
    "several models": (tuple(f"{m}/{f}" for m in ("a", "b") for f in MODEL), ["models a, b", "give one", "f/a"]),
    "DeepSpeed's": (("config.json", "zero_to_fp32.py", "global_step5/x_optim_states.pt"), ["DeepSpeed", "join them"]),
    "FSDP's": (("config.json", "pytorch_model_fsdp_0/__0_0.distcp"), ["FSDP", "merge-weights"]),
    "Meta's": (("params.json", "consolidated.00.pth"), ["Meta's own format", "transformers"]),
    "Mistral's": (("params.json", "consolidated.safetensors", "tekken.json"), ["Mistral's own format"]),
    "an unfinished download": (("config.json", "a.incomplete"), ["not downloaded to its end", "a.incomplete"]),
    "unfinished by the Hub's client": (
        ("config.json", ".cache/huggingface/download/x.incomplete"), ["not downloaded to its end", "x.incomplete"],
    ),
    "a GGUF": (("m-Q8_0.gguf",), ["GGUF files", "m-Q8_0.gguf"]),
    "shards without an index": (("config.json", "model-00001-of-00002.safetensors"), ["one file of several", "index"]),
    "another name": (("config.json", "weights.safetensors"), ["weights.safetensors has another name"]),
    "nothing": (("notes.txt",), ["config.json: no such file"]),
}  # fmt: skip


@pytest.mark.parametrize("what", MODELS)
def test_folder_that_is_no_model(tmp_path: Path, what: str) -> None:
    files, words = MODELS[what]
    refused(lambda: Checkpoint(touch(tmp_path / "f", *files)), *words)


def test_adapter_as_the_model_names_its_base(tmp_path: Path) -> None:
    touch(tmp_path / "f", *ADAPTER, content='{"base_model_name_or_path": "Qwen/Qwen2-7B"}')
    refused(lambda: Checkpoint(tmp_path / "f"), "(Qwen/Qwen2-7B)", f"--lora {tmp_path / 'f'}")


ADAPTERS: dict[str, tuple[tuple[str, ...], str, list[str]]] = {
    "a model": (MODEL, "{}", ["is a model, not an adapter", "as the model"]),
    "MLX": (("adapter_config.json",), '{"lora_parameters": {}}', ["MLX", "adapters.safetensors"]),
    "MLX by its file": (("adapters.safetensors",), "{}", ["MLX", "adapter_config.json"]),
    "training checkpoints": (
        tuple(f"checkpoint-{n}/{f}" for n in (2, 10) for f in ADAPTER), "{}", ["newest is --lora", "checkpoint-10"],
    ),
    "several adapters": (tuple(f"{m}/{f}" for m in "ab" for f in ADAPTER), "{}", ["adapters a, b"]),
    "unfinished": (("adapter_config.json", "x.incomplete"), "{}", ["not downloaded to its end"]),
    "without weights": (("adapter_config.json",), "{}", ["neither adapter_model.safetensors nor"]),
}  # fmt: skip


@pytest.mark.parametrize("what", ADAPTERS)
def test_folder_that_is_no_adapter(tmp_path: Path, what: str) -> None:
    files, content, words = ADAPTERS[what]
    refused(lambda: find_weights(touch(tmp_path / "f", *files, content=content)), *words)


# -------------------------------------------------------------------------------------------------- quantized weights

QUANTIZED: dict[str, tuple[tuple[str, ...], str, str]] = {
    "MLX": (("scales", "biases"), "", "MLX"),
    "GPTQ": (("qweight", "qzeros", "g_idx"), "", "GPTQ"),
    "AutoGPTQ": (("qweight",), "quantize_config.json", "GPTQ"),
    "AWQ": (("qweight", "qzeros"), "", "AWQ"),
    "AutoAWQ": (("qweight",), "quant_config.json", "AWQ"),
    "NF4": (("weight", "weight.absmax", "weight.quant_map"), "", "bitsandbytes"),
    "INT8": (("weight", "SCB"), "", "bitsandbytes"),
    "HQQ": (("W_q", "meta"), "", "HQQ"),
    "AQLM": (("codes", "codebooks"), "", "AQLM"),
    "EXL2": (("q_weight", "q_scale"), "", "EXL2"),
    "compressed-tensors": (("weight_packed", "weight_scale"), "", "compressed-tensors"),
    "FP8, fbgemm": (("weight", "weight_scale"), "", "FP8"),
    "FP8, DeepSeek": (("weight", "weight_scale_inv"), "", "FP8"),
}


@pytest.mark.parametrize("method", QUANTIZED)
def test_quantized_weights_by_their_tensors(tmp_path: Path, method: str) -> None:
    leaves, file, word = QUANTIZED[method]
    tensors = {f"{Q0}.{leaf}": np.zeros((4, 4), np.float32) for leaf in leaves}
    builders.checkpoint(tmp_path / "m", tensors=tensors, _name_or_path="Qwen/Qwen2-7B")
    if file:
        touch(tmp_path / "m", file)
    said = ("is quantized already", word, Q0, "original checkpoint, Qwen/Qwen2-7B")
    refused(lambda: CheckpointModel(tmp_path / "m", Files()), *said, kind=DataError)


def test_original_of_a_quantized_model_by_its_card(tmp_path: Path) -> None:
    tensors = {f"{Q0}.weight.absmax": np.zeros((4, 4), np.float32)}
    builders.checkpoint(tmp_path / "m", tensors=tensors, _name_or_path="unsloth/Qwen2-7B-bnb-4bit")
    refused(lambda: CheckpointModel(tmp_path / "m", Files()), "give the original checkpoint", kind=DataError)
    (tmp_path / "m" / "README.md").write_text("---\nbase_model:\n- Qwen/Qwen2-7B\n---\n")
    refused(lambda: CheckpointModel(tmp_path / "m", Files()), "checkpoint, Qwen/Qwen2-7B", kind=DataError)


def test_quantized_weights_by_their_type(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", tensors={})
    header = {f"{Q0}.weight": {"dtype": "F8_E4M3", "shape": [4, 2], "data_offsets": [0, 8]}}
    builders.write_safetensors(tmp_path / "m" / "model.safetensors", {"x": np.zeros(2, np.float32)}, "F32", header)
    refused(lambda: CheckpointModel(tmp_path / "m", Files()), "is quantized already", "F8_E4M3", kind=DataError)


# --------------------------------------------------------------------------------------------------------- stand-ins


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty", "download"]),
        (POINTER, ["Git LFS pointer", "git lfs pull"]),
        (b"<!DOCTYPE html><html>", ["web page"]),
        (b"\n <html lang=ja>", ["web page"]),
    ],
    ids=["empty", "pointer", "page", "another page"],
)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model.safetensors", read_weights),
        ("pytorch_model.bin", read_weights),
        ("config.json", read_json),
        ("tokenizer.model", read_sentencepiece),
        ("m.gguf", read_header),
    ],
)
def test_what_a_failed_download_leaves(
    tmp_path: Path, name: str, read: Callable[[Path], Any], content: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(lambda: read(tmp_path / name), name, *(words[:1] if name == "m.gguf" else words), kind=DataError)


def test_index_that_names_a_tensor_twice(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", shards=2)
    index = tmp_path / "m" / "model.safetensors.index.json"
    text = index.read_text()
    first = json.loads(text)["weight_map"]["model.norm.weight"]
    index.write_text(text.replace('"weight_map": {', f'"weight_map": {{"model.norm.weight": "{first}", '))
    assert Checkpoint(tmp_path / "m").tensors  # twice the same
    index.write_text(text.replace('"weight_map": {', '"weight_map": {"model.norm.weight": "other.safetensors", '))
    refused(lambda: Checkpoint(tmp_path / "m"), "model.norm.weight", "twice", "other.safetensors", kind=DataError)


def test_json_in_utf_16_and_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes('\ufeff{"a": "薬"}'.encode())
    assert read_json(path) == {"a": "薬"}
    for encoding in ("utf-16", "utf-16-be"):
        path.write_text("\ufeff{}", encoding=encoding)
        refused(lambda: read_json(path), "config.json: is UTF-16", "UTF-8", kind=DataError)


# -------------------------------------------------------------------------------------------------------------- links


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A checkpoint whose weights are a link into a store beside it."""
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "store").mkdir()
    link(tmp_path / "m" / "model.safetensors", tmp_path / "store" / "blob")
    return tmp_path / "m"


def link(path: Path, target: Path) -> None:
    path.rename(target)
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system makes no symbolic links for this user")


def test_links_to_files_of_ones_own_are_followed(linked: Path, tmp_path: Path) -> None:
    link(linked / "tokenizer.json", tmp_path / "store" / "tokenizer")
    builders.adapter(tmp_path / "a", builders.weights(json.loads((linked / "config.json").read_text())))
    link(tmp_path / "a" / "adapter_model.safetensors", tmp_path / "store" / "adapter")
    check_links(linked)
    check_links(tmp_path / "a")
    assert len(assemble(linked, adapters=[(tmp_path / "a", 1.0)]).adapters[0].updates) == 4


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system's files have no owners")
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "adapter_config.json"])
def test_link_to_a_file_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: Path, file: str
) -> None:
    foreign = tmp_path / "store" / "blob"
    if file != "model.safetensors":
        foreign = tmp_path / "store" / "other"
        link(touch(linked, file) / file, foreign)
    real = Path.stat
    owned = SimpleNamespace(st_mode=real(foreign).st_mode, st_uid=4321)
    monkeypatch.setattr(Path, "stat", lambda path, **how: owned if path == foreign else real(path, **how))
    refused(lambda: check_links(linked), file, "another user (4321)", "--follow-links", kind=NotPermitted)
    refused(lambda: resolve(str(linked)), "--follow-links", kind=NotPermitted)
    assert resolve(str(linked), follow_links=True).path == linked
    monkeypatch.setattr(Path, "lstat", lambda path: owned)  # whoever made the link may show what is theirs
    check_links(linked)


def test_links_that_lead_to_no_file(linked: Path, tmp_path: Path) -> None:
    (tmp_path / "store" / "blob").unlink()
    refused(lambda: check_links(linked), "model.safetensors", "which is not there")
    refused(lambda: jmedlite.quantize(linked, out=tmp_path), "which is not there")
    (tmp_path / "store" / "blob").mkdir()
    refused(lambda: check_links(linked), "model.safetensors", "not a regular file")


def test_other_links_do_not_matter(linked: Path, tmp_path: Path) -> None:
    (linked / "latest").symlink_to(tmp_path / "nowhere")
    check_links(linked)


# --------------------------------------------------------------------------------------------- adapters without effect


@pytest.mark.parametrize(
    ("factor", "config", "weight", "words"),
    [
        (0, {}, 1.0, "all zero"),
        (1, {"lora_alpha": 0}, 1.0, "alpha is 0"),
        (1, {}, 0.0, "weight is 0"),
        (1, {}, 1.0, None),
    ],
)
def test_adapter_that_changes_nothing(
    tmp_path: Path, factor: int, config: dict[str, Any], weight: float, words: str | None
) -> None:
    base = builders.checkpoint(tmp_path / "m")
    ab = builders.adapter(tmp_path / "a", base, **config)
    ab = {name: x * factor if "lora_B" in name else x for name, x in ab.items()}
    builders.write_safetensors(tmp_path / "a" / "adapter_model.safetensors", ab, "F32")
    warnings = assemble(tmp_path / "m", adapters=[(tmp_path / "a", weight)]).warnings
    assert [w for w in warnings if "changes nothing" in w] == [w for w in warnings if words and words in w]
    assert len(warnings) == (words is not None)
    if factor and words:  # llama.cpp takes an alpha of 0 for a scale of 1
        spec = f"{tmp_path / 'a'}:{weight:g}"
        refused(lambda: export_adapters(str(tmp_path / "m"), [spec], out=tmp_path), "alpha of 0", kind=DataError)
