"""The vocabulary in the GGUF, tokenized by llama.cpp, against the tokenizers and sentencepiece libraries."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import jmedlite
from jmedlite.base.errors import DataError
from jmedlite.base.gguf import read_header
from jmedlite.convert.metadata.tokenizer import _PRE_TOKENIZERS, read_vocabulary
from jmedlite.runtime.chat_template import Message, Part, build_prompt
from jmedlite.runtime.vocabulary import Vocabulary
from tests.support import builders
from tests.support.texts import SAMPLES, lines


def tokenize_all(path: Path, texts: list[str], *parse_special: bool) -> list[list[int]]:
    """The tokens of all texts, once for every way of taking special tokens, one after the other."""
    with jmedlite.Runner(path) as runner:
        return [runner.tokenize(t, parse_special=parsed) for parsed in parse_special for t in texts]


def neox_tokenizer() -> dict[str, Any]:
    """GPT-NeoX's kind: words cut by the byte-level step itself, NFC, and runs of spaces as added tokens."""
    described = builders.byte_level_tokenizer()
    n = builders.n_tokens(described)
    spaces = [
        {"id": n + i, "content": " " * k, "special": False, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": True} for i, k in enumerate(range(12, 1, -1))
    ]  # fmt: skip
    return described | {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "added_tokens": described["added_tokens"] + spaces,
    }


@pytest.mark.parametrize("family", list(builders.FAMILIES))
def test_byte_level_tokens_equal_tokenizers(tmp_path: Path, family: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    described = neox_tokenizer() if family == "gpt_neox" else builders.byte_level_tokenizer()
    if family.startswith("qwen3_5"):
        described["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = builders.QWEN35_SPLIT
    builders.checkpoint(tmp_path / "m", family, vocab_size=builders.n_tokens(described))
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    texts = lines(400)
    ours = tokenize_all(path, texts, True, False)
    assert ours[: len(texts)] == [reference.encode(t, add_special_tokens=False).ids for t in texts]
    # typed control tokens stay text
    reference.encode_special_tokens = True
    assert ours[len(texts) :] == [reference.encode(t, add_special_tokens=False).ids for t in texts]


def train(**changes: Any) -> bytes:
    """A small SentencePiece model; without changes BPE with byte fallback, as Llama 2's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    options = {
        "vocab_size": 420, "model_type": "bpe", "byte_fallback": True, "character_coverage": 0.98,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "num_threads": 1, "minloglevel": 2,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([t for t in SAMPLES if t.strip()] * 20), model_writer=out, **options | changes
    )
    return out.getvalue()


@pytest.fixture(scope="module")
def spm_model() -> bytes:
    return train()


def spm_checkpoint(folder: Path, model: bytes, family: str = "llama") -> Any:
    """A checkpoint with that tokenizer; returns sentencepiece's processor."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    builders.checkpoint(folder, family, vocab_size=processor.vocab_size())
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True})
    )
    config = json.loads((folder / "config.json").read_text()) | {"bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return processor


GEMMA = {"add_dummy_prefix": False, "user_defined_symbols": ["▁▁", "▁▁▁▁", "<b>", "\t\t"], "vocab_size": 440}


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("mistral", {}), ("phi3", {}), ("gemma2", GEMMA), ("gemma3_text", GEMMA)],
)
def test_sentencepiece_tokens_equal_sentencepiece(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    processor = spm_checkpoint(tmp_path / "m", train(**changes), family)
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    meta = read_header(path).metadata
    assert meta["tokenizer.ggml.model"] == "llama"
    assert meta["tokenizer.ggml.bos_token_id"] == 1
    texts = [t for t in lines(400) if "\n" not in t and t.strip(" \t")]
    assert tokenize_all(path, texts, False) == [processor.encode(t) for t in texts]


def byte_fallback_json(processor: Any) -> dict[str, Any]:
    """The same vocabulary as a tokenizer.json of Llama's kind: merges in the order of their scores."""
    vocab = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    merges = [
        (processor.get_score(i), piece[:k], piece[k:])
        for piece, i in vocab.items()
        for k in range(1, len(piece))
        if not processor.is_byte(i) and i > 2 and piece[:k] in vocab and piece[k:] in vocab
    ]
    merges.sort(key=lambda m: -m[0])
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": t, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False} for i, t in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                  "ignore_merges": False, "vocab": vocab, "merges": [[a, b] for _, a, b in merges]},
    }  # fmt: skip


