"""BERT and RoBERTa as I-BERT or MobileBERT, exactly: the same function under other names.

I-BERT in float mode is RoBERTa; RoBERTa is BERT with another origin of its positions and other names of its heads.
MobileBERT without bottlenecks and trigrams, with one feed-forward network and layer norms, is BERT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bertkit.convert.old_rules import (
    RenamedCheckpoint,
    Row,
    Rows,
    Table,
    inverted,
    module,
    rename,
    table,
    tensor,
)
from bertkit.convert.source import Source, find_task
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.loading import OLD_LEAVES, WRAPPERS
from bertkit.core.variants import VARIANTS

# -- the table: BERT's names on the left, RoBERTa's on the right, both below the encoder's prefix -------------------------
LAYER = "encoder.layer.{i}"
POSITIONS = "embeddings.position_embeddings.weight"

ENCODER = (
    tensor("embeddings.word_embeddings.weight"),
    tensor(POSITIONS),
    tensor("embeddings.token_type_embeddings.weight"),
    module("embeddings.LayerNorm"),
    module(f"{LAYER}.attention.self.query"),
    module(f"{LAYER}.attention.self.key"),
    module(f"{LAYER}.attention.self.value"),
    module(f"{LAYER}.attention.output.dense"),
    module(f"{LAYER}.attention.output.LayerNorm"),
    module(f"{LAYER}.intermediate.dense"),
    module(f"{LAYER}.output.dense"),
    module(f"{LAYER}.output.LayerNorm"),
)
LANGUAGE_MODEL: tuple[list[Row], ...] = (
    module("cls.predictions.transform.dense", "lm_head.dense"),
    module("cls.predictions.transform.LayerNorm", "lm_head.layer_norm"),
    tensor("cls.predictions.bias", "lm_head.bias"),
    module("cls.predictions.decoder", "lm_head.decoder"),
)
HEADS: dict[str, tuple[list[Row], ...]] = {
    "Model": (module("pooler.dense"),),
    "ForMaskedLM": LANGUAGE_MODEL,
    # BERT's pooler followed by its classifier is RoBERTa's two-layer classifier.
    "ForSequenceClassification": (module("pooler.dense", "classifier.dense"), module("classifier", "classifier.out_proj")),
    "ForMultipleChoice": (module("pooler.dense"), module("classifier")),
    "ForTokenClassification": (module("classifier"),),
    "ForQuestionAnswering": (module("qa_outputs"),),
}
BERT_ONLY: dict[str, tuple[list[Row], ...]] = {
    "ForPreTraining": (module("pooler.dense"), *LANGUAGE_MODEL, module("cls.seq_relationship")),
    "ForNextSentencePrediction": (module("pooler.dense"), module("cls.seq_relationship")),
}
IGNORED = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Buffers that old checkpoints hold and that carry nothing."""


