"""Flags of added tokens: what `lstrip`, `rstrip`, `single_word` and `normalized` mean for a vocabulary's tokens.

GGUF has no keys for them (llama.cpp guesses some by the model's name), so they stand in `jmedlite.tokenizer.*`, where
jmedlite's runner reads them (runtime/added_tokens.py). What the runner could not follow is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gguf.constants import TokenType

from jmedlite.base.errors import DataError

if TYPE_CHECKING:
    from .tokenizer import SourceVocabulary

FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_SPACES = ({"String": " "}, {"Regex": " "})
_BEGINNING = {"Regex": r"(?<!\n)^"}  # of the text: not of its other lines, as ^ alone would be
# ASCII that NFC makes of other characters: the Greek question mark, the Greek varia and the Kelvin sign
_MADE_BY_NFC = ";`K"


def describe_flags(
    vocabulary: SourceVocabulary, described: dict[str, Any] | None, config: dict[str, Any], has_pieces: bool
) -> None:
    """Fill in the vocabulary's `flags`, `space_prefix` and `normalizer`.

    `described` is tokenizer.json; with `has_pieces`, tokens and scores are a SentencePiece file's.
    """
    by_bytes = described is not None and bool((described.get("model") or {}).get("byte_fallback"))
    prefix, form = None, vocabulary.normalizer
    if described is not None and by_bytes and (vocabulary.model == "llama" or not has_pieces):
        prefix, form, strangers = spaces_of(described)
        if strangers:
            told = f"tokenizer.json: has the step {', '.join(strangers)}, which neither llama.cpp nor jmedlite does"
            if not has_pieces:
                raise DataError(told)
            vocabulary.warnings.append(f"{told}; texts may be tokenized differently")
        if has_pieces and config.get("add_prefix_space") is False:
            prefix = "replace"
        vocabulary.normalizer = form
    control, typed = (
        {i: vocabulary.tokens[i].decode() for i, kind in enumerate(vocabulary.types) if kind == int(wanted)}
        for wanted in (TokenType.CONTROL, TokenType.USER_DEFINED)
    )
    texts = control | typed
    flags = {i: found for i, found in _read(vocabulary, described, config).items() if i in texts}
    late = {i for i, found in flags.items() if "normalized" in found}
    if vocabulary.model == "llama" and not by_bytes:
        late = set()  # where only tokenizer.model tells of the text's form, transformers looks for all in the raw text
    changes = vocabulary.charsmap or vocabulary.remove_extra_whitespaces or (described or {}).get("normalizer")
    if late and vocabulary.model == "t5" and changes:
        raise DataError(
            f"the tokenizer looks for {texts[min(late)]!r} in normalized text, which jmedlite can't do for this "
            "vocabulary; set its normalized to false in tokenizer_config.json"
        )
    if not _matters(late, texts, prefix, form):
        late = set()
    # "replace" and "never" differ only in what is looked for in normalized text
    usual = {"prepend"} if vocabulary.add_space_prefix is not False else {"replace"} if late else {"replace", "never"}
    if vocabulary.model == "t5":
        usual = set()  # llama.cpp writes the spaces, unless the runner is told how
    if prefix not in usual:
        vocabulary.space_prefix = prefix
    single = {i for i, found in flags.items() if "single_word" in found}
    if vocabulary.model == "llama" and described is not None:
        merged = {a + b for a, b in map(_pair, described["model"]["merges"])} if single else set()
        if both := sorted(texts[i] for i in single if texts[i] in merged):
            raise DataError(
                f"the tokenizer's {both[0]!r} is an ordinary token, and an added one that stands alone (single_word); "
                "jmedlite can't do both for this vocabulary"
            )
    # llama.cpp would find these where the tokenizer does not: it is to leave them to the runner
    hidden = {
        i
        for i, text in typed.items()
        if any(i == s or _overlap(text, texts[s]) for s in single)
        or (prefix == "prepend" if i in late else _may_arise(text, form))
    }
    for i in hidden:
        vocabulary.types[i] = int(TokenType.CONTROL)
    found = {flag: {i for i in flags if flag in flags[i]} for flag in FLAGS[:3]} | {"normalized": late, "typed": hidden}
    vocabulary.flags = {flag: sorted(ids) for flag, ids in found.items() if ids}


def _read(
    vocabulary: SourceVocabulary, described: dict[str, Any] | None, config: dict[str, Any]
) -> dict[int, frozenset[str]]:
    """{id: its flags} from tokenizer.json and tokenizer_config.json, where the latter decides, as in transformers."""
    found: dict[int, frozenset[str]] = {}
    special: set[int] = set()
    for entry in (described or {}).get("added_tokens") or []:
        found[int(entry["id"])] = frozenset(f for f in FLAGS if entry.get(f))
        if entry.get("special"):
            special.add(int(entry["id"]))
    for key, entry in (config.get("added_tokens_decoder") or {}).items():
        i, flags = int(key), _flags(entry)
        before = found.get(i, flags)
        if i in special:  # these are sorted by where they are looked for once, when tokenizer.json is read
            flags = (flags - {"normalized"}) | (before & {"normalized"})
        if other := sorted(flags ^ before):
            told = f"tokenizer.json and tokenizer_config.json differ in {', '.join(other)} of {entry.get('content')!r}"
            if "normalized" in other:
                raise DataError(f"{told}; make them agree")
            vocabulary.warnings.append(f"{told}; the latter's are taken, as transformers does")
        found[i] = flags
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    for entry in config.values():  # "bos_token" and the like, described where they are named
        if isinstance(entry, dict) and isinstance(text := entry.get("content"), str) and text.encode() in ids:
            found.setdefault(ids[text.encode()], _flags(entry) - {"normalized"})
    return found


def _flags(entry: dict[str, Any]) -> frozenset[str]:
    return frozenset(f for f in FLAGS if entry.get(f, f == "normalized" and not entry.get("special")))


def spaces_of(described: dict[str, Any]) -> tuple[str, str | None, list[str]]:
    """How a byte-fallback tokenizer.json writes spaces, its Unicode form, and steps that are neither.

    "prepend": the normalizer puts a space before every stretch of text between added tokens and writes spaces as "▁";
    "replace": it only does the latter; "always", "first", "never": the pre-tokenizer writes them so, and puts one
    before every such stretch, only before the text's first, or before none, where it does not begin with one.
    """
    prefix, form, escapes, strangers = "replace", None, False, list[str]()
    normalizer, pre = described.get("normalizer") or {}, described.get("pre_tokenizer") or {}
    for step in normalizer.get("normalizers", [normalizer] if normalizer else []):
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == "▁":
            prefix = "prepend"
        elif kind in _FORMS and form is None:
            form = kind
        elif kind == "Replace" and step.get("content") == "▁" and step.get("pattern") in _SPACES:
            escapes = True
        elif kind == "Replace" and step.get("content") == "▁" and step.get("pattern") == _BEGINNING and not escapes:
            prefix = "prepend"
        else:
            strangers.append(str(kind))
    # where words are kept apart, a token that reaches beyond one is never made, but llama.cpp makes it
    vocab = described["model"]["vocab"]
    texts = vocab if isinstance(vocab, dict) else [text for text, _ in vocab]
    joins_words = any("▁" in text[1:].lstrip("▁") or text.startswith("▁▁") for text in texts)
    for step in pre.get("pretokenizers", [pre] if pre else []):
        if step.get("type") == "Metaspace" and step.get("replacement", "▁") == "▁" and not escapes:
            scheme = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never")
            prefix, escapes = scheme, True
            if step.get("split", True) and joins_words:
                strangers.append("Metaspace with split")
        elif step.get("type") != "Split" or step.get("pattern") != {"String": " "} or not escapes:
            strangers.append(str(step.get("type")))
    return prefix, form, strangers if escapes else [*strangers, "that leaves spaces as they are"]


def _pair(merge: Any) -> tuple[str, str]:
    a, b = merge.split(" ") if isinstance(merge, str) else merge
    return a, b


def _matters(late: set[int], texts: dict[int, str], prefix: str | None, form: str | None) -> bool:
    """Does it matter that these are looked for in the normalized text, after all others?"""
    early = [text for i, text in texts.items() if i not in late]
    return any(
        prefix == "prepend"
        or (form is not None and texts[i].strip(" \t\r\n"))
        or any(_overlap(texts[i], e) for e in early)
        for i in late
    )


def _may_arise(text: str, form: str | None) -> bool:
    """May the text stand in a normalized text where the raw one has something else?"""
    if form is None:
        return False
    return form != "NFC" or not text.isascii() or any(c in text for c in _MADE_BY_NFC)


def _overlap(one: str, other: str) -> bool:
    """May matches of the two share characters?"""
    if one in other or other in one:
        return True
    sizes: Iterable[int] = range(1, min(len(one), len(other)))
    return any(one[-k:] == other[:k] or other[-k:] == one[:k] for k in sizes)
