"""Real checkpoints, when there are any: `JMEDLITE_REAL_MODELS=FOLDER pytest -m realmodel`.

FOLDER holds checkpoint folders (Qwen2 or Llama family). With JMEDLITE_REFERENCE_TOOLS (llama.cpp's `bin/` and
`llama.cpp/convert_hf_to_gguf.py`) and JMEDLITE_REFERENCE_PYTHON (an interpreter with torch and transformers) the files
are also compared with the reference toolchain's. JMEDLITE_IGAKUQA may name a clone of IgakuQA, for more text.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jmedlite
from jmedlite.api.quantize import export_adapters
from jmedlite.base.gguf import read_header
from jmedlite.convert.sources.checkpoint import Checkpoint
from tests.support import builders
from tests.support.ggufs import raw, read
from tests.support.texts import lines

pytestmark = pytest.mark.realmodel
FOLDER = Path(os.environ.get("JMEDLITE_REAL_MODELS", "."))
MODELS = sorted(p.parent.name for p in FOLDER.glob("*/config.json"))
LEVELS = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


@pytest.fixture(scope="module", params=MODELS or ["JMEDLITE_REAL_MODELS is not set"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(model's name, folder with its GGUF files at every level)."""
    out = tmp_path_factory.mktemp(request.param)
    jmedlite.quantize(FOLDER / request.param, types=LEVELS, out=out, name="m")
    return request.param, out


def exam_lines() -> list[str]:
    """Questions and choices of IgakuQA, Japanese and English."""
    found: list[str] = []
    for path in sorted(Path(os.environ.get("JMEDLITE_IGAKUQA", "/nonexistent")).glob("data/*/*.jsonl")):
        for row in path.read_text(encoding="utf-8").splitlines():
            item = json.loads(row)
            for key in ("problem_text", "problem_text_en", "choices", "choices_en"):
                value = item.get(key) or []
                found += [value] if isinstance(value, str) else list(value)
    return random.Random(0).sample(found, min(len(found), 4000))


