"""The engine of two-way tables: names, groups, operations, and what does not go together."""

from __future__ import annotations

import numpy as np
import pytest

from bertkit.convert.rules import (
    TRANSPOSED,
    Change,
    Operation,
    filled,
    inverted,
    module,
    numbers_of,
    prefixed,
    table,
    tensor,
    translate,
)
from bertkit.core.errors import CheckpointError
from bertkit.core.tensors import RawTensor, lazy, stored

CUT = Operation("split", lambda arrays, facts: np.split(arrays[0], facts["parts"]),
                lambda arrays, facts: [np.concatenate(arrays)])
TABLE = table(
    module("layers.{i}.fc", "encoder.{i}.dense"),
    tensor("layers.{i}.qkv", tuple(f"encoder.{{i}}.{name}" for name in ("query", "key", "value")), CUT),
    tensor("layers.{i+1}.input", "encoder.{i}.output"),
    tensor("layers.0.input", "embeddings.output"),
    tensor("head.kernel", "head.weight", TRANSPOSED),
    tensor("blocks.{i}.{j}.w", "blocks.{j}.{i}.w"),
)
FACTS = {"parts": 3}


def numbered(*shape, dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def original(dtype=np.float32):
    return {
        "layers.1.qkv": numbered(6, 2, dtype=dtype), "layers.1.fc.weight": numbered(2, 3, dtype=dtype),
        "layers.1.fc.bias": numbered(2, dtype=dtype), "layers.0.input": numbered(1, dtype=dtype),
        "layers.12.input": numbered(1, dtype=dtype) + 1, "head.kernel": numbered(2, 5, dtype=dtype),
        "blocks.3.10.w": numbered(4, dtype=dtype),
    }


def values(tensors):
    return {name: tensor() for name, tensor in tensors.items()}


@pytest.mark.parametrize(("template", "name", "numbers"), [
    ("a.{i}.b", "a.3.b", {"i": 3}), ("a.{i}.b", "a.12345.b", {"i": 12345}), ("a.{i}.b", "a.x.b", None),
    ("a.{i}.b", "a.03.b", None), ("a.{i}.b", "a.3.b.c", None), ("a_{i}/{j}", "a_0/10", {"i": 0, "j": 10}),
    ("a.{i+1}", "a.1", {"i": 0}), ("a.{i+1}", "a.0", None), ("a+b.{i}", "a+b.1", {"i": 1}), ("a.b", "a.b", {}),
    ("a.b", "axb", None), ("{i}{x}", "1x", None),
])
def test_templates(template, name, numbers):
    assert numbers_of(template, name) == numbers
    if numbers is not None:
        assert filled(template, numbers) == name


@pytest.mark.parametrize("dtype", [np.float16, np.float32, "BF16"])
def test_there_and_back(dtype):
    first = original(np.uint16 if dtype == "BF16" else dtype)
    if dtype == "BF16":
        first = {name: RawTensor(value, "BF16") for name, value in first.items()}
    there = translate({name: lazy(value) for name, value in first.items()}, TABLE, FACTS).check("wrong")
    assert set(there.tensors) == {
        "encoder.1.query", "encoder.1.key", "encoder.1.value", "encoder.1.dense.weight", "encoder.1.dense.bias",
        "embeddings.output", "encoder.11.output", "head.weight", "blocks.10.3.w"}
    assert np.array_equal(stored(there.tensors["encoder.1.key"]())[0], stored(first["layers.1.qkv"])[0][2:4])
    assert there.tensors["head.weight"].shape == (5, 2) == stored(there.tensors["head.weight"]())[0].shape
    back = translate(there.tensors, inverted(TABLE), FACTS).check("wrong")
    assert back.tensors.keys() == first.keys()
    for name, value in values(back.tensors).items():
        bits, kind = stored(value)
        assert kind == back.tensors[name].dtype == stored(first[name])[1]
        np.testing.assert_array_equal(bits, stored(first[name])[0], err_msg=name)


def test_what_was_done_is_told():
    done = translate({"head.kernel": lazy(numbered(2, 5)), "layers.0.qkv": lazy(numbered(3))}, TABLE, FACTS).changes
    assert done == [Change("transposed", ("head.kernel",), ("head.weight",)),
                    Change("split", ("layers.0.qkv",), ("encoder.0.query", "encoder.0.key", "encoder.0.value"))]


def test_a_group_is_read_once_and_forgotten():
    reads = []
    whole = lazy(numbered(6))
    source = type(whole)(whole.shape, whole.dtype, lambda: (reads.append(1), numbered(6))[1])
    parts = list(translate({"layers.0.qkv": source}, TABLE, FACTS).tensors.values())
    assert not reads and [part()[0] for part in parts] == [0, 2, 4] and len(reads) == 1
    assert parts[0]()[0] == 0 and len(reads) == 2


@pytest.mark.parametrize(("tensors", "message"), [
    ({"layers.0.strange": numbered(1)}, "unknown: layers.0.strange"),
    ({"layers.0.qkv": numbered(4)}, r"cannot be split: layers.0.qkv F32 \[4\]"),
    ({"layers.0.qkv": numbered(3), "same": numbered(1)}, "unknown: same"),
])
def test_what_does_not_go_together(tensors, message):
    with pytest.raises(CheckpointError, match=message):
        translate({name: lazy(value) for name, value in tensors.items()}, TABLE, FACTS).check("wrong")


def test_incomplete_groups_and_names_that_appear_twice():
    back = {"encoder.0.query": lazy(numbered(1)), "encoder.0.value": lazy(numbered(1))}
    assert translate(back, inverted(TABLE), FACTS).problems == [
        "missing: encoder.0.key, which goes with encoder.0.query"]
    mixed = {f"encoder.0.{name}": lazy(numbered(1, dtype=dtype))
             for name, dtype in (("query", np.float16), ("key", np.float32), ("value", np.float32))}
    assert "the dtypes differ: F16, F32" in translate(mixed, inverted(TABLE), FACTS).problems[0]
    both = table(tensor("a", "c"), tensor("b", "c"))
    assert translate({"a": lazy(numbered(1)), "b": lazy(numbered(1))}, both).problems == ["twice: c, the second time from b"]


def test_left_out_by_name_or_prefix():
    found = translate({"optimizer.x.y": lazy(numbered(1)), "layers.7.rope": lazy(numbered(1)), "optimum": lazy(numbered(1))},
                      TABLE, FACTS, {"optimizer.*": "of the training", "layers.{i}.rope": "derived"})
    assert found.left_out == {"optimizer.x.y": "of the training", "layers.7.rope": "derived"}
    assert found.unknown == ["optimum"]


def test_prefixes():
    (rule,) = prefixed(tensor("a", "b"), theirs="model.", ours="bert.")
    assert (rule.theirs, rule.ours) == (("model.a",), ("bert.b",))
