"""Directories that transformers loads as its own: its PyTorch classes of all variants, and TFMobileBert.

Names and layouts of bertkit are those of transformers' PyTorch classes. What its files hold beside them carries nothing: the
integers of I-BERT, which follow from the weights, and a bottleneck that no layer reads. A file without them would be loaded
with a warning that they are newly initialised, so they are written here, as zeros.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bertkit.convert.keras_h5 import KerasWeights, is_kernel, keras_path, torch_name, transposed, write_keras_weights
from bertkit.convert.mobilebert import check_depth, shaped_vocabulary
from bertkit.convert.original import READING, Format, Opened, Options, Original, Sample, Write
from bertkit.convert.rules import Change, Translation
from bertkit.convert.source import KERAS_FILE, has_weights, open_source, task_of, unknown_tensors
from bertkit.convert.warm_start import SOURCES, TARGETS
from bertkit.core.checkpoint import Checkpoint, write_safetensors
from bertkit.core.config import CONFIG_NAME, PretrainedConfig, read_config_dict
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.hub import TOKENIZER_FILES
from bertkit.core.mobilebert import MOBILEBERT, MobileBertConfig
from bertkit.core.spec import Variant
from bertkit.core.tensors import LazyTensor, widen, zeros
from bertkit.core.variants import VARIANTS, find_variant

WEIGHTS_FILE = "model.safetensors"
OWN_SETTINGS = ("hash_seed", "hf_compat_scales", "head_act")
"""Settings that transformers has not; they are written where they say something."""

NOT_TENSORFLOWS = ("relu6", "selu")
"""Activations that transformers has not in TensorFlow."""

WORDS, DECODER = "mobilebert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"

DIFFERENCES: list[tuple[str, Callable[[Any], bool], str]] = [
    ("ibert", lambda config: config.quant_mode and not config.hf_compat_scales,
     "quant_mode: transformers gives every layer the scale of the embeddings, as bertkit does with hf_compat_scales=True"),
    ("megatron-bert", lambda config: config.head_act not in (None, config.hidden_act),
     "head_act: the language-model head of transformers has the activation of the layers"),
    ("mobilebert", lambda config: config.normalization_type == "layer_norm" and config.layer_norm_eps != 1e-5,
     "layer_norm_eps: transformers' PyTorch classes have 1e-5 in the norms of the embeddings and of each layer's output"),
    ("mobilebert", lambda config: config.use_bottleneck and config.query_size != config.true_hidden_size,
     "key_query_shared_bottleneck: transformers cannot run a model without it"),
    ("yoso", lambda config: True,
     "padding: transformers 4.37.2 counts the tokens that a mask hides; give it batches without padding"),
    ("yoso", lambda config: config.conv_window is not None, "conv_window: transformers 4.37.2 stops with an error"),
    ("yoso", lambda config: not config.use_expectation,
     "use_expectation: transformers samples on a GPU only, with new hash functions at every call"),
    ("*", lambda config: config.hidden_act == "selu", "hidden_act: transformers 4.37.2 has no selu"),
]
"""Where transformers computes something else with the same weights and settings: variant, when, and what to tell."""


# -- what both forms share ----------------------------------------------------------------------------------------------
def written_config(variant: Variant, config: PretrainedConfig, task: str) -> PretrainedConfig:
    """The configuration as transformers knows it."""
    written = copy.deepcopy(config)
    written.architectures = [variant.name + task]
    for name in OWN_SETTINGS:
        if getattr(config, name, None) in (None, False):
            written.__dict__.pop(name, None)
    return written


def differences(config: PretrainedConfig) -> list[str]:
    """What transformers computes otherwise, a sentence each.

    Example:
        >>> from bertkit.core.mobilebert import MobileBertConfig
        >>> differences(MobileBertConfig(hidden_act="selu"))
        ['hidden_act: transformers 4.37.2 has no selu']
    """
    return [text for kind, applies, text in DIFFERENCES if kind in ("*", config.model_type) and applies(config)]


def _described(original: Original, task: str) -> dict[str, bytes | Write]:
    """The files beside the weights."""
    config = written_config(original.variant, original.config, task)
    return {CONFIG_NAME: config.to_json_string().encode(), **original.tokenizer_files}


# -- PyTorch ------------------------------------------------------------------------------------------------------------
def _write_torch(original: Original, options: Options) -> dict[str, bytes | Write]:
    variant, config, task = original.variant, original.config, original.task or "Model"
    tensors = dict(original.translation.tensors)
    for param in variant.params(task, config).values():
        if param.kind == "derived":
            tensors[param.name] = zeros(param.shape)
    original.notes.extend(differences(config))

    def write(file: BinaryIO, wrote: Callable[[int], Any]) -> None:
        write_safetensors(file, tensors, {"format": "pt"}, wrote)

    return {WEIGHTS_FILE: write, **_described(original, task)}


def _open_torch(sample: Sample) -> Opened:
    source = open_source(sample.path)
    tensors = {name: source.checkpoint.lazy(name) for name in source.checkpoint.names()}
    return Opened(sample.path, source.checkpoint.format, [file.name for file in source.checkpoint.files], tensors,
                  source.settings, {"tokenizer_files": source.tokenizer_files})


def _read_torch(opened: Opened, options: Options) -> Original:
    model_type = opened.settings.get("model_type")
    if model_type is None or model_type in SOURCES:
        raise ConfigError(f"{opened.path} is of model type {model_type!r}, which is none of bertkit's models",
                          remedy=f"Say with --from what it is: {', '.join((*VARIANTS, *SOURCES))}. "
                                 f"Of a BERT or RoBERTa --to VARIANT makes one: {', '.join(TARGETS)}.")
    variant = find_variant(model_type)
    config = variant.config.from_dict(opened.settings)
    check_depth(opened.path, config, opened.tensors)
    tensors = Checkpoint(opened.path, [], opened.format, opened.tensors, {})
    unknown = unknown_tensors(tensors, variant, config)
    if unknown:
        raise CheckpointError(f"{opened.path} holds {len(unknown)} tensor(s) that no class of {variant.name} has", unknown,
                              "Say what it is with --from.")
    return Original(opened.path, opened.format, variant, config, Translation(dict(opened.tensors)),
                    task_of(variant, config, tensors, options.task),
                    tokenizer_files=_contents(opened.facts["tokenizer_files"]))


def _task(variant: Variant, config: PretrainedConfig) -> str | None:
    """The class that a configuration names; None where it names none."""
    given = config.architectures if isinstance(config.architectures, list | tuple) else ()
    named = [str(name).removeprefix("TF").removeprefix(variant.name) for name in given]
    return next((task for task in named if task in variant.tasks), None)


def _contents(files: list[Path]) -> dict[str, bytes]:
    try:
        return {file.name: file.read_bytes() for file in files}
    except OSError as error:
        raise CheckpointError(f"{files[0].parent}: the tokenizer cannot be read", [str(error)]) from error


# -- TensorFlow ---------------------------------------------------------------------------------------------------------
def _file(path: Path) -> Path:
    return path / KERAS_FILE if path.is_dir() else path


def _is_tensorflow(sample: Sample) -> bool:
    file = _file(sample.path)
    if file.name != KERAS_FILE or not file.is_file() or has_weights(sample.path):
        return False
    try:
        settings = json.loads((file.parent / CONFIG_NAME).read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and settings.get("model_type") == MOBILEBERT.config.model_type


def _open_tensorflow(sample: Sample) -> Opened:
    file = _file(sample.path)
    if not file.is_file():
        raise CheckpointError(f"there is no {file}", remedy="Give the directory of a TensorFlow model of transformers.")
    weights, directory = KerasWeights(file), file.parent
    settings = read_config_dict(directory) if (directory / CONFIG_NAME).is_file() else {}
    names = [name for name in TOKENIZER_FILES if name != CONFIG_NAME]
    tokenizer = [directory / name for name in names if (directory / name).is_file()]
    return Opened(sample.path, "TensorFlow weights of transformers", [file.name],
                  weights.datasets(), settings, {"tokenizer_files": tokenizer})


def _read_tensorflow(opened: Opened, options: Options) -> Original:
    if options.decoder not in (None, "tied", "own"):
        raise ConfigError(f"decoder: got {options.decoder!r}, expected 'tied' or 'own'")
    config, notes = MobileBertConfig.from_dict({**opened.settings, **(options.config or {})}), []
    check_depth(opened.path, config, opened.tensors)
    bodies = (MOBILEBERT.params(task, config) for task in MOBILEBERT.tasks if task != "Model")
    known = {name: param for params in bodies for name, param in params.items()}
    result = Translation()
    for path, tensor in opened.tensors.items():
        name = str(torch_name(path))
        if name not in known:
            result.unknown.append(path)
        elif known[name].kind == "derived":
            result.left_out[path] = "nothing uses it where use_bottleneck_attention is set"
        else:
            result.tensors[name] = transposed(tensor) if is_kernel(path) else tensor
            result.changes.append(Change("transposed" if is_kernel(path) else "renamed", (path,), (name,)))
    result.check(f"{opened.path} is no TFMobileBert, or one that its {CONFIG_NAME} does not describe")
    _choose_decoder(result, config, options, notes)
    result.tensors = shaped_vocabulary(result.tensors, config, options, notes)
    return Original(opened.path, opened.format, MOBILEBERT, config, result, _task(MOBILEBERT, config),
                    tokenizer_files=_contents(opened.facts["tokenizer_files"]), notes=notes)


def _choose_decoder(result: Translation, config: MobileBertConfig, options: Options, notes: list[str]) -> None:
    """Keep the decoder of a language model, or the word embeddings in its place: TensorFlow's classes never tie the two."""
    shape = (config.vocab_size, config.embedding_size)
    decoder, words = result.tensors.get(DECODER), result.tensors.get(WORDS)
    if decoder is None or words is None or decoder.shape != shape or words.shape != shape:
        return  # loading will say what is wrong
    if not config.tie_word_embeddings and options.decoder != "tied":
        return
    mine, theirs = (widen(tensor()).astype(np.float64) for tensor in (decoder, words))
    distance = 0.0 if np.array_equal(mine, theirs) else float(np.abs(mine - theirs).max())
    config.tie_word_embeddings = distance == 0 or options.decoder != "own"
    if not config.tie_word_embeddings:
        notes.append(f"the decoder differs from the word embeddings by up to {distance:.3g} and is kept: "
                     "tie_word_embeddings is off")
        return
    del result.tensors[DECODER]
    (change,) = (change for change in result.changes if change.new == (DECODER,))
    result.changes.remove(change)
    result.left_out[change.old[0]] = "the same as the word embeddings" if not distance else "the word embeddings are taken"
    if distance:
        notes.append(f"the decoder differs from the word embeddings by up to {distance:.3g} and was left out, as in PyTorch's "
                     "classes: --decoder own keeps it, and with it the scores that TensorFlow gives")


