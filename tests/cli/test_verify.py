"""bertkit verify: both frameworks on the same checkpoint, and a difference that it must find."""

from __future__ import annotations

import pytest

from bertkit.commands import frameworks
from tests import cases
from tests.cli.common import checkpoint, run, run_json

pytest.importorskip("torch")
pytest.importorskip("tensorflow")

CHOSEN = [("mobilebert", "ForPreTraining"), ("ibert", "ForMaskedLM"), ("ibert", "ForMultipleChoice"),
          ("yoso", "ForQuestionAnswering"), ("megatron-bert", "ForCausalLM")]


@pytest.mark.parametrize(("variant", "task"), CHOSEN)
def test_both_agree(variant, task, tmp_path, capsys):
    directory = checkpoint(tmp_path, variant, task)
    code, found = run_json(capsys, "verify", directory, "--text", "the cat", "--tolerance", "1e-5")
    assert code == 0 and found["ok"], found
    layers = [row for row in found["outputs"] if row["output"].startswith("hidden_states")]
    assert len(layers) == cases.config(variant).num_hidden_layers + 1
    assert any("logits" in row["output"] for row in found["outputs"])


def test_without_tokenizer_it_runs_random_ids(tmp_path, capsys):
    code, out, _ = run(capsys, "verify", checkpoint(tmp_path, "yoso", tokenizer=False, use_expectation=False))
    assert code == 0 and "random ids" in out and "use_expectation=True" in out
    code, _, err = run(capsys, "verify", tmp_path, "--text", "x")
    assert code == 2 and "holds no tokenizer" in err


def test_a_difference_is_1(tmp_path, capsys, monkeypatch):
    class Spoiled(frameworks.Runner):
        def __init__(self, opened, framework, **settings):
            super().__init__(opened, framework, **settings)
            if framework == "tf":
                kernel = self.model.encoder.layer[1].attention.self.query.kernel
                kernel.assign(kernel + 0.01)

    monkeypatch.setattr(frameworks, "Runner", Spoiled)
    directory = checkpoint(tmp_path, "megatron-bert")
    code, out, _ = run(capsys, "verify", directory)
    assert code == 1 and "OVER" in out
    code, found = run_json(capsys, "verify", directory)
    rows = {row["output"]: row["ok"] for row in found["outputs"]}
    assert code == 1 and rows["hidden_states[1]"] and not rows["hidden_states[2]"]
    assert run(capsys, "verify", directory, "--tolerance", "10")[0] == 0


def test_a_missing_head_is_no_difference_but_bad_use(tmp_path, capsys):
    code, _, err = run(capsys, "verify", checkpoint(tmp_path, "ibert"), "--task", "ForMaskedLM")
    assert code == 2 and "missing: lm_head.dense.weight" in err and "It has all of: IBertModel" in err


@pytest.mark.parametrize(("lacking", "told"), [("torch", "bertkit[torch]"), ("tensorflow", "bertkit[tf-cpu]")])
def test_missing_framework_is_2(lacking, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(frameworks, "find_spec", lambda name: None if name == lacking else object())
    code, _, err = run(capsys, "verify", checkpoint(tmp_path, "yoso"))
    assert code == 2 and told in err
