"""I-BERT's encoder by the compiled kernels: the oracle's integers at every level, with any threads; no wrong number ever."""

from __future__ import annotations

import numpy as np
import pytest

from bertkit.core import native, native_ibert
from bertkit.core.errors import BackendError, InputError
from tests.fixtures.frozen import CASES
from tests.fixtures.native import FOUND, LEVELS, arguments, best_packed, needs_library, wanted

pytestmark = needs_library


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]()


@pytest.fixture(scope="module")
def ragged():
    case = CASES["ragged"]()
    return case, arguments(case, best_packed(case))


# -- the same integers ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("level", native.LEVELS)
def test_every_level_gives_the_oracles_integers(case, level, threads):
    if level not in LEVELS:
        pytest.skip(FOUND.levels[level])
    packed = native_ibert.pack(case.config, case.tensors, level)
    states = case.config.num_hidden_layers + 1
    hidden = native_ibert.encode(*arguments(case, packed), states=states, threads=threads)
    np.testing.assert_array_equal(hidden, wanted(case, states))


def test_the_last_state_alone_is_the_last_of_all(ragged):
    case, arrays = ragged
    np.testing.assert_array_equal(native_ibert.encode(*arrays, states=1, threads=2), wanted(case, 1))


def test_a_row_is_the_same_alone_and_in_a_batch(ragged):
    case, (*weights, words, types, positions, mask) = ragged
    for row in range(len(words)):
        one = [array[row:row + 1] for array in (words, types, positions, mask)]
        np.testing.assert_array_equal(native_ibert.encode(*weights, *one, states=1, threads=1), wanted(case, 1)[:, row:row + 1])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_in_gives_nothing(ragged, shape):
    case, arrays = ragged
    ids = [array[: shape[0], : shape[1]] for array in arrays[4:]]
    assert native_ibert.encode(*arrays[:4], *ids, states=1, threads=2).shape == (1, *shape, case.config.hidden_size)


def test_packed_weights_may_lie_anywhere(ragged):
    case, (packed, *rest) = ragged
    memory = np.empty(packed.size + 64, np.uint8)
    for offset in (1, 7, 33):
        moved = memory[offset:offset + packed.size]
        moved[:] = packed
        np.testing.assert_array_equal(native_ibert.encode(moved, *rest, states=1, threads=1), wanted(case, 1))


def test_packing_twice_gives_the_same_bytes(ragged):
    case, (packed, *_) = ragged
    np.testing.assert_array_equal(best_packed(case), packed)


# -- bad input ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("states", [0, 2, 4, 99])
def test_a_number_of_states_that_there_are_not_is_refused(ragged, states):
    with pytest.raises(InputError, match="out of range"):
        native_ibert.encode(*ragged[1], states=states, threads=1)


@pytest.mark.parametrize("position", [4, 5, 6])
@pytest.mark.parametrize("wrong", [-1, 10_000, 2**62, -(2**63)])
def test_an_id_without_a_row_is_refused(ragged, position, wrong):
    arrays = list(ragged[1])
    arrays[position] = arrays[position].copy()
    arrays[position][0, 3] = wrong
    with pytest.raises(InputError, match="an id is outside of its embedding table"):
        native_ibert.encode(*arrays, states=1, threads=1)


def test_packed_weights_that_are_cut_off_are_refused(ragged):
    packed, *rest = ragged[1]
    for size in (0, 1, 7, 8, 63, 64, packed.size // 2, packed.size - 1):
        with pytest.raises(InputError, match="packed weights are damaged"):
            native_ibert.encode(packed[:size], *rest, states=1, threads=1)
    with pytest.raises(InputError, match="packed weights are damaged"):
        native_ibert.encode(np.zeros_like(packed), *rest, states=1, threads=1)


def test_tables_of_another_width_are_refused(ragged):
    packed, *tables = ragged[1][:4]
    with pytest.raises(InputError, match="do not fit the packed weights"):
        native_ibert.encode(packed, *(table[:, :32] for table in tables), *ragged[1][4:], states=1, threads=1)


@pytest.mark.parametrize("level", [level for level in native.LEVELS if level not in LEVELS] or ["none"])
def test_a_level_that_does_not_run_here_is_refused(ragged, level):
    if level == "none":
        pytest.skip("this CPU has every level")
    with pytest.raises(BackendError, match="does not have the instructions"):
        native_ibert.pack(ragged[0].config, ragged[0].tensors, level)


def test_arrays_that_do_not_fit_together_are_all_named(ragged):
    arrays = list(ragged[1])
    arrays[1], arrays[2], arrays[5], arrays[7] = arrays[1][:, :8], arrays[2].astype(int), arrays[5][:, :3], arrays[7][0]
    with pytest.raises(InputError) as error:
        native_ibert.encode(*arrays, states=1, threads=1)
    assert error.value.problems == (
        "types: got int64 [3, 64], expected int8 [3, 8]", "positions: got int8 [140, 64], expected int8 [140, 8]",
        "type_ids: got int64 [5, 3], expected int64 [5, 17]", "mask: got uint8 [17], expected bool or uint8 [5, 17]")
