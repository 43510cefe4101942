"""What all commands have in common: help, exit codes, bad input, JSON, and that no framework is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bertkit import __version__
from bertkit.cli import COMMANDS, main
from bertkit.commands.terminal import format_size, format_table, show_json
from tests.cli.common import checkpoint, run


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_explains(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"bertkit {__version__}" in out if words == ["--version"] else "examples:" in out


@pytest.mark.parametrize("words", [
    [], ["fly"], ["convert", "only-one"], ["convert", "a", "b", "--dtype", "int3"], ["convert", "a", "b", "--to", "gpt"],
    ["predict", "a", "--task", "embed"], ["predict", "a", "--task", "sing", "--text", "x"],
    ["predict", "a", "--task", "embed", "--text", "x", "--top-k", "0"], ["verify", "a", "--tolerance", "much"],
], ids=" ".join)
def test_bad_use_is_2(words, capsys):
    assert main(words) == 2
    streams = capsys.readouterr()
    assert "usage: bertkit" in streams.err and not streams.out


def no_weights(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "yoso"}')


def config_is_no_json(directory: Path) -> None:
    checkpoint(directory, "yoso")
    (directory / "config.json").write_text("{model_type: yoso}")


def config_is_a_list(directory: Path) -> None:
    checkpoint(directory, "yoso")
    (directory / "config.json").write_text("[1]")


def no_config(directory: Path) -> None:
    checkpoint(directory, "yoso")
    (directory / "config.json").unlink()


def unknown_variant(directory: Path) -> None:
    checkpoint(directory, "yoso")
    (directory / "config.json").write_text('{"model_type": "gpt9"}')


def impossible_config(directory: Path) -> None:
    checkpoint(directory, "yoso")
    (directory / "config.json").write_text('{"model_type": "yoso", "hidden_size": -3, "num_hash": "many"}')


def truncated_weights(directory: Path) -> None:
    checkpoint(directory, "yoso")
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def keras_weights(directory: Path) -> None:
    no_weights(directory)
    (directory / "weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))


def damaged_h5(directory: Path) -> None:
    no_weights(directory)
    (directory / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))


def tensorflow_checkpoint(directory: Path) -> None:
    no_weights(directory)
    (directory / "model.ckpt.index").write_bytes(bytes(64))


def megatron_archive(directory: Path) -> None:
    with zipfile.ZipFile(directory / "release.zip", "w") as archive:
        archive.writestr("model_optim_rng.pt", b"")


BROKEN = {
    no_weights: ["holds no weights", "config.json", "Expected is a directory"],
    config_is_no_json: ["no JSON"],
    config_is_a_list: ["JSON list", "expected an object"],
    no_config: ["no config.json"],
    unknown_variant: ["gpt9", "mobilebert"],
    impossible_config: ["hidden_size: got -3", "num_hash: got 'many'"],
    truncated_weights: ["model.safetensors"],
    damaged_h5: ["tf_model.h5 is no HDF5 file, or is damaged"],
    keras_weights: ["weights.h5: Keras weights (HDF5)", "bertkit convert --help"],
    tensorflow_checkpoint: ["model.ckpt.index: a TensorFlow checkpoint"],
    megatron_archive: ["release.zip: a zip archive"],
}
USES = {"inspect": [], "verify": [], "convert": ["TARGET"], "predict": ["--task", "embed", "--text", "x"]}


@pytest.mark.parametrize("command", USES)
@pytest.mark.parametrize("spoil", BROKEN, ids=lambda f: f.__name__)
def test_bad_input_is_2_with_a_message(spoil, command, tmp_path, capsys):
    if command in ("verify", "predict"):
        pytest.importorskip("torch")
        pytest.importorskip("tensorflow")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    spoil(source)
    code, out, err = run(capsys, command, source, *(target if word == "TARGET" else word for word in USES[command]))
    assert (code, out) == (2, "")
    assert all(part in err for part in BROKEN[spoil]), err
    assert "Traceback" not in err and not target.exists()


@pytest.mark.parametrize(("name", "content", "told"), [
    ("model.h5", b"\x89HDF\r\n\x1a\n", "Keras weights"),
    ("old.pt", b"\x80\x02\x8a\x0a", "pickle"), ("notes.txt", b"hello", "not a format"),
])
def test_single_files_are_recognised(name, content, told, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    code, _, err = run(capsys, "convert", tmp_path / name, tmp_path / "target")
    assert code == 2 and told in err and "config.json" in err


def test_a_damaged_file_is_not_just_unknown(tmp_path, capsys):
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04")
    code, _, err = run(capsys, "inspect", tmp_path / "model.pth")
    assert code == 2 and "model.pth is damaged" in err


def test_missing_directory(tmp_path, capsys):
    code, _, err = run(capsys, "inspect", tmp_path / "nothing" / "here")
    assert code == 2 and "there is no directory" in err


def test_traceback_on_demand(tmp_path, capsys, monkeypatch):
    assert "Traceback" in run(capsys, "inspect", tmp_path / "a" / "b", "--traceback")[2]
    monkeypatch.setenv("BERTKIT_TRACEBACK", "1")
    assert "Traceback" in run(capsys, "inspect", tmp_path / "a" / "b")[2]


def test_convert_and_inspect_need_no_framework(tmp_path):
    """In a process in which importing either framework fails."""
    source = checkpoint(tmp_path / "source", "mobilebert")
    script = ("import sys; sys.modules.update(torch=None, tensorflow=None, keras=None)\n"
              "from bertkit.cli import main\n"
              f"codes = [main(['--help']), main(['convert', {str(source)!r}, {str(tmp_path / 'target')!r}]),\n"
              f"         main(['inspect', {str(tmp_path / 'target')!r}])]\n"
              "sys.exit(any(codes))")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_as_a_process(tmp_path):
    source = checkpoint(tmp_path / "source", "ibert")
    done = subprocess.run([sys.executable, "-m", "bertkit", "inspect", str(source), "--json"], capture_output=True, text=True,
                          env={**os.environ, "COLUMNS": "40"})
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["architecture"] == "IBertModel"
    words = [sys.executable, "-m", "bertkit", "inspect", str(tmp_path / "a" / "b")]
    failed = subprocess.run(words, capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.startswith("bertkit inspect: there is no directory")


def test_tables_fit_the_width():
    rows = [["encoder.layer.0.attention.self.query.weight", 12], ["b", 3]]
    table = format_table(["name", "count"], rows, right=[1], width=30)
    assert table.splitlines() == [
        "name                     count", "-----------------------  -----",
        "encoder.lay…uery.weight     12", "b                            3"]


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (90_868_376, "90.9 MB"), (2e12, "2.0 TB")])
def test_sizes(count, text):
    assert format_size(count) == text


def test_json_has_no_nan(capsys):
    show_json({"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5]}
