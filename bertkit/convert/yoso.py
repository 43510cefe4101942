"""Checkpoints of mlpen/YOSO, the programs of YOSO's authors, with both generations of its names.

A checkpoint is a file of `torch.save`: `cp-0099.model` holds the weights, `cp-0099.cp` the state of the training beside
them. The settings stand in a config.json, beside the directory `model` of the checkpoints; of them the file itself shows
no more than the sizes.

There are two programs. `RoBERTa` counts positions from row 2 of their table, as transformers does. `BERT` counts them from
row 0, and has a pooler and a classifier of sentences. Models of the Long Range Arena are another architecture: their norms
stand in front of the layers.

Source of the names: https://github.com/mlpen/YOSO
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from bertkit.convert.original import Format, Opened, Options, Original, Sample, Write
from bertkit.convert.rules import (
    SAME,
    Operation,
    Rule,
    Translation,
    filled,
    inverted,
    module,
    numbers_of,
    prefixed,
    table,
    tensor,
    translate,
)
from bertkit.convert.source import find_task
from bertkit.convert.warm_start import moved_down
from bertkit.convert.yoso_settings import (
    ALBERT_TOKENS,
    EPSILON,
    TRANSFORMERS_EPSILON,
    contradictions,
    first_position,
    in_our_words,
    in_their_words,
    number_of_heads,
    shared_layers,
    sizes_of,
)
from bertkit.core.config import CONFIG_NAME, read_config_dict
from bertkit.core.errors import CheckpointError, ConfigError
from bertkit.core.files import pickle_reader, pickle_writer
from bertkit.core.hub import TOKENIZER_FILES
from bertkit.core.tensors import LazyTensor, stored
from bertkit.core.yoso import POSITION_OFFSET, YOSO, YosoConfig

# -- the table ----------------------------------------------------------------------------------------------------------
WORDS = "model.embeddings.word_embeddings.weight"
POSITIONS = "model.embeddings.position_embeddings.weight"
OURS = "encoder.layer.{i}"


def _embeddings(positions: Operation) -> list[Rule]:
    return table(
        tensor(WORDS, "embeddings.word_embeddings.weight"),
        tensor(POSITIONS, "embeddings.position_embeddings.weight", positions),
        tensor("model.embeddings.token_type_embeddings.weight", "embeddings.token_type_embeddings.weight"),
        module("model.embeddings.norm", "embeddings.LayerNorm"),
    )


def _layer(theirs: str, first: str, second: str) -> list[Rule]:
    """A layer: the generations differ in its name, and in the names of the feed-forward network."""
    return table(
        module(f"{theirs}.mha.W_q", f"{OURS}.attention.self.query"),
        module(f"{theirs}.mha.W_k", f"{OURS}.attention.self.key"),
        module(f"{theirs}.mha.W_v", f"{OURS}.attention.self.value"),
        tensor(f"{theirs}.mha.attn.conv.weight", f"{OURS}.attention.self.conv.weight"),
        module(f"{theirs}.mha.ff", f"{OURS}.attention.output.dense"),
        module(f"{theirs}.norm1", f"{OURS}.attention.output.LayerNorm"),
        module(f"{theirs}.{first}", f"{OURS}.intermediate.dense"),
        module(f"{theirs}.{second}", f"{OURS}.output.dense"),
        module(f"{theirs}.norm2", f"{OURS}.output.LayerNorm"),
    )


OLD, SHARED = "model.transformer_{i}", "model.backbone.backbone.encoder"
OLD_LAYER = _layer(OLD, "ff1", "ff2")
NEW_LAYER = _layer(f"{SHARED}s.{{i}}", "ff.0", "ff.2")
SHARED_LAYER = _layer(SHARED, "ff.0", "ff.2")
"""One layer for all of them."""

HEADS: dict[str, list[Rule]] = {
    "Model": [],
    "ForMaskedLM": table(
        module("mlm.dense", "cls.predictions.transform.dense"),
        module("mlm.norm", "cls.predictions.transform.LayerNorm"),
        tensor("mlm.mlm_class.weight", "cls.predictions.decoder.weight"),
        tensor("mlm.mlm_class.bias", "cls.predictions.bias"),
    ),
    "ForQuestionAnswering": module("qahead", "qa_outputs"),
    # In WikiHop a single score for each token.
    "ForTokenClassification": module("qahead", "classifier"),
    "ForSequenceClassification": table(
        module("sen_classifer.dense", "classifier.dense"),
        module("sen_classifer.classifer", "classifier.out_proj"),
        module("model.pooler", "classifier.dense"),
        module("sen_class", "classifier.out_proj"),
    ),
}
"""The head of each class, in both programs; the spelling is theirs."""

ELSEWHERE = {
    "model.embeddings.position_ids": "a buffer without values of its own",
    "model.pooler.*": "YOSO has no pooler",
    "sen_class.*": "a classifier on the pooler, another function than YOSO's; --task ForSequenceClassification starts from it",
    "sen_classifer.*": "a classifier with tanh, another function than YOSO's; --task ForSequenceClassification starts from it",
    "qahead.*": "scores of tokens; --task ForQuestionAnswering or ForTokenClassification takes them",
    "mlm.*": "the language-model head; --task ForMaskedLM takes it",
}
"""Why tensors are left out where the class has no place for them."""

BAGGAGE = {
    "optimizer_state_dict": "state of the optimizer",
    "lr_scheduler_state_dict": "state of the learning rate's schedule",
    "epoch": "progress of the training",
    "inst_pass": "progress of the training",
}
"""What a `.cp` holds beside the weights."""


def names_table(task: str, layer: list[Rule], positions: Operation = SAME) -> list[Rule]:
    """The table of a class.

    Args:
        task: a key of `HEADS`.
        layer: the rules of its layers.
        positions: what happens to the position table.
    """
    return table(prefixed(table(_embeddings(positions), layer), ours=_below(task)), HEADS[task])


def _below(task: str) -> str:
    """What stands before the names of our encoder's tensors."""
    return "" if task == "Model" else f"{YOSO.prefix}."


