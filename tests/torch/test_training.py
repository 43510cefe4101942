"""Training and tracing: a plain loop, autocast, torch.compile without graph breaks, torch.export."""

from __future__ import annotations

import copy

import pytest
import torch

from bertkit.core.variants import VARIANTS
from tests import cases
from tests.torch.common import assert_same, everything, features, gradients, loss_of, make

each_variant = pytest.mark.parametrize("variant", list(VARIANTS))
each_loss = pytest.mark.parametrize(("variant", "task"), cases.LOSSES)


def train(model, inputs, steps, autocast=None):
    """The loss of each step."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@each_loss
def test_a_plain_loop_lowers_the_loss(variant, task):
    losses = train(make(variant, task, hidden_dropout_prob=0.05), everything(variant, task), 12)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_variant
def test_training_under_autocast(variant, dtype):
    task = "ForMaskedLM"
    inputs = everything(variant, task, lengths=(9, 4, 6))
    full = train(make(variant, task), inputs, 12)
    low = train(make(variant, task), inputs, 12, dtype)
    assert abs(low[0] - full[0]) < 0.05 * full[0] and low[-1] < 0.8 * low[0]


@pytest.mark.parametrize(("variant", "changes"), cases.KINDS, ids=cases.name_of)
def test_gradients_do_not_depend_on_padding(variant, changes):
    """What a padded row teaches is what the row alone teaches."""
    model = make(variant, "ForTokenClassification", **changes)
    inputs = everything(variant, "ForTokenClassification", lengths=(4, 4, 4))
    inputs["labels"][:, 4:] = -100
    model(**inputs).loss.backward()
    padded = gradients(model)
    model.zero_grad()
    model(**{name: value[:, :4] for name, value in inputs.items()}).loss.backward()
    alone = gradients(model)
    assert_same(padded, alone, 1e-5)


def check_compiled(variant, task, dynamic, **changes):
    """A compiled model gives the numbers of the plain one, forward and backward, in one graph."""
    torch._dynamo.reset()
    model = make(variant, task, **changes).train(variant != "ibert")  # ranges would move
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for length in (9, 7):
        lengths = (length, 4, 6) * (cases.CHOICES if task == "ForMultipleChoice" else 1)
        inputs = everything(variant, task, length=length, lengths=lengths)
        inputs |= {name: value[:, :length] for name, value in inputs.items() if name == "labels" and value.dim() == 2}
        outputs = []
        for each in (model, compiled):
            each.zero_grad()
            output = each(**inputs, output_hidden_states=True)
            loss_of(output).backward()
            outputs.append((output, gradients(each._orig_mod if each is compiled else each)))
        assert type(outputs[0][0]) is type(outputs[1][0])
        assert_same(outputs[1][0], outputs[0][0])
        assert_same(outputs[1][1], outputs[0][1], 1e-5)


@pytest.mark.slow
@each_loss
def test_compiled_without_a_graph_break(variant, task):
    check_compiled(variant, task, True, num_hidden_layers=1)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("variant", "changes"), cases.KINDS, ids=cases.name_of)
def test_each_kind_is_compiled_without_a_graph_break(variant, changes, dynamic):
    check_compiled(variant, "Model", dynamic, num_hidden_layers=1, **changes)


@pytest.mark.slow
@each_variant
def test_exported(variant):
    model, inputs = make(variant, "ForSequenceClassification"), features(variant, lengths=(9, 4, 6))
    batch, length = torch.export.Dim("batch", min=2, max=8), torch.export.Dim("length", min=2, max=20)
    shapes = {name: {0: batch, 1: length} for name in inputs}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
    for other in (inputs, features(variant, rows=2, length=6, seed=3, lengths=(6, 2))):
        assert_same({"x": program.module()(**other)["logits"]}, {"x": model(**other).logits})
