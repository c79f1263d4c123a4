"""Tokenizer files of one folder, each read once: what they say of added and special tokens, templates, ends of text.

Several of them state the same facts; where they differ, transformers' rules hold (`PreTrainedTokenizerBase`,
`TokenizersBackend`) and `warnings` says so.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jmedlite.base.errors import DataError
from jmedlite.base.filenames import TEKKEN
from jmedlite.base.inputs import MAX_VOCABULARY, read_json, read_text, reading
from jmedlite.base.looking import is_file
from jmedlite.base.records import Foreign, from_json
from jmedlite.base.wording import shown

from .sentencepiece import SentencePieceModel, read_sentencepiece
from .tekken import ROLES, Tekken, read_tekken

DESCRIBED, SETTINGS = "tokenizer.json", "tokenizer_config.json"
ADDED, NAMED = "added_tokens.json", "special_tokens_map.json"
_PIECES = ("tokenizer.model", "spiece.model")
_TEMPLATE, _TEMPLATES, _OLD_TEMPLATE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
_MAX_TEMPLATE = 1 << 24  # bytes

Template = str | list[dict[str, str]]  # one, or several with "name" and "template"


# What is read of these files, by its type; vocabulary and merges, which are long, are checked where they are read.


@dataclass(frozen=True, kw_only=True)
class _Added(Foreign):
    content: str | None = None
    special: bool | None = None
    lstrip: bool | None = None
    rstrip: bool | None = None
    single_word: bool | None = None
    normalized: bool | None = None


@dataclass(frozen=True, kw_only=True)
class _Step(Foreign):
    """Of a normalizer, a pre-tokenizer or a post-processor."""

    type: str
    pattern: dict[str, str] | None = None
    content: str | None = None
    prepend: str | None = None
    behavior: str | None = None
    replacement: str | None = None
    prepend_scheme: str | None = None
    invert: bool | None = None
    individual_digits: bool | None = None
    add_prefix_space: bool | None = None
    use_regex: bool | None = None
    split: bool | None = None
    single: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class _Steps(_Step):
    normalizers: tuple[_Step, ...] | None = None
    pretokenizers: tuple[_Step, ...] | None = None
    processors: tuple[_Step, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class _Model(Foreign):
    type: str | None = None
    byte_fallback: bool | None = None
    ignore_merges: bool | None = None


@dataclass(frozen=True, kw_only=True)
class _Described(Foreign):
    model: _Model | None = None
    added_tokens: tuple[_Added, ...] | None = None
    normalizer: _Steps | None = None
    pre_tokenizer: _Steps | None = None
    post_processor: _Steps | None = None


@dataclass(frozen=True, kw_only=True)
class _Settings(Foreign):
    added_tokens_decoder: dict[str, _Added] | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_prefix_space: bool | None = None


_TYPES: Mapping[str, type] = {DESCRIBED: _Described, SETTINGS: _Settings}


def _read(path: Path) -> dict[str, Any] | None:
    if not is_file(path):
        return None
    found = read_json(path, MAX_VOCABULARY)
    if kind := _TYPES.get(path.name):
        from_json(found, kind, path.name)
    return found


@dataclass(frozen=True)
class AddedToken:
    """A token that was added to a vocabulary: does its file call it special, and which file was that?"""

    text: str
    special: bool
    file: str


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer of a checkpoint or of an adapter, or what there is of it."""

    folder: Path
    settings: dict[str, Any]  # tokenizer_config.json
    named: dict[str, Any]  # special_tokens_map.json
    listed: dict[str, Any]  # added_tokens.json
    pieces_file: Path | None  # tokenizer.model or spiece.model
    warnings: list[str] = field(default_factory=list)

    def _warn(self, what: str) -> None:
        line = f"{self.folder.name}: {what}"
        if line not in self.warnings:
            self.warnings.append(line)

    @property
    def is_vocabulary(self) -> bool:
        """Is there a whole vocabulary in the folder?"""
        return is_file(self.folder / DESCRIBED) or self.pieces_file is not None or self._is_tekken

    @property
    def _is_tekken(self) -> bool:
        """Is Mistral's own file all that tells of the vocabulary?"""
        others = is_file(self.folder / DESCRIBED) or self.pieces_file is not None
        return not others and is_file(self.folder / TEKKEN)

    @cached_property
    def _tekken(self) -> Tekken | None:
        return read_tekken(self.folder / TEKKEN) if self._is_tekken else None

    @property
    def roles(self) -> Mapping[str, str]:
        """The special tokens by what they do ("eos"), where the format itself says so."""
        return ROLES if self._is_tekken else {}

    @cached_property
    def described(self) -> dict[str, Any] | None:
        """tokenizer.json, which may have tens of megabytes, or what it would be for a tekken.json."""
        return _read(self.folder / DESCRIBED) if self._tekken is None else self._tekken.described

    def share(self, other: TokenizerFiles) -> None:
        """Take the other's tokenizer.json as read where the two are the same file to the byte."""
        one, two = self.folder / DESCRIBED, other.folder / DESCRIBED
        if is_file(one) and is_file(two):
            with reading(one):
                same = filecmp.cmp(one, two, shallow=False)
            if same:
                self.__dict__["described"] = other.described

    def forget_vocabulary(self) -> None:
        """Let go of what the memory is needed for elsewhere: tokens and merges; what is added stays known."""
        if self.described is not None:
            self.__dict__["described"] = {key: value for key, value in self.described.items() if key != "model"}
            if self._tekken is not None:
                self.__dict__["_tekken"] = replace(self._tekken, described=self.described)
        self.__dict__.pop("own_texts", None)

    @cached_property
    def pieces(self) -> SentencePieceModel:
        assert self.pieces_file is not None
        return read_sentencepiece(self.pieces_file)

    @cached_property
    def own_texts(self) -> dict[int, str]:
        """{id: text} of the vocabulary in tokenizer.json, else of the pieces; without the added tokens."""
        if self.described is not None:
            return described_texts(self.described)
        return piece_texts(self.pieces) if self.pieces_file is not None else {}

    @cached_property
    def added(self) -> dict[int, AddedToken]:
        """{id: token} from every place where added tokens stand; raises DataError where they contradict each other.

        tokenizer.json counts first. The others may only describe its tokens, or add some with the ids that
        transformers would give them; added_tokens.json is not read where tokenizer_config.json lists them too.
        """
        first = {} if self.described is None else dict(_entries(self.described.get("added_tokens") or []))
        decoder = ({"id": i, **_object(entry, SETTINGS)} for i, entry in self._decoder.items())
        others = dict(_entries(decoder, SETTINGS))
        old = dict(_entries(({"id": i, "content": text} for text, i in self.listed.items()), ADDED))
        if "added_tokens_decoder" not in self.settings:
            others = old
        else:
            self._ignore(old, {**first, **others})
        if self.described is None:
            return others
        return first | self._agreeing(first, others)

    @property
    def _decoder(self) -> Mapping[Any, Any]:
        found = self.settings.get("added_tokens_decoder") or {}
        if not isinstance(found, dict):
            raise DataError(f"{SETTINGS}: added_tokens_decoder holds a JSON {type(found).__name__}, expected an object")
        return found

    def _ignore(self, old: Mapping[int, AddedToken], known: Mapping[int, AddedToken]) -> None:
        for i, token in old.items():
            here = known[i].text if i in known else self.own_texts.get(i)
            if here != token.text:
                self._warn(
                    f"{ADDED} says that token {i} is {token.text!r}, the other files "
                    f"{'do not know it' if here is None else f'say {here!r}'}; it is not read, as in transformers"
                )
                return

    def _agreeing(self, first: Mapping[int, AddedToken], others: Mapping[int, AddedToken]) -> dict[int, AddedToken]:
        """What `others` add to tokenizer.json, or describe anew; an id that it knows by another text is a fault."""
        texts = self.own_texts | {i: token.text for i, token in first.items()}
        strange = {i: token for i, token in others.items() if texts.get(i) != token.text}
        found = {i: token for i, token in others.items() if i not in strange}
        ids = {text: i for i, text in texts.items()} if strange else {}
        following = max(texts, default=-1) + 1
        for i, token in sorted(strange.items()):
            known = ids.get(token.text)
            if known is not None and token.file == ADDED:
                self._warn(
                    f"{ADDED} says that {token.text!r} is token {i}, {DESCRIBED} that it is {known}; the latter is "
                    "taken, as in transformers"
                )
            elif known is not None or i != following:  # what transformers makes of it differs from class to class
                here = f"that it is {known}" if known is not None else f"{texts[i]!r}" if i in texts else None
                says = f"says {here}" if here else f"has {following} as its next free id"
                raise DataError(f"{token.file}: token {i} is {token.text!r}, but {DESCRIBED} {says}; which is right?")
            else:
                found[i], following = token, following + 1
        return found

    def texts(self) -> dict[int, str]:
        """{id: text} of the whole vocabulary, or of the added tokens where the folder has no more."""
        return self.own_texts | {i: token.text for i, token in self.added.items()}

    @property
    def special(self) -> set[str]:
        """The texts of all tokens that have a name or a place among the special ones."""
        keys = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens")
        entries = (e for key in keys for e in _as_list(self.settings.get(key)) if isinstance(e, str | dict))
        return {text for e in entries if (text := e if isinstance(e, str) else e.get("content"))}

    def token(self, kind: str) -> str | None:
        """The text of the token called `kind` ("eos"); raises DataError where it is no text.

        special_tokens_map.json goes before tokenizer_config.json, except where the latter lists added tokens.
        """
        key = f"{kind}_token"
        here, there = _text(self.settings.get(key), SETTINGS, key), _text(self.named.get(key), NAMED, key)
        if here is None and there is None:
            return self.roles.get(kind)
        if here is None or there is None or here == there:
            return there if here is None else here
        taken = here if "added_tokens_decoder" in self.settings else there
        self._warn(f"{key} is {here!r} in {SETTINGS} and {there!r} in {NAMED}; {taken!r} is taken, as in transformers")
        return taken

    @property
    def adds_bos(self) -> bool | None:
        """Does every text begin with BOS? None where the files leave that to the tokenizer's class.

        Where there is a tokenizer.json, its post-processor decides; transformers does not read add_bos_token then.
        """
        flag = self.settings.get("add_bos_token")
        if self.described is None:
            return flag if isinstance(flag, bool) else None
        return _special_at(self.described, 0)

    @property
    def adds_eos(self) -> bool | None:
        """The same for EOS at the end."""
        flag = self.settings.get("add_eos_token")
        if self.described is None:
            return flag if isinstance(flag, bool) else None
        return _special_at(self.described, -1)

    @cached_property
    def template(self) -> Template | None:
        """The chat template, or several by name; as in transformers, chat_template.jinja counts first."""
        found: dict[str, Template] = {}
        if is_file(path := self.folder / _TEMPLATE):
            found[_TEMPLATE] = _one_or_several(_read_template(path), self._additional())
        for file, holder in ((SETTINGS, self.settings), (_OLD_TEMPLATE, _read(self.folder / _OLD_TEMPLATE) or {})):
            if (template := _template(holder.get("chat_template"), file)) is not None:
                found[file] = template
        if not found and self._tekken is not None:
            if self._tekken.template is None:
                self._warn(
                    f"has no chat template, and how chats are written with a {TEKKEN} of version "
                    f"{shown(self._tekken.version)} is not known here; questions will have a plain form"
                )
            return self._tekken.template
        files = list(found)
        if len({str(default_template(t)) for t in found.values()}) > 1:
            self._warn(f"its chat template is another in {' and in '.join(files)}; {files[0]}'s is taken")
        return found[files[0]] if files else None

    def _additional(self) -> dict[str, str]:
        folder = self.folder / _TEMPLATES
        return {path.stem: _read_template(path) for path in sorted(folder.glob("*.jinja"))}


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """The tokenizer files of a folder; raises DataError where one is not a JSON object."""
    return TokenizerFiles(
        folder.resolve(),
        _read(folder / SETTINGS) or {},
        _read(folder / NAMED) or {},
        _read(folder / ADDED) or {},
        next((folder / name for name in _PIECES if is_file(folder / name)), None),
    )


