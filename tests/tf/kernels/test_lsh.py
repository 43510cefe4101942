"""YOSO's operations in TensorFlow against the numpy oracle: eager, as a graph, and under XLA."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import tensorflow as tf

from bertkit.core.errors import InputError
from bertkit.core.hashing import random_projections, random_signs
from bertkit.core.native import use_kernels
from bertkit.core.reference import lsh as oracle
from bertkit_tf.kernels import lsh
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
SMALL = (2, 2, 9, 13, 16, 16, 5, 4)
MODES = ["eager", "graph", "xla"]


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


def run(mode, function, *arrays):
    """Call `function` in a mode; a graph knows neither batch nor lengths."""
    tensors = [tf.constant(x) for x in arrays]
    if mode == "eager":
        return function(*tensors)
    if mode == "xla":
        return tf.function(function, jit_compile=True)(*tensors)
    shapes = [(None, x.shape[1], None, x.shape[3]) if x.shape.rank == 4 else (None, None) for x in tensors]
    signature = [tf.TensorSpec(shape, x.dtype) for shape, x in zip(shapes, tensors, strict=True)]
    return tf.function(function, input_signature=signature)(*tensors)


def with_gradients(attend):
    """The context and the gradients of query, key and value."""

    def function(query, key, value, query_mask, key_mask, grad):
        with tf.GradientTape() as tape:
            tape.watch((query, key, value))
            context = attend(query, key, value, query_mask, key_mask)
        return [context, *tape.gradient(context, (query, key, value), output_gradients=grad)]

    return function


def assert_close(actual, expected, tolerance=1e-5):
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("shape", "mode"), [*((shape, "eager") for shape in SHAPES), (SHAPES[0], "graph"), (SHAPES[3], "xla")]
)
@pytest.mark.parametrize("use_fast_hash", [True, False], ids=["fast", "gaussian"])
def test_codes_equal_the_oracle(shape, use_fast_hash, mode):
    query, key, _, _, query_mask, key_mask, signs, projections = data(*shape)
    name, hashes = ("fast_hash", signs) if use_fast_hash else ("gaussian_hash", projections)
    arrays = query, query_mask, key, key_mask
    expected = getattr(oracle, name)(*arrays, *shape[-2:], hashes)
    actual = run(mode, lambda *tensors: getattr(lsh, name)(*tensors, *shape[-2:], hashes), *arrays)
    for codes, expected_codes in zip(actual, expected, strict=True):
        assert codes.dtype == tf.int32
        np.testing.assert_array_equal(codes, expected_codes)


@pytest.mark.parametrize("shape", SHAPES)
def test_cumulations_equal_the_oracle(shape):
    query, key, value, grad, query_mask, key_mask, signs, _ = data(*shape)
    query_codes, key_codes = oracle.fast_hash(query, query_mask, key, key_mask, *shape[-2:], signs)
    capacity = 2 ** shape[-1]
    arguments = (query_mask, query_codes, key_mask, key_codes, value)
    actual = lsh.lsh_cumulation(*arguments_of(arguments), capacity)
    assert_close(actual, oracle.lsh_cumulation(*arguments, capacity), 1e-6)
    arguments = (query_mask, query_codes, grad, key_mask, key_codes, value, key)
    actual = lsh.lsh_weighted_cumulation(*arguments_of(arguments), capacity)
    assert_close(actual, oracle.lsh_weighted_cumulation(*arguments, capacity))


def arguments_of(arrays):
    return [tf.constant(x) for x in arrays]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [SHAPES[0], SMALL])
def test_expectation_and_its_gradients_equal_the_oracle(shape, mode, monkeypatch):
    monkeypatch.setattr(lsh, "BLOCK_ROWS", 4)
    query, key, value, grad, *masks, _, _ = data(*shape)
    attend = with_gradients(lambda *tensors: lsh.yoso_expectation(*tensors, shape[-1]))
    context, *grads = run(mode, attend, query, key, value, *masks, grad)
    arguments = (query, key, value, *masks, shape[-1])
    assert_close(context, oracle.yoso_expectation(*arguments))
    for actual, expected in zip(grads, oracle.yoso_expectation_gradients(*arguments, grad), strict=True):
        assert_close(actual, expected)
    weights = lsh.expectation_weights(query, key, *masks, shape[-1])
    assert_close(weights, oracle.expectation_weights(query, key, *masks, shape[-1]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backward", ["pairwise", "tables", "expectation"])
def test_sampling_and_its_gradients_equal_the_oracle(backward, mode, monkeypatch):
    check_sampling(SMALL, backward, mode, monkeypatch)


@pytest.mark.parametrize("backward", ["pairwise", "tables"])
@pytest.mark.parametrize("shape", [SHAPES[0], *SHAPES[2:]])
def test_sampling_equals_the_oracle_at_every_shape(shape, backward, monkeypatch):
    check_sampling(shape, backward, "eager", monkeypatch)


def check_sampling(shape, backward, mode, monkeypatch):
    monkeypatch.setattr(lsh, "LONGEST_PAIRWISE", 10**4 if backward == "pairwise" else 0)
    monkeypatch.setattr(lsh, "BLOCK_ROWS", 64)
    query, key, value, grad, *masks, signs, _ = data(*shape)
    num_hash, hash_code_len = shape[-2:]
    options = (hash_code_len, num_hash, True, backward != "expectation", signs)
    attend = with_gradients(lambda *tensors: lsh.yoso_sampling(*tensors, *options))
    context, *grads = run(mode, attend, query, key, value, *masks, grad)
    codes = oracle.fast_hash(query, masks[0], key, masks[1], num_hash, hash_code_len, signs)
    expected = oracle.lsh_cumulation(masks[0], codes[0], masks[1], codes[1], value, 2**hash_code_len)
    assert_close(context, expected, 1e-6)
    arguments = (query, key, value, *masks, hash_code_len)
    if backward == "expectation":
        expected_grads = oracle.yoso_expectation_gradients(*arguments, grad)
    else:
        expected_grads = oracle.yoso_sampling_gradients(*arguments, *codes, grad)
    for actual, expected in zip(grads, expected_grads, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("sampled", [True, False], ids=["sampling", "expectation"])
def test_padding_and_neighbours_change_nothing(sampled):
    query, key, value, _, _, mask, signs, _ = data(2, 2, 9, 9, 16, 16, 5, 4)
    query[-1, :, 5:], key[-1, :, 5:], value[-1, :, 5:] = np.nan, np.inf, np.nan
    mask[:] = 1
    mask[-1, 5:] = 0

    def attend(rows, length):
        parts = arguments_of([x[rows, :, :length] for x in (query, key, value)] + [mask[rows, :length]] * 2)
        if not sampled:
            return lsh.yoso_expectation(*parts, 4)
        return lsh.yoso_sampling(*parts, 4, 5, True, True, signs)

    together, alone = attend(slice(0, 2), 9).numpy(), attend(slice(1, 2), 5).numpy()
    np.testing.assert_allclose(together[1:, :, :5], alone, rtol=0, atol=1e-5)
    assert not together[1, :, 5:].any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_summed_in_float32(dtype):
    count = 3000  # bfloat16 cannot count further than 256, float16 than 2048
    codes, mask = tf.zeros((1, 1, count, 1), tf.int32), tf.ones((1, count))
    ones = tf.ones((1, 1, count, 8), dtype)
    unit = tf.tile(tf.eye(1, 8)[None, None], (1, 1, count, 1))
    for summed in (
        lsh.lsh_cumulation(mask, codes, mask, codes, ones, 2),
        lsh.lsh_weighted_cumulation(mask, codes, ones[..., :1], mask, codes, ones[..., :1], ones, 2),
        lsh.yoso_expectation(unit, unit, ones, mask, mask, 1),
    ):
        assert summed.dtype == dtype
        np.testing.assert_array_equal(summed, tf.fill(summed.shape, tf.cast(count, dtype)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("lsh_backward", [True, False])
def test_gradients_keep_half_precision_with_query_as_key(dtype, lsh_backward):
    query, _, _, grad, mask, _, signs, _ = data(2, 2, 9, 9, 16, 16, 5, 4)
    x, grad = tf.cast(query, dtype), tf.cast(grad, dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        context = lsh.yoso_sampling(x, x, x, mask, mask, 4, 5, True, lsh_backward, signs)
    gradient = tape.gradient(context, x, output_gradients=grad)
    assert context.dtype == gradient.dtype == dtype
    assert np.isfinite(tf.cast(gradient, tf.float32)).all()


@pytest.mark.parametrize("name", ["lsh_cumulation", "lsh_weighted_cumulation"])
def test_cumulations_have_true_gradients(name):
    query, key, value, grad, query_mask, key_mask, signs, _ = data(2, 1, 4, 5, 8, 3, 3, 2)
    query_codes, key_codes = lsh.fast_hash(query, query_mask, key, key_mask, 3, 2, signs)
    weights = (grad, value) if name == "lsh_weighted_cumulation" else ()

    def cumulate(value, *weights):
        queries, keys = (query_mask, query_codes, *weights[:1]), (key_mask, key_codes, *weights[1:])
        return getattr(lsh, name)(*queries, *keys, value, 4)

    inputs = [tf.constant(x, tf.float64) for x in (value, *weights)]
    direction = tf.random.stateless_normal(grad.shape, (0, 1), dtype=tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = tf.reduce_sum(cumulate(*inputs) * direction)
    for i, gradient in enumerate(tape.gradient(total, inputs)):
        # The sum is linear in each input, so that a difference of any size is its derivative.
        step = tf.random.stateless_normal(inputs[i].shape, (0, 2), dtype=tf.float64)
        moved = [x + step if j == i else x for j, x in enumerate(inputs)]
        change = tf.reduce_sum(cumulate(*moved) * direction) - total
        np.testing.assert_allclose(tf.reduce_sum(gradient * step), change, rtol=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["lsh_cumulation", "lsh_weighted_cumulation"])
def test_parts_change_nothing(name, mode, monkeypatch, kernels):
    """Tables of one group, or of some columns of the weights, at once."""
    if kernels == "native":
        pytest.skip("has parts of its own")
    monkeypatch.setattr(lsh, "LARGEST_TABLES", 4 * 6 * 2)  # of two groups, or two columns
    given = shared.arguments(name)
    given.pop("hashtable_capacity")
    (found,) = shared.expected(name, {**given, "hashtable_capacity": 4}, None)
    sums = run(mode, lambda *tensors: getattr(lsh, name)(*tensors, 4), *in_order(name, given))
    assert_close(sums, found)


def in_order(name, given):
    """Arrays in the order of an operation's arguments."""
    return [given[key] for key in inspect.signature(getattr(lsh, name)).parameters if key in given]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["lsh_cumulation", "lsh_weighted_cumulation"])
