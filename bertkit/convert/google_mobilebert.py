"""MobileBERT as Google trains it: TensorFlow 1 checkpoints, both ways, and the TensorFlow 2 checkpoints of its Model Garden.

A TensorFlow 1 checkpoint names a variable by its scopes: `bert/encoder/layer_0/attention/self/query/kernel`. A TensorFlow 2
checkpoint names it by the path of attributes that leads to it; the name that its layer gave it stands in the graph of objects
beside the values, and is what the second table is about. Neither holds the switches of the model: they are in a JSON file
whose keys are, as it happens, those of `MobileBertConfig`.

Sources: https://github.com/google-research/google-research/tree/master/mobilebert and
https://github.com/tensorflow/models/tree/master/official/projects/mobilebert
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.convert.mobilebert import check_depth, shaped_vocabulary
from bertkit.convert.original import READING, Format, Opened, Options, Original, Sample, Write
from bertkit.convert.rules import TRANSPOSED, Arrays, Facts, Operation, Rule, inverted, table, tensor, translate
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.files.protobuf import BYTES, parse
from bertkit.core.files.tf_checkpoint import (
    OBJECT_GRAPH,
    TensorFlowCheckpoint,
    open_tf_checkpoint,
    prefix_of,
    tf_checkpoint_files,
)
from bertkit.core.mobilebert import MOBILEBERT, MobileBertConfig
from bertkit.core.tensors import LazyTensor, zeros

CONFIG_FILE = "bert_config.json"
NEWEST_FILE = "checkpoint"
PREFIX = "mobilebert_variables.ckpt"
VOCABULARY_FILE = "vocab.txt"
LARGEST_JSON = 1 << 20
LARGEST_GRAPH = 1 << 24

DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 16,
    "initializer_range": 0.02,
    "embedding_size": None,
    "trigram_input": False,
    "use_bottleneck": False,
    "intra_bottleneck_size": None,
    "use_bottleneck_attention": False,
    "key_query_shared_bottleneck": False,
    "num_feedforward_networks": 1,
    "normalization_type": "layer_norm",
    "classifier_activation": True,
}
"""What Google's code takes for a key that its JSON file lacks; None stands for `hidden_size`."""

NORMS = {"layer_norm": ("layer_norm", 1e-12), "no_norm": ("no_norm", 1e-12), "manual_layer_norm": ("layer_norm", 1e-6)}
"""Our normalization_type and epsilon by Google's."""

NOT_GOOGLES = ("model_type", "layer_norm_eps", "architectures", "torch_dtype")
"""Settings of ours that the checkpoint says otherwise; others that differ from their default are kept in Google's file."""

ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "relu6": "relu6", "tanh": "tanh"}
"""Our hidden_act by Google's, whose gelu is the approximation by tanh."""

STUDENT = "FakeLayerNorm"
"""The scope of a norm that is only an elementwise map; that of any other is LayerNorm."""

WORDS = "embeddings/word_embeddings"

BAGGAGE = [
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"teacher/.*", "the teacher that the model was distilled from"),
        (r"(hidden|attention)_distill_\d+/.*", "part of a distillation loss"),
        (r"(.*/)?(adam_[mv]|Adam(_1)?|(AdamWeightDecay|LAMB)(Optimizer)?(_\d+)?)(/.*)?", "optimizer state"),
        (r"global_step|beta[12]_power|save_counter", "state of the training loop"),
        (r"(.*/)?(MobileBert(Act|Weight)FakeQuantWithMinMaxVars(_\d+)?|act_quant|weights_quant)/.*",
         "a range of simulated quantisation"),
    )
]
"""Names of variables that are no weights of the model, and what they are."""

GARDEN_BAGGAGE = [
    (re.compile(r"(optimizer/.*|.*/\.OPTIMIZER_SLOT/.*)"), "optimizer state"),
    (re.compile(r"(global_step|save_counter|train_loss|step)(/.*)?"), "state of the training loop"),
]
"""The same for the keys of a TensorFlow 2 checkpoint."""

HEADS = {
    "ForPreTraining": ("cls.predictions.bias", "cls.seq_relationship.weight"),
    "ForMaskedLM": ("cls.predictions.bias",),
    "ForNextSentencePrediction": ("cls.seq_relationship.weight",),
    "ForQuestionAnswering": ("qa_outputs.weight",),
    "ForSequenceClassification": ("classifier.weight",),
}
"""The classes that Google's programs train, and tensors by which they are known; the first that fits is it."""