@dataclass(frozen=True)
class Family:
    """An architecture whose encoder is BERT's.

    Args:
        class_name: what its class names begin with.
        prefix: attribute under which a task class holds the encoder.
        roberta_heads: whether its heads have RoBERTa's names.
        first_position: row of the position table that the first token takes, from the settings.
    """

    class_name: str
    prefix: str
    roberta_heads: bool
    first_position: Callable[[Mapping[str, Any]], int]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it has a class for."""
        return tuple(HEADS) if self.roberta_heads else (*HEADS, *BERT_ONLY)


def _zero(settings: Mapping[str, Any]) -> int:
    return 0


def _after_padding(settings: Mapping[str, Any]) -> int:
    return settings["pad_token_id"] + 1


SOURCES = {
    "bert": Family("Bert", "bert", False, _zero),
    "roberta": Family("Roberta", "roberta", True, _after_padding),
    "camembert": Family("Camembert", "roberta", True, _after_padding),
    "xlm-roberta": Family("XLMRoberta", "roberta", True, _after_padding),
}
TARGETS = {
    "ibert": Family("IBert", "ibert", True, _after_padding),
    "mobilebert": Family("MobileBert", "mobilebert", False, _zero),
}
DEFAULT_PAD = {"bert": 0, "roberta": 1, "camembert": 1, "xlm-roberta": 1}
DEFAULTS = {"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "position_embedding_type": "absolute", "bos_token_id": None,
            "eos_token_id": None}
"""What a config.json of BERT means where it says nothing."""

TOKENIZERS = {"bert": {"ibert": "BertTokenizer", "mobilebert": "MobileBertTokenizer"},
              "roberta": {"ibert": "RobertaTokenizer", "mobilebert": "RobertaTokenizer"}}

PLAIN_MOBILEBERT = {
    "trigram_input": False,
    "use_bottleneck": False,
    "use_bottleneck_attention": False,
    "key_query_shared_bottleneck": False,
    "num_feedforward_networks": 1,
    "normalization_type": "layer_norm",
    "classifier_activation": True,
}
"""MobileBERT with everything off that BERT does not have."""



def _nothing(config: Any) -> dict[str, np.ndarray]:
    return {}


def _identity(config: Any) -> dict[str, np.ndarray]:
    name, width = "embeddings.embedding_transformation", config.hidden_size
    return {f"{name}.weight": np.eye(width, dtype=np.float32), f"{name}.bias": np.zeros(width, np.float32)}


UNUSED = {"ibert": _nothing, "mobilebert": _identity}
"""Tensors that the target has but does not use where it is BERT."""

WRITERS = ("architectures", "model_type", "transformers_version", "_name_or_path", "gradient_checkpointing", "torch_dtype",
           "dtype")
"""Settings that describe who wrote the source, not what it is."""


def names_table(theirs: Family, ours: Family, task: str) -> Table:
    """The table from one family's names to another's, for a task that both have."""
    heads = {**HEADS, **BERT_ONLY}[task]
    bert_to_roberta = table(*ENCODER, *heads)
    if theirs.roberta_heads == ours.roberta_heads:
        names = inverted(bert_to_roberta) if ours.roberta_heads else bert_to_roberta
        return {name: name for name in names}
    return inverted(bert_to_roberta) if theirs.roberta_heads else bert_to_roberta


# -- the conversion -----------------------------------------------------------------------------------------------------
@dataclass
class WarmStart:
    """A checkpoint seen as one of bertkit's variants.

    Args:
        tensors: the checkpoint under our names.
        config: the configuration under which it computes the same.
        task: the class that it is of.
        left_out: tensors that have no place there: other heads, buffers without meaning.
        notes: what a user should know.
    """

    tensors: RenamedCheckpoint
    config: Any
    task: str
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def warm_start(source: Source, to: str, wanted: str | None = None) -> WarmStart:
    """See a BERT or RoBERTa checkpoint as I-BERT or MobileBERT.

    Args:
        source: the checkpoint.
        to: "ibert" or "mobilebert".
        wanted: task of the result; default the source's own.

    Raises:
        ConfigError: listing everything in the configuration that the target cannot express.
        CheckpointError: listing tensors that no table has a row for.
    """
    model_type = source.settings.get("model_type")
    if model_type not in SOURCES or to not in TARGETS:
        raise ConfigError(f"there is no conversion from {model_type!r} to {to!r}",
                          [f"from: {', '.join(SOURCES)}", f"to: {', '.join(TARGETS)}"],
                          "Say what the source is with --from where its config.json does not.")
    theirs, ours = SOURCES[model_type], TARGETS[to]
    config, operations, notes = _settings(source.settings, model_type, to)
    plain = _plain_names(source.checkpoint.names(), theirs)
    own = find_task(source.settings, theirs.class_name, theirs.tasks, lambda task: _fits(plain, theirs, task))
    if wanted is not None:
        task = find_task(source.settings, ours.class_name, ours.tasks, lambda task: None, wanted)
    elif own in ours.tasks:
        task = own
    elif own == "ForPreTraining":
        task = "ForMaskedLM"
        notes.append(f"{VARIANTS[to].name} has no next-sentence head: it is left out")
    else:
        raise ConfigError(f"{VARIANTS[to].name} has no class for {own}",
                          remedy=f"Choose one with --task: {', '.join(ours.tasks)}.")
    rows = names_table(theirs, ours, task)
    found = {name: rename(name, rows) for name in plain}
    known = {k for t in theirs.tasks for k in names_table(theirs, theirs, t)}
    everything = {k: k for k in known}
    unknown = [plain[name] for name, new in found.items()
               if new is None and rename(name, everything) is None and name not in IGNORED]
    if unknown:
        raise CheckpointError(f"{len(unknown)} tensor(s) that {theirs.class_name} does not have", unknown,
                              f"Is {source.directory} a {model_type}? Say what it is with --from.")
    tensors = RenamedCheckpoint(source.checkpoint, {new: plain[name] for name, new in found.items() if new}, operations,
                                UNUSED[to](config))
    return WarmStart(tensors, config, task, [plain[name] for name, new in found.items() if new is None], notes)


def _plain_names(names: list[str], family: Family) -> dict[str, str]:
    """Names in the file by today's names below the prefix of the encoder."""
    plain = {}
    for name in names:
        short = name
        for wrapper in WRAPPERS:
            short = short.removeprefix(wrapper)
        short = short.removeprefix(f"{family.prefix}.")
        head, _, leaf = short.rpartition(".")
        plain[f"{head}.{OLD_LEAVES.get(leaf, leaf)}"] = name
    return plain


