"""TensorFlow's checkpoints: what it writes is read bit for bit, it reads what is written here, and damage is refused."""

import base64
import weakref
from pathlib import Path

import numpy as np
import pytest

from bertkit.core.atomic import StagedFiles
from bertkit.core.errors import CheckpointError
from bertkit.core.files import sstable
from bertkit.core.files.crc32c import crc32c, masked
from bertkit.core.files.protobuf import BYTES, FIXED32, VARINT, field
from bertkit.core.files.sstable import read_table, table_of
from bertkit.core.files.tf_checkpoint import (
    OBJECT_GRAPH,
    data_name,
    open_tf_checkpoint,
    prefix_of,
    tf_checkpoint_files,
    write_tf_checkpoint,
)
from bertkit.core.tensors import LazyTensor, RawTensor, stored
from tests.core import tf_mutations

RANDOM = np.random.default_rng(0)
TENSORS = {
    "bert/embeddings/word_embeddings": RANDOM.standard_normal((6, 5)).astype(np.float32),
    "bert/encoder/layer_0/bias": RANDOM.standard_normal(5).astype(np.float16),
    "bert/encoder/layer_10/bias": RawTensor(np.array([[0x3F80, 0xC049, 0x7F80]], np.uint16), "BF16"),
    "global_step": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
    "z/é": np.arange(3, dtype=np.uint8),
}
# tf.train.Checkpoint(x=tf.Variable([1.0, 2.0]), step=tf.Variable(3, dtype=tf.int64)).write("obj"), TensorFlow 2.21
OBJ_INDEX = base64.b64decode(
    "AAAGCAEaAggBABwOX0NIRUNLUE9JTlRBQkxFX09CSkVDVF9HUkFQSAgHEgAgECigATU4bxAAAB8Lc3RlcC8uQVRUUklCVVRFUy9WQVJJQUJMRV"
    "9WQUxVRQgJEgAoCDWwmUkOABwReC8uQVRUUklCVVRFUy9WQVJJQUJMRV9WQUxVRQgBEgQSAggCIAgoCDVZPOU1AAAAAAEAAAAAkbNmRQAAAAAB"
    "AAAAAMDyobAAAQN5AJsBAAAAAAEAAAAAx2BDaqABCK0BDwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABX+4CLJHVH2w=="
)
OBJ_DATA = base64.b64decode(
    "AwAAAAAAAAAAAIA/AAAAQJoB2F/IiQoVCggIARIEc3RlcAoFCAISAXgqAggBCkESOwoOVkFSSUFCTEVfVkFMVUUSCFZhcmlhYmxlGh9zdGVwLy"
    "5BVFRSSUJVVEVTL1ZBUklBQkxFX1ZBTFVFKgIIAQo+EjgKDlZBUklBQkxFX1ZBTFVFEghWYXJpYWJsZRoceC8uQVRUUklCVVRFUy9WQVJJQUJM"
    "RV9WQUxVRSoCCAE="
)


def check_content(path, tensors, strings=()):
    checkpoint = open_tf_checkpoint(path)
    assert set(checkpoint.tensors) == set(tensors) and checkpoint.others == {}
    for name, expected in tensors.items():
        tensor = checkpoint.tensors[name]
        (bits, dtype), (wanted, wanted_dtype) = stored(tensor()), stored(expected)
        assert (tensor.shape, tensor.dtype) == (bits.shape, dtype) == (wanted.shape, wanted_dtype)
        assert bits.tobytes() == wanted.tobytes() and bits.flags.writeable
    assert {name: read() for name, read in checkpoint.strings.items()} == dict(strings)
    return checkpoint


def contents(directory):
    return {file.name: file.read_bytes() for file in Path(directory).iterdir() if file.name != "checkpoint"}


# -- without TensorFlow -------------------------------------------------------------------------------------------------
def test_round_trip(tmp_path):
    texts = {"text": b"\0\xff" * 100, "nothing": b""}
    files = write_tf_checkpoint(tmp_path / "new" / "model.ckpt", TENSORS, texts)
    assert [file.name for file in files] == ["model.ckpt.data-00000-of-00001", "model.ckpt.index"]
    checkpoint = check_content(tmp_path / "new" / "model.ckpt", TENSORS, texts)
    assert checkpoint.files == files[::-1]
    write_tf_checkpoint(tmp_path / "again" / "model.ckpt", dict(reversed(TENSORS.items())), dict(reversed(texts.items())))
    assert contents(tmp_path / "again") == contents(tmp_path / "new")


