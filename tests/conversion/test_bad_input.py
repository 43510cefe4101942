"""Bad input of every kind, through the command line: an error that says what is wrong and where, and nothing else happens.

Nothing is executed, written or left behind: after each refusal the whole directory of the test is as it was, and neither
the target nor a temporary file is there.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertkit.cli import main, make_parser
from bertkit.commands import convert as command
from bertkit.convert import api, convert
from bertkit.convert.formats import FORMATS
from bertkit.core.checkpoint import open_checkpoint
from bertkit.core.errors import BertkitError, CheckpointError, ConfigError
from bertkit.core.files import pickle_reader

torch = pytest.importorskip("torch")
from tests.conversion import fuzz  # noqa: E402
from tests.conversion.originals import megatron  # noqa: E402

RANK = "release/mp_rank_00/model_optim_rng.pt"
ROOT = Path(__file__).parents[2]


# -- what a refusal is --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Gives a copy of an original of a family."""
    directory = tmp_path_factory.mktemp("originals")

    def copy(family: str, target: Path) -> Path:
        if family in ("google-mobilebert", "model-garden"):
            pytest.importorskip("tensorflow")
        if family == "transformers-tf":
            pytest.importorskip("h5py")
        if not (directory / family).exists():
            fuzz.FAMILIES[family](directory / family)
        shutil.copytree(directory / family, target)
        return fuzz.source_of(target, family)

    return copy


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch):
    """What an attack would write goes there, and is seen."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(tmp_path, capsys):
    """Checks that a command is refused for a reason, and that nothing else happens."""

    def check(source: Path, *words: Any, says: tuple[str, ...] | str = (), target: Path | None = None) -> str:
        given = ["convert", str(source), str(target or tmp_path / "target"), *map(str, words)]
        before = state(tmp_path)
        arguments = make_parser().parse_args(given)
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            command.run(arguments)
        assert state(tmp_path) == before
        message = str(caught.value)
        capsys.readouterr()
        assert main(given) == 2
        assert state(tmp_path) == before
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error and len(message) < 20_000
        for text in (says,) if isinstance(says, str) else says:
            assert text in message
        return message

    return check


def state(directory: Path) -> dict[str, Any]:
    """Everything below a directory: contents of files by name, and what the rest is."""
    found = {}
    for path in sorted(directory.rglob("*")):
        kind = os.lstat(path).st_mode & 0o170000
        found[path.relative_to(directory).as_posix()] = path.read_bytes() if kind == 0o100000 else kind
    return found


def megatron_directory(path: Path, **recipe: Any) -> Path:
    sizes = {"hidden": 8, "heads": 2, "layers": 2, "inner": 8, "positions": 4, "vocabulary": 16}
    chosen = megatron.Recipe(**{**sizes, **recipe})
    return megatron.write(path, megatron.weights(chosen), chosen)


def change(file: Path, edit: Callable[[Any], Any]) -> None:
    tree = torch.load(file, weights_only=False)
    edit(tree)
    torch.save(tree, file)


# -- archives -----------------------------------------------------------------------------------------------------------------
def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as opened:
        for name, content in members.items():
            entry = zipfile.ZipInfo("x")
            entry.filename, entry.compress_type = name, method
            opened.writestr(entry, content)
    return path


def test_zip_bomb(tmp_path, refused):
    bomb = archive(tmp_path / "bomb.zip", {RANK: bytes(64 * 2**20)})
    refused(bomb, says=("bomb.zip", "model_optim_rng.pt", "zip bomb"))


@pytest.mark.parametrize("claimed", [2**20, 2**31, 2**32 - 2])
def test_a_size_that_is_a_lie(tmp_path, refused, claimed):
    """Both headers claim more than there is: less than a bomb's ratio, more than the stream gives."""
    source = archive(tmp_path / "lie.zip", {RANK: os.urandom(4096)})
    content = bytearray(source.read_bytes())
    entry = content.find(b"PK\1\2")
    content[entry + 24:entry + 28] = struct.pack("<I", claimed)
    source.write_bytes(content)
    refused(source, "--from", "ngc-megatron", says=("lie.zip", "model_optim_rng.pt"))


def test_bombs_in_bombs(tmp_path, refused):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("archive/data.pkl", pickle.dumps({"model": {}}, 2))
        opened.writestr("archive/data/0", bytes(2**20))
    refused(archive(tmp_path / "outer.zip", {RANK: inner.getvalue()}), says="outer.zip!release")
    deeper = archive(tmp_path / "deeper.zip", {RANK: (tmp_path / "outer.zip").read_bytes()})
    refused(deeper, "--from", "ngc-megatron", says=("deeper.zip!release", "data.pkl"))


