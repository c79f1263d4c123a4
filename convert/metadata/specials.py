"""Special tokens, tokens that end an answer, and the chat template, of a base model and of the adapters beside it.

A fine-tune brings its template and its end token in the adapter's folder, whether or not it trained the embedding, so
these are decided apart from the vocabulary: each by the last folder that says something of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gguf
from gguf.constants import TokenType

from jmedlite.base.errors import DataError
from jmedlite.base.filenames import CONFIG, GENERATION_CONFIG

from .readable import readable
from .tokenizer import SourceVocabulary, read_vocabulary
from .tokenizer_files import Template, TokenizerFiles

# Texts that llama.cpp takes for ends of an answer wherever they are tokens (src/llama-vocab.cpp; a test asks it).
ENDS_BY_NAME = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]",
    "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<｜end▁of▁sentence｜>",
))  # fmt: skip


@dataclass
class Specials:
    """What the keys say: `ids` by kind ("eos"), `adds` whether a text begins or ends with it, `ends` further ends."""

    ids: dict[str, int]
    adds: dict[str, bool]
    template: Template | None
    ends: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class AdapterFiles:
    """The tokenizer files in an adapter's folder; did the adapter train the embedding that they belong to?"""

    name: str
    files: TokenizerFiles
    trains_embedding: bool


def decide(
    own: TokenizerFiles,
    adapters: Sequence[AdapterFiles],
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    n_vocab: int,
) -> tuple[SourceVocabulary, Specials, list[str]]:
    """The vocabulary and special tokens of a checkpoint with adapters, and warnings.

    `own` are the base's tokenizer files, `config` and `generation` its config.json and generation_config.json.
    """
    warnings: list[str] = []
    every = [own, *(a.files for a in adapters)]
    for files in every[1:]:
        files.share(own)
    chosen = choose_vocabulary(own.texts() if adapters else {}, adapters, n_vocab, warnings)
    files = chosen.files if chosen else own
    vocabulary = read_vocabulary(files, n_vocab)
    for read in every:
        read.forget_vocabulary()
    tokens = vocabulary.tokens
    found = read_specials(files, vocabulary, warnings)
    base = found
    if chosen:
        base = Specials({}, {}, None)
        for specials in (base, found):
            take_from_base(specials, own, config, tokens)
    base = replace(base, ids=dict(base.ids), adds={"bos": vocabulary.begins_by_default, **base.adds})
    take_from_adapters(found, base, adapters, tokens, warnings)
    named = {find(tokens, read.token("eos")) for read in every}
    add_ends(found, config, generation, named, vocabulary, own.folder.name, warnings)
    return vocabulary, found, [*warnings, *(w for read in every for w in read.warnings), *vocabulary.warnings]


def choose_vocabulary(
    texts: Mapping[int, str], adapters: Sequence[AdapterFiles], n_vocab: int, warnings: list[str]
) -> AdapterFiles | None:
    """The adapter whose vocabulary is the model's, or None where that is the base's (`texts`: its {id: text}).

    An adapter that trained the embedding decides. One that did not may have other added tokens, within the rows that
    there are; raises DataError where its ordinary tokens are others, since it belongs to another base then.
    """
    chosen: AdapterFiles | None = None
    for adapter in adapters:
        if adapter.trains_embedding:
            if adapter.files.is_vocabulary:
                chosen, texts = adapter, adapter.files.texts()
            elif n_vocab > len(texts):
                warnings.append(
                    f"adapter {adapter.name}: trained the embedding and brings no tokenizer; tokens that it may have "
                    "added have no names"
                )
            continue
        theirs = adapter.files.texts()
        differ = sorted(i for i, text in theirs.items() if i < n_vocab and not _same(text, texts.get(i)))
        if strange := [i for i in differ if i in texts and i not in adapter.files.added]:
            i = strange[0]
            raise DataError(
                f"adapter {adapter.name}: its tokenizer says that token {i} is {theirs[i]!r}, the base's that it is "
                f"{texts[i]!r}, and the embedding is the base's; it belongs to another base"
            )
        if without := sorted(i for i, text in theirs.items() if i >= n_vocab and not _same(text, texts.get(i))):
            _check_unused(adapter, [theirs[i] for i in without], n_vocab)
            if adapter.files.is_vocabulary and not differ:
                warnings.append(
                    f"adapter {adapter.name}: its tokenizer has {theirs[without[0]]!r} as token {without[0]}, the "
                    f"embedding has {n_vocab} rows; the base's tokenizer is kept"
                )
        if differ and adapter.files.is_vocabulary:
            i = differ[0]
            warnings.append(
                f"adapter {adapter.name}: its tokenizer, with {theirs[i]!r} as token {i}, taken instead of the base's"
            )
            chosen, texts = adapter, theirs
        elif differ:
            i = differ[0]
            raise DataError(
                f"adapter {adapter.name}: says that token {i} is {theirs[i]!r}, which the base's tokenizer does not, "
                "and brings no tokenizer of its own; add the tokenizer it was trained with"
            )
    return chosen


