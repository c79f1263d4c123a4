"""Bent GGUF files: a whole one taken apart byte by byte, changed, and put together again; and kinds of other files."""

from __future__ import annotations

import os
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
        self._blob, self._at = path.read_bytes(), 24
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
