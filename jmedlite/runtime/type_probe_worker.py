"""Type probe, the child's side: which type llama.cpp gives every tensor of a GGUF, file type by file type.

`python -m jmedlite.runtime.type_probe_worker` reads {"path", "ftypes": [...], "imatrix": [tensor, ...]} and writes an
event `types` with {ftype: {tensor: type id}}. It runs apart because llama.cpp ends the process on some headers.
"""

from __future__ import annotations

import ctypes
import re
import threading

from jmedlite.base.errors import NativeError
from jmedlite.base.libraries import libllama
from jmedlite.base.native import capture_log, type_names

from .protocol import Emit, Request, serve

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


def probe(path: str, ftype: int, imatrix: list[str]) -> dict[str, int]:
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
    if llama.llama_model_quantize(path.encode(), b"", ctypes.byref(params)) != 0:
        raise ValueError(" ".join(errors) or "llama.cpp refused the model")
    return parse_types("".join(lines))


def probe_all(request: Request, emit: Emit, _: threading.Event) -> None:
    """The types of every file type asked for, as one `types` event."""
    try:
        found = {ftype: probe(request["path"], ftype, request["imatrix"]) for ftype in request["ftypes"]}
    except ValueError as e:
        raise NativeError(f"llama.cpp refused the model: {e}") from None
    emit("types", types=found)


if __name__ == "__main__":
    serve(probe_all)