def _same(text: str, known: str | None) -> bool:
    return text == known or text.replace("▁", " ") == known  # as a GGUF writes tokens that are added


def _check_unused(adapter: AdapterFiles, texts: Sequence[str], n_vocab: int) -> None:
    """Tokens without a row in the embedding must be none that prompts or answers are made of."""
    template = adapter.files.template
    every = template if isinstance(template, str) else " ".join(t["template"] for t in template or [])
    for text in texts:
        if text in every or text in (adapter.files.token("eos"), adapter.files.token("bos")):
            raise DataError(
                f"adapter {adapter.name}: was trained with the token {text!r}, but the embedding has {n_vocab} rows "
                "and none for it; train it with modules_to_save (embed_tokens, lm_head), or resize the base first"
            )


def find(tokens: Sequence[bytes], text: str | None) -> int | None:
    """The id of the token with this text."""
    raw = None if text is None else text.encode()
    return next((i for i, token in enumerate(tokens) if token == raw), None)


def read_specials(files: TokenizerFiles, vocabulary: SourceVocabulary, warnings: list[str]) -> Specials:
    """What one folder says, as llama.cpp's converter reads it, and where that leaves something out, as transformers."""
    tokens = vocabulary.tokens
    try:
        with readable(files.folder) as (place, _):
            read = gguf.SpecialVocab(place, load_merges=False, n_vocab=len(tokens))
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as e:
        raise DataError(f"{files.folder.name}: its special tokens can't be read ({e})") from None
    found = Specials(read.special_token_ids, read.add_special_token, files.template)
    if vocabulary.add_bos is not None:
        found.adds["bos"] = vocabulary.add_bos
    if vocabulary.model == "t5":  # llama.cpp would append an end-of-text token to every prompt
        found.adds.setdefault("eos", False)
    if files.adds_eos is False and found.adds.get("eos"):
        found.adds["eos"] = False
        warnings.append(
            f"{files.folder.name}: add_eos_token is true in tokenizer_config.json, but tokenizer.json puts nothing "
            "after a text; the latter is taken, as in transformers"
        )
    if vocabulary.unknown is not None:
        found.ids["unk"] = vocabulary.unknown
    found.ids = {kind: i for kind, text in files.roles.items() if (i := find(tokens, text)) is not None} | found.ids
    for kind in ("bos", "eos"):
        text = files.token(kind)
        i = find(tokens, text)
        if i is not None and "eot" not in found.ids:  # else the converter's reading has put one in the other's place
            found.ids[kind] = i
        elif i is None and text is not None:
            warnings.append(f"{files.folder.name}: its {kind}_token is {text!r}, which is no token of its vocabulary")
    return found


def take_from_base(
    specials: Specials, base: TokenizerFiles, config: Mapping[str, Any], tokens: Sequence[bytes]
) -> None:
    """Fill what an adapter's own tokenizer leaves out: BOS, EOS, how a text begins, the chat template."""
    for kind in ("bos", "eos"):
        i = find(tokens, base.token(kind))
        if i is None:
            i = next((i for i in _as_ids(config.get(f"{kind}_token_id")) if i < len(tokens)), None)
        if i is not None:
            specials.ids.setdefault(kind, i)
    if base.adds_bos is not None:
        specials.adds.setdefault("bos", base.adds_bos)
    specials.template = specials.template or base.template


def take_from_adapters(
    specials: Specials, base: Specials, adapters: Sequence[AdapterFiles], tokens: Sequence[bytes], warnings: list[str]
) -> None:
    """Let each adapter's folder decide what it says otherwise than `base` of BOS, EOS and template; the last wins."""
    taken_from: dict[str, str] = {}
    for adapter in adapters:
        taken: dict[str, str] = {}
        for kind in ("bos", "eos"):
            text = adapter.files.token(kind)
            i = find(tokens, text)
            if text is not None and i is None and kind == "eos":
                raise DataError(
                    f"adapter {adapter.name}: ends its answers with {text!r}, which is no token of the model; give "
                    "the base it was trained on"
                )
            if i is not None and i != base.ids.get(kind):
                specials.ids[kind] = i
                taken[kind] = f"{kind}_token {text!r}"
        adds = adapter.files.adds_bos
        if adds is not None and adds is not base.adds.get("bos"):
            specials.adds["bos"] = adds
            taken["begin"] = f"rule that a text {'begins' if adds else 'does not begin'} with BOS"
        template = adapter.files.template
        if template is not None and template != base.template:
            specials.template = template
            taken["template"] = "chat template"
        if taken:
            before = sorted({taken_from[what] for what in taken if what in taken_from})
            owner = " and ".join(f"adapter {name}'s" for name in before) or "the base's"
            warnings.append(f"adapter {adapter.name}: its {' and '.join(taken.values())} taken instead of {owner}")
        taken_from |= dict.fromkeys(taken, adapter.name)


