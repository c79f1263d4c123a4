"""One fact in two tokenizer files, or in the base's folder and in an adapter's: what differs is decided and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

import jmedlite
from jmedlite.api.quantize import export_adapters
from jmedlite.base.errors import DataError
from jmedlite.base.gguf import read_header
from jmedlite.base.libraries import libllama
from jmedlite.convert.metadata.specials import ENDS_BY_NAME
from jmedlite.convert.metadata.tokenizer_files import default_template, read_tokenizer_files
from jmedlite.convert.planning import QuantizePlan, assemble
from tests.support import builders

N_WORDS = len(builders.byte_level_tokenizer()["model"]["vocab"])
N = builders.n_tokens(builders.byte_level_tokenizer())  # the last is <|im_end|>
START, IM_START, IM_END = range(N_WORDS, N)
OTHER = "{{ messages[0].content }}<|im_end|>"


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file, which need not be there; None removes one."""
    found = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def meta(plan: QuantizePlan) -> dict[str, Any]:
    return {key.removeprefix("tokenizer."): value for key, (value, _, _) in plan.metadata.items()}


def added(i: int, text: str, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
    return {"id": i, "content": text, "special": special, **flags}


def decoder(**tokens: int) -> dict[str, Any]:
    """tokenizer_config.json's added_tokens_decoder."""
    entries = (added(i, text) for text, i in tokens.items())
    return {str(e.pop("id")): e for e in entries}


SPECIAL_IDS = dict(zip(builders.SPECIALS, (START, IM_START, IM_END), strict=True))


# ---------------------------------------------------------------------------- tokenizer.json and a SentencePiece model


PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
PIECES += [(f"<0x{i:02X}>", 0.0, 6) for i in range(256)]
PIECES += [("he", -1.0, 1), ("ll", -2.0, 1), *((c, -9.0, 1) for c in "ehlo▁")]
N_PIECES = len(PIECES)


def described(words: list[str], kind: str = "BPE") -> dict[str, Any]:
    """The tokenizer.json of those pieces and `words`."""
    texts = [text for text, _, _ in PIECES] + words
    model: dict[str, Any] = {"type": kind, "unk_token": "<unk>", "byte_fallback": True}
    if kind == "BPE":
        model |= {"vocab": {t: i for i, t in enumerate(texts)}, "merges": [["h", "e"], ["l", "l"], ["he", "ll"]]}
    else:
        model |= {"vocab": [[t, 0.0] for t in texts], "unk_id": 0}
    return {
        "added_tokens": [added(i, text) for i, (text, _, _) in enumerate(PIECES[:3])],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None, "post_processor": None, "model": model,
    }  # fmt: skip


def both(folder: Path, words: list[str], kind: str = "BPE", name: str = "tokenizer.model") -> Path:
    """A checkpoint with a tokenizer.json of `kind` that has `words` beyond its SentencePiece model."""
    n = N_PIECES + len(words)
    builders.checkpoint(folder, "llama", vocab_size=n, bos_token_id=1, eos_token_id=2)
    (folder / "tokenizer.json").write_text(json.dumps(described(words, kind)))
    builders.write_sentencepiece(folder / name, PIECES, 2 if kind == "BPE" else 1)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def test_newer_tokenizer_json_is_taken(tmp_path: Path) -> None:
    plan = assemble(both(tmp_path / "m", ["hell"]))
    found = meta(plan)
    assert found["ggml.tokens"][-1] == b"hell"
    assert found["ggml.scores"][-1] == -2.0  # the merge's rank
    (warning,) = plan.warnings
    assert f"token {N_PIECES} is 'hell' in tokenizer.json and missing in tokenizer.model" in warning


def test_equal_tokens_keep_the_scores_of_the_model(tmp_path: Path) -> None:
    plan = assemble(both(tmp_path / "m", []))
    assert meta(plan)["ggml.scores"][3 + 256 : 3 + 258] == [-1.0, -2.0]
    assert not plan.warnings


def test_another_text_under_the_same_id(tmp_path: Path) -> None:
    both(tmp_path / "m", [])
    builders.write_sentencepiece(tmp_path / "m" / "tokenizer.model", [*PIECES[:-1], ("_", -9.0, 1)])
    plan = assemble(tmp_path / "m")
    assert meta(plan)["ggml.tokens"][-1] == "▁".encode()
    assert "is '▁' in tokenizer.json and '_' in tokenizer.model" in plan.warnings[0]


def test_a_unigram_that_differs_is_taken_where_it_can_be_reproduced(tmp_path: Path) -> None:
    assert not assemble(both(tmp_path / "same", [], "Unigram", "spiece.model")).warnings
    (warning,) = assemble(both(tmp_path / "m", ["hell"], "Unigram", "spiece.model")).warnings
    assert "'hell' in tokenizer.json and missing in spiece.model" in warning
    path = tmp_path / "m" / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": {"type": "Precompiled"}}))
    with pytest.raises(DataError, match="Precompiled"):
        assemble(tmp_path / "m")


def test_a_model_file_of_another_kind_beside_tokenizer_json(tmp_path: Path) -> None:
    """tiktoken's lists are called tokenizer.model as well."""
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    plan = assemble(tmp_path / "m")
    assert meta(plan)["ggml.model"] == "gpt2"
    assert "tokenizer.json is taken" in plan.warnings[0]


# --------------------------------------------------------------------------------------------- added and special tokens


NEXT = [*builders.SPECIALS, "<|new|>"]
# (changes of files, texts of the last tokens, words of the one warning)
ADDED: dict[str, tuple[dict[str, Any], list[str], str | None]] = {
    "the same in both": ({"tokenizer_config.json": {"added_tokens_decoder": decoder(**SPECIAL_IDS)}}, [], None),
    "the next id in the decoder": (
        {"tokenizer_config.json": {"added_tokens_decoder": decoder(**SPECIAL_IDS, **{"<|new|>": N})}}, NEXT, None,
    ),
    "the next id in the list": ({"added_tokens.json": {**SPECIAL_IDS, "<|new|>": N}}, NEXT, None),
    "another id in the list": (
        {"added_tokens.json": {"<|im_end|>": START}}, [], f"added_tokens.json says that '<|im_end|>' is token {START}",
    ),
    "a list that is not read": (
        {
            "added_tokens.json": {"<|new|>": N},
            "tokenizer_config.json": {"added_tokens_decoder": decoder(**SPECIAL_IDS)},
        },
        [], f"added_tokens.json says that token {N} is '<|new|>', the other files do not know it",
    ),
}  # fmt: skip


def with_files(folder: Path, files: dict[str, Any], n_vocab: int = N + 4) -> Path:
    builders.checkpoint(folder, vocab_size=n_vocab, bos_token_id=START, eos_token_id=IM_END)
    for file, changes in files.items():
        change_json(folder / file, **changes)
    return folder


@pytest.mark.parametrize("case", ADDED)
def test_added_tokens_in_two_files(tmp_path: Path, case: str) -> None:
    files, texts, words = ADDED[case]
    plan = assemble(with_files(tmp_path / "m", files))
    tokens = [t.decode() for t in meta(plan)["ggml.tokens"]]
    expected = texts or builders.SPECIALS
    assert tokens[N_WORDS : N_WORDS + len(expected)] == expected
    assert tokens[N_WORDS + len(expected)].startswith("[PAD")
    assert [words in w for w in plan.warnings if words] == ([True] if words else [])
    assert words or not plan.warnings


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ({"<|new|>": IM_END}, r"'<\|new\|>', but tokenizer.json says '<\|im_end\|>'"),
        ({"<|new|>": 5}, r"'<\|new\|>', but tokenizer.json says 'ą'"),
        ({"<|new|>": N + 2}, rf"tokenizer.json has {N} as its next free id"),
    ],
)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "added_tokens.json"])
def test_added_tokens_that_contradict_are_refused(tmp_path: Path, file: str, token: dict[str, int], words: str) -> None:
    content = {"added_tokens_decoder": decoder(**token)} if file == "tokenizer_config.json" else token
    with pytest.raises(DataError, match=f"{file}: token .*{words}"):
        assemble(with_files(tmp_path / "m", {file: content}))


