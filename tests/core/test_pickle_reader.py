"""Pickles: what training leaves beside the weights is inert data; what is hostile is refused, soon and in little memory."""

import argparse
import collections
import contextlib
import copyreg
import datetime
import enum
import functools
import io
import itertools
import pathlib
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile
import zlib

import numpy as np
import pytest

from bertkit.core.errors import CheckpointError
from bertkit.core.files import pickle_machine, pickle_reader, pickle_writer
from bertkit.core.files.archive import Archive
from bertkit.core.files.byte_source import FileBytes, Inflated, Part
from bertkit.core.files.pickle_reader import Inert, Stub, load_pickle
from bertkit.core.tensors import LazyTensor
from tests.core.sources import InMemory


def read(program):
    return load_pickle(InMemory(program))


# -- plain data ---------------------------------------------------------------------------------------------------------
PLAIN = {
    "numbers": [0, -1, 255, 65536, -(2**31), 2**40, -(2**200), 1.5, float("inf"), True, False, None],
    "text": ["", "a", "é" * 300, "\ud800", "line\nbreak \\ x"],
    "bytes": [b"", b"\xff" * 300, bytearray(b"ab")],
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((1, (2,)),)),
    "sets": [{1, "a"}, frozenset([1, (2, 3)])],
    "nested": {1: {2.5: [{}]}, (1, "x"): [[]], None: 0, b"k": 1},
    "ordered": collections.OrderedDict(b=1, a=2),
    "complex": 1 + 2j,
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data(protocol):
    assert read(pickle.dumps(PLAIN, protocol)) == PLAIN


@pytest.mark.parametrize("protocol", range(2, 6))
def test_shared_objects_stay_shared(protocol):
    shared = [1]
    first, second = read(pickle.dumps([shared, shared], protocol))
    assert first is second


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "array",
    [np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array(True), np.zeros((0, 3), np.float16),
     np.array(["abc", "d"]), np.arange(5, dtype=np.complex64)],
    ids=["C", "Fortran", "scalar", "empty", "text", "complex"],
)
def test_numpy_arrays(array, protocol):
    one = np.str_("é") if array.dtype.kind == "U" else array.sum()
    found, scalar = read(pickle.dumps([array, one], protocol))
    assert found.dtype == array.dtype and found.shape == array.shape
    np.testing.assert_array_equal(found, array)
    assert isinstance(scalar, np.generic) and scalar == one


def test_pickles_of_python_2():
    assert read(b"(dp0\nS'a'\np1\nI01\nsS'hi'\np2\n(lp3\nL5L\nas.") == {"a": True, "hi": [5]}
    assert read(b"\x80\x02U\x02\xff\xfe.") == b"\xff\xfe"


# -- what training leaves -----------------------------------------------------------------------------------------------
def fake(name, *bases, **content):
    """A class that claims to be one of another program."""
    module, _, leaf = name.rpartition(".")
    made = types.new_class(leaf, bases, exec_body=lambda body: body.update({"__module__": module, **content}))
    made.__qualname__ = leaf
    return made


class Exporter:
    """Makes pickles that name classes which can only be found while they are made."""

    def __init__(self):
        self.modules = {}

    def __call__(self, made):
        parts = made.__module__.split(".")
        for count in range(1, len(parts) + 1):
            path = ".".join(parts[:count])
            if path not in sys.modules or path in self.modules:
                self.modules.setdefault(path, types.ModuleType(path))
        setattr(self.modules.get(made.__module__) or sys.modules[made.__module__], made.__name__, made)
        return made

    def dumps(self, value, protocol):
        sys.modules.update(self.modules)
        try:
            return pickle.dumps(value, protocol)
        finally:
            for path in self.modules:
                del sys.modules[path]


@pytest.fixture
def exporter():
    return Exporter()


