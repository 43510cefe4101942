"""YOSO's compiled kernels against the oracle, at every level that runs here, with any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest

from bertkit.core import native_lsh
from bertkit.core.errors import InputError
from bertkit.core.hashing import random_signs
from bertkit.core.native_lsh import Threads
from bertkit.core.reference import lsh as reference
from tests.fixtures.native import LEVELS, needs_library

pytestmark = needs_library


class Case(NamedTuple):
    """Unit vectors, values, gradients and masks of some size."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    grad: np.ndarray
    query_mask: np.ndarray
    key_mask: np.ndarray
    num_hash: int
    hash_code_len: int
    signs: np.ndarray

    @property
    def masks(self):
        return self.query_mask, self.key_mask

    @property
    def functions(self):
        return self.num_hash, self.hash_code_len, self.signs

    def codes(self):
        return reference.fast_hash(self.query, self.query_mask, self.key, self.key_mask, self.num_hash, self.hash_code_len,
                                   self.signs)


def make(batch, heads, queries, keys, width, value_width, num_hash, hash_code_len, clusters=None) -> Case:
    """Random vectors; with few clusters many of them collide."""
    random = np.random.default_rng(queries + keys)

    def unit(rows: int) -> np.ndarray:
        x = random.normal(size=(batch, heads, rows, width))
        if clusters is not None:
            x = 0.1 * x + random.normal(size=(clusters, width))[random.integers(0, clusters, (batch, heads, rows))]
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    def normal(rows: int) -> np.ndarray:
        return random.normal(size=(batch, heads, rows, value_width)).astype(np.float32)

    return Case(unit(queries), unit(keys), normal(keys), normal(queries), random.random((batch, queries)) > 0.2,
                random.random((batch, keys)) > 0.2, num_hash, hash_code_len,
                random_signs(1, heads, width, num_hash, hash_code_len).astype(np.float32))


CASES = {
    "as trained": lambda: make(2, 3, 70, 90, 64, 64, 5, 9),
    "one row": lambda: make(1, 1, 1, 1, 64, 64, 3, 9),
    "no keys": lambda: make(1, 2, 3, 0, 64, 64, 3, 4),
    "odd widths": lambda: make(1, 2, 33, 50, 7, 37, 4, 5),
    "wide heads": lambda: make(1, 1, 20, 30, 200, 300, 9, 7),
    "one bit": lambda: make(1, 2, 40, 30, 32, 16, 40, 1),
    "large tables": lambda: make(1, 1, 40, 50, 64, 64, 3, 17),
    "tables of two widths": lambda: make(1, 1, 20, 30, 16, 144, 9, 11),
    "full buckets": lambda: make(1, 2, 300, 260, 64, 64, 3, 9, clusters=2),
    "more pairs than are kept at once": lambda: make(1, 1, 1100, 1200, 160, 160, 9, 3),
    "full buckets of odd widths": lambda: make(1, 1, 260, 300, 40, 24, 3, 3, clusters=3),
}


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request):
    return CASES[request.param]()


@pytest.fixture(params=LEVELS)
def threads(request):
    return Threads(request.param, 2)


def assert_close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(wanted).max(initial=0)))


def test_codes_are_those_of_the_oracle(case, threads):
    for x, mask, wanted in zip((case.query, case.key), case.masks, case.codes(), strict=True):
        found = native_lsh.hash_codes(x, mask, *case.functions, threads)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("num_hash, hash_code_len", [(1, 1), (7, 9), (40, 3), (3, 13)])
def test_gaussian_codes_are_those_of_the_oracle(num_hash, hash_code_len, threads):
    random = np.random.default_rng(num_hash)
    # Sums of small integers are exact in any order.
    query, key = random.integers(-9, 10, (2, 2, 3, 37, 21)).astype(np.float32)
    projections = random.integers(-9, 10, (3, 21, num_hash * hash_code_len)).astype(np.float32)
    mask = random.random((2, 37)) > 0.2
    functions = num_hash, hash_code_len, projections
    wanted = reference.gaussian_hash(query, mask, key, mask, *functions)
    for x, codes in zip((query, key), wanted, strict=True):
        np.testing.assert_array_equal(native_lsh.hash_codes(x, mask, *functions, threads), codes)
    value = random.normal(size=(2, 3, 37, 5)).astype(np.float32)
    assert_close(native_lsh.sampling(query, key, value, mask, mask, *functions, threads),
                 reference.lsh_cumulation(mask, wanted[0], mask, wanted[1], value, 2**hash_code_len))


