"""fairseq's checkpoints of RoBERTa and I-BERT: `model.pt`, `checkpoint_best.pt`, ... beside a `dict.txt`.

A file holds the arguments of the run (a Namespace `args`, or since fairseq 1.0 the dictionaries of `cfg`), the weights
(`model`) and the state of the training. RoBERTa's encoder was `decoder.sentence_encoder` at first, and its names changed
once more since. I-BERT is RoBERTa with one range per quantised activation; ours has more of them, as transformers has.
https://github.com/facebookresearch/fairseq, https://github.com/kssteven418/I-BERT (both MIT)
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

from bertkit.convert.fairseq_dictionary import (
    DICTIONARY,
    INPUTS,
    LABELS,
    Vocabulary,
    read_labels,
    read_vocabulary,
    write_labels,
    write_vocabulary,
)
from bertkit.convert.original import READING, Format, Opened, Options, Original, Sample, Write
from bertkit.convert.rules import (
    SAME,
    Arrays,
    Facts,
    Operation,
    Rule,
    Translation,
    inverted,
    module,
    prefixed,
    table,
    tensor,
    translate,
)
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.files import pickle_writer
from bertkit.core.files.pickle_machine import Stub
from bertkit.core.ibert import IBERT, IBertConfig
from bertkit.core.initial import STATISTICS
from bertkit.core.tensors import LazyTensor, RawTensor, converted, lazy, stored, widen, zeros


# -- operations ---------------------------------------------------------------------------------------------------------
def _in_three(arrays: Arrays, facts: Facts) -> Arrays:
    return list(np.split(arrays[0], 3))


def _in_one(arrays: Arrays, facts: Facts) -> Arrays:
    return [np.concatenate(arrays)]


def _twice(arrays: Arrays, facts: Facts) -> Arrays:
    return [arrays[0], arrays[0]]


def _second(arrays: Arrays, facts: Facts) -> Arrays:
    return [arrays[1]]


SPLIT = Operation("split", _in_three, _in_one, "merged")
COPIED = Operation("copied", _twice, _second, "merged")
"""One range of theirs, two of ours. Of two that differ the second is kept, whose grid the layers behind it have seen."""


# -- the table: their names on the left, ours on the right, both below the encoder's prefix -------------------------------
def activation(theirs: str, *ours: str) -> list[Rule]:
    """The range of an activation, which is one of ours or two."""
    operation = COPIED if len(ours) == 2 else SAME
    return table(*(tensor(f"{theirs}.{name}", tuple(f"{our}.{name}" for our in ours), operation) for name in ACTIVATION))


def quantised_norm(theirs: str, ours: str) -> list[Rule]:
    """A layer norm, and what it learns for integers."""
    return table(module(theirs, ours), tensor(f"{theirs}.shift", f"{ours}.shift"),
                 activation(f"{theirs}.activation", f"{ours}.activation"))


ACTIVATION = ("x_min", "x_max", "act_scaling_factor")
STATISTIC = tuple(STATISTICS)
LAYER, ATTENTION, OURS = "layers.{i}", "layers.{i}.self_attn", "encoder.layer.{i}"
QKV = tuple(f"{OURS}.attention.self.{name}" for name in ("query", "key", "value"))

ENCODER = table(
    tensor("embed_tokens.weight", "embeddings.word_embeddings.weight"),
    tensor("embed_positions.weight", "embeddings.position_embeddings.weight"),
    tensor("segment_embeddings.weight", "embeddings.token_type_embeddings.weight"),
    activation("embed_positions_act", "embeddings.embeddings_act1"),
    quantised_norm("emb_layer_norm", "embeddings.LayerNorm"),
    quantised_norm("layernorm_embedding", "embeddings.LayerNorm"),
    # What a layer does with its input, ours does with its output.
    activation("layers.0.input_act", "embeddings.output_activation"),
    activation("layers.{i+1}.input_act", f"{OURS}.output.output_activation"),
    module(f"{ATTENTION}.q_proj", QKV[0]),
    module(f"{ATTENTION}.k_proj", QKV[1]),
    module(f"{ATTENTION}.v_proj", QKV[2]),
    tensor(f"{ATTENTION}.in_proj_weight", tuple(f"{name}.weight" for name in QKV), SPLIT),
    tensor(f"{ATTENTION}.in_proj_bias", tuple(f"{name}.bias" for name in QKV), SPLIT),
    activation(f"{ATTENTION}.q_proj_act", f"{QKV[0]}_activation"),
    activation(f"{ATTENTION}.k_proj_act", f"{QKV[1]}_activation"),
    activation(f"{ATTENTION}.v_proj_act", f"{QKV[2]}_activation"),
    activation(f"{ATTENTION}.softmax.act", f"{OURS}.attention.self.softmax.act"),
    activation(f"{ATTENTION}.attn_act", f"{OURS}.attention.self.output_activation"),
    module(f"{ATTENTION}.out_proj", f"{OURS}.attention.output.dense"),
    activation(f"{LAYER}.pre_self_attn_layer_norm_act", f"{OURS}.attention.output.ln_input_act"),
    quantised_norm(f"{LAYER}.self_attn_layer_norm", f"{OURS}.attention.output.LayerNorm"),
    module(f"{LAYER}.layer_norms.0", f"{OURS}.attention.output.LayerNorm"),
    activation(f"{LAYER}.fc1_act", f"{OURS}.attention.output.output_activation", f"{OURS}.pre_intermediate_act"),
    module(f"{LAYER}.fc1", f"{OURS}.intermediate.dense"),
    activation(f"{LAYER}.fc2_act", f"{OURS}.intermediate.output_activation", f"{OURS}.pre_output_act"),
    module(f"{LAYER}.fc2", f"{OURS}.output.dense"),
    activation(f"{LAYER}.pre_final_layer_norm_act", f"{OURS}.output.ln_input_act"),
    quantised_norm(f"{LAYER}.final_layer_norm", f"{OURS}.output.LayerNorm"),
    module(f"{LAYER}.layer_norms.1", f"{OURS}.output.LayerNorm"),
)
LM_HEAD = table(
    tensor("lm_head.weight", "lm_head.decoder.weight"),
    tensor("lm_head.bias"),
    module("lm_head.dense"),
    module("lm_head.layer_norm"),
)
LEFT_OUT = {
    "sentence_encoder.version": "the version of fairseq's encoder",
    "sentence_encoder.segment_embeddings_act.*": "the range of a sum that RoBERTa does not compute",
    "regression_head.*": "a head of data2vec, which only training uses",
    **{f"sentence_encoder.{ATTENTION}.attn_probs_act.{name}": "a range that fairseq does not use" for name in ACTIVATION},
    f"sentence_encoder.{LAYER}.activation_fn_approx.input_scaling_factor": "a scale that fairseq does not use",
}
"""Reasons by name, below the prefix of the encoder."""

DERIVED = ("weight_integer", "bias_integer", "fc_scaling_factor", "weight_scaling_factor")
"""Last parts of the names of tensors that follow from the weights, and that I-BERT stores as well."""

PREFIXES = ("encoder.", "decoder.")
OURS_PREFIX = f"{IBERT.prefix}."
WORDS, POSITIONS, TYPES = (f"{OURS_PREFIX}embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type"))
INNER = f"{OURS_PREFIX}{OURS}.intermediate.dense.weight"
DECODER, DECODER_BIAS = "lm_head.decoder.weight", "lm_head.bias"
HEAD = re.compile(r"classification_heads\.([^.]+)\..+")
DEFAULT_HEAD = "sentence_classification_head"
LAYER_NUMBER = re.compile(rf"{re.escape(OURS_PREFIX)}encoder\.layer\.(\d+)\.")


def names_table(head: str | None, prefixes: Iterable[str] = PREFIXES) -> list[Rule]:
    """The whole table.

    Args:
        head: the classification head that becomes ours.
        prefixes: what stands before the names of the encoder and its language-model head.
    """
    rules = []
    for prefix in prefixes:
        rules += prefixed(ENCODER, theirs=f"{prefix}sentence_encoder.", ours=OURS_PREFIX) + prefixed(LM_HEAD, theirs=prefix)
    if head is not None:
        rules += table(*(module(f"classification_heads.{head}.{name}", f"classifier.{name}") for name in ("dense", "out_proj")))
    return rules


# -- settings -------------------------------------------------------------------------------------------------------------
FIRST_POSITION, EPSILON = 2, 1e-5
"""The row of the position table that the first token takes, and the epsilon of the layer norms: fairseq fixes both."""

EXPECTED: dict[str, Any] = {
    "activation_fn": "gelu",
    "no_scale_embedding": True,
    "model_parallel_size": 1,
    "quant_noise_pq": 0,
    "quant_noise_scalar": 0,
}
"""Arguments that make another function of the same weights, and the only values that I-BERT can follow."""

EXPECTED_OF_HEAD = {"pooler_activation_fn": "tanh", "spectral_norm_classification_head": False}
ARGUMENTS = (
    "encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads", "max_positions", "dropout",
    "attention_dropout", "classification_head_name", "untie_weights_roberta", "regression_target", "quant_mode",
    "force_dequant", *EXPECTED, *EXPECTED_OF_HEAD,
)
"""Arguments that are read."""


# -- opening --------------------------------------------------------------------------------------------------------------
USUAL_FILES = ("model.pt", "checkpoint_best.pt", "checkpoint_last.pt")
TRAINING = ("optimizer_history", "last_optimizer_state", "extra_state")
"""Keys by which a file of any of fairseq's models is known."""

