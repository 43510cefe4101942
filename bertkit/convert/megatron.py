"""BERT checkpoints of Megatron-LM ("legacy" names), of every version, as NVIDIA's zip, as a directory of ranks or as one file.

Megatron-LM has written four layouts of the fused projection of queries, keys and values, and three generations of names.
Both are told apart here by what a file holds. Its arguments (`args`) say more than the tensors: epsilon, activation, heads.

Source: Megatron-LM v1.0 to core_v0.8.0 (`megatron/checkpointing.py`, `megatron/model/bert_model.py`), BSD licence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

from bertkit.convert.megatron_shards import (
    MODEL_FILES,
    TRACKER,
    Files,
    Layout,
    Slices,
    directory_of,
    find_shards,
    flattened,
    merge,
    split,
)
from bertkit.convert.original import Format, Opened, Options, Original, Sample, Write
from bertkit.convert.rules import (
    SAME,
    Arrays,
    Change,
    Facts,
    Operation,
    Rule,
    inverted,
    module,
    numbers_of,
    table,
    tensor,
    translate,
)
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.files import pickle_reader, pickle_writer
from bertkit.core.files.byte_source import as_source
from bertkit.core.megatron_bert import MEGATRON_BERT, MegatronBertConfig
from bertkit.core.tensors import LazyTensor, stored, zeros

VERSIONS = (0, 1, 2, 3)
EPSILON = 1e-5
"""Megatron's default; files without arguments were trained with it."""

HEAD_SIZE = 64
DIVISIBLE_BY = 128
LARGEST_VOCABULARY = 64 * 2**20


# -- names --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Generation:
    """How a version of Megatron-LM calls the modules whose names have changed.

    Args:
        body: the stack of layers: "transformer" until 2020, then "encoder".
        attention: "attention" until 2020, then "self_attention".
        norm: "layernorm" until 2023, then "norm".
        head_norm: the same, in the language-model head.
    """

    body: str = "encoder"
    attention: str = "self_attention"
    norm: str = "layernorm"
    head_norm: str = "layernorm"

    @property
    def layers(self) -> str:
        """What the names of the layers' tensors begin with."""
        return f"language_model.{self.body}.layers."


def generation_of(names: Any) -> Generation:
    """The generation that some names are of.

    Example:
        >>> generation_of(["language_model.transformer.layers.0.attention.dense.bias"]).body
        'transformer'
    """
    return Generation(
        body="transformer" if any(name.startswith("language_model.transformer.") for name in names) else "encoder",
        attention="attention" if any(".attention." in name for name in names) else "self_attention",
        norm="norm" if any(name.endswith(("_norm.weight", "_norm.bias")) for name in names) else "layernorm",
        head_norm="norm" if any(name.startswith("lm_head.norm.") for name in names) else "layernorm",
    )


OLD, NEW = Generation("transformer", "attention"), Generation()
WRITTEN = {0: OLD, 1: OLD, 2: NEW, 3: NEW}
"""The generation that is written with each version of the layout."""

EMBEDDING = "language_model.embedding"
WORDS = f"{EMBEDDING}.word_embeddings.weight"
POSITIONS = f"{EMBEDDING}.position_embeddings.weight"
TYPES = f"{EMBEDDING}.tokentype_embeddings.weight"
BERT = "bert"
OUR_WORDS = "bert.embeddings.word_embeddings.weight"
OUR_TYPES = "bert.embeddings.token_type_embeddings.weight"


CLASSIFIERS = {"ForSequenceClassification": "classification_head", "ForMultipleChoice": "multichoice_head"}
"""Their name of the classifier, by task."""


# -- operations ---------------------------------------------------------------------------------------------------------
FUSED = {0: ("part", "head", "row"), 1: ("head", "row", "part"), 2: ("head", "part", "row"), 3: ("head", "part", "row")}
"""Order, in the rows of the fused projection, of part (query, key, value), head, and row in the head, by version."""