def test_an_added_token_with_two_ids_is_refused(tmp_path: Path) -> None:
    """In transformers it depends on the tokenizer's class which of them counts."""
    files = {"tokenizer_config.json": {"added_tokens_decoder": decoder(**{"<|im_end|>": N})}}
    with pytest.raises(DataError, match=rf"token {N} is '<\|im_end\|>', but tokenizer.json says that it is {IM_END}"):
        assemble(with_files(tmp_path / "m", files))


@pytest.mark.parametrize(("listed", "eos"), [(False, START), (True, IM_END)])
def test_special_tokens_map(tmp_path: Path, listed: bool, eos: int) -> None:
    """It counts where tokenizer_config.json does not list added tokens."""
    files: dict[str, Any] = {"special_tokens_map.json": {"eos_token": {"content": "<|endoftext|>"}}}
    if listed:
        files["tokenizer_config.json"] = {"added_tokens_decoder": decoder(**SPECIAL_IDS)}
    plan = assemble(with_files(tmp_path / "m", files))
    assert meta(plan)["ggml.eos_token_id"] == eos
    assert "'<|im_end|>' in tokenizer_config.json and '<|endoftext|>' in special_tokens_map.json" in plan.warnings[-1]


def test_special_tokens_map_alone(tmp_path: Path) -> None:
    files = {"special_tokens_map.json": {"eos_token": "<|im_start|>"}, "tokenizer_config.json": {"eos_token": None}}
    plan = assemble(with_files(tmp_path / "m", files))
    assert meta(plan)["ggml.eos_token_id"] == IM_START