def test_gemma_4s_tokenizer_json(tmp_path: Path) -> None:
    """It has no tokenizer.model; spaces are replaced, and nothing is put before a text. Merges reach beyond lines."""
    import tokenizers

    symbols = ["▁▁", "▁▁▁▁", "\n", "\n\n", "\n\n\n"]
    processor = spm_checkpoint(
        tmp_path / "m", train(add_dummy_prefix=False, user_defined_symbols=symbols, vocab_size=440), "gemma4_text"
    )
    described = byte_fallback_json(processor)
    described["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    described["pre_tokenizer"] = {
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
    }  # fmt: skip
    (tmp_path / "m" / "tokenizer.model").unlink()
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    reference = tokenizers.Tokenizer.from_str(json.dumps(described))
    texts = [t for t in lines(400) if "s>" not in t]
    texts += ["a" + "\n" * 7 + "b", "\n" * 40, "x \n y\n\n  z", "  hello  the   thing"]
    expected = [reference.encode(t, add_special_tokens=False).ids for t in texts]
    assert tokenize_all(path, texts, False) == expected


def test_byte_fallback_tokenizer_json(tmp_path: Path, spm_model: bytes) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    processor = spm_checkpoint(tmp_path / "m", spm_model)
    (tmp_path / "m" / "tokenizer.model").unlink()
    file = tmp_path / "m" / "tokenizer.json"
    file.write_text(json.dumps(byte_fallback_json(processor)), encoding="utf-8")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    assert read_header(path).metadata["tokenizer.ggml.add_bos_token"] is True
    reference = tokenizers.Tokenizer.from_file(str(file))
    texts = [t for t in lines(300) if t.strip() and "<" not in t]
    assert tokenize_all(path, texts, False) == [reference.encode(t, add_special_tokens=False).ids for t in texts]


UNIGRAM = {"model_type": "unigram", "hard_vocab_limit": False, "vocab_size": 400}


