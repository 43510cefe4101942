"""What Hugging Face's Trainer, PEFT and accelerate ask of a model; none of them is needed here."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from torch import nn

import bertkit
from bertkit.core.errors import BertkitError
from bertkit.core.outputs import ModelOutput
from bertkit.core.variants import VARIANTS
from tests import cases
from tests.torch.common import everything, features, make

each_class = pytest.mark.parametrize(("variant", "task"), cases.CLASSES)


@each_class
def test_attributes_that_tools_read(variant, task):
    model = make(variant, task)
    assert model.config.use_return_dict is True and model.config.model_type == variant
    assert json.dumps(model.config.to_dict()) and model.config.to_dict()["model_type"] == variant
    assert (model.device.type, model.dtype, model.main_input_name) == ("cpu", torch.float32, "input_ids")
    assert model.supports_gradient_checkpointing and not model.is_gradient_checkpointing
    assert isinstance(model.get_input_embeddings(), nn.Module) and model.base_model_prefix == VARIANTS[variant].prefix
    assert isinstance(model.base_model, nn.Module) and model.config_class is type(model.config)
    for name in ("save_pretrained", "gradient_checkpointing_enable", "gradient_checkpointing_disable", "num_parameters"):
        assert callable(getattr(model, name))
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    assert model.is_gradient_checkpointing
    with pytest.raises(BertkitError, match="every_n_layers: got 2"):
        model.activation_checkpointing_enable(every_n_layers=2)
    # Trainer drops columns that `forward` does not name, and finds the labels by name.
    names = inspect.signature(model.forward).parameters
    assert "return_dict" in names and set(everything(variant, task)) <= set(names)


@each_class
def test_outputs_are_mappings_and_sequences(variant, task):
    output = make(variant, task)(**everything(variant, task))
    assert isinstance(output, dict) and isinstance(output, ModelOutput)
    assert output[0] is next(iter(output.values())) and output[1:] == output.to_tuple()[1:]
    first = next(iter(output))
    assert output[first] is getattr(output, first) is output.get(first)
    copied = type(output)({name: value.detach() for name, value in output.items() if isinstance(value, torch.Tensor)})
    assert first in copied  # how accelerate moves and converts outputs
    with pytest.raises(AttributeError, match="has no field 'logit'"):
        _ = output.logit
    leaves, tree = torch.utils._pytree.tree_flatten(output)
    assert type(torch.utils._pytree.tree_unflatten(leaves, tree)) is type(output)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_adapters_can_replace_linear_layers(variant):
    """What PEFT does: find linear layers by name, wrap them, and train only what it added."""

    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.down, self.up = base, nn.Linear(base.in_features, 2, False), nn.Linear(2, base.out_features, False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x, *rest):
            result = self.base(x, *rest)
            more = self.up(self.down(x))
            return (result[0] + more, *result[1:]) if isinstance(result, tuple) else result + more

    model = make(variant, "ForSequenceClassification").requires_grad_(False)
    inputs = everything(variant, "ForSequenceClassification")
    expected = model(**inputs).logits
    for path in [n for n, m in model.named_modules() if n.endswith((".query", ".value"))]:
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Adapter(model.get_submodule(path)))
    torch.testing.assert_close(model(**inputs).logits, expected)
    model.gradient_checkpointing_enable()

    def differentiate(module, inputs, result):
        (result[0] if isinstance(result, tuple) else result).requires_grad_()

    model.get_input_embeddings().register_forward_hook(differentiate)
    model.train()(**inputs).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained and all(".up." in name or ".down." in name for name in trained)


def test_every_public_name_is_there():
    for name in bertkit.__all__:
        assert getattr(bertkit, name) is not None
    assert {v.name + task for v in VARIANTS.values() for task in v.tasks} <= set(bertkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = bertkit.Nothing
    assert features("yoso")["input_ids"].shape == (cases.BATCH, cases.LENGTH)


class Wrapped(torch.nn.Module):
    """A linear layer inside another module, as adapters for fine-tuning wrap it."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base

    def forward(self, x, *args, **kwargs):
        result = self.base_layer(x, *args, **kwargs)
        return result.to(result.dtype)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_linear_layers_can_be_wrapped(variant):
    model, inputs = make(variant, "ForSequenceClassification"), features(variant)
    expected = model(**inputs).logits
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and ".layer." in name]
    for name in linear:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, Wrapped(model.get_submodule(name)))
    assert len(linear) >= 12
    torch.testing.assert_close(model(**inputs).logits, expected)
