"""Bent GGUF files: whole ones taken apart, changed (also at random), put together; and kinds of other files."""

from __future__ import annotations

import math
import os
import random
import socket
import struct
from pathlib import Path
from typing import Any

_SCALARS = "BbHhIif?__Qqd"  # by value type; 8 and 9 are text and array
TEXT, ARRAY = 8, 9


class BentGguf:
    """A GGUF file's parts: `metadata` {key: (type, element type, value)}, `tensors` [name, shape, type, offset].

    Written and read here anew, so that nothing of what is tested has a share in it. Texts are bytes.
    """

    def __init__(self, path: Path) -> None:
        self._blob, self._at = path.read_bytes(), 24  # behind magic, version and counts
        n_tensors, n_keys = struct.unpack_from("<QQ", self._blob, 8)
        self.metadata = dict(self._entry() for _ in range(n_keys))
        self.tensors = [self._tensor() for _ in range(n_tensors)]
        self.data = self._blob[-(-self._at // 32) * 32 :]

    def _take(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._blob, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _text(self) -> bytes:
        n = self._take("Q")
        self._at += n
        return self._blob[self._at - n : self._at]

    def _value(self, type_: int) -> Any:
        return self._text() if type_ == TEXT else self._take(_SCALARS[type_])

    def _entry(self) -> tuple[str, tuple[int, int, Any]]:
        key, type_ = self._text().decode(), self._take("I")
        if type_ != ARRAY:
            return key, (type_, 0, self._value(type_))
        element, n = self._take("I"), self._take("Q")
        return key, (type_, element, [self._value(element) for _ in range(n)])

    def _tensor(self) -> list[Any]:
        name, n = self._text().decode(), self._take("I")
        return [name, [self._take("Q") for _ in range(n)], self._take("I"), self._take("Q")]

    def set(self, key: str, type_: int, value: Any, element: int = 0) -> BentGguf:
        """Another value for a key."""
        self.metadata[key] = (type_, element, value)
        return self

    def drop(self, key: str) -> BentGguf:
        """Without a key."""
        self.metadata.pop(key, None)
        return self

    def retype(self, name: str, type_: int, n_bytes: int) -> BentGguf:
        """A tensor of another type, over zeros at the end."""
        tensor = next(t for t in self.tensors if t[0] == name)
        tensor[2:] = [type_, len(self.data)]
        self.data += bytes(-(-n_bytes // 32) * 32)
        return self

    def header(self) -> bytes:
        """The bytes before the data."""

        def text(x: bytes) -> bytes:
            return struct.pack("<Q", len(x)) + x

        def value(type_: int, x: Any) -> bytes:
            return text(x) if type_ == TEXT else struct.pack("<" + _SCALARS[type_], x)

        parts = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.metadata))]
        for key, (type_, element, x) in self.metadata.items():
            parts.append(text(key.encode()) + struct.pack("<I", type_))
            if type_ == ARRAY:
                parts += [struct.pack("<IQ", element, len(x)), *(value(element, one) for one in x)]
            else:
                parts.append(value(type_, x))
        for name, shape, type_, offset in self.tensors:
            parts.append(text(name.encode()) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_, offset))
        blob = b"".join(parts)
        return blob + bytes(-len(blob) % 32)

    def save(self, path: Path) -> Path:
        """The file, put together."""
        path.write_bytes(self.header() + self.data)
        return path


OTHER_KINDS = ("a pipe", "a socket", "a folder", "a device")


def make_other(path: Path, kind: str) -> Path:
    """What is no regular file, at `path`."""
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    return path


# ---------------------------------------------------------------------------------------------------- at random

SIZES = (
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    255,
    256,
    4096,
    65_535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    1 << 62,
)
TYPE_IDS = (*range(42), 77, 1 << 31)


def bend(path: Path, rng: random.Random) -> bytes:
    """The bytes of a GGUF file with one to three things changed: its structure, its bytes, or its length."""
    gguf = BentGguf(path)
    n = rng.choice((1, 1, 1, 2, 3))
    for _ in range(n):
        rng.choice((_bend_value, _bend_value, _bend_tensor, _bend_tensor, _bend_vocabulary, _bend_data))(gguf, rng)
    blob = bytearray(gguf.header() + gguf.data)
    if rng.random() < 0.3:
        _bend_bytes(blob, rng, len(blob) - len(gguf.data))
    return bytes(blob)


def _any_value(rng: random.Random) -> tuple[int, int, Any]:
    """A well-formed value of any type: (type, element type, value)."""

    def scalar(type_: int) -> Any:
        code = _SCALARS[type_]
        if type_ == TEXT:
            return rng.choice((b"", b"x", b"\xff\xfe", b"\x1b[2J[red]", "薬".encode(), b"y" * 3000))
        if code == "?":
            return rng.random() < 0.5
        if code in "fd":
            return rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
        bits = 8 * struct.calcsize(code)
        signed = code.islower()
        value = rng.choice((*SIZES, -1))
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        return max(low, min(high, value))

    types = [t for t in range(13) if t != ARRAY]
    type_ = rng.choice((*types, ARRAY, ARRAY, ARRAY))
    if type_ != ARRAY:
        return type_, 0, scalar(type_)
    element = rng.choice(types)
    return ARRAY, element, [scalar(element) for _ in range(rng.choice((0, 1, 2, 3, 300)))]


def _bend_value(gguf: BentGguf, rng: random.Random) -> None:
    key = rng.choice(list(gguf.metadata))
    what = rng.random()
    if what < 0.2:
        gguf.drop(key)
    elif what < 0.3:
        gguf.metadata[rng.choice(("general.alignment", "split.count", "general.license", "jmedlite.x", ""))] = (
            _any_value(rng)
        )
    elif what < 0.6 and gguf.metadata[key][0] not in (TEXT, ARRAY):  # the type stays, the value does not
        type_, element, _ = gguf.metadata[key]
        size = struct.calcsize(_SCALARS[type_])
        gguf.set(key, type_, *struct.unpack("<" + _SCALARS[type_], rng.randbytes(size)), element)
    else:
        gguf.metadata[key] = _any_value(rng)


def _bend_tensor(gguf: BentGguf, rng: random.Random) -> None:
    if not gguf.tensors:
        return
    i = rng.randrange(len(gguf.tensors))
    tensor = gguf.tensors[i]
    match rng.randrange(7):
        case 0:
            tensor[2] = rng.choice(TYPE_IDS)
        case 1:
            tensor[1][rng.randrange(len(tensor[1]))] = rng.choice(SIZES)
        case 2:
            tensor[1] = rng.choice((tensor[1][::-1], [*tensor[1], 1], tensor[1][:1], []))
        case 3:
            tensor[3] = rng.choice((0, 32, tensor[3] + 32, tensor[3] + 1, len(gguf.data), 1 << 62))
        case 4:
            tensor[0] = rng.choice((gguf.tensors[0][0], "", "x" * 64, "blk.999.x", "\x1b[2J", tensor[0] + ".lora_a"))
        case 5:
            del gguf.tensors[i]
        case _:  # of another type, with bytes enough
            type_ = rng.choice((0, 1, 8, 12, 14, 16, 24, 25, 26, 27, 28, 30))
            gguf.retype(tensor[0], type_, 8 * math.prod(tensor[1]))


def _bend_vocabulary(gguf: BentGguf, rng: random.Random) -> None:
    key = rng.choice([k for k in gguf.metadata if k.startswith("tokenizer.")] or list(gguf.metadata))
    type_, element, value = gguf.metadata[key]
    if type_ != ARRAY or not value:
        return
    value = list(value)
    match rng.randrange(5):
        case 0:
            value = [value[0]] * len(value)
        case 1:
            value = value[: rng.randrange(len(value))]
        case 2:
            value = value * 2
        case 3:
            rng.shuffle(value)
        case _:
            for _ in range(rng.choice((1, 10))):
                value[rng.randrange(len(value))] = rng.choice(value)
    gguf.set(key, type_, value, element)


def _bend_data(gguf: BentGguf, rng: random.Random) -> None:
    data = bytearray(gguf.data)
    if not data:
        return
    at, n = rng.randrange(len(data)), rng.choice((1, 16, 4096, len(data)))
    n = min(n, len(data) - at)
    data[at : at + n] = rng.choice((bytes(n), b"\xff" * n, rng.randbytes(n)))
    gguf.data = bytes(data)


def _bend_bytes(blob: bytearray, rng: random.Random, end: int) -> None:
    at = rng.randrange(end)
    match rng.randrange(4):
        case 0:
            blob[at] = rng.randrange(256)
        case 1:
            struct.pack_into("<Q", blob, min(at, len(blob) - 8), rng.choice(SIZES))
        case 2:
            del blob[rng.randrange(len(blob)) :]
        case _:
            blob[at:at] = rng.randbytes(rng.choice((1, 8, 40)))