# -- tables -------------------------------------------------------------------------------------------------------------
def _dense(theirs: str, ours: str) -> list[Rule]:
    return table(tensor(f"{theirs}/kernel", f"{ours}.weight", TRANSPOSED), tensor(f"{theirs}/bias", f"{ours}.bias"))


def _norm(theirs: str, ours: str) -> list[Rule]:
    return table(tensor(f"{theirs}/gamma", f"{ours}.weight"), tensor(f"{theirs}/beta", f"{ours}.bias"))


def google_table(scope: str, norm: str) -> list[Rule]:
    """The table of a TensorFlow 1 checkpoint.

    Args:
        scope: of the encoder, "bert" in Google's programs.
        norm: scope of its norms, "FakeLayerNorm" or "LayerNorm".

    Example:
        >>> rules = google_table("bert", "LayerNorm")
        >>> next(r.ours[0] for r in rules if r.theirs[0] == "bert/encoder/layer_{i}/output/bottleneck/dense/kernel")
        'mobilebert.encoder.layer.{i}.output.bottleneck.dense.weight'
    """
    def residual(theirs: str, ours: str) -> list[Rule]:
        return table(_dense(f"{theirs}/dense", f"{ours}.dense"), _norm(f"{theirs}/{norm}", f"{ours}.LayerNorm"))

    words, encoder = f"{scope}/embeddings", "mobilebert.embeddings"
    layer, our_layer = f"{scope}/encoder/layer_{{i}}", "mobilebert.encoder.layer.{i}"
    return table(
        tensor(f"{words}/word_embeddings", f"{encoder}.word_embeddings.weight"),
        tensor(f"{words}/position_embeddings", f"{encoder}.position_embeddings.weight"),
        tensor(f"{words}/token_type_embeddings", f"{encoder}.token_type_embeddings.weight"),
        _dense(f"{words}/embedding_transformation", f"{encoder}.embedding_transformation"),
        _norm(f"{words}/{norm}", f"{encoder}.LayerNorm"),
        residual(f"{layer}/bottleneck/input", f"{our_layer}.bottleneck.input"),
        residual(f"{layer}/bottleneck/attention", f"{our_layer}.bottleneck.attention"),
        _dense(f"{layer}/attention/self/query", f"{our_layer}.attention.self.query"),
        _dense(f"{layer}/attention/self/key", f"{our_layer}.attention.self.key"),
        _dense(f"{layer}/attention/self/value", f"{our_layer}.attention.self.value"),
        residual(f"{layer}/attention/output", f"{our_layer}.attention.output"),
        _dense(f"{layer}/ffn_layer_{{j}}/intermediate/dense", f"{our_layer}.ffn.{{j}}.intermediate.dense"),
        residual(f"{layer}/ffn_layer_{{j}}/output", f"{our_layer}.ffn.{{j}}.output"),
        _dense(f"{layer}/intermediate/dense", f"{our_layer}.intermediate.dense"),
        residual(f"{layer}/output", f"{our_layer}.output"),
        residual(f"{layer}/output/bottleneck", f"{our_layer}.output.bottleneck"),
        _dense(f"{scope}/pooler/dense", "mobilebert.pooler.dense"),
        # The norm of this head is a true one in every model.
        _dense("cls/predictions/transform/dense", "cls.predictions.transform.dense"),
        _norm("cls/predictions/transform/LayerNorm", "cls.predictions.transform.LayerNorm"),
        tensor("cls/predictions/output_bias", "cls.predictions.bias"),
        tensor("cls/predictions/extra_output_weights", "cls.predictions.dense.weight", TRANSPOSED),
        tensor("cls/seq_relationship/output_weights", "cls.seq_relationship.weight"),
        tensor("cls/seq_relationship/output_bias", "cls.seq_relationship.bias"),
        tensor("cls/squad/output_weights", "qa_outputs.weight"),
        tensor("cls/squad/output_bias", "qa_outputs.bias"),
        tensor("output_weights", "classifier.weight"),
        tensor("output_bias", "classifier.bias"),
    )


def _join_outputs(arrays: Arrays, facts: Facts) -> Arrays:
    (kernel,) = arrays
    return [kernel.reshape(kernel.shape[0], -1).T]


