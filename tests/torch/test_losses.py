"""Losses: every kind of problem, labels that do not count, and what a loss must never do."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bertkit.core.errors import InputError
from bertkit.core.variants import VARIANTS
from tests import cases
from tests.torch.common import assert_same, everything, features, make

each_loss = pytest.mark.parametrize(("variant", "task"), cases.LOSSES)
each_variant = pytest.mark.parametrize("variant", list(VARIANTS))
IGNORABLE = [(variant, task) for variant, task in cases.LOSSES if task not in ("ForSequenceClassification", "ForPreTraining")]


@each_loss
def test_the_loss_is_a_float32_scalar_that_trains_the_whole_model(variant, task):
    model, inputs = make(variant, task), everything(variant, task)
    output = model(**inputs)
    assert output.loss.shape == () and output.loss.dtype == torch.float32 and output[0] is output.loss
    output.loss.backward()
    body = model.base_model
    untouched = {name for name, p in model.named_parameters() if p.grad is None}
    assert not untouched
    assert body.encoder.layer[0].attention.self.value.weight.grad.any()
    assert model(**features(variant, task)).loss is None


@each_loss
def test_losses_are_computed_in_float32(variant, task):
    model, inputs = make(variant, task).bfloat16(), everything(variant, task)
    loss = model(**inputs).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(("variant", "task"), IGNORABLE)
def test_no_label_counts(variant, task):
    model, inputs = make(variant, task), everything(variant, task)
    for name, value in cases.labels(task).items():
        inputs[name] = torch.full(value.shape, cases.LENGTH if "positions" in name else -100)
    loss = model(**inputs).loss
    assert loss.item() == 0
    loss.backward()
    assert not any(p.grad.any() for p in model.parameters())


@each_loss
def test_labels_of_any_integer_dtype(variant, task):
    model, inputs = make(variant, task), everything(variant, task)
    narrow = {name: value.to(torch.int32) for name, value in inputs.items()}
    assert_same({"x": model(**narrow).loss}, {"x": model(**inputs).loss})


PROBLEMS = {
    "classes": ({"num_labels": 3}, torch.tensor([2, 0, 1]), F.cross_entropy),
    "classes, named": ({"num_labels": 3, "problem_type": "single_label_classification"},
                       torch.tensor([2, 0, 1]), F.cross_entropy),
    "several": ({"num_labels": 3}, torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 1]]), F.binary_cross_entropy_with_logits),
    "several, named, integers": ({"num_labels": 3, "problem_type": "multi_label_classification"},
                                 torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1]]), F.binary_cross_entropy_with_logits),
    "one value": ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0]), F.mse_loss),
    "one value, integers": ({"num_labels": 1}, torch.tensor([1, 0, 2]), F.mse_loss),
    "one value, a column": ({"num_labels": 1}, torch.tensor([[0.5], [-1.0], [2.0]]), F.mse_loss),
    "values": ({"num_labels": 3, "problem_type": "regression"}, torch.linspace(-1, 1, 9).view(3, 3), F.mse_loss),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@each_variant
def test_problem_types(variant, problem):
    changes, labels, expected = PROBLEMS[problem]
    model = make(variant, "ForSequenceClassification", **changes)
    output = model(**features(variant), labels=labels)
    wanted = labels if expected is F.cross_entropy else labels.reshape(output.logits.shape).float()
    assert_same({"loss": output.loss}, {"loss": expected(output.logits, wanted)})
    assert model.config.problem_type == changes.get("problem_type")  # transformers remembers the first call's


@each_variant
def test_the_problem_is_inferred_at_every_call(variant):
    model, inputs = make(variant, "ForSequenceClassification"), features(variant)
    for problem in ("classes", "several", "classes"):
        _, labels, expected = PROBLEMS[problem]
        output = model(**inputs, labels=labels)
        assert_same({"loss": output.loss}, {"loss": expected(output.logits, labels)})


@each_loss
def test_token_losses_are_means_over_the_labels_that_count(variant, task):
    if task not in ("ForMaskedLM", "ForTokenClassification", "ForCausalLM"):
        return
    model, inputs = make(variant, task), everything(variant, task)
    output, labels = model(**inputs), inputs["labels"]
    logits = output.logits
    if task == "ForCausalLM":
        logits, labels = logits[:, :-1], labels[:, 1:]
    counts = labels != -100
    assert 0 < counts.sum() < counts.numel()
    assert_same({"x": output.loss}, {"x": F.cross_entropy(logits[counts], labels[counts])})


@pytest.mark.parametrize("variant", ["megatron-bert", "mobilebert"])
def test_pretraining_is_the_sum_of_both_losses(variant):
    model, inputs = make(variant, "ForPreTraining"), everything(variant, "ForPreTraining")
    output, labels = model(**inputs), inputs["labels"]
    words = F.cross_entropy(output.prediction_logits.flatten(0, 1), labels.flatten())
    pairs = F.cross_entropy(output.seq_relationship_logits, inputs["next_sentence_label"])
    assert_same({"x": output.loss}, {"x": words + pairs})
    for missing in ("labels", "next_sentence_label"):
        assert model(**{name: value for name, value in inputs.items() if name != missing}).loss is None
    inputs["labels"] = torch.full_like(labels, -100)
    assert_same({"x": model(**inputs).loss}, {"x": pairs})


@pytest.mark.parametrize("variant", ["megatron-bert", "mobilebert"])
def test_the_older_name_of_the_next_sentence_label(variant):
    model, inputs = make(variant, "ForNextSentencePrediction"), everything(variant, "ForNextSentencePrediction")
    expected = model(**inputs)
    inputs["next_sentence_label"] = inputs.pop("labels")
    assert_same(model(**inputs), expected, 0)


@each_variant
def test_spans_behind_the_end_do_not_count(variant):
    model, inputs = make(variant, "ForQuestionAnswering"), features(variant)
    start, end = torch.tensor([2, cases.LENGTH + 5, 0]), torch.tensor([4, 6, cases.LENGTH])
    output = model(**inputs, start_positions=start, end_positions=end)
    counted = [0, 2]
    expected = (F.cross_entropy(output.start_logits[counted], start[counted])
                + F.cross_entropy(output.end_logits[:2], end[:2])) / 2
    assert_same({"x": output.loss}, {"x": expected})
    columns = model(**inputs, start_positions=start[:, None], end_positions=end[:, None])
    assert_same(columns, output, 0)
    assert model(**inputs, start_positions=start).loss is None


@each_loss
def test_labels_that_do_not_fit(variant, task):
    model, inputs = make(variant, task), everything(variant, task)
    for name in cases.labels(task):
        wrong = {**inputs, name: torch.zeros(cases.BATCH + 1, 7, dtype=torch.long)}
        with pytest.raises(InputError, match=r"labels: got shape \[4, 7\]|labels: got shape \[28\]"):
            model(**wrong)