CLASSES = [
    "fp16.loss_scaler.DynamicLossScaler", "fp16.fp16.FP16_Optimizer", "learning_rates.AnnealingLR",
    "mpu.random.CudaRNGStatesTracker",
    "model.distributed.DistributedDataParallel", "utils.Timers", "arguments.Config", "optim.adam.Adam",
    "megatron.optimizer.grad_scaler.ConstantGradScaler", "megatron.core.transformer.transformer_config.TransformerConfig",
    "apex.amp.scaler.LossScaler", "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "transformer_engine.common.recipe.DelayedScaling", "fairseq.meters.AverageMeter", "omegaconf.base.ContainerMetadata",
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", CLASSES)
def test_objects_of_other_programs(exporter, name, protocol):
    made = exporter(fake(name))()
    made.scale, made.nested = 65536.0, {"steps": [1, 2]}
    found = read(exporter.dumps({"x": made, "weight": np.arange(3)}, protocol))
    stub = found["x"]
    assert isinstance(stub, Stub) and stub.name == name and stub.scale == 65536.0 and stub.nested == {"steps": [1, 2]}
    assert found["weight"].tolist() == [0, 1, 2] and name.rpartition(".")[2] in repr(stub)
    with pytest.raises(AttributeError):
        stub.absent  # noqa: B018


@pytest.mark.parametrize("protocol", [2, 4])
def test_containers_enums_and_slots_of_other_programs(exporter, protocol):
    dictionary = exporter(fake("fairseq.data.Registry", dict))({"a": 1, ("b", 2): 3})
    dictionary.extra = "kept"
    numbers = exporter(fake("megatron.core.Numbers", list))([1, 2])
    slots = exporter(fake("apex.Slots", __slots__=("one", "two")))()
    slots.one = 1
    mask = enum.Enum("AttnMaskType", {"padding": 1, "causal": 2}, module="megatron.model.enums")
    exporter(mask)
    values = [dictionary, numbers, slots, mask.causal, mask]
    found = read(exporter.dumps(values, protocol))
    assert found[0].items == [("a", 1), (("b", 2), 3)] and found[0].extra == "kept"
    assert (found[1].items, found[2].one, found[3].args) == ([1, 2], 1, (2,))
    assert repr(found[4]) == "megatron.model.enums.AttnMaskType" and isinstance(found[4], Inert)


@pytest.mark.parametrize("builtins", ["builtins", "__builtin__"])
def test_member_by_name(builtins):
    """Python 3.11.0 wrote members of enumerations as a call of getattr."""
    found = read(b"c%s\ngetattr\ncmegatron.enums\nMask\nX\6\0\0\0causal\x86R." % builtins.encode())
    assert isinstance(found, Stub) and (found.name, found.args) == ("megatron.enums.Mask", ("causal",))


METHOD = b"c__builtin__\ngetattr\ncfairseq\nX\n)\x81%s\x86R."


@pytest.mark.parametrize("name", [b"step", b"_annealing_linear", b"args", b"state", b"name"])
def test_method_of_an_object(name):
    """What a stub has under that name is not looked up, and the result is as inert as the stub."""
    found = read(METHOD % text(name))
    assert isinstance(found, Stub) and found.name == "builtins.getattr" and not callable(found)
    owner, asked = found.args
    assert isinstance(owner, Stub) and owner.name == "fairseq.X" and asked == name.decode()


def test_method_of_an_object_that_holds_it():
    """As in schedules of torch before 1.10."""
    found = read(b"cfairseq\nX\n)\x81q\0}X\4\0\0\0funccbuiltins\ngetattr\nh\0X\5\0\0\0_func\x86Rsb.")
    assert found.func.args == (found, "_func") and len(repr(found.func)) < 100


def test_tensors_as_keys():
    """An optimizer keeps its state by tensor. Each is a key of its own, whatever its values."""
    torch = pytest.importorskip("torch")
    first, second = torch.nn.Parameter(torch.ones(3)), torch.ones(3)
    state = collections.defaultdict(dict, {first: {"step": 1}, second: {"step": 2}})
    file = io.BytesIO()
    torch.save({"state": state, "params": [first, second], "sets": [{first}, frozenset([second])]}, file)
    found = pickle_reader.load(InMemory(file.getvalue()))
    one, two = found["params"]
    assert list(found["state"]) == [one, two] and one is not two and found["state"][two] == {"step": 2}
    assert found["sets"] == [{one}, {two}]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_inert_objects_of_the_standard_library(protocol):
    values = {
        "path": pathlib.PosixPath("a/b"), "time": datetime.datetime(2020, 1, 2, 3), "span": datetime.timedelta(3),
        "partial": functools.partial(int, base=3), "range": range(3), "slice": slice(1, 2), "file": io.BytesIO(b"content"),
        "none": type(None), "random": np.random.RandomState(0), "generator": np.random.default_rng(0), "type": np.float32,
    }
    found = read(pickle.dumps(values, protocol))
    assert all(isinstance(value, (Stub, Inert)) for value in found.values())
    assert [found[name].name for name in ("path", "time", "file")] == ["pathlib.PosixPath", "datetime.datetime", "_io.BytesIO"]
    assert b"content" in str((found["file"].state, found["file"].args)).encode()


@pytest.mark.parametrize("protocol", [2, 4])
def test_containers_of_the_standard_library(protocol):
    values = [
        collections.defaultdict(list, a=[1]), collections.deque([1, 2], 5), collections.Counter("aab"),
        np.random.RandomState(0).get_state()[0], argparse.Namespace(a=1, b=[2]),
    ]
    found = read(pickle.dumps(values, protocol))
    assert found[:4] == [{"a": [1]}, [1, 2], {"a": 2, "b": 1}, "MT19937"] and vars(found[4]) == {"a": 1, "b": [2]}


def test_stubs_do_nothing():
    stub = read(b"cfairseq\nX\n)\x81}(X\x0b\0\0\0__array__\0\0K\1X\x08\0\0\0__call__K\1X\7\0\0\0__len__K\1ub.")
    assert isinstance(stub, Stub) and not callable(stub) and not hasattr(stub, "__array__") and not hasattr(stub, "__len__")
    assert np.asarray(stub, object).shape == ()


# -- hostile pickles ----------------------------------------------------------------------------------------------------
def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def laughs(opening, closing, levels=40):
    """A container of ten times the container before it."""
    return b"\x80\x04" + opening + closing + b"\x94" + b"".join(
        b"(" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + closing + b"\x94" for level in range(levels)
    ) + b"."


DEEP = 200_000
MANY = 5_000_000
COLLIDING = [b"\x8a\x0a" + (number * (2**61 - 1)).to_bytes(10, "little") for number in range(1, 60_000)]
HOSTILE = {
    # names that run something
    "os.system": b"cos\nsystem\nX\4\0\0\0true\x85R.",
    "posix.system": b"cposix\nsystem\nX\4\0\0\0true\x85R.",
    "nt.system": b"cnt\nsystem\n.",
    "subprocess": b"csubprocess\nPopen\nX\4\0\0\0true\x85R.",
    "builtins.eval": b"cbuiltins\neval\nX\1\0\0\x001\x85R.",
    "__builtin__.exec": b"c__builtin__\nexec\n.",
    "builtins.__import__": b"cbuiltins\n__import__\n.",
    "builtins.open": b"cbuiltins\nopen\n.",
    "builtins.setattr": b"cbuiltins\nsetattr\n.",
    "importlib": b"cimportlib\nimport_module\n.",
    "pickle.loads": b"cpickle\nloads\n.",
    "marshal.loads": b"cmarshal\nloads\n.",
    "types.CodeType": b"ctypes\nCodeType\n.",
    "runpy": b"crunpy\nrun_path\n.",
    "ctypes": b"cctypes\nCDLL\n.",
    "numpy.load": b"cnumpy\nload\n.",
    "torch.load": b"ctorch\nload\n.",
    "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\nC\1x\x85R.",
    "torch.hub": b"ctorch.hub\nload\n.",
    "copyreg._reconstructor": b"ccopyreg\n_reconstructor\n.",
    "operator.attrgetter": b"coperator\nattrgetter\n.",
    "functools.reduce": b"cfunctools\nreduce\n.",
    "almost a package": b"cmegatronx\nX\n.",
    "a package without a name": b"cfairseq\n.",
    "instance": b"(X\4\0\0\0trueios\nsystem\n.",
    "object": b"(cos\nsystem\nX\4\0\0\0trueo.",
    "stack global": b"\x8c\2os\x8c\6system\x93.",
    "new object": b"\x80\x02cos\nsystem\n)\x81.",
    "new object with keywords": b"\x80\x04cos\nsystem\n)}\x92.",
    "extension": b"\x80\x02\x82\x01.",
    "extension of two bytes": b"\x80\x02\x83\x01\x00.",
    "extension of four bytes": b"\x80\x02\x84\x01\x00\x00\x00.",
    # attributes and calls
    "getattr of a maker": b"cbuiltins\ngetattr\nctorch\nSize\nX\4\0\0\0make\x86R.",
    "getattr of __class__": METHOD % text(b"__class__"),
    "getattr of __reduce__": METHOD % text(b"__reduce__"),
    "getattr of a mangled name": METHOD % text(b"__x"),
    "getattr of a path of a stub": METHOD % text(b"a.b"),
    "getattr of bytes": METHOD % b"C\1a",
    "getattr of a subclass of text": b"cbuiltins\ngetattr\ncfairseq\nX\n)\x81cnumpy.core.multiarray\nscalar\n"
    b"cnumpy\ndtype\nX\2\0\0\0U1\x85RC\4a\0\0\0\x86R\x86R.",
    "getattr of a method": b"cbuiltins\ngetattr\n" + METHOD[:-1] % text(b"a") + text(b"__func__") + b"\x86R.",
    "getattr of a dtype": b"cbuiltins\ngetattr\nctorch\nfloat32\nX\4\0\0\0name\x86R.",
    "getattr of a namespace": b"cbuiltins\ngetattr\ncargparse\nNamespace\n)RX\1\0\0\0a\x86R.",
    "getattr of an array": b"cbuiltins\ngetattr\n" + pickle.dumps(np.arange(3), 2)[2:-1] + text(b"tofile") + b"\x86R.",
    "getattr of text": b"cbuiltins\ngetattr\n" + text(b"%s") + text(b"format") + b"\x86R.",
    "getattr of itself": b"cbuiltins\ngetattr\nq\0h\0" + text(b"make") + b"\x86R.",
    "getattr with a default": b"cbuiltins\ngetattr\ncfairseq\nX\n)\x81" + text(b"a") + b"N\x87R.",
    "calling a method": METHOD[:-1] % text(b"step") + b")R.",
    "making an object of a method": METHOD[:-1] % text(b"step") + b")\x81.",
    "calling a method with keywords": b"\x80\x04" + METHOD[:-1] % text(b"step") + b")}X\1\0\0\0aNs\x92.",
    "getattr of a dictionary": b"cbuiltins\ngetattr\n}X\3\0\0\0get\x86R.",
    "getattr of __globals__": b"cbuiltins\ngetattr\ncfairseq\nX\nX\x0b\0\0\0__globals__\x86R.",
    "getattr of a path": b"cbuiltins\ngetattr\ncfairseq\nX\nX\3\0\0\0a.b\x86R.",
    "getattr of too much": b"cbuiltins\ngetattr\ncfairseq\nX\nX\1\0\0\0aN\x87R.",
    "calling a stub": b"cfunctools\npartial\ncos\nsystem\n\x85R)R.",
    "calling what a stub holds": b"cfairseq\nX\n)\x81)R.",
    "calling text": text(b"os.system") + b")R.",
    "calling a dtype": b"ctorch\nfloat32\n)R.",
    "calling a namespace": b"cargparse\nNamespace\n)R)R.",
    "arguments that are no tuple": b"ctorch\nSize\n]R.",
    "changing a maker": b"ctorch\nSize\n}X\4\0\0\0makeNsb.",
    "changing a dtype": b"ctorch\nfloat32\nN}X\5\0\0\0dtypeX\3\0\0\0F64s\x86b.",
    "changing a number": b"K\1}X\1\0\0\0aNsb.",
    "changing text": text(b"a") + b"}X\1\0\0\0aNsb.",
    "changing a set": b"\x8f}X\1\0\0\0aNsb.",
    "changing a tensor's maker": b"ctorch._utils\n_rebuild_tensor_v2\n}X\4\0\0\0makeNsb.",
    "attributes that are no text": b"cargparse\nNamespace\n)R}K\1Nsb.",
    "appending to a tuple": b")K\1a.",
    "appending to a dictionary": b"}K\1a.",
    "items of a list": b"]K\1K\1s.",
    "items of a namespace": b"cargparse\nNamespace\n)RK\1K\1s.",
    "adding to a list": b"](K\1\x90.",
    "reference": b"X\1\0\0\0aQ.",
    "reference in text": b"Pa\n.",
    "keywords of a maker": b"ctorch\nSize\n)}X\1\0\0\0aNs\x92.",
    "keywords that are no dictionary": b"cfairseq\nX\n)N\x92.",
    "tensor without storage": b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0))\x89NtR.",
    "tensor of a stub": b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\ngetattr\nNcfairseq\nX\nNtR.",
    "parameter of nothing": b"ctorch._utils\n_rebuild_parameter\nN\x85R.",
    # numpy
    "objects in an array": b"cnumpy\ndtype\nX\2\0\0\0O8\x85R.",
    "array larger than its bytes": pickle.dumps(np.zeros(3, np.uint8), 4).replace(b"K\x03\x85", b"K\x7f\x85"),
    "big-endian": pickle.dumps(np.zeros(2, ">f4"), 4),
    "array filled twice": b"cnumpy.core.multiarray\n_reconstruct\n)R"
    + b"(K\1K\1\x85cnumpy\ndtype\nX\2\0\0\0u1\x85R\x89C\1xtb" * 2 + b".",
    "encoding that is none": b"c_codecs\nencode\nX\1\0\0\0aX\5\0\0\0rot13\x86R.",
    "bytearray of gigabytes": b"cbuiltins\nbytearray\n\x8a\5\0\0\0\0\x10\x85R.",
    # stack, memory and numbers
    "nothing": b"",
    "no end": b"K\1",
    "empty stack": b".",
    "two values": b"K\1K\2.",
    "only a mark": b"(.",
    "mark as a value": b"]((e.",
    "group without beginning": b"K\1t.",
    "odd number of items": b"}(K\1u.",
    "unknown instruction": b"\xff.",
    "memory that is not there": b"h\x05.",
    "memory of a mark": b"(q\0.",
    "negative memory in text": b"g-1\n.",
    "memory at four billion": b"Nr\xff\xff\xff\xffNj\xff\xff\xff\xff0j\0\0\0\x7f.",
    "text of four gigabytes": b"X\xff\xff\xff\xffabc.",
    "text of exabytes": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "bytes of four gigabytes": b"B\xff\xff\xff\xffabc.",
    "bytes of exabytes": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "byte array of exabytes": b"\x96\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "number of two gigabytes": b"\x8b\xff\xff\xff\x7fabc.",
    "number of a megabyte": b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20 + b".",
    "number of negative size": b"\x8b\xff\xff\xff\xffabc.",
    "number of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "long of many digits": b"L" + b"9" * 4_000 + b"L\n.",
    "no number": b"Iabc\n.",
    "text that is not closed": b"Sabc\n.",
    "text that is no UTF-8": b"X\2\0\0\0\xff\xff.",
    "buffers from elsewhere": b"\x80\x05\x97.",
    "buffer made read-only": b"\x80\x05N\x98.",
    "frame of exabytes": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fabc",
    "list as a key": b"}]K\1s.",
    "dictionary in a set": b"\x8f(}\x90.",
    "getattr as a maker of a tensor": b"ctorch._tensor\n_rebuild_from_type_v2\n("
    + METHOD[:-1] % text(b"step") + b"cfairseq\nX\n)NtR.",
    "namespace as a key": b"}cargparse\nNamespace\n)RK\1s.",
    "list in a method as a key": b"}" + METHOD[:-1] % text(b"a") + b"]\x86K\1s.",
    "array as a key": b"}" + pickle.dumps(np.arange(3), 4)[2 + 9 : -1] + b"K\1s.",
    # endless things
    "list in itself": b"]q\0h\0a.",
    "dictionary in itself": b"}q\0K\1h\0s.",
    "namespace in itself": b"cargparse\nNamespace\n)Rq\0}X\1\0\0\0ah\0sb.",
    "laughing lists": laughs(b"(", b"l"),
    "laughing tuples": laughs(b"(", b"t"),
    "laughing tuple as a shape": b"}" + laughs(b"(", b"t")[2:-1] + b"K\1s.",
    "deep lists": b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep tuples": b")" + b"\x85" * DEEP + b".",
    "deep tuples as a key": b"})" + b"\x85" * DEEP + b"K\1s.",
    "deep sizes": b"ctorch\nSize\nq\0)" + b"q\1h\0h\1\x85\x85R" * 5000 + b".",
    "deep dictionaries": b"}K\1" * DEEP + b"N" + b"s" * DEEP + b".",
    "many instructions": b"]" * MANY + b".",
    "many marks": b"(" * MANY + b".",
    "the same copied": b"\x80\x04c_codecs\nencode\n\x94X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"\x94\x8c\6latin1\x94"
    + b"0h\0h\1h\2\x86R" * 100_000 + b".",
    "colliding numbers": b"}(" + b"N".join(COLLIDING) + b"Nu.",
    "colliding set": b"cbuiltins\nset\n](" + b"".join(COLLIDING) + b"e\x85R.",
}


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles(program, monkeypatch):
    """Our error, within bounds that a test can wait for, and without a thing being changed or called."""
    if len(program) > 10**6:  # the bounds, made small, hold as the real ones do
        monkeypatch.setattr(pickle_machine, "MOST_INSTRUCTIONS", 400_000)
        monkeypatch.setattr(pickle_machine, "MOST_COPIED", 2**24)
    if b"\x8a\x0a" in program:
        monkeypatch.setattr(pickle_machine, "MOST_UNUSUAL_KEYS", 2_000)
    table = {name: repr(value) for name, value in pickle_reader.GLOBALS.items()}
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="memory"):
            read(program)
        assert tracemalloc.get_traced_memory()[1] < 250 * 2**20
    finally:
        tracemalloc.stop()
    assert {name: repr(value) for name, value in pickle_reader.GLOBALS.items()} == table


