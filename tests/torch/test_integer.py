"""The frozen I-BERT in PyTorch: the checks that both frameworks pass, and what only PyTorch has."""

from __future__ import annotations

import copy
import math
import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bertkit
from bertkit.core.checkpoint import open_checkpoint
from bertkit.core.native import PORTABLE, kernels_status, use_kernels
from bertkit.kernels import int8
from tests.fixtures.frozen import calibrated, make_config, make_inputs
from tests.fixtures.integer import CHECKS, FILE_CHECKS, frozen_and_simulated, named
from tests.torch.common import assert_same, flat, make, model_class, tensors


class Torch:
    """PyTorch as the shared checks see it."""

    def kernel(self, name: str, *arrays: Any, **options: Any) -> list[np.ndarray]:
        given = [torch.from_numpy(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a for a in arrays]
        result = getattr(int8, name)(*given, **options)
        return [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]

    def make(self, task: str, config: Any, given: dict[str, np.ndarray]) -> Any:
        with torch.device("meta"):
            model = model_class("ibert", task)(config)
        state = {name: torch.from_numpy(array) for name, array in given.items()}
        state |= {name: state[param.tied_to] for name, param in model.params().items() if param.tied_to}
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        return model.eval()

    @torch.no_grad()
    def call(self, model: Any, **inputs: Any) -> dict[str, np.ndarray]:
        options = {name: value for name, value in inputs.items() if not isinstance(value, np.ndarray)}
        arrays = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
        return {name: tensor.numpy() for name, tensor in flat(model(**tensors(arrays), **options)).items()}

    def freeze(self, model: Any) -> Any:
        return bertkit.freeze(model)

    def load(self, task: str, directory: Any, **options: Any) -> Any:
        return model_class("ibert", task).from_pretrained(directory, **options)


@pytest.mark.parametrize("check", CHECKS)
def test_shared(check):
    function, options = CHECKS[check]
    function(Torch(), **options)


@pytest.mark.parametrize("check", FILE_CHECKS)
def test_shared_files(check, tmp_path):
    function, options = FILE_CHECKS[check]
    function(Torch(), directory=tmp_path, **options)


# -- only in PyTorch ------------------------------------------------------------------------------------------------
def frozen(task: str = "Model", **values: Any) -> Any:
    """A small frozen model."""
    return frozen_and_simulated(Torch(), task, **values)[0]


def inputs_of(model: Any, **options: Any) -> dict[str, torch.Tensor]:
    """Ids, types, positions and a mask for it."""
    return tensors(named(make_inputs(model.config, 3, 9, lengths=[9, 4, 6], **options)))


@pytest.fixture(params=[PORTABLE, "native"])
def level(request):
    """Each kind of kernels, where it is there."""
    if request.param == "native" and kernels_status().library is None:
        pytest.skip("there are no compiled kernels here")
    with use_kernels(request.param):
        yield request.param


class NoFloats(TorchDispatchMode):
    """Refuses every operation that reads or writes a floating-point number; counts the others."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        seen = [leaf for leaf in tree_leaves((arguments, options, result)) if isinstance(leaf, torch.Tensor)]
        assert not any(tensor.is_floating_point() or tensor.is_complex() for tensor in seen), function
        self.count += 1
        return result


def test_no_floating_point_between_ids_and_the_last_hidden_state(level):
    """Neither in the values of an operation nor in its results."""
    model = frozen()
    given = inputs_of(model)
    arguments = [given[name] for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids")]
    model(**given)
    with NoFloats() as watched:
        states, _ = model.integers(*arguments, None, False, True)
    assert watched.count > (500 if level == PORTABLE else 1)
    assert [state.dtype for state in states] == [torch.int8] * (model.config.num_hidden_layers + 1)
    if level == PORTABLE:
        with NoFloats():
            model.integers(*arguments, torch.tensor([1, 0, 1, 1]), True, True)
    with pytest.raises(AssertionError), NoFloats():
        model(**given)


def test_every_kernel_gives_the_same(level):
    """Which ones serve cannot be seen: with probabilities, masks of pairs or of heads it is portable ones."""
    model = frozen("ForMaskedLM")
    given = inputs_of(model)
    plain = model(**given).logits
    pairs = {**given, "attention_mask": given["attention_mask"][:, None].expand(3, 9, 9)}
    ones = torch.ones(model.config.num_attention_heads)
    real = given["attention_mask"].bool()
    for other in (model(**given, output_attentions=True), model(**pairs), model(**given, head_mask=ones)):
        assert torch.equal(other.logits[real], plain[real])


def test_a_batch_of_nothing(level):
    model = frozen("ForTokenClassification")
    output = model(torch.zeros((0, 5), dtype=torch.long), output_hidden_states=True)
    assert output.logits.shape == (0, 5, 3) and output.hidden_states[0].shape == (0, 5, model.config.hidden_size)


def test_products_without_instructions_for_them(monkeypatch):
    monkeypatch.setitem(int8._EXACT, "cpu", False)
    with use_kernels(PORTABLE):
        for name in ("kernel-linear", "attention", "encoder-plain", "encoder-one-sided weights"):
            function, options = CHECKS[name]
            function(Torch(), **options)


@pytest.mark.slow
def test_saturating_products_are_found():
    """Where oneDNN has no instructions for 8 bits it saturates between two products; here it is told that it has none."""
    code = ("import os; from tests.torch.test_integer import *; wrong = not int8.is_exact('cpu');"
            "CHECKS['encoder-one-sided weights'][0](Torch(), name='one-sided weights'); print(wrong)")
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "SSE41", "BERTKIT_KERNELS": PORTABLE, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() in ("True", "False") and not done.returncode, done.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_leaves_integers_and_scales(dtype, level):
    model = frozen("ForTokenClassification")
    given = inputs_of(model)
    expected = model(**given, output_hidden_states=True)
    before = {name: tensor.clone() for name, tensor in model.base_model.state_dict().items()}
    model.to(dtype)
    assert model.dtype == dtype
    found = model(**given, output_hidden_states=True)
    for name, tensor in model.base_model.state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
    assert found.logits.dtype == dtype and torch.equal(found.hidden_states[-1], expected.hidden_states[-1])
    torch.testing.assert_close(found.logits.float(), expected.logits, atol=0.05, rtol=0.05)
    again = model.type(torch.float32)(**given, output_hidden_states=True)
    assert torch.equal(again.hidden_states[-1], expected.hidden_states[-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loaded_in_half_precision(dtype, tmp_path):
    model = frozen("ForMaskedLM")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert again.dtype == again(**inputs_of(model)).logits.dtype == dtype
    same = again.base_model.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.base_model.state_dict().items())


def test_loading_maps_the_file(tmp_path):
    model = frozen("ForMaskedLM")
    model.save_pretrained(tmp_path)
    again = bertkit.AutoModelForMaskedLM.from_pretrained(tmp_path)
    mapped = open_checkpoint(tmp_path).read("ibert.embeddings.word_embeddings.weight_integer").base
    assert type(again) is type(model) and mapped is not None
    table = again.get_input_embeddings().weight_integer.numpy()
    assert not table.flags.owndata
    again.save_pretrained(tmp_path)  # over what it is mapped from
    assert torch.equal(bertkit.AutoModelForMaskedLM.from_pretrained(tmp_path)(**inputs_of(model)).logits,
                       again(**inputs_of(model)).logits)


def test_weights_given_later_count(level):
    """What is made of the weights at the first call is made again, in copies, too; a state dict of floats is refused."""
    model, other = frozen("ForMaskedLM"), frozen("ForMaskedLM", seed=1)
    given = inputs_of(model)
    expected = [each(**given).logits for each in (model, other)]
    assert not torch.equal(*expected)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(**given).logits, expected[0])
        assert twin.load_state_dict(other.state_dict()) == ([], [])
        assert torch.equal(twin(**given).logits, expected[1]) and torch.equal(model(**given).logits, expected[0])
        twin.ibert.encoder.load_state_dict(model.ibert.encoder.state_dict())
        twin.ibert.embeddings.load_state_dict(model.ibert.embeddings.state_dict())
        hidden = [each(**given, output_hidden_states=True).hidden_states[-1] for each in (twin, model)]
        assert torch.equal(*hidden)
    floats = {name: tensor.float() if "query.weight" in name else tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"dtype of ibert\.encoder.*query\.weight_integer: got torch.float32"):
        model.load_state_dict(floats)


def test_changing_kernels_changes_nothing():
    if kernels_status().library is None:
        pytest.skip("there are no compiled kernels here")
    model = frozen()
    given = inputs_of(model)
    expected = model(**given).last_hidden_state
    for name, lacking in kernels_status().levels.items():
        if lacking is None:
            with use_kernels(name):
                assert torch.equal(model(**given).last_hidden_state, expected)


@pytest.mark.parametrize("change", [
    lambda block, new: block.weight_integer.copy_(new), lambda block, new: block.weight_integer[:1].copy_(new[:1]),
    lambda block, new: setattr(block, "weight_integer", new.clone()),
], ids=["in place", "in part", "replaced"])
def test_a_weight_that_is_changed_counts_at_the_next_call(change, level):
    model = frozen()
    given, block = inputs_of(model), model.encoder.layer[0].output.dense
    with torch.inference_mode():
        before = model(**given).last_hidden_state
        change(block, -block.weight_integer)
        after = model(**given).last_hidden_state
    with use_kernels("portable"), torch.inference_mode():
        assert torch.equal(model(**given).last_hidden_state, after)
    assert not torch.equal(before, after)


@pytest.mark.parametrize("task", ["ForMaskedLM", "ForSequenceClassification"])
def test_only_heads_are_trained(task, level):
    model = frozen(task).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    labels = torch.full((3, 9), 5) if task == "ForMaskedLM" else torch.tensor([0, 1, 2])
    with torch.inference_mode():
        model(**inputs_of(model))
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    model(**inputs_of(model), labels=labels).loss.backward()
    optimiser.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert changed and not any(name.startswith("ibert.") for name in changed)


def test_parameters_are_counted():
    model, simulated, _ = frozen_and_simulated(Torch(), "ForSequenceClassification")
    head = sum(p.numel() for p in model.classifier.parameters())
    assert model.num_parameters(only_trainable=True) == head and model.device.type == "cpu"
    sizes = {name: math.prod(param.shape) for name, param in model.params().items() if param.kind != "scale"}
    assert model.num_parameters() == sum(sizes.values()) > simulated.num_parameters()
    tables = sum(size for name, size in sizes.items() if "_embeddings." in name)
    assert model.num_parameters() - model.num_parameters(exclude_embeddings=True) == tables


def test_freezing_leaves_the_source_alone():
    _, source, _ = frozen_and_simulated(Torch(), "ForSequenceClassification")
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    result = bertkit.freeze(source.train())
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(1)
    assert source.training and not result.training and source.config.integer_format is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())
    with pytest.raises(bertkit.BertkitError, match="got YosoModel, expected a class of I-BERT from bertkit"):
        bertkit.freeze(make("yoso"))
    with pytest.raises(bertkit.CalibrationError, match="have no usable range"):
        bertkit.freeze(make("ibert"))


@pytest.mark.parametrize("pooled", [True, False])
def test_with_and_without_a_pooler(pooled, tmp_path):
    config = make_config(quant_mode=True)
    source = bertkit.IBertModel(config, add_pooling_layer=pooled)
    source.load_state_dict({name: torch.from_numpy(value) for name, value in calibrated(config, pooled=pooled).items()})
    model = bertkit.freeze(source)
    model.save_pretrained(tmp_path)
    again = bertkit.IBertModel.from_pretrained(tmp_path, add_pooling_layer=pooled)
    found, expected = again(**inputs_of(model)), model(**inputs_of(model))
    assert_same(found, expected, 0)
    assert (found.pooler_output is not None) == pooled and len(again(**inputs_of(model), return_dict=False)) == 2


@pytest.mark.slow
def test_compiled_without_a_graph_break(level):
    """Of fixed lengths, and of any."""
    torch._dynamo.reset()
    model = frozen("ForMaskedLM", num_hidden_layers=1)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        given = {name: tensor[:, : 9 - seed] for name, tensor in inputs_of(model, seed=seed).items()}
        assert_same(compiled(**given, output_hidden_states=True), model(**given, output_hidden_states=True), 0)
    other = frozen("ForMaskedLM", seed=1, num_hidden_layers=1)
    compiled.load_state_dict({f"_orig_mod.{name}": tensor for name, tensor in other.state_dict().items()})
    assert_same(compiled(**given), other(**given), 0)


@pytest.mark.slow
def test_exported(level):
    """Programs hold no operator of ours, so that they run where bertkit is not."""
    model = frozen("ForSequenceClassification", num_hidden_layers=1)
    given = inputs_of(model)
    batch, length = torch.export.Dim("batch", min=2, max=8), torch.export.Dim("length", min=2, max=20)
    shapes = {name: {0: batch, 1: length} for name in given}
    program = torch.export.export(model, (), given, dynamic_shapes=shapes, strict=False)
    assert not [node for node in program.graph.nodes if "bertkit" in str(node.target)]
    for other in (given, {name: tensor[:2, :6] for name, tensor in inputs_of(model, seed=3).items()}):
        assert_same({"x": program.module()(**other)["logits"]}, {"x": model(**other).logits}, 0)
