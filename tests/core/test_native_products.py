"""What the compiled kernels stand on, level by level: products of bytes against NumPy, vector operations against scalar ones.

Each level is compiled into a library of its own for these tests; AMX with emulated tiles, which any CPU with AVX-512 runs.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

import numpy as np
import pytest

from tests.fixtures.native import LEVELS, needs_library
from tests.packaging.stubs import ROOT

COMPILER = os.environ.get("CXX") or shutil.which("g++")
pytestmark = [needs_library, pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")]

AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx512vnni"]
BUILDS = {
    "scalar": ("scalar", "scalar", "scalar", []),
    "avx2": ("avx2", "avx2", "avx2", ["-mavx2"]),
    "avxvnni": ("avxvnni", "avx2", "avxvnni", ["-mavx2", "-mavxvnni"]),
    "avx512": ("avx512", "avx512", "avx512", AVX512),
    "amx, emulated": ("avx512", "avx512", "amx", [*AVX512, "-DBERTKIT_EMULATE_AMX"]),
}
"""By name: the level that the CPU must have, which simd_*.h, which product_*.h, and options."""


@pytest.fixture(scope="module", params=BUILDS)
def level(request, tmp_path_factory) -> Level:
    needed, *what = BUILDS[request.param]
    if needed not in LEVELS:
        pytest.skip(f"this CPU has no {needed}")
    return Level(tmp_path_factory.mktemp("level") / "level.so", *what)


@pytest.fixture(scope="module")
def scalar(tmp_path_factory) -> Level:
    return Level(tmp_path_factory.mktemp("level") / "level.so", *BUILDS["scalar"][1:])


def pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


class Level:
    """The library of a level, on arrays."""

    def __init__(self, path, simd: str, product: str, options: list[str]) -> None:
        subprocess.run([COMPILER, "-std=c++20", "-O2", "-w", "-shared", "-fPIC", *options, f"-I{ROOT / 'bertkit/core/csrc'}",
                        f'-DSIMD="simd_{simd}.h"', f'-DPRODUCT="product_{product}.h"', "-o", path,
                        ROOT / "tests/core/native_products.cpp"], check=True)
        self.functions = ctypes.CDLL(str(path))
        for name in ("panel_bytes", "operations", "lanes"):
            getattr(self.functions, name).restype = ctypes.c_int64
        shape = np.zeros(4, np.int64)
        self.functions.shape(pointer(shape))
        self.rows, self.columns, self.depth_step, self.flip = shape.tolist()
        self.lanes = self.functions.lanes()

    def linear(self, x: np.ndarray, weight: np.ndarray, start: np.ndarray | None, flip: int) -> np.ndarray:
        """x @ weight.T + start for signed rows, where the columns of the panel are rows in memory."""
        source = weight ^ np.array(flip, np.uint8).view(np.int8)
        panel = self.panel(x.shape[1])
        self.functions.pack_rows(pointer(source), ctypes.c_int64(source.shape[1]), ctypes.c_int64(len(source)),
                                 ctypes.c_int64(x.shape[1]), pointer(start), ctypes.c_uint8(flip), pointer(panel))
        return self.multiply(x ^ np.array(self.flip, np.uint8).view(np.int8), panel, len(weight))

    def mixed(self, probabilities: np.ndarray, values: np.ndarray, flip: int) -> np.ndarray:
        """probabilities @ values for unsigned rows, where the columns of the panel are columns in memory."""
        source = values ^ np.array(flip, np.uint8).view(np.int8)
        panel = self.panel(len(values))
        self.functions.pack_columns(pointer(source), ctypes.c_int64(source.shape[1]), ctypes.c_int64(source.shape[1]),
                                    ctypes.c_int64(len(values)), ctypes.c_uint8(flip), pointer(panel))
        return self.multiply(probabilities, panel, values.shape[1])

    def panel(self, depth: int) -> np.ndarray:
        """Memory for a panel, with something in it."""
        size = self.functions.panel_bytes(ctypes.c_int64(depth))
        assert size % 64 == 0
        return np.full(size, 0x55, np.uint8)

    def multiply(self, rows: np.ndarray, panel: np.ndarray, columns: int) -> np.ndarray:
        """The product, in the midst of numbers that it must neither use nor write over, with other work done beside it."""
        count, depth = rows.shape
        stride = -(-depth // self.depth_step) * self.depth_step + 5
        wide = np.random.default_rng(0).integers(0, 256, (self.rows, stride), np.uint8)
        wide[:count, :depth] = rows.view(np.uint8)
        out = np.full((self.rows, self.columns + 16), -1, np.int32)
        assert self.functions.multiply(
            int(rows.dtype == np.int8), pointer(wide), ctypes.c_int64(stride), ctypes.c_int64(count), pointer(panel),
            ctypes.c_int64(depth), pointer(out), ctypes.c_int64(out.shape[1]))
        assert (out[:, self.columns:] == -1).all()
        return out[:count, :columns]


def draw(random: np.random.Generator, values: str, dtype: type, shape: tuple[int, int]) -> np.ndarray:
    """Bytes of a kind."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if values == "any":
        return random.integers(low, high, shape, dtype, endpoint=True)
    return random.choice(np.array({"lowest": [low], "highest": [high], "extreme": [low, high]}[values], dtype), shape)