def test_tokens_equal_the_checkpoints(made: tuple[str, Path]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    name, out = made
    reference = tokenizers.Tokenizer.from_file(str(FOLDER / name / "tokenizer.json"))
    texts = lines(2500) + exam_lines()
    with jmedlite.Runner(out / "m-Q8_0.gguf") as runner:
        for special in (True, False):
            reference.encode_special_tokens = not special
            # llama.cpp takes "</s>" for a control token in any vocabulary that has it, added or not
            added = {t.content for t in reference.get_added_tokens_decoder().values()}
            different = [
                t
                for t in texts
                if not (special and "</s>" in t and "</s>" not in added)
                and runner.tokenize(t, parse_special=special) != reference.encode(t, add_special_tokens=False).ids
            ]
            assert not different, (len(different), len(texts), different[:3])


def test_files_equal_the_reference_toolchain(made: tuple[str, Path], tmp_path: Path) -> None:
    tools = os.environ.get("JMEDLITE_REFERENCE_TOOLS")
    if not tools:
        pytest.skip("JMEDLITE_REFERENCE_TOOLS is not set")
    name, out = made
    converter = Path(tools) / "llama.cpp" / "convert_hf_to_gguf.py"
    python = os.environ.get("JMEDLITE_REFERENCE_PYTHON", sys.executable)
    bf16 = tmp_path / "BF16.gguf"
    subprocess.run(
        [python, converter, FOLDER / name, "--outtype", "bf16", "--outfile", bf16], check=True, capture_output=True
    )
    compare = Path(__file__).parent.parent / "tools" / "compare_gguf.py"
    for level in LEVELS:
        reference = bf16
        if level != "BF16":
            reference = tmp_path / "ref.gguf"
            quantizer = Path(tools) / "bin" / "llama-quantize"
            subprocess.run([quantizer, bf16, reference, level], check=True, capture_output=True)
        done = subprocess.run(
            [sys.executable, compare, out / f"m-{level}.gguf", reference], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("level", "options"),
    [
        (
            "Q4_K_M",
            ["--tensor-type", "attn_v=q8_0", "--tensor-type", "ffn_(up|down)=q5_K", "--output-tensor-type", "q5_1"],
        ),
        ("Q3_K_M", ["--tensor-type", r"blk\.[0-3]\.ffn=q6_k", "--tensor-type", "ffn=iq4_xs"]),
        ("F16", ["--token-embedding-type", "q8_0"]),
    ],
)
def test_types_of_single_tensors(made: tuple[str, Path], tmp_path: Path, level: str, options: list[str]) -> None:
    """The same options give llama-quantize's bytes, fallbacks for widths included."""
    tools = os.environ.get("JMEDLITE_REFERENCE_TOOLS")
    if not tools:
        pytest.skip("JMEDLITE_REFERENCE_TOOLS is not set")
    name, out = made
    made_as = ["-t", level, "-o", str(tmp_path), "--name", "m"]
    command = [sys.executable, "-m", "jmedlite", "quantize", str(FOLDER / name), *made_as]
    subprocess.run([*command, *options], check=True, capture_output=True)
    quantizer, reference = Path(tools) / "bin" / "llama-quantize", tmp_path / "ref.gguf"
    subprocess.run([quantizer, *options, out / "m-BF16.gguf", reference, level], check=True, capture_output=True)
    compare = Path(__file__).parent.parent / "tools" / "compare_gguf.py"
    done = subprocess.run(
        [sys.executable, compare, tmp_path / f"m-{level}.gguf", reference], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_answers(made: tuple[str, Path]) -> None:
    _, out = made
    with jmedlite.Runner(out / "m-Q8_0.gguf") as runner:
        answer = runner.ask("What is the capital of France?", max_tokens=64)
    assert "Paris" in answer.text
    assert answer.stop == "eos"
    assert read_header(out / "m-Q8_0.gguf").metadata["general.name"]


@pytest.mark.parametrize("use_rslora", [False, True])
def test_adapters_against_llama_cpps_own_tools(made: tuple[str, Path], tmp_path: Path, use_rslora: bool) -> None:
    """The exported adapter is convert_lora_to_gguf.py's but for rsLoRA's scale, and merges as llama-export-lora's."""
    tools = os.environ.get("JMEDLITE_REFERENCE_TOOLS")
    if not tools:
        pytest.skip("JMEDLITE_REFERENCE_TOOLS is not set")
    name, out = made
    weights = {n: np.empty(t.shape, np.bool_) for n, t in Checkpoint(FOLDER / name).tensors.items() if len(t.shape) > 1}
    modules = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
    builders.adapter(tmp_path / "a", weights, modules=modules, r=16, use_rslora=use_rslora)
    ours = export_adapters(str(FOLDER / name), [str(tmp_path / "a")], out=tmp_path, name="ours").path
    theirs = tmp_path / "theirs.gguf"
    converter = Path(tools) / "llama.cpp" / "convert_lora_to_gguf.py"
    python = os.environ.get("JMEDLITE_REFERENCE_PYTHON", sys.executable)
    subprocess.run(
        [python, converter, tmp_path / "a", "--base", FOLDER / name, "--outtype", "f32", "--outfile", theirs],
        check=True, capture_output=True,
    )  # fmt: skip
    assert raw(ours) == raw(theirs)
    alphas = [read_header(path).metadata["adapter.lora.alpha"] for path in (ours, theirs)]
    assert alphas == ([8 * 4, 8] if use_rslora else [8, 8])
    merged, exported = tmp_path / "m-F16.gguf", tmp_path / "exported.gguf"
    exporter = Path(tools) / "bin" / "llama-export-lora"
    subprocess.run(
        [exporter, "-m", out / "m-BF16.gguf", "--lora", ours, "-o", exported], check=True, capture_output=True
    )
    jmedlite.quantize(FOLDER / name, lora=[str(tmp_path / "a")], types=["F16"], out=tmp_path, name="m")
    before, one, other = read(out / "m-BF16.gguf"), read(merged), read(exported)
    changed = [n for n in before if not np.array_equal(other[n], before[n].astype(np.float16))]
    assert len(changed) >= len(weights) // 4
    for n in changed:  # both round to half floats; llama.cpp multiplies in float32 in an order of its own
        np.testing.assert_allclose(one[n], other[n], rtol=2**-10, atol=1e-6, err_msg=n)


def test_verify(made: tuple[str, Path]) -> None:
    name, out = made
    for level in ("Q8_0", "Q4_K_M"):
        proof = jmedlite.verify(out / f"m-{level}.gguf", base=FOLDER / name)
        assert proof.holds
        assert proof.broken == ()
