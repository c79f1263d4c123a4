"""PyTorch weight files: what torch.save writes is found byte for byte; hostile files are refused, and run nothing."""

from __future__ import annotations

import collections
import os
import pickle
import random
import struct
import sys
import time
import tracemalloc
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jmedlite.base.errors import DataError, InputMissing, JmedliteError
from jmedlite.convert.sources import torch_file as torchfile
from jmedlite.convert.sources.tensors import StoredTensor
from jmedlite.convert.sources.torch_file import read_torch_file
from tests.support import builders
from tests.support.long import long_but_for
from tests.support.torch_files import (
    ORDERED,
    V1,
    V2,
    V3,
    call,
    dict_,
    name,
    state_dict,
    storage,
    tensor,
    text,
    tuple_,
    whole,
    wholes,
    write_pickled,
    write_torch_file,
    write_zip,
)

# ----------------------------------------------------------------------------------------------------- what is read


def raw(found: StoredTensor) -> bytes:
    with found.path.open("rb") as file:
        file.seek(found.offset)
        return file.read(found.nbytes)


def refuse(path: Path, *words: str, kind: type[JmedliteError] = DataError) -> None:
    with pytest.raises(JmedliteError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert message.startswith(f"{path.name}: ") or kind is not DataError
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.fixture
def arrays() -> builders.Arrays:
    rng = np.random.default_rng(0)
    found = {f"{i}.weight": rng.standard_normal(shape, np.float32) for i, shape in enumerate([(3, 5), (7,), (2, 1, 4)])}
    return {**found, "tied.weight": found["0.weight"]}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_reads_what_was_written(tmp_path: Path, arrays: builders.Arrays, dtype: str) -> None:
    path = write_torch_file(tmp_path / "w.bin", arrays, dtype)
    with zipfile.ZipFile(path) as archive:  # the builder against an independent reader
        assert archive.testzip() is None
        assert archive.read("m/byteorder") == b"little"
    builders.write_safetensors(tmp_path / "w.safetensors", arrays, dtype)
    found = read_torch_file(path)
    assert list(found) == list(arrays)
    for key, x in arrays.items():
        t = found[key]
        assert (t.name, t.path, t.dtype, t.shape) == (key, path, dtype, x.shape)
        assert t.offset % 64 == 0
        data = np.frombuffer(raw(t), np.uint16 if dtype == "BF16" else {"F16": np.float16, "F32": np.float32}[dtype])
        values = builders.from_bf16(data) if dtype == "BF16" else data
        np.testing.assert_allclose(values.reshape(t.shape), x, rtol=1e-2)
    assert found["tied.weight"].offset == found["0.weight"].offset


def test_written_by_zipfile(tmp_path: Path) -> None:
    """Another zip writer: sizes in the local headers, no zip64 records, no order of bytes (torch before 2.1)."""
    for force_zip64 in (False, True):
        with zipfile.ZipFile(tmp_path / "w.bin", "w") as archive:
            for member, data in [("a/data.pkl", state_dict({"w": tensor([4])})), ("a/data/0", bytes(range(16)))]:
                with archive.open(member, "w", force_zip64=force_zip64) as file:
                    file.write(data)
        assert raw(read_torch_file(tmp_path / "w.bin")["w"]) == bytes(range(16))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_by_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    """The pickler's own opcodes (memo, frames, names from the stack), with stand-ins for torch's classes."""
    modules = {m: types.ModuleType(m) for m in ("torch", "torch._utils", "torch.nn")}
    for m, module in modules.items():
        monkeypatch.setitem(sys.modules, m, module)
    kind = type("HalfStorage", (), {"__module__": "torch"})
    rebuild = types.FunctionType((lambda *args: None).__code__, {}, "_rebuild_tensor_v2")
    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    modules["torch"].HalfStorage, modules["torch._utils"]._rebuild_tensor_v2 = kind, rebuild  # type: ignore[attr-defined]

    class Storage:
        pass

    class Tensor:
        def __init__(self, storage: Storage, *place: Any) -> None:
            self.args = (storage, *place, False, collections.OrderedDict())

        def __reduce__(self) -> Any:
            return rebuild, self.args

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", kind, "0", "cuda:0", 600) if isinstance(obj, Storage) else None

    one = Storage()
    weights = collections.OrderedDict({f"{i}.weight": Tensor(one, i, (1,), (1,)) for i in range(600)})
    weights._metadata = collections.OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    with (tmp_path / "data.pkl").open("wb") as file:
        Pickler(file, protocol).dump(weights)
    data = os.urandom(1200)
    found = read_torch_file(write_pickled(tmp_path / "w.bin", (tmp_path / "data.pkl").read_bytes(), data))
    assert [raw(t) for t in found.values()] == [data[i : i + 2] for i in range(0, 1200, 2)]


def test_over_4_gib(tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("writes 5 GB where files are not sparse by themselves")
    pickled = state_dict({"large": tensor([5 << 29], "BFloat16", "0"), "behind": tensor([3], "Float", "1")})
    path = write_pickled(tmp_path / "w.bin", pickled, 5 << 30, b"twelve bytes")
    found = read_torch_file(path)
    assert found["large"].nbytes == 5 << 30
    assert found["behind"].offset > 5 << 30
    assert raw(found["behind"]) == b"twelve bytes"


PARAMETER = name("torch._utils", "_rebuild_parameter")
SIZE, U16 = name("torch", "Size"), name("torch", "uint16")
UNTYPED = storage(16, "UntypedStorage", module="torch.storage")


@pytest.mark.parametrize(
    ("value", "dtype", "shape", "start"),
    [
        (tensor([4], function=V1, rest=b""), "F32", (4,), 0),
        (tensor([4], rest=b"\x88N"), "F32", (4,), 0),
        (tensor([4], rest=b"\x88" + ORDERED + b"N"), "F32", (4,), 0),
        (tensor([4], rest=b"\x88" + ORDERED + b"}"), "F32", (4,), 0),
        (call(PARAMETER, tensor([2, 2]), b"\x88", ORDERED), "F32", (2, 2), 0),
        (tensor([], n=4, start=3), "F32", (), 12),
        (tensor([2], n=4, start=1), "F32", (2,), 4),
        (tensor([1, 4], stride=[99, 1]), "F32", (1, 4), 0),
        (tensor([4, 1], stride=[1, 99]), "F32", (4, 1), 0),
        (tensor([0, 3], n=4, stride=[7, 9]), "F32", (0, 3), 0),
        (tensor([2], "Double"), "F64", (2,), 0),
        (tensor([2], "Long"), "I64", (2,), 0),
        (tensor([16], "Bool"), "BOOL", (16,), 0),
        (call(V2, UNTYPED, whole(1), wholes([3]), wholes([1]), b"\x89", ORDERED), "U8", (3,), 1),
        (call(V3, UNTYPED, whole(1), wholes([3]), wholes([1]), b"\x89", ORDERED, U16), "U16", (3,), 2),
        (call(V2, storage(4), whole(0), call(SIZE, wholes([4])), wholes([1]), b"\x89N"), "F32", (4,), 0),
    ],
)  # fmt: skip
def test_tensors(tmp_path: Path, value: bytes, dtype: str, shape: tuple[int, ...], start: int) -> None:
    data = bytes(range(16))
    t = read_torch_file(write_pickled(tmp_path / "w.bin", state_dict({"w": value}), data))["w"]
    assert (t.dtype, t.shape) == (dtype, shape)
    assert raw(t) == data[start : start + t.nbytes]


def test_state_dict_one_floor_down(tmp_path: Path) -> None:
    pickled = b"\x80\x02" + dict_({"state_dict": dict_({"w": tensor([4])})}) + b"."
    assert list(read_torch_file(write_pickled(tmp_path / "w.bin", pickled, bytes(16)))) == ["w"]
    # ... a tensor may have that name, too
    pickled = b"\x80\x02" + dict_({"state_dict": tensor([4])}) + b"."
    assert list(read_torch_file(write_pickled(tmp_path / "w.bin", pickled, bytes(16)))) == ["state_dict"]


# -------------------------------------------------------------------------------------------------- other kinds of file


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty", "download"]),
        (b"<!DOCTYPE html><html>", ["web page", "download"]),
        (b"\n  <html lang=en>", ["web page"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", ["Git LFS pointer", "incomplete"]),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", ["legacy", "save it again", "safetensors"]),
        (b"storages".ljust(257, b"\0") + b"ustar\x0000", ["legacy", "save it again"]),
        (pickle.dumps({"a": 1}), ["bare pickle", "safetensors"]),
        (b"\x08\0\0\0\0\0\0\0{}      ", ["is not a PyTorch weight file", "expected a zip archive"]),
        (b"\0", ["is not a PyTorch weight file"]),
        (b"PK\3\4", ["truncated"]),
        (b"PK\3\4" + bytes(1000), ["truncated", "download"]),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    refuse(tmp_path / "w.bin", *words)


def test_no_file(tmp_path: Path) -> None:
    refuse(tmp_path / "w.bin", "no such file", kind=InputMissing)
    (tmp_path / "w.bin").mkdir()
    with pytest.raises(JmedliteError):
        read_torch_file(tmp_path / "w.bin")


GOOD = state_dict({"w": tensor([4])})
DATA = bytes(range(16))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("m/data.pkl", GOOD), ("m/constants.pkl", b"."), ("m/data/0", DATA)], ["TorchScript", "state_dict"]),
        ([("m/data.pkl", GOOD), ("m/code/__torch__.py", b""), ("m/data/0", DATA)], ["TorchScript"]),
        ([("m/data.pkl", GOOD), ("n/data/0", DATA)], ["not one that torch.save writes", "n/data/0", "m/"]),
        ([("data.pkl", GOOD), ("data/0", DATA)], ["not one that torch.save writes"]),
        ([("", GOOD)], ["not one that torch.save writes"]),
        ([("m/weight.npy", DATA)], ["not one that torch.save writes", "no data.pkl"]),
        ([], ["is not a PyTorch weight file"]),
        ([("m/data.pkl", GOOD), ("m/data/0", DATA), ("m/data/0", DATA)], ["m/data/0 twice"]),
        ([("m/data.pkl", GOOD), ("m/data.pkl", GOOD), ("m/data/0", DATA)], ["m/data.pkl twice"]),
        ([("m/data.pkl", GOOD), ("m/byteorder", b"big"), ("m/data/0", DATA)], ["byte order 'big'", "'little'"]),
        ([("m/data.pkl", GOOD), ("m/byteorder", b"\n\xff" * 50), ("m/data/0", DATA)], ["byte order"]),
        ([("m/data.pkl", torchfile.MAX_PICKLE + 1)], ["pickle of 8,000,001 bytes", "at most 8,000,000"]),
        ([("m/data.pkl", GOOD), *((f"m/data/{i}", b"") for i in range(torchfile.MAX_ENTRIES))], ["15,001 entries"]),
        ([("m/data.pkl", GOOD), ("m/" + "x" * 1000, b"")], ["damaged directory entry (number 2)"]),
    ],
)
def test_archives(tmp_path: Path, members: list[tuple[str, bytes | int]], words: list[str]) -> None:
    refuse(write_zip(tmp_path / "w.bin", members), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"central": {"m/data/0": {"method": 8}}}, ["m/data/0 is compressed"]),
        ({"central": {"m/data/0": {"packed": 15}}}, ["m/data/0 is compressed"]),
        ({"local": {"m/data/0": {"method": 8}}}, ["m/data/0", "differs between"]),
        ({"central": {"m/data/0": {"flags": 0x809}}}, ["m/data/0 is encrypted"]),
        ({"local": {"m/data/0": {"flags": 0x809}}}, ["m/data/0", "differs between"]),
        ({"local": {"m/data/0": {"name": b"m/data/1"}}}, ["m/data/0", "differs between"]),
        ({"local": {"m/data/0": {"name": b"m/data/0x"}}}, ["m/data/0", "differs between"]),
        ({"local": {"m/data/0": {"size": 16, "packed": 15}}}, ["m/data/0", "differs between"]),
        ({"local": {"m/data/0": {"flags": 0x800}}}, ["m/data/0", "differs between"]),  # sizes of zero, none to follow
        ({"local": {"m/data/0": {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF}}}, ["zip64 sizes"]),
        ({"central": {"m/data/0": {"offset": 0}}}, ["m/data/0 overlaps"]),
        ({"central": {"m/version": {"offset": 500}}}, ["m/version", "differs between"]),
        ({"central": {"m/data/0": {"offset": 1 << 63}}}, ["m/data/0 has", "the data end at"]),
        ({"central": {"m/data/0": {"size": 1 << 63, "packed": 1 << 63}}}, ["m/data/0 has", "the data end at"]),
        ({"central": {"m/data/0": {"size": 200, "packed": 200}}}, ["m/version overlaps"]),
        ({"central": {"m/data/0": {"name": b"m/data/\xff"}}}, ["not UTF-8"]),
        ({"central": {"m/data.pkl": {"crc": 1}}}, ["data.pkl is damaged", "checksum"]),
        ({"n": 4}, ["bytes in its directory after the last entry"]),
        ({"n": 6}, ["ends before its 6 entries"]),
        ({"n": 1 << 60}, ["1,152,921,504,606,846,976 entries", "at most 15,000"]),
        ({"length": 1 << 60}, ["zip directory of 1,152,921,504,606,846,976 bytes", "expected it to end at"]),
        ({"offset": 1 << 63}, ["zip directory of", "expected it to end at"]),
        ({"offset": 0}, ["zip directory of", "expected it to end at"]),
        ({"comment": 1, "appended": 1}, ["truncated, or something was appended"]),
        ({"appended": 1}, ["truncated, or something was appended"]),
        ({"small": 1}, ["two zip directories that disagree (6 and 5)"]),
        ({"zip64": False, "n": 0xFFFF}, ["65,535 entries"]),
    ],
)
def test_zip_headers(tmp_path: Path, options: dict[str, Any], words: list[str]) -> None:
    write_pickled(tmp_path / "w.bin", GOOD, DATA)
    read_torch_file(tmp_path / "w.bin")
    refuse(write_pickled(tmp_path / "w.bin", GOOD, DATA, **options), *words)