def _split_outputs(arrays: Arrays, facts: Facts) -> Arrays:
    (weight,) = arrays
    return [weight.T.reshape(weight.shape[1], facts["heads"], -1)]


def _join_inputs(arrays: Arrays, facts: Facts) -> Arrays:
    (kernel,) = arrays
    return [kernel.reshape(-1, kernel.shape[-1]).T]


def _split_inputs(arrays: Arrays, facts: Facts) -> Arrays:
    (weight,) = arrays
    return [weight.T.reshape(facts["heads"], -1, weight.shape[0])]


def _join_bias(arrays: Arrays, facts: Facts) -> Arrays:
    return [array.reshape(-1) for array in arrays]


def _split_bias(arrays: Arrays, facts: Facts) -> Arrays:
    return [array.reshape(facts["heads"], -1) for array in arrays]


OUTPUT_HEADS = Operation("reshaped", _join_outputs, _split_outputs)
INPUT_HEADS = Operation("reshaped", _join_inputs, _split_inputs)
BIAS_HEADS = Operation("reshaped", _join_bias, _split_bias)


def garden_table(networks: int) -> list[Rule]:
    """The table of the Model Garden's names.

    Args:
        networks: feed-forward networks of each layer; the last one is what is elsewhere the layer's own.
    """
    def projection(name: str) -> list[Rule]:
        theirs, ours = f"{layer}/attention/{name}", f"{our_layer}.attention.self.{name}"
        return table(tensor(f"{theirs}/kernel", f"{ours}.weight", OUTPUT_HEADS),
                     tensor(f"{theirs}/bias", f"{ours}.bias", BIAS_HEADS))

    def bottleneck(theirs: str, ours: str) -> list[Rule]:
        return table(_dense(f"{layer}/{theirs}/dense", f"{our_layer}.{ours}.dense"),
                     _norm(f"{layer}/{theirs}/norm", f"{our_layer}.{ours}.LayerNorm"))

    def feed_forward(theirs: str, ours: str) -> list[Rule]:
        return table(_dense(f"{theirs}/intermediate_dense", f"{ours}.intermediate.dense"),
                     _dense(f"{theirs}/output_dense", f"{ours}.output.dense"),
                     _norm(f"{theirs}/norm", f"{ours}.output.LayerNorm"))

    words, encoder, head = "mobile_bert_embedding", "mobilebert.embeddings", "cls/predictions"
    layer, our_layer = "transformer_layer_{i}", "mobilebert.encoder.layer.{i}"
    return table(
        tensor(f"{words}/word_embedding/embeddings", f"{encoder}.word_embeddings.weight"),
        tensor(f"{words}/position_embedding/embeddings", f"{encoder}.position_embeddings.weight"),
        tensor(f"{words}/type_embedding/embeddings", f"{encoder}.token_type_embeddings.weight"),
        _dense(f"{words}/embedding_projection", f"{encoder}.embedding_transformation"),
        _norm(f"{words}/embedding_norm", f"{encoder}.LayerNorm"),
        bottleneck("bottleneck_input", "bottleneck.input"),
        bottleneck("kq_shared_bottleneck", "bottleneck.attention"),
        bottleneck("bottleneck_output", "output.bottleneck"),
        projection("query"), projection("key"), projection("value"),
        tensor(f"{layer}/attention/attention_output/kernel", f"{our_layer}.attention.output.dense.weight", INPUT_HEADS),
        tensor(f"{layer}/attention/attention_output/bias", f"{our_layer}.attention.output.dense.bias"),
        _norm(f"{layer}/attention/norm", f"{our_layer}.attention.output.LayerNorm"),
        feed_forward(f"{layer}/ffn_layer_{networks - 1}", our_layer),
        feed_forward(f"{layer}/ffn_layer_{{j}}", f"{our_layer}.ffn.{{j}}"),
        _dense("pooler", "mobilebert.pooler.dense"),
        _dense(f"{head}/transform/dense", "cls.predictions.transform.dense"),
        _norm(f"{head}/transform/LayerNorm", "cls.predictions.transform.LayerNorm"),
        tensor(f"{head}/extra_output_weights", "cls.predictions.dense.weight", TRANSPOSED),
        tensor(f"{head}/output_bias/bias", "cls.predictions.bias"),
    )


