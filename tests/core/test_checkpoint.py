"""Checkpoint directories: what is written is read back, in one step or not at all, and hostile files are refused."""

import argparse
import contextlib
import errno
import json
import os
import pickle
import resource
import signal
import tempfile
import weakref
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bertkit.core.atomic import write_files
from bertkit.core.checkpoint import LazyTensor, RawTensor, open_checkpoint, parse_size, write_checkpoint
from bertkit.core.errors import CheckpointError
from bertkit.core.files import pickle_reader
from bertkit.core.files.crc32c import crc32c
from bertkit.core.tensors import NAME_OF

RANDOM = np.random.default_rng(0)
TENSORS = {
    "encoder.weight": RANDOM.standard_normal((6, 5)).astype(np.float32),
    "encoder.bias": RANDOM.standard_normal(5).astype(np.float32),
    "half": RANDOM.standard_normal((3, 4)).astype(np.float16),
    "position_ids": np.arange(7, dtype=np.int64)[None],
    "flag": np.array([True, False, True]),
    "scalar": np.array(0.5),
    "empty": np.zeros((0, 3), np.float32),
}
BRAIN = RawTensor(np.array([[0x3F80, 0xC049, 0x7F80]], np.uint16), "BF16")


def check_content(directory, tensors):
    with open_checkpoint(directory) as checkpoint:
        assert set(checkpoint) == set(tensors) and len(checkpoint) == len(tensors)
        for name, expected in tensors.items():
            bits, dtype = checkpoint.read_raw(name)
            wanted = expected.bits if isinstance(expected, RawTensor) else expected
            assert (bits.shape, bits.dtype) == (wanted.shape, wanted.dtype)
            assert checkpoint.info(name).shape == wanted.shape and checkpoint.info(name).dtype == dtype
            np.testing.assert_array_equal(bits, wanted)


def contents(directory):
    return {item.name: item.read_bytes() for item in directory.iterdir()}


# -- writing and reading back -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", ["5GB", 64, 1], ids=["one file", "shards", "a file per tensor"])
def test_round_trip(tmp_path, size):
    written = write_checkpoint(tmp_path / "new" / "dir", {**TENSORS, "brain": BRAIN}, max_shard_size=size)
    check_content(tmp_path / "new" / "dir", {**TENSORS, "brain": BRAIN})
    assert open_checkpoint(tmp_path / "new" / "dir").files == written
    assert not [item.name for item in (tmp_path / "new" / "dir").iterdir() if item.name.endswith(".tmp")]


def test_bytes_are_those_of_the_safetensors_library(tmp_path):
    names = {**TENSORS, 'quoted " \\ é \n': np.zeros(1, np.uint8)}
    (file,) = write_checkpoint(tmp_path, names)
    save_file(names, tmp_path / "theirs", metadata={"format": "pt"})
    assert file.read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("size", ["5GB", 64])
def test_bytes_do_not_depend_on_the_order(tmp_path, size):
    write_checkpoint(tmp_path / "a", TENSORS, max_shard_size=size)
    write_checkpoint(tmp_path / "b", dict(reversed(TENSORS.items())), max_shard_size=size)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_conversion(tmp_path, dtype, tolerance):
    tensors = {"f64": np.array([0.1, -3.0, 1e-3]), "f32": np.float32([0.1, 7.0]), "i": np.arange(3), "brain": BRAIN}
    write_checkpoint(tmp_path, tensors, dtype=dtype)
    checkpoint = open_checkpoint(tmp_path)
    stored = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    assert [checkpoint.info(name).dtype for name in ("f64", "f32", "brain", "i")] == [stored, stored, stored, "I64"]
    np.testing.assert_allclose(checkpoint.read("f64"), tensors["f64"], rtol=max(tolerance, 1e-7))
    np.testing.assert_allclose(checkpoint.read("f32"), tensors["f32"], rtol=tolerance)