@pytest.mark.parametrize("form", ["torch", "archive"])
def test_storages_that_are_compressed(tmp_path, refused, form):
    """What torch never writes: a small file whose tensors are large."""
    source = megatron_directory(tmp_path / "source") / RANK
    with zipfile.ZipFile(source) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    archive(source, members)
    if form == "archive":
        source = archive(tmp_path / "all.zip", {RANK: source.read_bytes()}, zipfile.ZIP_STORED)
    refused(source, "--from", "ngc-megatron", says="compressed, which torch.save never does")


def test_millions_of_members(tmp_path, refused):
    """A directory that costs more memory than the model."""
    name = b"x"
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name
    count = 200_000
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, len(entry) * count, len(local), 0)
    (tmp_path / "many.zip").write_bytes(local + entry * count + end)
    refused(tmp_path / "many.zip", says=("many.zip", "directory claims"))


@pytest.mark.parametrize("name", ["../outside", "/etc/cron.d/x", "C:\\x", "a/../../x", "..\\x", "a/./../..", "\\\\host\\x", ""])
def test_names_that_lead_out_of_the_archive(tmp_path, refused, name):
    source = archive(tmp_path / "slip.zip", {RANK: b"x", name: b"canary"})
    refused(source, says=("slip.zip", "refused"))


def test_members_that_overlap_or_repeat(tmp_path, refused):
    source = archive(tmp_path / "twice.zip", {"a": b"x" * 100, "b": b"y" * 100}, zipfile.ZIP_STORED)
    content = source.read_bytes()
    second = content.rfind(b"PK\1\2")
    overlapping = bytearray(content)
    overlapping[second + 42:second + 46] = struct.pack("<I", 10)
    (tmp_path / "overlap.zip").write_bytes(overlapping)
    (tmp_path / "repeat.zip").write_bytes(content.replace(b"b", b"a"))
    refused(tmp_path / "overlap.zip", says=("overlap.zip", "overlaps"))
    refused(tmp_path / "repeat.zip", says=("repeat.zip", "appears twice"))


# -- truncation ---------------------------------------------------------------------------------------------------------------
FILES = {
    "ngc-megatron": "megatron.zip", "ngc-megatron-deflated": "megatron.zip", "megatron-lm-legacy": RANK,
    "megatron-core": "iter_0001000/mp_rank_00/model_optim_rng.pt", "megatron-dist": "iter_0001000/__0_0.distcp",
    "fairseq": "checkpoint_best.pt", "fairseq-legacy": "checkpoint_best.pt", "mlpen-yoso": "model/cp-0099.model",
    "google-mobilebert": "mobilebert_variables.ckpt.data-00000-of-00001", "safetensors": "model.safetensors",
    "model-garden": "bert_model.ckpt-1.index", "sharded-safetensors": "model-00002-of-00002.safetensors",
    "sharded-bin": "pytorch_model-00001-of-00002.bin", "transformers-tf": "tf_model.h5",
}
"""Of each family a file that its weights are in."""