UNUSED_BOTTLENECKS = {
    f"transformer_layer_{{i}}/kq_shared_bottleneck/{name}": "a bottleneck that use_bottleneck_attention leaves unused"
    for name in ("dense/kernel", "dense/bias", "norm/gamma", "norm/beta")
}
"""The Model Garden makes the bottleneck of queries and keys also where nothing reads it."""


# -- configuration ------------------------------------------------------------------------------------------------------
def config_from(settings: Mapping[str, Any], *, hf_compat: bool = False) -> MobileBertConfig:
    """Our configuration for the content of Google's JSON file.

    Args:
        settings: its keys; absent ones have the defaults of Google's code, which are not ours.
        hf_compat: call Google's gelu "gelu", as transformers does, where that is the other one.

    Raises:
        ConfigError: for what MobileBERT cannot be.

    Example:
        >>> config = config_from({"vocab_size": 30522, "hidden_size": 512, "num_attention_heads": 4})
        >>> config.hidden_act, config.normalization_type, config.embedding_size
        ('gelu_new', 'layer_norm', 512)
    """
    values = {**DEFAULTS, **settings}
    for name in ("embedding_size", "intra_bottleneck_size"):
        if values[name] is None:
            values[name] = values["hidden_size"]
    act, kind = values["hidden_act"], values["normalization_type"]
    problems = []
    if not isinstance(act, str) or act.lower() not in ACTIVATIONS:
        problems.append(f"hidden_act: got {act!r}, expected one of {', '.join(ACTIVATIONS)}")
    if not isinstance(kind, str) or kind not in NORMS:
        problems.append(f"normalization_type: got {kind!r}, expected one of {', '.join(NORMS)}")
    if "vocab_size" not in values:
        problems.append("vocab_size: is not there")
    if problems:
        raise ConfigError("the settings are none of Google's MobileBERT", problems)
    values["hidden_act"] = "gelu" if hf_compat and act.lower() == "gelu" else ACTIVATIONS[act.lower()]
    values["normalization_type"], epsilon = NORMS[kind]
    values.setdefault("layer_norm_eps", epsilon)
    return MobileBertConfig(**values)


def settings_from(config: MobileBertConfig) -> dict[str, Any]:
    """The content of Google's JSON file for our configuration; the inverse of `config_from`.

    Raises:
        ConfigError: for what Google's code cannot be told.
    """
    kinds = {ours: theirs for theirs, ours in NORMS.items()}
    acts = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    kind = kinds.get((config.normalization_type, config.layer_norm_eps))
    problems = []
    if kind is None:
        allowed = " or ".join(f"{epsilon:g}" for name, epsilon in NORMS.values() if name == config.normalization_type)
        problems.append(f"layer_norm_eps: {config.layer_norm_eps:g}, Google's {config.normalization_type} has {allowed}")
    if config.hidden_act not in acts:
        problems.append(f"hidden_act: {config.hidden_act!r}, Google's code has {', '.join(acts)}")
    if config.pruned_heads:
        problems.append("pruned_heads: in Google's code all layers have as many heads")
    if not config.tie_word_embeddings:
        problems.append("tie_word_embeddings: Google's decoder is always that of the word embeddings")
    if problems:
        raise ConfigError("Google's MobileBERT cannot be this model", problems)
    defaults, own = MobileBertConfig().to_dict(), config.to_diff_dict()
    kept = {name: value for name, value in own.items()
            if name in (*DEFAULTS, "vocab_size") or (name not in NOT_GOOGLES and value != defaults.get(name))}
    return {**kept, "hidden_act": acts[config.hidden_act], "normalization_type": kind}


# -- opening ------------------------------------------------------------------------------------------------------------
def _prefix(path: Path) -> Path | None:
    """What the names of a checkpoint's files begin with; None where there is no checkpoint."""
    if not path.is_dir():
        prefix = prefix_of(path)
        return prefix if prefix.with_name(f"{prefix.name}.index").is_file() else None
    found = sorted(item.name.removesuffix(".index") for item in path.glob("*.index"))
    newest = _newest(path / NEWEST_FILE) if len(found) > 1 else ""
    if newest in found:
        return path / newest
    if len(found) > 1:
        raise CheckpointError(f"{path} holds {len(found)} checkpoints", found, "Give the .index file of one of them.")
    return path / found[0] if found else None