def test_bfloat16_agrees_with_torch(tmp_path):
    torch = pytest.importorskip("torch")
    bits = np.concatenate([RANDOM.integers(0, 2**32, 20000, np.uint32), np.uint32([0x3F808000, 0x3F818000, 0x7F800001])])
    values = bits.view(np.float32)
    values = values[~(np.abs(values) > 3.38e38)]  # those that become infinite are an error of their own
    write_checkpoint(tmp_path, {"x": values}, dtype="bfloat16")
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(open_checkpoint(tmp_path).read("x"), expected)


@pytest.mark.parametrize("dtype, value", [("float16", 65520.0), ("bfloat16", 3.4e38), ("float32", 1e39)])
def test_overflow_is_an_error(tmp_path, dtype, value):
    with pytest.raises(CheckpointError, match="big does not fit into"):
        write_checkpoint(tmp_path / "new", {"big": np.array([1.0, value])}, dtype=dtype)
    assert not (tmp_path / "new").exists()


def test_torch_reads_what_we_write(tmp_path):
    load_file = pytest.importorskip("safetensors.torch").load_file
    (file,) = write_checkpoint(tmp_path, {"brain": BRAIN})
    assert load_file(file)["brain"].tolist() == [[1.0, -3.140625, float("inf")]]


def test_arrays_are_mapped_not_read(tmp_path):
    write_checkpoint(tmp_path, TENSORS)
    checkpoint = open_checkpoint(tmp_path)
    first, again = checkpoint.read("encoder.weight"), checkpoint.read("encoder.weight")
    assert np.shares_memory(first, again) and first.flags.writeable
    checkpoint.close()
    np.testing.assert_array_equal(first, TENSORS["encoder.weight"])
    with pytest.raises(CheckpointError, match="no tensor"):
        checkpoint.read("encoder.weight")


def test_tensors_are_written_one_at_a_time(tmp_path):
    alive = []

    def tensor(index):
        def read():
            assert not any(reference() is not None for reference in alive)
            array = np.full(100, index, np.float32)
            alive.append(weakref.ref(array))
            return array

        return LazyTensor((100,), "F32", read)

    write_checkpoint(tmp_path, {str(index): tensor(index) for index in range(5)})
    assert len(alive) == 5


# -- checksums ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", ["5GB", 64], ids=["one file", "shards"])
def test_checksums_find_every_damaged_byte(tmp_path, size):
    """Also where tensors lie elsewhere in their source; other programs read the file as ever."""
    tensors = {name: LazyTensor(array.shape, NAME_OF[array.dtype], lambda array=array: array, position)
               for position, (name, array) in enumerate(reversed(TENSORS.items()))}
    files = write_checkpoint(tmp_path, tensors, max_shard_size=size, checksum=True)
    check_content(tmp_path, TENSORS)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.verify()
    assert checkpoint.metadata == {"format": "pt"}
    for file in files:
        with safe_open(file, "np") as theirs:
            metadata = theirs.metadata()
            assert set(metadata) == {"format", "crc32c"} and set(theirs.keys()) <= set(TENSORS)
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        assert int(metadata["crc32c"], 16) == crc32c(content[start:])
        for place in (start, len(content) - 1):
            file.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
            with pytest.raises(CheckpointError, match=rf"{file.name} is damaged: its checksum is .*, expected"):
                open_checkpoint(tmp_path).verify()
        file.write_bytes(content)


def test_files_without_a_checksum_are_not_verified(tmp_path):
    write_checkpoint(tmp_path, TENSORS)
    with pytest.raises(CheckpointError, match=r"(?s)cannot be trusted.*model\.safetensors: has no checksum.*save_pretrained"):
        open_checkpoint(tmp_path).verify()


def test_checksums_change_no_other_byte(tmp_path):
    (plain,) = write_checkpoint(tmp_path / "a", TENSORS)
    (summed,) = write_checkpoint(tmp_path / "b", TENSORS, checksum=True)
    (given,) = write_checkpoint(tmp_path / "c", TENSORS, checksum=True, metadata={"crc32c": "ffffffff"})
    size = sum(tensor.nbytes for tensor in TENSORS.values())
    assert plain.read_bytes()[-size:] == summed.read_bytes()[-size:] and summed.read_bytes() == given.read_bytes()


