"""BERT and RoBERTa as I-BERT, MobileBERT or YOSO.

I-BERT in float mode is RoBERTa; RoBERTa is BERT with another origin of its positions and other names of its heads.
MobileBERT without bottlenecks and trigrams, with one feed-forward network and layer norms, is BERT. These are the same
functions under other names. YOSO has the same weights but another attention: there the weights are a start for training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bertkit.convert.original import Options, Original
from bertkit.convert.rules import SAME, Operation, Rule, module, prefixed, table, tensor, translate
from bertkit.convert.source import Source, find_task
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.loading import OLD_LEAVES, WRAPPERS
from bertkit.core.tensors import LazyTensor, converted, zeros
from bertkit.core.variants import VARIANTS
from bertkit.core.yoso import POSITION_OFFSET


# -- words --------------------------------------------------------------------------------------------------------------
def moved_down(rows: int) -> Operation:
    """Rows of zeros put on top of a table, or, where `rows` is negative, rows taken off its top.

    Example:
        >>> moved_down(1).to_ours([np.ones((1, 2))], {})[0].tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """

    def pad(arrays: list[np.ndarray], facts: Mapping[str, Any]) -> list[np.ndarray]:
        return [np.concatenate([np.zeros((abs(rows), *array.shape[1:]), array.dtype), array]) for array in arrays]

    def cut(arrays: list[np.ndarray], facts: Mapping[str, Any]) -> list[np.ndarray]:
        return [array[abs(rows):] for array in arrays]

    return Operation("padded with rows of zeros", pad, cut) if rows > 0 else Operation("cut", cut, pad)


def norm(theirs: str, ours: str | None = None) -> list[Rule]:
    """Weight and bias of a norm, which old files call gamma and beta."""
    old = [Rule((f"{theirs}.{leaf}",), (f"{ours or theirs}.{today}",)) for leaf, today in OLD_LEAVES.items()]
    return [*module(theirs, ours), *old]


# -- the encoder --------------------------------------------------------------------------------------------------------
LAYER = "encoder.layer.{i}"
POSITIONS = "embeddings.position_embeddings.weight"

ENCODER = table(
    tensor("embeddings.word_embeddings.weight"),
    tensor("embeddings.token_type_embeddings.weight"),
    norm("embeddings.LayerNorm"),
    module(f"{LAYER}.attention.self.query"),
    module(f"{LAYER}.attention.self.key"),
    module(f"{LAYER}.attention.self.value"),
    module(f"{LAYER}.attention.output.dense"),
    norm(f"{LAYER}.attention.output.LayerNorm"),
    module(f"{LAYER}.intermediate.dense"),
    module(f"{LAYER}.output.dense"),
    norm(f"{LAYER}.output.LayerNorm"),
)
"""Everything below the prefix of the encoder but the positions, which move."""

BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


# -- the heads ----------------------------------------------------------------------------------------------------------
class Part(NamedTuple):
    """A module of a head: how it is made of tensors, and its name in each style; a dot first means below the encoder."""

    make: Callable[[str, str], list[Rule]]
    bert: str | None
    roberta: str | None
    yoso: str | None


POOLER = Part(module, ".pooler.dense", ".pooler.dense", None)
SENTENCE_ORDER = Part(module, "cls.seq_relationship", None, None)
LANGUAGE_MODEL = (
    Part(module, "cls.predictions.transform.dense", "lm_head.dense", "cls.predictions.transform.dense"),
    Part(norm, "cls.predictions.transform.LayerNorm", "lm_head.layer_norm", "cls.predictions.transform.LayerNorm"),
    Part(tensor, "cls.predictions.bias", "lm_head.bias", "cls.predictions.bias"),
    Part(module, "cls.predictions.decoder", "lm_head.decoder", "cls.predictions.decoder"),
)
HEADS: dict[str, tuple[Part, ...]] = {
    "Model": (POOLER,),
    "ForMaskedLM": LANGUAGE_MODEL,
    # BERT's pooler followed by its classifier is RoBERTa's two-layer classifier.
    "ForSequenceClassification": (Part(module, ".pooler.dense", "classifier.dense", "classifier.dense"),
                                  Part(module, "classifier", "classifier.out_proj", "classifier.out_proj")),
    "ForMultipleChoice": (Part(module, ".pooler.dense", ".pooler.dense", "pre_classifier"),
                          Part(module, "classifier", "classifier", "classifier")),
    "ForTokenClassification": (Part(module, "classifier", "classifier", "classifier"),),
    "ForQuestionAnswering": (Part(module, "qa_outputs", "qa_outputs", "qa_outputs"),),
    "ForPreTraining": (POOLER, *LANGUAGE_MODEL, SENTENCE_ORDER),
    "ForNextSentencePrediction": (POOLER, SENTENCE_ORDER),
}


# -- who has what -------------------------------------------------------------------------------------------------------
def _zero(settings: Mapping[str, Any]) -> int:
    return 0


def _after_padding(settings: Mapping[str, Any]) -> int:
    return settings["pad_token_id"] + 1


def _after_two_rows(settings: Mapping[str, Any]) -> int:
    return POSITION_OFFSET


@dataclass(frozen=True)
class Family:
    """An architecture whose encoder is BERT's.

    Args:
        class_name: what its class names begin with.
        prefix: attribute under which a task class holds the encoder.
        style: whose names its heads have, a field of `Part`.
        first_position: row of the position table that the first token takes, from the settings.
        uncounted_rows: rows of the position table that `max_position_embeddings` does not count.
    """

    class_name: str
    prefix: str
    style: str
    first_position: Callable[[Mapping[str, Any]], int]
    uncounted_rows: int = 0

    def below(self, task: str) -> str:
        """What stands before the names of the encoder's tensors in a class."""
        return "" if task == "Model" else f"{self.prefix}."

    @property
    def tasks(self) -> list[str]:
        """The tasks that it has a class for."""
        return [task for task, parts in HEADS.items() if self.style == "bert" or SENTENCE_ORDER not in parts]

    def names(self, part: Part) -> list[str]:
        """What files call a module of a head: a bare encoder is written without its prefix, but some files keep it."""
        name = getattr(part, self.style) or ""
        return [self.prefix + name, name[1:]] if name.startswith(".") else [name] if name else []