def _newest(file: Path) -> str:
    """The name of the checkpoint that TensorFlow's own note calls the newest."""
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        text = stream.read(LARGEST_JSON).decode("utf-8", "replace")
    match = re.search(r'^\s*model_checkpoint_path:\s*"([^"]*)"', text, re.MULTILINE)
    return re.split(r"[/\\]", match[1])[-1] if match else ""


def _checkpoint(path: Path) -> TensorFlowCheckpoint:
    prefix = _prefix(path)
    if prefix is None:
        raise CheckpointError(f"{path} is no TensorFlow checkpoint",
                              remedy="Expected is a .index file beside its .data files, or their directory.")
    return open_tf_checkpoint(prefix)


def _is_google(sample: Sample) -> bool:
    marks = ("/embedding_transformation/", f"/{STUDENT}/", "/bottleneck/", "/extra_output_weights")
    try:
        if _prefix(sample.path) is None:
            return False
        checkpoint = _checkpoint(sample.path)
    except CheckpointError:
        # It is one, but damaged, or one of several: opening it will say what is wrong.
        directory = sample.path if sample.is_directory else sample.path.parent
        return any(directory.glob("*.data-?????-of-?????"))
    return OBJECT_GRAPH not in checkpoint.strings and any(mark in name for name in checkpoint.tensors for mark in marks)


def _is_garden(sample: Sample) -> bool:
    try:
        if _prefix(sample.path) is None:
            return False
        checkpoint = _checkpoint(sample.path)
    except CheckpointError:
        return False
    if OBJECT_GRAPH not in checkpoint.strings:
        return False
    try:
        return any("mobile_bert_embedding" in name for name in _full_names(checkpoint).values())
    except CheckpointError:
        return True


def _full_names(checkpoint: TensorFlowCheckpoint) -> dict[str, str]:
    """The names that layers gave their variables, by the keys under which a TensorFlow 2 checkpoint keeps them.

    The message is a TrackableObjectGraph: nodes, their attributes, and of each its full name and its key. See
    https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/trackable_object_graph.proto
    """
    if OBJECT_GRAPH not in checkpoint.strings:
        return {}
    graph = checkpoint.strings[OBJECT_GRAPH]()
    if len(graph) > LARGEST_GRAPH:
        raise CheckpointError(f"{checkpoint.prefix} is refused: its graph of objects has {len(graph):,} bytes")
    names = {}
    try:
        for node in parse(graph, {1: BYTES})[1]:
            for attribute in parse(node, {2: BYTES})[2]:
                found = parse(attribute, {2: BYTES, 3: BYTES})
                key, name = (b"".join(found[number][-1:]).decode("utf-8", "replace") for number in (3, 2))
                names[key] = name
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.prefix} is damaged: its graph of objects", [error.headline]) from error
    return names


def _settings(directory: Path) -> dict[str, Any]:
    """The content of the one JSON file beside a checkpoint that describes a model."""
    files = sorted(file for file in directory.glob("*.json") if file.is_file())
    found = {}
    for file in [file for file in files if file.name == CONFIG_FILE] or files:
        try:
            with file.open("rb") as stream:
                content = json.loads(stream.read(LARGEST_JSON + 1))
        except (OSError, ValueError, RecursionError) as error:
            if file.name == CONFIG_FILE:
                raise CheckpointError(f"{file} cannot be read as JSON", [str(error)]) from error
            continue
        if isinstance(content, dict) and "hidden_size" in content:
            found[file.name] = content
    if len(found) > 1:
        raise CheckpointError(f"{directory} holds several descriptions of a model", list(found),
                              f"Call the right one {CONFIG_FILE}, or move the others away.")
    return next(iter(found.values()), {})


def _opened(path: Path, format: str, checkpoint: TensorFlowCheckpoint, tensors: dict[str, LazyTensor],
            baggage: dict[str, str]) -> Opened:
    directory = checkpoint.prefix.parent
    vocabulary = directory / VOCABULARY_FILE
    others = {name: f"is a {kind}, no weight" for name, kind in checkpoint.others.items()}
    return Opened(path, format, [file.name for file in checkpoint.files], tensors, _settings(directory),
                  {"vocabulary": vocabulary if vocabulary.is_file() else None}, {**baggage, **others})


