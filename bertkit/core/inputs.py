"""Checks of what a model is called with: one error that lists everything that does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bertkit.core.errors import InputError

Shape = Sequence[int | None]
"""A shape whose unknown dimensions (inside a traced TensorFlow graph) are None."""


def check_shapes(
    config: Any, shapes: Mapping[str, Shape], *, embedding_width: int, max_tokens: int, past: int = 0,
    problems: Sequence[str] = (),
) -> None:
    """Check the shapes of a call's inputs against each other and against the configuration.

    Args:
        config: the model's configuration, for the error message.
        shapes: shape by argument name, of the inputs that were given.
        embedding_width: width of `inputs_embeds`.
        max_tokens: longest sequence, the cached tokens included.
        past: number of cached tokens.
        problems: what was found wrong before, to be told in the same error.

    Raises:
        InputError: listing every problem.
    """
    problems = list(problems)
    if ("input_ids" in shapes) == ("inputs_embeds" in shapes):
        given = "both" if "input_ids" in shapes else "neither"
        problems.append(f"input_ids, inputs_embeds: got {given}, expected exactly one of them")
    expected = {"input_ids": 2, "inputs_embeds": 3, "token_type_ids": 2, "position_ids": 2}
    for name, rank in expected.items():
        if name in shapes and len(shapes[name]) != rank:
            problems.append(f"{name}: got shape {_show(shapes[name])}, expected {rank} dimensions "
                            f"[batch, length{', width' if rank == 3 else ''}]")
    if "head_mask" in shapes:
        problems += _head_mask(config, shapes["head_mask"])
    main = shapes.get("input_ids", shapes.get("inputs_embeds"))
    if main is not None and len(main) >= 2 and not problems:
        problems += _against_main(config, main[0], main[1], shapes, past)
        if "inputs_embeds" in shapes and shapes["inputs_embeds"][2] not in (None, embedding_width):
            problems.append(f"inputs_embeds: got width {shapes['inputs_embeds'][2]}, expected {embedding_width}")
        if main[1] is not None and past + main[1] > max_tokens and "position_ids" not in shapes:
            problems.append(f"sequence length: got {past + main[1]} tokens, this {type(config).__name__} takes at most "
                            f"{max_tokens} (max_position_embeddings={config.max_position_embeddings}); truncate the text")
    if problems:
        raise InputError("the model's inputs do not fit", problems)


def _against_main(
    config: Any, batch: int | None, length: int | None, shapes: Mapping[str, Shape], past: int
) -> list[str]:
    total = None if length is None else length + past
    fits: dict[str, list[Shape]] = {
        "token_type_ids": [(batch, length), (1, length)],
        "position_ids": [(batch, length), (1, length)],
        "attention_mask": [(batch, total), (batch, length, total), (batch, 1, length, total), (batch, None, length, total)],
    }
    if "encoder_hidden_states" in shapes:
        states = shapes["encoder_hidden_states"]
        seen = states[1] if len(states) == 3 else None
        fits["encoder_hidden_states"] = [(batch, None, config.hidden_size)]
        fits["encoder_attention_mask"] = [(batch, seen), (batch, length, seen), (batch, 1, length, seen)]
    return [
        f"{name}: got shape {_show(shapes[name])}, expected {' or '.join(_show(s) for s in allowed[:2])}"
        for name, allowed in fits.items()
        if name in shapes and not any(_same(shapes[name], shape) for shape in allowed)
    ]


def _head_mask(config: Any, shape: Shape) -> list[str]:
    layers = range(config.num_hidden_layers)
    heads = sorted({config.kept_heads(layer) for layer in layers})
    fits = [[(config.kept_heads(layer),), (len(layers), config.kept_heads(layer)),
             (len(layers), None, config.kept_heads(layer), None, None)] for layer in layers]
    if all(any(_same(shape, allowed) for allowed in shapes) for shapes in fits):
        return []
    count = " or ".join(map(str, heads))
    return [f"head_mask: got shape {_show(shape)}, expected [{count}] or [{len(layers)}, {count}]"]


def _same(got: Shape, expected: Shape) -> bool:
    return len(got) == len(expected) and all(g == e or g is None or e is None for g, e in zip(got, expected, strict=True))


def _show(shape: Shape) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def check_operation(name: str, tensors: Mapping[str, tuple[Shape, str]], problems: Sequence[str] = ()) -> None:
    """Check the tensors that an operation of YOSO is called with.

    The end of a tensor's name says which axes it has: B and L of `mask_BL` are as long as those of the tensors before it. Batch
    and lengths (B, L, S) may be 0. Codes are int32, masks anything, and all else is in floating point.

    Args:
        name: the operation.
        tensors: shape and dtype by argument name.
        problems: what was found wrong before, to be told in the same error.

    Raises:
        InputError: listing every problem.

    Example:
        >>> check_operation("sum", {"value_BSE": ((2, 7, 64), "float32"), "key_mask_BS": ((2, 5), "bool")})
        Traceback (most recent call last):
        bertkit.core.errors.InputError: the inputs of sum do not fit together
          - key_mask_BS: got shape [2, 5], expected [2, 7]
    """
    known: dict[str, int] = {}
    wrong, floats = list(problems), set()
    for tensor, (shape, dtype) in tensors.items():
        axes = tensor.rpartition("_")[2]
        if "codes_" in tensor and dtype != "int32":
            wrong.append(f"{tensor}: got {dtype}, expected int32")
        elif "codes_" not in tensor and "mask_" not in tensor:
            floats.add(dtype)
            if "float" not in dtype:
                wrong.append(f"{tensor}: got {dtype}, expected a floating-point dtype")
        fits = len(shape) == len(axes)
        for axis, size in zip(axes, shape, strict=True) if fits else ():
            if size is not None and (known.setdefault(axis, size) != size or (size < 1 and axis not in "BLS")):
                fits = False
        if not fits:
            wrong.append(f"{tensor}: got shape {_show(shape)}, expected [{', '.join(str(known.get(x) or x) for x in axes)}]")
    if "float64" in floats and len(floats) > 1:
        wrong.append(f"dtypes: got {', '.join(sorted(floats))}, expected no other one beside float64")
    if wrong:
        raise InputError(f"the inputs of {name} do not fit together", wrong)


def check_codes(bounds: Mapping[str, Sequence[int]], capacity: int) -> None:
    """Check that hash codes have a bucket.

    Args:
        bounds: the least and the greatest code by argument name.
        capacity: the buckets of a table.

    Raises:
        InputError: listing every argument with a code outside.
    """
    problems = [f"{name}: got codes from {least} to {most}, expected 0 to {capacity - 1}"
                for name, (least, most) in bounds.items() if least < 0 or most >= capacity]
    if problems:
        raise InputError("there are codes without a bucket", problems, "Codes of so many bits need a capacity of 2**bits.")


def check_range(name: str, lowest: int, highest: int, rows: int) -> None:
    """Check that indices lie inside a table.

    Raises:
        InputError: with the offending values.
    """
    if lowest < 0 or highest >= rows:
        raise InputError(f"{name}: got values from {lowest} to {highest}, expected 0 to {rows - 1}",
                         remedy="Does the tokenizer belong to this model?")
