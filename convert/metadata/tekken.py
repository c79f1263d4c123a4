"""Tekken: Mistral's own tokenizer file, `tekken.json`, as the `tokenizer.json` and the chat template that say the same.

The file lists byte sequences by rank, as tiktoken does, and no merges: two neighbours are joined where what they make
has a rank, the lowest first. Special tokens have the first ids, the sequences follow. Format and chat formats:
mistral-common (`tokens/tokenizers/tekken.py` and `instruct.py`), which is Mistral's reference.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmedlite.base.errors import DataError
from jmedlite.base.inputs import MAX_VOCABULARY, read_json
from jmedlite.base.records import Foreign, from_json
from jmedlite.base.wording import shown
from jmedlite.runtime.words import byte_letters

ROLES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
_N_BYTES = 256
_MAX_SPECIALS = 1 << 20
# The special tokens of files that list none, by id (versions up to 7).
_UNLISTED = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
_LISTS_NONE = ("v1", "v2", "v3", "v7")
# A system prompt goes before the last question, since version 7 it is a turn of its own.
_BEFORE_QUESTION = (
    "{{ bos_token }}{% set ns = namespace(system='', last=-1) %}"
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% set ns.system = ns.system + ('\\n\\n' if ns.system else '') + message['content'] %}"
    "{% elif message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST]' + (ns.system + '\\n\\n' if ns.system and loop.index0 == ns.last else '') + message['content'] }}"
    "{{ '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% elif message['role'] != 'system' %}{{ raise_exception('no role ' + message['role']) }}"
    "{% endif %}{% endfor %}"
)
_OF_ITS_OWN = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST]' + message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('no role ' + message['role']) }}"
    "{% endif %}{% endfor %}"
)
_TEMPLATES = {"v3": _BEFORE_QUESTION, "v7": _OF_ITS_OWN, "v11": _OF_ITS_OWN, "v13": _OF_ITS_OWN}


@dataclass(frozen=True, kw_only=True)
class _Special(Foreign):
    rank: int
    token_str: str


@dataclass(frozen=True, kw_only=True)
class _Config(Foreign):
    pattern: str
    default_vocab_size: int
    default_num_special_tokens: int
    version: str


@dataclass(frozen=True, kw_only=True)
class _File(Foreign):
    config: _Config
    special_tokens: tuple[_Special, ...] | None = None


@dataclass(frozen=True)
class Tekken:
    """A tekken.json: its tokenizer.json, its version, the template of chats with it (None: not known)."""

    described: dict[str, Any]
    version: str
    template: str | None


def read_tekken(path: Path) -> Tekken:
    """Read a tekken.json; raises DataError where it is none, or contradicts itself."""
    raw = read_json(path, MAX_VOCABULARY)
    file = from_json(raw, _File, path.name)
    n_specials = file.config.default_num_special_tokens
    n_ranks = file.config.default_vocab_size - n_specials
    specials = _specials(file, path.name)
    if not len(specials) <= n_specials <= _MAX_SPECIALS or n_ranks < _N_BYTES:
        raise DataError(
            f"{path.name}: has {file.config.default_vocab_size:,} tokens, {n_specials:,} of them special, of which "
            f"{len(specials):,} have a name; these do not go together"
        )
    specials += [f"<SPECIAL_{i}>" for i in range(len(specials), n_specials)]
    if len(set(specials)) < n_specials:
        raise DataError(f"{path.name}: two of its special tokens have one name")
    ranks = _ranks(raw.get("vocab"), n_ranks, path.name)
    texts = {sequence: _as_letters(sequence) for sequence in ranks}
    start = {"SpecialToken": {"id": ROLES["bos"], "type_id": 0}}
    described = {
        "added_tokens": [
            {"id": i, "content": text, "special": True, "normalized": False} for i, text in enumerate(specials)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": file.config.pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
        "post_processor": {"type": "TemplateProcessing", "single": [start, {"Sequence": {"id": "A", "type_id": 0}}]},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {texts[sequence]: rank + n_specials for sequence, rank in ranks.items()},
            "merges": [[texts[left], texts[right]] for left, right in _merges(ranks)],
        },
    }
    return Tekken(described, file.config.version, _TEMPLATES.get(file.config.version))


def _specials(file: _File, name: str) -> list[str]:
    if file.special_tokens is None:
        if file.config.version not in _LISTS_NONE:
            raise DataError(f"{name}: is of version {shown(file.config.version)} and lists no special tokens")
        return list(_UNLISTED)
    if any(token.rank != i for i, token in enumerate(file.special_tokens)):
        raise DataError(f"{name}: its special tokens are not in the order of their ids")
    return [token.token_str for token in file.special_tokens]


def _ranks(vocab: Any, n: int, name: str) -> dict[bytes, int]:
    """{sequence: rank} of the first `n`, the ones that the model was trained with."""
    if not isinstance(vocab, list) or len(vocab) < n:
        n_found = len(vocab) if isinstance(vocab, list) else 0
        raise DataError(f"{name}: vocab: has {n_found:,} tokens, expected {n:,}")
    ranks: dict[bytes, int] = {}
    for i, entry in enumerate(vocab[:n]):
        try:
            sequence = base64.b64decode(entry["token_bytes"], validate=True)
            fits = type(entry["rank"]) is int and entry["rank"] == i
        except (TypeError, KeyError, binascii.Error, ValueError):
            raise DataError(f"{name}: vocab: token {i} is {shown(entry)}, expected rank and token_bytes") from None
        if not fits or not sequence or sequence in ranks or (i < _N_BYTES and sequence != bytes([i])):
            raise DataError(f"{name}: vocab: token {i} is out of order, empty, or there before")
        ranks[sequence] = i
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair that makes a token, in the order in which pairs are joined."""
    found = []
    for whole in ranks:  # in the order of their ranks
        halves = [(whole[:i], whole[i:]) for i in range(1, len(whole))]
        pairs = [(ranks[left], ranks[right], left, right) for left, right in halves if left in ranks and right in ranks]
        found += [(left, right) for _, _, left, right in sorted(pairs)]
    return found


def _as_letters(sequence: bytes) -> str:
    """As byte-level vocabularies spell it."""
    return "".join(map(byte_letters().__getitem__, sequence))