@pytest.mark.parametrize("family", FILES)
def test_truncated_at_any_length(tmp_path, originals, family):
    source = originals(family, tmp_path / "source")
    file = tmp_path / "source" / FILES[family]
    content = file.read_bytes()
    lengths = {0, 1, 4, 30, len(content) - 1, *(len(content) * part // 8 for part in range(1, 8))}
    for length in sorted(lengths):
        file.write_bytes(content[:length])
        before = state(tmp_path)
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            convert(source, tmp_path / "target", source_type=fuzz.format_of(family))
        assert state(tmp_path) == before
        assert "source" in str(caught.value) or file.name in str(caught.value)
    file.write_bytes(content)
    convert(source, tmp_path / "target", source_type=fuzz.format_of(family))


# -- pickles ------------------------------------------------------------------------------------------------------------------
CANARY = "open('canary', 'w').close()"
ATTACKS: dict[str, bytes] = {
    "os.system": b"cos\nsystem\n(S'touch canary'\ntR",
    "posix.system": b"cposix\nsystem\n(S'touch canary'\ntR",
    "subprocess": b"csubprocess\ncheck_call\n((S'touch'\nS'canary'\nltR",
    "builtins.eval": f"cbuiltins\neval\n(S\"{CANARY}\"\ntR".encode(),
    "builtins.exec": f"cbuiltins\nexec\n(S\"{CANARY}\"\ntR".encode(),
    "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(S'touch canary'\ntR",
    "instance": b"(S'touch canary'\nios\nsystem\n",
    "stack global": b"\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attacks_are_real(name, tmp_path):
    pickle.loads(b"\x80\x04" + ATTACKS[name] + b".")
    assert (tmp_path / "canary").exists()


def infected(program: bytes, attack: bytes) -> bytes:
    """The pickle, which on its way does one thing more and forgets the result."""
    steps, rest = fuzz.instructions(program)
    return b"".join(steps[:-1]) + attack + b"0." + rest


def infect_torch(content: bytes, attack: bytes) -> bytes:
    if not content.startswith(b"PK"):
        first = [fuzz.instructions(content)]
        for _ in range(2):
            first.append(fuzz.instructions(first[-1][1]))
        return b"".join(b"".join(steps) for steps, _ in first) + infected(first[-1][1], attack)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            inner = old.read(info)
            if info.filename.endswith("/data.pkl"):
                inner = infected(inner, attack)
            elif info.filename.endswith(".pt"):
                inner = infect_torch(inner, attack)
            new.writestr(info, inner)
    return made.getvalue()


PLACES = {
    "ngc-megatron": "megatron.zip", "ngc-megatron-deflated": "megatron.zip",
    "megatron-lm": "release/mp_rank_01_001/model_optim_rng.pt", "megatron-lm-legacy": RANK,
    "megatron-core": "iter_0001000/mp_rank_01/model_optim_rng.pt",
    "megatron-dist": "iter_0001000/common.pt", "fairseq": "checkpoint_best.pt", "fairseq-legacy": "checkpoint_best.pt",
    "mlpen-yoso": "model/cp-0099.model", "mlpen-yoso-training": "model/cp-0001.cp",
    "sharded-bin": "pytorch_model-00002-of-00002.bin",
}


@pytest.mark.parametrize(("family", "attack"), [
    *(("fairseq", attack) for attack in ATTACKS),
    *((family, attack) for family in PLACES for attack in ("os.system", "stack global")),
])
def test_pickles_are_not_executed(tmp_path, originals, refused, family, attack):
    source = originals(family, tmp_path / "source")
    file = tmp_path / "source" / PLACES[family]
    file.write_bytes(infect_torch(file.read_bytes(), ATTACKS[attack]))
    refused(source, *from_(family), says=(file.name, "nothing was executed"))


@pytest.mark.parametrize("damage", ["cut", "infected"])
def test_damage_is_named_where_no_format_is(tmp_path, originals, refused, damage):
    source = originals("fairseq", tmp_path / "source")
    file = source / "checkpoint_best.pt"
    content = file.read_bytes()
    file.write_bytes(content[:len(content) // 2] if damage == "cut" else infect_torch(content, ATTACKS["os.system"]))
    refused(source, says=(file.name, "is damaged" if damage == "cut" else "os.system"))


def from_(family: str) -> tuple[str, ...]:
    """How a user would name the format of a family."""
    format = fuzz.format_of(family)
    return () if format is None else ("--from", format)


@pytest.mark.parametrize("attack", ["posix.system", "builtins.eval"])
@pytest.mark.parametrize("place", [".metadata", "__0_0.distcp"])
def test_pickles_of_distributed_checkpoints_are_not_executed(tmp_path, originals, refused, place, attack):
    source = originals("megatron-dist", tmp_path / "source")
    iteration = source / "iter_0001000"
    if place == ".metadata":
        (iteration / place).write_bytes(infected((iteration / place).read_bytes(), ATTACKS[attack]))
    else:  # a chunk is replaced by an infected one, at the end of the file
        metadata = pickle.loads((iteration / ".metadata").read_bytes())
        info = next(info for index, info in metadata.storage_data.items()
                    if info.relative_path == place and index.fqn == "encoder.layers.mlp.linear_fc1.weight")
        content = (iteration / place).read_bytes()
        chunk = infect_torch(content[info.offset:info.offset + info.length], ATTACKS[attack])
        info.offset, info.length = len(content), len(chunk)
        (iteration / place).write_bytes(content + chunk)
        (iteration / ".metadata").write_bytes(pickle.dumps(metadata, 2))
    refused(source, says=(place, "nothing was executed"))


def test_chunks_that_share_their_bytes(tmp_path, originals, refused):
    """A thousand chunks at one place would make a tensor a thousand times as large as the file."""
    iteration = originals("megatron-dist", tmp_path / "source") / "iter_0001000"
    metadata = pickle.loads((iteration / ".metadata").read_bytes())
    name = "embedding.word_embeddings.weight"
    first, second = (info for index, info in metadata.storage_data.items() if index.fqn == name)
    second.relative_path, second.offset, second.length = first.relative_path, first.offset, first.length
    (iteration / ".metadata").write_bytes(pickle.dumps(metadata, 2))
    refused(tmp_path / "source", says=(name, "two of its chunks"))


def test_strides_of_axes_on_which_nobody_steps(tmp_path):
    """Found by fuzzing: numpy cannot take a stride of 2**61 numbers, and needs none along an axis of length 1."""
    torch.save({"weight": torch.ones(1, 3)}, tmp_path / "weights.pt")
    content = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "weights.pt") as old, zipfile.ZipFile(content, "w") as new:
        for info in old.infolist():
            stride = b"\x8a\x08" + (2**61).to_bytes(8, "little")
            new.writestr(info, old.read(info).replace(b"K\x03K\x01\x86", stride + b"K\x01\x86"))
    (tmp_path / "weights.pt").write_bytes(content.getvalue())
    np.testing.assert_array_equal(pickle_reader.load(tmp_path / "weights.pt")["weight"](), np.ones((1, 3)))


# -- shards -------------------------------------------------------------------------------------------------------------------
def layers(**changes: Any) -> Callable[[Any], Any]:
    """Puts tensors among those of the layers."""
    return lambda tree: tree["model"]["language_model"]["encoder"].update(
        {f"layers.{name}": value for name, value in changes.items()})


def set_argument(name: str, value: Any) -> Callable[[Any], Any]:
    return lambda tree: setattr(tree["args"], name, value)


def scale_norm(tree: Any) -> None:
    tree["model"]["language_model"]["encoder"]["final_layernorm.weight"].add_(1)


DIFFERENCES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "iteration": (lambda tree: tree.update(iteration=7), "iteration"),
    "learning rate's seed": (set_argument("seed", 99), "seed"),
    "layers": (set_argument("num_layers", 3), "num_layers"),
    "version": (lambda tree: tree.update(checkpoint_version=2.0), "version"),
    "values": (scale_norm, "final_layernorm.weight"),
    "shape": (layers(**{"0.mlp.dense_h_to_4h.bias": torch.ones(3)}), "dense_h_to_4h.bias"),
    "dtype": (layers(**{"0.mlp.dense_h_to_4h.bias": torch.ones(4)}), "dense_h_to_4h.bias"),
    "absent tensor": (lambda tree: tree["model"]["language_model"]["encoder"].pop("layers.1.mlp.dense_h_to_4h.bias"),
                      "dense_h_to_4h.bias"),
    "unknown tensor": (layers(**{"1.mlp.gate": torch.ones(4)}), "layers.1.mlp.gate"),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_shards_of_different_runs(tmp_path, refused, difference):
    source = megatron_directory(tmp_path / "source", tensor=2)
    edit, named = DIFFERENCES[difference]
    change(source / "release" / "mp_rank_01" / "model_optim_rng.pt", edit)
    refused(source, says=named)


@pytest.mark.parametrize(("lost", "named"), [
    ("mp_rank_01_000", "mp_rank_01"), ("mp_rank_00_001", "mp_rank_00_001"), ("mp_rank_00_000", "mp_rank_00_000"),
    ("*_001", "pipeline"), ("mp_rank_01_*", "tensor"),
])
def test_missing_ranks_and_stages(tmp_path, refused, lost, named):
    source = megatron_directory(tmp_path / "source", tensor=2, pipeline=2)
    for directory in (source / "release").glob(lost):
        shutil.rmtree(directory)
    refused(source, says=named)


def test_two_files_of_a_rank(tmp_path, refused):
    source = megatron_directory(tmp_path / "source", tensor=2)
    shutil.copytree(source / "release" / "mp_rank_01", source / "release" / "mp_rank_001")
    message = refused(source, "--from", "megatron-lm")
    assert "mp_rank_001" in message or "mp_rank_01" in message


def test_the_same_rank_twice(tmp_path, refused):
    """A copy of rank 0 in the place of rank 1 would give a model that is wrong, and nothing would show it."""
    source = megatron_directory(tmp_path / "source", tensor=2)
    shutil.copy(source / RANK, source / "release" / "mp_rank_01" / "model_optim_rng.pt")
    refused(source, says="mp_rank_01")


CONTRADICTIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "hidden_size": (set_argument("hidden_size", 16), "hidden_size"),
    "heads that do not divide": (set_argument("num_attention_heads", 3), "num_attention_heads"),
    "no heads": (set_argument("num_attention_heads", 0), "num_attention_heads"),
    "layers": (set_argument("num_layers", 5), "num_layers"),
    "too many layers": (set_argument("num_layers", 10**9), "num_layers"),
    "inner size": (set_argument("ffn_hidden_size", 9), "ffn_hidden_size"),
    "positions": (set_argument("max_position_embeddings", 5), "max_position_embeddings"),
    "vocabulary": (set_argument("padded_vocab_size", 15), "padded_vocab_size"),
    "eps": (set_argument("layernorm_epsilon", -1.0), "eps"),
    "eps is text": (set_argument("layernorm_epsilon", "small"), "eps"),
    "a version to come": (lambda tree: tree.update(checkpoint_version=4.0), "checkpoint_version"),
    "transposed": (lambda tree: tree["model"]["language_model"].update(embedding={"word_embeddings": {
        "weight": torch.ones(8, 16)}}), "expected [2, 16]"),
    "a norm is a matrix": (layers(**{"0.input_layernorm.weight": torch.ones(8, 8)}), "ln.weight: got [8, 8]"),
    "scalar": (layers(**{"0.attention.query_key_value.weight": torch.tensor(1.0)}), "query_key_value"),
    "unknown layer": (layers(**{"0.mlp.router.weight": torch.ones(2)}), "layers.0.mlp.router.weight"),
    "layer number": (layers(**{"99.mlp.dense_h_to_4h.bias": torch.ones(8)}), "encoder.layer.2"),
    "a text for a tensor": (layers(**{"0.input_layernorm.weight": "ones"}), "layernorm.weight"),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_contradictory_arguments_and_shapes(tmp_path, refused, contradiction):
    source = megatron_directory(tmp_path / "source")
    edit, named = CONTRADICTIONS[contradiction]
    change(source / RANK, edit)
    refused(source, "--from", "megatron-lm", says=named)


# -- vocabularies -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("words", [("--vocab-size", 17), ("--vocab-size", 0), ("--vocab-size", -1), ("--vocab-size", 10**30)])
def test_vocabulary_sizes_that_cannot_be(tmp_path, refused, words):
    refused(megatron_directory(tmp_path / "source"), *words, says="vocab")


def test_vocabulary_files_of_another_length(tmp_path, refused):
    source = megatron_directory(tmp_path / "source")
    (tmp_path / "vocab.txt").write_text("".join(f"word{number}\n" for number in range(17)))
    refused(source, "--vocab", tmp_path / "vocab.txt", says=("vocab.txt", "17"))
    (tmp_path / "empty.txt").write_text("")
    refused(source, "--vocab", tmp_path / "empty.txt", says="empty.txt")
    refused(source, "--vocab", tmp_path / "absent.txt", says="absent.txt")
    refused(source, "--vocab", tmp_path, says=str(tmp_path))


# -- numbers ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none(tmp_path, refused, dtype, value):
    source = megatron_directory(tmp_path / "source", dtype=getattr(torch, dtype))

    def edit(tree: Any) -> None:
        encoder = tree["model"]["language_model"]["encoder"]
        encoder["final_layernorm.weight"][3] = value
        encoder["layers.0.mlp.dense_4h_to_h.weight"][0, :2] = value

    change(source / RANK, edit)
    refused(source, says=("source", "bert.encoder.ln.weight: 1 of 8", "bert.encoder.layer.0.output.dense.weight: 2 of 64",
                          "--allow-nonfinite"))
    refused(source, "--dtype", "float32", "--to", "megatron-lm", says="bert.encoder.ln.weight: 1 of 8")
    convert(source, tmp_path / "target", allow_nonfinite=True)
    with open_checkpoint(tmp_path / "target") as opened:
        np.testing.assert_equal(opened.read("bert.encoder.ln.weight")[3], np.float32(value))


# -- what the source is -------------------------------------------------------------------------------------------------------
def test_two_formats_at_once(tmp_path, refused, originals):
    source = megatron_directory(tmp_path / "source")
    originals("safetensors", tmp_path / "other")
    for file in (tmp_path / "other").iterdir():
        shutil.copy(file, source)
    refused(source, says=("megatron", "transformers", "--from", "2 formats"))
    assert convert(source, tmp_path / "one", source_type="transformers").architecture == "YosoForMaskedLM"
    assert convert(source, tmp_path / "two", source_type="megatron-lm").architecture == "MegatronBertForPreTraining"


@pytest.mark.parametrize("name", ["unknown.bin", "model.onnx", "model.msgpack", "weights.npz", "notes.txt"])
def test_an_unknown_format(tmp_path, refused, name):
    (tmp_path / name).write_bytes(b"what is this? " * 10)
    refused(tmp_path / name, says=(name, "Expected"))
    (tmp_path / "directory").mkdir()
    shutil.move(tmp_path / name, tmp_path / "directory")
    refused(tmp_path / "directory", says=("directory", "Expected"))


@pytest.mark.parametrize("wrong", [name for name in FORMATS if not name.startswith(("transformers", "megatron", "ngc"))])
def test_from_of_another_format(tmp_path, refused, wrong):
    refused(megatron_directory(tmp_path / "source"), "--from", wrong, says="source")


@pytest.mark.parametrize("family", ["fairseq", "safetensors"])
@pytest.mark.parametrize("wrong", ["megatron-lm", "ngc-megatron", "megatron-core", "megatron-dist"])
def test_megatron_of_something_else(tmp_path, refused, originals, family, wrong):
    refused(originals(family, tmp_path / "source"), "--from", wrong, says="source")


def test_from_of_no_format(tmp_path, refused):
    refused(megatron_directory(tmp_path / "source"), "--from", "caffe", says=("source", "--from"))


class Waiting(BaseException):
    """The time is over."""


@contextlib.contextmanager
def soon(seconds: int = 20) -> Iterator[None]:
    """Ends what waits for a file that nobody writes."""

    def stop(*_: Any) -> None:
        raise Waiting  # no error that anybody handles

    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


@pytest.mark.parametrize("kind", ["fifo", "loop", "dangling", "empty file", "empty directory", "absent"])
@pytest.mark.parametrize("name", ["source", "model.pt", "model.zip", "model.ckpt.index"])
def test_sources_that_are_no_files(tmp_path, refused, kind, name):
    source = tmp_path / name
    make_special(source, kind)
    with soon():
        refused(source, says=name)


def make_special(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind in ("loop", "dangling"):
        path.symlink_to(path.name if kind == "loop" else "nothing")
    elif kind == "empty file":
        path.touch()
    elif kind == "empty directory":
        path.mkdir()


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/stdin"])
def test_devices(tmp_path, refused, device):
    with soon():
        refused(Path(device), says=device)


@pytest.mark.parametrize("kind", ["fifo", "loop", "empty directory", "empty file"])
@pytest.mark.parametrize(("family", "name"), [
    ("megatron-lm-legacy", RANK), ("megatron-lm-legacy", "latest_checkpointed_iteration.txt"),
    ("safetensors", "model.safetensors"), ("safetensors", "config.json"),
    ("sharded-bin", "pytorch_model-00001-of-00002.bin"), ("fairseq", "checkpoint_best.pt"),
    ("sharded-safetensors", "model.safetensors.index.json"), ("megatron-dist", "iter_0001000/.metadata"),
    ("megatron-dist", "iter_0001000/__0_0.distcp"), ("mlpen-yoso", "model/cp-0099.model"), ("transformers-tf", "tf_model.h5"),
    ("google-mobilebert", "mobilebert_variables.ckpt.index"), ("google-mobilebert", "bert_config.json"),
    ("google-mobilebert", "mobilebert_variables.ckpt.data-00000-of-00001"),
])
def test_directories_with_what_is_no_file(tmp_path, originals, capsys, family, name, kind):
    source = originals(family, tmp_path / "source")
    (source / name).unlink()
    make_special(source / name, kind)
    before = state(tmp_path)
    with soon():
        code = main(["convert", str(source), str(tmp_path / "target"), *from_(family)])
    if code:  # the tracker file is not always needed
        assert code == 2 and state(tmp_path) == before and "source" in capsys.readouterr().err
    else:
        assert name == "latest_checkpointed_iteration.txt"


# -- options ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("words", "says"), [
    (("--tensor-parallel", 2), "tensor_parallel"), (("--decoder", "own"), "decoder"),
    (("--zero-padding-row",), "zero_padding_row"),
    (("--checkpoint-version", 3), "checkpoint_version"), (("--to", "megatron-lm", "--tensor-parallel", 0), "tensor_parallel"),
    (("--to", "megatron-lm", "--tensor-parallel", -1), "tensor_parallel"),
    (("--to", "megatron-lm", "--tensor-parallel", 3), "tensor_parallel"),
    (("--to", "megatron-lm", "--tensor-parallel", 10**30), "tensor_parallel"),
    (("--to", "megatron-lm", "--pipeline-parallel", 0), "pipeline_parallel"),
    (("--to", "megatron-lm", "--pipeline-parallel", 3), "pipeline_parallel"),
    (("--to", "megatron-lm", "--pipeline-parallel", 10**30), "pipeline_parallel"),
    (("--to", "megatron-lm", "--checkpoint-version", 9), "checkpoint_version"),
    (("--to", "megatron-lm", "--checkpoint-version", -1), "checkpoint_version"),
    (("--to", "megatron-core", "--tensor-parallel", 3), "tensor_parallel"),
    (("--to", "megatron-core", "--tensor-parallel", -1), "tensor_parallel"),
    (("--to", "megatron-core", "--tensor-parallel", 0), "tensor_parallel"),
    (("--to", "megatron-core", "--pipeline-parallel", 0), "pipeline_parallel"),
    (("--to", "fairseq",), "megatron-bert"), (("--to", "mlpen-yoso",), "megatron-bert"),
    (("--to", "google-mobilebert",), "megatron-bert"), (("--to", "transformers-tf",), "megatron-bert"),
    (("--to", "ibert",), "ibert"), (("--task", "ForAnything"), "ForAnything"),
    (("--max-shard-size", "much"), "max_shard_size"), (("--max-shard-size", "-1"), "max_shard_size"),
    (("--max-shard-size", "0"), "max_shard_size"),
    (("--config", "{"), "--config"), (("--config", "[]"), "--config"), (("--config", "absent.json"), "absent.json"),
    *((("--config", settings), says) for settings, says in [
        ('{"num_attention_heads": 0}', "num_attention_heads"), ('{"hidden_size": 1e400}', "hidden_size"),
        ('{"hidden_size": "8"}', "hidden_size"), ('{"num_hidden_layers": 1000000000000}', "num_hidden_layers"),
        ('{"num_attention_heads": 3}', "num_attention_heads"), ('{"hidden_act": "softplus"}', "softplus"),
    ]),
], ids=str)
def test_options_that_cannot_be(tmp_path, refused, words, says):
    refused(megatron_directory(tmp_path / "source"), *words, says=says)


def test_architectures_that_are_no_list(tmp_path, originals):
    """They only help where the tensors do not tell."""
    for family in ("safetensors", "transformers-tf"):
        source = originals(family, tmp_path / family)
        settings = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**settings, "architectures": 7}))
        assert convert(source, tmp_path / f"{family} as ours").architecture.endswith("ForMaskedLM")


