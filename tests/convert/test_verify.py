"""`verify` says yes to every good merge and no to each of the faults it is there for; `inspect` tells what is known."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type
from typer.testing import CliRunner

import jmedlite
from jmedlite.api.verify import Proof, inspect, verify
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.gguf import read_header
from jmedlite.cli.app import app
from tests.support import builders
from tests.support.bent import BentGguf
from tests.support.long import long_but_for

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj")
GOOD: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    # family, level, options of the adapter (None: no adapter), options of the pass
    ("qwen2", "Q4_K_M", {}, {"threads": 1}),
    ("qwen2", "Q4_K_M", {"use_rslora": True}, {"threads": 5, "memory": "330MB"}),
    ("qwen2", "Q2_K", {"r": 7}, {"threads": 3}),
    ("qwen2", "BF16", {}, {}),
    ("qwen2", "F32", {"alpha_pattern": {"q_proj": 32}}, {"threads": 2, "memory": "330MB"}),
    ("qwen3", "Q8_0", {}, {}),
    ("qwen3", "Q5_K_S", {"r": 16}, {}),
    ("llama", "Q4_K_M", {"modules": ATTENTION}, {"threads": 5}),
    ("llama", "Q3_K_M", {"modules": ATTENTION, "use_rslora": True}, {}),
    ("llama", "Q6_K", {"modules": ATTENTION}, {"split_max_size": "300kB"}),
    ("llama", "F16", {"fan_in_fan_out": True}, {}),
    ("llama", "IQ4_NL", {}, {}),
    ("mistral", "Q4_0", {}, {"threads": 4, "memory": "330MB"}),
    ("mistral", "Q5_K_M", {"rank_pattern": {"down_proj": 2}}, {}),
    ("gpt_neox", "Q4_K_M", {"modules": ("attention.query_key_value",)}, {"threads": 5}),
    ("gpt_neox", "Q8_0", {"modules": ("attention.query_key_value", "mlp.dense_4h_to_h")}, {"memory": "330MB"}),
    ("gemma2", "Q4_K_M", {"modules": ATTENTION}, {}),
    ("gemma3_text", "Q4_K_M", {"modules": ATTENTION}, {}),
    ("phi3", "Q4_K_M", {"modules": ("self_attn.qkv_proj", "mlp.gate_up_proj")}, {"threads": 3}),
    ("phi3", "Q8_0", {"modules": ("mlp.down_proj",)}, {}),
    ("phi3", "Q2_K", {"modules": ("mlp.down_proj",), "seed": 9}, {"memory": "330MB"}),
]


def make(tmp_path: Path, family: str, level: str, adapter: dict[str, Any], **options: Any) -> Path:
    """A merged model `x` of the base `m` and the adapter `a`."""
    base = builders.checkpoint(tmp_path / "m", family)
    builders.adapter(tmp_path / "a", base, **adapter)
    (path,) = jmedlite.quantize(
        tmp_path / "m", lora=[str(tmp_path / "a")], types=[level], out=tmp_path, name="x", **options
    )
    return path


def prove(tmp_path: Path, path: Path, **options: Any) -> Proof:
    return verify(path, **{"base": tmp_path / "m", "lora": [str(tmp_path / "a")]} | options)


@pytest.mark.parametrize(("family", "level", "adapter", "options"), long_but_for(GOOD, GOOD[1::3]))
def test_good_merges(tmp_path: Path, family: str, level: str, adapter: dict[str, Any], options: dict[str, Any]) -> None:
    path = make(tmp_path, family, level, adapter, **options)
    proof = prove(tmp_path, path, threads=2)
    assert proof.holds
    assert proof.broken == ()
    assert {v.state for v in proof.report.tensors} == {"identical"}
    assert {v.name for v in proof.report.tensors} == {
        t.name for part in path.parent.glob("x*.gguf") for t in read_header(part).tensors
    }


# every fault at one level; the smallest of them at all
@pytest.mark.parametrize(
    ("fault", "level"),
    [
        *((fault, "Q4_K_M") for fault in ("base", "scale", "dropped", "swapped", "weight", "no adapter")),
        *(("weight", level) for level in ("F32", "Q8_0", "Q2_K")),
    ],
)
def test_wrong_merges(tmp_path: Path, fault: str, level: str) -> None:
    """The file is made with a fault, the manifest is made to agree: only the computation can tell."""
    base = builders.checkpoint(tmp_path / "m", "llama")
    square = ("self_attn.q_proj", "self_attn.o_proj")
    ab = builders.adapter(tmp_path / "a", base, modules=square, use_rslora=True, r=16)
    wrong = dict(ab)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    made_of, lora = tmp_path / "m", [str(tmp_path / "b")]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    if fault == "base":
        made_of = tmp_path / "m2"
        builders.checkpoint(made_of, "llama", seed=1)
    elif fault == "scale":  # alpha / r, where the adapter says alpha / √r
        config["use_rslora"] = False
    elif fault == "dropped":
        wrong = {k: v for k, v in ab.items() if "layers.1.self_attn.o_proj" not in k}
        config["target_modules"] = r".*(q_proj|layers\.0\.self_attn\.o_proj)"
    elif fault == "swapped":
        other = {k: k.replace("lora_A", "lora_B") if "lora_A" in k else k.replace("lora_B", "lora_A") for k in ab}
        wrong = {k: ab[other[k]].T.copy() for k in ab}
    elif fault == "weight":
        lora = [f"{tmp_path / 'b'}:0.99"]
    else:
        lora = []
    builders.write_safetensors(tmp_path / "b" / "adapter_model.safetensors", wrong, "F32")
    (tmp_path / "b" / "adapter_config.json").write_text(json.dumps(config))
    (path,) = jmedlite.quantize(made_of, lora=lora, types=[level], out=tmp_path, name="x")
    proof = prove(tmp_path, path)
    assert proof.broken == ()
    assert not proof.holds
    wrong_tensors = {v.name for v in proof.report.wrong}
    touched = {f"blk.{i}.{n}.weight" for i in range(2) for n in ("attn_q", "attn_output")}
    if fault == "base":
        assert len(wrong_tensors) > len(proof.report.tensors) / 2
        assert "another base" in proof.report.reason()
    elif fault == "dropped":
        assert wrong_tensors == {"blk.1.attn_output.weight"}
        assert "1 of the 4" in proof.report.reason()
    else:
        assert wrong_tensors == touched
        assert "the base is right; the adapter" in proof.report.reason()


@pytest.mark.parametrize("level", ["F32", "Q4_K_M"])
def test_unpermuted_queries_and_keys(tmp_path: Path, level: str) -> None:
    path = make(tmp_path, "llama", level, {"modules": ATTENTION})
    data = bytearray(path.read_bytes())
    header = read_header(path)
    swapped = 0
    for t in header.tensors:
        if re.fullmatch(r"blk\.\d+\.attn_[qk]\.weight", t.name):
            row = t.nbytes // t.shape[1]
            at = header.data_offset + t.offset
            rows = np.frombuffer(bytes(data[at : at + t.nbytes]), np.uint8).reshape(-1, builders.HEAD_DIM // 2, 2, row)
            data[at : at + t.nbytes] = np.ascontiguousarray(rows.swapaxes(1, 2)).tobytes()
            swapped += 1
    assert swapped == 4
    path.write_bytes(data)
    proof = prove(tmp_path, path)
    assert {v.name for v in proof.report.wrong} == {f"blk.{i}.attn_{x}.weight" for i in range(2) for x in "qk"}
    assert not proof.holds


@pytest.mark.parametrize("tied", [True, False])
def test_untied_head(tmp_path: Path, tied: bool) -> None:
    tensors = builders.checkpoint(tmp_path / "m", "qwen2", tie_word_embeddings=True)
    untied = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    builders.checkpoint(tmp_path / "u", "qwen2", tensors=untied)
    made_of, base = (tmp_path / "u", tmp_path / "m") if tied else (tmp_path / "m", tmp_path / "u")
    (path,) = jmedlite.quantize(made_of, bits=[8], out=tmp_path, name="x")
    proof = verify(path, base=base)
    assert [(v.name, v.state) for v in proof.report.wrong] == [("output.weight", "extra" if tied else "missing")]
    assert "head" in proof.report.reason()
    assert verify(path, base=made_of).holds


@pytest.mark.parametrize("level", long_but_for(["F32", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q2_K"], ["F32", "Q4_K_M"]))
def test_every_flipped_byte(tmp_path: Path, level: str) -> None:
    """Anywhere in the data, with the manifest and without; the padding between tensors is the hash's business."""
    path = make(tmp_path, "qwen2", level, {})
    good, header = path.read_bytes(), read_header(path)
    rng = np.random.default_rng(0)
    manifest = path.with_suffix(".json").read_text()
    for t in rng.choice(np.asarray(header.tensors, object), 3, replace=False):
        at = header.data_offset + t.offset + int(rng.integers(t.nbytes))
        damaged = bytearray(good)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        proof = prove(tmp_path, path)
        assert [v.name for v in proof.report.wrong] == [t.name]
        assert proof.broken == (path.name,)
        path.with_suffix(".json").unlink()
        proof = prove(tmp_path, path)
        assert [v.name for v in proof.report.wrong] == [t.name]
        assert proof.broken is None
        path.with_suffix(".json").write_text(manifest)
    path.write_bytes(good)
    assert prove(tmp_path, path).holds