def test_checksum_left_out(tmp_path: Path) -> None:
    """torch.serialization.set_crc32_options(False) writes zeros."""
    read_torch_file(write_pickled(tmp_path / "w.bin", GOOD, DATA, central={"m/data.pkl": {"crc": 0}}))


# ------------------------------------------------------------------------------------------------------ hostile pickles


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("__builtin__", "exec"), ("subprocess", "Popen"),
        ("torch.storage", "_load_from_bytes"), ("torch", "load"), ("torch.hub", "load"), ("torch", "Tensor"),
        ("torch._utils", "_rebuild_qtensor"), ("torch._utils", "_rebuild_sparse_tensor"), ("torch.jit", "load"),
        ("torch._utils", "_rebuild_parameter_with_state"), ("torch._tensor", "_rebuild_from_type_v2"),
        ("collections", "OrderedDict.__init__"), ("torch", "storage.UntypedStorage"),
        ("torch", "_utils._rebuild_tensor"), ("collections", "defaultdict"),
        ("numpy.core.multiarray", "scalar"), ("_codecs", "encode"), ("", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("from_stack", [False, True])
def test_names(tmp_path: Path, module: str, attribute: str, from_stack: bool) -> None:
    trace = tmp_path / "ran"
    wanted = text(module) + text(attribute) + b"\x93" if from_stack else name(module, attribute)
    value = call(wanted, text(f"touch {trace}"))
    refuse(
        write_pickled(tmp_path / "w.bin", state_dict({"w": value}), DATA),
        f"wants `{module}.{attribute}`", "only plain tensors are read, nothing is executed",
    )  # fmt: skip
    assert not trace.exists()


def test_a_name_is_not_even_imported(tmp_path: Path) -> None:
    sys.modules.pop("this", None)
    refuse(write_pickled(tmp_path / "w.bin", state_dict({"w": name("this", "s")})), "`this.s`")
    assert "this" not in sys.modules


ALLOWED_OPCODES = set(torchfile._STEPS)


@pytest.mark.parametrize("opcode", sorted(set(range(256)) - ALLOWED_OPCODES))
def test_opcodes(tmp_path: Path, opcode: int) -> None:
    pickled = b"\x80\x02}" + text("os") + text("system") + bytes([opcode]) + b"os\nsystem\n."
    refuse(write_pickled(tmp_path / "w.bin", pickled), f"opcode 0x{opcode:02x}", "nothing is executed")


def test_opcodes_that_pickle_knows_and_we_do_not() -> None:
    """Those that call, import or reach outside, and the text forms of old protocols, stay out of the table."""
    forbidden = (
        pickle.INST + pickle.OBJ + pickle.NEWOBJ + pickle.NEWOBJ_EX + pickle.EXT1 + pickle.EXT2 + pickle.EXT4
        + pickle.PERSID + pickle.NEXT_BUFFER + pickle.READONLY_BUFFER + pickle.LONG4 + pickle.LONG + pickle.INT
        + pickle.STRING + pickle.UNICODE + pickle.FLOAT + pickle.BINUNICODE8 + pickle.BINBYTES8 + pickle.BYTEARRAY8
    )  # fmt: skip
    assert not ALLOWED_OPCODES & set(forbidden)


KEY = text("k")
DIRTY = text("a\nb\x1b[2J\u202e")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", ["damaged at byte 2", "ends without an end mark"]),
        (b".", ["damaged", "ends too early"]),
        (b"}}.", ["damaged", "ends too early"]),
        (b"(}.", ["damaged", "ends too early"]),
        (b"}.}", ["damaged", "ends too early"]),
        (b"\x85.", ["stack is empty"]),
        (b"}(\x85.", ["stack is empty"]),  # the stack ends at the mark
        (b"t.", ["mark is missing"]),
        (b"h\0.", ["value 0 was never noted"]),
        (b"j\xff\xff\xff\xff.", ["value 4,294,967,295 was never noted"]),
        (b"q\0.", ["stack is empty"]),
        (b"X\xff\xff\xff\xffa.", ["text of 4,294,967,295 bytes"]),
        (b"X\x09\0\0\0a.", ["9 bytes wanted, 2 left"]),
        (b"X\x02\0\0\0\xed\xa0.", ["not UTF-8"]),
        (b"J\0", ["4 bytes wanted, 1 left"]),
        (b"\x8a\x09" + bytes(9) + b".", ["integer of 9 bytes"]),
        (b"\x95" + b"\xff" * 8 + b"}.", ["frame is too long"]),
        (b"\x80\x06}.", ["protocol 6"]),
        (b"cos\nsystem", ["a name has no end"]),
        (b"c" + b"a" * 5000 + b"\nb\n.", ["a name has no end"]),
        (b"]]\x93.", ["a name is no text"]),
        (b"}Na.", ["appended to what is no list"]),
        (b"]NNs.", ["set in what is no dictionary"]),
        (b"}(Nu.", ["set in what is no dictionary"]),
        (b"}K\1Ns.", ["key of type int"]),
        (b"})Ns.", ["key of type tuple"]),
        (b"}" + KEY + b"Ns" + KEY + b"Ns.", ["k twice"]),
        (b"]}b.", ["sets attributes of what is no OrderedDict"]),
        (b"}Nb.", ["sets attributes"]),
        (tensor([4]) + b"}b.", ["sets attributes"]),
        (b"N)R.", ["calls what is no function"]),
        (name("torch", "FloatStorage") + b")R.", ["calls what is no function"]),
        (name("collections", "OrderedDict") + b"NR.", ["calls what is no function"]),
        (name("collections", "OrderedDict") + tuple_(b"]") + b"R.", ["collections.OrderedDict", "1 arguments"]),
        (V2 + b")R.", ["_rebuild_tensor_v2", "0 arguments"]),
        (PARAMETER + tuple_(b"N", b"\x88", ORDERED) + b"R.", ["_rebuild_parameter"]),
        (b"NQ.", ["storage is described"]),
        (
            tuple_(text("module"), name("torch", "FloatStorage"), text("0"), text("cpu"), whole(4)) + b"Q.",
            ["described"],
        ),
        (tuple_(text("storage"), b"N", text("0"), text("cpu"), whole(4)) + b"Q.", ["described"]),
        (tuple_(text("storage"), name("torch", "float32"), text("0"), text("cpu"), whole(4)) + b"Q.", ["described"]),
        (tuple_(text("storage"), name("torch", "FloatStorage"), b"K\0", text("cpu"), whole(4)) + b"Q.", ["described"]),
        (storage(-4) + b".", ["described"]),
        (storage(1 << 62) + b".", ["described"]),
        (storage(5) + b".", ["storage '0' 20 bytes, the archive has 16"]),
        (storage(1 << 61) + b".", ["storage '0'", "the archive has 16"]),
        (storage(4, key="7") + b".", ["storage '7', which is not in the archive"]),
        (storage(4, key="../data.pkl") + b".", ["not in the archive"]),
        (b"]" + storage(8, "Half") + b"a" + storage(8, "BFloat16") + b"a.", ["storage '0' in two ways"]),
        (b"N.", ["is empty, expected a dictionary of tensors"]),
        (b"].", ["is a list"]),
        (name("torch", "float32") + b".", ["is a mere name"]),
        (tensor([4]) + b".", ["is a single tensor", "state_dict"]),
        (b"}.", ["holds no tensors"]),
        (dict_({"state_dict": b"}"}) + b".", ["holds no tensors"]),
        (dict_({"state_dict": dict_({"state_dict": b"}"})}) + b".", ["state_dict is a dictionary"]),
        (dict_({"epoch": b"K\3", "state_dict": dict_({"w": tensor([4])})}) + b".", ["epoch is a number", "state_dict"]),
        (dict_({"model": dict_({"w": tensor([4])})}) + b".", ["model is a dictionary", "state_dict"]),
        (dict_({"w": storage(4)}) + b".", ["w is a bare storage"]),
        (dict_({"": tensor([4])}) + b".", ["unusable name ''"]),
        (b"}" + DIRTY + tensor([4]) + b"s.", ["unusable name 'a\\nb\\x1b[2J\\u202e'"]),
        (b"}" + DIRTY + b"Ns" + DIRTY + b"Ns.", ["a\\nb\\x1b[2J\\u202e twice"]),
        (b"cos\n\x1b[2J\xe2\x80\xae\n.", ["wants `os.\\x1b[2J\\u202e`"]),
    ],
)
def test_pickles(tmp_path: Path, body: bytes, words: list[str]) -> None:
    refuse(write_pickled(tmp_path / "w.bin", b"\x80\x02" + body, DATA), *words)