# -- opening ------------------------------------------------------------------------------------------------------------
WRAPPER = "module."
STATE = "model_state_dict"
CHECKPOINT = re.compile(r".*-\d{4,9}\.(?:model|cp)")
VOCABULARIES = {"tokenizer.json": ("tokenizer.json",), "vocab.json": ("vocab.json", "merges.txt"), "vocab.txt": ("vocab.txt",)}
"""Files of a vocabulary, and what goes with each."""


def recognise(sample: Sample) -> bool:
    """Whether a file, or the last checkpoint of a directory, has the names of mlpen/YOSO."""
    if not sample.is_directory:
        return _is_ours(sample.content)
    file = _checkpoint(sample)
    try:
        return file is not None and _is_ours(Sample(file).content)
    except CheckpointError:  # a file of another program
        return False


def _is_ours(content: Any) -> bool:
    return any(isinstance(name, str) and name.removeprefix(WRAPPER) == WORDS for name in _state(content))


def _checkpoint(sample: Sample) -> Path | None:
    """The file itself; of a directory its last checkpoint, without the state of the training where there is a choice."""
    if not sample.is_directory:
        return sample.path
    found = [name for name in sample.names if CHECKPOINT.fullmatch(name)]
    return sample.path / max(found, key=lambda name: (name.endswith(".model"), name)) if found else None


def _state(content: Any) -> Mapping[Any, Any]:
    state = content.get(STATE) if isinstance(content, Mapping) else None
    return state if isinstance(state, Mapping) else {}


def open_files(sample: Sample) -> Opened:
    """Open a checkpoint, and the config.json that belongs to it where there is one.

    Raises:
        CheckpointError: when it is damaged, or no checkpoint of mlpen/YOSO.
        ConfigError: when its config.json is no JSON object.
    """
    file = _checkpoint(sample)
    content = {} if file is None else pickle_reader.load(file)
    state = _state(content)
    if file is None or not state:
        raise CheckpointError(f"{file or sample.path} holds no weights of mlpen/YOSO",
                              remedy=f"Expected is a file such as cp-0099.model with a {STATE}, or a directory that holds one.")
    wrong = [f"{name!r}: got a {type(value).__name__}, expected a tensor" for name, value in state.items()
             if not isinstance(name, str) or not isinstance(value, LazyTensor)]
    if wrong:
        raise CheckpointError(f"the {STATE} of {file} holds more than tensors", wrong)
    home = file.parent
    if not (home / CONFIG_NAME).is_file() and home.name == "model":
        home = home.parent
    settings = read_config_dict(home / CONFIG_NAME) if (home / CONFIG_NAME).is_file() else {}
    old = any(numbers_of(f"{OLD}.norm1.weight", name.removeprefix(WRAPPER)) for name in state)
    return Opened(
        sample.path, f"mlpen/YOSO, names of the {'first' if old else 'second'} generation", [file.name], dict(state), settings,
        {"old": old, "home": home},
        {str(name): BAGGAGE.get(name, "no part of the model") for name in content if name != STATE})


