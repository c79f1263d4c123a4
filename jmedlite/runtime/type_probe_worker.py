"""Type probe, the child's side: which type llama.cpp gives every tensor of a GGUF, file type by file type.

`python -m jmedlite.runtime.type_probe_worker` reads {"path", "ftypes": [...], "imatrix": [tensor, ...], "rules":
[[option, pattern], ...], "types": [[a type id for every rule], ...]} and writes an event `types` with
[{ftype: {tensor: type id}}, ...], one for each of "types", or with {"refused": [index of a rule, why]}. It runs apart
because llama.cpp ends the process on some headers.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

from jmedlite.base.errors import NativeError
from jmedlite.base.libraries import libllama
from jmedlite.base.native import capture_log, type_names

from .bounded import bounded
from .protocol import Emit, Request, serve
from .type_probe import EMBEDDING, OUTPUT, PATTERN

SECONDS = 120.0  # of the dry runs together, each of which takes 0.1 s for a 7B: some patterns try for years
Rules = Sequence[tuple[str, str, int]]  # option, pattern, type id

_LINE = re.compile(
    r"\[ *\d+/ *\d+\] (?P<name>\S+) +- \[[^\]]*\], type = +(?P<old>\S+), "
    r"size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((?P<new>\S+)\))?\n"
)


def parse_types(log: str) -> dict[str, int]:
    """Tensor name to type id, from the log of a dry run; raises ValueError for a type this version does not know."""
    types: dict[str, int] = {}
    for line in _LINE.finditer(log):
        name = line["new"] or line["old"]
        if name not in type_names():
            raise ValueError(f"llama.cpp chose the type {name} for {line['name']}, which gguf-py does not know")
        types[line["name"]] = int(type_names()[name])
    return types


def probe(path: str, ftype: int, imatrix: Sequence[str], rules: Rules) -> dict[str, int]:
    """Tensor name to type id, of a dry run over the file; raises ValueError with llama.cpp's own words."""
    llama = libllama()
    lines: list[str] = []
    errors: list[str] = []

    def sink(level: int, text: str) -> None:
        lines.append(text)
        if level == 4:
            errors.append(text.strip())

    capture_log(sink)
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.dry_run, params.nthread, params.allow_requantize = ftype, True, 1, True
    if imatrix:  # a dry run looks only at which tensors have one
        one = (ctypes.c_float * 1)(1.0)
        entries = (llama.llama_model_imatrix_data * (len(imatrix) + 1))(
            *[llama.llama_model_imatrix_data(name.encode(), one, 1) for name in imatrix]
        )
        params.imatrix = entries
    set_rules(params, rules)
    if llama.llama_model_quantize(path.encode(), b"", ctypes.byref(params)) != 0:
        raise ValueError(" ".join(errors) or "llama.cpp refused the model")
    return parse_types("".join(lines))


def set_rules(params: Any, rules: Rules) -> None:
    """Put rules into llama.cpp's parameters (`llama_model_quantize_params` of llama.h)."""
    llama = libllama()
    patterns = [(pattern.encode(), type_) for option, pattern, type_ in rules if option == PATTERN]
    if patterns:  # one more, without a pattern, ends them
        params.tt_overrides = (llama.llama_model_tensor_override * (len(patterns) + 1))(*patterns)
    for option, _, type_ in rules:
        if option == EMBEDDING:
            params.token_embedding_type = type_
        elif option == OUTPUT:
            params.output_tensor_type = type_


def find_refused(attempt: Callable[[int], object], n_rules: int, why: str) -> tuple[int, str] | None:
    """The first rule that llama.cpp refuses, and its words; None where it refuses the file without any rule, too.

    `attempt(n)` tries the first n rules and raises ValueError; with all of them, `why` was said. Rules decide in their
    order, so one that is refused is so whatever comes after it.
    """
    good, bad = -1, n_rules
    while bad - good > 1:
        n = 0 if good < 0 else (good + bad) // 2
        try:
            attempt(n)
        except ValueError as e:
            if n == 0:
                return None
            bad, why = n, str(e)
        else:
            good = n
    return bad - 1, why.rpartition("failed to quantize: ")[2]


def answer(request: Request) -> dict[str, Any]:
    """The fields of the `types` event; raises NativeError where llama.cpp refuses the file."""

    def attempt(n_rules: int | None = None) -> list[dict[int, dict[str, int]]]:
        variants = [
            [(option, pattern, type_) for (option, pattern), type_ in zip(request["rules"], types, strict=True)]
            for types in request["types"]
        ]
        return [
            {ftype: probe(request["path"], ftype, request["imatrix"], rules[:n_rules]) for ftype in request["ftypes"]}
            for rules in variants
        ]

    try:
        return {"types": attempt()}
    except ValueError as e:
        refused = find_refused(attempt, len(request["rules"]), str(e)) if request["rules"] else None
        if refused is None:
            raise NativeError(f"llama.cpp refused the model: {e}") from None
        return {"refused": refused}


def probe_all(request: Request, emit: Emit, _: threading.Event) -> None:
    """What llama.cpp says of every file type asked for, for each of the rules' types, as one `types` event."""
    if any(option == PATTERN for option, _ in request["rules"]):
        # without a limit of memory: the file, which may be of any length, is mapped
        found = bounded(emit, "matching the patterns of --tensor-type", SECONDS, lambda: answer(request), memory=None)
    else:
        found = answer(request)
    emit("types", **found)


if __name__ == "__main__":
    serve(probe_all)
