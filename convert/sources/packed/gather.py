"""Which method stored a checkpoint's weights, and the packed tensors that take the place of their parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmedlite.base.errors import DataError
from jmedlite.base.filenames import AWQ_CONFIG, CONFIG, GPTQ_CONFIG
from jmedlite.base.inputs import read_json
from jmedlite.base.looking import is_file
from jmedlite.base.records import Foreign, from_json
from jmedlite.base.wording import some
from jmedlite.convert.sources.tensors import WEIGHT_DTYPES, Files, StoredTensor, Weights

from . import bitsandbytes, mlx, mxfp4, scaled, words


@dataclass(frozen=True, kw_only=True)
class _Config(Foreign):
    """The types of what is read of a method's settings."""

    quant_method: str | None = None
    bits: int | None = None
    w_bit: int | None = None
    group_size: int | None = None
    desc_act: bool | None = None
    checkpoint_format: str | None = None
    is_marlin_format: bool | None = None
    version: str | float | None = None
    weight_block_size: tuple[int, ...] | None = None
    format: str | None = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None
    rotation: str | None = None


# What the methods' settings may be called; the rest is told by the tensors, or is of the quantizing alone.
_KNOWN = frozenset((
    "quant_method", "bits", "w_bit", "group_size", "q_group_size", "checkpoint_format", "is_marlin_format", "version",
    "weight_block_size", "format", "sparsity_config", "transform_config", "rotation",
    # how it was quantized, and which modules were
    "activation_scheme", "activation_scale_ub", "fmt", "scale_fmt", "modules_to_not_convert", "ignored_layers",
    "ignore", "exclude_modules", "desc_act", "act_group_aware", "hyb_act", "static_groups", "sym", "true_sequential",
    "damp_percent", "damp_auto_increment", "mse", "lm_head", "dataset", "tokenizer", "model_seqlen",
    "model_name_or_path", "model_file_base_name", "modules_in_block_to_quantize", "block_name_to_quantize",
    "batch_size", "meta", "dynamic", "module_name_preceding_first_block", "pad_token_id", "pack_dtype", "zero_point",
    "calib_data", "quantization_status",
    "global_compression_ratio", "config_groups", "quant_algo", "quant_type", "producer", "quantization",
    # how a program goes about it
    "dequantize", "backend", "do_fuse", "use_exllama", "disable_exllama", "exllama_config", "max_input_length",
    "use_cuda_fp16", "cache_block_outputs", "modules_to_fuse", "fuse_max_seq_len", "run_compressed", "kv_cache_scheme",
    "kv_cache_quant_algo", "load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit", "llm_int8_threshold",
    "llm_int8_skip_modules", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight", "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "mode",
))  # fmt: skip


@dataclass(frozen=True)
class Gathered:
    """A checkpoint's weights, packed ones under the name they would have; `methods`: how many by which method."""

    tensors: dict[str, Weights]
    methods: Mapping[str, int]
    warnings: tuple[str, ...]