FLAGS = b"\x89" + ORDERED + dict_({"neg": b"\x88"})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (tensor([2, 2], stride=[1, 2]), ["tensor w of shape [2, 2] is not contiguous", ".contiguous()"]),
        (tensor([2], n=4, stride=[2]), ["not contiguous"]),
        (tensor([4], n=1, stride=[0]), ["1", "archive has 16"]),
        (tensor([2, 2], stride=[0, 1], n=4), ["not contiguous"]),
        (tensor([5], n=4), ["tensor w needs 20 bytes of its storage, which has 16"]),
        (tensor([4], start=1), ["tensor w needs 20 bytes"]),
        (tensor([0], n=4, start=5), ["tensor w needs 20 bytes"]),
        (tensor([1 << 61], n=4), ["tensor w needs"]),
        (tensor([1 << 61] * 64, n=4, stride=[1] * 64), ["tensor w"]),
        (tensor([1] * 65, n=4), ["another kind"]),
        (tensor([1 << 62], n=4), ["another kind"]),
        (tensor([-4], n=4), ["another kind"]),
        (tensor([4], start=-1), ["another kind"]),
        (tensor([4], stride=[-1]), ["another kind"]),
        (tensor([4], stride=[1, 1]), ["another kind"]),
        (tensor([4], rest=b"N" + ORDERED), ["another kind"]),
        (tensor([4], rest=b"\x89" + dict_({"hook": b"N"})), ["another kind"]),
        (tensor([4], rest=b"\x89"), ["another kind"]),
        (tensor([4], rest=FLAGS), ["negated or conjugated"]),
        (tensor([4], rest=b"\x89" + ORDERED + b"]"), ["negated or conjugated"]),
        (tensor([4], rest=b"\x89" + ORDERED + b"NN"), ["another kind"]),
        (tensor([4], function=V3, rest=b"\x89" + ORDERED + b"N"), ["another kind"]),
        (tensor([4], function=V3, rest=b"\x89" + ORDERED + name("torch", "FloatStorage")), ["another kind"]),
        (call(V2, b"N", whole(0), wholes([4]), wholes([1]), b"\x89", ORDERED), ["another kind"]),
        (call(V2, storage(4), b"\x88", wholes([4]), wholes([1]), b"\x89", ORDERED), ["another kind"]),
        (call(V2, storage(4), whole(0), tuple_(b"\x88"), wholes([1]), b"\x89", ORDERED), ["another kind"]),
        (call(V2, storage(4), whole(0), tuple_(b"G" + bytes(8)), wholes([1]), b"\x89", ORDERED), ["another kind"]),
        (call(V2, storage(4), whole(0), b"]", wholes([]), b"\x89", ORDERED), ["another kind"]),
        (tensor([2], "ComplexFloat"), ["number format `torch.ComplexFloatStorage`", "bfloat16"]),
        (tensor([16], "QInt8"), ["number format `torch.QInt8Storage`"]),
        (name("torch", "float8_e4m3fn"), ["number format `torch.float8_e4m3fn`"]),
        (name("torch", "complex64"), ["number format `torch.complex64`"]),
        (name("torch", "qint8"), ["number format `torch.qint8`"]),
    ],
)
def test_bad_tensors(tmp_path: Path, value: bytes, words: list[str]) -> None:
    refuse(write_pickled(tmp_path / "w.bin", state_dict({"w": value}), DATA), *words)


