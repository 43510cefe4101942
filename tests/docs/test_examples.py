"""The example that trains runs from end to end in each framework. Its weights are random here: there is nothing to reach."""

from __future__ import annotations

import importlib
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
