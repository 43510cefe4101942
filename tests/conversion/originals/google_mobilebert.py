"""Synthetic originals of Google's MobileBERT: the variables, the checkpoint files and the forward pass of its programs.

Names and shapes are those that `BertModel` and the three programs (run_pretraining, run_squad, run_classifier) make, with the
slots of their optimizer, written with TensorFlow's own Saver. Nothing here knows bertkit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Shapes = dict[str, tuple[int, ...]]

_COMMON: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.1, "hidden_size": 20, "initializer_range": 0.02, "intermediate_size": 28,
    "max_position_embeddings": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "type_vocab_size": 2, "vocab_size": 37,
    "embedding_size": 8, "trigram_input": True, "use_bottleneck": True, "intra_bottleneck_size": 12,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "student": {**_COMMON, "hidden_act": "relu", "hidden_dropout_prob": 0.0, "key_query_shared_bottleneck": True,
                "num_feedforward_networks": 3, "normalization_type": "no_norm", "classifier_activation": False},
    "tiny": {**_COMMON, "hidden_act": "relu", "hidden_dropout_prob": 0.0, "use_bottleneck_attention": True,
             "num_feedforward_networks": 2, "normalization_type": "no_norm", "classifier_activation": False},
    "teacher": {**_COMMON, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "intra_bottleneck_size": 24},
    "quantized": {**_COMMON, "hidden_act": "relu6", "hidden_dropout_prob": 0.0, "key_query_shared_bottleneck": True,
                  "num_feedforward_networks": 2, "normalization_type": "no_norm", "classifier_activation": False},
    "plain": {key: _COMMON[key] for key in _COMMON if key not in ("embedding_size", "trigram_input", "use_bottleneck",
                                                                  "intra_bottleneck_size")}
    | {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "normalization_type": "manual_layer_norm"},
}
"""Miniatures of the JSON files: keys and their absence as there, sizes all different."""

HEADS = ("pretraining", "squad", "classifier")


# -- variables ----------------------------------------------------------------------------------------------------------
def shapes(settings: Mapping[str, Any], head: str = "pretraining", scope: str = "bert") -> Shapes:
    """Every weight of a program, by name."""
    words, hidden = settings["vocab_size"], settings["hidden_size"]
    narrow = settings.get("embedding_size") or hidden
    true_norm = settings.get("normalization_type", "layer_norm") != "no_norm"
    norm = "LayerNorm" if true_norm else "FakeLayerNorm"
    made: Shapes = {
        f"{scope}/embeddings/word_embeddings": (words, narrow),
        f"{scope}/embeddings/token_type_embeddings": (settings["type_vocab_size"], hidden),
        f"{scope}/embeddings/position_embeddings": (settings["max_position_embeddings"], hidden),
        **_norm(f"{scope}/embeddings/{norm}", hidden),
    }
    trigram = settings.get("trigram_input", False)
    if trigram or narrow != hidden:
        made |= _dense(f"{scope}/embeddings/embedding_transformation", narrow * (3 if trigram else 1), hidden)
    for layer in range(settings["num_hidden_layers"]):
        made |= {f"{scope}/encoder/layer_{layer}/{name}": shape for name, shape in _layer(settings, norm)}
    if settings.get("classifier_activation", True):
        made |= _dense(f"{scope}/pooler/dense", hidden, hidden)
    return made | _head(settings, head, narrow)


def _layer(settings: Mapping[str, Any], norm: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = settings["hidden_size"], settings["intermediate_size"]
    bottleneck = settings.get("use_bottleneck", False)
    width = settings["intra_bottleneck_size"] if bottleneck else hidden
    narrow_attention = settings.get("use_bottleneck_attention", False)
    shared = settings.get("key_query_shared_bottleneck", False)
    asking = width if bottleneck and (narrow_attention or shared) else hidden
    values = width if bottleneck and narrow_attention else hidden
    if bottleneck:
        yield from _dense("bottleneck/input/dense", hidden, width).items()
        yield from _norm(f"bottleneck/input/{norm}", width).items()
        if shared and not narrow_attention:
            yield from _dense("bottleneck/attention/dense", hidden, width).items()
            yield from _norm(f"bottleneck/attention/{norm}", width).items()
    yield from _dense("attention/self/query", asking, width).items()
    yield from _dense("attention/self/key", asking, width).items()
    yield from _dense("attention/self/value", values, width).items()
    yield from _dense("attention/output/dense", width, width).items()
    yield from _norm(f"attention/output/{norm}", width).items()
    for network in [f"ffn_layer_{i}/" for i in range(settings.get("num_feedforward_networks", 1) - 1)] + [""]:
        yield from _dense(f"{network}intermediate/dense", width, inner).items()
        yield from _dense(f"{network}output/dense", inner, width).items()
        yield from _norm(f"{network}output/{norm}", width).items()
    if bottleneck:
        yield from _dense("output/bottleneck/dense", width, hidden).items()
        yield from _norm(f"output/bottleneck/{norm}", hidden).items()


def _head(settings: Mapping[str, Any], head: str, narrow: int) -> Shapes:
    words, hidden = settings["vocab_size"], settings["hidden_size"]
    if head == "squad":
        return {"cls/squad/output_weights": (2, hidden), "cls/squad/output_bias": (2,)}
    if head == "classifier":
        return {"output_weights": (3, hidden), "output_bias": (3,)}
    extra = {"cls/predictions/extra_output_weights": (words, hidden - narrow)} if narrow != hidden else {}
    return {
        **_dense("cls/predictions/transform/dense", hidden, hidden), **_norm("cls/predictions/transform/LayerNorm", hidden),
        "cls/predictions/output_bias": (words,), **extra,
        "cls/seq_relationship/output_weights": (2, hidden), "cls/seq_relationship/output_bias": (2,),
    }


def _dense(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}/beta": (width,), f"{name}/gamma": (width,)}


def values(made: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Numbers for variables, all different, of a size that keeps the forward pass alive."""
    random = np.random.default_rng(seed)
    return {name: (random.standard_normal(shape) * 0.4 + name.endswith("gamma")).astype(np.float32)
            for name, shape in made.items()}


