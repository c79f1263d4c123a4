"""Mistral's tekken.json alone: tokens, chats and faults; against ranks merged naively, and against mistral-common."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import jmedlite
from jmedlite.base.errors import DataError
from jmedlite.base.filenames import TOKENIZER_FILES
from jmedlite.base.gguf import read_header
from jmedlite.convert.metadata import tokenizer_files
from jmedlite.convert.metadata.tekken import read_tekken
from jmedlite.convert.planning import assemble
from jmedlite.runtime.chat_template import Message, build_prompt
from tests.support import builders
from tests.support.texts import SAMPLES, lines

from .test_tokenizer import converted, tokenize_all

TEXTS = (
    "приВет МИР", "éÉtude E\u0301COLE", "か\u3099き\u3099", "ＡＢＣａｂｃ 日本語のABCとabc", "mmHg μg/dL Na⁺ β-hCG",
    "a/b/c\n/d\r\n//e  \n x", "!!!\n\n???  \n", "１２３ 456", "[INST]", "<s></s>", "aba abaaba ab ababa", "",
)  # fmt: skip
SPECIALS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[A]", "[/A]", "[B]", "[/B]", "[C]", "[IMG]", "<pad>", "[D]", "[E]",
    "[F]", "[G]", "[H]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL]",
)  # fmt: skip
CHATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a question": ("", ("心房細動とは？",)),
    "with a system prompt": ("あなたは医師です。", ("心房細動とは？",)),
    "a conversation": ("S", ("a", "b  c", "[INST] d </s>")),
}


def trained() -> list[bytes]:
    """Byte sequences by rank whose tokens reach over every boundary between words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    texts = [*TEXTS * 3, *SAMPLES, *lines(300)]
    tokenizer.train_from_iterator(
        (t for t in texts if t[:1] not in ("<", "[")), trainer
    )  # none is called as a special one
    letters = {c: i for i, c in enumerate(builders.byte_alphabet())}
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return [bytes(letters[c] for c in text) for text, _ in vocab if len(text) > 1]


def by_rank(text: str, ranks: dict[bytes, int], words: Any) -> list[int]:
    """Tokens as tiktoken defines them: in every word, the leftmost pair of the lowest rank is joined until none has."""
    found: list[int] = []
    for word, _ in words.pre_tokenize_str(text):
        parts = [bytes([b]) for b in word.encode()]
        if word.encode() in ranks:
            parts = [word.encode()]
        while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        found += [ranks[p] + 24 for p in parts]
    return found


def test_tokens_are_those_of_the_ranks(tmp_path: Path) -> None:
    from tokenizers import Regex, pre_tokenizers

    merged = trained()
    builders.tekken_checkpoint(tmp_path / "m", builders.tekken(merged))
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    ranks = {s: i for i, s in enumerate([*(bytes([i]) for i in range(256)), *merged])}
    words = pre_tokenizers.Split(Regex(builders.TEKKEN), "isolated")
    texts = [*TEXTS, *lines(300)]
    assert tokenize_all(path, texts, False) == [by_rank(t, ranks, words) for t in texts]


def test_keys(tmp_path: Path) -> None:
    builders.tekken_checkpoint(tmp_path / "m", builders.tekken([b"ab"], SPECIALS))
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    header = read_header(path)
    assert {
        key: header.metadata.get(f"tokenizer.ggml.{key}")
        for key in ("model", "pre", "bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id",
                    "add_bos_token")
    } == {
        "model": "gpt2", "pre": "tekken", "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
        "padding_token_id": 11, "add_bos_token": True,
    }  # fmt: skip
    tokens, types = (header.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    assert [t.decode() for t in tokens[:25]] == [*SPECIALS, *(f"<SPECIAL_{i}>" for i in range(20, 24)), "Ā"]
    assert tokens[-1] == b"ab"  # what is beyond the model's vocabulary is no token of it
    assert list(types) == [3] * 24 + [1] * 257


def prompt(template: str | None, system: str, turns: Sequence[str]) -> str:
    roles = ("user", "assistant") * len(turns)
    messages = [Message(role, text) for role, text in zip(roles, turns, strict=False)]
    parts = build_prompt(messages, system=system, template=template, bos="<s>", eos="</s>")
    return "".join(part.text for part in parts)


# As mistral-common 1.13 writes them (`Tokenized.text`)
WRITTEN = {
    "v3": (
        "<s>[INST]心房細動とは？[/INST]",
        "<s>[INST]あなたは医師です。\n\n心房細動とは？[/INST]",
        "<s>[INST]a[/INST]b  c</s>[INST]S\n\n[INST] d </s>[/INST]",
    ),
    **dict.fromkeys(("v7", "v11", "v13"), (
        "<s>[INST]心房細動とは？[/INST]",
        "<s>[SYSTEM_PROMPT]あなたは医師です。[/SYSTEM_PROMPT][INST]心房細動とは？[/INST]",
        "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]a[/INST]b  c</s>[INST][INST] d </s>[/INST]",
    )),
}  # fmt: skip


@pytest.mark.parametrize("version", WRITTEN)
def test_chats(tmp_path: Path, version: str) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(builders.tekken((b"ab",), SPECIALS, version=version)))
    template = read_tekken(tmp_path / "tekken.json").template
    assert tuple(prompt(template, *chat) for chat in CHATS.values()) == WRITTEN[version]