def test_kinds_that_gguf_does_not_know_are_left_out(tmp_path: Path) -> None:
    plan = assemble(with_files(tmp_path / "m", {"tokenizer_config.json": {"cls_token": "<|im_start|>"}}))
    assert not [key for key in plan.metadata if "cls" in key]


@pytest.mark.parametrize("value", [5, ["<|im_end|>"], {"content": 5}])
def test_an_eos_that_is_no_text_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match=r"tokenizer_config.json: eos_token is .*expected the text of one token"):
        assemble(with_files(tmp_path / "m", {"tokenizer_config.json": {"eos_token": value}}))


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("post", ["bytes", "bos", None])
@pytest.mark.parametrize("flag", [None, True, False])
def test_the_post_processor_decides_about_bos(tmp_path: Path, family: str, post: str | None, flag: bool | None) -> None:
    builders.checkpoint(tmp_path / "m", family)
    change_json(tmp_path / "m" / "tokenizer_config.json", add_bos_token=flag)
    if post == "bos":
        builders.add_bos(tmp_path / "m")
    elif post is None:
        change_json(tmp_path / "m" / "tokenizer.json", post_processor=None)
    plan = assemble(tmp_path / "m")
    assert meta(plan).get("ggml.add_bos_token", False) is (post == "bos")
    assert len(plan.warnings) == (flag is not None and flag is not (post == "bos"))


# ------------------------------------------------------------------------------------------------------- chat template


NAMED = [{"name": "default", "template": OTHER}, {"name": "tool", "template": "x"}]