def test_refusal_names_what_is_refused():
    with pytest.raises(CheckpointError, match=r"x!y is refused: its pickle uses os\.system, .*nothing was executed"):
        load_pickle(InMemory(b"cos\nsystem\n."), "x!y")
    with pytest.raises(CheckpointError) as caught:
        read(b"c\x1b[31m" + b"a" * 10_000 + b"\nb\n.")
    assert len(str(caught.value)) < 1000 and "\x1b" not in str(caught.value)


def test_what_follows_a_pickle():
    with pytest.raises(CheckpointError, match="follow"):
        read(pickle.dumps(1) + b"x")


def test_nothing_is_imported():
    before = set(sys.modules)
    read(b"(cfairseq.models\nX\ncmegatron.core\nY\ncomegaconf\nZ\nl.")
    assert set(sys.modules) == before


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_never_escape(seed):
    """A thousand changed pickles: our error or a value, and never anything else."""
    random = np.random.default_rng(seed)
    value = [PLAIN, np.arange(5), argparse.Namespace(a=pathlib.PosixPath("x")), collections.deque([1])]
    good = pickle.dumps(value, [0, 2, 4, 5][seed])
    for _ in range(250):
        changed = bytearray(good)
        for place in random.integers(0, len(good), random.integers(1, 5)):
            changed[place] = random.integers(0, 256)
        with contextlib.suppress(CheckpointError):
            read(bytes(changed))