def _unfuse(arrays: Arrays, facts: Facts) -> Arrays:
    (fused,) = arrays
    order = FUSED[facts["version"]]
    sizes = {"part": 3, "head": facts["heads"], "row": fused.shape[0] // (3 * facts["heads"])}
    split_up = fused.reshape(*(sizes[name] for name in order), *fused.shape[1:])
    parts = np.moveaxis(split_up, [order.index(name) for name in ("part", "head", "row")], [0, 1, 2])
    return [part.reshape(-1, *fused.shape[1:]) for part in parts]


def _fuse(arrays: Arrays, facts: Facts) -> Arrays:
    order, heads = FUSED[facts["version"]], facts["heads"]
    rest = arrays[0].shape[1:]
    stacked = np.stack([array.reshape(heads, array.shape[0] // heads, *rest) for array in arrays])
    places = [("part", "head", "row").index(name) for name in order]
    return [np.ascontiguousarray(np.moveaxis(stacked, places, [0, 1, 2])).reshape(-1, *rest)]


def _cut(arrays: Arrays, facts: Facts) -> Arrays:
    return [array[: facts["vocab_size"]] for array in arrays]


def _pad(arrays: Arrays, facts: Facts) -> Arrays:
    (array,) = arrays
    padded = np.zeros((facts["padded_vocab_size"], *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return [padded]


QKV = Operation("split into query, key and value", _unfuse, _fuse, "merged into one projection")
CUT = Operation("cut to the vocabulary", _cut, _pad, "padded with rows of zeros")


# -- the tables ---------------------------------------------------------------------------------------------------------
def rules_of(generation: Generation, vocabulary: Operation = SAME, classifier: str = "classification_head") -> list[Rule]:
    """The table of names: Megatron's on the left, ours on the right.

    Args:
        generation: which of Megatron's names.
        vocabulary: what happens to the tensors that have a row for each token.
        classifier: their name of the classifier, "classification_head" or "multichoice_head".
    """
    body, norm = f"language_model.{generation.body}", generation.norm
    layer, attention = f"{generation.layers}{{i}}", f"{generation.layers}{{i}}.{generation.attention}"
    ours = f"{BERT}.encoder.layer.{{i}}"
    parts = tuple(f"{ours}.attention.self.{part}" for part in ("query", "key", "value"))
    return table(
        tensor(WORDS, OUR_WORDS, vocabulary),
        tensor(POSITIONS, f"{BERT}.embeddings.position_embeddings.weight"),
        tensor(TYPES, OUR_TYPES),
        module(f"{layer}.input_{norm}", f"{ours}.attention.ln"),
        module(f"{attention}.query_key_value", parts, QKV),
        module(f"{attention}.dense", f"{ours}.attention.output.dense"),
        module(f"{layer}.post_attention_{norm}", f"{ours}.ln"),
        module(f"{layer}.mlp.dense_h_to_4h", f"{ours}.intermediate.dense"),
        module(f"{layer}.mlp.dense_4h_to_h", f"{ours}.output.dense"),
        module(f"{body}.final_{norm}", f"{BERT}.encoder.ln"),
        module("language_model.pooler.dense", f"{BERT}.pooler.dense"),
        tensor("lm_head.bias", "cls.predictions.bias", vocabulary),
        module("lm_head.dense", "cls.predictions.transform.dense"),
        module(f"lm_head.{generation.head_norm}", "cls.predictions.transform.LayerNorm"),
        module("binary_head", "cls.seq_relationship"),
        module(classifier, "classifier"),
    )


def layout_of(generation: Generation, version: float) -> Layout:
    """How the ranks divide the model.

    Version 0 has the parts of the fused projection one after the other, and each is divided by itself.
    """
    layer, attention = f"{generation.layers}{{i}}", f"{generation.layers}{{i}}.{generation.attention}"
    fused = Slices(0, folds=3 if version == 0 else 1)
    return Layout(
        layers=generation.layers,
        slices={
            WORDS: Slices(0),
            "lm_head.bias": Slices(0),
            f"{attention}.query_key_value.weight": fused,
            f"{attention}.query_key_value.bias": fused,
            f"{attention}.dense.weight": Slices(1),
            f"{layer}.mlp.dense_h_to_4h.weight": Slices(0),
            f"{layer}.mlp.dense_h_to_4h.bias": Slices(0),
            f"{layer}.mlp.dense_4h_to_h.weight": Slices(1),
        },
        first=(f"{EMBEDDING}.",),
        copies={"word_embeddings_for_head.weight": WORDS},
    )


ARGUMENTS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "padded_vocab_size": "vocab_size",
    "layernorm_epsilon": "layer_norm_eps",
    "norm_epsilon": "layer_norm_eps",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "init_method_std": "initializer_range",
}
"""Our setting by the argument that says it."""

OTHER_ARGUMENTS = ("kv_channels", "vocab_size", "bias_gelu_fusion", "openai_gelu", "onnx_safe", "tokenizer_type")
"""Arguments that are read for something else."""

READ_BY_TRANSFORMERS = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "max_position_embeddings", "padded_vocab_size",
)
"""The arguments that transformers' script reads."""

SUPPORTED: dict[str, tuple[Any, ...]] = {
    "apply_residual_connection_post_layernorm": (False,),
    "normalization": ("LayerNorm",),
    "apply_layernorm_1p": (False,),
    "add_bias_linear": (True,),
    "position_embedding_type": ("learned_absolute",),
    "add_position_embedding": (True,),
    "use_rotary_position_embeddings": (False,),
    "untie_embeddings_and_output_weights": (False,),
    "group_query_attention": (False,),
    "swiglu": (False,),
    "squared_relu": (False,),
    "num_experts": (),
}
"""Values of the arguments that change what a model computes, with which it is a MegatronBERT; None always is one."""


# -- opening ------------------------------------------------------------------------------------------------------------
def _recognise_loose(sample: Sample) -> bool:
    """Whether a directory or file is Megatron's; the names in it decide against megatron-core."""
    files = _files(sample)
    if files is None:
        return sample.path.name in MODEL_FILES
    if sample.is_directory:
        return bool(files.models) and _has_legacy_names(lambda: pickle_reader.load(files.open(files.models[0])), True)
    return files.is_one and _has_legacy_names(lambda: sample.content, sample.path.name in MODEL_FILES)


def _recognise_zip(sample: Sample) -> bool:
    """Whether a file is a zip archive of ranks."""
    files = _files(sample)
    if files is None:
        return sample.path.suffix == ".zip"
    return not sample.is_directory and not files.is_one and bool(files.models)


def _files(sample: Sample) -> Files | None:
    """The files of a sample; None of an archive that is damaged or hostile, for opening it says so."""
    try:
        return Files(sample)
    except CheckpointError:
        return None


def _has_legacy_names(load: Callable[[], Any], damaged: bool) -> bool:
    """Whether a file holds a tree with Megatron-LM's names; `damaged` is the answer for what cannot be read."""
    try:
        content = load()
        model = content.get("model", content.get("model0", content)) if isinstance(content, Mapping) else {}
        return any(name.startswith("language_model.") for name in flattened("the file", model)[0])
    except CheckpointError:  # opening it says what is wrong
        return damaged


def open_megatron(sample: Sample) -> Opened:
    """Open a checkpoint: all ranks and stages of one iteration, put together.

    Args:
        sample: a directory, a zip archive, or a file.

    Raises:
        CheckpointError: see `megatron_shards.find_shards` and `merge`.
    """
    shards = find_shards(sample)
    names = shards.names
    if not any(name.startswith("language_model.") for name in names):
        raise CheckpointError(f"{sample.path} holds no BERT of Megatron-LM", [f"holds: {name}" for name in sorted(names)[:12]],
                              "Names of megatron-core are read with --from megatron-core.")
    tensors = merge(shards, layout_of(generation_of(names), shards.version))
    return Opened(sample.path, f"Megatron-LM, {shards}", shards.files, tensors, shards.args,
                  {"version": int(shards.version), "ranks": shards.tensor_parallel, "files": shards.around}, shards.left_out)


# -- reading ------------------------------------------------------------------------------------------------------------
def read_megatron(opened: Opened, options: Options) -> Original:
    """See an opened checkpoint as MegatronBERT.

    Args:
        opened: see `open_megatron`.
        options: `config` takes Megatron's arguments and our settings; `vocab_size` cuts the vocabulary.

    Raises:
        CheckpointError: when names are unknown, or arguments and tensors contradict each other.
        ConfigError: when an option is impossible.
    """
    args, ours = _with_options(opened.settings, options.config or {})
    problems: list[str] = []
    notes: list[str] = []
    generation = generation_of(opened.tensors)
    sizes = _sizes(opened.tensors, generation, problems)
    settings = _settings(args, sizes, options.hf_compat, problems, notes)
    rows = sizes.get("vocab_size", 0)
    kept = _kept_rows(rows, args, options, problems)
    if kept < rows:
        notes.append(f"the vocabulary was cut from {rows} to {kept} rows")
    facts = {"version": opened.facts["version"], "heads": settings["num_attention_heads"], "vocab_size": kept}
    classifier = next((name for name in CLASSIFIERS.values() if f"{name}.weight" in opened.tensors), "classification_head")
    translation = translate(opened.tensors, rules_of(generation, CUT if kept < rows else SAME, classifier), facts)
    translation.left_out |= opened.left_out
    if opened.facts.get("ranks", 1) > 1:
        divided = layout_of(generation, opened.facts["version"])
        translation.changes += [Change(f"merged from {opened.facts['ranks']} tensor-parallel ranks", *change[1:])
                                for change in translation.changes if divided.slices_of(change.old[0])]
    names, made = translation.tensors, {}
    if OUR_TYPES not in names and OUR_WORDS in names:
        names[OUR_TYPES] = zeros((2, names[OUR_WORDS].shape[-1]), names[OUR_WORDS].dtype)
        made[OUR_TYPES] = "trained without token types: zeros"
    task = _task(names, classifier)
    problems += [*(f"unknown: {name}" for name in translation.unknown), *translation.problems]
    config = MegatronBertConfig()
    try:
        config = MegatronBertConfig(**{**settings, "vocab_size": kept, **_labels(names, task), **ours})
        problems += _misfits(names, config, task)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise CheckpointError(f"{opened.path} is not a MegatronBERT that can be read", problems[:60],
                              "Arguments that are wrong, or that the file lacks, can be given with --config, as JSON.")
    if task == "Model" and made and f"{BERT}.pooler.dense.weight" not in names and options.task is None:
        raise CheckpointError(f"{opened.path} has neither heads nor a pooler nor token types: it may be a GPT",
                              remedy="If it is a BERT, choose --task Model.")
    tokenizer_files = _tokenizer(opened, options, args, config, notes)
    return Original(opened.path, opened.format, MEGATRON_BERT, config, translation, task, made, tokenizer_files, notes)


def _with_options(args: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments with those that the user gives, and settings of ours that the user gives."""
    theirs = {*ARGUMENTS, *OTHER_ARGUMENTS, *SUPPORTED}
    known = {item.name for item in fields(MegatronBertConfig)}
    unknown = [f"{name}: is neither an argument of Megatron-LM nor a setting of MegatronBERT"
               for name in given if name not in theirs | known]
    if unknown:
        raise ConfigError("settings that mean nothing", unknown)
    return ({**args, **{name: value for name, value in given.items() if name in theirs}},
            {name: value for name, value in given.items() if name not in theirs})


def _sizes(tensors: Mapping[str, LazyTensor], generation: Generation, problems: list[str]) -> dict[str, int]:
    """The settings that the shapes tell."""
    layout = layout_of(generation, 0)
    layers = {layer[0] for name in tensors if (layer := layout.layer_of(name))}
    if len(layers) != 1 + max(layers, default=-1):
        problems.append(f"layers: there are {len(layers)}, with numbers up to {max(layers)}")
    found = {"num_hidden_layers": len(layers), "type_vocab_size": 2}
    for setting, name, axis in (
        ("vocab_size", WORDS, 0), ("hidden_size", WORDS, 1), ("max_position_embeddings", POSITIONS, 0),
        ("type_vocab_size", TYPES, 0), ("intermediate_size", f"{generation.layers}0.mlp.dense_h_to_4h.weight", 0),
    ):
        shape = tensors[name].shape if name in tensors else None
        if shape is not None and len(shape) == 2 and 0 not in shape:
            found[setting] = shape[axis]
        elif shape is not None:
            problems.append(f"{name}: got {list(shape)}, expected a matrix")
        elif setting not in found and axis == 0:
            problems.append(f"{name}: is not there")
    return found


def _settings(
    args: Mapping[str, Any], sizes: Mapping[str, int], hf_compat: bool, problems: list[str], notes: list[str]
) -> dict[str, Any]:
    """The configuration that arguments and shapes give together."""
    problems += [f"{name}: the arguments say {args[name]!r}, with which it is no MegatronBERT"
                 for name, values in SUPPORTED.items() if args.get(name) is not None and args[name] not in values]
    settings: dict[str, Any] = {"layer_norm_eps": EPSILON, **sizes, **_activations(args)}
    for name, setting in ARGUMENTS.items():
        value = args.get(name)
        if value is None or (hf_compat and name not in READ_BY_TRANSFORMERS):
            continue
        if setting not in sizes:
            settings[setting] = value
        elif value != sizes[setting]:
            problems.append(f"{name}: the arguments say {value!r}, the tensors {sizes[setting]}")
    hidden = sizes.get("hidden_size", HEAD_SIZE)
    settings["num_attention_heads"] = _heads(args, hidden, problems, notes)
    if hf_compat:
        settings |= {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "head_act": None}
        settings |= {"tokenizer_type": args["tokenizer_type"]} if args.get("tokenizer_type") is not None else {}
        notes.append("epsilon 1e-12 and the erf form of GELU, as transformers' script writes them, whatever the training had")
    return settings


def _heads(args: Mapping[str, Any], hidden: int, problems: list[str], notes: list[str]) -> int:
    """The number of attention heads, which no shape tells; 1 where it is impossible."""
    heads, size = args.get("num_attention_heads"), args.get("kv_channels")
    if heads is None and hidden % HEAD_SIZE:
        problems.append(f"num_attention_heads: the file does not say it, and {hidden} is no multiple of {HEAD_SIZE}")
        return 1
    if heads is None:
        heads = hidden // HEAD_SIZE
        notes.append(f"the file does not say how many attention heads there are: {heads} of size {HEAD_SIZE} are taken")
    if not isinstance(heads, int) or isinstance(heads, bool) or not 0 < heads <= hidden or hidden % heads:
        problems.append(f"num_attention_heads: got {heads!r}, expected a divisor of {hidden}")
        return 1
    if size is not None and size != hidden // heads:
        problems.append(f"kv_channels: the arguments say {size!r}, but {hidden} // {heads} heads is {hidden // heads}")
    return heads


def _activations(args: Mapping[str, Any]) -> dict[str, str]:
    """Fusion of bias and GELU means the tanh form in the layers, and only there; `--openai-gelu` means it everywhere."""
    everywhere = "gelu_new" if args.get("openai_gelu") else "gelu"
    if args.get("bias_gelu_fusion") and everywhere == "gelu":
        return {"hidden_act": "gelu_new", "head_act": "gelu"}
    return {"hidden_act": everywhere}


def _kept_rows(rows: int, args: Mapping[str, Any], options: Options, problems: list[str]) -> int:
    """How many rows of the vocabulary to keep: those that the user or the arguments say, else all."""
    kept, says = options.vocab_size, "vocab_size"
    if kept is None:
        kept, says = args.get("vocab_size"), "vocab_size of the arguments"
    if kept is None:
        return rows
    if not isinstance(kept, int) or isinstance(kept, bool) or not 0 < kept <= rows:
        problems.append(f"{says}: got {kept!r}, expected a number up to the {rows} rows of the table")
        return rows
    return kept


def _task(names: Mapping[str, LazyTensor], classifier: str) -> str:
    """The class whose head a checkpoint has."""
    if "classifier.weight" in names:
        return next(task for task, name in CLASSIFIERS.items() if name == classifier)
    words, order = "cls.predictions.bias" in names, "cls.seq_relationship.weight" in names
    if words:
        return "ForPreTraining" if order else "ForMaskedLM"
    return "ForNextSentencePrediction" if order else "Model"


def _labels(names: Mapping[str, LazyTensor], task: str) -> dict[str, int]:
    """The number of classes, which is the number of the classifier's rows."""
    shape = names["classifier.weight"].shape if task == "ForSequenceClassification" else ()
    return {"num_labels": shape[0]} if shape else {}


def _misfits(names: Mapping[str, LazyTensor], config: MegatronBertConfig, task: str) -> list[str]:
    """Tensors that are not there, or not of the shape that the configuration gives them."""
    pooled = f"{BERT}.pooler.dense.weight" in names if task == "Model" else None
    params = MEGATRON_BERT.params(task, config, pooled=pooled)
    problems = []
    for name, param in params.items():
        name = name if task != "Model" else f"{BERT}.{name}"
        if not param.stored:
            continue
        if name not in names:
            problems.append(f"missing: {name}")
        elif names[name].shape != param.shape:
            problems.append(f"{name}: got {list(names[name].shape)}, expected {list(param.shape)}")
    return problems


# -- the tokenizer ------------------------------------------------------------------------------------------------------
def _tokenizer(
    opened: Opened, options: Options, args: Mapping[str, Any], config: MegatronBertConfig, notes: list[str]
) -> dict[str, bytes]:
    """vocab.txt and tokenizer_config.json, where there is a vocabulary."""
    source = options.vocab or _vocabulary_beside(opened, notes)
    if source is None:
        return {}
    content = as_source(source)
    if content.size > LARGEST_VOCABULARY:
        raise CheckpointError(f"{content.name} has {content.size} bytes, which no vocabulary has")
    vocabulary = content.read(0, content.size).tobytes()
    try:
        tokens = vocabulary.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{content.name} is no vocabulary: {error}", remedy="Expected is a text file, a token a line."
                              ) from None
    count = len(tokens) - (tokens[-1] == "")
    if not count:
        raise CheckpointError(f"{content.name} is empty", remedy="Expected is a vocabulary: a text file, a token a line.")
    if count > config.vocab_size and not opened.path.is_dir() and options.vocab is None:
        notes.append(f"{content.name} belongs to another model: it has {count} tokens, the table {config.vocab_size} rows")
        return {}
    if count > config.vocab_size:
        raise CheckpointError(f"{content.name} does not belong to {opened.path}",
                              [f"it has {count} tokens, the model {config.vocab_size} rows"],
                              "Give the right one with --vocab.")
    if count < config.vocab_size:
        notes.append(f"the vocabulary has {count} tokens, the table {config.vocab_size} rows: "
                     f"--vocab-size {count} cuts the others off")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": _lower_case(opened, args, content.name, tokens),
                "model_max_length": config.max_position_embeddings}
    return {"vocab.txt": vocabulary, "tokenizer_config.json": (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()}


def _vocabulary_beside(opened: Opened, notes: list[str]) -> Any:
    files: Files = opened.facts["files"]
    found: dict[str, Any] = {name: files.open(name) for name in files.names if name.endswith("vocab.txt") and not files.is_one}
    if not found and not opened.path.is_dir():
        found = {path.name: path for path in sorted(opened.path.parent.glob("*vocab.txt"))}
    if len(found) > 1:
        notes.append(f"there are several vocabularies ({', '.join(list(found)[:5])}): choose one with --vocab")
    return next(iter(found.values())) if len(found) == 1 else None


def _lower_case(opened: Opened, args: Mapping[str, Any], vocabulary: str, tokens: list[str]) -> bool:
    """The arguments know it, or the names of the files; else whether the vocabulary has no capitals."""
    kinds = {"BertWordPieceLowerCase": True, "BertWordPieceCase": False}
    if args.get("tokenizer_type") in kinds:
        return kinds[args["tokenizer_type"]]
    for name in (PurePosixPath(vocabulary).name.lower(), opened.path.name.lower()):
        if "cased" in name:
            return "uncased" in name
    return not any(token != token.lower() for token in tokens if not token.startswith("["))


# -- writing ------------------------------------------------------------------------------------------------------------
TASKS = ("ForPreTraining", "ForMaskedLM", "Model", *CLASSIFIERS)
GELUS = {
    ("gelu", "gelu"): {"bias_gelu_fusion": False, "openai_gelu": False},
    ("gelu_new", "gelu"): {"bias_gelu_fusion": True, "openai_gelu": False},
    ("gelu_new", "gelu_new"): {"bias_gelu_fusion": False, "openai_gelu": True},
}
"""Arguments by the activations of the layers and of the language-model head."""

NESTED = (f"{EMBEDDING}.word_embeddings", f"{EMBEDDING}.position_embeddings", f"{EMBEDDING}.tokentype_embeddings",
          "language_model.transformer", "language_model.encoder", "language_model.pooler", "word_embeddings_for_head",
          "lm_head", "binary_head", *CLASSIFIERS.values())
"""The dictionaries that Megatron nests, in its order; names below them stay as they are."""


def write_megatron(original: Original, options: Options) -> dict[str, bytes | Write]:
    """The files of a checkpoint that Megatron-LM loads: `release/mp_rank_*/model_optim_rng.pt` and the tracker file.

    The vocabulary is padded with rows of zeros to a multiple of 128 for each rank, as Megatron demands; the arguments keep
    the true size, so that reading cuts them off again.

    Args:
        original: the model, in our names.
        options: `tensor_parallel`, `pipeline_parallel`, `checkpoint_version` (3).

    Raises:
        ConfigError: naming all that Megatron-LM cannot hold.
    """
    config, task = original.config, original.task or "Model"
    tensor_parallel, pipeline_parallel = (1 if number is None else number
                                          for number in (options.tensor_parallel, options.pipeline_parallel))
    version = 3 if options.checkpoint_version is None else options.checkpoint_version
    check_writable(config, task, tensor_parallel, pipeline_parallel, version)
    tensors = {(name if task != "Model" else f"{BERT}.{name}"): value for name, value in original.translation.tensors.items()}
    lacking = _misfits(tensors, config, task)
    if lacking:
        raise CheckpointError(f"{original.path} is no complete MegatronBert{task}", lacking)
    if task == "ForMaskedLM":
        leave_out_types(tensors, original.notes)
    if task == "Model":
        original.notes.append("without its heads Megatron-LM takes it as --pretrained-checkpoint of a fine-tuning")
    generation = WRITTEN[version]
    unit = DIVISIBLE_BY * tensor_parallel
    padded = -(-config.vocab_size // unit) * unit
    vocabulary = CUT if padded != config.vocab_size else SAME
    if vocabulary is CUT:
        original.notes.append(f"the vocabulary is padded from {config.vocab_size} to {padded} rows with zeros")
    rules = rules_of(generation, vocabulary, CLASSIFIERS.get(task, "classification_head"))
    facts = {"version": version, "heads": config.num_attention_heads, "padded_vocab_size": padded}
    theirs = translate(tensors, inverted(rules), facts).check(f"{original.path} has tensors that Megatron-LM does not know")
    original.translation.changes += theirs.changes
    ranks = split(in_order(theirs.tensors, rules), layout_of(generation, version), tensor_parallel, pipeline_parallel)
    args = SimpleNamespace(**args_of(original, task, padded, tensor_parallel, pipeline_parallel, version))
    common = {"args": args, **({"checkpoint_version": float(version)} if version else {}), "iteration": 0}
    files: dict[str, bytes | Write] = {TRACKER: b"release"}
    for (rank, stage), mine in ranks.items():
        name = f"release/{directory_of(rank, stage, pipeline_parallel)}/model_optim_rng.pt"
        files[name] = partial(save_tree, {**common, "model": nested(mine)})
    if "vocab.txt" in original.tokenizer_files:
        files["vocab.txt"] = original.tokenizer_files["vocab.txt"]
    return files


def save_tree(tree: Any, file: BinaryIO, progress: Any) -> None:
    """Write one rank's file."""
    pickle_writer.save(file, tree, name="model_optim_rng", progress=progress)


def check_writable(
    config: MegatronBertConfig, task: str, tensor_parallel: int, pipeline_parallel: int, version: int
) -> None:
    """Refuse a model that Megatron's BERT cannot hold, or a division that does not come out even.

    Raises:
        ConfigError: naming all that is in the way.
    """
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    head_act = config.hidden_act if config.head_act is None else config.head_act
    wrong = {
        f"task: got {task}, expected one of {', '.join(TASKS)}": task not in TASKS,
        "is_decoder: Megatron's BERT is an encoder": config.is_decoder or config.add_cross_attention,
        f"position_embedding_type: got {config.position_embedding_type!r}, expected 'absolute'":
            config.position_embedding_type != "absolute",
        "pruned_heads: all layers must have all heads": any(config.pruned_heads.values()),
        "tie_word_embeddings: the decoder must share the word embeddings": not config.tie_word_embeddings,
        f"hidden_act, head_act: got {config.hidden_act!r} and {head_act!r}, expected one of "
        f"{', '.join(' and '.join(pair) for pair in GELUS)}": (config.hidden_act, head_act) not in GELUS,
        f"checkpoint_version: got {version}, expected one of 0, 1, 2, 3": version not in VERSIONS,
        f"tensor_parallel: got {tensor_parallel}, expected a divisor of {heads} heads":
            not 0 < tensor_parallel <= heads or heads % tensor_parallel != 0,
        f"pipeline_parallel: got {pipeline_parallel}, expected a divisor of {layers} layers":
            not 0 < pipeline_parallel <= max(layers, 1) or layers % pipeline_parallel != 0,
    }
    problems = [problem for problem, holds in wrong.items() if holds]
    if problems:
        raise ConfigError("Megatron-LM cannot hold this model", problems)


def leave_out_types(tensors: dict[str, LazyTensor], notes: list[str]) -> None:
    """Without a binary head Megatron has no token types: right where they do nothing."""
    types = tensors[OUR_TYPES]
    if types.shape[0] == 2 and not stored(types())[0].any():
        del tensors[OUR_TYPES]
    else:
        notes.append("Megatron-LM reads token types only into models with a binary head, and this one has none")


def in_order(tensors: Mapping[str, LazyTensor], rules: list[Rule]) -> dict[str, LazyTensor]:
    """The tensors in the order in which Megatron writes them: that of the table, the layers one after the other."""
    first_of_layers = next(index for index, rule in enumerate(rules) if "{i}" in rule.theirs[0])

    def place(name: str) -> tuple[int, int, int]:
        for index, rule in enumerate(rules):
            numbers = numbers_of(rule.theirs[0], name)
            if numbers is not None:
                return (first_of_layers, numbers["i"], index) if numbers else (index, 0, 0)
        return len(rules), 0, 0

    return {name: tensors[name] for name in sorted(tensors, key=place)}


def nested(tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Tensors by name as the tree that Megatron writes.

    Example:
        >>> nested({"lm_head.dense.bias": 1, "language_model.pooler.dense.bias": 2})
        {'language_model': {'pooler': {'dense.bias': 2}}, 'lm_head': {'dense.bias': 1}}
    """
    tree: dict[str, Any] = {}
    for owner in NESTED:
        mine = {name[len(owner) + 1:]: value for name, value in tensors.items() if name.startswith(f"{owner}.")}
        *path, last = owner.split(".")
        place = tree
        for step in path if mine else ():
            place = place.setdefault(step, {})
        if mine:
            place[last] = mine
    return tree


def args_of(
    original: Original, task: str, padded: int, tensor_parallel: int, pipeline_parallel: int, version: int
) -> dict[str, Any]:
    """What Megatron keeps of its command line."""
    config: MegatronBertConfig = original.config
    dtype = next(iter(original.translation.tensors.values())).dtype
    sizes = {"tensor_model_parallel_size": tensor_parallel, "pipeline_model_parallel_size": pipeline_parallel,
             "virtual_pipeline_model_parallel_size": None}
    lower = json.loads(original.tokenizer_files.get("tokenizer_config.json", b"{}")).get("do_lower_case", True)
    return {
        **{name: getattr(config, setting) for name, setting in ARGUMENTS.items() if name != "norm_epsilon"},
        "kv_channels": config.head_size,
        "seq_length": config.max_position_embeddings,
        "padded_vocab_size": padded,
        "vocab_size": config.vocab_size,
        "make_vocab_size_divisible_by": DIVISIBLE_BY,
        "tokenizer_type": "BertWordPieceLowerCase" if lower else "BertWordPieceCase",
        **GELUS[config.hidden_act, config.head_act or config.hidden_act],
        "onnx_safe": None,
        "apply_residual_connection_post_layernorm": False,
        "bert_binary_head": task != "ForMaskedLM",
        "fp16": dtype == "F16",
        "bf16": dtype == "BF16",
        **(sizes if version == 3 else {"model_parallel_size": tensor_parallel}),
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
    }


MEGATRON_LM = Format(
    "megatron-lm", "BERT of Megatron-LM", ("megatron-bert",), _recognise_loose, open_megatron, read_megatron, write_megatron,
    writing=("tensor_parallel", "pipeline_parallel", "checkpoint_version"),
)
NGC_MEGATRON = Format(
    "ngc-megatron", "BERT of Megatron-LM as NVIDIA's zip archive", ("megatron-bert",), _recognise_zip, open_megatron,
    read_megatron,
)
