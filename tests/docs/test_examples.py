"""The examples that train run from end to end in each framework. There is nothing to reach: few steps, no real weights."""

from __future__ import annotations

import importlib
import json
import re
import runpy
from pathlib import Path

import pytest

from bertkit.commands.frameworks import FRAMEWORKS
from tests.cli.common import TOKENIZER, write
from tests.conversion import bert
from tests.docs.pages import ROOT

EXAMPLES = ROOT / "docs" / "examples"
SETTINGS = {**bert.SETTINGS, "max_position_embeddings": 64, "architectures": ["BertModel"]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sentences of each half of the vocabulary, and which half it was."""
    words = [word for word in TOKENIZER.read_text("utf-8").splitlines() if word.isalpha()]
    halves = words[::2], words[1::2]
    lines = [f"{i % 2}\t{' '.join(halves[i % 2][i // 2 % 40:][:5 + i % 7])}" for i in range(40)]
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("\n".join(["label\ttext", *lines]), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:\w+ from ")  # that a new head is new
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_quantization(name: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    framework = FRAMEWORKS[name]
    pytest.importorskip(framework.module)
    monkeypatch.syspath_prepend(EXAMPLES)
    weights = importlib.import_module("semantic_search").WEIGHTS
    (data / weights).mkdir(parents=True)
    write(data / weights, SETTINGS, bert.tensors("Model", SETTINGS))
    words = ["--quick", "--framework", name, "--data", str(data), "--cache", str(data)]
    monkeypatch.setattr("sys.argv", ["quantization.py", *words])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(EXAMPLES / "quantization.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert done.value.code == 0
    found, learned = re.findall(rf"^{re.escape(framework.name)} (.*)$", shown, re.MULTILINE)
    sentences, *similarities = map(float, found.split())
    assert sentences == 40 and min(similarities) > 0.9
    assert re.fullmatch(r"( +\d+\.\d\d%){3}", learned.rstrip()), shown


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_long_documents(name: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(FRAMEWORKS[name].module)
    file = data / "found.json"
    words = ["--quick", "--framework", name, "--data", str(data), "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["long_documents.py", *words])
    for _ in range(2):  # the second time there is nothing left to do
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(EXAMPLES / "long_documents.py"), run_name="__main__")
        assert done.value.code == 0
    shown = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert [shown.count(f"{run['attention']}, seed 0 ==") for run in found] == [1] * 4
    first_losses = [run["losses"][0] for run in found]
    assert first_losses == pytest.approx([first_losses[0]] * 4, abs=0.05)  # the same weights and documents
    assert [len(run["final"]) for run in found] == [1, 1, 3, 3]
