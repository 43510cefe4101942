"""YOSO's numpy oracle against the paper's formulas, and the random numbers of its hash functions."""

from __future__ import annotations

import numpy as np
import pytest

from bertkit.core.errors import InputError
from bertkit.core.hashing import hash_layout, random_projections, random_signs
from bertkit.core.reference import lsh

TAU, NUM_HASH, PAIRS = 9, 400, 24
SIGNS_OF_SEED_0 = "++-++--+---++-++"
PROJECTIONS_OF_SEED_0 = [0.0080887, 0.1521921, -0.4468097]


def pairs_with_cosine(cosine, head_dim=64):
    """Random pairs of unit vectors with a given dot product, one pair a head."""
    draw = np.random.default_rng(0).normal
    first, other = draw(size=(2, PAIRS, head_dim))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    other -= (other * first).sum(1, keepdims=True) * first
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    second = cosine * first + np.sqrt(1 - cosine**2) * other
    return first[None, :, None], second[None, :, None], np.ones((1, 1))


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize(
    ("name", "draw", "lowest"),
    [
        ("gaussian_hash", random_projections, 1.0),  # unbiased
        ("fast_hash", random_signs, 0.75),  # orthogonal rows collide less, up to 18 % at cosine 0
    ],
)
def test_collision_rate_is_the_expectation(name, draw, lowest, cosine):
    query, key, mask = pairs_with_cosine(cosine)
    hashes = draw(5, PAIRS, 64, NUM_HASH, TAU)
    codes = getattr(lsh, name)(query, mask, key, mask, NUM_HASH, TAU, hashes)
    measured = lsh.collision_rate(mask, codes[0], mask, codes[1]).mean()
    expected = lsh.expectation_weights(query, key, mask, mask, TAU).mean()
    np.testing.assert_allclose(expected, (1 - np.arccos(cosine) / np.pi) ** TAU)
    # Hash functions of one transform are not independent: twice the binomial error, four of them.
    error = 4 * 2 * np.sqrt(expected * (1 - expected) / (PAIRS * NUM_HASH))
    assert lowest * expected - error < measured < expected + error


def test_hadamard_transform_is_the_matrix():
    matrix = np.array([[1]])
    for _ in range(5):
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    np.testing.assert_array_equal(lsh.hadamard_transform(np.eye(32, dtype=np.float32)), matrix)


def test_fast_hash_has_the_layout_of_the_checkpoints():
    """Part p holds hash functions p * (d // tau) and on; bit i of function f is dimension f * tau + i."""
    signs = random_signs(1, 1, 64, 10, TAU)
    assert signs.shape == (1, 3, 2, 64)
    x, mask = np.random.default_rng(2).normal(size=64).astype(np.float32), np.ones((1, 1))
    codes, _ = lsh.fast_hash(x[None, None, None], mask, x[None, None, None], mask, 10, TAU, signs)
    matrix = np.array([[(-1) ** (i & j).bit_count() for j in range(64)] for i in range(64)])
    for m in range(10):
        part, function = divmod(m, 7)
        projected = x
        for step in range(3):
            projected = matrix @ (signs[0, step, part] * projected)
        bits = projected[function * TAU : (function + 1) * TAU] > 0
        assert codes[0, 0, 0, m] == sum(2**i for i in range(TAU) if bits[i])


@pytest.mark.parametrize("hash_both", [lsh.fast_hash, lsh.gaussian_hash])
def test_masked_vectors_get_code_zero_and_queries_their_own_codes(hash_both):
    draw = random_signs if hash_both is lsh.fast_hash else random_projections
    x = np.random.default_rng(0).normal(size=(2, 2, 2, 5, 16))
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    query_codes, key_codes = hash_both(x[0], mask, x[1], mask, 6, 4, draw(0, 2, 16, 6, 4))
    assert not query_codes[1, :, 3:].any() and not key_codes[1, :, 3:].any()
    assert (query_codes != key_codes).any() and query_codes.min() >= 0 and query_codes.max() < 2**4
    alone, _ = hash_both(x[0][1:, :, :3], mask[1:, :3], x[1][1:], mask[1:], 6, 4, draw(0, 2, 16, 6, 4))
    np.testing.assert_array_equal(query_codes[1:, :, :3], alone)