@pytest.mark.parametrize(
    "changes",
    [
        {"byte_fallback": False},
        {"byte_fallback": False, "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"byte_fallback": False, "add_dummy_prefix": False, "normalization_rule_name": "nmt_nfkc"},
    ],
)
def test_unigram_tokens_equal_sentencepiece(tmp_path: Path, changes: dict[str, Any]) -> None:
    processor = spm_checkpoint(tmp_path / "m", train(**UNIGRAM | changes), "gpt_neox")
    (tmp_path / "m" / "tokenizer.model").rename(tmp_path / "m" / "spiece.model")  # rinna's name for it
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    meta = read_header(path).metadata
    assert meta["tokenizer.ggml.model"] == "t5"
    assert meta["tokenizer.ggml.unknown_token_id"] == processor.unk_id()
    texts = [t for t in lines(400) if t.strip()]
    same = 0
    for text, ours in zip(texts, tokenize_all(path, texts, False), strict=True):
        expected = processor.encode(text)
        same += ours == expected
        # "aaaaa" has several cuts of the same likelihood; sums in float32 and float64 choose differently
        assert sorted(ours) == sorted(expected), text
        assert "".join(map(processor.id_to_piece, ours)) == "".join(map(processor.id_to_piece, expected))
    assert same >= len(texts) - 20


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_unigram_spells_unknown_characters_as_bytes(tmp_path: Path, rule: str) -> None:
    """rinna's kind: llama.cpp would give one unknown token, the runner spells them."""
    model = train(**UNIGRAM, add_dummy_prefix=False, normalization_rule_name=rule)
    processor = spm_checkpoint(tmp_path / "m", model, "gpt_neox")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    rng = random.Random(1)
    rare = ["".join(chr(rng.randrange(0x4E00, 0x9FA0)) + rng.choice("高血圧a ") for _ in range(9)) for _ in range(50)]
    texts = [t for t in lines(400) if t.strip() and "<" not in t] + ["鬱血性心不全 𠮷野家 ㌔ ㍿", "ǅ①ﬁ", *rare]
    found = tokenize_all(path, texts, False)
    assert processor.unk_id() not in {i for tokens in found for i in tokens}
    assert sum(processor.is_byte(i) for tokens in found for i in tokens) > 500
    different = [(t, x, y) for t, x, y in zip(texts, found, map(processor.encode, texts), strict=True) if x != y]
    # "aaaaa" has several cuts of the same likelihood
    assert all(sorted(x) == sorted(y) for _, x, y in different), different[:3]
    assert len(different) < 20


def unigram_json(processor: Any, **changes: Any) -> dict[str, Any]:
    """A unigram vocabulary as LLM-jp writes its tokenizer.json: spaces in the normalizer, nothing before the model."""
    described = byte_fallback_json(processor)
    spaces = [("(?<!\\n)^", "▁"), (" ", "▁")]
    return described | {
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": pattern}, "content": content} for pattern, content in spaces]},
        "model": {
            "type": "Unigram", "unk_id": 0, "byte_fallback": True,
            "vocab": [[processor.id_to_piece(i), processor.get_score(i)] for i in range(processor.vocab_size())],
        },
    } | changes  # fmt: skip


@pytest.mark.parametrize("without", ["", "高血a"])
def test_a_unigram_tokenizer_json(tmp_path: Path, without: str) -> None:
    """LLM-jp's kind, which has no other file; also where a character has no piece of its own, only longer ones."""
    tokenizers = pytest.importorskip("tokenizers")
    processor = spm_checkpoint(tmp_path / "m", train(**UNIGRAM))
    (tmp_path / "m" / "tokenizer.model").unlink()
    described = unigram_json(processor)
    longer = {"高血圧": -9.0, "▁高血": -8.0, "aa": -7.0} if without else {}
    vocab = described["model"]["vocab"]
    for i, (piece, _) in enumerate(vocab):  # which pieces are trained depends on sentencepiece's version
        if piece in without or piece in longer:
            vocab[i] = [f"[gone {i}]", -99.0]
    vocab[300 : 300 + len(longer)] = map(list, longer.items())
    file = tmp_path / "m" / "tokenizer.json"
    file.write_text(json.dumps(described), encoding="utf-8")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    meta = read_header(path).metadata
    assert (meta["tokenizer.ggml.model"], meta["jmedlite.tokenizer.space_prefix"]) == ("t5", "prepend")
    reference = tokenizers.Tokenizer.from_file(str(file))
    rng = random.Random(1)
    rare = ["".join(chr(rng.randrange(0x4E00, 0x9FA0)) + rng.choice("高血圧a ") for _ in range(9)) for _ in range(50)]
    texts = [*lines(400), *rare, "a\nb\n c", "\n\n x", "  lead", "trail  ", "▁x", "a<s>b c</s>", "鬱"]
    found = tokenize_all(path, texts, True)
    assert found == [reference.encode(t, add_special_tokens=False).ids for t in texts]
    assert sum(processor.is_byte(i) for tokens in found for i in tokens) > 500
    typed = tokenize_all(path, ["a<s>b", "<0x41>"], False)  # neither control tokens nor bytes by their names
    assert not {i for tokens in typed for i in tokens} & {0, 1, 2, processor.piece_to_id("<0x41>")}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]], "byte_fallback": False}}, "byte fallback"),
        ({"model": {"type": "Unigram", "unk_id": 0, "vocab": {"a": 0}, "byte_fallback": True}}, "tokens with scores"),
        ({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 10**400]], "byte_fallback": True}}, "malformed"),
        ({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 1e999]], "byte_fallback": True}}, "not finite"),
        (
            {"model": {"type": "Unigram", "unk_id": "0", "vocab": [["a", 0.0]], "byte_fallback": True}},
            "unk_id is",
        ),
        ({"normalizer": {"type": "NFKC"}}, "leaves spaces as they are"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "^"}, "content": "▁"}}, "Replace"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
    ],
)
def test_other_unigram_vocabularies_are_refused(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    processor = spm_checkpoint(tmp_path / "m", train(**UNIGRAM))
    (tmp_path / "m" / "tokenizer.model").unlink()
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(unigram_json(processor, **changes)), encoding="utf-8")
    with pytest.raises(DataError, match=word):
        read_vocabulary(tmp_path / "m", 1000)