def test_variant(tmp_path):
    write_checkpoint(tmp_path, TENSORS)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    assert open_checkpoint(tmp_path, variant="fp16").files == [tmp_path / "model.fp16.safetensors"]
    with pytest.raises(CheckpointError, match="variant='fp16'"):
        open_checkpoint(tmp_path)


def test_unknown_name_suggests(tmp_path):
    write_checkpoint(tmp_path, TENSORS)
    with pytest.raises(CheckpointError, match=r"encoder\.weight"):
        open_checkpoint(tmp_path).read("encoder.weights")


@pytest.mark.parametrize("size, count", [("2GB", 2 * 10**9), ("1.5 KiB", 1536), (7, 7), ("30mb", 3 * 10**7)])
def test_sizes(size, count):
    assert parse_size(size) == count


@pytest.mark.parametrize(
    "options",
    [
        {"max_shard_size": "5 XB"},
        {"max_shard_size": 0},
        {"max_shard_size": "."},
        {"dtype": "int8"},
        {"extra_files": {"../x": ""}},
        {"extra_files": {"model.safetensors": ""}},
    ],
)
def test_bad_arguments_touch_nothing(tmp_path, options):
    with pytest.raises(CheckpointError):
        write_checkpoint(tmp_path / "new", TENSORS, **options)
    assert not (tmp_path / "new").exists()


def test_tensors_that_cannot_be_stored(tmp_path):
    for value in (np.array(["text"]), np.array([object()]), LazyTensor((3,), "F32", lambda: np.zeros(4, np.float32))):
        with pytest.raises(CheckpointError, match="odd"):
            write_checkpoint(tmp_path / "new", {"odd": value})
    assert not (tmp_path / "new").exists()


# -- in one step --------------------------------------------------------------------------------------------------------
OLD = {"weight": np.arange(400, dtype=np.float32), "second": np.ones(400, np.float32)}
NEW = {"weight": np.full(400, 7, np.float32), "third": np.ones(500, np.float32)}


