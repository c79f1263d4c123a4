"""Quantized checkpoint: which method stored its weights, told by its tensors, and which model to give instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import yaml

from jmedlite.base.errors import DataError, JmedliteError
from jmedlite.base.filenames import AWQ_CONFIG, GPTQ_CONFIG
from jmedlite.base.inputs import read_json
from jmedlite.base.looking import is_file

from .tensors import StoredTensor, Weights

# (method, endings of which tensors' names must occur, a file that must be there): the first that holds is told
_METHODS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("AWQ", (".qweight",), AWQ_CONFIG),
    ("GPTQ", (".qweight",), GPTQ_CONFIG),
    ("GPTQ", (".qweight", ".g_idx"), ""),
    ("AWQ", (".qweight", ".qzeros"), ""),
    ("GPTQ or AWQ", (".qweight",), ""),
    ("MLX", (".scales", ".biases"), ""),
    ("bitsandbytes, 4 bits", (".absmax",), ""),
    ("bitsandbytes, 8 bits", (".SCB",), ""),
    ("HQQ", (".W_q",), ""),
    ("AQLM", (".codebooks",), ""),
    ("VPTQ", (".centroids",), ""),
    ("EXL3", (".trellis",), ""),
    ("EXL2", (".q_weight",), ""),
    ("QuIP#", (".Qidxs",), ""),
    ("quanto", ("._data",), ""),
    ("EETQ", (".weight_scales",), ""),
    ("compressed-tensors", (".weight_packed",), ""),
    ("MXFP4", ("_blocks", "_scales"), ""),
    ("FP8", (".weight_scale_inv",), ""),
    ("FP8 or INT8", (".weight_scale",), ""),
)
_PACKED = ("F8_E4M3", "F8_E5M2", "I8", "U8", "I32", "U32")  # as which no model's weights are stored unless quantized

_QUANTIZED = re.compile(
    r"[234568]-?bit|bnb|gptq|awq|exl[23]|mlx|fp8|int[48]|hqq|aqlm|w[48]a", re.IGNORECASE
)  # in a name


def refuse_quantized(
    label: str, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Weights], n_packed: int
) -> None:
    """Raise DataError where the tensors are those of a quantized model, naming the method and the original.

    `n_packed` of them were told and taken already.
    """
    plain = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, StoredTensor)}
    method, witness = _method(folder, plain)
    if method is None:
        return
    if n_packed:
        raise DataError(
            f"{label}: {witness} is packed as {n_packed:,} other tensors are, but what belongs to it is missing "
            f"({method}); download the checkpoint again, or give the original"
        )
    described = config.get("quantization_config")
    if isinstance(described, dict) and isinstance(named := described.get("quant_method"), str):
        method = named if named.lower() in method.lower() or method.lower() in named.lower() else f"{named}, {method}"
    name = original(folder, config)
    tail = f", {name}" if name else ""
    raise DataError(f"{label}: is quantized already ({method}: it has {witness}); give the original checkpoint{tail}")


def _method(folder: Path, tensors: Mapping[str, StoredTensor]) -> tuple[str | None, str]:
    for method, endings, file in _METHODS:
        found = [next((n for n in tensors if n.endswith(ending)), None) for ending in endings]
        if all(found) and (not file or is_file(folder / file)):
            return method, str(found[0])
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.dtype in _PACKED:
            return f"weights stored as {tensor.dtype}", name
    return None, ""


def original(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The model that a quantized one says it was made from."""
    try:
        described = read_json(folder / GPTQ_CONFIG)
    except JmedliteError:
        described = {}
    try:
        card = gguf.Metadata.load_model_card(folder)
    except (yaml.YAMLError, ValueError):
        card = {}
    places = (
        config.get("base_model_name_or_path"), described.get("model_name_or_path"), config.get("_name_or_path"),
        *(bases if isinstance(bases := card.get("base_model"), list) else [bases]),
    )  # fmt: skip
    own = folder.resolve().name
    return next(
        (p for p in places if isinstance(p, str) and p and Path(p).name != own and not _QUANTIZED.search(p)), None
    )