def test_file_of_tensorflow(tmp_path):
    (tmp_path / "obj.index").write_bytes(OBJ_INDEX)
    (tmp_path / "obj.data-00000-of-00001").write_bytes(OBJ_DATA)
    end = "/.ATTRIBUTES/VARIABLE_VALUE"
    values = {f"x{end}": np.float32([1, 2]), f"step{end}": np.array(3)}
    checkpoint = check_content(tmp_path / "obj", values, {OBJECT_GRAPH: OBJ_DATA[22:]})
    strings = {name: read() for name, read in checkpoint.strings.items()}
    write_tf_checkpoint(tmp_path / "copy" / "obj", checkpoint.tensors, strings)
    del checkpoint
    assert contents(tmp_path / "copy") == {"obj.index": OBJ_INDEX, "obj.data-00000-of-00001": OBJ_DATA}


@pytest.mark.parametrize("given", ["", ".index", ".meta", ".data-00000-of-00001"])
@pytest.mark.parametrize("name", ["model.ckpt-500", "a.index", "b.meta"])
def test_any_file_names_the_checkpoint(tmp_path, name, given):
    write_tf_checkpoint(tmp_path / name, TENSORS)
    assert prefix_of(str(tmp_path / (name + given))) == tmp_path / name
    assert set(open_tf_checkpoint(tmp_path / (name + given)).tensors) == set(TENSORS)


def test_tensors_are_written_one_at_a_time_into_files_that_are_given(tmp_path):
    alive, counted = [], []

    def tensor(index):
        def read():
            assert not any(reference() is not None for reference in alive)
            array = np.full(100, index, np.float32)
            alive.append(weakref.ref(array))
            return array

        return LazyTensor((100,), "F32", read)

    with StagedFiles(tmp_path) as staged:
        for name, write in tf_checkpoint_files("x", {str(index): tensor(index) for index in range(5)}).items():
            with staged.open(name) as file:
                write(file, counted.append)
        staged.commit()
    assert counted == [400] * 5
    assert open_tf_checkpoint(tmp_path / "x").tensors["3"]().tolist() == [3] * 100


def test_values_are_read_when_they_are_needed(tmp_path):
    files = write_tf_checkpoint(tmp_path / "x", TENSORS)
    checkpoint = open_tf_checkpoint(tmp_path / "x")
    files[0].unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*x\.data-00000-of-00001"):
        checkpoint.tensors["flags"]()


@pytest.mark.parametrize("name", ["", "\0x", "\ud800"])
def test_impossible_names(tmp_path, name):
    with pytest.raises(CheckpointError, match="cannot have these names"):
        write_tf_checkpoint(tmp_path / "new" / "x", {name: np.zeros(1)})
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(CheckpointError, match="both a tensor and a text"):
        write_tf_checkpoint(tmp_path / "x", {"a": np.zeros(1)}, {"a": b""})
    with pytest.raises(CheckpointError, match=r"lie: got F32 \[2\], expected F32 \[3\]"):
        write_tf_checkpoint(tmp_path / "x", {"lie": LazyTensor((3,), "F32", lambda: np.zeros(2, np.float32))})
    with pytest.raises(CheckpointError, match=r"words: .* dtype"):
        write_tf_checkpoint(tmp_path / "x", {"words": np.array(["a"])})
    assert list(tmp_path.iterdir()) == []


# -- beside TensorFlow --------------------------------------------------------------------------------------------------
@pytest.fixture
def tf():
    return pytest.importorskip("tensorflow", exc_type=ImportError)