# -- reading ------------------------------------------------------------------------------------------------------------
def read(opened: Opened, options: Options) -> Original:
    """See a checkpoint of mlpen/YOSO as bertkit's YOSO.

    Args:
        opened: the checkpoint.
        options: `config` holds what no tensor shows, in their words or in ours: `num_head`, `attn_type`, `hash_code_len`,
            `num_hash`, `n2_backward`, ..., and `num_layers` where the layers share their weights.

    Raises:
        CheckpointError: for unknown tensors, and for what YOSO cannot express.
        ConfigError: listing every setting that contradicts another or the tensors.
    """
    wrapper = WRAPPER if all(name.startswith(WRAPPER) for name in opened.tensors) else ""
    plain = {name.removeprefix(wrapper): found for name, found in opened.tensors.items()}
    _refuse(opened.path, plain)
    problems: list[str] = []
    notes: list[str] = []
    values = _settings(opened, options, problems)
    task = _task(plain, options.task)
    rows = (plain[POSITIONS].shape or (0,))[0] if POSITIONS in plain else 0
    from_zero = not opened.facts["old"] and "sen_class.weight" in plain
    first = first_position(rows, values.pop("max_position_embeddings", None), from_zero, problems)
    layers = shared_layers(values, any(name.startswith(f"{SHARED}.") for name in plain), problems)
    if problems:
        raise ConfigError(f"the settings of {opened.path} cannot be", problems)
    shift = POSITION_OFFSET - first
    translation = _translated(opened.tensors, wrapper, task, moved_down(shift) if shift else SAME, layers)
    translation.check(f"{opened.path} holds tensors that YOSO does not have")
    translation.left_out |= opened.left_out

    ours = {name.removeprefix(_below(task)): found for name, found in translation.tensors.items()}
    numbers = {found["i"] for name in ours if (found := numbers_of(f"{OURS}.output.LayerNorm.weight", name))}
    sizes = sizes_of(ours, numbers, problems)
    if problems:
        raise CheckpointError(f"{opened.path} holds no whole YOSO", problems)
    problems += contradictions(values, sizes)
    heads = values.get("num_attention_heads", sizes.get("num_attention_heads"))
    sizes["num_attention_heads"] = number_of_heads(heads, values.pop("head_dim", None), sizes["hidden_size"], problems, notes)
    if problems:
        raise ConfigError(f"the settings of {opened.path} cannot be", problems)
    notes += _remarks(values, first, layers, options.hf_compat)
    if options.hf_compat:
        values["layer_norm_eps"] = TRANSFORMERS_EPSILON
    config: Any = YosoConfig.from_dict({
        "layer_norm_eps": EPSILON, **(ALBERT_TOKENS if first == 0 else {}), **_labels(ours, values), **values, **sizes,
        "max_position_embeddings": rows - first})
    if task == "ForSequenceClassification":
        notes.append(f"the classifier has {config.hidden_act} between its layers, the original's has tanh: train it on")
    return Original(opened.path, opened.format, YOSO, config, translation, task, notes=notes,
                    tokenizer_files=_tokenizer_files(opened.facts["home"], options.vocab))


