"""Type probe: the type that llama.cpp itself gives every tensor of a file type, asked in a dry run.

The header of the file that would be quantized is written to a temporary file, extended sparsely to its full length,
and llama.cpp is asked about it in a child process (type_probe_worker.py), which alone ends where llama.cpp aborts.
"""

from __future__ import annotations

from collections.abc import Sequence

from gguf.constants import GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import NativeError, system_fault
from jmedlite.base.outputs import temporary_folder

from .process import Child

ADVICE = "free memory, or quantize fewer levels at once"


def probe_types(
    ftypes: Sequence[int], metadata: gguf.Entries, tensors: Sequence[gguf.Tensor], imatrix: Sequence[str] = ()
) -> dict[int, dict[str, GGMLQuantizationType]]:
    """{file type: {tensor name: type}} for tensors as llama.cpp's converter would type them (BF16 and F32).

    `imatrix` names the tensors that an importance matrix has values for. Raises NativeError where llama.cpp refuses the
    header, or speaks of other tensors than it was given.
    """
    placed, data_bytes = gguf.layout(tensors)
    header = gguf.pack_header([gguf.pack_metadata(metadata)], len(metadata), placed)
    answer = _ask(header, data_bytes, list(ftypes), list(imatrix))
    found: dict[int, dict[str, GGMLQuantizationType]] = {}
    for ftype in ftypes:
        types = {name: GGMLQuantizationType(t) for name, t in answer[str(ftype)].items()}
        if strangers := {t.name for t in tensors} ^ set(types):
            raise NativeError(
                f"llama.cpp's dry run for file type {ftype} did not cover {sorted(strangers)[0]}; "
                "this llama-cpp-python version is not supported"
            )
        found[ftype] = types
    return found


def _ask(header: bytes, data_bytes: int, ftypes: list[int], imatrix: list[str]) -> dict[str, dict[str, int]]:
    """{file type: {tensor name: type id}} from a child of its own."""
    with temporary_folder() as folder:
        path = folder / "header.gguf"
        try:
            with path.open("wb") as out:
                out.write(header)
                out.truncate(len(header) + data_bytes)  # sparse: takes no room, but llama.cpp checks the length
        except OSError as e:
            raise system_fault(e, path, "writing") from None
        request = {"path": str(path), "ftypes": ftypes, "imatrix": imatrix}
        with Child("jmedlite.runtime.type_probe_worker", ADVICE) as child:
            types: dict[str, dict[str, int]] = child.ask(request, "types")["types"]
    return types