BAGGAGE = {
    "optimizer_history": "the history of the optimizer",
    "last_optimizer_state": "the state of the optimizer",
    "task_state": "the state of the task",
    "extra_state": "the state of the training",
    "criterion": "the weights of the loss",
    "fsdp_metadata": "how the weights were divided in training",
}


def _files(sample: Sample) -> list[str]:
    """The files of a directory that may be it, the likeliest first."""
    files = [name for name in sample.names if "/" not in name and name.endswith(".pt")]
    usual = [name for name in USUAL_FILES if name in files]
    return usual[:1] or files


def _is_encoder(name: Any) -> bool:
    return isinstance(name, str) and name.startswith(tuple(f"{prefix}sentence_encoder." for prefix in PREFIXES))


def _is_fairseq(content: Any) -> bool:
    if not isinstance(content, Mapping):
        return False
    state = content.get("model")
    if not isinstance(state, Mapping):
        return any(_is_encoder(name) for name in content)
    return any(_is_encoder(name) for name in state) or (
        ("args" in content or "cfg" in content) and any(key in content for key in TRAINING))


def recognise(sample: Sample) -> bool:
    """Whether a file, or the usual file of a directory, was written by fairseq."""
    if not sample.is_directory:
        return _is_fairseq(sample.content)
    try:
        return any(_is_fairseq(Sample(sample.path / name).content) for name in _files(sample)[:1])
    except CheckpointError:  # a file of another program
        return False