def save(tf, prefix, variables, devices=1, **settings):
    """Write variables with TF1's Saver, as the original programs do; give back their values by name."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session(config=v1.ConfigProto(device_count={"CPU": devices})) as session:
        made = {}
        for index, (name, options) in enumerate(variables.items()):
            with tf.device(f"/cpu:{index % devices}"):
                made[name] = v1.get_variable(name, use_resource=False, **options)
        session.run(v1.global_variables_initializer())
        v1.train.Saver(**settings).save(session, str(prefix), write_meta_graph=False)
        return session.run({name: tf.convert_to_tensor(variable) for name, variable in made.items()})


def tensorflow_value(tf, value):
    return value.bits.view(tf.bfloat16.as_numpy_dtype) if isinstance(value, RawTensor) else value


def test_saver(tmp_path, tf):
    tensors = {name: value for name, value in TENSORS.items() if name.isascii()}
    tensors |= {f"types/{kind.__name__}": np.array([0, 1, 100]).astype(kind)
                for kind in (np.int8, np.int16, np.int32, np.uint16, np.float64, np.complex64)}
    variables = {name: {"initializer": tensorflow_value(tf, value)} for name, value in tensors.items()}
    save(tf, tmp_path / "theirs" / "model.ckpt", variables)
    checkpoint = check_content(tmp_path / "theirs" / "model.ckpt", tensors)
    write_tf_checkpoint(tmp_path / "ours" / "model.ckpt", checkpoint.tensors)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


@pytest.mark.parametrize("shape, axis, parts", [((10, 3), 0, 3), ((4, 70, 3), 1, 5), ((200, 2), 0, 150), ((9,), 0, 2)])
def test_partitioned_variables(tmp_path, tf, shape, axis, parts):
    options = {
        "shape": shape,
        "partitioner": tf.compat.v1.fixed_size_partitioner(parts, axis),
        "initializer": tf.compat.v1.random_normal_initializer(seed=0),
    }
    values = save(tf, tmp_path / "x", {"a/part": options, "b": {"initializer": np.float32([1, 2])}})
    assert sum(key.startswith(b"\0") for key in read_table((tmp_path / "x.index").read_bytes())) == parts
    check_content(tmp_path / "x", values)


def test_several_files(tmp_path, tf):
    variables = {f"v{index}": {"initializer": np.arange(6.0) + index} for index in range(5)}
    values = save(tf, tmp_path / "x", variables, devices=2, sharded=True)
    checkpoint = check_content(tmp_path / "x", values)
    assert [file.name for file in checkpoint.files] == ["x.index", data_name("x", 0, 2), data_name("x", 1, 2)]
    (tmp_path / data_name("x", 1, 2)).unlink()
    with pytest.raises(CheckpointError, match=r"incomplete\n  - missing: x.data-00001-of-00002"):
        open_tf_checkpoint(tmp_path / "x")


def test_object_checkpoint(tmp_path, tf):
    model = tf.train.Checkpoint(
        layers=[tf.Variable([1.0, 2.0]), tf.Variable(RANDOM.standard_normal((3, 4)), dtype=tf.bfloat16)],
        step=tf.Variable(3, dtype=tf.int64), words=tf.Variable(["a", "b"]),
    )  # fmt: skip
    model.write(str(tmp_path / "theirs" / "obj"))
    theirs = tf.train.load_checkpoint(str(tmp_path / "theirs" / "obj"))
    checkpoint = open_tf_checkpoint(tmp_path / "theirs" / "obj")
    end = "/.ATTRIBUTES/VARIABLE_VALUE"
    assert set(checkpoint.tensors) == {f"layers/0{end}", f"layers/1{end}", f"step{end}"}
    assert checkpoint.others == {f"words{end}": "string [2]"}
    for name, tensor in checkpoint.tensors.items():
        assert stored(tensor())[0].tobytes() == np.asarray(theirs.get_tensor(name)).tobytes()
    graph = checkpoint.strings[OBJECT_GRAPH]()
    assert graph == theirs.get_tensor(OBJECT_GRAPH)


def test_objects_are_restored(tmp_path, tf):
    """tf.train.Checkpoint finds its variables in a copy, and tells when they are not all there."""
    make = lambda x: tf.train.Checkpoint(x=tf.Variable(x), step=tf.Variable(int(x[0])))  # noqa: E731
    make([1.0, 2.0]).write(str(tmp_path / "theirs"))
    checkpoint = open_tf_checkpoint(tmp_path / "theirs")
    write_tf_checkpoint(tmp_path / "ours", checkpoint.tensors, {OBJECT_GRAPH: checkpoint.strings[OBJECT_GRAPH]()})
    other = make([3.0, 4.0])
    other.read(str(tmp_path / "ours")).assert_consumed()
    assert (other.x.numpy().tolist(), other.step.numpy()) == ([1.0, 2.0], 1)


def test_tensorflow_reads_what_is_written(tmp_path, tf):
    write_tf_checkpoint(tmp_path / "model.ckpt", TENSORS, {"text": b"hello"})
    reader = tf.train.load_checkpoint(str(tmp_path / "model.ckpt"))
    assert set(reader.get_variable_to_shape_map()) == {*TENSORS, "text"}
    for name, value in TENSORS.items():
        assert stored(np.asarray(reader.get_tensor(name)))[1] == stored(value)[1]
        assert np.asarray(reader.get_tensor(name)).tobytes() == stored(value)[0].tobytes()
    assert reader.get_tensor("text") == b"hello"


def test_saver_restores_what_is_written(tmp_path, tf):
    v1 = tf.compat.v1
    write_tf_checkpoint(tmp_path / "model.ckpt", TENSORS)
    with tf.Graph().as_default(), v1.Session() as session:
        whole = v1.get_variable("bert/embeddings/word_embeddings", shape=(6, 5), use_resource=False)
        step = v1.get_variable("global_step", shape=(), dtype=tf.int64, use_resource=False)
        v1.train.Saver().restore(session, str(tmp_path / "model.ckpt"))
        np.testing.assert_array_equal(session.run(whole), TENSORS["bert/embeddings/word_embeddings"])
        assert session.run(step) == 7


def test_an_index_of_many_blocks(tmp_path, tf):
    names = sorted(f"{index}/{'long' * (index % 40)}/name" for index in range(5000))  # as the Saver does
    values = np.arange(5000, dtype=np.float32)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "theirs" / "x"), tensor_names=names, shape_and_slices=[""] * 5000,
        tensors=[tf.constant(value) for value in values],
    )  # fmt: skip
    assert (tmp_path / "theirs" / "x.index").stat().st_size > sstable.BLOCK_SIZE
    checkpoint = open_tf_checkpoint(tmp_path / "theirs" / "x")
    assert all(checkpoint.tensors[name]() == value for name, value in list(zip(names, values, strict=True))[::97])
    write_tf_checkpoint(tmp_path / "ours" / "x", checkpoint.tensors)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


# -- damaged and hostile files ------------------------------------------------------------------------------------------
def entry(shape=(2,), dtype=1, size=None, offset=0, shard=0, checksum=1, slices=()):
    """An entry of the index; a slice is a list of (start, length) and (0, None) for all."""
    size = 4 * int(np.prod(shape)) if size is None else size
    parts = [
        b"".join(field(1, BYTES, field(1, VARINT, start) + field(2, VARINT, length or 0)) for start, length in part)
        for part in slices
    ]
    return b"".join([
        field(1, VARINT, dtype), field(2, BYTES, b"".join(field(2, BYTES, field(1, VARINT, n)) for n in shape)),
        field(3, VARINT, shard), field(4, VARINT, offset), field(5, VARINT, size), field(6, FIXED32, checksum),
        *(field(7, BYTES, part) for part in parts),
    ])  # fmt: skip


SLICE_OF_1, SLICE_OF_2 = b"\0a\0\1\1\1\x80\x81", b"\0a\0\1\1\1\x80\x82"
"""Keys of the first one and two places of a tensor `a` with one dimension."""
HEADER = field(1, VARINT, 1) + field(3, BYTES, field(1, VARINT, 1))


def write_index(directory, entries, header=HEADER, data=bytes(64)):
    (directory / "x.index").write_bytes(table_of(sorted({b"": header, **entries}.items())))
    (directory / "x.data-00000-of-00001").write_bytes(data)
    return directory / "x"


@pytest.mark.parametrize(
    "entries, message",
    [
        ({b"a": entry(offset=60)}, "a: bytes 60 to 68 of x.data-00000-of-00001, which has 64"),
        ({b"a": entry(offset=2**64 - 8)}, "a: bytes -8 to 0"),
        ({b"a": entry(size=2**62)}, "a: bytes 0 to 4611686018427387904"),
        ({b"a": entry(size=12)}, r"a: 12 bytes for F32 \[2\], expected 8"),
        ({b"a": entry(shape=(2**40, 2**40), size=8)}, "a: the impossible shape"),
        ({b"a": entry(shape=(0, 2**62), size=0)}, "a: the impossible shape"),
        ({b"a": entry(shape=(2**64 - 1,), size=8)}, "a: the impossible shape"),
        ({b"a": entry(shape=(1,) * 33, size=4)}, "a: the impossible shape"),
        ({b"a": entry(dtype=77)}, "a: the unknown type 77"),
        ({b"a": entry(shard=1)}, "a: file 1, where there are 1"),
        ({b"a": entry(shard=2**64 - 1)}, "a: file -1"),
        ({b"a": entry(), b"b": entry(offset=4)}, "b: it begins at byte 4, inside of a"),
        ({b"a\xff": entry()}, r"a\\xff: the name is no UTF-8"),
        ({b"a": b"\x0a"}, "a: the number at byte 1 does not end"),
        ({b"a": b"\x08" + b"\xff" * 11}, "a: the number at byte 1 does not end, or is too large"),
        ({b"a": b"\x12\x7f"}, "a: field 2 of a message has 127 bytes, where 0 are left"),
        ({b"a": field(1, BYTES, b"x")}, "a: field 1 of a message has the wire type 2, expected 0"),
        ({b"a": b"\x0b"}, "a: field 1 of a message has the unknown wire type 3"),
        ({b"\0a": entry()}, r"\\0a: a slice that belongs to no tensor"),
        ({b"a": entry(slices=[[(0, 1)], [(1, 1)]])}, r"a: there is no slice \[0:1\]"),
        ({b"a": entry(slices=[[(0, 1), (0, 1)]])}, "a: a slice of 2 dimensions of a tensor of 1"),
        ({b"a": entry(slices=[[(1, 2)]])}, r"a: the slice \[1:3\] is outside"),
        ({b"a": entry(dtype=7, shape=(), slices=[[]])}, "a: slices of string"),
        ({SLICE_OF_1: entry((1,)), b"a": entry(slices=[[(0, 1)]])}, "a: its slices leave gaps, or overlap"),
        ({SLICE_OF_2: entry(dtype=3), b"a": entry(slices=[[(0, 2)]])}, r"a: the slice \[0:2\] is I32 \[2\], expected F32"),
        ({SLICE_OF_2: entry(), b"a": entry(slices=[[(0, 2)]] * 2)}, "a: it has 2 slices, expected 1"),
    ],
)  # fmt: skip
def test_hostile_entries(tmp_path, entries, message):
    path = write_index(tmp_path, {b"0": entry(shape=(), size=4, offset=56), **entries})
    with pytest.raises(CheckpointError, match=message) as caught:
        open_tf_checkpoint(path)
    assert str(tmp_path / "x.index") in caught.value.headline


def test_everything_wrong_at_once(tmp_path):
    path = write_index(tmp_path, {b"%03d" % index: entry(dtype=99) for index in range(100)})
    with pytest.raises(CheckpointError) as caught:
        open_tf_checkpoint(path)
    assert len(caught.value.problems) == 21 and caught.value.problems[-1] == "... and more"


@pytest.mark.parametrize(
    "header, message",
    [
        (b"", "tells of 0 files"),
        (field(1, VARINT, 2**40), "tells of 1099511627776 files"),
        (HEADER + field(2, VARINT, 2), "byte order 2"),
        (HEADER + field(3, BYTES, field(2, VARINT, 2)), "a reader of version 2"),
        (field(1, VARINT, 3), "missing: x.data-00000-of-00003"),
    ],
)
def test_hostile_headers(tmp_path, header, message):
    with pytest.raises(CheckpointError, match=message):
        open_tf_checkpoint(write_index(tmp_path, {b"a": entry()}, header))


def test_wrong_values(tmp_path):
    write_tf_checkpoint(tmp_path / "x", {"good": np.zeros(9), "weight": np.ones(9)}, {"text": b"abc"})
    file = tmp_path / data_name("x")
    for place, name in ((9 * 8 + 3, "weight"), (-1, "text"), (-4, "text"), (-8, "text")):
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        (tmp_path / "y.index").write_bytes((tmp_path / "x.index").read_bytes())
        (tmp_path / data_name("y")).write_bytes(content)
        checkpoint = open_tf_checkpoint(tmp_path / "y")
        assert checkpoint.tensors["good"]().tolist() == [0] * 9
        with pytest.raises(CheckpointError, match=f"y.data-00000-of-00001 is damaged\n  - {name}: "):
            (checkpoint.tensors | checkpoint.strings)[name]()


def test_big_endian_machines(tmp_path):
    values = np.arange(6, dtype=">f4")
    header = HEADER + field(2, VARINT, 1)
    checksum = masked(crc32c(values))
    path = write_index(tmp_path, {b"a": entry((2, 3), checksum=checksum)}, header, values.tobytes())
    assert open_tf_checkpoint(path).tensors["a"]().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_grid_of_slices(tmp_path):
    """Slices in two dimensions, which the format allows."""
    cells = [(row, column) for column in (1, 0) for row in (0, 1)]
    write_tf_checkpoint(tmp_path / "parts", {str(cell): np.full((1, 2), 2 * cell[0] + cell[1]) for cell in cells})
    parts = read_table((tmp_path / "parts.index").read_bytes())
    keys = {b"\0a\0\1\1\2" + bytes([0x80 + row, 0x81, 0x80 + 2 * column, 0x82]): parts[str((row, column)).encode()]
            for row, column in cells}  # fmt: skip
    whole = entry((2, 4), dtype=9, slices=[[(row, 1), (2 * column, 2)] for row, column in cells])
    path = write_index(tmp_path, {**keys, b"a": whole}, data=(tmp_path / data_name("parts")).read_bytes())
    assert open_tf_checkpoint(path).tensors["a"]().tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_no_checkpoint(tmp_path):
    write_tf_checkpoint(tmp_path / "there", TENSORS)
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent.index", tmp_path / "no" / "absent"):
        with pytest.raises(CheckpointError, match=r"there is no .*\.index"):
            open_tf_checkpoint(path)
    (tmp_path / "old.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"has: there.index\n.*before 0.12"):
        open_tf_checkpoint(tmp_path / "old.ckpt")


@pytest.mark.parametrize("content", [b"", bytes(48), sstable.MAGIC, b"<html>" * 20, bytes(40) + sstable.MAGIC], ids=range(5))
def test_no_index(tmp_path, content):
    (tmp_path / "x.index").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.index is damaged, or no index of TensorFlow"):
        open_tf_checkpoint(tmp_path / "x")


def test_table_of_something_else(tmp_path):
    (tmp_path / "x.index").write_bytes(table_of([(b"key", b"value")]))
    with pytest.raises(CheckpointError, match="no header"):
        open_tf_checkpoint(tmp_path / "x")


def test_every_cut_is_refused(tmp_path):
    index, data = write_tf_checkpoint(tmp_path / "x", TENSORS)[::-1]
    for file in (index, data):
        good = file.read_bytes()
        for end in range(len(good)):
            file.write_bytes(good[:end])
            with pytest.raises(CheckpointError, match=r"x\.index"):
                open_tf_checkpoint(tmp_path / "x")
        file.write_bytes(good)


def test_every_changed_byte_is_noticed(tmp_path):
    """But for those that nothing depends on: the padding of the footer, and the place of a block without content."""
    index, data = write_tf_checkpoint(tmp_path / "x", {"a": np.ones(3), "b": np.zeros(2)})[::-1]
    unnoticed = {index: 0, data: 0}
    for file in unnoticed:
        good = file.read_bytes()
        for place in range(len(good)):
            file.write_bytes(good[:place] + bytes([good[place] ^ 0x40]) + good[place + 1 :])
            unnoticed[file] += tf_mutations.survives(tmp_path / "x")
        file.write_bytes(good)
    assert unnoticed == {index: 13 + 38, data: 0}


def test_mutations(tmp_path):
    write_tf_checkpoint(tmp_path / "x", TENSORS, {"text": b"abc"})
    files = contents(tmp_path)
    random = np.random.default_rng(3)
    survived = 0
    for _ in range(200):
        for name, content in tf_mutations.mutate(random, files).items():
            (tmp_path / name).write_bytes(content)
        survived += tf_mutations.survives(tmp_path / "x")
    assert 0 < survived < 100