def baggage(weights: Mapping[str, np.ndarray], kind: str = "student") -> dict[str, np.ndarray]:
    """What a training run saves beside the weights: slots of the optimizer, the step, the teacher, ranges of quantisation."""
    made = {f"{name}/{slot}": np.full_like(value, 0.25) for name, value in weights.items() for slot in ("adam_m", "adam_v")}
    made["global_step"] = np.array(740000, np.int64)
    if kind == "student":
        made["teacher/bert/embeddings/word_embeddings"] = np.ones((5, 3), np.float32)
        made["hidden_distill_0/LayerNorm_1/gamma"] = np.ones(4, np.float32)
    if kind == "quantized":
        for place in ("bottleneck/input/dense/MobileBertActFakeQuantWithMinMaxVars",
                      "attention/self/query/MobileBertWeightFakeQuantWithMinMaxVars_1"):
            for end in ("min", "max"):
                made[f"bert/encoder/layer_0/{place}/{end}"] = np.array(-6, np.float32)
        made["bert/encoder/layer_0/bottleneck/input/FakeLayerNorm/MobileBertActFakeQuantWithMinMaxVars_2/min/biased"] = \
            np.array(1, np.float32)
    return made


# -- files --------------------------------------------------------------------------------------------------------------
def save(directory: Path, settings: Mapping[str, Any], variables: Mapping[str, np.ndarray], *,
         name: str = "mobilebert_variables.ckpt", vocabulary: Iterable[str] = ()) -> Path:
    """Write a checkpoint as the programs do: the triplet of TensorFlow's Saver, its note, and the JSON file."""
    import tensorflow.compat.v1 as tf

    directory.mkdir(parents=True, exist_ok=True)
    with tf.Graph().as_default(), tf.Session() as session:
        for variable, value in variables.items():
            tf.get_variable(variable, initializer=value, use_resource=False)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(directory / name))
    (directory / "bert_config.json").write_text(json.dumps(settings, indent=2))
    if vocabulary:
        (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return directory


def restore(prefix: Path, variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What TensorFlow's Saver restores into a graph with these variables."""
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session() as session:
        made = {name: tf.get_variable(name, value.shape, dtype=value.dtype) for name, value in variables.items()}
        tf.train.Saver().restore(session, str(prefix))
        return dict(zip(made, session.run(list(made.values())), strict=True))


GARDEN_EMBEDDINGS = {
    "word_embeddings": "word_embedding/embeddings", "position_embeddings": "position_embedding/embeddings",
    "token_type_embeddings": "type_embedding/embeddings", "embedding_transformation": "embedding_projection",
    "NORM": "embedding_norm",
}
GARDEN_LAYER = {
    "bottleneck/input/dense": "bottleneck_input/dense", "bottleneck/input/NORM": "bottleneck_input/norm",
    "bottleneck/attention/dense": "kq_shared_bottleneck/dense", "bottleneck/attention/NORM": "kq_shared_bottleneck/norm",
    "attention/self/query": "attention/query", "attention/self/key": "attention/key", "attention/self/value": "attention/value",
    "attention/output/dense": "attention/attention_output", "attention/output/NORM": "attention/norm",
    "output/bottleneck/dense": "bottleneck_output/dense", "output/bottleneck/NORM": "bottleneck_output/norm",
}
GARDEN_NETWORK = {"intermediate/dense": "intermediate_dense", "output/dense": "output_dense", "output/NORM": "norm"}


def garden(settings: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights under the names and in the shapes of the Model Garden's layers, which have no next-sentence head."""
    heads, last = settings["num_attention_heads"], settings.get("num_feedforward_networks", 1) - 1
    places = {f"embeddings/{old}": f"mobile_bert_embedding/{new}" for old, new in GARDEN_EMBEDDINGS.items()}
    places["pooler/dense"] = "pooler"
    for layer in range(settings["num_hidden_layers"]):
        old_layer, new_layer = f"encoder/layer_{layer}", f"transformer_layer_{layer}"
        places |= {f"{old_layer}/{old}": f"{new_layer}/{new}" for old, new in GARDEN_LAYER.items()}
        for index, network in enumerate([f"ffn_layer_{i}/" for i in range(last)] + [""]):
            places |= {f"{old_layer}/{network}{old}": f"{new_layer}/ffn_layer_{index}/{new}"
                       for old, new in GARDEN_NETWORK.items()}
    made = {}
    for name, value in weights.items():
        if name.startswith("cls/predictions/"):
            made["bert/" + name.replace("output_bias", "output_bias/bias")] = value
        elif name.startswith("bert/"):
            place, _, leaf = re.sub("(Fake)?LayerNorm", "NORM", name.removeprefix("bert/")).rpartition("/")
            new = places[place] + f"/{leaf}" if place in places else places[f"{place}/{leaf}"]
            if "/attention_output/kernel" in new:
                value = value.reshape(heads, -1, value.shape[-1])
            elif any(f"/attention/{part}/" in new for part in ("query", "key", "value")):
                value = value.reshape(*value.shape[:-1], heads, -1)
            made[new] = value
    return made


def save_garden(directory: Path, settings: Mapping[str, Any], variables: Mapping[str, np.ndarray]) -> Path:
    """Write a TensorFlow 2 checkpoint whose object graph gives each variable its full name, with the slots of Adam."""
    import tensorflow as tf

    def tree(names: Iterable[str]) -> tf.Module:
        """Objects of some class, nested in some way: readers go by the full names."""
        root = tf.Module()
        for index, name in enumerate(names):
            owner = root
            for part in ("layer", f"part_{index % 3}"):
                if not hasattr(owner, part):
                    setattr(owner, part, tf.Module())
                owner = getattr(owner, part)
            setattr(owner, f"variable_{index}", tf.Variable(variables[name], name=name))
        return root

    head = [name for name in variables if "cls/predictions" in name]
    encoder, masked_lm = tree(name for name in variables if name not in head), tree(head)
    masked_lm.embedding_table = encoder.layer.part_0.variable_0
    optimizer = tf.Module()
    optimizer.iterations = tf.Variable(7, dtype=tf.int64, name="Adam/iterations")
    tf.train.Checkpoint(encoder=encoder, masked_lm=masked_lm, optimizer=optimizer).save(str(directory / "bert_model.ckpt"))
    (directory / "bert_config.json").write_text(json.dumps(settings))
    return directory


# -- the forward pass ---------------------------------------------------------------------------------------------------
def forward(settings: Mapping[str, Any], variables: Mapping[str, np.ndarray], ids: np.ndarray, types: np.ndarray,
            mask: np.ndarray) -> dict[str, np.ndarray]:
    """What the programs compute in evaluation, in float64: `hidden` and, with the head of pretraining, both scores.

    Args:
        settings: the JSON file.
        variables: by name.
        ids, types, mask: integers [B, S]. Scores of hidden tokens get -10000 added, as in the code that the published
            checkpoint was trained with.
    """
    weights = {name: value.astype(np.float64) for name, value in variables.items() if value.dtype == np.float32}
    kind = settings.get("normalization_type", "layer_norm")
    scope = "FakeLayerNorm" if kind == "no_norm" else "LayerNorm"

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    def true_norm(name: str, x: np.ndarray, epsilon: float) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return scaled * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def norm(place: str, x: np.ndarray) -> np.ndarray:
        name = f"{place}/{scope}"
        if kind == "no_norm":
            return x * weights[f"{name}/gamma"] + weights[f"{name}/beta"]
        return true_norm(name, x, 1e-6 if kind == "manual_layer_norm" else 1e-12)

    def act(x: np.ndarray) -> np.ndarray:
        return {
            "relu": lambda: np.maximum(x, 0), "relu6": lambda: np.clip(x, 0, 6),
            "gelu": lambda: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        }[settings["hidden_act"]]()

    def attention(place: str, asking: np.ndarray, valued: np.ndarray) -> np.ndarray:
        def split(x: np.ndarray) -> np.ndarray:
            return x.reshape(*x.shape[:2], settings["num_attention_heads"], -1).transpose(0, 2, 1, 3)

        query, key, value = (split(dense(f"{place}/{name}", x))
                             for name, x in (("query", asking), ("key", asking), ("value", valued)))
        scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1]) - 10000.0 * (1 - mask[:, None, None, :])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        context = scores / scores.sum(-1, keepdims=True) @ value
        return context.transpose(0, 2, 1, 3).reshape(*ids.shape, -1)

    x = weights["bert/embeddings/word_embeddings"][ids]
    if settings.get("trigram_input", False):
        zeros = np.zeros_like(x[:, :1])
        x = np.concatenate([np.concatenate([x[:, 1:], zeros], 1), x, np.concatenate([zeros, x[:, :-1]], 1)], 2)
    if "bert/embeddings/embedding_transformation/kernel" in weights:
        x = dense("bert/embeddings/embedding_transformation", x)
    x = x + weights["bert/embeddings/token_type_embeddings"][types]
    x = x + weights["bert/embeddings/position_embeddings"][:ids.shape[1]]
    stream = norm("bert/embeddings", x)
    for layer in range(settings["num_hidden_layers"]):
        at = f"bert/encoder/layer_{layer}"
        if settings.get("use_bottleneck", False):
            residual = norm(f"{at}/bottleneck/input", dense(f"{at}/bottleneck/input/dense", stream))
            asking = valued = stream
            if settings.get("use_bottleneck_attention", False):
                asking = valued = residual
            elif settings.get("key_query_shared_bottleneck", False):
                asking = norm(f"{at}/bottleneck/attention", dense(f"{at}/bottleneck/attention/dense", stream))
        else:
            residual = asking = valued = stream
        context = dense(f"{at}/attention/output/dense", attention(f"{at}/attention/self", asking, valued))
        x = norm(f"{at}/attention/output", context + residual)
        for i in range(settings.get("num_feedforward_networks", 1) - 1):
            inner = act(dense(f"{at}/ffn_layer_{i}/intermediate/dense", x))
            x = norm(f"{at}/ffn_layer_{i}/output", dense(f"{at}/ffn_layer_{i}/output/dense", inner) + x)
        x = norm(f"{at}/output", dense(f"{at}/output/dense", act(dense(f"{at}/intermediate/dense", x))) + x)
        if settings.get("use_bottleneck", False):
            x = norm(f"{at}/output/bottleneck", dense(f"{at}/output/bottleneck/dense", x) + stream)
        stream = x
    pooled = stream[:, 0]
    if settings.get("classifier_activation", True):
        pooled = np.tanh(dense("bert/pooler/dense", pooled))
    result = {"hidden": stream, "pooled": pooled}
    if "cls/predictions/output_bias" in weights:
        x = true_norm("cls/predictions/transform/LayerNorm", act(dense("cls/predictions/transform/dense", stream)), 1e-12)
        table = weights["bert/embeddings/word_embeddings"]
        if "cls/predictions/extra_output_weights" in weights:
            table = np.concatenate([table, weights["cls/predictions/extra_output_weights"]], 1)
        result["words"] = x @ table.T + weights["cls/predictions/output_bias"]
        result["next"] = pooled @ weights["cls/seq_relationship/output_weights"].T + weights["cls/seq_relationship/output_bias"]
    return result