@pytest.mark.parametrize(("settings", "says"), [
    ({"num_hidden_layers": 10**12}, "num_hidden_layers"), ({"vocab_size": 2**62}, "vocab_size"),
    ({"hidden_size": -16}, "hidden_size"), ({"model_type": "t5"}, "t5"), ({"model_type": None}, "model_type"),
    ({"model_type": ["yoso"]}, "model_type"),
    ({"num_attention_heads": 3}, "num_attention_heads"), ({"hidden_act": 7}, "hidden_act"),
    ({"num_hidden_layers": 999}, "num_hidden_layers: 999, but there are only 26 tensors"),
    ({"model_type": "mobilebert", "hidden_size": 512, "num_feedforward_networks": 90, "num_hidden_layers": 999},
     "num_feedforward_networks: 90"),
    ({"label2id": {"a": float("inf")}}, "label2id"), ({"num_hidden_layers": 4}, "missing: yoso.encoder.layer.2"),
])
def test_config_files_that_cannot_be(tmp_path, refused, originals, settings, says):
    source = originals("safetensors", tmp_path / "source")
    file = source / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with soon():
        refused(source, says=says)


# -- targets ------------------------------------------------------------------------------------------------------------------
WRITERS = [None, "megatron-lm", "megatron-core"]


def to(writer: str | None) -> tuple[str, ...]:
    return () if writer is None else ("--to", writer)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_target_that_is_a_file(tmp_path, refused, writer, overwrite):
    source = megatron_directory(tmp_path / "source")
    (tmp_path / "target").write_text("mine")
    refused(source, *to(writer), *overwrite, says=("target", "is a file"))
    refused(source, *to(writer), *overwrite, target=tmp_path / "target" / "below", says="target")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_target_that_exists(tmp_path, refused, writer):
    source = megatron_directory(tmp_path / "source")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "thesis.tex").write_text("mine")
    refused(source, *to(writer), says=("target", "--overwrite"))
    if writer is not None:  # its directory is replaced as a whole: not one with other things
        refused(source, *to(writer), "--overwrite", says=("target", "something else"))