def _write_tensorflow(original: Original, options: Options) -> dict[str, bytes | Write]:
    config, task = original.config, original.task or "Model"
    given = original.translation.tensors
    problems = ["pruned_heads: its layers have all their heads"] if config.pruned_heads else []
    if config.hidden_act in NOT_TENSORFLOWS:
        problems.append(f"hidden_act: it has no {config.hidden_act}")
    if problems:
        raise ConfigError("TFMobileBert cannot be this model", problems)
    params, sources = MOBILEBERT.params(task, config), dict(given)
    if WORDS in given:
        sources.setdefault(DECODER, given[WORDS])
    used = copy.deepcopy(config)
    used.use_bottleneck_attention = False
    kinds = {name: param.kind for name, param in MOBILEBERT.params(task, used).items()}
    tensors: dict[str, LazyTensor] = {}
    for name, param in params.items():
        if param.kind == "derived":
            sources[name] = zeros(param.shape)
        # The head has one bias, which stands beside the decoder.
        if name in sources and not name.endswith(".decoder.bias"):
            full = name if task != "Model" else f"{MOBILEBERT.prefix}.{name}"
            param = replace(param, name=full, kind=kinds[name])
            path = keras_path(param, true_norms=config.normalization_type == "layer_norm")
            tensors[path] = transposed(sources[name]) if param.kind == "kernel" else sources[name]
    original.notes.extend(note for note in differences(config) if not note.startswith("layer_norm_eps"))
    model = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", f"TF{MOBILEBERT.name}{task}").lower()

    def write(file: BinaryIO, wrote: Callable[[int], Any]) -> None:
        write_keras_weights(file, model, tensors, wrote)

    return {KERAS_FILE: write, **_described(original, task)}


TRANSFORMERS = Format(
    name="transformers",
    title="transformers (PyTorch)",
    model_types=tuple(VARIANTS),
    recognise=lambda sample: has_weights(sample.path),
    open=_open_torch,
    read=_read_torch,
    write=_write_torch,
    reading=("task",),
)

TRANSFORMERS_TF = Format(
    name="transformers-tf",
    title="transformers (TensorFlow, TFMobileBert)",
    model_types=("mobilebert",),
    recognise=_is_tensorflow,
    open=_open_tensorflow,
    read=_read_tensorflow,
    write=_write_tensorflow,
    reading=(*READING, "decoder", "zero_padding_row"),
)