def test_unigram_with_bytes_and_a_prefix_is_refused(tmp_path: Path) -> None:
    spm_checkpoint(tmp_path / "m", train(**UNIGRAM))
    with pytest.raises(DataError, match="adds or removes spaces"):
        read_vocabulary(tmp_path / "m", 1000)


@pytest.mark.parametrize("kind", ["char", "word"])
def test_other_sentencepiece_models_are_refused(tmp_path: Path, kind: str) -> None:
    spm_checkpoint(tmp_path / "m", train(model_type=kind, hard_vocab_limit=False, byte_fallback=False))
    with pytest.raises(DataError, match="words or characters"):
        read_vocabulary(tmp_path / "m", 1000)


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        ([{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}], False, "gpt-2"),
        (
            [{"type": "Digits", "individual_digits": True},
             {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}], False, "smollm",
        ),
        (
            [{"type": "Split", "behavior": "Isolated", "invert": False,
              "pattern": {"Regex": builders.QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")}},
             {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}], True, "llama-bpe",
        ),
        (
            [{"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": builders.QWEN35_SPLIT}},
             {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}], False, "qwen35",
        ),
    ],
)  # fmt: skip
def test_pre_tokenizers(tmp_path: Path, steps: list[Any], ignore_merges: bool, name: str) -> None:
    builders.checkpoint(tmp_path)
    described = builders.byte_level_tokenizer()
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    described["model"]["ignore_merges"] = ignore_merges
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    assert read_vocabulary(tmp_path, builders.n_tokens(described)).pre == name


CASES = [
    "ＨｂＡ１ｃ ＡＢＣａｂｃ", "приВет МИР Привет", "éÉtude ÉTUDE École", "か\u3099き\u3099 は\u309aん", "ΑΒΓαβγ ΑβΓ",
    "I'LL we're IT'S", "naïve e\u0301tude E\u0301COLE", "हिन्दी में", "ﬀ ǅ ǈ", "ｶﾞｷﾞ", "123456 ١٢٣٤ １２３４５",
    "don't DON'T it'ſ", "β-hCG γ-GTP ΔF508", "μg/dL Na⁺", "a/b/c\n/d\r\n//e  \n x", "!!!\n\n???  \n  É",
]  # fmt: skip