def open_files(sample: Sample) -> Opened:
    """The weights of a file under fairseq's names.

    Raises:
        CheckpointError: when it is no file of fairseq, or when a directory holds several that it could be.
    """
    path = sample.path
    if sample.is_directory:
        files = _files(sample)
        if len(files) != 1:
            raise CheckpointError(f"{path} holds {len(files)} files that could be meant", files[:10],
                                  f"Give the file, or name it {USUAL_FILES[0]}.")
        sample = Sample(path / files[0])
    content = sample.content
    if not _is_fairseq(content):
        raise CheckpointError(f"{sample.path} was not written by fairseq",
                              [f"expected the keys model, args or cfg, and {', '.join(TRAINING)}"])
    state = content.get("model")
    state = state if isinstance(state, Mapping) else content
    tensors = {str(name): value for name, value in state.items() if isinstance(value, LazyTensor)}
    left_out = {str(name): "no tensor" for name, value in state.items() if not isinstance(value, LazyTensor)}
    if state is not content:
        left_out |= {str(key): BAGGAGE.get(str(key), "no part of the model")
                     for key, value in content.items() if key not in ("args", "cfg", "model") and value is not None}
    settings = _settings(content)
    quantised = any(name.endswith(f".{ACTIVATION[0]}") for name in tensors)
    name = "I-BERT" if quantised else "RoBERTa" if any(map(_is_encoder, tensors)) else settings.get("arch", "of another model")
    return Opened(path, f"fairseq {name}", [sample.path.name], tensors, settings, {"directory": sample.path.parent}, left_out)


