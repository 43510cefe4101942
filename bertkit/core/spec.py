"""The vocabulary of the weight spec: every tensor of every class, by its canonical name.

Canonical names and layouts are those of transformers' PyTorch state dicts. A variant describes its tensors as a
generator of `Param`s over a configuration; everything else (loading, saving, ties, the bridge between the
frameworks, converters, tests) follows from that description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Params = Iterator["Param"]

KINDS = ("kernel", "matrix", "embedding", "norm_scale", "norm_shift", "bias", "conv", "stat", "derived",
         "int8", "int32", "int64", "scale")
"""What a tensor is, which is all that a framework needs to know to place it:

- kernel: weight of a linear layer, [out, in]; Keras holds the transpose.
- matrix: a weight used as it lies on disk.
- embedding, norm_scale, norm_shift, bias: as in both frameworks.
- conv: depthwise convolution kernel [heads, 1, window, 1].
- stat: a statistic gathered in training; starts from its default where a checkpoint lacks it.
- derived: computed from other tensors on every use, or never used; read past, never kept and never written.
- int8, int32, int64: integers of a frozen model, as they lie on disk in both frameworks; never trained, never cast.
- scale: what a frozen model's integers are multiplied by where they leave it, float32; never trained, never cast.
"""

FROZEN = {"int8": "int8", "int32": "int32", "int64": "int64", "scale": "float32"}
"""The kinds of a frozen model's tensors, and their dtypes."""


@dataclass(frozen=True)
class Param:
    """One tensor: its canonical name, shape and kind, and the tensor it shares its values with, if any."""

    name: str
    shape: tuple[int, ...]
    kind: str
    tied_to: str | None = None

    @property
    def stored(self) -> bool:
        """Whether the tensor lies in a checkpoint under its own name."""
        return self.tied_to is None and self.kind != "derived"

    @property
    def frozen_dtype(self) -> str | None:
        """The dtype of a frozen model's tensor, whatever dtype the model has; None for all others."""
        return FROZEN.get(self.kind)


# -- words ------------------------------------------------------------------------------------------------------
def linear(name: str, outputs: int, inputs: int) -> Params:
    """A linear layer with bias."""
    yield Param(f"{name}.weight", (outputs, inputs), "kernel")
    yield Param(f"{name}.bias", (outputs,), "bias")


def norm(name: str, size: int) -> Params:
    """A layer normalisation, or an elementwise affine map in its place."""
    yield Param(f"{name}.weight", (size,), "norm_scale")
    yield Param(f"{name}.bias", (size,), "norm_shift")


def embedding(name: str, rows: int, columns: int) -> Params:
    """A lookup table."""
    yield Param(f"{name}.weight", (rows, columns), "embedding")


def under(prefix: str, *groups: Iterable[Param]) -> Params:
    """The same tensors one level deeper."""
    for group in groups:
        for param in group:
            yield replace(param, name=f"{prefix}.{param.name}")


# -- heads that several variants share ------------------------------------------------------------------------------
def no_head(config: Any) -> Params:
    """The bare encoder."""
    yield from ()


def tied_decoder(name: str, config: Any, words: str, columns: int) -> Params:
    """The output projection of a language model; its weight is the word embeddings' where the config ties them."""
    tied = words if config.tie_word_embeddings else None
    yield Param(f"{name}.bias", (config.vocab_size,), "bias")
    yield Param(f"{name}.decoder.weight", (config.vocab_size, columns), "embedding", tied_to=tied)
    yield Param(f"{name}.decoder.bias", (config.vocab_size,), "bias", tied_to=f"{name}.bias")


def labels_head(config: Any) -> Params:
    """One linear layer onto the labels."""
    yield from linear("classifier", config.num_labels, config.hidden_size)


def choice_head(config: Any) -> Params:
    """One score per choice."""
    yield from linear("classifier", 1, config.hidden_size)


def span_head(config: Any) -> Params:
    """Start and end scores of each token."""
    yield from linear("qa_outputs", 2, config.hidden_size)


def first_token_head(config: Any) -> Params:
    """Two linear layers on the first token."""
    yield from linear("classifier.dense", config.hidden_size, config.hidden_size)
    yield from linear("classifier.out_proj", config.num_labels, config.hidden_size)


def next_sentence_head(config: Any) -> Params:
    """Whether the second segment follows the first."""
    yield from linear("cls.seq_relationship", 2, config.hidden_size)


def both(*heads: Callable[[Any], Params]) -> Callable[[Any], Params]:
    """A head made of several."""

    def joined(config: Any) -> Params:
        for head in heads:
            yield from head(config)

    return joined


# -- variants ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Task:
    """One class of a variant: the tensors of its head, and whether its encoder has a pooler."""

    head: Callable[[Any], Params] = no_head
    pooled: bool = False


@dataclass(frozen=True)
class Variant:
    """A model family: its names, its configuration, the tensors of its encoder and its tasks.

    Args:
        name: prefix of the class names, e.g. "MegatronBert".
        prefix: attribute under which a task class holds the encoder, e.g. "bert".
        config: the configuration class.
        encoder: tensors of the encoder without its pooler.
        pooler: tensors of the pooler.
        tasks: task by the suffix of the class name ("Model", "ForMaskedLM", ...).
        ignored: names that old checkpoints hold and that carry nothing.
    """

    name: str
    prefix: str
    config: Any
    encoder: Callable[[Any], Params]
    tasks: Mapping[str, Task]
    pooler: Callable[[Any], Params] = no_head
    ignored: tuple[str, ...] = field(default=("embeddings.position_ids", "embeddings.token_type_ids"))

    def params(self, task: str, config: Any, *, pooled: bool | None = None) -> dict[str, Param]:
        """Every tensor of a class by canonical name, in the order in which it is written.

        Args:
            task: a key of `tasks`.
            config: an instance of `config`.
            pooled: whether the encoder has its pooler, where the class lets the user choose.
        """
        entry = self.tasks[task]
        has_pooler = entry.pooled if pooled is None else pooled
        body = [*self.encoder(config), *(self.pooler(config) if has_pooler else ())]
        if task != "Model":
            body = list(under(self.prefix, body))
        return {param.name: param for param in (*body, *entry.head(config))}

    def class_names(self) -> tuple[str, ...]:
        """Names of the PyTorch classes; the TensorFlow ones have the prefix TF."""
        return tuple(self.name + task for task in self.tasks)