def test_flipped_byte_between_tensors(tmp_path: Path) -> None:
    path = make(tmp_path, "qwen2", "Q6_K", {})
    header = read_header(path)
    padded = next(t for t in header.tensors if t.nbytes % 32)
    data = bytearray(path.read_bytes())
    data[header.data_offset + padded.offset + padded.nbytes] ^= 1
    path.write_bytes(data)
    proof = prove(tmp_path, path)
    assert proof.report.holds
    assert not proof.holds


def test_other_metadata(tmp_path: Path) -> None:
    path = make(tmp_path, "qwen2", "Q8_0", {})
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 500.0}))
    proof = prove(tmp_path, path)
    assert proof.report.metadata == ("qwen2.rope.freq_base",)
    assert not proof.holds


def test_tolerance(tmp_path: Path) -> None:
    """A merge that was rounded to BF16 on the way, as PEFT's on a BF16 model is."""
    path = make(tmp_path, "qwen2", "F32", {})
    data, header = bytearray(path.read_bytes()), read_header(path)
    for t in header.tensors:
        at = header.data_offset + t.offset
        x = np.frombuffer(bytes(data[at : at + t.nbytes]), np.float32)
        data[at : at + t.nbytes] = builders.from_bf16(builders.to_bf16(x)).tobytes()
    path.write_bytes(data)
    path.with_suffix(".json").unlink()
    assert not prove(tmp_path, path).holds
    proof = prove(tmp_path, path, tolerance=0.01)
    assert proof.holds
    assert {v.state for v in proof.report.tensors} == {"identical", "near"}
    assert not prove(tmp_path, path, tolerance=1e-6).holds
    with pytest.raises(UsageError, match="--tolerance"):
        prove(tmp_path, path, tolerance=-1.0)