@pytest.mark.parametrize(
    ("files", "template", "n_warnings"),
    [
        ({"tokenizer_config.json": OTHER}, OTHER, 0),
        ({"tokenizer_config.json": {t["name"]: t["template"] for t in NAMED}}, OTHER, 0),
        ({"tokenizer_config.json": NAMED}, OTHER, 0),
        ({"chat_template.jinja": OTHER}, OTHER, 0),
        ({"chat_template.json": OTHER}, OTHER, 0),
        ({"chat_template.jinja": OTHER, "tokenizer_config.json": builders.CHATML}, OTHER, 1),
        ({"chat_template.jinja": OTHER, "tokenizer_config.json": OTHER}, OTHER, 0),
        ({"chat_template.json": OTHER, "tokenizer_config.json": builders.CHATML}, builders.CHATML, 1),
        ({"chat_template.jinja": OTHER, "additional_chat_templates/tool.jinja": "x"}, OTHER, 0),
        ({}, None, 0),
    ],
)
def test_chat_template_in_several_places(tmp_path: Path, files: dict[str, Any], template: Any, n_warnings: int) -> None:
    builders.checkpoint(tmp_path)
    change_json(tmp_path / "tokenizer_config.json", chat_template=None)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".jinja"):
            (tmp_path / name).write_text(content)
        else:
            change_json(tmp_path / name, chat_template=content)
    plan = assemble(tmp_path)
    assert meta(plan).get("chat_template") == template
    assert meta(plan).get("chat_template.tool") == ("x" if "tool" in str(files) else None)
    assert len(plan.warnings) == n_warnings


# ---------------------------------------------------------------------------------------------------------------- ends


UNKNOWN_ENDS = ["<|a|>", "<|b|>", "<|c|>"]


def model_with_ends(folder: Path, specials: list[str], eos: str | None, **configs: Any) -> QuantizePlan:
    """A model whose tokens are those of the builders with other special ones; `configs` are lists of their names."""
    tokenizer = builders.byte_level_tokenizer(specials)
    ids = {t["content"]: t["id"] for t in tokenizer["added_tokens"]} | {"nowhere": 99_999} | tokenizer["model"]["vocab"]
    builders.checkpoint(folder, vocab_size=builders.n_tokens(tokenizer), bos_token_id=None, eos_token_id=None)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    change_json(folder / "tokenizer_config.json", bos_token=None, pad_token=None, eos_token=eos)
    for name, value in configs.items():
        given = [ids[text] for text in value] if isinstance(value, list) else ids[value]
        change_json(folder / f"{name}.json", eos_token_id=given)
    return assemble(folder)


