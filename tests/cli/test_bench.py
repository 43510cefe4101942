"""`bertkit bench`: engines take turns, one that fails is named with its reason, and the report says what was found."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest

from bertkit.bench import ibert, rounds
from bertkit.bench.machine import RATES
from bertkit.bench.report import as_text, draw_bars, draw_growth
from bertkit.bench.subjects import Setup, choose
from bertkit.core.errors import InputError
from tests.cli.common import run, run_json
from tests.fixtures import bench_suite

TINY = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48,
        "max_position_embeddings": 16, "type_vocab_size": 1}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the suite of NumPy's engines gives, at a small and at a large shape."""
    setup = Setup(str(tmp_path_factory.mktemp("bench")), 1, {"vocab_size": 30}, weights=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "TURN", 0.001)
        patch.setattr(rounds, "RATES", replace(RATES, needs=("no_such_module",)))
        seen = []
        subjects = list(bench_suite.SUBJECTS.values())
        found = rounds.measure(bench_suite.__name__, subjects, setup, [(1, 3), (2, 4)], 3,
                               lambda found: seen.append(len(found["shapes"])))
        assert seen == [0, 1, 2]
        return found


def rows_of(shape: dict) -> dict:
    return {row["name"]: row for row in shape["subjects"]}


def test_what_cannot_take_part_is_named_with_the_reason(found):
    assert found["absent"].keys() == {"refusing", "unmade", "missing"}
    assert found["absent"]["missing"] == "not installed: no_such_module"
    assert found["absent"]["unmade"] == "nothing: ValueError: cannot be made"
    assert found["absent"]["refusing"] == "ImportError: no such library"
    small, large = map(rows_of, found["shapes"])
    assert small["breaking"]["failed"] == large["breaking"]["failed"] == "RuntimeError: this shape is impossible"
    assert "its process ended with code 3" in small["dying"]["failed"]
    assert "seconds" in small["small"] and "too slow for more than 3 tokens" in large["small"]["failed"]


def test_figures(found):
    for shape in found["shapes"]:
        rows = rows_of(shape)
        for name in ("ones", "opposite"):
            row = rows[name]
            low, high = row["quartiles"]
            assert 0 < low <= row["seconds"] <= high < 1 and row["rounds"] == 3
            assert row["peak_bytes"] > 1e6
            assert row["speedup"] == rows["ones"]["seconds"] / row["seconds"]
        assert rows["ones"]["cosine"] == pytest.approx(1) and rows["opposite"]["cosine"] == pytest.approx(-1)
        assert shape["operations"] == shape["batch"] * shape["length"] * 100
        assert rows["ones"]["evidence"] == "BERTKIT_TEST=yes" and rows["opposite"]["evidence"] == "BERTKIT_TEST="


def test_the_report_names_everything(found):
    text = as_text(found)
    assert all(name in text for name in bench_suite.SUBJECTS)
    assert "batch 2 x length 4" in text and "fastest peers: fp32 ones" in text
    assert "small: left out: too slow for more than 3 tokens" in text
    assert "numpy" in text and "no-such-package" not in text


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")
def test_the_picture_shows_every_measured_engine(found, tmp_path):
    for draw in (draw_bars, draw_growth):
        draw(found, str(tmp_path / "picture.svg"), "Ones & others")
        assert "<svg" in (tmp_path / "picture.svg").read_text("utf-8")


def test_floors():
    rates = rounds.combine_rates([
        {"operations": {"int8": 100.0 * factor}, "bytes": {"int8": 1.0 * factor}} for factor in (1, 2, 9)])
    assert rates == {"operations": {"int8": 200.0}, "bytes": {"int8": 2.0}}
    assert rounds.floors(1000, 30, "int8", rates) == {"floor_operations": 5.0, "floor_bytes": 15.0}
    assert rounds.floors(1000, 30, "int8", {}) == {}


def test_subjects_are_chosen_by_pattern():
    subjects = list(ibert.SUBJECTS.values())
    assert choose(subjects, []) == subjects
    assert [s.name for s in choose(subjects, ["torch-eager", "openvino-b*"])] == ["torch-eager", "openvino-bf16"]
    with pytest.raises(InputError, match=r"no subject tensorrt.*\n.*openvino-int8"):
        choose(subjects, ["torch-eager", "tensorrt"])


def test_every_subject_is_made_of_something_that_can_be_made():
    assert {name for subject in ibert.SUBJECTS.values() for name in subject.made_of} == ibert.ARTEFACTS.keys()


@pytest.mark.parametrize(("words", "told"), [
    (["--only", "tensorrt"], "torch-eager"), (["--picture", "table.xls"], ".svg"), (["--lengths", "32,600"], "at most 512"),
], ids=" ".join)
def test_bad_input_is_told_before_anything_is_measured(words, told, capsys):
    code, out, err = run(capsys, "bench", "ibert", *words)
    assert (code, out) == (2, "") and told in err


@pytest.mark.parametrize("words", [["bert"], ["ibert", "--lengths", "0"], ["ibert", "--rounds", "many"]], ids=" ".join)
def test_bad_use(words, capsys):
    assert run(capsys, "bench", *words)[0] == 2


@pytest.mark.slow
def test_ibert(tmp_path, capsys, monkeypatch):
    """Two of bertkit's own engines, on a tiny model."""
    pytest.importorskip("torch")
    monkeypatch.setattr(ibert, "ROBERTA", TINY)
    monkeypatch.setattr(rounds, "TURN", 0.001)
    code, found = run_json(capsys, "bench", "ibert", "--layers", "1", "--lengths", "8", "--batches", "2", "--rounds", "2",
                           "--threads", "1", "--only", "bertkit-float,bertkit-torch-portable", "--keep", tmp_path)
    rows = rows_of(found["shapes"][0])
    assert code == 0 and not found["absent"]
    assert json.loads((tmp_path / "ibert-1" / "found.json").read_text("utf-8")) == found
    assert rows["bertkit-float"]["seconds"] > 0 and rows["bertkit-torch-portable"]["seconds"] > 0
    assert "level portable" in rows["bertkit-torch-portable"]["evidence"]
    assert rows["bertkit-float"]["floor_operations"] > rows["bertkit-torch-portable"]["floor_operations"] > 0
    assert (tmp_path / "ibert-1" / "frozen" / "config.json").exists()


@pytest.mark.slow
def test_yoso(capsys, monkeypatch):
    """Attention and a layer, forward and backward, at three lengths."""
    pytest.importorskip("torch")
    monkeypatch.setattr(rounds, "TURN", 0.001)
    subjects = "softmax,softmax-train,expectation,sample-8,sample-8-train,sample-32-tf-train,model-*"
    code, found = run_json(capsys, "bench", "yoso", "--layers", "1", "--lengths", "16,32,64", "--rounds", "1", "--threads", "1",
                           "--only", subjects)
    assert code == 0 and not found["absent"]
    for shape in found["shapes"]:
        rows = rows_of(shape)
        assert all(row["seconds"] > 0 for row in rows.values()) and len(rows) == 8
        assert rows["softmax-train"]["floor_operations"] > rows["softmax"]["floor_operations"]
        assert rows["expectation"]["cosine"] > 0.5
    assert "growth" not in as_text(found)