def test_copyreg_extensions_are_not_used():
    class Mine:
        pass

    Mine.__module__, Mine.__qualname__ = "fairseq", "Mine"
    code = 0x7FFF_0001
    copyreg.add_extension("fairseq", "Mine", code)
    try:
        with pytest.raises(CheckpointError, match="EXT4"):
            read(b"\x84" + struct.pack("<i", code) + b".")
    finally:
        copyreg.remove_extension("fairseq", "Mine", code)


# -- torch's files, wherever they lie -----------------------------------------------------------------------------------
@pytest.fixture(params=["zip", "legacy"])
def saved(request, tmp_path):
    """A file of torch.save: bytes of several tensors, one of which shows a part of another."""
    torch = pytest.importorskip("torch")
    whole = torch.arange(60_000).reshape(300, 200).half()
    state = {"b": whole, "part": whole[10:20, ::2], "a": torch.randn(5000), "brain": torch.ones(7).bfloat16()}
    state["none"] = torch.zeros(0)
    content = {"model": state, "args": argparse.Namespace(params_dtype=torch.float16), "rng": torch.get_rng_state()}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=request.param == "zip")
    return tmp_path / "x.pt", state


def check(content, state):
    assert list(content["model"]) == list(state) and str(content["args"].params_dtype) == "torch.float16"
    for name, tensor in state.items():
        value = content["model"][name]()
        if name == "brain":
            assert value.dtype == "BF16" and set(value.bits.tolist()) == {0x3F80}
        else:
            np.testing.assert_array_equal(value, tensor.numpy())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_inside_an_archive(tmp_path, saved, method):
    path, state = saved
    member = "release/mp_rank_00/model_optim_rng.pt"
    with zipfile.ZipFile(tmp_path / "ngc.zip", "w", method) as archive:
        archive.write(path, member)
    source = Archive(FileBytes(tmp_path / "ngc.zip")).open(member)
    check(pickle_reader.load(source), state)
    (tmp_path / "ngc.zip").unlink()
    check(pickle_reader.load(source), state)