@pytest.mark.parametrize(
    ("specials", "eos", "configs", "expected", "n_warnings"),
    [
        # llama.cpp ends at these by their names
        (["<|im_end|>", "<|endoftext|>"], "<|im_end|>", {"generation_config": ["<|im_end|>", "<|endoftext|>"]}, {}, 0),
        # it knows none but EOS: the second is the end of a turn, the others jmedlite's
        (["<|im_end|>", "<|a|>"], "<|im_end|>", {"generation_config": ["<|im_end|>", "<|a|>"]}, {"eot": "<|a|>"}, 0),
        (UNKNOWN_ENDS, "<|a|>", {"config": UNKNOWN_ENDS}, {"eot": "<|b|>", "ends": ["<|c|>"]}, 0),
        # it knows an end of a turn beside EOS, which stays
        (
            ["<|endoftext|>", "<|assistant|>", "<|end|>"], "<|endoftext|>",
            {"generation_config": ["<|endoftext|>", "<|assistant|>", "<|end|>"]}, {"ends": ["<|assistant|>"]}, 0,
        ),
        # a list in config.json and nothing else
        (UNKNOWN_ENDS[:2], None, {"config": UNKNOWN_ENDS[:2]}, {"eos": "<|a|>", "eot": "<|b|>"}, 0),
        # sources that differ: generate's, and what the tokenizer calls EOS
        (UNKNOWN_ENDS, "<|a|>", {"generation_config": "<|b|>"}, {"eot": "<|b|>"}, 1),
        (UNKNOWN_ENDS, "<|a|>", {"config": "<|b|>"}, {"eot": "<|b|>"}, 1),
        (UNKNOWN_ENDS, None, {"config": "<|a|>", "generation_config": "<|b|>"}, {"eos": "<|b|>"}, 1),
        (UNKNOWN_ENDS, "<|a|>", {"config": "<|c|>", "generation_config": ["<|a|>", "<|b|>"]}, {"eot": "<|b|>"}, 1),
        (UNKNOWN_ENDS, "<|a|>", {"config": "<|a|>", "generation_config": ["<|b|>", "<|a|>"]}, {"eot": "<|b|>"}, 0),
        (UNKNOWN_ENDS, "<|a|>", {"generation_config": ["<|a|>", "nowhere"]}, {}, 1),
        # a word: left from another vocabulary, unless generate is told of it
        (UNKNOWN_ENDS, "<|a|>", {"config": "hello"}, {}, 1),
        (UNKNOWN_ENDS, "<|a|>", {"config": ["<|a|>", "<|b|>", "hello"]}, {"eot": "<|b|>"}, 1),
        (UNKNOWN_ENDS, "<|a|>", {"config": ["<|b|>", "hello"]}, {"eot": "<|b|>"}, 2),
        (UNKNOWN_ENDS, "<|a|>", {"config": "hello", "generation_config": ["<|a|>", "hello"]}, {"eot": "hello"}, 0),
        (UNKNOWN_ENDS, None, {"config": "hello"}, {"eos": "hello"}, 0),
    ],
)  # fmt: skip
def test_every_end_token_ends(
    tmp_path: Path, specials: list[str], eos: str | None, configs: Any, expected: Any, n_warnings: int
) -> None:
    plan = model_with_ends(tmp_path, specials, eos, **configs)
    found = meta(plan)
    tokens = [t.decode() for t in found["ggml.tokens"]]
    of = {kind: found.get(f"ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")}
    texts = {kind: tokens[i] for kind, i in of.items() if i is not None}
    if "jmedlite.tokenizer.end_token_ids" in found:
        texts["ends"] = [tokens[i] for i in found["jmedlite.tokenizer.end_token_ids"]]
    assert texts == {**({"eos": eos} if eos else {}), **expected}
    assert len(plan.warnings) == n_warnings, plan.warnings