def gather(label: str, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Gathered:
    """Find the packed weights among `tensors`, by the tensors themselves and by what `config` says of them.

    Raises DataError for a variant that is not decoded, and for parts that do not fit each other.
    """
    left = dict(tensors)
    if all(tensor.dtype in WEIGHT_DTYPES for tensor in left.values()):
        return Gathered(dict(tensors), {}, ())  # whatever the settings say
    given = _settings(folder, config)
    files = Files()
    try:
        packed: dict[str, Weights] = {**bitsandbytes.gather(left, files), **words.gather_rows(left, files)}
    finally:
        files.close()
    of_config = _Config()
    if given:
        of_config = from_json(given, _Config, f"{CONFIG}: quantization")
    if any(n.endswith(".qweight") for n in left):
        packed |= _gather_words(folder, of_config, left)
    packed |= mlx.gather(left, _mlx_sizes(config))
    packed |= mxfp4.gather(left)
    block = of_config.weight_block_size
    found, at_run_time = scaled.gather(left, _two(block) if block else None)
    packed |= found
    warnings = []
    if packed:
        _check(of_config)
        if odd := sorted(k for k, v in given.items() if v is not None and k not in _KNOWN and not _is_module(k, v)):
            warnings.append(f"{label}: config.json sets {some(odd, 10)} of its quantization, which is not known here")
    if at_run_time:
        warnings.append(
            f"{label}: the scales of its activations ({at_run_time[0]} and others) are left out; llama.cpp computes "
            "those in full"
        )
    if both := next((n for n in packed if n in left), None):
        raise DataError(f"{label}: has {both} packed and unpacked; keep the right one")
    return Gathered({**left, **packed}, Counter(t.dtype for t in packed.values()), tuple(warnings))


def _settings(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the quantization, of config.json or of a file of their own."""
    for key in ("quantization_config", "compression_config", "quantization"):
        if isinstance(found := config.get(key), dict):
            return found
    for name in (GPTQ_CONFIG, AWQ_CONFIG):
        if is_file(folder / name):
            return read_json(folder / name)
    return {}


def _gather_words(folder: Path, config: _Config, tensors: dict[str, StoredTensor]) -> Mapping[str, Weights]:
    """GPTQ's or AWQ's; which of them, nothing but names and settings tells."""
    method = (config.quant_method or "").lower()
    if not method:
        ordered = any(n.endswith(".g_idx") for n in tensors)
        method = "awq" if is_file(folder / AWQ_CONFIG) and not ordered else "gptq" if ordered else ""
        if is_file(folder / GPTQ_CONFIG):
            method = "gptq"
    if method == "awq":
        if str(config.version or "gemm").lower() != "gemm":
            raise DataError(f"{CONFIG}: AWQ's version is {config.version}; only gemm is decoded")
        if (config.bits or config.w_bit or 4) != 4:
            raise DataError(f"{CONFIG}: AWQ's weights have {config.bits or config.w_bit} bits; only 4 are decoded")
        return words.gather_awq(tensors)
    if method in ("gptq", "gptqmodel"):
        form = config.checkpoint_format or "gptq"
        if form not in ("gptq", "gptq_v2") or config.is_marlin_format:
            raise DataError(f"{CONFIG}: checkpoint_format is {form}; only gptq and gptq_v2 are decoded")
        ordered = bool(config.desc_act)
        return words.gather_gptq(tensors, config.bits, config.group_size, second=form == "gptq_v2", ordered=ordered)
    return {}  # named as what it is, and refused


def _check(config: _Config) -> None:
    """Refuse what changes the weights beyond their packing."""
    if config.transform_config:
        raise DataError(f"{CONFIG}: transform_config rotates the weights; llama.cpp does not undo that")
    if config.rotation:
        raise DataError(f"{CONFIG}: rotation is {config.rotation}; llama.cpp does not undo that")
    sparsity = (config.sparsity_config or {}).get("format", "dense")
    if sparsity != "dense":
        raise DataError(f"{CONFIG}: sparsity_config stores the weights as {sparsity}; only dense ones are decoded")


def _is_module(key: str, value: Any) -> bool:
    """Is it MLX's word on one module: its own sizes, or that it is not quantized?"""
    if isinstance(value, dict):
        return {"bits", "group_size"} <= value.keys()
    return isinstance(value, bool) and "." in key


def _mlx_sizes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(bits, columns of a group) by module, "" for all others; empty where config.json has none."""
    found: dict[str, tuple[int, int]] = {}
    for key in ("quantization", "quantization_config"):
        given = config.get(key)
        if not isinstance(given, dict):
            continue
        for name, part in {"": given, **given}.items():
            if isinstance(part, dict):
                bits, size = part.get("bits"), part.get("group_size")
                if type(bits) is int and type(size) is int:
                    found.setdefault(name, (bits, size))
    return found


def _two(block: tuple[int, ...]) -> tuple[int, int]:
    if len(block) != 2 or min(block) < 1:
        raise DataError(f"{CONFIG}: weight_block_size is {list(block)}, expected two numbers")
    return block[0], block[1]