def test_part_of_a_file(tmp_path, saved):
    path, state = saved
    (tmp_path / "all").write_bytes(b"123" + path.read_bytes() + b"456")
    source = FileBytes(tmp_path / "all")
    check(pickle_reader.load(Part(source, 3, source.size - 3)), state)


def test_positions_are_in_the_order_of_the_file(saved):
    source = InMemory(saved[0].read_bytes(), in_order=True)
    content = pickle_reader.load(source)
    tensors = [tensor for tensor in [*content["model"].values(), content["rng"]] if tensor.size]
    tensors.sort(key=lambda tensor: tensor.position)
    source.reads.clear()
    for tensor in tensors:
        tensor()
    begins = [begin for begin, end in source.reads if end - begin > 40]
    assert begins == sorted(begins) and len({t.position for t in tensors}) == len(tensors)


def test_streams_are_not_read_through_when_they_are_loaded(saved):
    source = InMemory(saved[0].read_bytes(), in_order=True)
    pickle_reader.load(source)
    assert max(end for _, end in source.reads) < source.size / 2


@pytest.mark.parametrize("saved", ["legacy"], indirect=True)
@pytest.mark.parametrize("in_order", [False, True])
def test_wrong_count_of_a_legacy_storage(saved, in_order):
    content = saved[0].read_bytes()
    count = (60_000).to_bytes(8, "little")
    assert content.count(count) == 1
    source = InMemory(content.replace(count, (59_999).to_bytes(8, "little")), in_order)
    with pytest.raises(CheckpointError, match="59999 numbers, expected 60000"):
        pickle_reader.load(source)["model"]["b"]()


