"""What pickle_writer writes, torch and our own reader read back bit for bit; the pickle is the one that torch writes."""

import argparse
import io
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest

from bertkit.core.atomic import StagedFiles
from bertkit.core.errors import CheckpointError
from bertkit.core.files import pickle_reader, pickle_writer
from bertkit.core.tensors import BITS_ONLY, STORED_AS, LazyTensor, RawTensor, stored

BITS = np.random.default_rng(0).bytes(4096)
SHAPES = ((), (1,), (3, 4), (0, 3), (2, 0, 5), (2, 1, 3, 2))
TORCH_NAMES = {"F8_E4M3": "float8_e4m3fn"} | {
    dtype: name for name, dtype in pickle_reader.TORCH_DTYPES.items() if name not in ("half", "float", "double", "long")
}


def make(dtype, shape):
    """A tensor of any bits: infinities, NaNs and their payloads too."""
    kind = STORED_AS[dtype]
    count = int(np.prod(shape))
    values = np.frombuffer(BITS, np.uint8, count) % 2 == 0 if dtype == "BOOL" else np.frombuffer(BITS, kind, count)
    values = values.reshape(shape)
    return RawTensor(values, dtype) if dtype in BITS_ONLY else values


def write(path, tree, **options):
    with open(path, "wb") as file:
        pickle_writer.save(file, tree, **options)
    return path


def bits(tensor):
    values, dtype = stored(tensor() if isinstance(tensor, LazyTensor) else tensor)
    return dtype, values.shape, np.ascontiguousarray(values).tobytes()


def bits_of_torch(tensor):
    import torch

    dtype = next(dtype for dtype, name in TORCH_NAMES.items() if getattr(torch, name) == tensor.dtype)
    return dtype, tuple(tensor.shape), bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def members(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


# -- tensors ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", STORED_AS)
def test_every_dtype_is_read_back(tmp_path, dtype):
    tensors = {str(shape): make(dtype, shape) for shape in SHAPES}
    found = pickle_reader.load(write(tmp_path / "x.pt", tensors))
    assert {name: bits(tensor) for name, tensor in found.items()} == {name: bits(t) for name, t in tensors.items()}


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("dtype", STORED_AS)
def test_torch_reads_every_dtype(tmp_path, dtype, mmap):
    torch = pytest.importorskip("torch")
    tensors = {str(shape): make(dtype, shape) for shape in SHAPES}
    found = torch.load(write(tmp_path / "x.pt", tensors), weights_only=True, mmap=mmap)
    assert {name: bits_of_torch(tensor) for name, tensor in found.items()} == {name: bits(t) for name, t in tensors.items()}
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in found.values())


def test_arrays_of_any_layout(tmp_path):
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {"transposed": whole.T, "steps": whole[::-2, 1::2], "expanded": np.broadcast_to(whole[0], (3, 6)),
               "big-endian": whole.astype(">f4")}
    found = pickle_reader.load(write(tmp_path / "x.pt", tensors))
    for name, expected in tensors.items():
        np.testing.assert_array_equal(found[name](), expected)


@pytest.mark.parametrize(
    "tensor",
    [np.ones(3), RawTensor(np.ones(3, np.uint16), "BF16"), LazyTensor((3,), "F64", lambda: np.ones(3))],
    ids=["array", "raw", "lazy"],
)
def test_one_tensor_in_two_places_is_written_once(tmp_path, tensor):
    path = write(tmp_path / "x.pt", {"embedding": {"weight": tensor}, "head": tensor, "equal": np.ones(3)})
    assert sum("/data/" in name for name in members(path)) == 2
    torch = pytest.importorskip("torch")
    found = torch.load(path, weights_only=True)
    assert found["head"] is found["embedding"]["weight"] is not found["equal"]