SOURCES = {
    "bert": Family("Bert", "bert", "bert", _zero),
    "roberta": Family("Roberta", "roberta", "roberta", _after_padding),
    "camembert": Family("Camembert", "roberta", "roberta", _after_padding),
    "xlm-roberta": Family("XLMRoberta", "roberta", "roberta", _after_padding),
}
TARGETS = {
    "ibert": Family("IBert", "ibert", "roberta", _after_padding),
    "mobilebert": Family("MobileBert", "mobilebert", "bert", _zero),
    "yoso": Family("Yoso", "yoso", "yoso", _after_two_rows, uncounted_rows=POSITION_OFFSET),
}
DEFAULT_PAD = {"bert": 0, "roberta": 1, "camembert": 1, "xlm-roberta": 1}
DEFAULTS = {"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "position_embedding_type": "absolute", "bos_token_id": None,
            "eos_token_id": None}
"""What a config.json of BERT means where it says nothing."""

TOKENIZERS = {"bert": {"ibert": "BertTokenizer", "mobilebert": "MobileBertTokenizer", "yoso": "BertTokenizer"},
              "roberta": dict.fromkeys(TARGETS, "RobertaTokenizer")}

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

CHOICES = {"yoso": ("use_expectation", "hash_code_len", "num_hash", "use_fast_hash", "lsh_backward", "hash_seed")}
"""Settings of a target that the source says nothing about and that no tensor depends on: the user may choose them."""

MOST_ROWS = 65536
"""By so many rows a position table may move."""

WRITERS = ("architectures", "model_type", "transformers_version", "_name_or_path", "gradient_checkpointing", "torch_dtype",
           "dtype")
"""Settings that describe who wrote the source, not what it is."""

PROMISES = {
    "ibert": "exact: in float mode (quant_mode=False) it computes what the source computes",
    "mobilebert": "exact: it computes what the source computes",
    "yoso": "not exact, a start for training: the weights are the source's, but instead of softmax attention there is YOSO's, "
            "which sees directions of queries and keys only and gives vectors of length 1",
}
"""What can be said of the result, by target."""

