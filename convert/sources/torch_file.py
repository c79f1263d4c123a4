"""PyTorch weight files (.bin, .pt): where each tensor stands, read without torch and without running anything.

torch.save writes a zip archive, uncompressed: `NAME/data.pkl` describes the tensors, `NAME/data/0`, `NAME/data/1`, ...
are their storages. A pickle is a program; torch.load runs it, and what it names is imported and called. Here it is
interpreted by a machine that knows a few opcodes and a few names, builds tensors, and calls nothing.

Format: https://docs.pytorch.org/docs/stable/notes/serialization.html and torch/serialization.py, torch/_utils.py.
Opcodes: https://docs.python.org/3/library/pickletools.html (PEP 307, PEP 3154).
Zip: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, read here and not by `zipfile`, which takes a
directory of any length into memory and forgives much that torch never writes.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from jmedlite.base.errors import DataError
from jmedlite.base.inputs import AGAIN, check_stand_in, opened

from .tensors import DTYPE_BYTES, StoredTensor

# A tensor takes up to 40 opcodes and 200 bytes of pickle, and a 7B model has 500. At these limits reading takes half a
# second and 50 MB, whatever the file says.
MAX_ENTRIES = 15_000
MAX_DIRECTORY = 3_000_000
MAX_PICKLE = 8_000_000
MAX_OPCODES = 600_000
MAX_STACK = 10_000  # picklers fill containers in batches of 1,000
MAX_MEMO = 250_000
MAX_NAME = 1_000
MAX_DIMS = 64
INSTEAD = "get the model as safetensors"

# ---------------------------------------------------------------------------------------------------- the zip archive

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_SIZES_FOLLOW = 0x8  # sizes stand behind the data; torch sets it and leaves zeros in the local header


class _Entry(NamedTuple):
    """An entry as the directory lists it; `header` is where its local header begins, with its data behind."""

    header: int
    name: str
    size: int
    packed: int
    flags: int
    method: int
    crc: int


def _fail(path: Path, what: str) -> NoReturn:
    raise DataError(f"{path.name}: {what}")


def _shown(text: str) -> str:
    """A name from the file as it may stand in a message: one line, bounded."""
    return repr(text)[1:-1] if len(text) <= 100 else repr(text[:100])[1:-1] + "…"


def _read(path: Path, file: BinaryIO, offset: int, n: int) -> bytes:
    file.seek(offset)
    found = file.read(n)
    if len(found) < n:
        _fail(path, f"truncated, ends within {n:,} bytes wanted at {offset:,}; {AGAIN}")
    return found


def _end(path: Path, file: BinaryIO, size: int) -> tuple[int, int, int]:
    """(number of entries, directory's offset, its length) from the records that end the archive."""
    whole = _END64.size + _LOCATOR.size + _END.size
    tail = _read(path, file, max(0, size - whole), min(size, whole)).rjust(whole, b"\0")
    signature, disk, start_disk, here, n, length, offset, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\5\6" or comment:
        _fail(path, f"has no zip directory at its end: it is truncated, or something was appended; {AGAIN}")
    end = size - _END.size
    small = (disk, start_disk, here, n, length, offset)
    locator, locator_disk, at, disks = _LOCATOR.unpack_from(tail, _END64.size)
    if locator == b"PK\6\7":
        end = size - whole
        wide = _END64.unpack_from(tail)
        if at != end or locator_disk or disks != 1 or wide[:2] != (b"PK\6\6", _END64.size - 12):
            _fail(path, f"has a damaged zip64 directory; {AGAIN}")
        for a, b, limit in zip(small, wide[4:], (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2, strict=True):
            if a not in (b, limit):  # two readers would see two archives
                _fail(path, f"has two zip directories that disagree ({a:,} and {b:,}); {AGAIN}")
        disk, start_disk, here, n, length, offset = wide[4:]
    if disk or start_disk or here != n or offset + length != end:
        _fail(path, f"has a zip directory of {length:,} bytes at {offset:,}, expected it to end at {end:,}; {AGAIN}")
    if n > MAX_ENTRIES or length > MAX_DIRECTORY:
        limits = f"at most {MAX_ENTRIES:,} and {MAX_DIRECTORY:,}"
        _fail(path, f"has a zip directory of {n:,} entries and {length:,} bytes, expected {limits}; {INSTEAD}")
    return n, offset, length


def _widened(path: Path, extra: bytes, values: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes and offsets of 0xFFFFFFFF replaced by those of the zip64 extra field (id 1), in its order."""
    n_wide = sum(v == 0xFFFFFFFF for v in values)
    at = 0
    while n_wide and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1 and 8 * n_wide <= length <= len(extra) - at - 4:
            wide = iter(struct.unpack_from(f"<{n_wide}Q", extra, at + 4))
            return tuple(next(wide) if v == 0xFFFFFFFF else v for v in values)
        at += 4 + length
    if n_wide:
        _fail(path, f"has a zip entry of more than 4 GB without its zip64 sizes; {AGAIN}")
    return values


def _directory(path: Path, file: BinaryIO, size: int) -> tuple[list[_Entry], int]:
    """The archive's entries, and where their data must end."""
    n, start, length = _end(path, file, size)
    blob = _read(path, file, start, length)
    found: list[_Entry] = []
    at = 0
    for _ in range(n):
        if at + _CENTRAL.size > length:
            _fail(path, f"has a directory that ends before its {n:,} entries; {AGAIN}")
        fields = _CENTRAL.unpack_from(blob, at)
        signature, flags, method, crc = fields[0], fields[3], fields[4], fields[7]
        name_length, extra_length, comment_length, disk = fields[10:14]
        at += _CENTRAL.size
        raw, extra = blob[at : at + name_length], blob[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment_length
        if signature != b"PK\1\2" or at > length or disk or name_length > MAX_NAME:
            _fail(path, f"has a damaged directory entry (number {len(found) + 1}); {AGAIN}")
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            _fail(path, f"has an entry whose name is not UTF-8 ({raw[:40]!r}); {AGAIN}")
        packed, nbytes, header = _widened(path, extra, (fields[8], fields[9], fields[16]))
        found.append(_Entry(header, name, nbytes, packed, flags, method, crc))
    if at != length:
        _fail(path, f"has {length - at:,} bytes in its directory after the last entry, expected none; {AGAIN}")
    return found, start


def _locate(path: Path, file: BinaryIO, entries: list[_Entry], end: int) -> dict[str, tuple[int, int]]:
    """(offset, size) of the data of each entry: stored as they are, before `end`, without overlap."""
    places: dict[str, tuple[int, int]] = {}
    at = 0
    for e in sorted(entries):
        name = _shown(e.name)
        if e.flags & _ENCRYPTED:
            _fail(path, f"its entry {name} is encrypted; torch.save never does that, {INSTEAD}")
        if e.method or e.packed != e.size:
            _fail(path, f"its entry {name} is compressed; save it with torch.save, which stores plainly, or {INSTEAD}")
        if e.header < at:
            _fail(path, f"its entry {name} overlaps the one before it; {AGAIN}")
        if e.header + _LOCAL.size + e.size > end:
            _fail(path, f"its entry {name} has {e.size:,} bytes from {e.header:,} on, the data end at {end:,}; {AGAIN}")
        begin = _check_local(path, file, e)
        at = begin + e.size
        if at > end:
            _fail(path, f"its entry {name} ends at {at:,}, the data end at {end:,}; {AGAIN}")
        if e.name in places:
            _fail(path, f"has the entry {name} twice; {AGAIN}")
        places[e.name] = begin, e.size
    return places


def _check_local(path: Path, file: BinaryIO, e: _Entry) -> int:
    """Where the data of an entry begins, by the header before it, which must say what the directory says."""
    raw = e.name.encode("utf-8")
    head = _read(path, file, e.header, _LOCAL.size + len(raw))
    signature, _, flags, method, _, _, _, *sizes, name_length, extra_length = _LOCAL.unpack_from(head)
    begin: int = e.header + _LOCAL.size + name_length + extra_length
    agree = signature == b"PK\3\4" and head[_LOCAL.size :] == raw and name_length == len(raw)
    if agree and not (flags & _SIZES_FOLLOW and sizes == [0, 0]):
        extra = b"" if 0xFFFFFFFF not in sizes else _read(path, file, begin - extra_length, extra_length)
        agree = _widened(path, extra, tuple(sizes)) == (e.size, e.size)
    if not agree or method or flags & _ENCRYPTED:
        _fail(path, f"its entry {_shown(e.name)} differs between the directory and the header before it; {AGAIN}")
    return begin


# --------------------------------------------------------------------------------------------------------- the pickle

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Named:
    """A name the pickle may use. What it stands for is never imported; `dtype` is set for number formats."""

    name: str
    dtype: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    dtype: str
    n: int  # elements
    offset: int  # in the file

    @property
    def nbytes(self) -> int:
        return self.n * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, eq=False)
class _TorchTensor:
    storage: _Storage
    dtype: str
    start: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_ORDERED_DICT = "collections.OrderedDict"
_TENSOR, _TENSOR2, _TENSOR3 = (f"torch._utils._rebuild_tensor{v}" for v in ("", "_v2", "_v3"))
_PARAMETER, _SIZE = "torch._utils._rebuild_parameter", "torch.Size"
_UNTYPED = "torch.storage.UntypedStorage"  # bytes; only tensors of the newer integer formats stand in them
_NAMES = {name: _Named(name) for name in (_ORDERED_DICT, _TENSOR, _TENSOR2, _TENSOR3, _PARAMETER, _SIZE)}
_FORMATS = {f"torch.{name}": _Named(f"torch.{name}", dtype) for name, dtype in _DTYPES.items()}
_KINDS = {f"torch.{name}": _Named(f"torch.{name}", dtype) for name, dtype in _STORAGES.items()}
_KINDS[_UNTYPED] = _Named(_UNTYPED, "U8")
_ALLOWED = _NAMES | _FORMATS | _KINDS
_OTHER_FORMAT = re.compile(r"torch\.(\w+Storage|(complex|float|q?u?int|bits)\w*)")


def _whole(x: Any) -> bool:
    return type(x) is int and 0 <= x < 1 << 62


def _wholes(x: Any) -> bool:
    return type(x) is tuple and len(x) <= MAX_DIMS and all(map(_whole, x))


class _PickleMachine:
    """Interprets one data.pkl. Values are None, bool, int, float, str, tuple, list, dict and the classes above.

    No value is ever hashed, compared or printed unless it is known to be a plain string or number: tuples nested by
    way of the memo grow exponentially when walked.
    """

    def __init__(self, path: Path, blob: bytes, places: Mapping[str, tuple[int, int]]) -> None:
        self.path, self.blob, self.at = path, blob, 0
        self.places = places  # (offset, size) by the storage's key
        self.stack: list[Any] = []
        self.marks: list[int] = []  # positions in the stack
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, _Storage] = {}

    def fail(self, what: str, then: str = INSTEAD) -> NoReturn:
        _fail(self.path, f"its pickle {what}; {then}")

    def broken(self, what: str) -> NoReturn:
        self.fail(f"is damaged at byte {self.at:,} ({what})", AGAIN)

    def run(self) -> Any:
        """The value the pickle describes."""
        for _ in range(MAX_OPCODES):
            if self.at >= len(self.blob):
                self.broken("it ends without an end mark")
            opcode = self.blob[self.at]
            step = _STEPS.get(opcode)
            if step is None:
                self.fail(
                    f"has the opcode 0x{opcode:02x} at byte {self.at:,}, which tensors do not need; nothing is executed"
                )
            self.at += 1
            if step is _stop:
                break
            step(self)
            if len(self.stack) > MAX_STACK or len(self.marks) > MAX_STACK or len(self.memo) > MAX_MEMO:
                self.fail(f"keeps more than {MAX_STACK:,} values waiting, or {MAX_MEMO:,} noted")
        else:
            self.fail(f"has more than {MAX_OPCODES:,} opcodes")
        if len(self.stack) != 1 or self.marks or self.at != len(self.blob):
            self.broken("it ends too early")
        return self.stack[0]

    # -------------------------------------------------------------------------------------------- bytes and stack

    def take(self, n: int) -> bytes:
        if n > len(self.blob) - self.at:
            self.broken(f"{n:,} bytes wanted, {len(self.blob) - self.at:,} left")
        self.at += n
        return self.blob[self.at - n : self.at]

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def long(self) -> int:
        n = self.number(_U8)
        if n > 8:
            self.fail(f"has an integer of {n} bytes, expected at most 8")
        return int.from_bytes(self.take(n), "little", signed=True)

    def text(self, n: int) -> str:
        if n > MAX_NAME:
            self.fail(f"has a text of {n:,} bytes, expected at most {MAX_NAME:,}")
        try:
            return self.take(n).decode("utf-8")
        except UnicodeDecodeError:
            self.broken("a text is not UTF-8")

    def line(self) -> str:
        end = self.blob.find(b"\n", self.at, self.at + MAX_NAME)
        if end < 0:
            self.broken("a name has no end")
        found = self.text(end - self.at)
        self.at += 1
        return found

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.broken("the stack is empty")
        return self.stack.pop()

    def top(self) -> Any:
        self.stack.append(found := self.pop())
        return found

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            self.broken("a mark is missing")
        mark = self.marks.pop()
        found = self.stack[mark:]
        del self.stack[mark:]
        return found

    def pop_tuple(self, n: int) -> tuple[Any, ...]:
        return tuple([self.pop() for _ in range(n)][::-1])

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def recall(self, index: int) -> None:
        if index not in self.memo:
            self.broken(f"value {index:,} was never noted")
        self.stack.append(self.memo[index])

    def note(self, index: int) -> None:
        self.memo[index] = self.top()

    def protocol(self) -> None:
        if (version := self.number(_U8)) > 5:
            self.fail(f"has protocol {version}, expected at most 5")

    # --------------------------------------------------------------------------------------------------- containers

    def append(self, values: list[Any]) -> None:
        if type(found := self.top()) is not list:
            self.broken("something is appended to what is no list")
        found.extend(values)

    def set_items(self, values: list[Any]) -> None:
        found = self.top()
        if type(found) is not dict or len(values) % 2:
            self.broken("an item is set in what is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str:
                self.fail(f"has a dictionary with a key of type {type(key).__name__.strip('_')}, expected texts")
            if key in found:
                self.fail(f"has {_shown(key)} twice in a dictionary")
            found[key] = value

    def build(self) -> None:
        """Attributes of an OrderedDict: `_metadata`, the module versions of a state dict. Nothing here needs them."""
        state = self.pop()
        if type(state) is not dict or type(self.top()) is not dict:
            self.fail("sets attributes of what is no OrderedDict")

    # ------------------------------------------------------------------------------------------ names and tensors

    def find(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            self.broken("a name is no text")
        full = f"{module}.{name}"
        if full in _ALLOWED and "." not in name:
            self.stack.append(_ALLOWED[full])
        elif _OTHER_FORMAT.fullmatch(full):
            self.fail(f"has tensors of the number format `{_shown(full)}`, known are {', '.join(_DTYPES)}")
        else:
            self.fail(f"wants `{_shown(full)}`; only plain tensors are read, nothing is executed")

    def reduce(self) -> None:
        """What would be a call. Its function is one of a few names, and what each would return is built here."""
        args, function = self.pop(), self.pop()
        if type(function) is not _Named or function.name not in _NAMES or type(args) is not tuple:
            self.fail("calls what is no function known here")
        made: Any = None
        if function.name == _ORDERED_DICT and not args:
            made = {}
        elif function.name == _SIZE and len(args) == 1 and type(args[0]) is tuple:
            made = args[0]
        elif function.name == _PARAMETER and len(args) == 3 and self.is_plain(args[1], args[2]):
            made = args[0] if type(args[0]) is _TorchTensor else None
        elif function.name in (_TENSOR, _TENSOR2, _TENSOR3):
            made = self.tensor(function.name, args)
        if made is None:
            self.fail(f"calls {function.name} with {len(args)} arguments of another kind than torch writes")
        self.stack.append(made)

    def is_plain(self, requires_grad: Any, hooks: Any) -> bool:
        return type(requires_grad) is bool and (hooks is None or (type(hooks) is dict and not hooks))

    def tensor(self, function: str, args: tuple[Any, ...]) -> _TorchTensor | None:
        """(storage, start, shape, stride), and from version 2 on (requires_grad, hooks[, dtype][, flags])."""
        n_args, has_dtype = {_TENSOR: 4, _TENSOR2: 6, _TENSOR3: 7}[function], function == _TENSOR3
        if len(args) not in (n_args, n_args + (function != _TENSOR)):
            return None
        storage, start, shape, stride, *rest = args
        flags = rest.pop() if len(args) > n_args else None
        dtype = rest.pop() if has_dtype else None
        if flags is not None and not (type(flags) is dict and not flags):
            # a view that torch negates or conjugates on reading: its bytes are not its values
            self.fail("has a tensor with flags (a lazily negated or conjugated view), which is not read")
        fits = type(storage) is _Storage and _whole(start) and _wholes(shape) and _wholes(stride)
        if not fits or len(shape) != len(stride) or (rest and not self.is_plain(*rest)):
            return None
        if has_dtype and (type(dtype) is not _Named or dtype.name not in _FORMATS):
            return None
        return _TorchTensor(storage, dtype.dtype if dtype else storage.dtype, start, shape, stride)

    def persistent(self) -> None:
        """A storage: ("storage", its class, key, the device it was on, number of elements)."""
        found = self.pop()
        if type(found) is not tuple or len(found) != 5:
            self.broken("a storage is described in another way than torch does")
        tag, kind, key, device, n = found
        texts = all(type(x) is str for x in (tag, key, device))
        if not texts or tag != "storage" or type(kind) is not _Named or kind.name not in _KINDS or not _whole(n):
            self.broken("a storage is described in another way than torch does")
        if key not in self.places:
            self.fail(f"wants the storage '{_shown(key)}', which is not in the archive")
        offset, size = self.places[key]
        storage = self.storages.setdefault(key, _Storage(kind.dtype, n, offset))
        if (storage.dtype, storage.n) != (kind.dtype, n):
            self.fail(f"describes the storage '{_shown(key)}' in two ways")
        if storage.nbytes != size:
            self.fail(f"gives the storage '{_shown(key)}' {storage.nbytes:,} bytes, the archive has {size:,}")
        self.stack.append(storage)


_U8, _U16, _U32, _I32, _U64, _F64 = map(struct.Struct, ("<B", "<H", "<I", "<i", "<Q", ">d"))


def _stop(_: _PickleMachine) -> None:
    pass


_STEPS: dict[int, Callable[[_PickleMachine], None]] = {
    0x80: _PickleMachine.protocol,
    0x95: lambda m: None if m.number(_U64) <= len(m.blob) - m.at else m.broken("a frame is too long"),  # FRAME
    ord("."): _stop,
    ord("("): _PickleMachine.mark,
    ord("N"): lambda m: m.stack.append(None),
    0x88: lambda m: m.stack.append(True),
    0x89: lambda m: m.stack.append(False),
    ord("K"): lambda m: m.stack.append(m.number(_U8)),
    ord("M"): lambda m: m.stack.append(m.number(_U16)),
    ord("J"): lambda m: m.stack.append(m.number(_I32)),
    0x8A: lambda m: m.stack.append(m.long()),  # LONG1
    ord("G"): lambda m: m.stack.append(m.number(_F64)),
    ord("X"): lambda m: m.stack.append(m.text(m.number(_U32))),
    0x8C: lambda m: m.stack.append(m.text(m.number(_U8))),  # SHORT_BINUNICODE
    ord("}"): lambda m: m.stack.append({}),
    ord("]"): lambda m: m.stack.append([]),
    ord(")"): lambda m: m.stack.append(()),
    0x85: lambda m: m.stack.append(m.pop_tuple(1)),
    0x86: lambda m: m.stack.append(m.pop_tuple(2)),
    0x87: lambda m: m.stack.append(m.pop_tuple(3)),
    ord("t"): lambda m: m.stack.append(tuple(m.pop_to_mark())),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.pop_to_mark()),
    ord("s"): lambda m: m.set_items(list(m.pop_tuple(2))),
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
    ord("q"): lambda m: m.note(m.number(_U8)),
    ord("r"): lambda m: m.note(m.number(_U32)),
    0x94: lambda m: m.note(len(m.memo)),  # MEMOIZE
    ord("h"): lambda m: m.recall(m.number(_U8)),
    ord("j"): lambda m: m.recall(m.number(_U32)),
    ord("c"): lambda m: m.find(m.line(), m.line()),
    0x93: lambda m: m.find(*m.pop_tuple(2)),  # STACK_GLOBAL
    ord("Q"): _PickleMachine.persistent,
    ord("R"): _PickleMachine.reduce,
    ord("b"): _PickleMachine.build,
}

# ------------------------------------------------------------------------------------------------------- the tensors


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file that torch.save wrote (torch 1.6 or newer): a state dict, or {"state_dict": state dict}.

    Several tensors may share bytes (tied weights). Raises DataError for anything but contiguous plain tensors.
    """
    with opened(path, buffering=0) as file:
        _check_kind(path, file.read(512))
        blob, storages = _contents(path, file, os.fstat(file.fileno()).st_size)
    return _state_dict(path, _PickleMachine(path, blob, storages).run())


def _contents(path: Path, file: BinaryIO, size: int) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The pickle, and by the storages' keys (offset, size) of each."""
    entries, end = _directory(path, file, size)
    prefix = _check_names(path, entries)
    places = _locate(path, file, entries, end)
    if (order := places.get(prefix + "byteorder")) is not None:
        found = _read(path, file, order[0], min(order[1], 16)).decode("ascii", "replace")
        if found != "little":
            _fail(path, f"has the byte order {_shown(found)!r}, expected 'little'; {INSTEAD}")
    offset, length = places[prefix + "data.pkl"]
    if length > MAX_PICKLE:
        _fail(path, f"has a pickle of {length:,} bytes, expected at most {MAX_PICKLE:,}; {INSTEAD}")
    blob = _read(path, file, offset, length)
    crc = next(e.crc for e in entries if e.name == prefix + "data.pkl")
    if crc not in (0, zlib.crc32(blob)):  # torch.serialization.set_crc32_options(False) writes zeros
        _fail(path, f"its data.pkl is damaged (its checksum differs); {AGAIN}")
    data = prefix + "data/"
    return blob, {name.removeprefix(data): place for name, place in places.items() if name.startswith(data)}


_LEGACY = bytes.fromhex("8a0a 6cfc 9c46 f920 6aa8 5019")  # 0x1950A86A20F9469CFC6C, pickled


def _check_kind(path: Path, head: bytes) -> None:
    """Say by its first bytes what a file is that is no zip archive."""
    if head.startswith(b"PK\3\4"):
        return
    check_stand_in(path, head)
    if _LEGACY in head or head[257:262] == b"ustar":
        _fail(path, f"is in PyTorch's legacy format (before 1.6); load it with torch and save it again, or {INSTEAD}")
    if head[:1] == b"\x80":
        _fail(path, f"is a bare pickle, expected the zip archive that torch.save writes; {INSTEAD}")
    _fail(path, f"is not a PyTorch weight file (begins with {head[:8]!r}, expected a zip archive); {AGAIN}")


def _check_names(path: Path, entries: list[_Entry]) -> str:
    """The archive's one folder, with its slash."""
    prefix = entries[0].name.partition("/")[0] + "/" if entries else "/"
    names = [e.name for e in entries]
    not_torch = "is a zip archive, but not one that torch.save writes"
    if strangers := [n for n in names if not n.startswith(prefix)]:
        _fail(path, f"{not_torch} ('{_shown(strangers[0])}' is outside the folder '{_shown(prefix)}'); {INSTEAD}")
    if prefix + "constants.pkl" in names or any(n.startswith(prefix + "code/") for n in names):
        _fail(path, f"is a TorchScript program, expected weights; torch.save the model's state_dict, or {INSTEAD}")
    if prefix + "data.pkl" not in names:
        _fail(path, f"{not_torch} (it has no data.pkl); {INSTEAD}")
    return prefix


_WORDS = {
    _TorchTensor: "a single tensor", _Storage: "a bare storage", dict: "a dictionary", list: "a list", tuple: "a tuple",
    str: "a text", bool: "a number", int: "a number", float: "a number", type(None): "empty",
}  # fmt: skip


def _state_dict(path: Path, found: Any) -> dict[str, StoredTensor]:
    if type(found) is dict and list(found) == ["state_dict"] and type(found["state_dict"]) is dict:
        found = found["state_dict"]
    if type(found) is not dict:
        what = _WORDS.get(type(found), "a mere name")
        _fail(path, f"is {what}, expected a dictionary of tensors; save the model's state_dict")
    if not found:
        _fail(path, "holds no tensors, expected a model's state_dict")
    tensors = {}
    for name, value in found.items():
        if not name.isprintable() or not name:
            _fail(path, f"has a tensor with the unusable name '{_shown(name)}'; {INSTEAD}")
        if type(value) is not _TorchTensor:
            what = _WORDS.get(type(value), "a mere name")
            _fail(path, f"its entry {_shown(name)} is {what}, expected a tensor; save only the model's state_dict")
        tensors[name] = _place(path, name, value)
    return tensors


def _place(path: Path, name: str, t: _TorchTensor) -> StoredTensor:
    """The tensor's place in the file, if its elements stand there one after the other and inside its storage."""
    width = DTYPE_BYTES[t.dtype]
    n = math.prod(t.shape)
    step = 1
    for size, stride in zip(reversed(t.shape), reversed(t.stride), strict=True):
        if size != 1 and n and stride != step:  # nothing is ever stepped over in a dimension of one
            _fail(
                path,
                f"tensor {_shown(name)} of shape {list(t.shape)} is not contiguous (strides {list(t.stride)}); "
                f"save it with .contiguous(), or {INSTEAD}",
            )
        step *= size
    if (t.start + n) * width > t.storage.nbytes:
        _fail(
            path,
            f"tensor {_shown(name)} needs {(t.start + n) * width:,} bytes of its storage, which has "
            f"{t.storage.nbytes:,}; {AGAIN}",
        )
    return StoredTensor(name, path, t.dtype, t.shape, t.storage.offset + t.start * width)