# -- torch's archives in a compressed stream, whose directory lies at its far end ------------------------------------------
class Unseekable(io.BytesIO):
    """Into which zipfile writes as torch does: sizes and checksum behind the content."""

    def tell(self):
        raise OSError

    def seek(self, *_):
        raise OSError


def packed(members, file=None, method=zipfile.ZIP_STORED, stored=" "):
    """An archive of these members; without a file, sizes stand behind the content."""
    file = Unseekable() if file is None else file
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_STORED if stored in name else method)
    return file.getvalue()


@pytest.fixture
def many():
    """An archive of fifteen tensors as torch writes it, its members, and the tensors."""
    torch = pytest.importorskip("torch")
    tensors = {f"t{i}": torch.full((40 + i, 100), i, dtype=torch.int32) for i in range(13)}
    tensors |= {"last": torch.arange(5000), "empty": torch.zeros(0)}
    file = io.BytesIO()
    torch.save(tensors, file)
    with zipfile.ZipFile(file) as archive:
        return file.getvalue(), {name: archive.read(name) for name in archive.namelist()}, tensors


def old(members):
    """As torch before 2.1 wrote it: less beside the storages, and these ordered as texts."""
    storages = {name: members[name] for name in sorted(members) if "/data/" in name}
    return {"archive/data.pkl": members["archive/data.pkl"], **storages, "archive/version": b"3\n"}