def test_another_model_and_the_base_itself(tmp_path: Path) -> None:
    path = make(tmp_path, "qwen2", "Q8_0", {})
    builders.checkpoint(tmp_path / "other", "qwen2", hidden_size=512)
    assert "other shapes" in verify(path, base=tmp_path / "other").report.reason()
    builders.checkpoint(tmp_path / "deep", "qwen2", num_hidden_layers=3)
    assert "other tensors" in verify(path, base=tmp_path / "deep").report.reason()
    with pytest.raises(UsageError, match="is the base itself"):
        verify(path, base=path, allow_requantize=True)


def test_gguf_as_base(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "llama")
    builders.adapter(tmp_path / "a", base, modules=ATTENTION)
    (f16,) = jmedlite.quantize(tmp_path / "m", types=["F16"], out=tmp_path, name="base")
    (path,) = jmedlite.quantize(f16, lora=[str(tmp_path / "a")], bits=[4], out=tmp_path, name="x")
    assert prove(tmp_path, path, base=f16).holds
    assert not prove(tmp_path, path, base=f16, lora=[]).holds


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_verify_on_the_command_line(tmp_path: Path) -> None:
    path = make(tmp_path, "qwen2", "Q4_K_M", {})
    options = ["verify", str(path), "--base", str(tmp_path / "m"), "--lora", str(tmp_path / "a")]
    done = run(*options)
    assert done.exit_code == 0
    assert re.match(r"yes: x-Q4_K_M\.gguf is .* \+ .*a; \d+ tensors are identical", done.stdout)
    found = json.loads(run(*options, "--json").stdout)
    assert found["holds"] is True
    assert {t["state"] for t in found["tensors"]} == {"identical"}
    done = run(*options[:-2])
    assert isinstance(done.exception, DataError)
    assert "NO, 4 of" in str(done.exception)
    assert "blk.0.attn_q.weight" in done.stdout