def test_sums_are_those_of_the_oracle(case, threads):
    query_codes, key_codes = case.codes()
    arguments = case.query_mask, query_codes, case.key_mask, key_codes, case.value
    assert_close(native_lsh.cumulation(*arguments, case.hash_code_len, threads),
                 reference.lsh_cumulation(*arguments, 2**case.hash_code_len))
    found = native_lsh.sampling(case.query, case.key, case.value, *case.masks, *case.functions, threads)
    np.testing.assert_array_equal(found, native_lsh.cumulation(*arguments, case.hash_code_len, threads))


def test_weighted_sums_are_those_of_the_oracle(case, threads):
    query_codes, key_codes = case.codes()
    arguments = case.query_mask, query_codes, case.query, case.key_mask, key_codes, case.key, case.value
    assert_close(native_lsh.weighted_cumulation(*arguments, case.hash_code_len, threads),
                 reference.lsh_weighted_cumulation(*arguments, 2**case.hash_code_len))


def test_gradients_are_those_of_the_oracle(case, threads):
    query_codes, key_codes = case.codes()
    vectors = case.query, case.key, case.value, *case.masks
    found = native_lsh.sampling_gradients(*vectors, case.grad, *case.functions, threads)
    wanted = reference.yoso_sampling_gradients(*vectors, case.hash_code_len, query_codes, key_codes, case.grad)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_threads_change_nothing(count):
    case = CASES["full buckets"]()
    query_codes, key_codes = case.codes()
    results = []
    for threads in (Threads(LEVELS[-1], 1), Threads(LEVELS[-1], count)):
        codes = native_lsh.hash_codes(case.query, None, *case.functions, threads)
        sums = native_lsh.cumulation(None, query_codes, None, key_codes, case.value, case.hash_code_len, threads)
        grads = native_lsh.sampling_gradients(case.query, case.key, case.value, None, None, case.grad, *case.functions, threads)
        results.append((codes, sums, *grads))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_several_callers_at_once_each_get_their_own():
    cases = [CASES[name]() for name in ("as trained", "odd widths", "full buckets")]

    def run(case):
        return [native_lsh.sampling_gradients(case.query, case.key, case.value, *case.masks, case.grad, *case.functions,
                                              Threads(LEVELS[-1], 2)) for _ in range(3)]

    with ThreadPoolExecutor(len(cases)) as pool:
        for case, found in zip(cases, pool.map(run, cases), strict=True):
            (wanted, *_) = run(case)
            for grads in found:
                for one, other in zip(grads, wanted, strict=True):
                    np.testing.assert_array_equal(one, other)


def test_what_masked_rows_hold_is_never_read():
    case = CASES["as trained"]()
    query_codes, key_codes = case.codes()
    threads = Threads(LEVELS[-1], 2)

    def results(query, key, value, grad):
        codes = native_lsh.hash_codes(query, case.query_mask, *case.functions, threads)
        sums = native_lsh.cumulation(case.query_mask, query_codes, case.key_mask, key_codes, value, case.hash_code_len, threads)
        attended = native_lsh.sampling(query, key, value, *case.masks, *case.functions, threads)
        return codes, sums, attended, *native_lsh.sampling_gradients(
            query, key, value, *case.masks, grad, *case.functions, threads)

    def spoiled(x, mask):
        return np.where(mask[:, None, :, None], x, np.float32("nan"))

    clean = results(case.query, case.key, case.value, case.grad)
    dirty = results(spoiled(case.query, case.query_mask), spoiled(case.key, case.key_mask), spoiled(case.value, case.key_mask),
                    spoiled(case.grad, case.query_mask))
    for one, other in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kept", [0, 1, 16, 37])
