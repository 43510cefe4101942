"""What needs a process of its own: what imports load, the Keras backend, replicas on several devices."""

import os
import subprocess
import sys
import textwrap

import pytest


def run(code, **environment):
    """Run Python code in a fresh process."""
    return subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True,
                          check=False, env={**os.environ, **environment})


@pytest.mark.parametrize(("statement", "absent"), [
    ("import bertkit_tf", {"tensorflow", "keras", "torch"}),
    ("import bertkit_tf; bertkit_tf.MobileBertConfig", {"tensorflow", "keras", "torch"}),
    ("import bertkit_tf; bertkit_tf.TFMobileBertModel", {"torch"}),
])
def test_imports_load_no_more_than_they_need(statement, absent):
    found = run(f"{statement}; import sys; print(*({absent!r} & sys.modules.keys()))")
    assert (found.returncode, found.stdout.strip()) == (0, ""), found.stderr


def test_another_backend_of_keras_is_refused():
    code = """
        import sys, types
        keras = types.ModuleType("keras"); keras.backend = types.SimpleNamespace(backend=lambda: "torch")
        sys.modules["keras"] = keras
        import bertkit_tf
        from bertkit.core.errors import BackendError
        try:
            bertkit_tf.TFMobileBertModel
        except BackendError as error:
            print(error)
    """
    found = run(code)
    assert "KERAS_BACKEND=tensorflow" in found.stdout, found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["None", "keras.losses.SparseCategoricalCrossentropy(from_logits=True)"])
def test_replicas_train_as_one_device_does(loss):
    code = f"""
        import numpy as np, tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        import keras
        from tests import cases
        from tests.tf.common import assert_same, make
        task = "ForSequenceClassification"
        x, y = cases.features("megatron-bert", rows=4), cases.labels(task, rows=4)["labels"]
        weights, losses = [], []
        for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
            with strategy.scope():
                model = make("megatron-bert", task, num_hidden_layers=1)
                model.compile(keras.optimizers.SGD(0.1), loss={loss})
            losses.append(model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"])
            weights.append(model.get_weights())
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
        assert_same(weights[1], weights[0], 1e-5)
        assert len(model.predict(x, batch_size=4, verbose=0).logits) == 4
        print("same", strategy.num_replicas_in_sync)
    """
    found = run(code)
    assert found.stdout.split()[-2:] == ["same", "2"], found.stderr[-3000:]
