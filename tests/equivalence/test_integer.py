"""The frozen I-BERT of PyTorch and of TensorFlow: the same integers, the same files, whichever kernels serve."""

from __future__ import annotations

import filecmp

import numpy as np
import pytest

from bertkit.core.ibert import IBERT
from bertkit.core.native import PORTABLE, kernels_status, use_kernels
from tests.fixtures.frozen import make_inputs
from tests.fixtures.integer import frozen_and_simulated, named
from tests.tf.test_integer import TensorFlow
from tests.torch.test_integer import Torch

TOLERANCE = 1e-5
"""Of heads, which compute in floating point."""


@pytest.fixture(params=[PORTABLE, "native"])
def level(request):
    """Each kind of kernels, where it is there."""
    if request.param == "native" and kernels_status().library is None:
        pytest.skip("there are no compiled kernels here")
    with use_kernels(request.param):
        yield request.param


def inputs_of(model, task):
    """A padded batch; choices have an axis of their own."""
    inputs = named(make_inputs(model.config, 4, 11, lengths=[11, 3, 0, 8]))
    if task == "ForMultipleChoice":
        inputs = {name: array.reshape(2, 2, 11) for name, array in inputs.items()}
    return inputs


@pytest.mark.parametrize("task", IBERT.tasks)
def test_same_integers_and_files(task, level, tmp_path):
    """What one freezes and saves the other loads; what both freeze and save is the same byte for byte."""
    sides = [(fw, frozen_and_simulated(fw, task)[0]) for fw in (Torch(), TensorFlow())]
    directories = [tmp_path / type(fw).__name__ for fw, _ in sides]
    for (_, model), directory in zip(sides, directories, strict=True):
        model.save_pretrained(directory)
    assert filecmp.cmpfiles(*directories, ["config.json", "model.safetensors"], shallow=False)[0] == [
        "config.json", "model.safetensors"]
    flags = {"output_hidden_states": True}
    inputs = inputs_of(sides[0][1], task)
    first = sides[0][0].call(sides[0][1], **inputs, **flags)
    for model in (sides[1][1], sides[1][0].load(task, directories[0])):
        second = sides[1][0].call(model, **inputs, **flags)
        assert first.keys() == second.keys()
        for name, value in first.items():
            tolerance = 0 if name.startswith(("hidden_states", "last_hidden")) else TOLERANCE * max(1, np.abs(value).max())
            np.testing.assert_allclose(second[name], value, rtol=0, atol=tolerance, err_msg=name)
    found = sides[0][0].call(sides[0][0].load(task, directories[1]), **inputs, **flags)
    assert all(np.array_equal(found[name], value) for name, value in first.items())


def test_same_vectors(level):
    """Embeddings that are passed in are quantised alike."""
    results = []
    for fw in (Torch(), TensorFlow()):
        model, _, _ = frozen_and_simulated(fw)
        vectors = np.random.default_rng(3).normal(0, 1, (2, 7, model.config.hidden_size)).astype(np.float32)
        types = np.array([[0, 1, 2, 0, 0, 1, 1], [2, 2, 1, 1, 0, 0, 0]])
        results.append(fw.call(model, inputs_embeds=vectors, token_type_ids=types, output_attentions=True))
    for name in ("last_hidden_state", "attentions.0", "attentions.1"):
        np.testing.assert_array_equal(*(result[name] for result in results))