# -- everything else ----------------------------------------------------------------------------------------------------
POWERS = (0, 7, 8, 15, 16, 31, 32, 63, 64, 2038, 3000)
INTEGERS = [sign * 2**power + step for sign in (1, -1) for power in POWERS for step in (-1, 0, 1)]
DICTIONARIES = [{}, {"one": 1}, {1: "a", None: "b", ("x", 2): "c", 1.5: "d"}, OrderedDict(), OrderedDict(b=1, a=2)]
SHARED = ["shared"]
PLAIN = {
    "integers": INTEGERS,
    "floats": [0.0, -0.0, 1.5, float("inf"), 5e-324],
    "texts": ["", "ü€😀", "line\nend", "\ud800", "x" * 300, "again", "again"],
    "bytes": [b"", b"abc", bytes(range(256))],
    "constants": (None, True, False),
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((), ((),))],
    "lists": [[], [1], [1, 2], [[[]]]],
    "dictionaries": DICTIONARIES,
    "shared": [SHARED, SHARED, (SHARED,)],
    "many": [f"text {number}" for number in range(1500)],
}


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_plain_values_are_read_back(tmp_path, value):
    path = write(tmp_path / "x.pt", {"value": value})
    found = pickle_reader.load(path)["value"]
    assert found == value and (value is DICTIONARIES or repr(found) == repr(value))  # the order is all that ours keeps
    torch = pytest.importorskip("torch")
    if value is not INTEGERS:  # torch's restricted reader knows no integers of more than 255 bytes, not even torch's own
        assert repr(torch.load(path, weights_only=True)["value"]) == repr(value)
    assert repr(torch.load(path, weights_only=False)["value"]) == repr(value)


def test_integers_of_weights_only(tmp_path):
    torch = pytest.importorskip("torch")
    integers = [value for value in INTEGERS if abs(value) < 2**1000]
    assert torch.load(write(tmp_path / "x.pt", integers), weights_only=True) == integers


def test_sharing_is_kept(tmp_path):
    first, second, (third,) = pickle_reader.load(write(tmp_path / "x.pt", PLAIN))["shared"]
    assert first is second is third


@pytest.mark.parametrize("kind", [argparse.Namespace, SimpleNamespace])
def test_namespaces(tmp_path, kind):
    path = write(tmp_path / "x.pt", {"args": kind(layers=3, inner=kind(rate=0.5)), "empty": kind()})
    found = pickle_reader.load(path)
    assert found == {"args": SimpleNamespace(layers=3, inner=SimpleNamespace(rate=0.5)), "empty": SimpleNamespace()}
    torch = pytest.importorskip("torch")
    expected = {"args": argparse.Namespace(layers=3, inner=argparse.Namespace(rate=0.5)), "empty": argparse.Namespace()}
    assert torch.load(path, weights_only=False) == expected


def test_numbers_of_numpy_and_other_dictionaries(tmp_path):
    tree = [np.float32(0.1), np.int64(-3), np.bool_(True), np.float64(2.5), Counter("aab")]
    assert pickle_reader.load(write(tmp_path / "x.pt", tree)) == [float(np.float32(0.1)), -3, True, 2.5, {"a": 2, "b": 1}]


DEEPER = {
    "list": (lambda x: [x], lambda x: x[0]),
    "tuple": (lambda x: (x,), lambda x: x[0]),
    "dict": (lambda x: {"a": x}, lambda x: x["a"]),
    "namespace": (lambda x: SimpleNamespace(a=x), lambda x: x.a),
}


@pytest.mark.parametrize("wrap, unwrap", DEEPER.values(), ids=DEEPER)
def test_depth(tmp_path, wrap, unwrap):
    tree, depth = "bottom", 5 * sys.getrecursionlimit()
    for _ in range(depth):
        tree = wrap(tree)
    found = pickle.loads(members(write(tmp_path / "x.pt", tree))["archive/data.pkl"])
    for _ in range(depth):
        found = unwrap(found)
    assert found == "bottom"