def with_others(members, others):
    """More members, behind the storages 0, 1 and 2."""
    place = list(members).index("archive/data/3")
    items = list(members.items())
    return dict([*items[:place], *others.items(), *items[place:]])


def ours(whole):
    file = io.BytesIO()
    pickle_writer.save(file, pickle_reader.load(InMemory(whole)))
    return file.getvalue()


FORMS = {
    "torch": lambda whole, members: whole,
    "torch of old": lambda whole, members: packed(old(members)),
    "ours": lambda whole, members: ours(whole),
    "sizes ahead": lambda whole, members: packed(members, io.BytesIO()),
    "sizes behind": lambda whole, members: packed(members),
    "a small member between": lambda whole, members: packed(with_others(members, {"archive/x": b"PK\7\10PK"})),
}
UNUSUAL = {
    "pickle last": lambda members: packed(dict(reversed(members.items()))),
    "large member between": lambda members: packed(with_others(members, {"archive/x": bytes(9000)})),
    "many members between": lambda members: packed(with_others(members, {f"archive/{i}": b"x" for i in range(200)})),
    "pickle compressed": lambda members: packed(members, method=zipfile.ZIP_DEFLATED, stored="/data/"),
    "wrong sizes behind": lambda members: packed(members).replace(
        struct.pack("<2L", 16_800, 16_800) + b"PK\3", struct.pack("<2L", 16_800, 16_801) + b"PK\3"),
    "no signature behind": lambda members: packed(members).replace(b"PK\7\10", b"PK\7\11"),
    "something before": lambda members: b"PK" + packed(members),
}


@pytest.fixture
def asked(monkeypatch):
    """The archives whose directory was asked."""
    sources = []
    monkeypatch.setattr(pickle_reader, "Archive", lambda source: sources.append(source) or Archive(source))
    return sources


@pytest.mark.parametrize("form", FORMS)
def test_one_way_through(many, form, asked):
    """Everything is read once, in order and to the end, so that the checksum of the stream is compared."""
    whole, members, tensors = many
    source = InMemory(FORMS[form](whole, members), in_order=True)
    loaded = pickle_reader.load(source)
    assert source.read_bytes < 100_000 < source.size
    source.reads.clear()
    for name in sorted(tensors, key=lambda name: loaded[name].position):
        np.testing.assert_array_equal(loaded[name](), tensors[name].numpy())
    assert source.reads[-1][1] == source.size and source.read_bytes < 1.03 * source.size
    small = 5000  # a member of unknown size is searched so far for its end
    assert all(second[0] >= first[1] - small for first, second in itertools.pairwise(source.reads))
    assert not [archive for archive in asked if archive is source]


@pytest.mark.parametrize("form", ["torch", "torch of old"])
@pytest.mark.parametrize("step", [1, -1])
def test_any_order(many, form, step):
    whole, members, tensors = many
    loaded = pickle_reader.load(InMemory(FORMS[form](whole, members), in_order=True))
    for name in [*list(tensors)[::step], *tensors]:
        np.testing.assert_array_equal(loaded[name](), tensors[name].numpy())


@pytest.mark.parametrize("form", UNUSUAL)
def test_the_directory_is_asked(many, form, asked):
    """What is not as torch writes it is read all the same, only later."""
    _, members, tensors = many
    source = InMemory(UNUSUAL[form](members), in_order=True)
    loaded = pickle_reader.load(source)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[name](), tensor.numpy())
    assert asked == [source]