# ---------------------------------------------------------------------------------------------------------------- ends


def _as_ids(value: Any) -> list[int]:
    return [i for i in dict.fromkeys(value if isinstance(value, list) else [value]) if type(i) is int and i >= 0]


def _end_ids(settings: Mapping[str, Any], file: str) -> list[int]:
    """The ids of eos_token_id, which may be one, a list, or nothing; raises DataError."""
    value = settings.get("eos_token_id")
    given = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(i) is not int or i < 0 for i in given):
        raise DataError(f"{file}: eos_token_id is {str(value)[:80]}, expected a token's id or a list of them")
    return _as_ids(given)


def add_ends(
    specials: Specials,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    named: Collection[int | None],
    vocabulary: SourceVocabulary,
    label: str,
    warnings: list[str],
) -> None:
    """Let every token that ends an answer do so: EOS, and what `generate` of transformers would stop at.

    That is what generation_config.json says, or config.json where that says nothing. Where a tokenizer names the EOS
    (it is among `named`), that stays EOS, since chat templates write it. A word is no end because of config.json alone:
    its number is often left from another vocabulary (Llama's 2, GPT-2's 50256), and answers would be cut in silence.
    """
    tokens = vocabulary.tokens
    nested = config.get("text_config")
    of_config = _end_ids(config, CONFIG) or _end_ids(nested or {}, CONFIG)
    of_generation = _end_ids(generation, GENERATION_CONFIG)
    file = GENERATION_CONFIG if of_generation else CONFIG
    wanted = of_generation or of_config
    if outside := [i for i in wanted if i >= len(tokens)]:
        warnings.append(f"{label}: {file} ends answers with token {outside[0]}, the model has {len(tokens):,} tokens")
        wanted = [i for i in wanted if i < len(tokens)]
    by_tokenizer = [i for i in named if i is not None]
    if file == CONFIG and by_tokenizer and (words := [i for i in wanted if i not in named and _is_word(vocabulary, i)]):
        warnings.append(
            f"{label}: {CONFIG} ends answers with {_shown(tokens, words[0])}, which is a word; only the tokenizer's "
            f"{_shown(tokens, by_tokenizer[0])} ends one. If it is meant, say so in {GENERATION_CONFIG}"
        )
        wanted = [i for i in wanted if i not in words]
    if not wanted:
        return
    shown = ", ".join(_shown(tokens, i) for i in wanted)
    eos = specials.ids.get("eos")
    left = [i for i in of_config if i not in wanted and i not in named and i < len(tokens)]
    if left and file == GENERATION_CONFIG:
        warnings.append(
            f"{label}: {CONFIG} ends answers with {_shown(tokens, left[0])}, {GENERATION_CONFIG} with {shown}; the "
            "latter is taken, as in transformers"
        )
    if eos is None or (eos not in wanted and eos not in named):
        eos = specials.ids["eos"] = wanted[0]
    elif eos not in wanted:
        warnings.append(
            f"{label}: {file} ends answers with {shown}, the tokenizer with {_shown(tokens, eos)}; each ends one"
        )
    by_name = {i for i, token in enumerate(tokens) if token.decode("utf-8", "replace") in ENDS_BY_NAME}
    further = [i for i in wanted if i not in by_name and i not in (eos, specials.ids.get("eot"))]
    if further and "eot" not in specials.ids and not by_name - {eos}:
        specials.ids["eot"] = further.pop(0)  # llama.cpp has found no end of a turn by itself
    specials.ends = further


def _is_word(vocabulary: SourceVocabulary, i: int) -> bool:
    """Whether a token is text as any other: neither a control token nor in brackets, as a control token's name is."""
    text = vocabulary.tokens[i].decode("utf-8", "replace")
    return vocabulary.types[i] != TokenType.CONTROL and not re.fullmatch(r"<.*>|\[.*\]", text, re.DOTALL)


def _shown(tokens: Sequence[bytes], i: int) -> str:
    return f"{tokens[i].decode('utf-8', 'replace')!r} ({i})"