def _open_google(sample: Sample) -> Opened:
    checkpoint = _checkpoint(sample.path)
    if OBJECT_GRAPH in checkpoint.strings:
        raise CheckpointError(f"{sample.path} is a TensorFlow 2 checkpoint",
                              remedy=f"Read it with --from {MODEL_GARDEN.name} if it is of TensorFlow's Model Garden.")
    baggage = {name: reason for name in checkpoint.tensors for pattern, reason in BAGGAGE if pattern.fullmatch(name)}
    weights = {name: variable for name, variable in checkpoint.tensors.items() if name not in baggage}
    return _opened(sample.path, "Google's MobileBERT, a TensorFlow 1 checkpoint", checkpoint, weights, baggage)


def _open_garden(sample: Sample) -> Opened:
    checkpoint = _checkpoint(sample.path)
    names = _full_names(checkpoint)
    tensors, baggage = {}, {}
    for key, variable in checkpoint.tensors.items():
        name = _garden_name(names.get(key) or key)
        reason = next((reason for pattern, reason in GARDEN_BAGGAGE if pattern.fullmatch(key)), None)
        if reason is not None:
            baggage[key] = reason
        elif name in tensors:
            raise CheckpointError(f"{sample.path} holds two variables of one name", [f"{name}: the second is {key}"])
        else:
            tensors[name] = variable
    return _opened(sample.path, "MobileBERT of TensorFlow's Model Garden, a TensorFlow 2 checkpoint", checkpoint, tensors,
                   baggage)


def _garden_name(full_name: str) -> str:
    """A variable's name without the models around its layer, and without the number of a second layer of that name."""
    name = re.sub(r"^(bert|mobile_bert_encoder)(_\d+)?/", "", full_name)
    return re.sub(r"^mobile_bert_embedding_\d+/", "mobile_bert_embedding/", name)


# -- reading ------------------------------------------------------------------------------------------------------------
def _read_google(opened: Opened, options: Options) -> Original:
    scopes = [name.removesuffix(f"/{WORDS}") for name in opened.tensors if name.endswith(f"/{WORDS}")]
    if len(scopes) != 1:
        raise CheckpointError(f"{opened.path} holds {len(scopes)} models, expected one",
                              [f"{scope}/{WORDS}" for scope in scopes] or [f"looked for: bert/{WORDS}"])
    norm = STUDENT if any(f"/{STUDENT}/" in name for name in opened.tensors) else "LayerNorm"
    return _read(opened, options, google_table(scopes[0], norm), norm)


def _read_garden(opened: Opened, options: Options) -> Original:
    networks = _config(opened, options).num_feedforward_networks
    return _read(opened, options, garden_table(networks), None)


def _config(opened: Opened, options: Options) -> MobileBertConfig:
    settings = {**opened.settings, **(options.config or {})}
    if not settings:
        raise ConfigError(f"{opened.path} holds no {CONFIG_FILE}, without which the weights have no meaning",
                          remedy="Give the JSON file that belongs to it with --config.")
    return config_from(settings, hf_compat=options.hf_compat)


def _read(opened: Opened, options: Options, rules: list[Rule], norm: str | None) -> Original:
    config, notes = _config(opened, options), []
    check_depth(opened.path, config, opened.tensors)
    unused = UNUSED_BOTTLENECKS if norm is None and config.use_bottleneck_attention else {}
    if unused:
        rules = [rule for rule in rules if rule.theirs[0] not in unused]
    translation = translate(opened.tensors, rules, left_out=unused)
    translation.check(f"{opened.path} is no MobileBERT of Google, or one that bertkit does not know",
                      "Variables of another program can be taken out of the checkpoint first.")
    tensors, made = translation.tensors, {}
    if norm is not None and (norm == STUDENT) != (config.normalization_type == "no_norm"):
        raise CheckpointError(f"{opened.path} and its settings are of different models",
                              [f"normalization_type: {config.normalization_type}, but the norms are called {norm}"])
    words = tensors.get("mobilebert.embeddings.word_embeddings.weight")
    if words is not None and words.shape[:1] not in ((), (config.vocab_size,)):
        notes.append(f"the settings say {config.vocab_size} words, the checkpoint has {words.shape[0]}: it wins")
        config.vocab_size = words.shape[0]
    classifier = tensors.get("classifier.weight")
    if classifier is not None and classifier.shape[1:] == (config.hidden_size,) and 0 not in classifier.shape:
        config.num_labels = classifier.shape[0]
    for name, tensor_made in _unused_maps(config, tensors).items():
        tensors[name], made[name] = tensor_made, "nothing uses it in this model, Google's code has none"
    if "a range of simulated quantisation" in opened.left_out.values():
        notes.append("it was trained with simulated quantisation, which is not reproduced; its attention scores of padding are "
                     "-6 there, here they are the lowest number")
    translation.left_out |= opened.left_out
    translation.tensors = shaped_vocabulary(tensors, config, options, notes)
    task = next((task for task, marks in HEADS.items() if all(mark in tensors for mark in marks)), "Model")
    return Original(opened.path, opened.format, MOBILEBERT, config, translation, task, made,
                    _tokenizer(opened, options, config, notes), notes)