BOMBS = {
    "deep tuple": b")" + b"\x85" * 590_000 + b".",
    "deep list": b"](" * 590_000 + b".",
    "marks": b"(" * 600_000,
    "stack": b"N" * 600_000,
    "opcodes": b"]" + b"Na" * 400_000 + b".",
    "exponential tuple": b")q\0" + b"h\0h\0\x86q\0" * 100_000 + b".",
    "exponential tuple as a key": b"})q\0" + b"h\0h\0\x86q\0" * 100 + b"Ns.",
    "exponential tuple as a shape": call(V2, storage(4), whole(0), b")q\0" + b"h\0h\0\x86q\0" * 100, b")", b"\x89N")
    + b".",
    "memo": b"]" + b"".join(b"Nr" + struct.pack("<I", i * 16001) + b"a" for i in range(199_000)) + b".",
    "memo beyond the limit": b"]" + b"N\x94" * 1000 + b"0",
    "many lists": b"]" + b"]a" * 299_000 + b".",
    "many dictionaries": b"]" + b"}\x8c\x01aNsa" * 119_000 + b".",
    "many texts": b"]" + b"".join(b"\x8c\x08%08xa" % i for i in range(299_000)) + b".",
    "wide texts": b"]"
    + b"".join(b"\x8c\xf8%04x" % i + b"a" * 240 + "😀".encode() + b"a" for i in range(31_000))
    + b".",
    "self": b"]q\0" + b"h\0a" * 100 + b".",
    "long text": b"X" + struct.pack("<I", 7_000_000) + b"a" * 7_000_000 + b".",
    "huge shape": tensor([(1 << 61) + i for i in range(64)], n=4, stride=[1] * 64) + b".",
}


