"""The compiled encoder at sizes that take its different ways: few rows and many, one thread and several, ragged lengths."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from bertkit.core import native, native_ibert
from tests.fixtures.frozen import FrozenCase, Tensors, make_case, saturated_weights, set_range
from tests.fixtures.native import LEVELS, arguments, needs_library, wanted

pytestmark = needs_library


def encode(case: FrozenCase, level: str, threads: int) -> np.ndarray:
    """The last hidden state."""
    return native_ibert.encode(*arguments(case, native_ibert.pack(case.config, case.tensors, level)), states=1, threads=threads)


@pytest.fixture(scope="module")
def many_rows():
    """So many that threads take chunks of rows; with eight they divide products all the same."""
    lengths = np.random.default_rng(0).integers(0, 41, 60).tolist()
    return make_case(batch=60, length=40, lengths=lengths, num_hidden_layers=2, hidden_size=144, num_attention_heads=3,
                     intermediate_size=500, initializer_range=0.05)


@pytest.fixture(scope="module")
def every_length():
    """Sequences of 0 ... 130 tokens, in no order."""
    lengths = np.random.default_rng(1).permutation(131).tolist()
    return make_case(batch=131, length=130, lengths=lengths, num_hidden_layers=1, hidden_size=20, num_attention_heads=2,
                     intermediate_size=24)


@pytest.fixture(scope="module")
def long_sequence():
    return make_case(batch=1, length=512, num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32,
                     max_position_embeddings=520)


@pytest.fixture(scope="module")
def deep_products():
    """Sums over so many inputs that a few more would be refused."""
    def edit(tensors: Tensors) -> None:
        saturated_weights(tensors)
        set_range(tensors, "encoder.layer.0.output.ln_input_act", 400.0)

    return make_case(batch=1, length=2, num_hidden_layers=1, hidden_size=16, num_attention_heads=1, intermediate_size=130_000,
                     edit=edit)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["many_rows", "every_length", "long_sequence", "deep_products"])
def test_sizes_give_the_oracles_integers(request, name, level, threads):
    case = request.getfixturevalue(name)
    np.testing.assert_array_equal(encode(case, level, threads), wanted(case, 1))


def test_every_phase_of_a_call_has_its_time(long_sequence):
    times = (ctypes.c_int64 * 8)()
    encode(long_sequence, LEVELS[-1], 2)
    native.library().functions.bk_ibert_times(times)
    assert all(time > 0 for time in times)
