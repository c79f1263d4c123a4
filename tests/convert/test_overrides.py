"""Types of single tensors: the files are llama-quantize's, and what has no effect or another one is said by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import GGMLQuantizationType as Type

import jmedlite
from jmedlite.api.quantize import plan_quantization
from jmedlite.api.verify import inspect, verify
from jmedlite.base.errors import DataError, InputMissing, UsageError
from jmedlite.base.gguf import read_header
from jmedlite.base.manifest import read_manifest
from jmedlite.convert.levels.overrides import read_rules
from jmedlite.convert.levels.recipes import choose_types, parse_levels
from jmedlite.convert.planning import assemble
from tests.support import builders
from tests.support.commands import check, run, run_text
from tests.support.ggufs import contents, importance, llama_quantize, overrides, raw


def types_of(path: Path) -> dict[str, str]:
    return {t.name: t.type.name for t in read_header(path).tensors}


def without_origin(path: Path) -> Any:
    metadata, tensors = contents(path)
    return {k: v for k, v in metadata.items() if not k.startswith(("jmedlite.made.", "GGUF."))}, tensors


@pytest.mark.parametrize(
    ("level", "given", "settings"),
    [
        ("Q4_K_M", {"tensor_types": ["attn_v=q8_0"]}, {"tt_overrides": overrides(("attn_v", "Q8_0"))}),
        (
            "Q4_K_S",  # the first that matches decides
            {"tensor_types": [r"blk\.1\.FFN_down=F16", "ffn=iq4_xs", "norm|attn=Q2_K"]},
            {"tt_overrides": overrides((r"blk\.1\.ffn_down", "F16"), ("ffn", "IQ4_XS"), ("norm|attn", "Q2_K"))},
        ),
        (
            "Q8_0",
            {"tensor_types": ["ffn_up=MXFP4"], "token_embedding_type": "Q5_1", "output_type": "Q3_K"},
            {
                "tt_overrides": overrides(("ffn_up", "MXFP4")),
                "token_embedding_type": int(Type.Q5_1),
                "output_tensor_type": int(Type.Q3_K),
            },
        ),
        (
            "BF16",
            {"token_embedding_type": "q8_0", "output_type": "F32"},
            {"token_embedding_type": int(Type.Q8_0), "output_tensor_type": int(Type.F32)},
        ),
        # without a matrix, as llama.cpp allows for these two tensors
        ("Q4_0", {"output_type": "IQ3_XXS"}, {"output_tensor_type": int(Type.IQ3_XXS)}),
    ],
)
def test_files_equal_llama_quantize(tmp_path: Path, level: str, given: Any, settings: Any) -> None:
    builders.checkpoint(tmp_path / "m", "llama")
    (source,) = jmedlite.quantize(tmp_path / "m", types=["BF16"], out=tmp_path / "bf16", threads=1)
    (plain,) = jmedlite.quantize(tmp_path / "m", types=[level], out=tmp_path / "plain", threads=1)
    (path,) = jmedlite.quantize(tmp_path / "m", types=[level], out=tmp_path, threads=1, **given)
    llama_quantize(source, tmp_path / "ref.gguf", level, **settings)
    assert without_origin(path) == without_origin(tmp_path / "ref.gguf")
    assert types_of(path) != types_of(plain)
    assert verify(path, base=tmp_path / "m", threads=1).holds


def test_with_importance_as_llama_quantize(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m")
    (source,) = jmedlite.quantize(tmp_path / "m", types=["BF16"], out=tmp_path)
    matrix = jmedlite.imatrix(source, chunks=2, ctx=128).imatrix
    given: Any = {"tensor_types": ["ffn_down=IQ2_XS", "ffn_up=IQ3_S"], "imatrix": matrix.path}
    (path,) = jmedlite.quantize(tmp_path / "m", types=["Q3_K_M"], out=tmp_path / "out", threads=1, **given)
    rules = overrides(("ffn_down", "IQ2_XS"), ("ffn_up", "IQ3_S"))
    llama_quantize(source, tmp_path / "ref.gguf", "Q3_K_M", imatrix=importance(matrix), tt_overrides=rules)
    assert raw(path) == raw(tmp_path / "ref.gguf")
    assert verify(path, base=tmp_path / "m", imatrix=matrix.path, threads=1).holds
    # the matrix has no values for the embedding, and of this type ggml ends the process without
    with pytest.raises(DataError, match=r"no values for token_embd\.weight, which --token-embedding-type IQ2_XS "):
        jmedlite.quantize(
            tmp_path / "m", imatrix=matrix.path, token_embedding_type="iq2_xs", out=tmp_path / "none", threads=1
        )


def test_the_type_of_a_tied_head(tmp_path: Path) -> None:
    """--output-type is of the one table then, where nothing else says what that is."""
    builders.checkpoint(tmp_path / "m", "llama", tie_word_embeddings=True)
    (source,) = jmedlite.quantize(tmp_path / "m", types=["BF16"], out=tmp_path / "bf16", threads=1)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["Q4_K_M"], output_type="Q5_1", out=tmp_path, threads=1)
    llama_quantize(source, tmp_path / "ref.gguf", "Q4_K_M", output_tensor_type=int(Type.Q5_1))
    assert raw(path) == raw(tmp_path / "ref.gguf")
    assert types_of(path)["token_embd.weight"] == "Q5_1"
    for given, words in (
        ({"types": ["F16"]}, "--output-type Q5_1: changes nothing at F16: this model has one table"),
        ({"token_embedding_type": "Q8_0"}, "--token-embedding-type Q8_0 goes before it; leave one of them out"),
        ({"tensor_types": ["token=Q6_K"]}, "--tensor-type token=Q6_K goes before it; leave one of them out"),
    ):
        with pytest.raises(UsageError, match=words):
            plan_quantization(str(tmp_path / "m"), output_type="Q5_1", out=tmp_path / "x", **given)


REFUSED: list[tuple[list[str], list[str]]] = [
    (["--tensor-type", "attn_v"], ["--tensor-type attn_v: expected REGEX=TYPE"]),
    (["--tensor-type", "=Q6_K"], ["expected REGEX=TYPE"]),
    (["--tensor-type", "attn_v="], ["expected REGEX=TYPE"]),
    (["--tensor-type", "attn_v=Q4_K_M"], ["Q4_K_M is no type of a tensor", "Q4_K,", "IQ4_XS"]),
    (["--tensor-type", "attn_v=Q8_K"], ["Q8_K is no type of a tensor"]),
    (["--tensor-type", "(?=attn)=Q6_K"], ["attn)=Q6_K is no type of a tensor"]),
    (["--output-type", "Q7"], ["--output-type Q7: Q7 is no type of a tensor"]),
    (["--tensor-type", "attn v=Q6_K"], ["a space"]),
    (["--tensor-type", r"blk\.\D=Q6_K"], [r"where \D means something else"]),
    (["--tensor-type", "a" * 1001 + "=Q6_K"], ["1,001 characters", "1,000"]),
    (["--tensor-type", "atn_v=Q6_K"], ["--tensor-type atn_v=Q6_K: matches no tensor that llama.cpp quantizes"]),
    (["--tensor-type", "ffn=Q6_K", "--tensor-type", "_norm=Q6_K"], ["_norm=Q6_K: matches no tensor"]),
    (["--tensor-type", "attn_q.bias=F32"], ["matches no tensor that llama.cpp quantizes (norms and biases"]),
    (
        ["--tensor-type", "ffn=Q6_K", "--tensor-type", "ffn_up=Q8_0"],
        ["--tensor-type ffn_up=Q8_0: decides about no tensor: blk.0.ffn_up.weight, blk.1.ffn_up.weight would be its",
         "own, but --tensor-type ffn=Q6_K goes before it; give the narrower pattern first"],
    ),
    (["--tensor-type", "^output=Q6_K", "--output-type", "Q8_0"], ["--output-type Q8_0 goes before it; leave one"]),
    (["--tensor-type", "ffn=Q6_K", "--tensor-type", "ffn(=Q8_0"], ["ffn(=Q8_0: llama.cpp refuses it", "ECMAScript"]),
    (["--tensor-type", "attn_v=Q8_0", "-b", "4", "-b", "16"], ["attn_v=Q8_0: changes nothing at BF16"]),
    (["--tensor-type", "attn_v=IQ2_XS"], ["attn_v=IQ2_XS: blk.0.attn_v.weight would be IQ2_XS", "jmedlite imatrix"]),
    (["--token-embedding-type", "IQ1_S"], ["--token-embedding-type IQ1_S: token_embd.weight", "importance matrix"]),
    (["--adapter-only", "--output-type", "F16"], ["--adapter-only: takes no --tensor-type", "F32 or F16"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(a)[:60] for a, _ in REFUSED])
def test_what_has_no_effect_is_refused(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    builders.checkpoint(tmp_path / "m")
    check(run("quantize", str(tmp_path / "m"), "--out", str(tmp_path / "out"), *arguments), 2, *words)
    assert not list((tmp_path / "out").glob("*"))


def test_widths_that_a_type_does_not_take(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "llama", hidden_size=128, head_dim=32, intermediate_size=272)
    job = plan_quantization(
        str(tmp_path / "m"),
        bits=[4, 5],
        tensor_types=["ffn_down=Q8_0", "attn=Q4_K", "ffn_up=Q6_K"],
        out=tmp_path / "out",
        dry_run=True,
    )
    assert [w for w in job.plan.warnings if "--tensor-type" in w] == [
        "--tensor-type attn=Q4_K: blk.0.attn_q.weight, blk.0.attn_k.weight, blk.0.attn_v.weight and 5 more: "
        "llama.cpp makes Q5_0 instead, since 128 columns are no multiple of 256",
        "--tensor-type ffn_up=Q6_K: blk.0.ffn_up.weight, blk.1.ffn_up.weight: llama.cpp makes Q8_0 instead, "
        "since 128 columns are no multiple of 256",
        "--tensor-type ffn_down=Q8_0: blk.0.ffn_down.weight, blk.1.ffn_down.weight: llama.cpp makes F16 instead, "
        "since 272 columns are no multiple of 32",
    ]
    for name in ("token_embedding_type", "output_type"):  # where llama.cpp would not look
        with pytest.raises(UsageError, match=r"weight has 128 columns, expected a multiple of 256; .* Q8_0 \(32\)"):
            plan_quantization(str(tmp_path / "m"), out=tmp_path, **{name: "Q4_K"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"--tensor-type ffn_down=Q1_0: llama.cpp refuses it \(no tensor type"):
        plan_quantization(str(tmp_path / "m"), out=tmp_path, tensor_types=["attn=Q8_0", "ffn_down=Q1_0"])
    (path,) = jmedlite.quantize(
        tmp_path / "m", tensor_types=["attn=Q4_K", "ffn_down=Q8_0"], out=tmp_path / "out", threads=1
    )
    assert (types_of(path)["blk.1.attn_v.weight"], types_of(path)["blk.1.ffn_down.weight"]) == ("Q5_0", "F16")
    assert verify(path, base=tmp_path / "m", threads=1).holds


def test_a_type_for_every_tensor(tmp_path: Path) -> None:
    """More rules than llama.cpp has marks for: each is told from the others, and gives exactly what it says."""
    builders.checkpoint(tmp_path / "m", "llama")
    (other,) = jmedlite.quantize(tmp_path / "m", types=["Q3_K_M"], out=tmp_path, threads=1)
    wanted = {t.name: t.type for t in read_header(other).tensors if t.type is not Type.F32}
    wanted["output.weight"] = Type.Q5_0
    assert len(wanted) > 2 * 5
    plan = assemble(tmp_path / "m")
    rules = read_rules([f"^{re.escape(name)}$={type_.name}" for name, type_ in wanted.items()])
    chosen = choose_types(parse_levels([8], []), plan.metadata, plan.stored_tensors, rules=rules)
    assert list(chosen.n_decided) == [1] * len(wanted)
    assert {name: type_ for name, type_ in chosen.types["Q8_0"].items() if type_ is not Type.F32} == wanted


def test_rules_of_a_file(tmp_path: Path) -> None:
    """White space between, as llama-quantize reads it; what stands on the command line is tried first."""
    file = tmp_path / "types.txt"
    file.write_text("attn_v=q8_0\tffn_(up|down)=Q5_K\r\n\n   attn_q=iq4_xs ")
    rules = read_rules(["attn_v=F16"], file, "q8_0", "Q6_K")
    assert [rule.text for rule in rules] == [
        "--tensor-type attn_v=F16", "--tensor-type attn_v=Q8_0", "--tensor-type ffn_(up|down)=Q5_K",
        "--tensor-type attn_q=IQ4_XS", "--token-embedding-type Q8_0", "--output-type Q6_K",
    ]  # fmt: skip
    file.write_text("attn_v=q8_0 # why")
    with pytest.raises(UsageError, match=r"types\.txt: #: expected REGEX=TYPE"):
        read_rules(file=file)
    file.write_text(" \n")
    with pytest.raises(UsageError, match=r"types\.txt: is empty"):
        read_rules(file=file)
    with pytest.raises(InputMissing, match=r"none\.txt: no such file"):
        read_rules(file=tmp_path / "none.txt")


def test_what_was_asked_for_is_recorded(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m")
    file = tmp_path / "types.txt"
    file.write_text("ffn_down=q5_K")
    arguments = [
        "quantize", str(tmp_path / "m"), "-o", str(tmp_path / "out"), "--tensor-type", r"blk\.0\.attn_V=q8_0",
        "--tensor-type-file", str(file), "--token-embedding-type", "q4_0", "--output-tensor-type", "q5_1", "-j", "1",
    ]  # fmt: skip
    said = run_text(*arguments, "--dry-run")
    assert r"+ --tensor-type blk\.0\.attn_v=Q8_0, decides the type of 1 tensor(s)" in said.stderr
    assert "+ --output-type Q5_1, decides the type of 1 tensor(s)" in said.stderr
    facts = json.loads(run_text(*arguments, "--dry-run", "--json").stdout)
    assert facts["overrides"] == [
        {"option": "--tensor-type", "pattern": r"blk\.0\.attn_v", "type": "Q8_0", "n_tensors": 1},
        {"option": "--tensor-type", "pattern": "ffn_down", "type": "Q5_K", "n_tensors": 2},
        {"option": "--token-embedding-type", "pattern": None, "type": "Q4_0", "n_tensors": 1},
        {"option": "--output-type", "pattern": None, "type": "Q5_1", "n_tensors": 1},
    ]
    assert facts["levels"][0]["types"]["Q5_1"] == 1
    assert not (tmp_path / "out").exists()
    assert run(*arguments).returncode == 0
    path = tmp_path / "out" / "m-Q4_K_M.gguf"
    manifest = read_manifest(path)
    assert manifest is not None
    asked = manifest.options
    assert asked.tensor_types == (r"blk\.0\.attn_v=Q8_0", "ffn_down=Q5_K")
    assert (asked.token_embedding_type, asked.output_type) == ("Q4_0", "Q5_1")
    made = inspect(path)["made"]
    assert made["tensor_types"] == r"blk\.0\.attn_v=Q8_0 ffn_down=Q5_K"
    assert (made["token_embedding_type"], made["output_type"]) == ("Q4_0", "Q5_1")
    shown = run_text("inspect", str(path)).stdout
    assert all(word in shown for word in (r"blk\.0\.attn_v=Q8_0", "ffn_down=Q5_K", "Q4_0", "Q5_1"))
    # what is in the file is what --tensor-type-file reads
    file.write_text(made["tensor_types"])
    assert [rule.value for rule in read_rules(file=file)] == list(asked.tensor_types)


def test_a_manifest_without_overrides_says_nothing_of_them(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path, threads=1)
    options = json.loads(path.with_suffix(".json").read_text())["options"]
    assert options.keys() == {"allow_requantize", "split_max_size", "adapters"}  # as before there were any
    manifest = read_manifest(path)
    assert manifest is not None
    assert manifest.options.tensor_types is None
    assert not {"tensor_types", "token_embedding_type", "output_type"} & inspect(path)["made"].keys()