def _unused_maps(config: MobileBertConfig, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Tensors of our model that nothing uses and that Google's code therefore has not."""
    name, width, made = "mobilebert.embeddings.embedding_transformation", config.hidden_size, {}
    if not config.transforms_embeddings and f"{name}.weight" not in tensors:
        made[f"{name}.weight"] = LazyTensor((width, width), "F32", partial(np.eye, width, dtype=np.float32))
        made[f"{name}.bias"] = zeros((width,))
    name = "cls.predictions.dense.weight"
    if config.embedding_size == config.hidden_size and "cls.predictions.bias" in tensors and name not in tensors:
        shape = (0, config.vocab_size)
        made[name] = zeros(shape)
    return made


def _tokenizer(opened: Opened, options: Options, config: MobileBertConfig, notes: list[str]) -> dict[str, bytes]:
    """The vocabulary beside the checkpoint; whether it is of lower-cased text only its directory's name tells."""
    file = options.vocab or opened.facts["vocabulary"]
    if file is None:
        return {}
    try:
        vocabulary = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read", [str(error)]) from error
    words = len(vocabulary.splitlines())
    if words != config.vocab_size:
        notes.append(f"{file.name} has {words} words, the model {config.vocab_size}")
    place = str(opened.path.resolve()).lower()
    lower = "uncased" in place or "cased" not in place
    settings = {"do_lower_case": lower, "tokenizer_class": "MobileBertTokenizer"}
    return {VOCABULARY_FILE: vocabulary, "tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode()}


# -- writing ------------------------------------------------------------------------------------------------------------
def _write(original: Original, options: Options) -> dict[str, bytes | Write]:
    config, task = original.config, original.task or "Model"
    if task not in (*HEADS, "Model"):
        raise ConfigError(f"Google's MobileBERT has no {MOBILEBERT.name}{task}",
                          remedy=f"It has: {', '.join(('Model', *HEADS))}.")
    settings = settings_from(config)
    prefix = f"{MOBILEBERT.prefix}." if task == "Model" else ""
    tensors = {prefix + name: tensor for name, tensor in original.translation.tensors.items() if 0 not in tensor.shape}
    unused = [name for name in tensors if ".embedding_transformation." in name and not config.transforms_embeddings]
    for name in unused:
        del tensors[name]
        original.notes.append(f"{name} was left out: nothing uses it in this model, and Google's code has none")
    norm = STUDENT if config.normalization_type == "no_norm" else "LayerNorm"
    translation = translate(tensors, inverted(google_table("bert", norm))).check("these tensors are none of MobileBERT's")
    original.translation.changes += translation.changes
    files: dict[str, bytes | Write] = {CONFIG_FILE: _json(settings)}
    if VOCABULARY_FILE in original.tokenizer_files:
        files[VOCABULARY_FILE] = original.tokenizer_files[VOCABULARY_FILE]
    files |= tf_checkpoint_files(PREFIX, translation.tensors)
    note = f'model_checkpoint_path: "{PREFIX}"\nall_model_checkpoint_paths: "{PREFIX}"\n'
    return {**files, NEWEST_FILE: note.encode()}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


GOOGLE_MOBILEBERT = Format(
    name="google-mobilebert",
    title="Google's MobileBERT (TensorFlow 1)",
    model_types=("mobilebert",),
    recognise=_is_google,
    open=_open_google,
    read=_read_google,
    write=_write,
    reading=(*READING, "zero_padding_row"),
)

MODEL_GARDEN = Format(
    name="tf-models",
    title="TensorFlow's Model Garden (TensorFlow 2)",
    model_types=("mobilebert",),
    recognise=_is_garden,
    open=_open_garden,
    read=_read_garden,
    reading=(*READING, "zero_padding_row"),
)