DAMAGED = {
    "big-endian": (lambda members: packed({**members, "archive/byteorder": b"big"}), "big-endian"),
    "a storage too small": (lambda members: packed({**members, "archive/data/3": bytes(100)}), "3' has 100 bytes, expected"),
    "a sized one": (lambda members: packed({**members, "archive/data/3": bytes(9)}, io.BytesIO()), "3' has 9 bytes, expected"),
    "the last too small": (lambda members: packed({**members, "archive/data/13": b""}), "13' has 0 bytes, expected"),
    "a storage too few": (
        lambda members: packed({name: content for name, content in members.items() if name != "archive/data/3"}),
        "there is no storage '3'"),
    "no storages": (
        lambda members: packed({name: content for name, content in members.items() if "/data/" not in name}),
        "there is no storage"),
    "a compressed storage": (lambda members: packed(members, method=zipfile.ZIP_DEFLATED, stored=".pkl"), "is compressed"),
    "encrypted": (
        lambda members: packed(members).replace(b"\x14\0\x08\0", b"\x14\0\x09\0"), "is encrypted"),
    "cut off": (lambda members: packed(members)[:-3000], "damaged"),
    "cut off early": (lambda members: packed(members)[:30_000], "damaged"),
    "storages of another folder": (
        lambda members: packed({name.replace("archive/data/", "other/data/"): content for name, content in members.items()}),
        "there is no storage"),
    "a foreign class": (
        lambda members: packed({**members, "archive/data.pkl": b"cos\nsystem\n."}), "os.system"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_archives_in_a_stream(many, damage):
    _, members, tensors = many
    make, says = DAMAGED[damage]
    with pytest.raises(CheckpointError) as caught:
        loaded = pickle_reader.load(InMemory(make(members), in_order=True))
        for name in tensors:
            loaded[name]()
    assert says in str(caught.value) and "memory" in str(caught.value)


@pytest.mark.parametrize("name", [b"archive/x", b"archive/data/0"])
@pytest.mark.parametrize("storage", ["archive/data/0", "archive/data/5"])
def test_the_way_is_not_endless(many, name, storage):
    """Millions of members without content may stand between two storages."""
    content = packed(many[1])
    member = b"PK\3\4\x14\0\0\0\0\0" + bytes(16) + struct.pack("<2H", len(name), 0) + name
    before, behind = content.split(storage.encode(), 1)
    source = InMemory(before[:-30] + member * 10_000 + before[-30:] + storage.encode() + behind, in_order=True)
    with contextlib.suppress(CheckpointError):  # the directory knows better, or does not
        pickle_reader.load(source)["t6"]()
    assert len(source.reads) < 1000


@pytest.mark.parametrize("form", FORMS)
def test_checksum_of_the_stream(many, form):
    whole, members, tensors = many
    content = FORMS[form](whole, members)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    stream = InMemory(packer.compress(content) + packer.flush())
    loaded = pickle_reader.load(Inflated(stream, len(content), zlib.crc32(content)))
    for name in tensors:
        loaded[name]()
    with pytest.raises(CheckpointError, match="checksum"):
        loaded = pickle_reader.load(Inflated(stream, len(content), zlib.crc32(content) ^ 1))
        for name in tensors:
            loaded[name]()


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_of_a_stream_never_escapes(many, seed):
    """Hundreds of changed headers, descriptors and pickles: our error or values, and never anything else."""
    random = np.random.default_rng(seed)
    whole, members, tensors = many
    good = [whole, packed(members), packed(old(members)), packed(members, io.BytesIO())][seed]
    headers = [place for place in range(len(good) - 4) if good[place : place + 2] == b"PK"]
    for _ in range(100):
        changed = bytearray(good)
        for place in random.choice(headers, random.integers(1, 4)):
            changed[min(place + random.integers(0, 60), len(good) - 1)] = random.choice([0, 1, 8, 255, random.integers(0, 256)])
        with contextlib.suppress(CheckpointError):
            loaded = pickle_reader.load(InMemory(bytes(changed), in_order=True))
            for name in tensors:
                loaded[name]()


def test_name_of_errors(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.zip!y"):
        pickle_reader.load(InMemory(b"\x80\x02."), "x.zip!y")


def test_repeated_numbers_are_bounded():
    storage = pickle_reader._Storage("0", "F32", 30, pickle_reader._Place())
    assert pickle_reader._tensor(storage, 0, (1000, 30), (0, 1), False, None).shape == (1000, 30)
    with pytest.raises(CheckpointError, match="again and again"):
        pickle_reader._tensor(storage, 0, (2**40, 30), (0, 1), False, None)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_metadata_of_distributed_checkpoints(tmp_path):
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    state = {"model": {"w": torch.arange(12.0).reshape(3, 4), "half": torch.ones(5).half()}, "iteration": 7}
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    metadata = load_pickle(tmp_path / ".metadata")
    held = metadata.state_dict_metadata
    assert set(held) == {"model.w", "model.half", "iteration"} and held["model.w"].size == (3, 4)
    assert str(held["model.half"].properties.state[0]) == "torch.float16"
    assert [(chunk.offsets, chunk.sizes) for chunk in held["model.w"].chunks] == [((0, 0), (3, 4))]
    places = {index.fqn: place for index, place in metadata.storage_data.items()}
    place = places["model.w"]
    source = Part(FileBytes(tmp_path / place.relative_path), place.offset, place.offset + place.length)
    tensor = pickle_reader.load(source)
    assert isinstance(tensor, LazyTensor) and tensor().tolist() == state["model"]["w"].tolist()