@pytest.mark.parametrize("name", _PRE_TOKENIZERS.values())
def test_words_are_those_of_the_rule(tmp_path: Path, name: str) -> None:
    """With a vocabulary whose tokens cross every boundary between words, so that each cut shows."""
    tokenizers = pytest.importorskip("tokenizers")
    steps, whole_words = next(rule for rule, other in _PRE_TOKENIZERS.items() if other == name)
    texts = [*CASES, *(line for line in lines(400) if "</s>" not in line)]  # a name that llama.cpp takes for EOS
    of_bytes = tokenizers.pre_tokenizers.ByteLevel
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = of_bytes(add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=4000, min_frequency=1, initial_alphabet=of_bytes.alphabet(), show_progress=False
    )
    trained.train_from_iterator([*CASES * 3, *texts], trainer)
    merges = json.loads(trained.to_str())["model"]
    described = builders.byte_level_tokenizer()
    described["model"] |= {"vocab": merges["vocab"], "merges": merges["merges"], "ignore_merges": whole_words}
    for i, token in enumerate(described["added_tokens"]):
        token["id"] = len(merges["vocab"]) + i
    by_name = {
        "bytes": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "words+bytes": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "digits": {"type": "Digits", "individual_digits": True},
    }
    described["pre_tokenizer"]["pretokenizers"] = [
        by_name.get(step, {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False})
        for step in steps
    ]
    builders.checkpoint(tmp_path / "m", vocab_size=builders.n_tokens(described))
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    expected = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    assert tokenize_all(path, texts, True) == expected
    plain = [trained.encode(text).ids for text in texts]
    assert sum(one != other for one, other in zip(plain, expected, strict=True)) > 100  # so that the rule is seen


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer"),
        ({"pre_tokenizer": None}, "pre-tokenizer"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"model": {"type": "Unigram"}}, "Unigram"),
    ],
)
def test_what_llama_cpp_would_tokenize_differently_is_refused(
    tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    builders.checkpoint(tmp_path)
    described = builders.byte_level_tokenizer() | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(DataError, match=word):
        read_vocabulary(tmp_path, 1000)


def test_nfc_is_done_by_the_runner(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m")
    described = builders.byte_level_tokenizer() | {"normalizer": {"type": "NFC"}}
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    assert read_header(path).metadata["jmedlite.tokenizer.normalizer"] == "NFC"
    with jmedlite.Runner(path) as runner:
        composed, decomposed = (runner.ask(t, max_tokens=1, system="") for t in ("が", "か\u3099"))
    assert composed.n_prompt == decomposed.n_prompt


@pytest.mark.parametrize(("token", "special"), [("<image_soft_token>", True), ("[PAD]", False)])
def test_placeholder_beyond_the_embedding_is_left_out(tmp_path: Path, token: str, special: bool) -> None:
    """gemma-3-1b-it has a place for images in its tokenizer and no row for it; others a padding token."""
    builders.checkpoint(tmp_path / "m")
    described = builders.byte_level_tokenizer()
    n = builders.n_tokens(described)
    expected = read_vocabulary(tmp_path / "m", n)
    described["added_tokens"].append({**described["added_tokens"][0], "id": n, "content": token, "special": special})
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    (tmp_path / "m" / "added_tokens.json").write_text(json.dumps({token: n}))
    found = read_vocabulary(tmp_path / "m", n)
    assert (found.tokens, found.types) == (expected.tokens, expected.types)
    assert len(found.warnings) == 1
    assert token in found.warnings[0]
    # a template that writes it says so; the end of every answer can't be left out
    path = tmp_path / "m" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"chat_template": f"{{{{ messages }}}}{token}"}))
    assert "chat template" in read_vocabulary(tmp_path / "m", n).warnings[1]
    path.write_text(json.dumps(config | {"eos_token": {"content": token}}))
    with pytest.raises(DataError, match=f"up to {n}, the embedding has {n} rows"):
        read_vocabulary(tmp_path / "m", n)


# ------------------------------------------------------------------------------------------------ added tokens' flags


FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def flagged_tokens(first: int, normalized: bool = True) -> list[dict[str, Any]]:
    """Added tokens with all combinations of the flags, special and not, some of them beginnings of others."""
    found = []
    for k in range(32):
        flags = {flag: bool(k >> bit & 1) for bit, flag in enumerate(FLAGS)}
        flags["normalized"] &= normalized
        text = f"<{k}>" if k < 16 else f"t{k:02}l" if k % 3 else f"@{k:02}か\u3099"
        found.append({"id": first + k, "content": text, "special": k % 2 == 0, **flags})
    plain = dict.fromkeys(FLAGS, False)
    for k, text in enumerate(("[x]", "[x][y", "y] z", "{か\u3099}", "K;")):
        found.append(
            {"id": first + 32 + k, "content": text, "special": False, **plain, "normalized": normalized and k == 2}
        )
    return found


def mixtures(tokens: list[str], n: int) -> list[str]:
    """Seeded texts: words, white space, Japanese, and the tokens' texts glued to each other and to all that."""
    rng = random.Random(2)
    other = [
        "hello", "the", "a", "_", "9", "é", "e\u0301", "か", "\u3099", "が", "高血圧", "。", "Ⓐ", "\u200d", "\u212a",
        "\u037e", "▁", "▁x", "🇯🇵", "\x1c", "\x1f", "<", "[x", "<3", "hell",
    ]  # fmt: skip
    spaces = [" ", " ", " ", "  ", "\t", "\n", "\n\n", "\r\n", "\u3000", "\xa0", "\x85", "\u2028", "\x0b", "\u200b"]
    return ["".join(rng.choice(rng.choice((tokens, other, spaces, spaces))) for _ in range(rng.randrange(1, 14)))
            for _ in range(n)]  # fmt: skip