def test_overwriting_what_one_has_written(tmp_path):
    source, target = megatron_directory(tmp_path / "source"), tmp_path / "target"
    convert(source, target, to="megatron-lm", tensor_parallel=2)
    convert(source, target, to="megatron-lm", overwrite=True)
    assert len(list(target.rglob("model_optim_rng.pt"))) == 1
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.tex").write_text("mine")
    convert(source, own, overwrite=True)
    assert (own / "thesis.tex").read_text() == "mine" and (own / "model.safetensors").exists()


@pytest.mark.parametrize("writer", WRITERS)
def test_a_checkpoint_over_its_own_source(tmp_path, refused, writer):
    source = megatron_directory(tmp_path / "source")
    before = state(source)
    refused(source, *to(writer), target=source, says="--overwrite")
    assert state(source) == before


SOURCES = {"google-mobilebert": "google-mobilebert", "transformers": "transformers-tf", "transformers-tf": "transformers-tf",
           "fairseq": "fairseq", "mlpen-yoso": "safetensors", "megatron-lm": "megatron-lm", "megatron-core": "megatron-core",
           None: "megatron-lm"}
"""By the writer, the family of an original that it can write."""


@pytest.mark.parametrize("writer", SOURCES)
@pytest.mark.parametrize("present", [False, True])
def test_a_full_disk(tmp_path, refused, originals, writer, present):
    """The kernel itself refuses to write on."""
    source = originals(SOURCES[writer], tmp_path / "source")
    target = tmp_path / "target"
    if present:
        convert(source, target, to=writer)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, before[1]))
        refused(source, *to(writer), "--overwrite", says=("cannot write", "target"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_parent_that_is_read_only(writer):
    from tests.core.test_checkpoint import nobody

    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders are closed to others
        os.chmod(scratch, 0o755)
        source, parent = megatron_directory(Path(scratch) / "source"), Path(scratch) / "parent"
        for path in (source, *source.rglob("*")):
            os.chmod(path, 0o755)
        parent.mkdir(mode=0o555)
        with nobody(), pytest.raises(CheckpointError, match=r"cannot write .*target[\s\S]*may not write"):
            convert(source, parent / "target", to=writer)
        assert not any(parent.iterdir())


# -- in the middle ------------------------------------------------------------------------------------------------------------
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have turned off for what runs behind it
from bertkit.cli import main
from bertkit.convert import api
strange = api._strange
def slow(value):
    print("reading", flush=True)
    time.sleep(0.3)
    return strange(value)
api._strange = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_ctrl_c(tmp_path, writer, present):
    source, target = megatron_directory(tmp_path / "source"), tmp_path / "target"
    if present:
        convert(source, target, to=writer)
    before = state(tmp_path)
    words = ["convert", source, target, "--overwrite", *to(writer)]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in error and "Traceback" not in error
    assert state(tmp_path) == before


@pytest.mark.parametrize("family", ["ngc-megatron", "megatron-lm", "megatron-dist", "google-mobilebert", "safetensors"])
@pytest.mark.parametrize("fate", ["deleted", "cut"])
def test_a_source_that_changes_while_it_is_read(tmp_path, originals, monkeypatch, family, fate):
    """Between opening and reading: a file that is gone may still be read to its end, one that is cut is an error."""
    source = originals(family, tmp_path / "source")
    files = [file for file in (tmp_path / "source").rglob("*") if file.is_file() and file.suffix in (
        ".zip", ".pt", ".distcp", ".safetensors", ".data-00000-of-00001")]
    plan = api.plan_loading

    def change_then_plan(*arguments: Any) -> Any:
        for file in files:
            file.unlink() if fate == "deleted" else os.truncate(file, file.stat().st_size // 8)
        return plan(*arguments)

    monkeypatch.setattr(api, "plan_loading", change_then_plan)
    assert files
    try:
        convert(source, tmp_path / "target", source_type=fuzz.format_of(family))
    except BertkitError as error:
        assert "source" in str(error) or any(file.name in str(error) for file in files)
        assert {path.name for path in tmp_path.iterdir()} == {"source"}
    else:
        assert fate == "deleted" and (tmp_path / "target" / "model.safetensors").exists()


@pytest.mark.parametrize("writer", WRITERS)
def test_a_checksum_that_is_wrong_is_found_in_the_middle(tmp_path, refused, writer):
    """The target is being written when the last tensor turns out to be damaged."""
    source = megatron_directory(tmp_path / "source")
    packed = megatron.zipped(tmp_path / "source.zip", source, deflate=True)
    shutil.rmtree(source)
    content = bytearray(packed.read_bytes())
    entry = content.find(b"PK\1\2")
    while content[entry + 46:].find(RANK.encode()) != 0:
        entry = content.find(b"PK\1\2", entry + 4)
    content[entry + 16:entry + 20] = struct.pack("<I", zlib.crc32(b"something else"))
    packed.write_bytes(content)
    refused(packed, *to(writer), says=("source.zip", "checksum"))
