"""Type probe: the type that llama.cpp itself gives every tensor of a file type, asked in a dry run.

The header of the file that would be quantized is written to a temporary file, extended sparsely to its full length,
and llama.cpp is asked about it in a child process (type_probe_worker.py), which alone ends where llama.cpp aborts.

Types that a person sets for single tensors (`TypeRule`) go into llama.cpp's own parameters. Which rule decides about
which tensor is asked in the same way (`probe_rules`), so that only llama.cpp's own regular expressions are at work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf.constants import GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import DataError, NativeError, UsageError, system_fault
from jmedlite.base.outputs import temporary_folder

from .process import Child

ADVICE = "free memory, or quantize fewer levels at once"
PATTERN, EMBEDDING, OUTPUT = "--tensor-type", "--token-embedding-type", "--output-type"
# Types that llama.cpp never chooses itself and gives to a row of any width
_MARKS = tuple(GGMLQuantizationType[name] for name in ("F64", "I64", "I32", "I16", "I8"))

Types = dict[str, GGMLQuantizationType]


@dataclass(frozen=True)
class TypeRule:
    """A type that a person sets, by llama-quantize's option of that name (`option`: PATTERN, EMBEDDING or OUTPUT).

    `pattern`, of PATTERN only, is a regular expression of ECMAScript (C++'s std::regex), searched for in the tensor's
    name. Source of what each means, and of which goes first: `llama_tensor_get_type` of llama.cpp's llama-quant.cpp.
    """

    option: str
    type: GGMLQuantizationType
    pattern: str = ""

    @property
    def value(self) -> str:
        """What is typed after the option: `REGEX=TYPE` or `TYPE`."""
        return f"{self.pattern}={self.type.name}" if self.option == PATTERN else self.type.name

    @property
    def text(self) -> str:
        """Option and value, as messages name the rule."""
        return f"{self.option} {self.value}"


def probe_types(
    ftypes: Sequence[int],
    metadata: gguf.Entries,
    tensors: Sequence[gguf.Tensor],
    imatrix: Sequence[str] = (),
    rules: Sequence[TypeRule] = (),
) -> dict[int, Types]:
    """{file type: {tensor name: type}} for tensors as llama.cpp's converter would type them (BF16 and F32).

    `imatrix` names the tensors that an importance matrix has values for. Raises NativeError where llama.cpp refuses the
    header, or speaks of other tensors than it was given, UsageError where it refuses a pattern.
    """
    (found,) = _probe(ftypes, metadata, tensors, imatrix, rules, [[rule.type for rule in rules]])
    return found


def probe_rules(
    ftypes: Sequence[int], metadata: gguf.Entries, tensors: Sequence[gguf.Tensor], rules: Sequence[TypeRule]
) -> dict[int, dict[str, int]]:
    """{file type: {tensor name: index of the rule that decides its type}}, without the tensors that none decides about.

    Every rule is given a mark, a type that nothing else would choose, and the tensors that have it afterwards are its
    own; more rules than there are marks are told apart digit by digit. Raises as `probe_types` does, and DataError
    where the model has tensors of these types itself.
    """
    taken = {t.type for t in tensors}
    marks = [mark for mark in _MARKS if mark not in taken]
    if len(marks) < 2:
        names = ", ".join(sorted(t.name for t in taken.intersection(_MARKS)))
        raise DataError(f"the model has tensors of the types {names}, so no types can be set for single tensors of it")
    n_digits = 1
    while len(marks) ** n_digits < len(rules):
        n_digits += 1
    digits = [[marks[i // len(marks) ** d % len(marks)] for i in range(len(rules))] for d in range(n_digits)]
    answers = _probe(ftypes, metadata, tensors, (), rules, digits)
    return {
        ftype: {
            t.name: sum(marks.index(answer[ftype][t.name]) * len(marks) ** d for d, answer in enumerate(answers))
            for t in tensors
            if answers[0][ftype][t.name] in marks
        }
        for ftype in ftypes
    }


def _probe(
    ftypes: Sequence[int],
    metadata: gguf.Entries,
    tensors: Sequence[gguf.Tensor],
    imatrix: Sequence[str],
    rules: Sequence[TypeRule],
    types: Sequence[Sequence[GGMLQuantizationType]],
) -> list[dict[int, Types]]:
    """What `probe_types` gives, for each of `types` in the place of the rules' own."""
    placed, data_bytes = gguf.layout(tensors)
    header = gguf.pack_header([gguf.pack_metadata(metadata)], len(metadata), placed)
    request = {
        "ftypes": list(ftypes),
        "imatrix": list(imatrix),
        "rules": [[rule.option, rule.pattern] for rule in rules],
        "types": [list(map(int, own)) for own in types],
    }
    answer = _ask(header, data_bytes, request)
    if "refused" in answer:
        rule, why = answer["refused"]
        raise UsageError(
            f"{rules[rule].text}: llama.cpp refuses it ({why}); expected a regular expression of ECMAScript, such as "
            r"blk\.[0-3]\.ffn_down, and a type that the tensor can have"
        )
    return [{ftype: _checked(ftype, found[str(ftype)], tensors) for ftype in ftypes} for found in answer["types"]]


def _checked(ftype: int, answer: Mapping[str, int], tensors: Sequence[gguf.Tensor]) -> Types:
    types = {name: GGMLQuantizationType(t) for name, t in answer.items()}
    if strangers := {t.name for t in tensors} ^ set(types):
        raise NativeError(
            f"llama.cpp's dry run for file type {ftype} did not cover {sorted(strangers)[0]}; "
            "this llama-cpp-python version is not supported"
        )
    return types


def _ask(header: bytes, data_bytes: int, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of a child of its own (type_probe_worker.py) about a file of that header."""
    with temporary_folder() as folder:
        path = folder / "header.gguf"
        try:
            with path.open("wb") as out:
                out.write(header)
                out.truncate(len(header) + data_bytes)  # sparse: takes no room, but llama.cpp checks the length
        except OSError as e:
            raise system_fault(e, path, "writing") from None
        with Child("jmedlite.runtime.type_probe_worker", ADVICE) as child:
            try:
                return child.ask({"path": str(path), **request}, "types")
            except DataError as e:  # its time ran out, which only patterns can do
                raise UsageError(f"{e}; write them without repetitions of repetitions, such as (.*)*") from None