def test_a_graph_refuses_codes_without_a_bucket(name, mode):
    """XLA cannot, and gives no number."""
    given = shared.changed(name, shared.CODES["both"][0])
    given.pop("hashtable_capacity")

    def sums(capacity):
        return run(mode, lambda *tensors: getattr(lsh, name)(*tensors, capacity), *in_order(name, given))

    if mode == "xla":
        assert np.isnan(sums(4)).any(axis=(2, 3)).all()
    else:
        eager = mode == "eager"
        with pytest.raises(InputError if eager else tf.errors.InvalidArgumentError,
                           match="codes from" if eager else "outside of its table"):
            sums(4)


# -- bad input, and none --------------------------------------------------------------------------------------------
def call(name, given, grad=None):
    """See tests/fixtures/lsh.py."""
    given = {key: tf.constant(x) if isinstance(x, np.ndarray) else x for key, x in given.items()}
    leaves = [] if grad is None else [given[key] for key in shared.DIFFERENTIABLE[name]]
    with tf.GradientTape() as tape:
        tape.watch(leaves)
        found = getattr(lsh, name)(**given)
    outputs = list(found) if isinstance(found, tuple) else [found]
    return [x.numpy() for x in (*outputs, *(tape.gradient(found, leaves, output_gradients=grad) if leaves else ()))]


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