# -- the same as torch --------------------------------------------------------------------------------------------------
def test_the_pickle_is_the_one_of_torch(tmp_path):
    torch = pytest.importorskip("torch")

    def tree(tensor):
        words = tensor((3, 4), "float16")
        model = OrderedDict((f"layers.{n}.weight", tensor(shape, dtype)) for n, (shape, dtype) in enumerate(
            [((2, 1, 3), "float32"), ((), "int64"), ((2, 0, 5), "int32"), ((5,), "bfloat16"), ((2,), "bool"), ((3,), "uint16")]
        ))
        args = argparse.Namespace(layers=2, rate=1e-3, fp16=True, path=None, dims=[1, 300, 70000, 2**40, -1], one=[None])
        return {
            "args": args, "model": {"words": {"weight": words}, "encoder": model, "head": words}, "again": args,
            "state": [(), (0.5,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, [], OrderedDict()], "raw": b"\0\xff", "empty": "",
            "integers": INTEGERS,
        }

    torch.save(tree(lambda shape, dtype: torch.zeros(shape, dtype=getattr(torch, dtype))), tmp_path / "archive.pt")
    ours = members(write(tmp_path / "ours.pt", tree(lambda shape, dtype: make_zeros(shape, dtype))))
    theirs = members(tmp_path / "archive.pt")
    assert ours["archive/data.pkl"] == theirs["archive/data.pkl"]
    assert ours == {name: content for name, content in theirs.items() if not name.startswith("archive/.")}


def make_zeros(shape, dtype):
    return RawTensor(np.zeros(shape, np.uint16), "BF16") if dtype == "bfloat16" else np.zeros(shape, dtype)


def test_what_the_reader_gives_can_be_written(tmp_path):
    torch = pytest.importorskip("torch")
    args = argparse.Namespace(dtype=torch.float16, device=torch.device("cuda:1"), other=torch.device("meta"))
    model = {"a": torch.ones(2, 3), "b": torch.ones(2).bfloat16()}
    torch.save({"model": model, "args": args}, tmp_path / "archive.pt")
    path = write(tmp_path / "y.pt", pickle_reader.load(tmp_path / "archive.pt"))
    assert members(path)["archive/data.pkl"] == members(tmp_path / "archive.pt")["archive/data.pkl"]
    found = torch.load(path, weights_only=False)
    assert found["args"] == args and found["model"]["a"].tolist() == [[1.0] * 3] * 2


# -- the archive --------------------------------------------------------------------------------------------------------
def test_same_tree_same_bytes(tmp_path):
    def tree():
        return {"".join(["we", "ight"]): np.arange(5), "names": ["".join(["we", "ight"]), "weight"]}

    assert write(tmp_path / "a", tree()).read_bytes() == write(tmp_path / "b", tree()).read_bytes()


class Pipe(io.RawIOBase):
    """A file that only goes forward."""

    def __init__(self):
        super().__init__()
        self.content = bytearray()

    def writable(self):
        return True

    def write(self, content):
        self.content += content
        return len(content)


def test_a_pipe_gets_the_same_bytes(tmp_path):
    pipe = Pipe()
    pickle_writer.save(pipe, {"a": np.ones(3)}, name="x")
    assert bytes(pipe.content) == write(tmp_path / "x.pt", {"a": np.ones(3)}, name="x").read_bytes()


def check_layout(path, sizes):
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        assert archive.namelist() == ["x/data.pkl", "x/byteorder", *(f"x/data/{key}" for key in range(len(sizes))), "x/version"]
        assert archive.read("x/version") == b"3\n" and archive.read("x/byteorder") == b"little"
        for key, size in enumerate(sizes):
            info = archive.getinfo(f"x/data/{key}")
            file.seek(info.header_offset + 26)
            start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            assert start % 64 == 0 and (info.file_size, info.compress_type) == (size, zipfile.ZIP_STORED)
        assert archive.testzip() is None


@pytest.mark.parametrize("limit", [pickle_writer.ZIP64_FROM, 600, 0], ids=["none", "some", "all"])
def test_layout(tmp_path, monkeypatch, limit):
    """With a lower limit, small files have those numbers of 64 bits that are needed beyond 4 GiB."""
    monkeypatch.setattr(pickle_writer, "ZIP64_FROM", limit)
    tree = {"a": np.arange(100), "empty": np.zeros((0, 2)), "b": np.ones((3, 3), np.float16)}
    path = write(tmp_path / "x.pt", tree, name="x")
    check_layout(path, [800, 0, 18])
    assert pickle_reader.load(path)["a"]().tolist() == list(range(100))
    torch = pytest.importorskip("torch")
    for mmap in (False, True):
        assert torch.load(path, weights_only=True, mmap=mmap)["b"].tolist() == [[1.0] * 3] * 3


def test_more_members_than_16_bits_count(tmp_path):
    with open(tmp_path / "x.zip", "wb") as file:
        archive = pickle_writer._Archive(file, "x")
        for number in range(2**16 + 1):
            archive.add(str(number), b"%d" % number)
        archive.finish()
    with zipfile.ZipFile(tmp_path / "x.zip") as found:
        assert len(found.namelist()) == 2**16 + 1 and found.read("x/65536") == b"65536"
    assert struct.unpack("<4s4H", (tmp_path / "x.zip").read_bytes()[-22:-10])[3:] == (0xFFFF, 0xFFFF)


def test_one_tensor_at_a_time(tmp_path):
    size, reported = 4 << 20, []
    tensors = [LazyTensor((size,), "U8", lambda n=number: np.full(size, n, np.uint8)) for number in range(8)]
    tracemalloc.start()
    try:
        path = write(tmp_path / "x.pt", tensors, progress=reported.append)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * size
    assert reported == [size] * 8
    assert [tensor()[-1] for tensor in pickle_reader.load(path)] == list(range(8))


# -- what cannot be written ---------------------------------------------------------------------------------------------
def cycle(kind):
    inner = kind()
    outer = {"self": [inner]}
    inner.append(outer) if kind is list else inner.update(a=outer) if kind is dict else vars(inner).update(a=(outer,))
    return outer


class Number(int):
    pass


def test_everything_that_cannot_be_written_is_named_at_once(tmp_path):
    tree = {
        "model": {"good": np.ones(2), "language_model": {"foo": np.array(["text"]), "layers.0.bar": [1, {1, 2}]}},
        "args": SimpleNamespace(activation=Number(3), inner=(np.str_("x"), np.longdouble(1), 1j, bytearray(b"x"))),
        ("a", frozenset()): LazyTensor((2,), "F12", lambda: np.ones(2)),
        "stray": (pickle_reader.Inert("os.system"), pickle_reader.Inert("torch.float16")),
        "class": OrderedDict,
    }
    with pytest.raises(CheckpointError) as caught:
        write(tmp_path / "x.pt", tree)
    assert (tmp_path / "x.pt").read_bytes() == b""
    assert caught.value.headline == "this cannot be written as a file of torch.save"
    assert caught.value.problems == (
        "model.language_model.foo: a checkpoint cannot hold arrays of dtype <U4",
        "model.language_model.layers.0.bar[1]: a set cannot be written",
        f"args.activation: a {__name__}.Number cannot be written",
        "args.inner[0]: a numpy.str_ cannot be written",
        "args.inner[1]: a numpy.longdouble cannot be written",
        "args.inner[2]: a complex cannot be written",
        "args.inner[3]: a bytearray cannot be written",
        "[('a', frozenset())] (the key)[1]: a frozenset cannot be written",
        "[('a', frozenset())]: torch has no dtype 'F12'",
        f"stray[0]: a {pickle_reader.Inert.__module__}.Inert cannot be written",
        f"stray[1]: a {pickle_reader.Inert.__module__}.Inert cannot be written",
        "class: a type cannot be written",
    )
    assert "argparse.Namespace" in caught.value.remedy


def test_the_whole_tree_cannot_be_written(tmp_path):
    with pytest.raises(CheckpointError, match="the tree: a set cannot be written"):
        write(tmp_path / "x.pt", {1, 2})


@pytest.mark.parametrize("kind", [list, dict, SimpleNamespace])
def test_a_tree_that_contains_itself(tmp_path, kind):
    with pytest.raises(CheckpointError, match=r"x\[0\]\.self\[0\].*: contains itself"):
        write(tmp_path / "x.pt", {"x": [cycle(kind)]})


@pytest.mark.parametrize("value, message", [
    (np.ones((3, 2), np.float32), r"model\.weight: got F32 \[3, 2\].*expected F32 \[2, 3\]"),
    (np.ones((2, 3)), r"model\.weight: got F64 \[2, 3\].*expected F32 \[2, 3\]"),
    (RawTensor(np.ones((2, 3), np.uint16), "F32"), r"model\.weight: got F32 \[2, 3\] \(as uint16\), expected F32 \[2, 3\]"),
    (np.full((2, 3), "x"), r"model\.weight: a checkpoint cannot hold arrays of dtype <U1"),
], ids=["shape", "dtype", "bits", "kind"])
def test_a_tensor_that_is_not_what_it_said(tmp_path, value, message):
    tree = {"model": {"first": np.ones(2), "weight": LazyTensor((2, 3), "F32", lambda: value)}}
    with pytest.raises(CheckpointError, match=message), StagedFiles(tmp_path) as files:
        with files.open("x.pt") as file:
            pickle_writer.save(file, tree)
        files.commit()
    assert list(tmp_path.iterdir()) == []