OTHER_HEADS = {
    ("yoso", "ForSequenceClassification"): "the classifier has {hidden_act} between its two layers, the source's has tanh",
    ("yoso", "ForMultipleChoice"): "the scorer of choices has relu between its two layers, the source's has tanh",
}
"""Heads that have the source's weights and are another function."""


# -- the conversion -----------------------------------------------------------------------------------------------------
def names_table(theirs: Family, ours: Family, task: str, positions: Operation = SAME) -> list[Rule]:
    """The table from one family's names to another's.

    Args:
        theirs, ours: the families.
        task: a task that both have.
        positions: what happens to the position table.
    """
    encoder, below = table(ENCODER, tensor(POSITIONS, operation=positions)), ours.below(task)
    return table(prefixed(encoder, theirs=f"{theirs.prefix}.", ours=below), prefixed(encoder, ours=below),
                 _head(theirs, ours, task))


def _head(theirs: Family, ours: Family, task: str) -> list[Rule]:
    rules = []
    for part in HEADS[task]:
        name = getattr(part, ours.style)
        if name is not None:
            new = ours.below(task) + name[1:] if name.startswith(".") else name
            rules += table(*(part.make(old, new) for old in theirs.names(part)))
    return rules


def warm_start(source: Source, to: str, options: Options) -> Original:
    """See a BERT or RoBERTa checkpoint as I-BERT, MobileBERT or YOSO.

    Args:
        source: the checkpoint.
        to: "ibert", "mobilebert" or "yoso".
        options: `task` is that of the result, default the source's own; `config` chooses how YOSO hashes.

    Raises:
        ConfigError: listing everything in the configuration that the target cannot express.
        CheckpointError: listing tensors that no table has a rule for.
    """
    model_type = source.settings.get("model_type")
    if model_type not in SOURCES or to not in TARGETS:
        raise ConfigError(f"there is no conversion from {model_type!r} to {to!r}",
                          [f"from: {', '.join(SOURCES)}", f"to: {', '.join(TARGETS)}"],
                          "Say what the source is with --from where its config.json does not.")
    theirs, ours, notes = SOURCES[model_type], TARGETS[to], [PROMISES[to]]
    config, shift = _settings(source.settings, model_type, to, options.config or {}, notes)
    tensors = {name: source.checkpoint.lazy(name) for name in source.checkpoint.names()}
    wrapper = next((word for word in WRAPPERS if tensors and all(name.startswith(word) for name in tensors)), "")
    task = _task(source, theirs, to, tensors, wrapper, options.task, notes)
    elsewhere = [rule for other in theirs.tasks for rule in names_table(theirs, theirs, other)]
    left_out = {wrapper + name: f"{ours.class_name}{task} has no place for it" for rule in elsewhere for name in rule.theirs}
    left_out |= {wrapper + below + name: "a buffer without values of its own" for below in ("", f"{theirs.prefix}.")
                 for name in BUFFERS}
    rules = names_table(theirs, ours, task, moved_down(shift) if shift else SAME)
    translation = translate(tensors, prefixed(rules, theirs=wrapper), left_out=left_out)
    translation.check(f"{source.directory} holds tensors that {theirs.class_name} does not have",
                      f"Is it a {model_type}? Say what it is with --from.")
    if config.num_hidden_layers > len(translation.tensors):
        # Sooner than anybody who would list the tensors of all these layers.
        raise CheckpointError(f"{source.directory} holds {len(translation.tensors)} tensors, of which there is no encoder of "
                              f"{config.num_hidden_layers} layers", remedy="config.json belongs to another model.")
    made = _identity(translation.tensors, config.hidden_size, ours.below(task)) if to == "mobilebert" else {}
    translation.tensors |= made
    if (to, task) in OTHER_HEADS:
        notes.append(OTHER_HEADS[to, task].format(hidden_act=config.hidden_act))
    return Original(source.directory, f"{theirs.class_name} of transformers", VARIANTS[to], config, translation, task,
                    dict.fromkeys(made, "an identity map: the source's embeddings are as wide as its encoder"),
                    {file.name: file.read_bytes() for file in source.tokenizer_files}, notes)


