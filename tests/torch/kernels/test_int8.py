"""Products of 8 bit integers in PyTorch: exact for every shape, layout and value, or another way is taken."""

from __future__ import annotations

import itertools

import pytest
import torch

from bertkit.kernels import int8

SIZES = [1, 2, 7, 8, 17, 33]
VALUES = {"random": lambda *shape: torch.randint(-128, 128, shape, dtype=torch.int8),
          "lowest": lambda *shape: torch.full(shape, -128, dtype=torch.int8),
          "highest": lambda *shape: torch.full(shape, 127, dtype=torch.int8)}
LAYOUTS = {"rows": lambda make, *shape: make(*shape),
           "columns": lambda make, *shape: make(*shape[::-1]).t(),
           "every other": lambda make, *shape: make(shape[0], 2 * shape[1])[:, ::2],
           "a part": lambda make, *shape: make(3, shape[1] + 5, shape[0])[1, 3 : shape[1] + 3].t()}


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_matrices_of_any_layout(first, second):
    for rows, inner, columns in itertools.product(SIZES, repeat=3):
        for one, other in (("random", "random"), ("lowest", "lowest"), ("highest", "lowest")):
            x = LAYOUTS[first](VALUES[one], rows, inner)
            y = LAYOUTS[second](VALUES[other], inner, columns)
            found = int8.product(x, y)
            assert found.dtype == torch.int32 and torch.equal(found, x.int() @ y.int()), (rows, inner, columns, one, other)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (5,), (4, 1), (0, 3)])
@pytest.mark.parametrize("sizes", [(7, 64, 33), (1, 5, 1), (9, 1, 9), (0, 4, 2)])
def test_batches(shape, sizes):
    rows, inner, columns = sizes
    x, y = VALUES["random"](*shape, rows, inner), VALUES["random"](*shape, columns, inner).transpose(-1, -2)
    found = int8.product(x, y)
    assert found.dtype == torch.int32 and torch.equal(found, x.int() @ y.int())
    assert torch.equal(int8.batched_product(x, y), found)
    elementwise = (x[..., None].int() * y[..., None, :, :]).sum(-2, dtype=torch.int32)
    assert torch.equal(elementwise, found)


def test_tensor_cores_get_what_they_take(monkeypatch):
    """The limits of `_int_mm` on CUDA, kept on a machine that has none."""
    exact = torch._int_mm

    def strict(x, y):
        assert x.shape[0] > 16 and not x.shape[1] % 8 and not y.shape[1] % 8 and x.is_contiguous() and y.is_contiguous()
        return exact(x, y)

    monkeypatch.setattr(torch, "_int_mm", strict)
    for rows, inner, columns in itertools.product(SIZES, repeat=3):
        x, y = VALUES["random"](rows, inner), VALUES["random"](columns, inner).t()
        assert torch.equal(int8.tensor_core_product(x, y), x.int() @ y.int())


@pytest.mark.parametrize("broken", [lambda x, y: torch.zeros(len(x), y.shape[1], dtype=torch.int32),
                                    lambda x, y: torch._no_such_function(x, y)], ids=["wrong", "absent"])
def test_devices_without_such_products(monkeypatch, broken):
    def int_mm(x, y):
        try:
            return broken(x, y)
        except AttributeError as error:
            raise NotImplementedError from error

    monkeypatch.setattr(int8, "_EXACT", {})
    monkeypatch.setattr(torch, "_int_mm", int_mm)
    x, y = VALUES["random"](5, 6), VALUES["random"](6, 7)
    assert not int8.is_exact("cpu") and torch.equal(int8.product(x, y), x.int() @ y.int())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu():
    for name in ("cuda", "cpu"):
        x, y = VALUES["random"](2, 3, 5, 70).to(name), VALUES["random"](2, 3, 70, 9).to(name)
        assert torch.equal(int8.product(x, y).cpu(), x.cpu().int() @ y.cpu().int())
    for rows, inner, columns in itertools.product(SIZES, repeat=3):
        x, y = VALUES["random"](rows, inner), VALUES["random"](columns, inner).t()
        assert torch.equal(int8.product(x.cuda(), y.cuda()).cpu(), x.int() @ y.int())
