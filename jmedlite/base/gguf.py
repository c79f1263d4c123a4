"""The GGUF header: read with every length bounded by the file, and written.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
llama.cpp aborts the process on some malformed headers, so every file from outside passes through here first.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import struct
import sys
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType, LlamaFileType, TokenType

from .errors import DataError, shortened
from .inputs import check_stand_in, opened

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_NAME = 64  # GGML_MAX_NAME, the terminating zero included
STEP = 1 << 20  # bytes read at once where there are many small values
MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
MAX_WHOLE = (1 << 31) - 1
# What a header may hold. The largest vocabularies there are (262,144 tokens, 580,000 merges) make 16 MB of metadata;
# models have some 60 keys and up to 2,000 tensors. Read, a header takes at most about five times its bytes.
MAX_HEADER, MAX_KEYS, MAX_TENSORS, MAX_STRINGS = 64 << 20, 1 << 14, 1 << 16, 1 << 21

Entries = dict[str, tuple[Any, int, int | None]]  # metadata: {key: (value, type, element type of an array or None)}

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
_SCALARS = {
    UINT8: "B",
    INT8: "b",
    UINT16: "H",
    INT16: "h",
    UINT32: "I",
    INT32: "i",
    FLOAT32: "f",
    BOOL: "?",
    UINT64: "Q",
    INT64: "q",
    FLOAT64: "d",
}


@dataclass(frozen=True)
class Tensor:
    """One tensor's entry: `shape` in ggml order (fastest dimension first), `offset` from the data section's start."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int = 0

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return nbytes(self.type, self.n_elements)