def vocabulary_alone(path: Path, tokens: list[str]) -> None:
    w = gguf.GGUFWriter(path, "qwen2")
    for add in (w.add_context_length, w.add_embedding_length, w.add_block_count, w.add_feed_forward_length):
        add(1)
    w.add_head_count(1)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(["x", "y", "xy", *tokens])
    w.add_token_types([1, 1, 1] + [3] * len(tokens))
    w.add_token_merges(["x y"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def test_llama_cpp_ends_at_these_names(tmp_path: Path) -> None:
    llama = libllama()
    params = llama.llama_model_default_params()
    params.vocab_only = True
    for text in sorted(ENDS_BY_NAME):
        vocabulary_alone(tmp_path / "v.gguf", [text, "<|another|>"])
        model = llama.llama_model_load_from_file(str(tmp_path / "v.gguf").encode(), params)
        vocab = llama.llama_model_get_vocab(model)
        assert [bool(llama.llama_vocab_is_eog(vocab, i)) for i in (3, 4)] == [True, False], text
        llama.llama_model_free(model)


# ------------------------------------------------------------------------------------------------------------- adapters


@pytest.fixture
def base(tmp_path: Path) -> builders.Arrays:
    """A base model without a chat template, whose EOS is <|endoftext|>."""
    tensors = builders.checkpoint(tmp_path / "m", eos_token_id=START)
    change_json(tmp_path / "m" / "tokenizer_config.json", chat_template=None, eos_token="<|endoftext|>")
    return tensors


def adapter(folder: Path, base: builders.Arrays, tokenizer: dict[str, Any] | None = None, **settings: Any) -> Path:
    """An adapter with a tokenizer_config.json, and a tokenizer.json where one is given."""
    builders.adapter(folder, base)
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    change_json(folder / "tokenizer_config.json", **names | settings)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def merged(tmp_path: Path, *adapters: Path | tuple[Path, float]) -> QuantizePlan:
    given = [a if isinstance(a, tuple) else (a, 1.0) for a in adapters]
    return assemble(tmp_path / "m", adapters=given)


@pytest.mark.parametrize("with_vocabulary", [True, False])
def test_a_fine_tune_brings_its_template_and_eos(tmp_path: Path, base: builders.Arrays, with_vocabulary: bool) -> None:
    tokenizer = builders.byte_level_tokenizer() if with_vocabulary else None
    a = adapter(tmp_path / "a", base, tokenizer, eos_token="<|im_end|>", pad_token="<|im_start|>")
    (a / "chat_template.jinja").write_text(builders.CHATML)
    found, warnings = meta(merged(tmp_path, a)), merged(tmp_path, a).warnings
    assert found["chat_template"] == builders.CHATML
    assert found["ggml.eos_token_id"] == IM_END
    assert found["ggml.padding_token_id"] == START  # nothing is padded: the base's stays
    assert "adapter a: its eos_token '<|im_end|>' and chat template taken instead of the base's" in warnings


def test_an_adapter_with_the_bases_tokenizer_changes_nothing(tmp_path: Path, base: builders.Arrays) -> None:
    a = adapter(tmp_path / "a", base, builders.byte_level_tokenizer())
    plan, plain = merged(tmp_path, a), assemble(tmp_path / "m")
    assert plan.metadata == plain.metadata
    assert list(plan.metadata) == list(plain.metadata)
    assert not plan.warnings


def test_the_last_adapter_that_says_something_wins(tmp_path: Path, base: builders.Arrays) -> None:
    one = adapter(tmp_path / "a", base, eos_token="<|im_end|>", chat_template=builders.CHATML)
    two = adapter(tmp_path / "b", base, chat_template=OTHER)  # its EOS is the base's, which says nothing
    plan = merged(tmp_path, one, two)
    assert (meta(plan)["chat_template"], meta(plan)["ggml.eos_token_id"]) == (OTHER, IM_END)
    assert "adapter b: its chat template taken instead of adapter a's" in plan.warnings
    plan = merged(tmp_path, one, (two, -1.0))  # taken away, not added
    assert meta(plan)["chat_template"] == builders.CHATML


def test_bos_of_an_adapter(tmp_path: Path, base: builders.Arrays) -> None:
    a = adapter(tmp_path / "a", base, builders.byte_level_tokenizer() | {"post_processor": builders.bos_first()})
    plan = merged(tmp_path, a)
    assert meta(plan)["ggml.add_bos_token"] is True
    assert "a text begins with BOS" in plan.warnings[0]


def renamed(i: int, text: str) -> dict[str, Any]:
    """The builders' tokenizer with another text for the token `i`."""
    tokenizer = builders.byte_level_tokenizer()
    for entry in tokenizer["added_tokens"]:
        entry["content"] = text if entry["id"] == i else entry["content"]
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {text if j == i else t: j for t, j in vocab.items()}
    return tokenizer


def test_another_vocabulary_belongs_to_another_base(tmp_path: Path, base: builders.Arrays) -> None:
    a = adapter(tmp_path / "a", base, renamed(70, "zz"))
    with pytest.raises(DataError, match=r"adapter a: its tokenizer says that token 70 is 'zz'.*another base"):
        merged(tmp_path, a)


def test_other_added_tokens_within_the_embedding_are_taken(tmp_path: Path, base: builders.Arrays) -> None:
    a = adapter(tmp_path / "a", base, renamed(IM_START, "<|mine|>"))
    plan = merged(tmp_path, a)
    assert meta(plan)["ggml.tokens"][IM_START] == b"<|mine|>"
    assert f"'<|mine|>' as token {IM_START}, taken" in plan.warnings[0]


def test_tokens_beyond_the_embedding(tmp_path: Path, base: builders.Arrays) -> None:
    """A padding token is never seen; one that prompts or answers are made of would be."""
    tokenizer = builders.byte_level_tokenizer([*builders.SPECIALS, "[PAD]"])
    plan = merged(tmp_path, adapter(tmp_path / "a", base, tokenizer, pad_token="[PAD]"))
    assert len(meta(plan)["ggml.tokens"]) == N
    assert f"has '[PAD]' as token {N}, the embedding has {N} rows" in plan.warnings[0]
    for settings in ({"eos_token": "[PAD]"}, {"chat_template": "{{ messages }}[PAD]"}):
        with pytest.raises(DataError, match=r"trained with the token '\[PAD\]'.*modules_to_save"):
            merged(tmp_path, adapter(tmp_path / "a", base, tokenizer, **settings))


def test_an_eos_that_is_no_token(tmp_path: Path, base: builders.Arrays) -> None:
    with pytest.raises(DataError, match=r"adapter a: ends its answers with '<\|never\|>'"):
        merged(tmp_path, adapter(tmp_path / "a", base, eos_token="<|never|>"))


def test_added_tokens_without_a_vocabulary(tmp_path: Path, base: builders.Arrays) -> None:
    assert merged(tmp_path, adapter(tmp_path / "a", base, added_tokens_decoder=decoder(**SPECIAL_IDS)))
    with pytest.raises(DataError, match=rf"adapter a: says that token {IM_END} is '<\|mine\|>'"):
        merged(tmp_path, adapter(tmp_path / "a", base, added_tokens_decoder=decoder(**{"<|mine|>": IM_END})))


def grown(folder: Path, base: builders.Arrays, n: int = N + 2) -> builders.Arrays:
    """An adapter that trained an embedding and a head of `n` rows; returns its tensors."""
    ab = builders.adapter(folder, base, modules_to_save=["embed_tokens", "lm_head"])
    rows = builders.weights(builders.config("qwen2", n), seed=5)
    ab |= {f"base_model.model.{k}": rows[k] for k in ("model.embed_tokens.weight", "lm_head.weight")}
    builders.write_safetensors(folder / "adapter_model.safetensors", ab, "F32")
    return ab


def test_a_grown_vocabulary_keeps_what_it_does_not_say(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m")
    grown(tmp_path / "a", base)
    tokenizer = builders.byte_level_tokenizer([*builders.SPECIALS, "<|x|>", "<|y|>"])
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps(tokenizer))
    change_json(tmp_path / "a" / "tokenizer_config.json", eos_token="<|y|>")
    found = meta(merged(tmp_path, tmp_path / "a"))
    assert found["ggml.tokens"][-1] == b"<|y|>"
    assert found["chat_template"] == builders.CHATML
    assert (found["ggml.bos_token_id"], found["ggml.eos_token_id"]) == (START, N + 1)


def test_grown_without_a_tokenizer_is_said(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m")
    grown(tmp_path / "a", base)
    plan = merged(tmp_path, tmp_path / "a")
    assert "adapter a: trained the embedding and brings no tokenizer" in plan.warnings[0]


@pytest.mark.parametrize("named", [True, False])
def test_a_slow_tokenizer_keeps_bos_and_eos(tmp_path: Path, named: bool) -> None:
    """tokenizer.model alone, beside a trained embedding: no tokenizer.json lists its special tokens."""
    base = builders.checkpoint(tmp_path / "m", "llama", vocab_size=N_PIECES, bos_token_id=1, eos_token_id=2)
    both(tmp_path / "m", [])
    change_json(tmp_path / "m" / "tokenizer.json", post_processor=None)
    ab = builders.adapter(tmp_path / "a", base, modules_to_save=["embed_tokens"])
    ab["base_model.model.model.embed_tokens.weight"] = base["model.embed_tokens.weight"] + 1
    builders.write_safetensors(tmp_path / "a" / "adapter_model.safetensors", ab, "F32")
    builders.write_sentencepiece(tmp_path / "a" / "tokenizer.model", PIECES)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True} if named else {}
    change_json(tmp_path / "a" / "tokenizer_config.json", **settings)
    found = meta(merged(tmp_path, tmp_path / "a"))
    assert (found["ggml.bos_token_id"], found["ggml.eos_token_id"]) == (1, 2)
    assert found["ggml.add_bos_token"] is named  # the base's says no, the adapter's own may say yes


def test_an_adapter_of_a_gguf_brings_its_template(tmp_path: Path, base: builders.Arrays) -> None:
    a = adapter(tmp_path / "a", base, builders.byte_level_tokenizer(), eos_token="<|im_end|>", chat_template=OTHER)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path, threads=1)
    (made,) = jmedlite.quantize(path, lora=[str(a)], types=["F32"], out=tmp_path / "out", threads=1)
    found = read_header(made).metadata
    assert (found["tokenizer.chat_template"], found["tokenizer.ggml.eos_token_id"]) == (OTHER, IM_END)
    adapter(tmp_path / "b", base, renamed(IM_START, "<|mine|>"))
    with pytest.raises(DataError, match=r"other tokens than the tokenizer of adapter b"):
        assemble(path, adapters=[(tmp_path / "b", 1.0)])


def test_an_exported_adapter_says_what_it_leaves_out(tmp_path: Path, base: builders.Arrays) -> None:
    one = adapter(tmp_path / "a", base, builders.byte_level_tokenizer(), chat_template=OTHER)
    two = adapter(tmp_path / "b", base, builders.byte_level_tokenizer())
    (warning,) = export_adapters(str(tmp_path / "m"), [str(one)], out=tmp_path).warnings
    assert "adapter a: brings its own tokenizer.chat_template, which a GGUF adapter can't hold" in warning
    assert not export_adapters(str(tmp_path / "m"), [str(two)], out=tmp_path).warnings


# --------------------------------------------------------------------------------------------------------------- oracle


@pytest.mark.oracle
@pytest.mark.parametrize("case", [*ADDED, "jinja", "map", "map, listed", "flag"])
def test_as_transformers_reads_it(tmp_path: Path, case: str) -> None:
    from transformers import AutoTokenizer

    files: dict[str, Any] = {
        "jinja": {"tokenizer_config.json": {"chat_template": builders.CHATML}},
        "map": {"special_tokens_map.json": {"eos_token": "<|endoftext|>"}},
        "map, listed": {
            "special_tokens_map.json": {"eos_token": "<|endoftext|>"},
            "tokenizer_config.json": {"added_tokens_decoder": decoder(**SPECIAL_IDS)},
        },
        "flag": {"tokenizer_config.json": {"add_bos_token": True}},
    }.get(case) or ADDED[case][0]
    with_files(tmp_path, files)
    if case == "jinja":
        (tmp_path / "chat_template.jinja").write_text(OTHER)
    theirs, found = AutoTokenizer.from_pretrained(tmp_path), meta(assemble(tmp_path))
    tokens = found["ggml.tokens"]
    assert theirs.chat_template == found["chat_template"]
    assert theirs.eos_token_id == found["ggml.eos_token_id"]
    assert (theirs("a").input_ids[0] == START) is found.get("ggml.add_bos_token", False)
    for text, i in theirs.get_vocab().items():
        assert tokens[i].decode() == text


def test_several_templates_have_one_default(tmp_path: Path) -> None:
    change_json(tmp_path / "tokenizer_config.json", chat_template=NAMED)
    assert default_template(read_tokenizer_files(tmp_path).template) == OTHER