UNMADE = (Type.I8, Type.I16, Type.I32, Type.I64, Type.F64, Type.Q8_1, Type.Q8_K)


@pytest.mark.parametrize("type_", UNMADE)
def test_types_that_ggml_does_not_make(tmp_path: Path, tiny_gguf: Path, type_: Type) -> None:
    """ggml ends the process where it shall make or read one of them."""
    for name in ("output_norm.weight", "blk.0.ffn_down.weight"):
        tensor = read_header(tiny_gguf).by_name[name]
        if tensor.shape[0] % GGML_QUANT_SIZES[type_][0]:
            continue
        n = tensor.n_elements
        bent = BentGguf(tiny_gguf).retype(name, type_, 8 * n).save(tmp_path / "x.gguf")
        with pytest.raises(DataError, match=f"{name}: is stored as {type_.name}, as no tensor is made"):
            verify(bent, base=tiny_gguf, threads=1)
        if type_ is Type.Q8_K:  # can be read
            continue
        with pytest.raises(DataError, match=f"{name} is stored as {type_.name}, expected a type of weights"):
            jmedlite.quantize(bent, bits=[8], out=tmp_path / "o", allow_requantize=True, threads=1)
        assert not list((tmp_path / "o").glob("*.gguf"))


def test_a_model_without_a_context_length(tmp_path: Path, tiny_gguf: Path) -> None:
    bent = BentGguf(tiny_gguf).drop("qwen2.context_length").save(tmp_path / "x.gguf")
    assert inspect(bent)["n_ctx_train"] is None
    assert "trained on contexts not stated" in run("inspect", str(bent)).output


def test_inspect(tmp_path: Path) -> None:
    path = make(tmp_path, "llama", "Q4_K_M", {"modules": ATTENTION, "use_rslora": True})
    facts = inspect(path, check=True)
    assert facts["broken"] == []
    assert facts["level"] == "Q4_K_M"
    assert facts["made"]["base"] == "m"
    assert re.fullmatch(r"a × 1, SHA-256 [0-9a-f]{64}", facts["made"]["adapters"])
    adapter = facts["manifest"]["adapters"][0]
    assert (adapter["use_rslora"], adapter["n_weights_changed"]) == (True, 4)
    assert adapter["files"]["adapter_model.safetensors"] in facts["made"]["adapters"]
    assert all(0.001 < t["rel_rmse"] < 0.12 for t in facts["tensors"] if t["type"] == "Q4_K")
    assert all(t["rel_rmse"] == 0 for t in facts["tensors"] if t["type"] == "F32")
    done = run("inspect", str(path), "--check")
    assert done.exit_code == 0
    for word in ("Q4_K_M", "SHA-256", "relative error", "model.safetensors"):
        assert word in done.stdout
    assert len(run("inspect", str(path), "--tensors").stdout.splitlines()) > len(facts["tensors"])
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert isinstance(run("inspect", str(path), "--check").exception, DataError)
    path.with_suffix(".json").unlink()
    assert inspect(path, check=True)["broken"] is None
    assert "nothing to compare" in run("inspect", str(path), "--check").stderr


@pytest.mark.parametrize("text", ["[]", "{", '{"format": 1}', '{"format": 2, "files": 5}'])
def test_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    path = make(tmp_path, "qwen2", "Q8_0", {})
    path.with_suffix(".json").write_text(text)
    with pytest.raises(DataError, match=r"x-Q8_0\.json"):
        inspect(path)


def test_relative_error_is_the_definition(tmp_path: Path) -> None:
    from tests.support.ggufs import read

    base = builders.checkpoint(tmp_path / "m", "qwen2")
    exact, stored = jmedlite.quantize(tmp_path / "m", types=["F32", "Q3_K_M"], out=tmp_path)
    manifest = json.loads(stored.with_suffix(".json").read_text())
    w, q = read(exact), read(stored)
    assert len(w) == len(base)
    for name, entry in manifest["tensors"].items():
        error = np.sqrt(((q[name] - w[name]).astype(np.float64) ** 2).sum() / (w[name].astype(np.float64) ** 2).sum())
        assert entry["rel_rmse"] == pytest.approx(error, rel=1e-3, abs=1e-12)