def test_cumulations_are_sums_over_colliding_kept_pairs():
    draw = np.random.default_rng(0)
    query_codes, key_codes = draw.integers(0, 4, (1, 1, 3, 2)), draw.integers(0, 4, (1, 1, 6, 2))
    query_mask, key_mask = np.array([[1, 1, 0]]), np.array([[1, 1, 1, 0, 1, 1]])
    value, query_weight, key_weight = (draw.normal(size=(1, 1, n, 3)) for n in (6, 3, 6))
    plain, weighted = np.zeros((2, 1, 1, 3, 3))
    for m in range(2):
        for i in range(2):
            for j in (0, 1, 2, 4, 5):
                if query_codes[0, 0, i, m] == key_codes[0, 0, j, m]:
                    plain[0, 0, i] += value[0, 0, j] / 2
                    weighted[0, 0, i] += query_weight[0, 0, i] @ key_weight[0, 0, j] * value[0, 0, j] / 2
    queries, keys = (query_mask, query_codes), (key_mask, key_codes)
    np.testing.assert_allclose(lsh.lsh_cumulation(*queries, *keys, value, 4), plain)
    actual = lsh.lsh_weighted_cumulation(*queries, query_weight, *keys, key_weight, value, 4)
    np.testing.assert_allclose(actual, weighted)


def test_sampled_gradients_are_cumulations_with_swapped_roles():
    draw = np.random.default_rng(0)
    query, key, value, grad = (draw.normal(size=(1, 2, n, 8)) for n in (4, 5, 5, 4))
    queries, keys = (np.array([[1, 1, 1, 0]]),), (np.array([[1, 0, 1, 1, 1]]),)
    codes = lsh.fast_hash(query, *queries, key, *keys, 3, 2, random_signs(0, 2, 8, 3, 2))
    grads = lsh.yoso_sampling_gradients(query, key, value, *queries, *keys, 2, *codes, grad)
    queries, keys = (*queries, codes[0]), (*keys, codes[1])
    expected = (
        lsh.lsh_weighted_cumulation(*queries, grad, *keys, value, key, 4),
        lsh.lsh_weighted_cumulation(*keys, value, *queries, grad, query, 4),
        lsh.lsh_cumulation(*keys, *queries, grad, 4),
    )
    for actual, swapped in zip(grads, expected, strict=True):
        np.testing.assert_allclose(actual, swapped)


def test_a_vector_attends_to_itself_without_nan():
    x = np.random.default_rng(0).normal(size=(1, 1, 200, 64)).astype(np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    weights = lsh.expectation_weights(x, x, np.ones((1, 200)), np.ones((1, 200)), TAU)
    np.testing.assert_allclose(weights[0, 0].diagonal(), 1, atol=1e-2)


def test_the_streams_never_change():
    signs = random_signs(0, 2, 40, 5, 9)
    assert signs.shape == (2, 3, 1, 64) and signs.dtype == np.int8
    assert "".join("-+"[int(s > 0)] for s in signs.ravel()[:16]) == SIGNS_OF_SEED_0
    projections = random_projections(0, 1, 3, 5, 9)
    assert projections.shape == (1, 3, 45) and projections.dtype == np.float32
    np.testing.assert_allclose(projections.ravel()[:3], PROJECTIONS_OF_SEED_0, rtol=1e-6)
    large = random_projections(1, 4, 64, 32, 9)
    assert abs(large.mean()) < 0.01 and abs(large.std() - 1) < 0.01
    assert abs(random_signs(1, 12, 64, 64, 9).mean()) < 0.02


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((64, 4097, 25), ["num_hash: got 4097, expected 1 to 4096", "hash_code_len: got 25, expected 1 to 24"]),
        ((0, 0, 0), ["head_dim: got 0", "num_hash: got 0", "hash_code_len: got 0"]),
    ],
)
def test_impossible_hash_functions_are_named(arguments, named):
    with pytest.raises(InputError) as raised:
        hash_layout(*arguments)
    assert all(part in str(raised.value) for part in named)


@pytest.mark.parametrize("seed", [-1, 2**128])
def test_impossible_seeds_are_named(seed):
    with pytest.raises(InputError, match="seed"):
        random_signs(seed, 1, 8, 1, 1)


@pytest.mark.parametrize(
    ("sizes", "layout"), [((64, 64, 9), (64, 7, 10)), ((8, 1, 1), (32, 32, 1)), ((40, 5, 9), (64, 7, 1))]
)
def test_layout(sizes, layout):
    found = hash_layout(*sizes)
    assert (found.padded_dim, found.hashes_per_part, found.num_part) == layout