def test_a_template_beside_it_counts(tmp_path: Path) -> None:
    builders.tekken_checkpoint(tmp_path / "m", builders.tekken())
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    with converted(tmp_path / "m") as vocabulary:
        assert vocabulary.chat_template == "{{ messages[0].content }}!"


def test_chats_of_a_version_that_is_not_known(tmp_path: Path) -> None:
    builders.tekken_checkpoint(tmp_path / "m", builders.tekken((b"ab",), SPECIALS, version="v15"))
    plan = assemble(tmp_path / "m")
    assert "tokenizer.chat_template" not in plan.metadata
    assert [w for w in plan.warnings if "how chats are written" in w and "'v15'" in w]


def test_every_tokenizer_file_is_downloaded() -> None:
    """What a folder's tokenizer is read from must be among the files that come from the Hub."""
    read = {value for name, value in vars(tokenizer_files).items() if name.isupper() and isinstance(value, str)}
    read = {name for name in read | {*tokenizer_files._PIECES} if Path(name).suffix}
    assert len(read) >= 9
    assert read <= set(TOKENIZER_FILES)


def test_a_tokenizer_json_counts_before_it(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "mistral")
    (tmp_path / "m" / "tekken.json").write_text("{}")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    assert read_header(path).metadata["tokenizer.ggml.pre"] == "qwen2"


def _entry(i: int, **changes: Any) -> dict[str, Any]:
    file = builders.tekken([b"ab"], SPECIALS)
    file["vocab"][i] |= changes
    return file


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no vocabulary": ({**builders.tekken(), "vocab": None}, "vocab: has 0 tokens, expected 257"),
    "too few": ({**builders.tekken(), "vocab": builders.tekken()["vocab"][:200]}, "has 200 tokens, expected 257"),
    "out of order": (_entry(7, rank=8), "token 7 is out of order"),
    "twice": (_entry(256, token_bytes=base64.b64encode(b"a").decode()), "token 256 is out of order, empty, or there"),
    "empty": (_entry(256, token_bytes=""), "token 256 is out of order, empty"),
    "no base64": (_entry(256, token_bytes="%"), "token 256 is"),
    "not a byte": (_entry(1, token_bytes=base64.b64encode(b"\xff\xff").decode()), "token 1 is out of order"),
    "another pattern": (builders.tekken(pattern=r"\p{L}+"), "pre-tokenizer is none of"),
    "no specials, new": (builders.tekken(version="v11"), "version 'v11' and lists no special tokens"),
    "specials, one name": (builders.tekken((b"ab",), ["<s>", "<s>"]), "two of its special tokens have one name"),
    "more specials than places": (
        builders.tekken((b"ab",), SPECIALS, default_num_special_tokens=2), "these do not go together",
    ),
    "no bytes": (builders.tekken(default_vocab_size=24), "these do not go together"),
    "a number as version": (builders.tekken(version=3), "tekken.json: config: version"),
    "a larger vocabulary": (
        builders.tekken([b"ab", b"cd"]), "token ids up to 281, the embedding has 281 rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_faults(tmp_path: Path, what: str) -> None:
    file, words = FAULTS[what]
    builders.tekken_checkpoint(tmp_path / "m", builders.tekken())
    (tmp_path / "m" / "tekken.json").write_text(json.dumps(file))
    with pytest.raises(DataError) as caught:
        jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    assert words in str(caught.value)


@pytest.mark.oracle
def test_equals_mistral_common(tmp_path: Path) -> None:
    """With the vocabularies of 131,072 tokens that mistral-common brings, every version's chats among them."""
    mistral_common = pytest.importorskip("mistral_common")
    from mistral_common.protocol.instruct import messages as turns
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    kinds = {"system": turns.SystemMessage, "user": turns.UserMessage, "assistant": turns.AssistantMessage}
    (data,) = (Path(p) / "data" for p in mistral_common.__path__)
    files = sorted(data.glob("tekken_*.json"))
    assert files
    texts = [t for t in [*TEXTS, *SAMPLES, *lines(400)] if t]
    for version in ("v3", "v7", "v13"):
        file = json.loads(files[-1].read_text(encoding="utf-8"))
        file["config"]["version"] = version
        if version != "v3":
            further = ["[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "[TOOL_CONTENT]"]
            names = ["[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]"]
            named = [*SPECIALS[:5], *names, *SPECIALS[10:12], "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
                     "[SUFFIX]", *SPECIALS[17:19], *further]  # fmt: skip
            file["special_tokens"] = [{"rank": i, "token_str": t, "is_control": True} for i, t in enumerate(named)]
        folder = tmp_path / version
        builders.tekken_checkpoint(folder, file, hidden_size=256)
        theirs = MistralTokenizer.from_file(str(folder / "tekken.json"))
        plain = theirs.instruct_tokenizer.tokenizer
        with converted(folder) as vocabulary:
            assert [vocabulary.tokenize(t) for t in texts] == [plain.encode(t, bos=False, eos=False) for t in texts]
            for system, said in CHATS.values():
                roles = ("user", "assistant") * len(said)
                messages = [Message(role, text) for role, text in zip(roles, said, strict=False)]
                ours = build_prompt(
                    messages, system=system, template=vocabulary.chat_template, bos=vocabulary.text_of("bos"),
                    eos=vocabulary.text_of("eos"),
                )  # fmt: skip
                asked = [kinds["system"](content=system)] if system else []
                asked += [kinds[m.role](content=m.content) for m in messages]
                right = theirs.encode_chat_completion(ChatCompletionRequest(messages=asked)).tokens
                assert vocabulary.tokenize_parts(ours) == right
