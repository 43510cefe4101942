"""PyTorch against TensorFlow, for every class: outputs, loss, gradients, a step of training, and files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bertkit.core.variants import VARIANTS
from tests import cases
from tests.equivalence import tf_side, torch_side

TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 5e-5
"""Wider: these random models are less well conditioned than the golden ones."""
RATE = 0.1

SWITCHES = [
    *((variant, task, {}) for variant, task in cases.CLASSES),
    *((variant, "ForMaskedLM", {**changes, "tie_word_embeddings": False}) for variant, changes in cases.KINDS if not
      changes.get("is_decoder")),
    ("ibert", "ForSequenceClassification", {"problem_type": "multi_label_classification"}),
    ("yoso", "ForSequenceClassification", {"num_labels": 1}),
    ("megatron-bert", "ForMaskedLM", {"pruned_heads": {0: [1, 2]}}),
    ("megatron-bert", "ForPreTraining", {"hidden_act": "gelu_new", "head_act": "gelu", "layer_norm_eps": 1e-5}),
    ("mobilebert", "ForMaskedLM", {"pruned_heads": {1: [0]}}),
    ("yoso", "ForMaskedLM", {"pruned_heads": {1: [0]}, "conv_window": 3, "use_expectation": False, "hash_seed": 1}),
]


def pair(variant, task, changes, directory):
    """The same model in both frameworks, and its file."""
    torch.manual_seed(0)
    first = torch_side.make(VARIANTS[variant].name + task, cases.config(variant, task, **changes)).eval()
    first.save_pretrained(directory)
    return first, type_of(variant, task).from_pretrained(directory)


def type_of(variant, task):
    import bertkit_tf

    return getattr(bertkit_tf, "TF" + VARIANTS[variant].name + task)


def inputs_for(variant, task, changes):
    lengths = (9, 6, 3) * (cases.CHOICES if task == "ForMultipleChoice" else 1)
    labels = cases.labels(task)
    if changes.get("problem_type") == "multi_label_classification":
        labels = {"labels": np.float32([[0, 1, 1], [1, 0, 0], [0, 0, 0]])}
    elif changes.get("num_labels") == 1:
        labels = {"labels": np.float32([0.5, -1.0, 2.0])}
    return {**cases.features(variant, task, lengths=lengths), **labels}


def differences(found, expected):
    """Largest difference of each array, relative to its largest value; what is zero but for rounding (the gradient of
    a key's bias) is measured against a twentieth of the largest value of all."""
    assert found.keys() == expected.keys()
    largest = {name: np.abs(value).max(initial=0) for name, value in expected.items()}
    floor = max(largest.values(), default=0) / 20
    return {name: np.abs(found[name] - expected[name]).max(initial=0) / max(largest[name], floor) for name in expected}


def check(found, expected, tolerance=TOLERANCE):
    worst = sorted(differences(found, expected).items(), key=lambda item: -item[1])[:5]
    assert not worst or worst[0][1] <= tolerance, worst




@pytest.mark.parametrize(("variant", "task", "changes"), SWITCHES, ids=cases.name_of)
def test_same_numbers_and_files(variant, task, changes, tmp_path):
    first, second = pair(variant, task, changes, tmp_path / "torch")
    inputs = inputs_for(variant, task, changes)
    flags = {"output_hidden_states": True, "output_attentions": True}
    outputs, gradients = torch_side.run(first, inputs, **flags)
    outputs_tf, gradients_tf = tf_side.run(second, inputs, **flags)
    check(outputs_tf, outputs)
    gradients = {name: value for name, value in gradients.items() if name in gradients_tf or np.any(value)}
    check(gradients_tf, gradients, GRADIENT_TOLERANCE)
    check(tf_side.step(second, RATE, gradients_tf), torch_side.step(first, RATE), GRADIENT_TOLERANCE)


def test_the_head_has_an_activation_of_its_own(tmp_path):
    inputs, logits = inputs_for("megatron-bert", "ForMaskedLM", {}), {}
    for act in (None, "gelu", "relu"):
        first, _ = pair("megatron-bert", "ForMaskedLM", {"hidden_act": "gelu", "head_act": act}, tmp_path / str(act))
        logits[act] = torch_side.run(first, inputs)[0]["logits"]
    assert np.array_equal(logits[None], logits["gelu"]) and not np.allclose(logits[None], logits["relu"], atol=1e-3)


@pytest.mark.parametrize(("variant", "task", "changes"), SWITCHES, ids=cases.name_of)
def test_files_come_back_byte_for_byte(variant, task, changes, tmp_path):
    first, second = pair(variant, task, changes, tmp_path / "torch")
    second.save_pretrained(tmp_path / "tf")
    type(first).from_pretrained(tmp_path / "tf").save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        contents = {(tmp_path / folder / name).read_bytes() for folder in ("torch", "tf", "again")}
        assert len(contents) == 1, name


def test_greedy_generation_is_the_same(tmp_path):
    first, second = pair("megatron-bert", "ForCausalLM", {}, tmp_path)
    ids = cases.features("megatron-bert")["input_ids"]
    mask = cases.padding((9, 7, 4))[:, ::-1].copy()
    found = second.generate(ids, mask, max_new_tokens=8).numpy()
    assert found.tolist() == first.generate(torch.from_numpy(ids), torch.from_numpy(mask), max_new_tokens=8).tolist()


@pytest.mark.parametrize("changes", [{"use_fast_hash": True}, {"use_fast_hash": False}], ids=cases.name_of)
def test_given_hash_functions_give_the_same_sample(changes, tmp_path):
    first, second = pair("yoso", "Model", {"use_expectation": False, **changes}, tmp_path)
    for ours, theirs in zip(first.encoder.layer, second.encoder.layer, strict=True):
        hashes = ours.attention.self.draw_hashes(torch.zeros(1, 4, 9, 4))
        ours.attention.self.hashes, theirs.attention.self.hashes = hashes, hashes.numpy()
    inputs = cases.features("yoso", lengths=(9, 6, 3))
    check(tf_side.run(second, inputs)[0], torch_side.run(first, inputs)[0])
