"""Directories that torch.distributed.checkpoint wrote, read without it: the same bits; and directories that are damaged."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from bertkit.convert.torch_dist import METADATA, DistributedCheckpoint
from bertkit.core.errors import CheckpointError
from bertkit.core.files.byte_source import FileBytes
from bertkit.core.tensors import stored

torch = pytest.importorskip("torch")
from torch.distributed.checkpoint.metadata import (  # noqa: E402
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from tests.conversion.originals import megatron_core as originals  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

NAME = "encoder.layers.self_attention.linear_qkv.weight"
WORDS = "embedding.word_embeddings.weight"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return originals.write_dist(tmp_path_factory.mktemp("dist"), originals.weights(), ranks=2) / "iter_0001000"


@pytest.fixture
def directory(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def bits(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@pytest.mark.parametrize("options", [
    {}, {"ranks": 2}, {"ranks": 4, "stacked": False}, {"ranks": 2, "whole": True}, {"prefix": "model.", "common": "embedded"},
], ids=str)
def test_every_bit_is_what_torch_loads(tmp_path, options):
    directory = originals.write_dist(tmp_path, originals.weights(tied=False), **options) / "iter_0001000"
    opened, expected = DistributedCheckpoint(directory), originals.load_distributed(directory)
    tensors = opened.tensors(opened.names)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert np.array_equal(stored(tensor.whole()())[0], bits(expected[name])), name
        for number, layer in enumerate(expected[name]):
            assert np.array_equal(stored(tensor.layer(number)())[0], bits(layer)), name


def test_a_state_that_torch_saved_by_itself(tmp_path):
    state = {"a": {"scalar": torch.tensor(7.0), "empty": torch.empty(0, 3), "matrix": torch.arange(6.0).reshape(2, 3).T},
             "steps": 3}
    torch.distributed.checkpoint.save(state, checkpoint_id=tmp_path / "made", no_dist=True)
    opened = DistributedCheckpoint(tmp_path / "made")
    assert sorted(opened.names) == ["a.empty", "a.matrix", "a.scalar"] and opened.objects == ["steps"]
    for name, tensor in opened.tensors(opened.names).items():
        assert np.array_equal(tensor.whole()(), state["a"][name.removeprefix("a.")].numpy())


@pytest.mark.parametrize("transposed", [False, True])
def test_of_a_large_stack_only_one_layer_is_read(tmp_path, monkeypatch, transposed):
    values = torch.arange(6 * 200 * 100, dtype=torch.int32).reshape(6, 200, 100)
    stack = values.transpose(0, 1).contiguous().transpose(0, 1) if transposed else values
    originals.save_distributed(tmp_path, [{"stack": originals.Chunks(tuple(values.shape), {(0, 0, 0): stack})}])
    tensor = DistributedCheckpoint(tmp_path).tensors(["stack"])["stack"]
    counts = []
    read = FileBytes.read
    monkeypatch.setattr(FileBytes, "read", lambda self, begin, end: counts.append(end - begin) or read(self, begin, end))
    for number in range(6):
        counts.clear()
        assert np.array_equal(tensor.layer(number)(), values[number].numpy())
        assert transposed or sum(counts) < 200 * 100 * 4 + 8192
    assert np.array_equal(tensor.whole()(), values.numpy())


def test_an_object(written):
    opened = DistributedCheckpoint(written)
    assert [*opened.load_object("optimizer/shard_0_1")] == [{"param_groups": []}]
    with pytest.raises(CheckpointError, match="does not say where it lies"):
        opened.load_object("nothing")


# -- damaged and hostile --------------------------------------------------------------------------------------------------
def edit(directory: Path, change) -> DistributedCheckpoint:
    """The directory with its metadata changed by a function."""
    metadata = pickle.loads((directory / METADATA).read_bytes())
    change(metadata)
    (directory / METADATA).write_bytes(pickle.dumps(metadata))
    return DistributedCheckpoint(directory)


def place(metadata, name=NAME, offset=(1, 0, 0)):
    return metadata.storage_data[MetadataIndex(name, torch.Size(offset))]


def moved(by: int):
    def change(metadata):
        chunk = next(chunk for chunk in metadata.state_dict_metadata[NAME].chunks if tuple(chunk.offsets) == (1, 0, 0))
        lies = metadata.storage_data.pop(MetadataIndex(NAME, chunk.offsets))
        chunk.offsets = torch.Size((1, by, 0))
        metadata.storage_data[MetadataIndex(NAME, chunk.offsets)] = lies

    return change


def sized(*sizes: int):
    def change(metadata):
        metadata.state_dict_metadata[NAME].chunks[0].sizes = torch.Size(sizes)

    return change


def set_place(**values):
    return lambda metadata: vars(place(metadata)).update(values)


def tiny_chunks(metadata):
    """A tensor that is cut into more pieces than anyone can look at."""
    entry = metadata.state_dict_metadata[WORDS]
    entry.chunks = [entry.chunks[0]] * 100_000


@pytest.mark.parametrize("change, words", [
    (lambda metadata: metadata.state_dict_metadata[NAME].chunks.pop(), "its chunks do not cover it"),
    (moved(30), r"reaches out of \[4, 48, 16\]"),
    (moved(12), "its chunks overlap"),
    (sized(1, 23, 16), "do not cover it"),
    (sized(1, 24), "no offsets and sizes for the 3 axes"),
    (sized(1, 24, -1), "no offsets and sizes"),
    (lambda metadata: metadata.storage_data.pop(MetadataIndex(NAME, torch.Size((1, 0, 0)))), "fewer than 8 chunks"),
    (tiny_chunks, "fewer than 100000 chunks"),
    (set_place(relative_path="../__0_0.distcp"), "which is no file of the directory"),
    (set_place(relative_path="/etc/passwd"), "which is no file of the directory"),
    (set_place(relative_path="..\\..\\windows"), "which is no file of the directory"),
    (set_place(relative_path=".."), "which is no file of the directory"),
    (set_place(relative_path="a\0b"), "which is no file of the directory"),
    (set_place(relative_path=None), "does not say where it lies"),
    (set_place(relative_path="__7_0.distcp"), "there is no __7_0.distcp"),
    (set_place(offset=10**9), "it lies at bytes 1000000000 to"),
    (set_place(offset=-1), "does not say where it lies"),
    (lambda metadata: vars(place(metadata)).update(vars(place(metadata, offset=(2, 24, 0)))), "two of its chunks lie at byte"),
    (set_place(length=100), "needs more than the 100 bytes"),
    (set_place(length=10**12), "it lies at bytes"),
    (set_place(transform_descriptors=["zstd"]), "written through"),
    (lambda metadata: setattr(metadata.state_dict_metadata[NAME], "size", torch.Size([2**40, 48, 16])), "do not cover it"),
    (lambda metadata: setattr(metadata.state_dict_metadata[NAME].properties, "dtype", "float"), "no shape, dtype"),
])
def test_what_is_wrong_is_named(directory, change, words):
    opened = edit(directory, change)
    with pytest.raises(CheckpointError, match=words) as caught:
        opened.tensors(opened.names)
    assert all(NAME in problem or WORDS in problem for problem in caught.value.problems)
    good = [name for name in opened.names if name not in (NAME, WORDS)]
    assert len(opened.tensors(good)) == len(good)


def test_holes_and_overlaps_that_add_up(directory):
    def change(metadata):
        entry = metadata.state_dict_metadata[WORDS]
        first, second = entry.chunks
        entry.chunks = [first, ChunkStorageMetadata(torch.Size((0, 0)), second.sizes)]
        metadata.storage_data[MetadataIndex(WORDS, torch.Size((1, 0)))] = place(metadata, WORDS, (0, 0))

    with pytest.raises(CheckpointError, match=f"{WORDS}.*chunks"):
        edit(directory, change).tensors([WORDS])


def other_dtype(metadata):
    metadata.state_dict_metadata[WORDS].properties.dtype = torch.float16


@pytest.mark.parametrize("change, words", [
    (other_dtype, r"got BF16 \[256, 16\], expected F16 \[256, 16\]"),
    (set_place(length=1600), r"__0_\d.distcp: chunk of encoder.layers.self_attention.linear_qkv.weight at \[1, 0, 0\]"),
    (set_place(offset=3), r"__0_\d.distcp: chunk of encoder.layers.self_attention.linear_qkv.weight at \[1, 0, 0\]"),
])
def test_what_is_only_seen_in_the_values(directory, change, words):
    opened = edit(directory, change)
    with pytest.raises(CheckpointError, match=words):
        for tensor in opened.tensors([NAME, WORDS]).values():
            tensor.whole()()


def test_a_file_that_ends_early(directory):
    file = directory / "__1_0.distcp"
    os.truncate(file, file.stat().st_size // 2)
    opened = DistributedCheckpoint(directory)
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp, which has"):
        opened.tensors(opened.names)


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


@pytest.mark.parametrize("content", [
    pickle.dumps(Attack()), pickle.dumps({"state_dict_metadata": {}}), pickle.dumps(3), b"", b"\x80", b"not a pickle",
    pickle.dumps(TensorStorageMetadata(None, None, [Attack()])),
])
def test_metadata_that_is_none(directory, content, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (directory / METADATA).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        DistributedCheckpoint(directory)
    assert not (tmp_path / "attacked").exists()


def long_name(metadata):
    metadata.state_dict_metadata["x" * 2000] = metadata.state_dict_metadata[WORDS]


def many_places(metadata):
    metadata.storage_data |= {MetadataIndex(WORDS, torch.Size((row, 1))): place(metadata) for row in range(10_001)}


@pytest.mark.parametrize("change", [long_name, many_places])
def test_metadata_without_end(directory, change):
    with pytest.raises(CheckpointError, match=r"\.metadata (was not written by|is refused)") as caught:
        edit(directory, change)
    assert len(str(caught.value)) < 1000


def test_a_chunk_with_a_program(directory):
    stream = io.BytesIO()
    torch.save([Attack(), torch.zeros(5000)], stream)
    blob = stream.getvalue()

    def change(metadata):
        (directory / "__9_0.distcp").write_bytes(blob)
        vars(place(metadata)).update(relative_path="__9_0.distcp", offset=0, length=len(blob))

    opened = edit(directory, change)
    with pytest.raises(CheckpointError, match="system"):
        opened.tensors([NAME])[NAME].whole()()