def test_padding_changes_nothing(kept, threads):
    case = make(1, 2, 100, 120, 64, 64, 5, 9)
    masks = [np.arange(rows)[None] < kept for rows in (100, 120)]
    vectors = case.query, case.key, case.value
    found = [native_lsh.sampling(*vectors, *masks, *case.functions, threads),
             *native_lsh.sampling_gradients(*vectors, *masks, case.grad, *case.functions, threads)]
    *vectors, grad = (x[:, :, :kept] for x in (*vectors, case.grad))
    wanted = [native_lsh.sampling(*vectors, None, None, *case.functions, threads),
              *native_lsh.sampling_gradients(*vectors, None, None, grad, *case.functions, threads)]
    for padded, short in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(padded[:, :, :kept], short)
        assert not padded[:, :, kept:].any()


LAYOUTS = {
    "heads side by side": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
    "heads before sequences": lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1),
    "part of wider rows": lambda x: np.concatenate([np.full_like(x, np.nan), x], axis=3)[..., x.shape[3]:],
    "backwards": lambda x: np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1],
    "numbers apart": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    "not aligned": lambda x: np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["as trained", "odd widths", "one row", "no keys"])
def test_vectors_may_lie_anywhere(layout, name, threads):
    case = CASES[name]()
    vectors = case.query, case.key, case.value, case.grad

    def results(query, key, value, grad):
        codes = native_lsh.hash_codes(query, case.query_mask, *case.functions, threads)
        attended = native_lsh.sampling(query, key, value, *case.masks, *case.functions, threads)
        (query_mask, key_mask), (query_codes, key_codes) = case.masks, case.codes()
        weighted = native_lsh.weighted_cumulation(query_mask, query_codes, grad, key_mask, key_codes, value, key,
                                                  case.hash_code_len, threads)
        return codes, attended, weighted, *native_lsh.sampling_gradients(
            query, key, value, *case.masks, grad, *case.functions, threads)

    for one, other in zip(results(*vectors), results(*map(LAYOUTS[layout], vectors)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_row_may_stand_for_all(threads):
    case = CASES["as trained"]()
    key = np.broadcast_to(case.key[:, :, :1], case.key.shape)
    one, other = (native_lsh.sampling(case.query, x, case.value, *case.masks, *case.functions, threads)
                  for x in (key, key.copy()))
    np.testing.assert_array_equal(one, other)


# -- bad input ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", [-1, 512, 2**31 - 1, -(2**31)])
def test_a_code_without_a_bucket_is_refused(wrong, threads):
    case = CASES["as trained"]()
    query_codes, key_codes = case.codes()
    key_codes[1, 2, -1, -1] = wrong
    with pytest.raises(InputError, match="a code is outside of its table"):
        native_lsh.cumulation(None, query_codes, None, key_codes, case.value, case.hash_code_len, threads)


def test_everything_that_does_not_fit_is_named():
    case = CASES["as trained"]()
    query_codes, key_codes = case.codes()
    with pytest.raises(InputError) as refused:
        native_lsh.cumulation(case.query_mask[:, :5], query_codes.astype(np.int64), None, key_codes, case.value[:, :, 1:], 9,
                              Threads(LEVELS[0], 1))
    assert len(refused.value.problems) == 3
    assert "query_mask: got bool [2, 5], expected bool [2, 70]" in str(refused.value)


@pytest.mark.parametrize("part", [np.s_[:1], np.s_[:, :1], np.s_[..., :1]], ids=["batch", "heads", "hashes"])
def test_codes_of_keys_that_belong_to_others_are_refused(part):
    case = CASES["as trained"]()
    query_codes, key_codes = case.codes()
    with pytest.raises(InputError, match="key_codes: got int32"):
        native_lsh.cumulation(None, query_codes, None, key_codes[part], case.value, 9, Threads(LEVELS[0], 1))


@pytest.mark.parametrize("bits", [0, 25, 40])
def test_a_length_of_codes_without_tables_is_refused(bits):
    case = CASES["one row"]()
    with pytest.raises(InputError, match="dimensions"):
        native_lsh.cumulation(None, *case.codes()[:1], None, *case.codes()[1:], case.value, bits, Threads(LEVELS[0], 1))