def expected(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return rows.astype(np.int64) @ columns.astype(np.int64)


@pytest.mark.parametrize("values", ["any", "lowest", "highest", "extreme"])
@pytest.mark.parametrize("depth", [1, 3, 4, 17, 63, 64, 65, 130, 1025])
def test_products_are_numpys(level, depth, values):
    random = np.random.default_rng(depth)
    for rows in sorted({1, 2, level.rows // 2, level.rows // 2 + 1, level.rows}):
        for columns in (1, level.columns // 2 + 1, level.columns):
            x, weight = draw(random, values, np.int8, (rows, depth)), draw(random, values, np.int8, (columns, depth))
            start = random.integers(-(2**30), 2**30, columns, np.int32)
            for flip in {0, level.flip}:
                np.testing.assert_array_equal(level.linear(x, weight, start, flip), expected(x, weight.T) + start)
                np.testing.assert_array_equal(level.linear(x, weight, None, flip), expected(x, weight.T))
                probabilities = draw(random, values, np.uint8, (rows, depth))
                mixed = level.mixed(probabilities, np.ascontiguousarray(weight.T), flip)
                np.testing.assert_array_equal(mixed, expected(probabilities, weight.T))


def test_the_largest_sums_that_freezing_lets_through(level):
    depth = (2**31 - 1) // (128 * 127)
    rows, columns = (np.repeat(np.array([[low], [127]], np.int8), depth, 1) for low in (-128, -127))
    np.testing.assert_array_equal(level.linear(rows, columns, None, 0), expected(rows, columns.T))


def numbers(count: int) -> dict[str, np.ndarray]:
    """Arguments of the vector operations, extreme ones among them."""
    random = np.random.default_rng(1)
    edges = np.array([0, 1, -1, 127, 128, -128, -129, 2**31 - 1, -(2**31)], np.int64)
    wide_edges = np.array([0, 1, -1, 2**31, -(2**31) - 1, 2**32, 2**60, -(2**60)], np.int64)

    def some(among: np.ndarray, others: np.ndarray) -> np.ndarray:
        return np.where(random.random(count) < 0.4, random.choice(among, count), others)

    x, y = (some(edges, random.integers(-(2**31), 2**31, count) >> random.integers(0, 31, count)) for _ in range(2))
    a, b = (some(wide_edges, random.integers(-(2**60), 2**60, count) >> random.integers(0, 60, count)) for _ in range(2))
    return {"x": x.astype(np.int32), "y": y.astype(np.int32), "small": random.integers(0, 256, count, np.int32), "a": a, "b": b,
            "counts": random.integers(0, 63, count), "bytes": random.integers(-128, 128, count, np.int8)}


def test_vector_operations_are_the_scalar_ones(level, scalar):
    count, most = 4096, 128
    arguments = numbers(count)
    results = []
    for library in (level, scalar):
        out = np.zeros((most, count), np.int64)
        operations = library.functions.operations(ctypes.c_int64(count), *map(pointer, arguments.values()), pointer(out))
        results.append(out[:operations])
    assert len(results[0]) > 50
    np.testing.assert_array_equal(*results)


def test_operations_on_the_first_lanes_leave_the_others_alone(level):
    arguments = numbers(level.lanes)
    x, a, low = arguments["x"], arguments["a"] >> 5, arguments["bytes"]
    for count in range(1, level.lanes + 1):
        both, lanes, loaded = np.zeros(2, np.int64), np.zeros(level.lanes, np.int32), np.zeros(level.lanes, np.int32)
        stored = np.full(level.lanes + 1, 77, np.int8)
        level.functions.across(ctypes.c_int64(count), *map(pointer, (x, a, low, both, lanes, loaded, stored)))
        first = np.arange(level.lanes) < count
        assert both.tolist() == [x.max(), a.sum()]
        np.testing.assert_array_equal(lanes, np.where(first, x, 0))
        np.testing.assert_array_equal(loaded, np.where(first, low, 0))
        np.testing.assert_array_equal(stored, [*np.where(first, np.clip(x, -128, 127), 77), 77])