@contextmanager
def converted(folder: Path) -> Iterator[Vocabulary]:
    """The vocabulary of the checkpoint's GGUF, in this process."""
    from llama_cpp import llama_cpp

    (path,) = jmedlite.quantize(folder, types=["F32"], out=folder / "out")
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    yield Vocabulary(llama_cpp, model, read_header(path))
    llama_cpp.llama_model_free(model)


def same_tokens(folder: Path, reference: Any, n: int = 2000) -> None:
    """The runner's tokens of trusted text equal the reference's."""
    names = [t.content for t in reference.get_added_tokens_decoder().values()]
    with converted(folder) as vocabulary:
        for text in mixtures(names, n):
            ours = vocabulary.tokenize(text, parse_special=True)
            assert ours == reference.encode(text, add_special_tokens=False).ids, repr(text)


def test_chat_prompts_of_phi_3s_kind(tmp_path: Path) -> None:
    """Every added token eats the white space after it; what a person typed is no control token."""
    tokenizers = pytest.importorskip("tokenizers")
    builders.checkpoint(tmp_path, "phi3")
    described = builders.byte_level_tokenizer()
    for token in described["added_tokens"]:
        token["rstrip"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}<|im_start|>\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>\n"
    with converted(tmp_path) as vocabulary:
        prompt = build_prompt([Message("user", "hello")], system="", template=template)
        start, hello, end, last = vocabulary.tokenize_parts(prompt)
        assert start == last != end
        assert [hello] == reference.encode("hello").ids
        prompt = [Part("<|im_start|>", True), Part(" \u3000\nthe<|im_end|> ", False), Part("<|im_end|> \n", True)]
        typed = vocabulary.tokenize("the<|im_end|> ")
        assert end not in typed
        assert vocabulary.tokenize_parts(prompt) == [start, *typed, end]


@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}, {"type": "NFKC"}])
def test_flags_of_added_tokens_byte_level(tmp_path: Path, normalizer: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    described = builders.byte_level_tokenizer() | {"normalizer": normalizer}
    described["added_tokens"] += flagged_tokens(builders.n_tokens(described))
    builders.checkpoint(tmp_path, vocab_size=builders.n_tokens(described))
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    same_tokens(tmp_path, tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")))


METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}
SPACES: dict[str, dict[str, Any]] = {
    "each": {},
    "first": {"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": "first"}},
    "missing": {"normalizer": {"type": "NFC"}, "pre_tokenizer": METASPACE | {"prepend_scheme": "always"}},
    "never": {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}},
}


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("spaces", SPACES)
def test_flags_of_added_tokens_sentencepiece(tmp_path: Path, spm_model: bytes, spaces: str, pieces: bool) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    processor = spm_checkpoint(tmp_path, spm_model)
    described = byte_fallback_json(processor) | SPACES[spaces]
    described["added_tokens"] += flagged_tokens(processor.vocab_size())
    builders.checkpoint(tmp_path, "llama", vocab_size=processor.vocab_size() + 39)
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    if not pieces:
        (tmp_path / "tokenizer.model").unlink()
    same_tokens(tmp_path, tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")))


@pytest.mark.parametrize("prefix", [False, True])
def test_flags_of_added_tokens_unigram(tmp_path: Path, prefix: bool) -> None:
    """The flags come from tokenizer_config.json here; the reference is the same model in the tokenizers library."""
    tokenizers = pytest.importorskip("tokenizers")
    model = train(**UNIGRAM, add_dummy_prefix=prefix, byte_fallback=not prefix)
    processor = spm_checkpoint(tmp_path, model)
    n = processor.vocab_size()
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(n)]
    reference = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, processor.unk_id(), byte_fallback=not prefix))
    steps = [tokenizers.normalizers.Prepend("▁")] * prefix + [tokenizers.normalizers.Replace(" ", "▁")]
    reference.normalizer = tokenizers.normalizers.Sequence(steps)
    added = flagged_tokens(n, normalized=False)
    builders.checkpoint(tmp_path, "gpt_neox", vocab_size=n + len(added))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"unk_token": "<unk>", "added_tokens_decoder": {t.pop("id"): t for t in added}})
    )
    reference.add_tokens([tokenizers.AddedToken(**t) for t in added])
    same_tokens(tmp_path, reference)