def _fits(plain: Mapping[str, str], family: Family, task: str) -> int | None:
    head = [name for name in names_table(family, family, task) if "{" not in name and not name.startswith("embeddings.")]
    lacking = [name for name in head if name not in plain and ".decoder." not in name]
    return None if lacking and task != "Model" else len(head) - len(lacking)


def _settings(settings: Mapping[str, Any], model_type: str, to: str) -> tuple[Any, dict[str, Rows], list[str]]:
    """The target's configuration, what happens to tensors on the way, and notes."""
    values = {**DEFAULTS, **settings}
    if values.get("pad_token_id") is None:
        values["pad_token_id"] = DEFAULT_PAD[model_type]
    wrong = [f"{name}: got {values.get(name)!r}, expected {wanted!r}" for name, wanted in (
        ("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False),
    ) if values.get(name, wanted) != wanted]
    wrong += [f"{name}: got {values[name]!r}, expected an integer" for name in ("pad_token_id", "max_position_embeddings")
              if type(values[name]) is not int]
    exact = to == "ibert" or SOURCES[model_type].roberta_heads
    if exact and values["hidden_act"] != "gelu":
        wrong.append(f"hidden_act: got {values['hidden_act']!r}, expected 'gelu'")
    if wrong:
        raise ConfigError(f"{VARIANTS[to].name} cannot compute what this {model_type} computes", wrong)
    first, wanted_first = SOURCES[model_type].first_position(values), TARGETS[to].first_position(values)
    shift = Rows(dropped=max(first - wanted_first, 0), zeros=max(wanted_first - first, 0))
    family = "roberta" if SOURCES[model_type].roberta_heads else "bert"
    values = {name: value for name, value in values.items() if name not in WRITERS}
    values["max_position_embeddings"] += shift.zeros - shift.dropped
    values.setdefault("tokenizer_class", TOKENIZERS[family][to])
    if to == "mobilebert":
        values |= {**PLAIN_MOBILEBERT, "embedding_size": values["hidden_size"], "intra_bottleneck_size": values["hidden_size"]}
    config = VARIANTS[to].config.from_dict(values)
    if shift == Rows():
        return config, {}, []
    change = f"{shift.zeros} row(s) of zeros put on top of" if shift.zeros else f"{shift.dropped} row(s) taken off the top of"
    return config, {POSITIONS: shift}, [f"{change} the position table: the first token takes row {wanted_first}, not {first}"]
