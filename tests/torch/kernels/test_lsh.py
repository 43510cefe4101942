"""YOSO's operations in PyTorch against the numpy oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bertkit.core.hashing import random_projections, random_signs
from bertkit.core.native import use_kernels
from bertkit.core.reference import lsh as oracle
from bertkit.kernels import lsh
from tests.fixtures import lsh as shared
from tests.fixtures.native import needs_library

pytestmark = pytest.mark.usefixtures("kernels")
SHAPES = [
    # batch, heads, queries, keys, head_dim, value_dim, num_hash, hash_code_len
    (2, 3, 7, 9, 64, 64, 5, 9),
    (1, 2, 100, 100, 40, 40, 64, 4),
    (2, 2, 1, 8, 8, 8, 1, 1),
    (2, 1, 9, 100, 16, 24, 5, 9),
    (1, 1, 8, 1, 64, 8, 10, 12),
]


def data(batch, heads, queries, keys, head_dim, value_dim, num_hash, hash_code_len):
    """Vectors that collide often, and masks that drop the end of the last row and one token inside."""
    draw = np.random.default_rng(7).normal
    centre = draw(size=(batch, heads, 1, head_dim))
    query, key = (draw(size=(batch, heads, n, head_dim)) + 2 * centre for n in (queries, keys))
    query, key = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    value, grad = draw(size=(batch, heads, keys, value_dim)), draw(size=(batch, heads, queries, value_dim))
    query_mask, key_mask = np.ones((batch, queries)), np.ones((batch, keys))
    query_mask[-1, (queries + 1) // 2 :], key_mask[-1, (keys + 1) // 2 :], key_mask[0, 2:3] = 0, 0, 0
    signs = random_signs(3, heads, head_dim, num_hash, hash_code_len)
    projections = random_projections(3, heads, head_dim, num_hash, hash_code_len)
    arrays = (query, key, value, grad, query_mask, key_mask)
    return (*(x.astype(np.float32) for x in arrays), signs, projections)


@pytest.fixture(params=["portable", pytest.param("native", marks=needs_library)])
def kernels(request):
    """Portable ones, and compiled ones where there are any."""
    with use_kernels(request.param):
        yield request.param


def tensors(*arrays):
    return [torch.from_numpy(x) for x in arrays]


def assert_close(actual, expected, tolerance=1e-5):
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(actual.detach().double().numpy(), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("use_fast_hash", [True, False], ids=["fast", "gaussian"])
def test_codes_equal_the_oracle(shape, use_fast_hash):
    query, key, _, _, query_mask, key_mask, signs, projections = data(*shape)
    name, hashes = ("fast_hash", signs) if use_fast_hash else ("gaussian_hash", projections)
    expected = getattr(oracle, name)(query, query_mask, key, key_mask, *shape[-2:], hashes)
    arrays = tensors(query, query_mask, key, key_mask)
    actual = getattr(lsh, name)(*arrays, *shape[-2:], torch.from_numpy(hashes))
    for codes, expected_codes in zip(actual, expected, strict=True):
        assert codes.dtype == torch.int32
        np.testing.assert_array_equal(codes.numpy(), expected_codes)


@pytest.mark.parametrize("shape", SHAPES)
def test_cumulations_equal_the_oracle(shape):
    query, key, value, grad, query_mask, key_mask, signs, _ = data(*shape)
    query_codes, key_codes = oracle.fast_hash(query, query_mask, key, key_mask, *shape[-2:], signs)
    capacity = 2 ** shape[-1]
    arguments = (query_mask, query_codes, key_mask, key_codes, value)
    actual = lsh.lsh_cumulation(*tensors(*arguments), capacity)
    assert_close(actual, oracle.lsh_cumulation(*arguments, capacity), 1e-6)
    arguments = (query_mask, query_codes, grad, key_mask, key_codes, value, key)
    actual = lsh.lsh_weighted_cumulation(*tensors(*arguments), capacity)
    assert_close(actual, oracle.lsh_weighted_cumulation(*arguments, capacity))


@pytest.mark.parametrize("shape", SHAPES)
def test_expectation_and_its_gradients_equal_the_oracle(shape):
    query, key, value, grad, query_mask, key_mask, _, _ = data(*shape)
    inputs = [x.requires_grad_() for x in tensors(query, key, value)]
    masks = tensors(query_mask, key_mask)
    context = lsh.yoso_expectation(*inputs, *masks, shape[-1])
    context.backward(torch.from_numpy(grad))
    arguments = (query, key, value, query_mask, key_mask, shape[-1])
    assert_close(context, oracle.yoso_expectation(*arguments))
    for x, expected in zip(inputs, oracle.yoso_expectation_gradients(*arguments, grad), strict=True):
        assert_close(x.grad, expected)
    weights = lsh.expectation_weights(*inputs[:2], *masks, shape[-1])
    assert_close(weights, oracle.expectation_weights(query, key, query_mask, key_mask, shape[-1]))


@pytest.mark.parametrize("backward", ["pairwise", "tables", "expectation"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sampling_and_its_gradients_equal_the_oracle(shape, backward, monkeypatch):
    monkeypatch.setattr(lsh, "LONGEST_PAIRWISE", 10**6 if backward == "pairwise" else 0)
    query, key, value, grad, query_mask, key_mask, signs, _ = data(*shape)
    num_hash, hash_code_len = shape[-2:]
    inputs = [x.requires_grad_() for x in tensors(query, key, value)]
    context = lsh.yoso_sampling(
        *inputs, *tensors(query_mask, key_mask), hash_code_len, num_hash, True, backward != "expectation",
        torch.from_numpy(signs),
    )
    context.backward(torch.from_numpy(grad))
    codes = oracle.fast_hash(query, query_mask, key, key_mask, num_hash, hash_code_len, signs)
    expected = oracle.lsh_cumulation(query_mask, codes[0], key_mask, codes[1], value, 2**hash_code_len)
    assert_close(context, expected, 1e-6)
    arguments = (query, key, value, query_mask, key_mask, hash_code_len)
    if backward == "expectation":
        expected_grads = oracle.yoso_expectation_gradients(*arguments, grad)
    else:
        expected_grads = oracle.yoso_sampling_gradients(*arguments, *codes, grad)
    for x, expected in zip(inputs, expected_grads, strict=True):
        assert_close(x.grad, expected)


@pytest.mark.parametrize("sampled", [True, False], ids=["sampling", "expectation"])
def test_padding_and_neighbours_change_nothing(sampled):
    shape = (2, 2, 9, 9, 16, 16, 5, 4)
    query, key, value, _, _, mask, signs, _ = data(*shape)
    query[-1, :, 5:], key[-1, :, 5:], value[-1, :, 5:] = np.nan, np.inf, np.nan
    mask[:] = 1
    mask[-1, 5:] = 0

    def attend(rows, length):
        parts = tensors(*(x[rows, :, :length] for x in (query, key, value)), *(mask[rows, :length],) * 2)
        if not sampled:
            return lsh.yoso_expectation(*parts, 4)
        return lsh.yoso_sampling(*parts, 4, 5, True, True, torch.from_numpy(signs))

    together, alone = attend(slice(0, 2), 9), attend(slice(1, 2), 5)
    torch.testing.assert_close(together[1:, :, :5], alone)
    assert not together[1, :, 5:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    count = 3000  # bfloat16 cannot count further than 256, float16 than 2048
    codes, mask = torch.zeros(1, 1, count, 1, dtype=torch.int32), torch.ones(1, count)
    ones = torch.ones(1, 1, count, 8, dtype=dtype)
    expected = torch.full_like(ones, count)
    unit = torch.eye(1, 8).expand(1, 1, count, 8)
    for summed in (
        lsh.lsh_cumulation(mask, codes, mask, codes, ones, 2),
        lsh.lsh_weighted_cumulation(mask, codes, ones[..., :1], mask, codes, ones[..., :1], ones, 2),
        lsh.yoso_expectation(unit, unit, ones, mask, mask, 1),
    ):
        assert summed.dtype == dtype
        torch.testing.assert_close(summed, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lsh_backward", [True, False])
def test_gradients_keep_half_precision(dtype, lsh_backward):
    shape = SHAPES[0]
    query, key, value, grad, *masks, signs, _ = tensors(*data(*shape))
    inputs = [x.to(dtype).requires_grad_() for x in (query, key, value)]
    lsh.yoso_sampling(*inputs, *masks, 9, 5, True, lsh_backward, signs).backward(grad.to(dtype))
    assert [x.grad.dtype for x in inputs] == [dtype] * 3
    assert all(x.grad.isfinite().all() for x in inputs)


def test_autocast_changes_nothing():
    query, key, value, _, *masks, _, projections = tensors(*data(*SHAPES[0]))
    arguments = (query, key, value, *masks, 9, 5, False, True, projections)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sampled, expected = lsh.yoso_sampling(*arguments), lsh.yoso_expectation(*arguments[:6])
        weights = lsh.expectation_weights(query, key, *masks, 9)
    assert torch.equal(sampled, lsh.yoso_sampling(*arguments))
    assert torch.equal(expected, lsh.yoso_expectation(*arguments[:6]))
    assert torch.equal(weights, lsh.expectation_weights(query, key, *masks, 9))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", ["fast", "gaussian", "expectation"])
def test_compiles_without_graph_break_and_with_query_as_key(kind, backend):
    x, _, value, grad, mask, _, signs, projections = tensors(*data(2, 2, 9, 9, 16, 16, 5, 4))

    def attend(x, value):
        if kind == "expectation":
            return lsh.yoso_expectation(x, x, value, mask, mask, 4)
        hashes = signs if kind == "fast" else projections
        return lsh.yoso_sampling(x, x, value, mask, mask, 4, 5, kind == "fast", True, hashes)

    results = []
    for function in (attend, torch.compile(attend, fullgraph=True, backend=backend)):
        inputs = [y.clone().requires_grad_() for y in (x, value)]
        context = function(*inputs)
        context.backward(grad)
        results.append((context.detach(), *(y.grad for y in inputs)))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(plain, compiled)


@pytest.mark.parametrize("name", ["lsh_cumulation", "lsh_weighted_cumulation"])
def test_cumulations_have_true_gradients(name):
    query, key, value, grad, query_mask, key_mask, signs, _ = tensors(*data(2, 1, 4, 5, 8, 3, 3, 2))
    query_codes, key_codes = lsh.fast_hash(query, query_mask, key, key_mask, 3, 2, signs)
    weights = (grad, value) if name == "lsh_weighted_cumulation" else ()

    def cumulate(value, *weights):
        queries, keys = (query_mask, query_codes, *weights[:1]), (key_mask, key_codes, *weights[1:])
        return getattr(lsh, name)(*queries, *keys, value, 4)

    assert torch.autograd.gradcheck(cumulate, [x.double().requires_grad_() for x in (value, *weights)])


OPERATORS = ["fast_hash", "gaussian_hash", "expectation", "sampling", "cumulation", "weighted_cumulation"]


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_are_registered_completely(operator):
    query, key, value, grad, query_mask, key_mask, signs, projections = tensors(*data(2, 2, 4, 5, 8, 8, 3, 2))
    query, key, value, grad = (x.requires_grad_() for x in (query, key, value, grad))
    queries, keys = (query_mask, key_mask), lsh.fast_hash(query, query_mask, key, key_mask, 3, 2, signs)
    registered, arguments = {
        "fast_hash": (lsh._fast_codes, (query.detach(), query_mask, 3, 2, signs)),
        "gaussian_hash": (lsh._gaussian_codes, (query.detach(), query_mask, 3, 2, projections)),
        "expectation": (lsh._expectation, (query, key, value, *queries, 2)),
        "sampling": (lsh._sampling, (query, key, value, *queries, 3, 2, signs, True)),
        "cumulation": (lsh._cumulate, (query_mask, keys[0], key_mask, keys[1], value, 4)),
        "weighted_cumulation": (
            lsh._cumulate_weighted, (query_mask, keys[0], grad, key_mask, keys[1], value, key, 4),
        ),
    }[operator]
    torch.library.opcheck(registered, arguments, test_utils=("test_schema", "test_faketensor"))


def test_blocks_change_nothing(monkeypatch):
    shape = (2, 2, 9, 13, 16, 16, 5, 4)
    query, key, value, grad, *masks, signs, _ = tensors(*data(*shape))

    def everything():
        inputs = [x.clone().requires_grad_() for x in (query, key, value)]
        sampled = lsh.yoso_sampling(*inputs, *masks, 4, 5, True, True, signs)
        contexts = [sampled, lsh.yoso_expectation(*inputs, *masks, 4)]
        for context in contexts:
            context.backward(grad)
        codes = lsh.fast_hash(query, masks[0], key, masks[1], 5, 4, signs)
        weighted = lsh.lsh_weighted_cumulation(masks[0], codes[0], grad, masks[1], codes[1], value, key, 16)
        return [*contexts, *(x.grad for x in inputs), *codes, weighted]

    whole = everything()
    by_three = lambda count, *_: (slice(i, min(i + 3, count)) for i in range(0, count, 3))  # noqa: E731
    monkeypatch.setattr(lsh, "_blocks", by_three)
    for actual, expected in zip(everything(), whole, strict=True):
        torch.testing.assert_close(actual, expected)


# -- bad input, and none --------------------------------------------------------------------------------------------
def call(name, given, grad=None):
    """See tests/fixtures/lsh.py."""
    given = {key: torch.from_numpy(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x for key, x in given.items()}
    leaves = [] if grad is None else [given[key].requires_grad_() for key in shared.DIFFERENTIABLE[name]]
    found = getattr(lsh, name)(**given)
    outputs = list(found) if isinstance(found, tuple) else [found]
    if grad is not None:
        found.backward(torch.from_numpy(grad))
    return [x.detach().numpy() for x in (*outputs, *(leaf.grad for leaf in leaves))]


@pytest.mark.parametrize("what", shared.BAD)
def test_what_does_not_fit_is_refused(what):
    shared.what_does_not_fit_is_refused(call, what)


@pytest.mark.parametrize("what", shared.CODES)
@pytest.mark.parametrize("name", ["lsh_cumulation", "lsh_weighted_cumulation"])
def test_codes_without_a_bucket_are_refused(name, what):
    shared.codes_without_a_bucket_are_refused(call, name, what)


@pytest.mark.parametrize("sizes", shared.EMPTY.values(), ids=shared.EMPTY)
@pytest.mark.parametrize("name", shared.OPERATIONS)
def test_nothing_gives_zeros(name, sizes):
    shared.nothing_gives_zeros(call, name, sizes)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("name", shared.OPERATIONS)
def test_masked_rows_hold_anything(name, number):
    shared.masked_rows_hold_anything(call, name, number)


@pytest.mark.parametrize(("name", "of"), [(name, of) for name in shared.OPERATIONS for of in shared.arguments(name)
                                          if of.startswith(("query_BNLD", "key_BNSD", "query_weight", "key_weight", "value"))])
def test_nan_stays_where_it_is(name, of):
    shared.nan_stays_where_it_is(call, name, of)
