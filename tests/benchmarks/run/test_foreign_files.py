"""Files that others made: what their names and headers tell, several of one name, and runs of before that was kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest

import jmedlite
from jmedlite.api.model_facts import describe_model, find_models, tell_model
from jmedlite.base.errors import UsageError
from jmedlite.base.gguf import name_and_level, tells_otherwise
from jmedlite.base.progress import silent
from tests.support import builders
from tests.support.commands import run_text
from tests.support.ggufs import llama_quantize
from tests.support.tasks import write_task


@pytest.mark.parametrize(
    ("stem", "base", "level"),
    [
        ("Qwen2.5-7B-Instruct-Q4_K_L", "Qwen2.5-7B-Instruct", "Q4_K_L"),  # bartowski
        ("Qwen3-8B-UD-Q4_K_XL", "Qwen3-8B", "UD-Q4_K_XL"),  # Unsloth
        ("gemma-3-12B-it-QAT-Q4_0", "gemma-3-12B-it-QAT", "Q4_0"),  # LM Studio
        ("Llama-3.3-70B-Instruct.i1-IQ2_M", "Llama-3.3-70B-Instruct", "i1-IQ2_M"),  # mradermacher
        ("llama-2-7b.Q4_0", "llama-2-7b", "Q4_0"),  # TheBloke
        ("qwen2.5-7b-instruct-q4_k_m", "qwen2.5-7b-instruct", "q4_k_m"),  # Qwen
        ("gpt-oss-20b-MXFP4_MOE", "gpt-oss-20b", "MXFP4_MOE"),  # ggml-org
        ("qwen-BF16", "qwen", "BF16"),
        ("medical-7B", "medical-7B", None),
        ("Q4_K_M", "Q4_K_M", None),
        ("qwen-Q4_K_M-mine", "qwen-Q4_K_M-mine", None),
    ],
)
def test_what_a_name_says(stem: str, base: str, level: str | None) -> None:
    assert name_and_level(stem) == (base, level)


@pytest.mark.parametrize(
    ("named", "level", "otherwise"),
    [
        ("UD-Q4_K_XL", "Q4_K_M", False), ("q4_k_m", "Q4_K_M", False), ("Q4_K_M (bartowski)", "Q4_K_M", False),
        ("i1-IQ2_M", "IQ2_M", False), ("FP16", "F16", False), ("mxfp4", "MXFP4_MOE", False),
        ("Q8_0", "Q4_0", True), ("BF16", "F16", True), ("Q4_K_M", "IQ3_M", True),
    ],
)  # fmt: skip
def test_a_name_against_the_header(named: str, level: str, otherwise: bool) -> None:
    assert tells_otherwise(named, level) is otherwise


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model by two makers, under one name: by llama-quantize from a file with what Unsloth writes, and plain."""
    folder = tmp_path_factory.mktemp("foreign")
    builders.checkpoint(folder / "m", max_position_embeddings=2048)
    (wide,) = jmedlite.quantize(folder / "m", types=["F32"], out=folder, name="m", threads=1)
    reader = gguf.GGUFReader(wide)
    writer = gguf.GGUFWriter(folder / "told.gguf", "qwen2")
    for key, f in reader.fields.items():
        if not key.startswith(("GGUF.", "jmedlite.", "general.architecture")):
            writer.add_key_value(key, f.contents(), f.types[0], f.types[1] if len(f.types) > 1 else None)
    writer.add_string("general.quantized_by", "Unsloth")
    writer.add_string("quantize.imatrix.file", "C:\\work\\imatrix.gguf")
    writer.add_string("quantize.imatrix.dataset", "/training/calibration_v3.txt")
    writer.add_uint32("quantize.imatrix.entries_count", 14)
    writer.add_uint32("quantize.imatrix.chunks_count", 128)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for maker, source, level in (("unsloth", folder / "told.gguf", "Q4_K_M"), ("lmstudio", wide, "Q4_0")):
        (folder / maker).mkdir()
        llama_quantize(source, folder / maker / "m-Q4_K_M.gguf", level)
    return folder


def test_what_a_header_tells(foreign: Path) -> None:
    facts = describe_model(foreign / "unsloth" / "m-Q4_K_M.gguf", silent)
    assert (facts["base"], facts["label"], facts["level"]) == ("m", "Q4_K_M", "Q4_K_M")
    assert (facts["made_here"], facts["quantized_by"], facts["imatrix"]) == (False, "Unsloth", "imatrix.gguf")
    assert facts["matrix"] == {
        "file": "imatrix.gguf", "dataset": "calibration_v3.txt", "n_tensors": 14, "n_chunks": 128,
    }  # fmt: skip
    reader = gguf.GGUFReader(foreign / "unsloth" / "m-Q4_K_M.gguf")
    assert sum(facts["types"].values()) == sum(int(t.n_elements) for t in reader.tensors)
    for type_, n in facts["types"].items():
        assert n == sum(int(t.n_elements) for t in reader.tensors if t.tensor_type.name == type_)
    assert sum(n for types in facts["tensor_types"].values() for n in types.values()) == len(reader.tensors)
    (output,) = (t.tensor_type.name for t in reader.tensors if t.name == "output.weight")
    assert facts["tensor_types"]["output"] == {output: 1}
    told = tell_model(facts)
    assert told.startswith("m-Q4_K_M: file type Q4_K_M; ") and "output" in told
    assert told.endswith("importance matrix imatrix.gguf, calibration_v3.txt, 128 chunks")
    assert describe_model(foreign / "m-F32.gguf", silent)["made_here"] is True


def test_two_makers_of_one_name(foreign: Path, tmp_path: Path) -> None:
    files = [foreign / maker / "m-Q4_K_M.gguf" for maker in ("unsloth", "lmstudio")]
    assert list(find_models(files)) == ["m-Q4_K_M (unsloth)", "m-Q4_K_M (lmstudio)"]
    with pytest.raises(UsageError, match=r"two models are called m-Q4_K_M \(unsloth\)"):
        find_models([files[0], files[0]])
    command = ["bench", *map(str, files), str(foreign / "m-F32.gguf"), "--task",
               str(write_task(tmp_path / "t.jsonl", 3)), "--rounds", "0", "--out", str(tmp_path / "run")]  # fmt: skip
    done = run_text(*command)
    assert done.returncode == 0, done.stderr
    assert "m-Q4_K_M (unsloth): file type Q4_K_M;" in done.stderr and "m-F32: file" not in done.stderr
    head = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert [(m["label"], m["base"], m["level"]) for m in head["models"]] == [
        ("Q4_K_M (unsloth)", "m", "Q4_K_M"), ("Q4_K_M (lmstudio)", "m", "Q4_0"), ("F32", "m", "F32"),
    ]  # fmt: skip
    # a run of before goes on
    for model in head["models"]:
        for new in ("label", "made_here", "quantized_by", "matrix", "types", "tensor_types"):
            model.pop(new, None)
    (tmp_path / "run" / "run.json").write_text(json.dumps(head), encoding="utf-8")
    shutil.copy(tmp_path / "run" / "items.jsonl", tmp_path / "items")
    assert run_text(*command).returncode == 0
    assert (tmp_path / "items").read_bytes() == (tmp_path / "run" / "items.jsonl").read_bytes()
