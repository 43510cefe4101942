"""BERT and RoBERTa in NumPy, from the papers, also with YOSO's attention: what the converted models are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cli.common import WORDS
from tests.fixtures.fill import fill

SETTINGS: dict[str, Any] = {
    "model_type": "bert", "vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 24, "hidden_act": "gelu", "max_position_embeddings": 20, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    "pad_token_id": 0, "position_embedding_type": "absolute", "num_labels": 3, "transformers_version": "4.8.2",
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "use_cache": True,
}
ROBERTA = {**SETTINGS, "model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 22, "type_vocab_size": 1,
           "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 2}

WIDTH, INNER, LABELS = 16, 24, 3


def heads(task: str, roberta: bool = False) -> dict[str, tuple[int, ...]]:
    """Shapes of a head's tensors; of the pooler too, which BERT's classifier of sequences reads."""
    def layer(name: str, rows: int, columns: int = WIDTH) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}

    pooler = layer(("roberta" if roberta else "bert") + ".pooler.dense", WIDTH)
    words = {"weight": (WORDS, WIDTH), "bias": (WORDS,)}
    if task == "ForMaskedLM" and roberta:
        return {**layer("lm_head.dense", WIDTH), **norm("lm_head.layer_norm"), "lm_head.bias": words["bias"],
                "lm_head.decoder.weight": words["weight"], "lm_head.decoder.bias": words["bias"]}
    language_model = {**layer("cls.predictions.transform.dense", WIDTH), **norm("cls.predictions.transform.LayerNorm"),
                      "cls.predictions.bias": words["bias"], "cls.predictions.decoder.weight": words["weight"]}
    two_layers = {**layer("classifier.dense", WIDTH), **layer("classifier.out_proj", LABELS)}
    return {
        "Model": pooler,
        "ForMaskedLM": language_model,
        "ForNextSentencePrediction": {**pooler, **layer("cls.seq_relationship", 2)},
        "ForPreTraining": {**pooler, **language_model, **layer("cls.seq_relationship", 2)},
        "ForSequenceClassification": two_layers if roberta else {**pooler, **layer("classifier", LABELS)},
        "ForTokenClassification": layer("classifier", LABELS),
        "ForQuestionAnswering": layer("qa_outputs", 2),
        "ForMultipleChoice": {**pooler, **layer("classifier", 1)},
    }[task]


def tensors(task: str, settings: dict[str, Any] = SETTINGS) -> dict[str, np.ndarray]:
    """The weights of a class by their names in the file."""
    roberta = settings["model_type"] == "roberta"
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "embeddings.position_embeddings.weight": (settings["max_position_embeddings"], WIDTH),
        "embeddings.token_type_embeddings.weight": (settings["type_vocab_size"], WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,), "embeddings.LayerNorm.bias": (WIDTH,),
    }
    for i in range(settings["num_hidden_layers"]):
        for name, rows, columns in (("attention.self.query", WIDTH, WIDTH), ("attention.self.key", WIDTH, WIDTH),
                                    ("attention.self.value", WIDTH, WIDTH), ("attention.output.dense", WIDTH, WIDTH),
                                    ("intermediate.dense", INNER, WIDTH), ("output.dense", WIDTH, INNER)):
            shapes |= {f"encoder.layer.{i}.{name}.weight": (rows, columns), f"encoder.layer.{i}.{name}.bias": (rows,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{i}.{name}.weight": (WIDTH,), f"encoder.layer.{i}.{name}.bias": (WIDTH,)}
    prefix = settings["model_type"]
    shapes = {f"{prefix}.{name}": shape for name, shape in shapes.items()} | heads(task, roberta)
    if task == "Model":
        shapes = {name.removeprefix(f"{prefix}."): shape for name, shape in shapes.items()}
    values = {name: fill(name.replace("roberta.", "bert."), shape) for name, shape in shapes.items()}
    # Buffers that old files hold.
    return {**values, f"{prefix}.embeddings.position_ids": np.arange(settings["max_position_embeddings"])[None]}


def softmax_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Heads [rows, heads, tokens, size]; the mask is 1 for tokens."""
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + np.where(mask, 0, -1e30)[:, None, None]
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return (scores / scores.sum(-1, keepdims=True)) @ v


def yoso_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, bits: int = 9) -> np.ndarray:
    """The expectation of YOSO's sampling: powers of the probability that a random plane does not part two vectors."""
    kept = mask[:, None, :, None] * mask[:, None, None, :]
    cosine = np.clip(unit(q) @ unit(k).swapaxes(-1, -2), -1, 1)
    return unit(((1 - np.arccos(cosine) / np.pi) ** bits * kept) @ v)


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors of length 1; zero stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


Attention = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Activation = Callable[[np.ndarray], np.ndarray]


def run(
    task: str, weights: dict[str, np.ndarray], settings: dict[str, Any], ids: np.ndarray, types: np.ndarray,
    attention: Attention = softmax_attention, classifier_activation: Activation = np.tanh,
) -> dict[str, np.ndarray]:
    """Outputs in float64; tokens are masked where they are padding."""
    roberta = settings["model_type"] == "roberta"
    w = {name.removeprefix(f"{settings['model_type']}."): value.astype(np.float64) for name, value in weights.items()}
    pad, eps = settings["pad_token_id"], settings["layer_norm_eps"]
    mask = ids != pad
    positions = np.where(mask, np.cumsum(mask, 1) + pad, pad) if roberta else np.arange(ids.shape[1])[None]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], settings["num_attention_heads"], -1).transpose(0, 2, 1, 3)

    x = norm("embeddings.LayerNorm", w["embeddings.word_embeddings.weight"][ids]
             + w["embeddings.position_embeddings.weight"][positions] + w["embeddings.token_type_embeddings.weight"][types])
    for i in range(settings["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        q, k, v = (split(linear(f"{at}.attention.self.{name}", x)) for name in ("query", "key", "value"))
        seen = attention(q, k, v, mask).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(f"{at}.attention.output.LayerNorm", linear(f"{at}.attention.output.dense", seen) + x)
        inner = gelu(linear(f"{at}.intermediate.dense", x))
        x = norm(f"{at}.output.LayerNorm", linear(f"{at}.output.dense", inner) + x)
    if task == "ForMaskedLM":
        dense, layer_norm, bias = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias") if roberta else (
            "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
        return {"logits": norm(layer_norm, gelu(linear(dense, x))) @ w["embeddings.word_embeddings.weight"].T + w[bias]}
    if task == "ForSequenceClassification":
        first, second = ("classifier.dense", "classifier.out_proj") if roberta else ("pooler.dense", "classifier")
        return {"logits": linear(second, classifier_activation(linear(first, x[:, 0])))}
    if task == "ForTokenClassification":
        return {"logits": linear("classifier", x)}
    if task == "ForQuestionAnswering":
        start, end = np.moveaxis(linear("qa_outputs", x), -1, 0)
        return {"start_logits": start, "end_logits": end}
    return {"last_hidden_state": x, "pooler_output": np.tanh(linear("pooler.dense", x[:, 0]))}


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact form."""
    return 0.5 * x * (1 + np.vectorize(math.erf)(x * math.sqrt(0.5)))