def _task(
    source: Source, theirs: Family, to: str, tensors: Mapping[str, LazyTensor], wrapper: str, wanted: str | None,
    notes: list[str],
) -> str:
    """The task of the result."""
    ours = TARGETS[to]
    if wanted is not None:
        return find_task(source.settings, ours.class_name, ours.tasks, lambda task: None, wanted)

    def fits(task: str) -> int | None:
        head = _head(theirs, theirs, task)
        found = translate(tensors, prefixed(head, theirs=wrapper)).tensors
        lacking = {rule.ours[0] for rule in head if ".decoder." not in rule.ours[0]} - {*found}
        return None if lacking and task != "Model" else len(found)

    own = find_task(source.settings, theirs.class_name, theirs.tasks, fits)
    if own in ours.tasks:
        return own
    if own == "ForPreTraining":
        notes.append(f"{ours.class_name} has no next-sentence head: it is left out")
        return "ForMaskedLM"
    raise ConfigError(f"{ours.class_name} has no class for {own}", remedy=f"Choose one with --task: {', '.join(ours.tasks)}.")


def _identity(tensors: Mapping[str, LazyTensor], width: int, below: str) -> dict[str, LazyTensor]:
    """MobileBERT's embedding transformation, which changes nothing here; in the dtype of the other embeddings."""
    name = f"{below}embeddings.embedding_transformation"
    words = tensors.get(f"{below}embeddings.word_embeddings.weight")
    values = {f"{name}.weight": LazyTensor((width, width), "F32", lambda: np.eye(width, dtype=np.float32)),
              f"{name}.bias": zeros((width,))}
    return {key: converted(key, value, words.dtype if words else "F32") for key, value in values.items()}


def _settings(
    settings: Mapping[str, Any], model_type: str, to: str, chosen: Mapping[str, Any], notes: list[str]
) -> tuple[Any, int]:
    """The target's configuration, and how many rows its position table moves down."""
    theirs, ours = SOURCES[model_type], TARGETS[to]
    values = {**DEFAULTS, **settings}
    if values.get("pad_token_id") is None:
        values["pad_token_id"] = DEFAULT_PAD[model_type]
    wrong = [f"{name}: got {values.get(name)!r}, expected {wanted!r}" for name, wanted in (
        ("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False),
    ) if values.get(name, wanted) != wanted]
    wrong += [f"{name}: got {values[name]!r}, expected an integer" for name in ("pad_token_id", "max_position_embeddings")
              if type(values[name]) is not int]
    # RoBERTa's language-model head and I-BERT's layers have GELU whatever the configuration says.
    if (to == "ibert" or theirs.style == "roberta") and values["hidden_act"] != "gelu":
        wrong.append(f"hidden_act: got {values['hidden_act']!r}, expected 'gelu'")
    known = CHOICES.get(to, ())
    wrong += [f"{name}: cannot be chosen, only {', '.join(known) or 'nothing'} can" for name in chosen if name not in known]
    if wrong:
        raise ConfigError(f"{VARIANTS[to].name} cannot be what this {model_type} is", wrong)
    first, wanted_first = theirs.first_position(values), ours.first_position(values)
    shift = wanted_first - first
    if abs(shift) > MOST_ROWS:
        raise ConfigError(f"pad_token_id: got {values['pad_token_id']}, which moves the position table by {abs(shift)} rows",
                          remedy=f"Expected is at most {MOST_ROWS}: config.json belongs to another model.")
    values = {name: value for name, value in values.items() if name not in WRITERS}
    values["max_position_embeddings"] += shift - ours.uncounted_rows
    values.setdefault("tokenizer_class", TOKENIZERS[theirs.style][to])
    if to == "mobilebert":
        values |= {**PLAIN_MOBILEBERT, "embedding_size": values["hidden_size"], "intra_bottleneck_size": values["hidden_size"]}
    config = VARIANTS[to].config.from_dict({**values, **chosen})
    if shift:
        change = f"{shift} row(s) of zeros put on top" if shift > 0 else f"{-shift} row(s) taken off the top"
        notes.append(f"{change} of the position table: the first token takes row {wanted_first}, not {first}")
    if to == "yoso":
        cost = "quadratic; use_expectation=false is linear" if config.use_expectation else "linear, and samples"
        notes.append(f"attention is {cost}; sequences are still of at most {config.max_position_embeddings} tokens, as long as "
                     "the position table is")
    return config, shift