def _refuse(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Refuse what YOSO cannot express, in transformers and here."""
    between = [f"{name}: {list(found.shape)}" for name, found in tensors.items() if name.startswith("model.embeddings.dense.")]
    if between:
        raise CheckpointError(
            f"{path} has embeddings of another width than its layers (embedding_dim, dim), and a layer between them", between,
            "YOSO has no place for that layer, nor for a language-model head of that width: it cannot be converted.")
    arena = [name for name in tensors if ".mlpblock." in name]
    if arena:
        raise CheckpointError(f"{path} is a model of the Long Range Arena: its norms stand in front of its layers", arena[:3],
                              "YOSO's stand behind them: it cannot be converted.")


def _settings(opened: Opened, options: Options, problems: list[str]) -> dict[str, Any]:
    """Everything that the files and the user say, in our words; the user has the last one."""
    file, asked = opened.settings, options.config or {}
    sections = {
        "bertkit": file.get("bertkit", file if file.get("model_type") == YosoConfig.model_type else {}),
        "model": file.get("model", {}),
        "config": asked.get("model", asked),
    }
    strange = [f"{name}: got {value!r}, expected settings by name" for name, value in sections.items()
               if not isinstance(value, Mapping)]
    if strange:
        raise ConfigError(f"the settings of {opened.path} cannot be read", strange)
    theirs = in_our_words(sections["model"], problems, strict=False)
    theirs.pop("vocab_size", None)  # the program itself replaces it by the size of its tokenizer
    size = {} if options.vocab_size is None else {"vocab_size": options.vocab_size}
    return {**sections["bertkit"], **theirs, **in_our_words(sections["config"], problems, strict=True), **size}


def _task(tensors: Mapping[str, LazyTensor], wanted: str | None) -> str:
    """The class that the heads are of."""
    if wanted is not None:
        return find_task({}, YOSO.name, HEADS, lambda task: None, wanted)
    if "qahead.weight" in tensors:
        return "ForQuestionAnswering" if tensors["qahead.weight"].shape[:1] == (2,) else "ForTokenClassification"
    return "ForMaskedLM" if any(name.startswith("mlm.") for name in tensors) else "Model"


def _translated(
    tensors: Mapping[str, LazyTensor], wrapper: str, task: str, positions: Operation, layers: int
) -> Translation:
    """The tensors under our names; a shared layer under the names of each that it stands for."""

    def shared_by(layer: int) -> list[Rule]:
        return [replace(rule, ours=tuple(filled(name, {"i": layer}) for name in rule.ours)) for rule in SHARED_LAYER]

    own = table(NEW_LAYER, OLD_LAYER, shared_by(0) if layers else [])
    left_out = {wrapper + name: reason for name, reason in ELSEWHERE.items()}
    result = translate(tensors, prefixed(names_table(task, own, positions), theirs=wrapper), left_out=left_out)
    common = {name: found for name, found in tensors.items() if name.startswith(f"{wrapper}{SHARED}.")}
    for layer in range(1, layers):
        more = translate(common, prefixed(shared_by(layer), theirs=wrapper, ours=_below(task)))
        result.tensors |= more.tensors
        result.changes += more.changes
    return result


def _remarks(values: dict[str, Any], first: int, layers: int, hf_compat: bool) -> list[str]:
    """What a user should know; takes the settings that are no fields of ours out."""
    values.pop("embedding_dim", None)
    version = values.pop("version", None)
    remarks = {
        "positions began at row 0 of their table: two rows of zeros stand on top of it now": first == 0,
        f"one layer's weights stand for all {layers}: each layer has them now": layers > 0,
        "nothing says how it attended, not even that it is no softmax model of the same programs: YOSO's expectation is "
        "assumed; attn_type, num_hash, ... in the config change it": "use_expectation" not in values,
        "yoso-v2 scales cosines by 0.98 in its expectation, and has another gradient: neither is so here": version == "2",
        f"layer_norm_eps is {TRANSFORMERS_EPSILON}, as in transformers' configurations; the training had {EPSILON}": hf_compat,
    }
    return [remark for remark, fits in remarks.items() if fits]


def _labels(tensors: Mapping[str, LazyTensor], values: Mapping[str, Any]) -> dict[str, int]:
    """The number of labels, where a head shows it and the settings do not name them."""
    rows = [tensors[name].shape[:1] for name in ("classifier.weight", "classifier.out_proj.weight") if name in tensors]
    return {"num_labels": rows[0][0]} if rows and rows[0] and "id2label" not in values else {}


def _tokenizer_files(home: Path, vocab: Path | None) -> dict[str, bytes]:
    """The files of the tokenizer: the user's, or those beside the settings."""
    if vocab is None:
        return {name: (home / name).read_bytes() for name in TOKENIZER_FILES if name != CONFIG_NAME and (home / name).is_file()}
    files = [vocab.parent / name for name in VOCABULARIES.get(vocab.name, ())]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"vocab: got {vocab}", remedy=f"Expected is a file named {', '.join(VOCABULARIES)}; vocab.json with "
                                                        "merges.txt beside it.")
    return {file.name: file.read_bytes() for file in files}


