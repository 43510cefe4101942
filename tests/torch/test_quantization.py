"""I-BERT in PyTorch: its building blocks, and the model in both modes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from bertkit import quantization
from bertkit.core.ibert import IBertConfig
from bertkit.core.quantization import CalibrationError
from bertkit.models.ibert import IBertForMaskedLM, IBertModel
from tests.fixtures.quantization import CHECKS


class Torch:
    """The blocks behind the interface of the shared checks."""

    def block(self, name: str, *arguments: Any, weights: Mapping[str, np.ndarray] | None = None, **options: Any) -> Any:
        block = getattr(quantization, name)(*arguments, **options)
        block.load_state_dict({n: torch.from_numpy(v) for n, v in (weights or {}).items()}, strict=False)
        return block

    def run(self, block: Any, *arrays: np.ndarray | None, training: bool = False) -> list[np.ndarray | None]:
        result = block.train(training)(*(None if a is None else torch.tensor(a) for a in arrays))
        return [None if value is None else value.detach().numpy() for value in result]

    def gradients(self, block: Any, upstream: np.ndarray, *arrays: np.ndarray | None, training: bool = True) -> tuple:
        first, *rest = (None if a is None else torch.tensor(a) for a in arrays)
        first = first.requires_grad_() if first.is_floating_point() else first
        (block.train(training)(first, *rest)[0] * torch.from_numpy(upstream)).sum().backward()
        weights = {n: None if p.grad is None else p.grad.numpy() for n, p in block.named_parameters()}
        return None if first.grad is None else first.grad.numpy(), weights

    def statistic(self, block: Any, name: str) -> float:
        return float(block.get_buffer(name))

    def frozen(self, block: Any) -> contextlib.AbstractContextManager:
        return quantization.frozen_statistics(block)


@pytest.mark.parametrize("name", CHECKS)
def test_block(name: str) -> None:
    check, options = CHECKS[name]
    check(Torch(), **options)


# -- the model ----------------------------------------------------------------------------------------------------
TINY = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.3}
IDS = torch.tensor([[0, 5, 6, 7, 8, 2], [0, 9, 10, 2, 1, 1]])
MASK = (IDS != 1).long()


@pytest.fixture(scope="module")
def calibrated() -> IBertModel:
    """A float model that has seen batches in training mode, in evaluation mode."""
    torch.manual_seed(0)
    model = IBertModel(IBertConfig(**TINY)).train()
    with torch.no_grad():
        for _ in range(12):
            model(torch.randint(3, 40, (4, 10)), token_type_ids=torch.randint(0, 2, (4, 10)))
    return model.eval()


def quantised(calibrated: IBertModel, **config: Any) -> IBertModel:
    model = IBertModel(IBertConfig(**TINY, quant_mode=True, **config))
    model.load_state_dict(calibrated.state_dict())
    return model.eval()


def error(model: IBertModel, calibrated: IBertModel, **inputs: Any) -> float:
    with torch.no_grad():
        found, true = (m(IDS, MASK, **inputs).last_hidden_state[MASK.bool()] for m in (model, calibrated))
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize("force_dequant", ["none", "gelu", "softmax", "layernorm", "nonlinear"])
@pytest.mark.parametrize("compat", [False, True])
def test_quantised_is_near_float(calibrated: IBertModel, force_dequant: str, compat: bool) -> None:
    model = quantised(calibrated, force_dequant=force_dequant, hf_compat_scales=compat)
    assert 0.003 < error(model, calibrated) < 0.12


@pytest.mark.parametrize(("nonlinear", "block"), [
    ("gelu", quantization.IntGELU), ("softmax", quantization.IntSoftmax), ("layernorm", quantization.IntLayerNorm)])
@pytest.mark.parametrize("force_dequant", ["none", "gelu", "softmax", "layernorm", "nonlinear"])
def test_force_dequant_frees_its_blocks(nonlinear: str, block: type, force_dequant: str) -> None:
    model = IBertModel(IBertConfig(**TINY, quant_mode=True, force_dequant=force_dequant))
    modes = {m.quant_mode for m in model.modules() if isinstance(m, block)}
    assert modes == {force_dequant not in (nonlinear, "nonlinear")}


@pytest.mark.parametrize("compat", [False, True])
def test_each_layer_reads_integers(calibrated: IBertModel, compat: bool) -> None:
    """The second layer's input is a multiple of its scale; in transformers the scale is another value's."""
    seen = []
    model = quantised(calibrated, hf_compat_scales=compat)
    query = model.encoder.layer[1].attention.self.query
    query.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    model(IDS, MASK)
    (x, scale), = seen
    off = (x / scale - torch.round(x / scale)).abs().max()
    assert off > 0.3 if compat else off < 1e-4


@pytest.mark.parametrize("compat", [False, True])
def test_token_types_with_embeddings(calibrated: IBertModel, compat: bool) -> None:
    model, types = quantised(calibrated, hf_compat_scales=compat), torch.ones_like(IDS)
    words = calibrated.embeddings.word_embeddings.weight[IDS]
    options = {"attention_mask": MASK, "position_ids": model.positions(IDS, None)}
    with torch.no_grad():
        first, second = (model(inputs_embeds=words, token_type_ids=t, **options)[0] for t in (types, 0 * types))
    assert torch.equal(first, second) == compat


def test_positions_skip_padding() -> None:
    model = IBertModel(IBertConfig(**TINY))
    assert model.positions(IDS, None).tolist() == [[2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 1, 1]]
    assert model.positions(None, torch.zeros(2, 3, 32)).tolist() == [[2, 3, 4]]
    assert model.max_tokens == 22


@pytest.mark.parametrize("quant_mode", [False, True])
def test_masked_rows_stay_finite(calibrated: IBertModel, quant_mode: bool) -> None:
    model = quantised(calibrated) if quant_mode else calibrated
    output = model(IDS, torch.tensor([[1] * 6, [0] * 6]), output_attentions=True)
    assert torch.isfinite(output.last_hidden_state).all()
    uniform = 43 / 256 if quant_mode else 1 / 6
    assert torch.allclose(output.attentions[0][1], torch.full((4, 6, 6), uniform))


def test_an_empty_range_is_an_error(calibrated: IBertModel) -> None:
    model = quantised(calibrated)
    model.encoder.layer[0].output.output_activation.x_max.fill_(torch.nan)
    with pytest.raises(CalibrationError, match=r"encoder\.layer\.0\.output\.output_activation: .* expected finite numbers"):
        model(IDS)
    model = quantised(calibrated)
    model.encoder.layer[1].output.output_activation.x_min.fill_(-1e-5)
    model.encoder.layer[1].output.output_activation.x_max.fill_(1e-5)
    with pytest.raises(CalibrationError, match=r"encoder\.layer\.1\.output\.output_activation: the range is empty"):
        model(IDS)
    model.train()(IDS)
    model.eval()(IDS)


@pytest.mark.parametrize("quant_mode", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_counts_a_batch_once(calibrated: IBertModel, quant_mode: bool, use_reentrant: bool) -> None:
    models = [IBertForMaskedLM(IBertConfig(**TINY, quant_mode=quant_mode)).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for model in models:
        model.load_state_dict(calibrated.state_dict(prefix="ibert."), strict=False)
        model(IDS, MASK, labels=IDS).loss.backward()
    for plain, checkpointed in zip(*(model.named_buffers() for model in models), strict=True):
        assert torch.equal(plain[1], checkpointed[1]), plain[0]
    for plain, checkpointed in zip(*(model.named_parameters() for model in models), strict=True):
        torch.testing.assert_close(plain[1].grad, checkpointed[1].grad, msg=plain[0])


def test_every_weight_learns(calibrated: IBertModel) -> None:
    model = IBertForMaskedLM(IBertConfig(**TINY, quant_mode=True)).train()
    model.load_state_dict(calibrated.state_dict(prefix="ibert."), strict=False)
    model(IDS, MASK, labels=IDS).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_autocast_leaves_the_arithmetic_alone(calibrated: IBertModel) -> None:
    model = quantised(calibrated)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model(IDS, MASK).last_hidden_state
    assert torch.equal(inside, model(IDS, MASK).last_hidden_state)


def test_bfloat16_weights(calibrated: IBertModel) -> None:
    output = quantised(calibrated).bfloat16()(IDS, MASK)
    assert output.last_hidden_state.dtype == output.pooler_output.dtype == torch.bfloat16
    expected = quantised(calibrated)(IDS, MASK).last_hidden_state
    assert (output.last_hidden_state - expected).norm() < 0.1 * expected.norm()


def test_pruned_heads_are_those_masked_out(calibrated: IBertModel) -> None:
    """Up to the scales of the output projection, which the pruned columns no longer widen."""
    pruned = quantised(calibrated)
    pruned.prune_heads({0: [1], 1: [0, 2]})
    mask = torch.tensor([[1.0, 0, 1, 1], [0, 1, 0, 1]])
    with torch.no_grad():
        masked = quantised(calibrated)(IDS, MASK, head_mask=mask).last_hidden_state
        assert (pruned(IDS, MASK).last_hidden_state - masked).norm() < 0.05 * masked.norm()


@pytest.mark.parametrize(("quant_mode", "training"), [(False, False), (False, True), (True, False), (True, True)])
def test_compiles_in_one_piece(calibrated: IBertModel, quant_mode: bool, training: bool) -> None:
    torch._dynamo.reset()
    model = IBertModel(IBertConfig(**{**TINY, "num_hidden_layers": 1}, quant_mode=quant_mode)).train(training)
    model.load_state_dict({n: v for n, v in calibrated.state_dict().items() if "layer.1." not in n})
    with quantization.frozen_statistics(model):
        plain = model(IDS, MASK).last_hidden_state
    before = float(model.encoder.layer[0].pre_output_act.x_max)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    found = compiled(IDS, MASK).last_hidden_state
    assert (float(model.encoder.layer[0].pre_output_act.x_max) != before) == training
    assert (found - plain).norm() < (0.05 if training else 1e-6) * plain.norm()
