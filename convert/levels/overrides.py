"""Type overrides: the types that a person sets for single tensors, and what llama.cpp makes of them.

`--tensor-type`, `--token-embedding-type` and `--output-type` mean what llama-quantize's options mean; llama.cpp itself
matches and chooses (runtime/type_probe.py). Here they are read, and held against its answer: one that decides about no
tensor, or gives a tensor another type than it says, is never passed over in silence.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import UsageError
from jmedlite.base.inputs import MAX_SETTINGS, read_text
from jmedlite.base.native import decodes, encodes
from jmedlite.base.wording import some
from jmedlite.runtime.type_probe import EMBEDDING, OUTPUT, PATTERN, TypeRule, Types, probe_rules

MAX_PATTERN = 1000  # characters; std::regex calls itself for every one
_SPACE = re.compile(r"[ \t\n\v\f\r]+")  # what C++ reads as the space between words
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_UPPER_ESCAPE = re.compile(r"\\[A-Z]")
FLAT_LEVELS = ("F32", "F16", "BF16")  # every matrix has the level's own type


def read_rules(
    tensor_types: Sequence[str] = (),
    file: Path | None = None,
    token_embedding_type: str | None = None,
    output_type: str | None = None,
) -> tuple[TypeRule, ...]:
    """The overrides asked for: `tensor_types` (REGEX=TYPE), then those of `file`, as llama.cpp shall try them.

    `file` is a text of such entries with white space between them. Raises UsageError, and what reading a file raises.
    """
    rules = [_read_rule(entry, f"{PATTERN} {entry}") for entry in tensor_types]
    if file is not None:
        entries = [entry for entry in _SPACE.split(read_text(file, MAX_SETTINGS)) if entry]
        if not entries:
            raise UsageError(f"{file.name}: is empty; expected entries such as attn_v=Q6_K, with white space between")
        rules += [_read_rule(entry, f"{file.name}: {entry}") for entry in entries]
    for option, name in ((EMBEDDING, token_embedding_type), (OUTPUT, output_type)):
        if name is not None:
            rules.append(TypeRule(option, _read_type(name, f"{option} {name}")))
    return tuple(rules)


def _read_rule(entry: str, where: str) -> TypeRule:
    """`REGEX=TYPE`. The pattern is made lower case (of ASCII), as llama-quantize's parse_tensor_type does."""
    pattern, equals, name = entry.partition("=")
    if not pattern or not equals or not name:
        raise UsageError(f"{where}: expected REGEX=TYPE, such as attn_v=Q6_K")
    if not pattern.isprintable() or " " in pattern:
        raise UsageError(f"{where}: the pattern has a space or a control character, which no tensor's name has")
    if len(pattern) > MAX_PATTERN:
        raise UsageError(f"{where}: the pattern has {len(pattern):,} characters, expected at most {MAX_PATTERN:,}")
    if found := _UPPER_ESCAPE.search(pattern):
        raise UsageError(
            f"{where}: patterns are read in lower case, as llama-quantize does, where {found[0]} means something "
            "else; write it as a class, such as [^0-9]"
        )
    return TypeRule(PATTERN, _read_type(name, where), pattern.translate(_LOWER))


def _read_type(name: str, where: str) -> GGMLQuantizationType:
    """A type of ggml by its name, in whatever case, that can be made and read."""
    known = [t for t in GGMLQuantizationType if encodes(t.name) and decodes(t.name)]
    found = next((t for t in known if t.name == name.upper()), None)
    if found is None:
        raise UsageError(f"{where}: {name} is no type of a tensor; known are {', '.join(t.name for t in known)}")
    return found


def decide(
    rules: Sequence[TypeRule],
    levels: Mapping[int, str],
    metadata: gguf.Entries,
    tensors: Sequence[gguf.Tensor],
) -> dict[int, dict[str, int]]:
    """{file type: {tensor name: index of the rule that decides}} at `levels` (file type to name).

    Raises UsageError for a rule that decides about no tensor at one of them.
    """
    decided = probe_rules(list(levels), metadata, tensors, rules)
    for ftype, name in levels.items():
        acting = set(decided[ftype].values())
        for i, rule in enumerate(rules):
            if i in acting:
                continue
            if rule.option == PATTERN and name in FLAT_LEVELS:
                raise UsageError(
                    f"{rule.text}: changes nothing at {name}, where llama.cpp gives every matrix that type; leave out "
                    "one of the two"
                )
            reached = probe_rules([ftype], metadata, tensors, [rule])[ftype]
            raise UsageError(_why_idle(rule, name, [(t, rules[decided[ftype][t]]) for t in reached]))
    return decided


def _why_idle(rule: TypeRule, level: str, lost: Sequence[tuple[str, TypeRule]]) -> str:
    """Why a rule decides about no tensor; `lost` are those that it alone would decide about, and who does."""
    if lost:
        names = some([name for name, _ in lost], 3)
        found = f"{rule.text}: decides about no tensor: {names} would be its own, but {lost[0][1].text} goes before it"
        if rule.option == lost[0][1].option:
            return f"{found}; give the narrower pattern first, or leave one of them out"
        return f"{found}; leave one of them out"
    if rule.option == OUTPUT:
        return (
            f"{rule.text}: changes nothing at {level}: this model has one table for embedding and head; give its type "
            f"with {EMBEDDING}"
        )
    return (
        f"{rule.text}: matches no tensor that llama.cpp quantizes (norms and biases keep their type); "
        "`jmedlite inspect GGUF --tensors` lists the names of a model"
    )


def warn_of_other_types(
    rules: Sequence[TypeRule],
    decided: Mapping[str, int],
    types: Types,
    tensors: Sequence[gguf.Tensor],
) -> list[str]:
    """What to say of tensors whose width a rule's type can't have, and which llama.cpp gives another (one level).

    Raises UsageError where llama.cpp would not look at the width at all.
    """
    fallen: dict[tuple[int, int, GGMLQuantizationType], list[str]] = {}
    for t in tensors:
        i = decided.get(t.name)
        if i is None:
            continue
        asked, n_cols = rules[i].type, t.shape[0]
        block = GGML_QUANT_SIZES[asked][0]
        if types[t.name] != asked:
            fallen.setdefault((i, n_cols, types[t.name]), []).append(t.name)
        elif n_cols % block:
            raise UsageError(
                f"{rules[i].text}: {t.name} has {n_cols:,} columns, expected a multiple of {block}; choose a type of "
                "smaller blocks, such as Q8_0 (32), or F16"
            )
    return [
        f"{rules[i].text}: {some(names, 3)}: llama.cpp makes {got.name} instead, since {n_cols:,} columns are no "
        f"multiple of {GGML_QUANT_SIZES[rules[i].type][0]}"
        for (i, n_cols, got), names in fallen.items()
    ]