def described_texts(described: Mapping[str, Any]) -> dict[int, str]:
    """{id: text} of a tokenizer.json's own vocabulary: an object, or a list of [text, score]."""
    vocab = (described.get("model") or {}).get("vocab") or {}
    if isinstance(vocab, dict):
        found = {i: text for text, i in vocab.items()}
        if any(type(i) is not int or i < 0 for i in found):
            raise DataError(f"{DESCRIBED}: model: vocab: a token's id is not a whole number of 0 or more")
        return found
    if not isinstance(vocab, list) or not all(isinstance(e, list) and e and isinstance(e[0], str) for e in vocab):
        raise DataError(f"{DESCRIBED}: model: vocab: is neither an object of ids nor a list of texts and scores")
    return {i: entry[0] for i, entry in enumerate(vocab)}


def piece_texts(pieces: SentencePieceModel) -> dict[int, str]:
    """{id: text} of a SentencePiece model."""
    return {i: text.decode("utf-8", "replace") for i, (text, _, _) in enumerate(pieces.pieces)}


def default_template(template: Template | None) -> str | None:
    """The one that is used where nobody names another."""
    if template is None or isinstance(template, str):
        return template
    return next((t["template"] for t in template if t["name"] == "default"), None)


def _special_at(described: Mapping[str, Any], end: int) -> bool:
    """Does the post-processor put a control token before the text (`end` 0), or after it (-1)?"""
    post = described.get("post_processor")
    if not isinstance(post, dict):
        return False
    for step in post.get("processors", [post]):
        if step.get("type") == "TemplateProcessing":
            return "SpecialToken" in (step.get("single") or [{}])[end]
    return False


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _object(entry: Any, file: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{file}: describes an added token by {shown(entry)}, expected an object")
    return entry


def _entries(entries: Iterable[Any], file: str = DESCRIBED) -> Iterator[tuple[int, AddedToken]]:
    """(id, AddedToken) of entries of the form {"id", "content", "special"}; raises DataError."""
    for entry in entries:
        token_id: Any = _object(entry, file).get("id")
        text = entry.get("content")
        if isinstance(token_id, str) and token_id.isascii() and token_id.isdigit() and len(token_id) < 20:
            token_id = int(token_id)  # a name in added_tokens_decoder
        if type(token_id) is not int:
            raise DataError(
                f"{file}: adds the token {shown(text)} with the id {shown(token_id)}, expected a whole number"
            )
        if token_id < 0:
            raise DataError(f"{file}: adds the token {text!r} with the id {token_id}, expected 0 or more")
        if not isinstance(text, str) or not text:
            raise DataError(f"{file}: the added token {token_id} has no text")
        yield token_id, AddedToken(text, bool(entry.get("special")), file)


def _text(entry: Any, file: str, key: str) -> str | None:
    if isinstance(entry, dict):
        entry = entry.get("content")
    if entry is not None and not isinstance(entry, str):
        raise DataError(f"{file}: {key} is {shown(entry)}, expected the text of one token")
    return entry or None


def _template(value: Any, file: str) -> Template | None:
    """A chat template as it may stand in JSON: a text, a list of {"name", "template"}, or an object by name."""
    if isinstance(value, dict):
        value = [{"name": name, "template": text} for name, text in value.items()]
    if value is None or isinstance(value, str):
        return value or None
    if not isinstance(value, list) or not all(
        isinstance(t, dict) and isinstance(t.get("name"), str) and isinstance(t.get("template"), str) for t in value
    ):
        raise DataError(f"{file}: its chat_template is neither a text nor a list of templates with names")
    return value


def _read_template(path: Path) -> str:
    text = read_text(path, _MAX_TEMPLATE)
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as Python reads text, and so transformers


def _one_or_several(default: str, others: Mapping[str, str]) -> Template:
    if not others:
        return default
    return [{"name": name, "template": text} for name, text in {"default": default, **others}.items()]