@dataclass(frozen=True)
class Header:
    """All a GGUF says before its data. `types[key]` is the value type, or (ARRAY, element type).

    Arrays of numbers are packed ones (`array.array`), those of texts lists of bytes.
    """

    metadata: dict[str, Any]
    types: dict[str, tuple[int, ...]]
    tensors: tuple[Tensor, ...]
    data_offset: int
    alignment: int = DEFAULT_ALIGNMENT
    version: int = VERSION
    file_size: int = 0
    by_name: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def n_weights(self) -> int:
        return sum(t.n_elements for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight; the metadata is not counted."""
        return 8 * sum(t.nbytes for t in self.tensors) / max(1, self.n_weights)


def nbytes(type_: GGMLQuantizationType, n_elements: int) -> int:
    """Bytes that `n_elements` take in `type_`; n_elements must be a multiple of the type's block size."""
    block, size = GGML_QUANT_SIZES[type_]
    return n_elements // int(block) * int(size)


_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
# Weights that llama.cpp's graphs look up, or multiply by, without the share of an adapter at run time.
BEYOND_ADAPTERS = ("position_embd.weight", "per_layer_token_embd.weight", "per_layer_model_proj.weight")
# How many tokens llama.cpp computes as the original does, where that is not the whole context, and what acts beyond.
EXACT_CONTEXT, EXACT_CONTEXT_SETTING = "jmedlite.context.exact", "jmedlite.context.setting"


def level_name(file_type: object) -> str | None:
    """llama.cpp's name of `general.file_type`, such as Q4_K_M; None where it has none."""
    try:
        name = str(LlamaFileType(file_type).name)
    except ValueError:
        return None
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


# What files are called by who makes them: `-Q4_K_M` (bartowski, LM Studio, here), `-UD-Q4_K_XL` (Unsloth),
# `.i1-IQ2_M` (mradermacher), `-q4_k_m` (Qwen), `-Q4_K_L` (embedding and output wider), `-MXFP4_MOE`
_LEVEL_OF_NAME = re.compile(
    r"(?P<base>.+?)[-._](?P<level>(?:UD-|i1-)?(?:I?Q[1-8](?:_[0-9A-Z]+)*|TQ[12]_0|BF16|F16|FP16|F32|FP32|MXFP4(?:_[A-Z]+)*))",
    re.IGNORECASE,
)


def name_and_level(stem: str) -> tuple[str, str | None]:
    """What a file's name says: the model, and the level as its maker calls it; None where it names none."""
    found = _LEVEL_OF_NAME.fullmatch(stem)
    return (found["base"], found["level"]) if found else (stem, None)


def tells_otherwise(named: str, level: str) -> bool:
    """Whether a file's own type contradicts what its name says, beyond what makers add: other bits per weight."""

    def width(name: str) -> str:
        found = re.match(r"(?:UD-|I1-)?(?:[IT]?Q(\d)|(MXFP4)|(B?F)P?(16|32))", name.upper())
        return "".join(filter(None, found.groups())) if found else name.upper()

    return width(named) != width(level)


def split_name(stem: str, number: int, count: int) -> str:
    """llama.cpp's name for file `number` (from 0) of `count`."""
    return f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"


def split_stem(name: str) -> str:
    """A GGUF file's name without its ending, and without the number of a part."""
    found = _SPLIT.fullmatch(name)
    return found["stem"] if found else name.removesuffix(".gguf")


def split_files(path: Path) -> list[Path]:
    """All files of a model of several, whichever of them is given; the file alone where it is not split."""
    found = _SPLIT.fullmatch(path.name)
    if not found or not (count := int(found["count"])):
        return [path]
    return [path.with_name(split_name(found["stem"], i, count)) for i in range(count)]


def pad(offset: int, alignment: int = DEFAULT_ALIGNMENT) -> int:
    return -(-offset // alignment) * alignment


# ---------------------------------------------------------------------------------------------------- writing


def _pack_string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def pack_value(value: Any, type_: int, element_type: int | None = None) -> bytes:
    """One metadata value with its type tag, as it stands in the file."""
    if type_ == STRING:
        return struct.pack("<I", STRING) + _pack_string(value)
    if type_ == ARRAY:
        if element_type is None:
            raise ValueError("an array needs its element type")
        head = struct.pack("<IIQ", ARRAY, element_type, len(value))
        if element_type == STRING:
            return head + b"".join(map(_pack_string, value))
        if isinstance(value, array) and value.typecode == _typecode(element_type) and sys.byteorder == "little":
            return head + value.tobytes()
        return head + struct.pack(f"<{len(value)}{_SCALARS[element_type]}", *value)
    return struct.pack("<I" + _SCALARS[type_], type_, value)


def pack_metadata(entries: Entries) -> bytes:
    """`{key: (value, type, element type or None)}` as the key-value section of a header.

    Raises DataError for a value that its type can't hold: values come from other people's configuration files.
    """
    packed = []
    for key, entry in entries.items():
        try:
            packed.append(_pack_string(key) + pack_value(*entry))
        except (struct.error, OverflowError, TypeError, AttributeError, UnicodeEncodeError) as e:
            raise DataError(f"the metadata key {key} can't hold {str(entry[0])[:80]!r} ({e})") from None
    return b"".join(packed)


def layout(tensors: Sequence[Tensor], alignment: int = DEFAULT_ALIGNMENT) -> tuple[list[Tensor], int]:
    """The tensors with their offsets, one after the other, and the length of the data section."""
    placed, offset = [], 0
    for t in tensors:
        placed.append(Tensor(t.name, t.shape, t.type, offset))
        offset += pad(t.nbytes, alignment)
    return placed, offset


def pack_header(metadata: Sequence[bytes], n_metadata: int, tensors: Sequence[Tensor]) -> bytes:
    """A whole header, padded to where the data begins; `metadata` are packed key-value sections."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), n_metadata), *metadata]
    for t in tensors:
        parts.append(_pack_string(t.name))
        parts.append(struct.pack(f"<I{len(t.shape)}QIQ", len(t.shape), *t.shape, t.type, t.offset))
    blob = b"".join(parts)
    return blob + bytes(pad(len(blob)) - len(blob))


# ---------------------------------------------------------------------------------------------------- reading


class _Cursor:
    """A forward reader that never asks for more than the file has."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self.file, self.size, self.path, self.at, self.n_strings = file, size, path, 0, 0

    def fail(self, what: str) -> DataError:
        return DataError(f"{self.path.name}: {what}")

    def take(self, n: int, what: str) -> bytes:
        if self.at + n > MAX_HEADER and n <= self.size - self.at:
            raise self.fail(f"has a header of over {MAX_HEADER:,} bytes ({what}), which no model needs; is it damaged?")
        if n > self.size - self.at:
            raise self.fail(
                f"truncated in {what}: needs {self.at + n:,} bytes, has {self.size:,}; copy or download the file again"
            )
        data = self.file.read(n)
        if len(data) != n:
            raise self.fail(f"could not be read at byte {self.at:,}")
        self.at += n
        return data

    def unpack(self, fmt: str, what: str) -> tuple[Any, ...]:
        return struct.unpack("<" + fmt, self.take(struct.calcsize("<" + fmt), what))

    def count(self, n: int, each: int, what: str, limit: int = MAX_HEADER) -> int:
        """A count from the file, checked against the least room its elements can take, and a limit."""
        if n * each > self.size - self.at:
            raise self.fail(f"{what} claims {n:,} entries, more than the {self.size:,} bytes of the file can hold")
        if n > limit:
            raise self.fail(f"{what} has {n:,} entries, expected at most {limit:,}; is it damaged?")
        return n

    def string(self, what: str) -> bytes:
        (n,) = self.unpack("Q", what)
        return self.take(self.count(n, 1, what), what)

    def strings(self, n: int, what: str) -> list[bytes]:
        """`n` strings; like `string` so many times, but a vocabulary has hundreds of thousands of them."""
        found: list[bytes] = []
        length_at = struct.Struct("<Q").unpack_from
        block, at = b"", 0
        while len(found) < n:
            end = at + 8
            if end <= len(block):
                end += length_at(block, at)[0]
                if end <= len(block):
                    found.append(block[at + 8 : end])
                    at = end
                    continue
            # what is left of the block, and on: at least the whole string, if the file has it
            self.at -= len(block) - at
            self.file.seek(self.at)
            self.count(end - at, 1, what)
            room = min(self.size, MAX_HEADER) - self.at
            block, at = self.take(max(min(STEP, room), end - at), what), 0
        self.at -= len(block) - at
        self.file.seek(self.at)
        return found

    def text(self, what: str) -> str:
        raw = self.string(what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def value(self, type_: int, what: str) -> Any:
        if type_ == STRING:
            return self.string(what)
        if type_ not in _SCALARS:
            raise self.fail(f"{what} has unknown value type {type_}")
        return self.unpack(_SCALARS[type_], what)[0]

    def array(self, what: str) -> tuple[int, list[bytes] | array[Any]]:
        element, n = self.unpack("IQ", what)
        if element == STRING:
            self.n_strings += self.count(n, 8, what)
            if self.n_strings > MAX_STRINGS:
                raise self.fail(f"{what}: over {MAX_STRINGS:,} texts are in the header, expected fewer; is it damaged?")
            return element, self.strings(n, what)
        if element not in _SCALARS:
            raise self.fail(f"{what} is an array of unknown or nested type {element}")
        size = struct.calcsize(_SCALARS[element])
        found = array(_typecode(element), self.take(size * self.count(n, size, what), what))
        if sys.byteorder == "big":
            found.byteswap()
        return element, found


def _typecode(element: int) -> str:
    """array.array's letter for an element type: struct's, but for truth values, which are bytes there."""
    return "B" if element == BOOL else _SCALARS[element]


def read_header(path: Path) -> Header:
    """Read and check a GGUF header; only the header's bytes are read.

    Raises InputMissing, NotPermitted, or DataError naming what is wrong.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        return _read(_Cursor(file, size, path))


def _read(c: _Cursor) -> Header:
    if c.size == 0:
        raise c.fail("is empty, expected a GGUF file")
    magic = c.take(4, "the magic number")
    if magic != MAGIC:
        check_stand_in(c.path, magic + c.file.read(60))
        raise c.fail(f"is not a GGUF file (begins with {magic!r}, expected {MAGIC!r})")
    (version,) = c.unpack("I", "the version")
    if version & 0xFFFF == 0:
        raise c.fail("is big-endian; only little-endian GGUF is supported, convert it with gguf-convert-endian")
    if version not in (2, 3):
        raise c.fail(f"has GGUF version {version}, expected 2 or 3; convert the model again")
    n_tensors, n_kv = c.unpack("QQ", "the header")
    c.count(n_kv, 13, "the metadata", MAX_KEYS)
    c.count(n_tensors, 32, "the tensor list", MAX_TENSORS)
    metadata, types = _read_metadata(c, n_kv)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise c.fail(f"has alignment {alignment}, expected a power of two")
    tensors = tuple(_read_tensors(c, n_tensors))
    data_offset = pad(c.at, alignment)
    _check_data(c, tensors, data_offset, alignment)
    return Header(metadata, types, tensors, data_offset, alignment, version, c.size, {t.name: t for t in tensors})


def _read_metadata(c: _Cursor, n_kv: int) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    metadata: dict[str, Any] = {}
    types: dict[str, tuple[int, ...]] = {}
    for _ in range(n_kv):
        key = c.text("a metadata key")
        if not key:
            raise c.fail("has an empty metadata key")
        if key in metadata:
            raise c.fail(f"has the metadata key {key!r} twice")
        (type_,) = c.unpack("I", key)
        if type_ == ARRAY:
            element, metadata[key] = c.array(key)
            types[key] = (ARRAY, element)
        else:
            value = c.value(type_, key)
            metadata[key] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            types[key] = (type_,)
    return metadata, types


def _read_tensors(c: _Cursor, n_tensors: int) -> Iterator[Tensor]:
    seen: set[str] = set()
    for _ in range(n_tensors):
        name = c.text("a tensor name")
        if not name or len(name.encode()) >= MAX_NAME:
            raise c.fail(f"has a tensor name of {len(name.encode())} bytes, expected 1 to {MAX_NAME - 1}")
        if name in seen:
            raise c.fail(f"has the tensor {name!r} twice")
        seen.add(name)
        (n_dims,) = c.unpack("I", name)
        if not 1 <= n_dims <= MAX_DIMS:
            raise c.fail(f"tensor {name} has {n_dims} dimensions, expected 1 to {MAX_DIMS}")
        shape = c.unpack(f"{n_dims}Q", name)
        type_id, offset = c.unpack("IQ", name)
        if 0 in shape or math.prod(shape) >= 1 << 62:
            raise c.fail(f"tensor {name} has impossible dimensions {shape}")
        try:
            type_ = GGMLQuantizationType(type_id)
        except ValueError:
            known = ", ".join(t.name for t in GGMLQuantizationType)
            raise c.fail(f"tensor {name} has unknown type {type_id}; known are {known}") from None
        block = GGML_QUANT_SIZES[type_][0]
        if shape[0] % block:
            raise c.fail(
                f"tensor {name} has rows of {shape[0]} weights, not a multiple of {block} as {type_.name} needs"
            )
        yield Tensor(name, shape, type_, offset)


def _check_data(c: _Cursor, tensors: Sequence[Tensor], data_offset: int, alignment: int) -> None:
    expected = 0
    for t in sorted(tensors, key=lambda t: t.offset):
        if t.offset % alignment:
            raise c.fail(f"tensor {t.name} begins at {t.offset}, not a multiple of the alignment {alignment}")
        if t.offset < expected:
            raise c.fail(f"tensor {t.name} overlaps the one before it")
        expected = t.offset + t.nbytes
        if data_offset + expected > c.size:
            raise c.fail(
                f"truncated in tensor {t.name}: needs {data_offset + expected:,} bytes, has {c.size:,}; "
                "copy or download the file again"
            )


_Kind = tuple[str, Callable[[Any, tuple[int, ...]], bool]]  # what is expected, and is it that
_WHOLES = (UINT8, INT8, UINT16, INT16, UINT32, INT32, UINT64, INT64)


def _is_whole(value: Any, types: tuple[int, ...]) -> bool:
    return types[0] in _WHOLES and 0 <= value <= MAX_WHOLE


def _are_wholes(value: Any, types: tuple[int, ...], lowest: int = 0) -> bool:
    if types[0] != ARRAY or types[1] not in _WHOLES:
        return False
    return not value or (min(value) >= lowest and max(value) <= MAX_WHOLE)


_TEXT: _Kind = ("a text", lambda _, types: types == (STRING,))
_FLAG: _Kind = ("true or false", lambda _, types: types == (BOOL,))
_WHOLE: _Kind = (f"a whole number up to {MAX_WHOLE:,}", _is_whole)
_TEXTS: _Kind = ("a list of texts", lambda _, types: types == (ARRAY, STRING))
_NUMBERS: _Kind = ("a list of numbers", lambda _, types: types in ((ARRAY, FLOAT32), (ARRAY, FLOAT64)))
_IDS: _Kind = ("a list of token numbers", lambda value, types: _are_wholes(value, types, -1))  # -1: no token
_PER_BLOCK: _Kind = (
    f"a whole number up to {MAX_WHOLE:,}, or a list of such",
    lambda value, types: _is_whole(value, types) or _are_wholes(value, types),
)
# Everything that jmedlite itself looks at in a model; what llama.cpp alone reads, it checks alone.
_EXPECTED: dict[str, _Kind] = {
    **dict.fromkeys(("general.name", "general.type", "general.license", "general.license.name"), _TEXT),
    "general.quantized_by": _TEXT,
    **dict.fromkeys(("general.base_model.0.name", "tokenizer.ggml.model", "tokenizer.ggml.pre"), _TEXT),
    **dict.fromkeys(("tokenizer.chat_template", "quantize.imatrix.file", "quantize.imatrix.dataset"), _TEXT),
    **dict.fromkeys((EXACT_CONTEXT_SETTING, "jmedlite.tokenizer.normalizer", "jmedlite.tokenizer.space_prefix"), _TEXT),
    **dict.fromkeys((SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS, "general.file_type"), _WHOLE),
    **dict.fromkeys(("quantize.imatrix.entries_count", "quantize.imatrix.chunks_count"), _WHOLE),
    **{
        f"tokenizer.ggml.{flag}": _FLAG
        for flag in ("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces")
    },
    "jmedlite.tokenizer.byte_fallback": _FLAG,
    "tokenizer.ggml.merges": _TEXTS,
    "tokenizer.ggml.scores": _NUMBERS,
    "tokenizer.ggml.token_type": ("a list of whole numbers", _are_wholes),
    **{
        f"jmedlite.tokenizer.{name}": _IDS
        for name in ("lstrip", "rstrip", "single_word", "normalized", "typed", "end_token_ids")
    },
}
_EXPECTED_OF_ARCHITECTURE: dict[str, _Kind] = {
    **dict.fromkeys(("block_count", "context_length", "rope.scaling.original_context_length"), _WHOLE),
    **dict.fromkeys(
        (
            "embedding_length", "feed_forward_length", "expert_feed_forward_length", "expert_used_count",
            "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
        ),
        _PER_BLOCK,
    ),
}  # fmt: skip
_COMMON = (
    "command-r", "deepseek2", "falcon", "gemma", "gemma2", "gemma3", "gpt-oss", "gpt2", "gptneox", "granite", "llama",
    "llama4", "mamba", "mistral3", "mpt", "olmo2", "phi2", "phi3", "plamo2", "qwen2", "qwen2moe", "qwen3", "qwen3moe",
    "stablelm", "starcoder2",
)  # fmt: skip


def _found(value: Any, types: tuple[int, ...]) -> str:
    """A value of another type than expected, in words."""
    if types[0] == ARRAY:
        return f"a list of {len(value):,} {'texts' if types[1] == STRING else 'numbers'}"
    return f"the text {shortened(value)!r}" if types[0] == STRING else str(value).lower()


def check_types(path: Path, header: Header, arch: str) -> None:
    """Every value that is looked at anywhere has the type that it is looked at as; raises DataError."""
    expected = {**_EXPECTED, **{f"{arch}.{key}": kind for key, kind in _EXPECTED_OF_ARCHITECTURE.items()}}
    for key, value in header.metadata.items():
        kind = _TEXT if key.startswith("jmedlite.made.") else expected.get(key)
        if kind is not None and not kind[1](value, header.types[key]):
            raise DataError(f"{path.name}: {key} is {_found(value, header.types[key])}, expected {kind[0]}")


def check_tensors(path: Path, names: Collection[str]) -> None:
    """A model's parts have an embedding together, without which nothing is asked of it; raises DataError."""
    if "token_embd.weight" not in names:
        raise DataError(
            f"{path.name}: has no token_embd.weight among its {len(names):,} tensors; is it a whole language model?"
        )


def check_model(path: Path, header: Header) -> None:
    """What llama.cpp would abort on, or answer wrongly from, in a header that is well-formed; raises DataError."""

    def fail(what: str) -> DataError:
        return DataError(f"{path.name}: {what}")

    meta = header.metadata
    arch = meta.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        raise fail("has no general.architecture; it is not a language model")
    if arch not in MODEL_ARCH_NAMES.values():
        known = sorted({*_COMMON, *difflib.get_close_matches(arch[:MAX_NAME], MODEL_ARCH_NAMES.values())})
        more = len(MODEL_ARCH_NAMES) - len(known)
        raise fail(f"is of the unknown architecture {arch!r}; known are {', '.join(known)} and {more} more")
    check_types(path, header, arch)
    blocks = meta.get(f"{arch}.block_count")
    if not isinstance(blocks, int) or not 1 <= blocks <= MAX_BLOCKS:
        raise fail(f"has {arch}.block_count {blocks}, expected 1 to {MAX_BLOCKS}")
    tokens = meta.get("tokenizer.ggml.tokens")
    if header.types.get("tokenizer.ggml.tokens") != (ARRAY, STRING) or not tokens:
        raise fail("has no vocabulary (tokenizer.ggml.tokens)")
    if len(set(tokens)) != len(tokens):
        raise fail("has the same token twice in its vocabulary")
    for key in ("tokenizer.ggml.token_type", "tokenizer.ggml.scores"):
        if (n := len(meta.get(key, tokens))) != len(tokens):  # llama.cpp reads as many as there are tokens
            raise fail(f"{key} has {n:,} entries for {len(tokens):,} tokens")
    kinds = set(meta.get("tokenizer.ggml.token_type", (TokenType.NORMAL,)))
    if (strange := max(kinds)) > max(TokenType):
        raise fail(f"tokenizer.ggml.token_type holds {strange}, expected 0 to {max(TokenType):d}; is it damaged?")
    if kinds.isdisjoint((TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.BYTE)):
        raise fail("has no token of text in its vocabulary (tokenizer.ggml.token_type); is it damaged?")
    exact = meta.get(EXACT_CONTEXT, 1)
    if not isinstance(exact, int) or exact < 1:
        raise fail(f"{EXACT_CONTEXT} is {str(exact)[:80]}, expected a number of tokens")
    for key, value in meta.items():
        if not (key.startswith("tokenizer.ggml.") and key.endswith("_token_id")):
            continue
        if not isinstance(value, int) or not 0 <= value < len(tokens):
            raise fail(f"{key} is {str(value)[:80]}, outside the vocabulary of {len(tokens):,}")