# -- writing ------------------------------------------------------------------------------------------------------------
WRITTEN = "model/cp-0000.model"
A_LAYER = re.compile(rf"{re.escape(SHARED)}s\.\d+\.")
NEEDED = {"hidden_act": "gelu", "position_embedding_type": "absolute", "pruned_heads": {}}
"""Settings that the programs do not have."""


def write(original: Original, options: Options) -> dict[str, bytes | Write]:
    """The files of a YOSO as the program `RoBERTa` keeps them below `models/`: config.json, and a checkpoint.

    Args:
        original: the checkpoint.
        options: with `shared_weight` in `config` one layer is written for all, which must be equal then.

    Raises:
        ConfigError: for settings that mlpen/YOSO does not have.
        CheckpointError: for a head that it does not have, and for layers that differ.
    """
    config, task = original.config, original.task or "Model"
    problems: list[str] = []
    asked = in_our_words(options.config or {}, problems, strict=True)
    shared = asked.pop("shared_weight", False)
    problems += [f"{name}: got {value!r}, but the checkpoint has {getattr(config, name)!r}" for name, value in asked.items()
                 if getattr(config, name, value) != value]
    problems += [f"{name}: got {getattr(config, name)!r}, expected {wanted!r}" for name, wanted in NEEDED.items()
                 if getattr(config, name) != wanted]
    if not isinstance(shared, bool):
        problems.append(f"shared_weight: got {shared!r}, expected a flag")
    if task not in HEADS:
        problems.append(f"task: got {task}, expected {', '.join(HEADS)}")
    if problems:
        raise ConfigError("mlpen/YOSO cannot be what this YOSO is", problems)
    translation = translate(original.translation.tensors, inverted(names_table(task, NEW_LAYER)))
    state = translation.check(f"mlpen/YOSO has no place for tensors of {original.path}").tensors
    original.translation.changes += translation.changes
    if task == "ForMaskedLM":
        state.setdefault("mlm.mlm_class.weight", state[WORDS])
    if shared:
        state = _as_one_layer(original.path, state)
    if config.layer_norm_eps != EPSILON:
        original.notes.append(f"layer norms have epsilon {EPSILON} in mlpen/YOSO, here {config.layer_norm_eps}")
    classes = config.num_labels if task == "ForSequenceClassification" else None
    if classes:
        original.notes.append(f"the classifier has tanh between its layers there, {config.hidden_act} here: train it on")
    settings = {"model": in_their_words(config, shared=shared, num_classes=classes), "bertkit": config.to_diff_dict()}

    def save(file: BinaryIO, progress: Callable[[int], Any]) -> None:
        pickle_writer.save(file, {STATE: OrderedDict(state)}, progress=progress)

    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    return {**original.tokenizer_files, CONFIG_NAME: text.encode(), WRITTEN: save}


def _as_one_layer(path: Path, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The same tensors with one layer for all, which must be equal bit for bit."""
    result: dict[str, LazyTensor] = {}
    differing = []
    for name, found in state.items():
        first = result.setdefault(A_LAYER.sub(f"{SHARED}.", name), found)
        if first is not found and stored(first())[0].tobytes() != stored(found())[0].tobytes():
            differing.append(f"differs: {name}")
    if differing:
        raise CheckpointError(f"the layers of {path} are not equal: one cannot stand for all", differing,
                              "Leave shared_weight out of the config.")
    return result


MLPEN_YOSO = Format(
    name="mlpen-yoso",
    title="mlpen/YOSO",
    model_types=(YosoConfig.model_type,),
    recognise=recognise,
    open=open_files,
    read=read,
    write=write,
    writing=("config",),
)
