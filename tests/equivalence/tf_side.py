"""Running a golden case, or a model of the spec, in TensorFlow; everything goes in and comes out as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import bertkit_tf
from bertkit_tf import state
from tests.equivalence.runner import config_of, golden_value
from tests.fixtures.cases import Case
from tests.fixtures.load import flatten, objective_probes


def make(class_name: str, config: Any, **init: Any) -> Any:
    """A model by the name of its class, with or without the prefix TF."""
    return getattr(bertkit_tf, "TF" + class_name.removeprefix("TF"))(config, **init)


def run_case(case: Case) -> tuple[dict, dict, dict]:
    """Outputs, gradients and statistics of a golden case, by name."""
    model = make(case.class_name, config_of(case), **case.init)
    params = model.params()
    for param in params.values():
        value = golden_value(param, case) if param.stored else None
        if value is not None:
            state.set_value(model, param, value)
    outputs, gradients = run(model, case.inputs, training=case.training, **case.options)
    statistics = {name: np.asarray(state.get_variable(model, p).value) for name, p in params.items() if p.kind == "stat"}
    return outputs, gradients, statistics


def run(model: Any, inputs: Mapping[str, Any], **options: Any) -> tuple[dict, dict]:
    """Outputs of a call, and the gradient of its loss (or of the objective) for every parameter, in layout of the disk."""
    with tf.GradientTape() as tape:
        output = model(**{name: tensor(value) for name, value in inputs.items()}, **options)
        objective = output.get("loss")
        if objective is None:
            probes = objective_probes(output)
            objective = tf.add_n([tf.reduce_sum(output[name] * probe) for name, probe in probes.items()])
    trained = [p for p in model.params().values() if p.stored and p.kind != "stat"]
    found = tape.gradient(objective, [state.get_variable(model, p).value for p in trained])
    gradients = {p.name: state.to_disk(p, tf.convert_to_tensor(g).numpy())
                 for p, g in zip(trained, found, strict=True) if g is not None}
    return flatten(tf.nest.map_structure(lambda value: value.numpy(), dict(output))), gradients


def step(model: Any, rate: float, gradients: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every stored parameter after one step of gradient descent."""
    params = model.params()
    pairs = [(state.to_keras(params[name], g), state.get_variable(model, params[name])) for name, g in gradients.items()]
    keras.optimizers.SGD(rate).apply(*zip(*[(tf.constant(g), v) for g, v in pairs], strict=True))
    return {name: state.to_disk(p, np.asarray(state.get_variable(model, p).value)) for name, p in params.items() if p.stored}


def tensor(value: Any) -> Any:
    """Arrays, also in nested tuples, as tensors."""
    return tuple(map(tensor, value)) if isinstance(value, tuple) else tf.convert_to_tensor(value)