def test_flags_that_need_no_key_change_nothing(tmp_path: Path) -> None:
    """Where nothing is to be stripped or normalized, the file is llama.cpp's."""
    described = neox_tokenizer()
    builders.checkpoint(tmp_path, "gpt_neox", vocab_size=builders.n_tokens(described))
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    vocabulary = read_vocabulary(tmp_path, builders.n_tokens(described))
    assert vocabulary.flags == {}
    assert vocabulary.space_prefix is None


@pytest.mark.parametrize(("flag", "warned"), [("lstrip", "differ in lstrip of '<|im_end|>'"), ("normalized", "")])
def test_flags_stand_twice(tmp_path: Path, flag: str, warned: str) -> None:
    """transformers takes tokenizer_config.json's, but for where a special token is looked for."""
    described = builders.byte_level_tokenizer()
    n = builders.n_tokens(described)
    builders.checkpoint(tmp_path)
    entry = {"content": "<|im_end|>", "special": True, "normalized": False, flag: True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {str(n - 1): entry}}))
    vocabulary = read_vocabulary(tmp_path, n)
    assert vocabulary.flags == ({flag: [n - 1]} if warned else {})
    assert any(warned in w for w in vocabulary.warnings) == bool(warned)


def test_what_can_not_be_told_apart_is_refused(tmp_path: Path, spm_model: bytes) -> None:
    processor = spm_checkpoint(tmp_path, spm_model)
    piece = next(p for p in map(processor.id_to_piece, range(300, 420)) if p.isascii() and len(p) > 1)
    described = byte_fallback_json(processor)
    alone = {"id": processor.piece_to_id(piece), "content": piece, "special": False, "single_word": True}
    described["added_tokens"].append(alone | dict.fromkeys(("lstrip", "rstrip", "normalized"), False))
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(DataError, match="single_word"):
        read_vocabulary(tmp_path, 420)
    for step, word in (({"type": "Lowercase"}, "Lowercase"), (None, "leaves spaces")):
        (tmp_path / "tokenizer.model").unlink(missing_ok=True)
        described = byte_fallback_json(processor) | {"normalizer": step}
        (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
        with pytest.raises(DataError, match=word):
            read_vocabulary(tmp_path, 420)


def test_typed_text_never_merges_into_a_control_token(tmp_path: Path, spm_model: bytes) -> None:
    """SentencePiece merges by the tokens' texts in llama.cpp: "<" + "s>" would be the beginning of a text."""
    processor = spm_checkpoint(tmp_path, spm_model)
    described = byte_fallback_json(processor)
    vocab = described["model"]["vocab"]
    first = processor.vocab_size()
    vocab |= {text: first + k for k, text in enumerate(("s>", "he", "the"))}
    described["model"]["merges"] += [["s", ">"]]
    builders.checkpoint(tmp_path, "llama", vocab_size=first + 3)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    tokenizers = pytest.importorskip("tokenizers")
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reference.encode_special_tokens = True
    (path,) = jmedlite.quantize(tmp_path, types=["F32"], out=tmp_path / "out")
    texts = ["<s>", "a <s> the</s>", "<s><s>高血圧 🫀<s"]
    found = tokenize_all(path, texts, False)
    assert found == [reference.encode(t, add_special_tokens=False).ids for t in texts]
    assert not any(i in (1, 2) for ids in found for i in ids)


def test_a_name_does_not_decide_what_is_stripped(tmp_path: Path) -> None:
    """llama.cpp strips white space after the tokens of every model whose name contains phi-3."""
    described = builders.byte_level_tokenizer(["<unk>", "<s>", "</s>", *builders.SPECIALS])  # llama.cpp looks for these
    builders.checkpoint(tmp_path / "m", "phi3", vocab_size=builders.n_tokens(described))
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    (tmp_path / "m" / "README.md").write_text("---\nmodel_name: Phi-3-tuned\n---\n")
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    assert "phi-3" in read_header(path).metadata["general.name"].lower()
    names = read_header(path).metadata["tokenizer.ggml.tokens"]
    (found,) = tokenize_all(path, ["<|im_start|>  hello"], True)
    assert b"".join(names[i] for i in found) == "<|im_start|>ĠĠhello".encode()