def _settings(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The arguments of the run, of either generation, by name."""
    args, parts = _members(content.get("args")), _members(content.get("cfg"))
    found: dict[str, Any] = {}
    for part, name in (("task", "task"), ("criterion", "criterion"), ("model", "arch")):
        members = _members(parts.get(part))
        found |= members
        if "_name" in members:
            found[name] = members["_name"]
    return {str(name): value for name, value in {**found, **args}.items() if _is_plain(value)}


def _members(part: Any) -> dict[Any, Any]:
    """The entries of a namespace, a dictionary or a DictConfig; nothing where it is something else."""
    if isinstance(part, SimpleNamespace):
        return dict(vars(part))
    if isinstance(part, Stub):  # omegaconf's containers and values, which fairseq wrote for a while
        part = part.attributes.get("_content")
    entries = part if isinstance(part, Mapping) else {}
    return {name: entry.attributes.get("_val", entry) if isinstance(entry, Stub) else entry for name, entry in entries.items()}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | None) or (
        isinstance(value, list | tuple) and all(isinstance(item, str | int | float | None) for item in value))


# -- reading --------------------------------------------------------------------------------------------------------------
def read(opened: Opened, options: Options) -> Original:
    """See RoBERTa or I-BERT as our I-BERT.

    Raises:
        CheckpointError: when it is another model, has tensors that I-BERT lacks, or contradicts itself.
        ConfigError: when a setting is unknown or impossible.
    """
    theirs, ours = _chosen_settings(options)
    settings = {**opened.settings, **theirs}
    arch = settings.get("arch") or "unknown"
    if not any(map(_is_encoder, opened.tensors)):
        raise CheckpointError(f"{opened.path} holds another model of fairseq",
                              [f"architecture: got {arch!r}, expected one of RoBERTa's",
                               *(f"holds: {name}" for name in list(opened.tensors)[:5])],
                              "RoBERTa's names begin with encoder.sentence_encoder or decoder.sentence_encoder.")
    notes: list[str] = []
    head = _head(opened.tensors, settings, theirs, options.task, notes)
    translation = _translation(opened, head, arch)
    tensors = translation.tensors
    values = _config_values(opened.path, tensors, settings, head, options)
    _cut(opened.path, tensors, options.vocab_size)
    made = _token_types(tensors, notes)
    values["tie_word_embeddings"] = _is_tied(translation, settings, options)
    vocabulary = _vocabulary(opened, options, tensors)
    values |= {"bos_token_id": vocabulary.ids["<s>"], "eos_token_id": vocabulary.ids["</s>"]}
    if head is not None:
        values |= _label_values(opened, options, tensors, settings)
    if options.hf_compat:
        values["hf_compat_scales"] = True
    config = IBertConfig.from_dict({**values, **ours})
    if f"{OURS_PREFIX}embeddings.output_activation.{ACTIVATION[0]}" in tensors:
        mode = settings.get("quant_mode") or "unknown"
        notes.append(f"the activation ranges came along (quant_mode was {mode!r}), but fairseq has none for the last layer's "
                     "output: run the model in training mode on a few batches before it computes in integers (quant_mode=True)")
    task = options.task or ("ForSequenceClassification" if head else "ForMaskedLM" if DECODER_BIAS in tensors else "Model")
    return Original(opened.path, opened.format, IBERT, config, translation, task, made, vocabulary.files,
                    [*notes, *vocabulary.notes])


def _translation(opened: Opened, head: str | None, arch: str) -> Translation:
    """The tensors under our names.

    Raises:
        CheckpointError: listing those that I-BERT lacks.
    """
    left_out = {f"{prefix}{name}": reason for prefix in PREFIXES for name, reason in LEFT_OUT.items()}
    left_out |= {f"classification_heads.{name}.*": "a head that was not asked for"
                 for name in _heads(opened.tensors) if name != head}
    derived = {name: "follows from the weights" for name in opened.tensors if name.rpartition(".")[2] in DERIVED}
    weights = {name: tensor for name, tensor in opened.tensors.items() if name not in derived}
    translation = translate(weights, names_table(head), left_out=left_out)
    translation.left_out |= derived | opened.left_out
    return translation.check(f"{opened.path} holds tensors that no I-BERT has (architecture {arch!r})",
                             "Pre-norm encoders, quantisation noise and other heads cannot be expressed.")


def _chosen_settings(options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the user set, in fairseq's names and in ours."""
    chosen = dict(options.config or {})
    own = {item.name for item in fields(IBertConfig)}
    theirs = {name: value for name, value in chosen.items() if name in ARGUMENTS and name not in own}
    ours = {name: value for name, value in chosen.items() if name in own}
    strange = [f"{name}: unknown" for name in chosen if name not in theirs and name not in ours]
    if strange:
        raise ConfigError("these settings mean nothing here", strange,
                          f"Known are those of IBertConfig, and {', '.join(ARGUMENTS)}.")
    return theirs, ours


def _heads(tensors: Mapping[str, LazyTensor]) -> list[str]:
    return [*dict.fromkeys(match[1] for name in tensors if (match := HEAD.fullmatch(name)))]


def _head(
    tensors: Mapping[str, LazyTensor], settings: Mapping[str, Any], chosen: Mapping[str, Any], task: str | None,
    notes: list[str],
) -> str | None:
    """The classification head that becomes ours: the one that is named, fairseq's default, or the only one.

    Raises:
        ConfigError: when the user names one that is not there.
    """
    heads, named = _heads(tensors), settings.get("classification_head_name")
    if "classification_head_name" in chosen and named not in heads:
        raise ConfigError(f"classification_head_name: got {named!r}, the file has {', '.join(heads) or 'none'}")
    if task is not None and not task.endswith("ForSequenceClassification"):
        return None
    for name in (named, DEFAULT_HEAD):
        if name in heads:
            return name
    if len(heads) > 1:
        notes.append(f"{len(heads)} classification heads are left out: {', '.join(heads)}; "
                     "the setting classification_head_name chooses one")
    return heads[0] if len(heads) == 1 else None


def _config_values(
    path: Path, tensors: Mapping[str, LazyTensor], settings: Mapping[str, Any], head: str | None, options: Options
) -> dict[str, Any]:
    """Our configuration from the shapes, and from the arguments that the shapes do not tell.

    Raises:
        CheckpointError: listing every contradiction and everything that I-BERT cannot compute.
    """
    needed = [WORDS, POSITIONS, INNER.replace("{i}", "0")]
    problems = [f"missing: what becomes {name}" for name in needed if name not in tensors]
    problems += [f"shape of {name}: got {list(tensors[name].shape)}, expected two positive numbers"
                 for name in (*needed, TYPES)
                 if name in tensors and (len(tensors[name].shape) != 2 or 0 in tensors[name].shape)]
    if problems:
        raise CheckpointError(f"{path} lacks parts of RoBERTa's encoder", problems)
    (rows, width), positions, inner = tensors[WORDS].shape, tensors[POSITIONS].shape[0], tensors[needed[2]].shape[0]
    numbers = {int(match[1]) for name in tensors if (match := LAYER_NUMBER.match(name))}
    measured = {"encoder_layers": len(numbers), "encoder_embed_dim": width, "encoder_ffn_embed_dim": inner,
                "max_positions": positions - FIRST_POSITION}
    if numbers != {*range(len(numbers))}:
        shown = ", ".join(map(str, sorted(numbers)[:20]))
        problems.append(f"layers: got the numbers {shown}, expected 0 to {len(numbers) - 1}")
    problems += [f"{name}: the arguments say {settings[name]!r}, the tensors {value}" for name, value in measured.items()
                 if settings.get(name) is not None and settings[name] != value]
    expected = {**EXPECTED, **(EXPECTED_OF_HEAD if head is not None else {})}
    problems += [f"{name}: got {settings[name]!r}, expected {value!r}" for name, value in expected.items()
                 if settings.get(name) is not None and settings[name] != value]
    heads = (options.config or {}).get("num_attention_heads", settings.get("encoder_attention_heads"))
    if type(heads) is not int or heads < 1 or width % heads:
        problems.append(f"encoder_attention_heads: got {heads!r}, expected a divisor of {width}")
    problems += _head_problems(tensors, head, width)
    if problems:
        raise CheckpointError(f"{path} is no RoBERTa that I-BERT can compute", problems,
                              "What the file does not tell can be given as a setting (--config).")
    return {
        "vocab_size": options.vocab_size or rows,
        "hidden_size": width,
        "num_hidden_layers": len(numbers),
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "hidden_dropout_prob": _or(settings.get("dropout"), 0.1),
        "attention_probs_dropout_prob": _or(settings.get("attention_dropout"), 0.1),
        "max_position_embeddings": positions,
        "type_vocab_size": tensors[TYPES].shape[0] if TYPES in tensors else 1,
        "layer_norm_eps": EPSILON,
        "pad_token_id": 1,
        "force_dequant": _or(settings.get("force_dequant"), "none"),
    }


def _head_problems(tensors: Mapping[str, LazyTensor], head: str | None, width: int) -> list[str]:
    """What is wrong with the shapes of the classification head; fairseq lets its inner width differ from the encoder's."""
    dense, last = (tensors.get(f"classifier.{name}.weight") for name in ("dense", "out_proj"))
    found = []
    if dense is not None and dense.shape != (width, width):
        found.append(f"shape of classification_heads.{head}.dense.weight: got {list(dense.shape)}, expected {[width, width]}")
    if last is not None and (len(last.shape) != 2 or last.shape[0] == 0 or last.shape[1] != width):
        found.append(f"shape of classification_heads.{head}.out_proj.weight: got {list(last.shape)}, expected labels x {width}")
    return found


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _cut(path: Path, tensors: dict[str, LazyTensor], rows: int | None) -> None:
    """Keep the first rows of the vocabulary."""
    if rows is None:
        return
    if rows > tensors[WORDS].shape[0]:
        raise CheckpointError(f"{path} has {tensors[WORDS].shape[0]} rows in its vocabulary, {rows} were asked for")
    for name in (WORDS, DECODER, DECODER_BIAS):
        whole = tensors.get(name)
        if whole is not None and whole.shape:
            tensors[name] = replace(whole, shape=(rows, *whole.shape[1:]), read=partial(_first_rows, whole, rows))


def _first_rows(whole: LazyTensor, rows: int) -> np.ndarray | RawTensor:
    value = whole()
    return RawTensor(value.bits[:rows], value.dtype) if isinstance(value, RawTensor) else value[:rows]


def _token_types(tensors: dict[str, LazyTensor], notes: list[str]) -> dict[str, str]:
    """A row of zeros where RoBERTa has no token types."""
    if TYPES in tensors:
        notes.append("it has token types: bertkit adds those of type 0 where none are given, fairseq adds none then")
        return {}
    words = tensors[WORDS]
    tensors[TYPES] = zeros((1, words.shape[1]), words.dtype)
    return {TYPES: "a row of zeros: RoBERTa has no token types"}


def _is_tied(translation: Translation, settings: Mapping[str, Any], options: Options) -> bool:
    """Whether the decoder is the word embeddings; an empty language-model head and a copied decoder are dropped."""
    tensors = translation.tensors
    dense, decoder, words = tensors.get("lm_head.dense.weight"), tensors.get(DECODER), tensors[WORDS]
    if dense is not None and _is_zero(dense):
        _drop(translation, [name for name in tensors if name.startswith("lm_head.")], "an empty language-model head")
        return True
    if decoder is None:
        return True
    if decoder.position == words.position > 0 and (decoder.shape, decoder.dtype) == (words.shape, words.dtype):
        _drop(translation, [DECODER], "the word embeddings once more")
        return True
    if options.decoder is not None:
        return options.decoder == "tied"
    return not settings.get("untie_weights_roberta", False)


def _drop(translation: Translation, names: list[str], reason: str) -> None:
    old = {change.new[0]: change.old[0] for change in translation.changes}
    for name in names:
        del translation.tensors[name]
        translation.left_out[old.get(name, name)] = reason


def _is_zero(tensor: LazyTensor) -> bool:
    return not stored(tensor())[0].any()


def _vocabulary(opened: Opened, options: Options, tensors: Mapping[str, LazyTensor]) -> Vocabulary:
    directory = opened.facts["directory"]
    choices = [directory / DICTIONARY, directory / INPUTS]
    if options.vocab is not None:
        choices = [options.vocab / DICTIONARY if options.vocab.is_dir() else options.vocab]
    for path in choices:
        if path.is_file() or options.vocab is not None:
            return read_vocabulary(path, tensors[WORDS].shape[0], tensors[POSITIONS].shape[0] - FIRST_POSITION)
    return Vocabulary(notes=[f"there is no {DICTIONARY} beside the weights; --vocab names one"])


def _label_values(
    opened: Opened, options: Options, tensors: Mapping[str, LazyTensor], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The names of the classes, where a label/dict.txt has them, or else their number."""
    last = tensors.get("classifier.out_proj.weight")
    count = 2 if last is None else last.shape[0]
    place = options.vocab if options.vocab is not None else opened.facts["directory"]
    directory = place if place.is_dir() else place.parent
    labels = read_labels(directory / LABELS, count)
    regression = {"problem_type": "regression"} if settings.get("regression_target") else {}
    return {**regression, **({"id2label": dict(enumerate(labels))} if labels else {"num_labels": count})}


# -- writing --------------------------------------------------------------------------------------------------------------
MODEL_FILE = USUAL_FILES[0]


def write(original: Original, options: Options) -> dict[str, bytes | Write]:
    """The files of a RoBERTa, or of an I-BERT where the model has activation ranges.

    Notes about what fairseq cannot hold are added to the original's.

    Raises:
        CheckpointError: when fairseq would compute something else.
    """
    config, notes = original.config, original.notes
    tensors = {_with_prefix(name): tensor for name, tensor in original.translation.tensors.items()}
    _refuse(original.path, config, tensors)
    if config.layer_norm_eps != EPSILON:
        notes.append(f"fairseq's layer norms have the epsilon {EPSILON:g}, those of this model {config.layer_norm_eps:g}: its "
                     "results will differ a little")
    if config.type_vocab_size > 1:
        notes.append(f"the {config.type_vocab_size} token types, which are all zero, are left out")
    if config.hf_compat_scales:
        notes.append("the setting hf_compat_scales is lost: quantised, fairseq computes with other scales than transformers")
    quantised = any(_is_learned(name, tensor) for name, tensor in tensors.items())
    classifies = original.task == "ForSequenceClassification"
    ours = _writable(tensors, config, quantised, notes)
    rules = inverted(names_table(DEFAULT_HEAD if classifies else None, PREFIXES[:1]))
    translation = translate(ours, rules)
    lost = [name for name in translation.unknown if not _is_body(name)]
    translation.unknown = [name for name in translation.unknown if _is_body(name)]
    translation.check(f"{original.path} holds tensors that fairseq has no name for")
    if lost:
        notes.append(f"fairseq's RoBERTa has no place for these, they are left out: {', '.join(lost)}")
    original.translation.changes += translation.changes
    model = OrderedDict(translation.tensors)
    model |= _language_model(model, config, notes)
    if quantised:
        notes.append("the integer copies of the weights are not written: load the file with strict=False, as I-BERT's trainer "
                     "does")
    tree = {"args": _arguments(config, original.task, quantised), "model": model,
            "optimizer_history": [{"criterion_name": "MaskedLmLoss", "optimizer_name": "FairseqAdam", "lr_scheduler_state": {},
                                   "num_updates": 0}],
            "task_state": {}, "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
            "last_optimizer_state": None}
    files, why_not = write_vocabulary(original.tokenizer_files, config.vocab_size)
    if why_not:
        notes.append(f"{why_not}; fairseq needs one beside the weights")
    if classifies:
        labels, why_not = write_labels(config.id2label)
        notes += [why_not] if why_not else []
        files |= labels | ({INPUTS: files[DICTIONARY]} if files else {})
    return {MODEL_FILE: partial(_save, tree), **files}


def _save(tree: dict[str, Any], file: BinaryIO, progress: Any) -> None:
    pickle_writer.save(file, tree, name="model", progress=progress)


def _with_prefix(name: str) -> str:
    """A bare encoder's names as those of an encoder under a head."""
    return f"{OURS_PREFIX}{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name


def _is_body(name: str) -> bool:
    return name.startswith((f"{OURS_PREFIX}embeddings.", f"{OURS_PREFIX}encoder."))


def _is_learned(name: str, tensor: LazyTensor) -> bool:
    """Whether it is a statistic that training has changed."""
    leaf = name.rpartition(".")[2]
    return leaf in STATISTIC and bool((_numbers(tensor) != np.float32(STATISTICS[leaf])).any())


def _numbers(tensor: LazyTensor) -> np.ndarray:
    return widen(tensor()).astype(np.float32)


def _refuse(path: Path, config: IBertConfig, tensors: Mapping[str, LazyTensor]) -> None:
    problems = []
    if config.pad_token_id != 1:
        problems.append(f"pad_token_id: got {config.pad_token_id}, expected 1, as every dictionary of fairseq has it")
    if config.pruned_heads:
        problems.append("pruned_heads: fairseq has the same number of heads in every layer")
    if TYPES in tensors and not _is_zero(tensors[TYPES]):
        problems.append(f"{TYPES}: RoBERTa has no token types, and these are not zero")
    if problems:
        raise CheckpointError(f"{path} cannot be a RoBERTa of fairseq", problems)


def _writable(
    tensors: Mapping[str, LazyTensor], config: IBertConfig, quantised: bool, notes: list[str]
) -> dict[str, LazyTensor]:
    """What fairseq has a place for."""
    last = f"{OURS_PREFIX}encoder.layer.{config.num_hidden_layers - 1}.output.output_activation."
    unused = (TYPES, f"{OURS_PREFIX}embeddings.embeddings_act2.", last)
    kept = {name: tensor for name, tensor in tensors.items()
            if not name.startswith(unused) and (quantised or name.rpartition(".")[2] not in STATISTIC)}
    if quantised:
        if any(_is_learned(name, tensor) for name, tensor in tensors.items() if name.startswith(last)):
            notes.append("the range of the last layer's output is lost: fairseq does not quantise it")
        pairs = [rule.ours for rule in ENCODER if rule.operation is COPIED]
        names = [(OURS_PREFIX + first.replace("{i}", str(i)), OURS_PREFIX + second.replace("{i}", str(i)))
                 for i in range(config.num_hidden_layers) for first, second in pairs]
        differ = [(first, second) for first, second in names
                  if first in kept and second in kept and (_numbers(kept[first]) != _numbers(kept[second])).any()]
        if differ:
            notes.append(f"{len(differ)} number(s) of ranges are one in fairseq and two different ones here, such as "
                         f"{' and '.join(differ[0])}: the second of each pair was written")
    return kept


def _language_model(model: Mapping[str, LazyTensor], config: IBertConfig, notes: list[str]) -> dict[str, LazyTensor]:
    """What a language-model head lacks: its tied decoder, or all of it, as no RoBERTa of fairseq is without one."""
    words = model[f"{PREFIXES[0]}sentence_encoder.embed_tokens.weight"]
    made = {} if f"{PREFIXES[0]}lm_head.weight" in model else {f"{PREFIXES[0]}lm_head.weight": words}
    if f"{PREFIXES[0]}lm_head.bias" in model:
        return made
    notes.append("an empty language-model head is written, as fairseq's RoBERTa has one: do not use it")
    rows, width = words.shape
    empty = {"bias": np.zeros(rows, np.float32), "dense.weight": np.zeros((width, width), np.float32),
             "dense.bias": np.zeros(width, np.float32), "layer_norm.weight": np.ones(width, np.float32),
             "layer_norm.bias": np.zeros(width, np.float32)}
    return made | {f"{PREFIXES[0]}lm_head.{name}": converted(name, lazy(value), words.dtype) for name, value in empty.items()}


def _arguments(config: IBertConfig, task: str | None, quantised: bool) -> SimpleNamespace:
    """The arguments with which fairseq makes this model again."""
    length = config.max_position_embeddings - FIRST_POSITION
    values: dict[str, Any] = {
        "arch": "roberta_base", "task": "masked_lm", "criterion": "masked_lm", "data": ".", "seed": 1,
        "encoder_layers": config.num_hidden_layers, "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size, "encoder_attention_heads": config.num_attention_heads,
        "max_positions": length, "tokens_per_sample": length, "dropout": config.hidden_dropout_prob,
        "attention_dropout": config.attention_probs_dropout_prob, "activation_dropout": 0.0,
        "pooler_dropout": config.hidden_dropout_prob, "activation_fn": "gelu", "pooler_activation_fn": "tanh",
        "encoder_layerdrop": 0.0, "encoder_layers_to_keep": None, "untie_weights_roberta": not config.tie_word_embeddings,
        "quant_noise_pq": 0, "quant_noise_pq_block_size": 8, "quant_noise_scalar": 0, "sample_break_mode": "complete",
        "mask_prob": 0.15, "leave_unmasked_prob": 0.1, "random_token_prob": 0.1, "freq_weighted_replacement": False,
        "mask_whole_words": False, "shorten_method": "none", "shorten_data_split_list": "", "load_checkpoint_heads": True,
    }
    if quantised:
        values |= {"quant_mode": "symmetric" if config.quant_mode else "none", "force_dequant": config.force_dequant}
    if task == "ForSequenceClassification":
        values |= {"task": "sentence_prediction", "criterion": "sentence_prediction", "num_classes": config.num_labels,
                   "classification_head_name": DEFAULT_HEAD, "regression_target": config.problem_type == "regression",
                   "init_token": 0, "separator_token": 2, "max_seq_len": length, "no_shuffle": False,
                   "add_prev_output_tokens": False}
    return SimpleNamespace(**values)


FAIRSEQ = Format("fairseq", "fairseq's RoBERTa or I-BERT", ("ibert",), recognise, open_files, read, write,
                 reading=(*READING, "decoder"))