@pytest.mark.parametrize("before", ["5GB", 1700])
@pytest.mark.parametrize("after", ["5GB", 2100])
def test_a_reader_at_any_moment_finds_one_checkpoint(tmp_path, monkeypatch, before, after):
    write_checkpoint(tmp_path, OLD, max_shard_size=before)
    seen = []

    def watched(move):
        def moved(*args, **options):
            result = move(*args, **options)
            names = set(open_checkpoint(tmp_path))
            seen.append("old" if names == set(OLD) else "new")
            check_content(tmp_path, OLD if seen[-1] == "old" else NEW)
            return result

        return moved

    for name in ("replace", "unlink", "link"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    write_checkpoint(tmp_path, NEW, max_shard_size=after, extra_files={"config.json": "{}"})
    assert seen == sorted(seen, reverse=True) and {"old", "new"} == set(seen)
    assert not [name for name in contents(tmp_path) if name.endswith(".tmp")]
    count = len([name for name in contents(tmp_path) if name.endswith(".safetensors")])
    assert count == (1 if after == "5GB" else 2)


def test_files_of_the_tokenizer_before_go_with_it_and_stay_without_a_new_one(tmp_path):
    write_checkpoint(tmp_path, OLD, extra_files={"config.json": "{}", "tokenizer.json": "old", "vocab.txt": "old"})
    (tmp_path / "README.md").write_text("mine")
    write_checkpoint(tmp_path, NEW, extra_files={"config.json": "{}"})
    assert (tmp_path / "tokenizer.json").read_text() == "old"
    write_checkpoint(tmp_path, NEW, extra_files={"config.json": "{}", "vocab.txt": "new"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors", "vocab.txt"]


@pytest.mark.parametrize("before", ["5GB", 1700])
@pytest.mark.parametrize("after", ["5GB", 2100])
def test_a_rename_that_fails_is_taken_back(tmp_path, monkeypatch, before, after):
    write_checkpoint(tmp_path, OLD, max_shard_size=before, extra_files={"config.json": "old"})
    held, replace = contents(tmp_path), os.replace
    for failing in range(20):
        calls = iter(range(100))

        def sometimes(source, target, failing=failing, calls=calls):
            if next(calls) == failing:
                raise PermissionError(errno.EACCES, "Permission denied")
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", sometimes)
            try:
                write_checkpoint(tmp_path, NEW, max_shard_size=after, extra_files={"config.json": "new"})
            except CheckpointError as error:
                assert "may not write there" in str(error)
                assert contents(tmp_path) == held
            else:
                break
    assert failing > 1
    check_content(tmp_path, NEW)


def fail_with(error):
    def read():
        raise error

    return LazyTensor((400,), "F32", read)


@pytest.mark.parametrize("size", ["5GB", 1700])
@pytest.mark.parametrize(
    "error, raised", [(OSError(errno.ENOSPC, "No space left"), CheckpointError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_failing_midway_leaves_the_old_checkpoint(tmp_path, size, error, raised):
    write_checkpoint(tmp_path, OLD, extra_files={"config.json": "old"})
    held = contents(tmp_path)
    with pytest.raises(raised):
        write_checkpoint(tmp_path, {**NEW, "zz": fail_with(error)}, max_shard_size=size, extra_files={"config.json": "new"})
    assert contents(tmp_path) == held


def test_a_file_that_the_system_cuts_off(tmp_path):
    """The kernel itself refuses to write on, as a full disk does."""
    write_checkpoint(tmp_path, {"weight": np.zeros(10, np.float32)})
    held, before = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
        with pytest.raises(CheckpointError, match="cannot write"):
            write_checkpoint(tmp_path, {"weight": np.zeros(2**16, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert contents(tmp_path) == held


def test_target_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot write"):
        write_checkpoint(tmp_path / "file", OLD)
    assert (tmp_path / "file").read_text() == "mine"


@contextlib.contextmanager
def nobody():
    """Act as a user without rights where the tests run as root, who may write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_target_is_read_only():
    with tempfile.TemporaryDirectory() as directory:  # pytest's own folders are closed to others
        write_checkpoint(directory, OLD)
        os.chmod(directory, 0o555)
        try:
            with nobody(), pytest.raises(CheckpointError, match="may not write there"):
                write_checkpoint(directory, NEW)
        finally:
            os.chmod(directory, 0o700)
        check_content(Path(directory), OLD)


@pytest.mark.parametrize("before", ["5GB", 1700])
@pytest.mark.parametrize("after", ["5GB", 1700])
def test_saving_where_one_reads(tmp_path, before, after):
    write_checkpoint(tmp_path, OLD, max_shard_size=before)
    for _ in range(3):
        checkpoint = open_checkpoint(tmp_path)
        write_checkpoint(tmp_path, {name: checkpoint.lazy(name) for name in checkpoint}, max_shard_size=after)
    check_content(tmp_path, OLD)


def test_foreign_files_stay(tmp_path):
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "notes.txt", "model-card.safetensors"):
        (tmp_path / name).write_text(name)
    write_checkpoint(tmp_path, OLD, max_shard_size=1700)
    write_checkpoint(tmp_path, OLD)
    assert len(contents(tmp_path)) == 5


def test_small_files_are_replaced_whole(tmp_path):
    write_files(tmp_path, {"config.json": "old"})
    with pytest.raises(CheckpointError):
        write_files(tmp_path, {"config.json": "new", "a/b": "x"})
    assert contents(tmp_path) == {"config.json": b"old"}


# -- damaged and hostile safetensors ------------------------------------------------------------------------------------
def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HOSTILE = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "header longer than the file": safetensors({}, length=1000),
    "gigantic header": safetensors({}, length=2**63),
    "no JSON": safetensors(b"{no json"),
    "no UTF-8": safetensors(b'{"\xff": 1}'),
    "a list": safetensors(b"[]"),
    "deep": safetensors(b"[" * 100000),
    "a name twice": safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4)).encode(),) * 2), bytes(4)),
    "overlap": safetensors({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)),
    "hole": safetensors({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "beyond the end": safetensors({"a": entry(0, 4)}, bytes(3)),
    "bytes left over": safetensors({"a": entry(0, 4)}, bytes(5)),
    "unknown dtype": safetensors({"a": entry(0, 4, dtype="F31")}, bytes(4)),
    "wrong size": safetensors({"a": entry(0, 4, (2,))}, bytes(4)),
    "overflowing size": safetensors({"a": entry(0, 4, (2**31, 2**31, 2**31))}, bytes(4)),
    "negative shape": safetensors({"a": entry(0, 4, (-1, -1))}, bytes(4)),
    "negative offset": safetensors({"a": entry(-4, 0)}, bytes(4)),
    "offsets reversed": safetensors({"a": entry(4, 0)}, bytes(4)),
    "real shape": safetensors({"a": entry(0, 4, (1.0,))}, bytes(4)),
    "no offsets": safetensors({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "entry is a number": safetensors({"a": 5}),
    "metadata with numbers": safetensors({"__metadata__": {"a": 1}}),
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_safetensors(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(tmp_path)


def test_git_lfs_pointers_are_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(HOSTILE["a pointer of Git LFS"])
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_checkpoint(tmp_path)


def test_whatever_the_library_refuses_is_refused(tmp_path):
    """Single changed bytes of a good file: we accept nothing that the safetensors library does not."""
    (file,) = write_checkpoint(tmp_path, {"a": np.arange(3, dtype=np.float32), "b": np.arange(2)})
    good, refused = file.read_bytes(), 0
    length = 8 + int.from_bytes(good[:8], "little")
    for place in range(length):
        for byte in (0x00, 0x22, 0x31, 0xFF):
            file.write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
            try:
                with safe_open(file, framework="numpy"):
                    continue
            except SafetensorError:
                refused += 1
            with pytest.raises(CheckpointError):
                open_checkpoint(file)
    assert refused > length


def test_every_cut_is_refused(tmp_path):
    (file,) = write_checkpoint(tmp_path, {"a": np.arange(3, dtype=np.float32)})
    good = file.read_bytes()
    for end in range(len(good)):
        file.write_bytes(good[:end])
        with pytest.raises(CheckpointError):
            open_checkpoint(file)


# -- indexes and directories --------------------------------------------------------------------------------------------
def write_index(directory, places):
    content = places if isinstance(places, str) else json.dumps({"weight_map": places})
    (directory / "model.safetensors.index.json").write_text(content)


def test_all_missing_shards_are_listed(tmp_path):
    files = write_checkpoint(tmp_path, OLD, max_shard_size=1)
    for file in files:
        file.unlink()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert [problem.split()[-1] for problem in caught.value.problems] == [file.name for file in files]


def test_all_missing_tensors_are_listed(tmp_path):
    (file,) = write_checkpoint(tmp_path, OLD)
    file.rename(tmp_path / "x.safetensors")
    write_index(tmp_path, dict.fromkeys(["weight", "lost", "gone"], "x.safetensors"))
    with pytest.raises(CheckpointError, match=r"(?s)x\.safetensors: lost.*x\.safetensors: gone"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "c:\\x", "a\\..\\b"])
def test_an_index_cannot_leave_its_directory(tmp_path, place):
    write_checkpoint(tmp_path / "secret", OLD)
    (tmp_path / "dir").mkdir()
    write_index(tmp_path / "dir", {"weight": place})
    with pytest.raises(CheckpointError, match="refused"):
        open_checkpoint(tmp_path / "dir")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "[" * 99999]
)
def test_damaged_index(tmp_path, content):
    write_index(tmp_path, content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(tmp_path)


def test_directory_without_weights(tmp_path):
    for name in ("tf_model.h5", "model.ckpt", "megatron.zip", "mine.pt", "readme.md"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    expected = ("pytorch_model.bin.index.json", "readme.md", "tf_model.h5 (Keras", "megatron.zip (", "mine.pt (", "convert")
    assert all(part in str(caught.value) for part in expected)


def test_absent_path(tmp_path):
    with pytest.raises(CheckpointError, match="there is no"):
        open_checkpoint(tmp_path / "absent")


# -- PyTorch files ------------------------------------------------------------------------------------------------------
class Runs:
    """A pickle of this runs `function(*args)` when it is loaded by anything but a restricted reader."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def write_archive(path, program):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize(
    "make",
    [
        lambda mark: pickle.dumps(Runs(os.system, f"touch {mark}"), 2),
        lambda mark: pickle.dumps(Runs(eval, f"open({str(mark)!r}, 'w')"), 2),
        lambda mark: pickle.dumps({"weight": Runs(exec, f"open({str(mark)!r}, 'w')")}, 4),
        lambda mark: pickle.dumps(Runs(open, str(mark), "w"), 4),
        lambda mark: pickle.dumps(Runs(getattr, Runs(__import__, "os"), "system"), 2),
        lambda mark: b"cos\nsystem\n(V" + f"touch {mark}".encode() + b"\ntR.",
        lambda mark: b"cos.path\nos.system\n(V" + f"touch {mark}".encode() + b"\ntR.",
        lambda mark: b"(V" + f"touch {mark}".encode() + b"\nios\nsystem\n.",
        lambda mark: b"cbertkit.core.files.pickle_reader\npickle.loads\n.",
        lambda mark: b"ctorch._utils\n_rebuild_tensor_v2.make.__globals__\n.",
    ],
    ids=["system", "eval", "exec", "open", "getattr", "protocol 0", "dotted", "instance", "our module", "attribute walk"],
)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_pickles_execute_nothing(tmp_path, form, make):
    mark, path = tmp_path / "mark", tmp_path / "pytorch_model.bin"
    program = make(mark)
    if form == "zip":
        write_archive(path, program)
    else:
        start = [pickle.dumps(value, 2) for value in (pickle_reader.LEGACY_MAGIC, 1001, {"little_endian": True})]
        path.write_bytes(b"".join(start) + program)
    with pytest.raises(CheckpointError, match="nothing was executed"):
        open_checkpoint(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"ccollections\nOrderedDict\n}V__call__\nNsb.",
        b"ctorch._utils\n_rebuild_tensor_v2\n}Vmake\nNsb.",
        b"ctorch._utils\n_rebuild_tensor_v2\nN}Vmake\nNs\x86b.",
        b"ctorch\nFloatStorage\nN}Vdtype\nVF64\ns\x86b.",
        b"cargparse\nNamespace\nN}V__init__\nNs\x86b.",
        b"cbuiltins\nset\nN}Vadd\nNs\x86b.",
    ],
)
def test_pickles_change_nothing_of_ours(tmp_path, program):
    write_archive(tmp_path / "x.bin", program)
    before = {name: repr(value) for name, value in pickle_reader.GLOBALS.items()}
    with pytest.raises(CheckpointError):
        pickle_reader.load(tmp_path / "x.bin")
    assert {name: repr(value) for name, value in pickle_reader.GLOBALS.items()} == before
    assert pickle_reader.GLOBALS["torch.FloatStorage"].dtype == "F32"


def test_damaged_archives(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    for content in (b"", b"PK\x03\x04", b"\x80\x02.", pickle_reader.LEGACY_START, b"<html>", b"\0" * 1000):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            open_checkpoint(tmp_path)
    for program in (b"", b".", b"N.", b"}.", b"\x80\x05", b"(((", b"h\xff.", pickle.dumps([1, 2])):
        write_archive(path, program)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            open_checkpoint(tmp_path)


@pytest.fixture(params=["zip", "legacy"])
def torch_save(request):
    torch = pytest.importorskip("torch")
    return lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=request.param == "zip")


def check_against_torch(path, state):
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "pytorch_model.bin"
    assert checkpoint.names() == list(state)
    for name, tensor in state.items():
        expected = tensor.detach().float() if tensor.is_floating_point() else tensor
        np.testing.assert_array_equal(checkpoint.read(name), expected.numpy())
        assert checkpoint.info(name).shape == tuple(tensor.shape)


def make_state(torch):
    whole = torch.arange(60.0).reshape(6, 10)
    dtypes = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
    state = OrderedDict((name, torch.tensor([[0, 1, 2], [3, 4, 5]]).to(getattr(torch, name))) for name in dtypes)
    state |= {"part": whole[2:5, 3:7], "transposed": whole.T, "steps": whole[::2, 1::3], "shared": whole}
    state |= {"expanded": torch.ones(1, 3).expand(4, 3), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    state |= {"parameter": torch.nn.Parameter(torch.ones(3))}
    return state


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s}, lambda s: {"model": s, "args": argparse.Namespace(a=[1])}],
                         ids=["plain", "state_dict", "model"])
def test_torch_files(tmp_path, torch_save, wrap):
    torch = pytest.importorskip("torch")
    state = make_state(torch)
    torch_save(wrap(state), tmp_path / "pytorch_model.bin")
    check_against_torch(tmp_path, state)


def test_state_dict_of_a_module(tmp_path, torch_save):
    torch = pytest.importorskip("torch")
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    torch_save(state, tmp_path / "pytorch_model.bin")
    check_against_torch(tmp_path, state)


def test_torch_shards(tmp_path, torch_save):
    torch = pytest.importorskip("torch")
    state = {"a": torch.ones(3), "b": torch.zeros(2)}
    for name in state:
        torch_save({name: state[name]}, tmp_path / f"pytorch_model-{name}.bin")
    places = {name: f"pytorch_model-{name}.bin" for name in state}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    check_against_torch(tmp_path, state)


def test_other_objects_are_inert(tmp_path, torch_save):
    torch = pytest.importorskip("torch")
    value = {
        "args": argparse.Namespace(layers=3, names=["a"]), "number": np.float32(1.5), "array": np.arange(6).reshape(2, 3),
        "size": torch.Size([1, 2]), "dtype": torch.float16, "device": torch.device("cpu"), "set": {1, 2}, "bytes": b"\xff\0",
        "nested": [({"x": torch.ones(2)},)],
    }
    torch_save(value, tmp_path / "x.pt")
    found = pickle_reader.load(tmp_path / "x.pt")
    assert vars(found["args"]) == {"layers": 3, "names": ["a"]}
    assert found["number"] == np.float32(1.5) and found["array"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (found["size"], str(found["dtype"]), str(found["device"])) == ((1, 2), "torch.float16", "cpu")
    assert (found["set"], found["bytes"]) == ({1, 2}, b"\xff\0")
    assert found["nested"][0][0]["x"]().tolist() == [1, 1]


def test_every_cut_of_a_torch_file_is_refused(tmp_path, torch_save):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch_save({"weight": torch.ones(30)}, path)
    good = path.read_bytes()
    for end in range(0, len(good), 7):
        path.write_bytes(good[:end])
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            open_checkpoint(tmp_path)


def test_changed_bytes_of_a_pickle_never_escape(tmp_path):
    """Whatever becomes of a damaged pickle: our error, or arrays; never anything else."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.ones(30)[3:9], "args": argparse.Namespace(a=1)}, path, _use_new_zipfile_serialization=False)
    good = path.read_bytes()
    for place in range(len(good) - 130):
        for byte in (0x2E, 0x52, 0x62, good[place] ^ 1):
            path.write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
            try:
                checkpoint = open_checkpoint(path)
                arrays = [checkpoint.read(name) for name in checkpoint]
            except CheckpointError:
                continue
            assert all(isinstance(array, np.ndarray) for array in arrays)


@pytest.mark.parametrize(
    "offset, shape, stride",
    [
        (0, (31,), (1,)),
        (1, (30,), (1,)),
        (0, (2, 2), (29, 2)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (2**62, (1,), (1,)),
        (0, (2**61, 2**61), (0, 0)),
    ],
)
def test_tensors_beyond_their_storage(offset, shape, stride):
    storage = pickle_reader._Storage("0", "F32", 30, pickle_reader._Place())
    with pytest.raises(CheckpointError):
        pickle_reader._tensor(storage, offset, shape, stride, False, None)


def test_pickled_files_are_mapped(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.ones(30)}, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert np.shares_memory(checkpoint.read("weight"), checkpoint.read("weight"))