@pytest.mark.parametrize("bomb", long_but_for(BOMBS, BOMBS.keys() - {"wide texts", "deep tuple"}))
def test_bombs(tmp_path: Path, bomb: str) -> None:
    largest = bomb == "wide texts"  # counting memory is slow, and so is a large archive
    many = [(f"m/data/{i:050}", b"") for i in range(torchfile.MAX_ENTRIES - 2)] if largest else []
    members: list[tuple[str, bytes | int]] = [("m/data.pkl", b"\x80\x02" + BOMBS[bomb]), ("m/data/0", DATA), *many]
    path = write_zip(tmp_path / "w.bin", members)
    started = time.process_time()
    refuse(path)
    assert time.process_time() - started < 5  # half a second; a bomb that goes off takes minutes
    if not largest:
        return
    tracemalloc.start()
    try:
        refuse(path)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_tensor_data_are_never_read(tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("writes 3 GB where files are not sparse by themselves")
    path = write_pickled(tmp_path / "w.bin", state_dict({"w": tensor([3 << 28])}), 3 << 30)
    tracemalloc.start()
    try:
        assert read_torch_file(path)["w"].nbytes == 3 << 30
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# ----------------------------------------------------------------------------------------------------------- mutations


def sound_or_refused(path: Path) -> bool:
    try:
        found = read_torch_file(path)
    except DataError as e:
        assert "\n" not in str(e)
        return False
    for t in found.values():
        assert t.offset >= 0
        assert t.offset + t.nbytes <= path.stat().st_size
    return True


def test_mutated_files(tmp_path: Path, arrays: builders.Arrays) -> None:
    path = write_torch_file(tmp_path / "w.bin", arrays)
    whole_file = path.read_bytes()
    random_ = random.Random(0)
    headers = [i for i in range(len(whole_file)) if whole_file[i] != ord("Z")]  # not the padding
    for _ in range(600):
        changed = bytearray(whole_file)
        for at in random_.sample(headers, random_.choice([1, 1, 1, 4])):
            changed[at] = random_.choice([changed[at] ^ 1 << random_.randrange(8), 0, 255, random_.randrange(256)])
        path.write_bytes(changed)
        sound_or_refused(path)


def test_truncated_and_extended_files(tmp_path: Path, arrays: builders.Arrays) -> None:
    path = write_torch_file(tmp_path / "w.bin", arrays)
    whole_file = path.read_bytes()
    for end in {*range(0, len(whole_file), 13), *range(len(whole_file) - 120, len(whole_file))}:
        path.write_bytes(whole_file[:end])
        assert not sound_or_refused(path)
    path.write_bytes(whole_file + b"\0")
    assert not sound_or_refused(path)


def test_mutated_pickles(tmp_path: Path) -> None:
    """The checksum agrees here, so that every change reaches the interpreter."""
    pickled = state_dict(
        {"a": tensor([2, 4], "Half"), "b": call(PARAMETER, tensor([2], n=4, key="1"), b"\x88", ORDERED)}
    )
    random_ = random.Random(1)
    sound = 0
    for _ in range(1500):
        changed = bytearray(pickled)
        at = random_.randrange(len(changed))
        match random_.randrange(4):
            case 0:
                changed[at] = random_.choice(sorted(ALLOWED_OPCODES))
            case 1:
                changed[at] ^= 1 << random_.randrange(8)
            case 2:
                del changed[at : at + random_.randrange(1, 9)]
            case _:
                other = random_.randrange(len(changed))
                changed[at:at] = changed[other : other + random_.randrange(1, 40)]
        sound += sound_or_refused(write_pickled(tmp_path / "w.bin", bytes(changed), DATA, DATA))
    assert sound < 500


# ------------------------------------------------------------------------------------------------ against torch itself


def same_as_torch(path: Path, tensors: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """What is read at `path` is what torch has in `tensors`, byte for byte."""
    import torch

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
    found = read_torch_file(path)
    assert list(found) == list(tensors)
    for key, t in found.items():
        x = tensors[key].detach().clone(memory_format=torch.contiguous_format)
        kind = names.get(t.dtype, t.dtype.replace("U", "uint").replace("I", "int"))
        assert (kind, t.shape) == (str(x.dtype).removeprefix("torch."), tuple(x.shape))
        assert raw(t) == x.reshape(-1).view(torch.uint8).numpy().tobytes()
    return found


@pytest.mark.oracle
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_torch_module(tmp_path: Path, dtype: str, protocol: int) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Embedding(9, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 9))
    model[2].weight = model[0].weight
    model = model.to(getattr(torch, dtype))
    torch.save(model.state_dict(), tmp_path / "w.bin", pickle_protocol=protocol)
    found = same_as_torch(tmp_path / "w.bin", model.state_dict())
    assert found["1.num_batches_tracked"].shape == ()
    assert found["0.weight"].offset == found["2.weight"].offset


@pytest.mark.oracle
def test_torch_dtypes_views_and_parameters(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.randn(10, 8)
    tensors = {"base": base, "rows": base[2:5], "row": base[7], "one": base[3, 4], "column": base[:1, :].t()[2:3]}
    tensors |= {"parameter": torch.nn.Parameter(base[4:6]), "frozen": torch.nn.Parameter(base, requires_grad=False)}
    tensors |= {"empty": torch.zeros(0, 5), "last": base[10:], "transposed row": base[:1].t()}
    for kind in ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "bool"):
        tensors[kind] = torch.arange(7).to(getattr(torch, kind))
    torch.save(tensors, tmp_path / "w.bin")
    found = same_as_torch(tmp_path / "w.bin", tensors)
    assert found["rows"].offset == found["base"].offset + 2 * 8 * 4
    torch.save({"state_dict": collections.OrderedDict(tensors)}, tmp_path / "w.bin")
    same_as_torch(tmp_path / "w.bin", tensors)


@pytest.mark.oracle
def test_torch_over_4_gib(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", "2.6")
    if os.name == "nt":
        pytest.skip("writes 5 GB where files are not sparse by themselves")
    with torch.serialization.skip_data():  # makes a sparse file; the memory of `empty` is never touched
        torch.save({"a": torch.empty(5 << 29, dtype=torch.bfloat16), "b": torch.zeros(3)}, tmp_path / "w.bin")
    found = read_torch_file(tmp_path / "w.bin")
    assert {key: (t.shape, t.dtype) for key, t in found.items()} == {"a": ((5 << 29,), "BF16"), "b": ((3,), "F32")}
    assert found["b"].offset > 5 << 30
    reader = torch._C.PyTorchFileReader(str(tmp_path / "w.bin"))  # says itself where the storages are
    assert found["a"].offset == reader.get_record_offset("data/0")
    assert found["b"].offset == reader.get_record_offset("data/1")


@pytest.mark.oracle
@pytest.mark.parametrize("checksums", [False, True])
def test_torch_without_checksums(tmp_path: Path, checksums: bool) -> None:
    torch = pytest.importorskip("torch", "2.6")
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(checksums)
    try:
        torch.save({"w": torch.arange(5.0)}, tmp_path / "w.bin")
    finally:
        torch.serialization.set_crc32_options(before)
    same_as_torch(tmp_path / "w.bin", {"w": torch.arange(5.0)})


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # torch deprecates some of what is made here
def test_torch_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.bin"

    def saved(x: Any, **options: Any) -> Path:
        torch.save(x, path, **options)
        return path

    x = torch.randn(4, 3)
    refuse(saved({"w": x}, _use_new_zipfile_serialization=False), "legacy format", "save it again")
    refuse(saved({"w": x.t()}), "tensor w of shape [3, 4] is not contiguous", ".contiguous()")
    refuse(saved({"w": x.expand(2, 4, 3)}), "not contiguous")
    refuse(saved({"w": torch.zeros(3, dtype=torch.complex64)}), "`torch.ComplexFloatStorage`")
    refuse(saved({"w": torch.zeros(3, dtype=torch.complex64).conj().imag}), "negated or conjugated")
    refuse(saved({"w": torch.zeros(3).to(torch.float8_e4m3fn)}), "`torch.float8_e4m3fn`")
    refuse(saved({"w": torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)}), "_rebuild_qtensor")
    refuse(saved({"w": x.to_sparse()}), "_rebuild_sparse_tensor")
    refuse(saved({"w": torch.zeros(3, device="meta")}), "_rebuild_meta_tensor_no_storage")
    refuse(saved({"w": x, "shape": x.shape}), "shape is a tuple")
    refuse(saved({"w": x, "epoch": 3}), "epoch is a number")
    refuse(saved({"w": x, "dtype": x.dtype}), "dtype is a mere name")
    refuse(saved(x), "is a single tensor")
    refuse(saved(torch.nn.Linear(3, 4)), "wants `torch.nn.modules.linear.Linear`", "nothing is executed")
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    refuse(saved({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}), "state_dict is a dictionary")
    torch.jit.save(torch.jit.script(model), str(path))
    refuse(path, "TorchScript")
