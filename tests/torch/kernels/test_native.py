"""The compiled kernels as operators of PyTorch; tests/core/test_native_ibert.py has what they compute."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings

import numpy as np
import pytest
import torch

from bertkit.core import native_ibert
from bertkit.core.errors import InputError
from bertkit.core.native import use_kernels
from bertkit.kernels import native
from tests.fixtures.frozen import CASES
from tests.fixtures.native import LEVELS, arguments, best_packed, needs_library, wanted

pytestmark = needs_library


@pytest.fixture(scope="module", params=["plain", "ragged"])
def case(request):
    return CASES[request.param]()


@pytest.fixture(scope="module")
def arrays(case):
    return arguments(case, best_packed(case))


@pytest.fixture(scope="module")
def tensors(arrays):
    return [None if array is None else torch.from_numpy(array) for array in arrays]


class Model(torch.nn.Module):
    """An encoder as a module uses it."""

    def __init__(self, tensors) -> None:
        super().__init__()
        for name, tensor in zip(("packed", "words", "types", "positions"), tensors, strict=False):
            self.register_buffer(name, tensor)

    def forward(self, word_ids, type_ids, position_ids, mask=None):
        if native.level() == "portable":
            return word_ids
        hidden = native.ibert_encode(
            self.packed, self.words, self.types, self.positions, word_ids, type_ids, position_ids, mask)
        return hidden[0].float() * 0.5


@pytest.mark.parametrize("states", [1, 3])
def test_the_operator_gives_the_oracles_integers(case, tensors, states):
    hidden = native.ibert_encode(*tensors, states=states)
    assert hidden.dtype == torch.int8
    np.testing.assert_array_equal(hidden.numpy(), wanted(case, states))


def test_ids_and_masks_may_be_of_other_types_and_strides(case, tensors):
    *weights, words, types, positions, mask = tensors
    mask = torch.ones_like(words) if mask is None else mask
    hidden = native.ibert_encode(*weights, words.int(), types.T.contiguous().T, positions[:1].expand_as(words), mask.bool())
    np.testing.assert_array_equal(hidden.numpy(), wanted(case, 1))


def test_opcheck_passes(tensors):
    for states in (1, 3):
        torch.library.opcheck(torch.ops.bertkit.ibert_encode.default, (*tensors, states))


def test_a_compiled_model_is_one_graph_and_takes_other_shapes(tensors):
    torch.compiler.reset()
    model = Model(tensors)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for inputs in (tensors[4:], [tensor if tensor is None else tensor[:2, :5] for tensor in tensors[4:]]):
        torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=0, atol=0)


def test_a_model_that_is_traced_with_portable_kernels_is_portable(tensors):
    torch.compiler.reset()
    with use_kernels("portable"):
        compiled = torch.compile(Model(tensors), fullgraph=True, backend="aot_eager")
        assert compiled(*tensors[4:]).dtype == torch.int64


def test_an_exported_program_holds_the_operator(tensors):
    model, inputs = Model(tensors), tuple(tensor for tensor in tensors[4:] if tensor is not None)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    program = torch.export.export(model, inputs, dynamic_shapes=[({0: batch, 1: length},) * len(inputs)][0])
    smaller = [tensor[:2, :3] for tensor in inputs]
    torch.testing.assert_close(program.module()(*smaller), model(*smaller), rtol=0, atol=0)


def test_as_many_threads_are_used_as_pytorch_uses(tensors, monkeypatch):
    used = []
    encode = native_ibert.encode
    monkeypatch.setattr(native_ibert, "encode", lambda *arrays, **rest: used.append(rest["threads"]) or encode(*arrays, **rest))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        native.ibert_encode(*tensors)
    finally:
        torch.set_num_threads(before)
    assert used == [3]


# -- threads and processes: the library's own, and PyTorch's -----------------------------------------------------------
@pytest.fixture(params=["own", "openmp"])
def openmp(request):
    found = native._openmp() if request.param == "openmp" else None
    if request.param == "openmp" and found is None:
        pytest.skip("this PyTorch runs on no OpenMP")
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch may run on other threads")
def test_the_threads_of_pytorch_are_found():
    assert native._openmp() is not None


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads_gives_the_oracles_integers(case, arrays, openmp, threads):
    hidden = native_ibert.encode(*arrays, states=3, threads=threads, openmp=openmp)
    np.testing.assert_array_equal(hidden, wanted(case, 3))


def test_several_callers_at_once_each_get_their_own(case, arrays, openmp):
    good = []

    def call() -> None:
        for _ in range(5):
            good.append(np.array_equal(native_ibert.encode(*arrays, states=3, threads=2, openmp=openmp), wanted(case, 3)))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert good == [True] * 15


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own(case, arrays, openmp):
    native_ibert.encode(*arrays, states=1, threads=2, openmp=openmp)
    with warnings.catch_warnings():  # later Pythons warn of any fork of a process with threads
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        hidden = native_ibert.encode(*arrays, states=1, threads=2, openmp=openmp)
        os._exit(0 if np.array_equal(hidden, wanted(case, 1)) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(("position", "change", "said"), [
    (4, lambda ids: ids + 1000, "an id is outside of its embedding table"),
    (6, lambda ids: -ids - 1, "an id is outside of its embedding table"),
    (5, lambda ids: ids[:, :2], r"type_ids: got int64 \[\d, 2\], expected int64 \[\d, \d+\]"),
    (2, lambda table: table[:, :5], r"types: got int8 \[3, 5\], expected int8 \[3, 64\]"),
    (3, lambda table: table.int(), r"positions: got int32 \[140, 64\], expected int8"),
    (0, lambda packed: packed[:20], "the packed weights are damaged"),
])
def test_what_does_not_fit_is_refused(tensors, position, change, said):
    changed = [change(tensor) if index == position else tensor for index, tensor in enumerate(tensors)]
    with pytest.raises(InputError, match=said):
        native.ibert_encode(*changed)


def test_the_level_is_that_of_the_library():
    assert native.level() in ("portable", *LEVELS)
