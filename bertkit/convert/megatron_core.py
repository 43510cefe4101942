"""BERT checkpoints of megatron-core: files of ranks (`mp_rank_*`), and directories of torch.distributed.checkpoint.

megatron-core is Megatron-LM's checkpoint version 3 under other names: the same divisions among ranks, the same order in the
fused projection. So its tensors are given Megatron-LM's names, and `bertkit.convert.megatron` does the rest. There are two
spellings of the norms, that of megatron-core's own layers ("local") and that of Transformer Engine's; both are read, the
first is written. In directories of torch.distributed.checkpoint the layers' tensors may be stacked.

Source: Megatron-LM core_v0.8.0 and later (`megatron/core/models/bert`, `megatron/core/dist_checkpointing`), BSD licence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

from bertkit.convert.megatron import (
    CUT,
    DIVISIBLE_BY,
    Generation,
    args_of,
    check_writable,
    in_order,
    leave_out_types,
    read_megatron,
    rules_of,
    save_tree,
)
from bertkit.convert.megatron_shards import (
    BAGGAGE,
    MODEL_FILES,
    READ,
    TRACKER,
    Files,
    Layout,
    Slices,
    arguments,
    directory_of,
    find_shards,
    flattened,
    merge,
    split,
    tracked_folder,
)
from bertkit.convert.original import Format, Opened, Options, Original, Sample, Write
from bertkit.convert.rules import SAME, Change, Rule, inverted, module, numbers_of, table, tensor, translate
from bertkit.convert.torch_dist import METADATA, ChunkedTensor, DistributedCheckpoint
from bertkit.core.errors import BertkitError, CheckpointError, ConfigError
from bertkit.core.files import pickle_reader
from bertkit.core.tensors import LazyTensor

VERSION = 3
LAYERS = "encoder.layers."
WORDS = "embedding.word_embeddings.weight"
DECODER = "output_layer.weight"
OUR_DECODER = "cls.predictions.decoder.weight"
EXTRA_STATE = "_extra_state"
MOST_LAYERS = 10_000
PREFIX = "model."
COMMON_FILE, COMMON_OBJECT = "common.pt", "common_state/shard_0_1"
ROOTS = ("embedding.word_embeddings.", "encoder.layers.")


# -- the tables ---------------------------------------------------------------------------------------------------------
_LAYER, _LEGACY = f"{LAYERS}{{i}}", "language_model.encoder.layers.{i}"

NAMES = table(
    *(tensor(f"embedding.{name}.weight", f"language_model.embedding.{name}.weight")
      for name in ("word_embeddings", "position_embeddings", "tokentype_embeddings")),
    module(f"{_LAYER}.input_layernorm", f"{_LEGACY}.input_layernorm"),
    module(f"{_LAYER}.self_attention.linear_proj", f"{_LEGACY}.self_attention.dense"),
    module(f"{_LAYER}.self_attention.linear_qkv", f"{_LEGACY}.self_attention.query_key_value"),
    module(f"{_LAYER}.pre_mlp_layernorm", f"{_LEGACY}.post_attention_layernorm"),
    module(f"{_LAYER}.mlp.linear_fc1", f"{_LEGACY}.mlp.dense_h_to_4h"),
    module(f"{_LAYER}.mlp.linear_fc2", f"{_LEGACY}.mlp.dense_4h_to_h"),
    module("encoder.final_layernorm", "language_model.encoder.final_layernorm"),
    module("lm_head.dense"),
    module("lm_head.layer_norm", "lm_head.layernorm"),
    tensor("output_layer.bias", "lm_head.bias"),
    module("binary_head"),
    module("pooler.dense", "language_model.pooler.dense"),
)
"""Names with the layers of megatron-core, and Megatron-LM's; in the order in which megatron-core writes them."""

ENGINE_NAMES = table(*(
    tensor(f"{_LAYER}.{owner}.layer_norm_{leaf}", f"{_LEGACY}.{norm}.{leaf}")
    for owner, norm in (("self_attention.linear_qkv", "input_layernorm"), ("mlp.linear_fc1", "post_attention_layernorm"))
    for leaf in ("weight", "bias")
))
"""The norms of the layers of Transformer Engine, which it fuses with the linear layers behind them."""

SLICES = {
    WORDS: Slices(0),
    DECODER: Slices(0),
    "output_layer.bias": Slices(0),
    f"{_LAYER}.self_attention.linear_qkv.weight": Slices(0),
    f"{_LAYER}.self_attention.linear_qkv.bias": Slices(0),
    f"{_LAYER}.self_attention.linear_proj.weight": Slices(1),
    f"{_LAYER}.mlp.linear_fc1.weight": Slices(0),
    f"{_LAYER}.mlp.linear_fc1.bias": Slices(0),
    f"{_LAYER}.mlp.linear_fc2.weight": Slices(1),
}

SUPPORTED: dict[str, tuple[Any, ...]] = {"qk_layernorm": (False,), "multi_latent_attention": (False,)}
"""Arguments of megatron-core alone that change what a model computes, as in `megatron.SUPPORTED`."""

TAKEN_CARE_OF = {"untie_embeddings_and_output_weights": False, "group_query_attention": False, "openai_gelu": False}
"""Arguments that are looked at here, or (the last) that megatron-core does not know: its activation is always GELU, in the
tanh form where `bias_gelu_fusion` fuses it with the bias, in the erf form otherwise and in the language-model head."""

FOREIGN_PARTS = {
    r"\.mlp\.(router|experts|shared_experts)\.": "a mixture of experts",
    r"\.self_attention\.[qk]_layernorm\.": "norms of queries and keys",
    r"^rotary_pos_emb\.|\.rotary_": "rotary position embeddings",
    r"^decoder\.": "a decoder: it is a GPT or a T5",
}
"""What the names of tensors tell that no MegatronBERT has."""


def layout_of(tied: bool) -> Layout:
    """How the ranks divide the model; with a tied decoder the last stage has a copy of the word embeddings."""
    return Layout(LAYERS, SLICES, ("embedding.",), {DECODER: WORDS} if tied else {})


# -- files of ranks -----------------------------------------------------------------------------------------------------
def _recognise_ranks(sample: Sample) -> bool:
    try:
        files = Files(sample) if sample.is_directory else None
        if files is not None and not files.models:
            return False
        content = pickle_reader.load(files.open(files.models[0])) if files is not None else sample.content
        model = content.get("model", content.get("model0", content)) if isinstance(content, Mapping) else {}
        return any(name.startswith(ROOTS) for name in flattened("the file", model)[0])
    except CheckpointError:  # files that cannot be read are claimed by Megatron-LM's format
        return False


def open_ranks(sample: Sample) -> Opened:
    """Open a directory of `mp_rank_*` files: all ranks and stages of one iteration, put together.

    Args:
        sample: a directory, a zip archive, or a file.

    Raises:
        CheckpointError: see `megatron_shards.find_shards` and `merge`; or when the names are not megatron-core's.
    """
    shards = find_shards(sample)
    names = shards.names
    if not any(name.startswith(ROOTS) for name in names):
        raise CheckpointError(f"{sample.path} holds no BERT of megatron-core",
                              [f"holds: {name}" for name in sorted(names)[:12]],
                              "Names that begin with language_model are read with --from megatron-lm.")
    untied = shards.args.get("untie_embeddings_and_output_weights")
    if untied is None:  # a first stage that is also the last has a decoder only if it is one of its own
        untied = shards.pipeline_parallel == 1 and DECODER in names
    return Opened(sample.path, f"megatron-core, {shards}", shards.files, merge(shards, layout_of(not untied)), shards.args,
                  {"files": shards.around, "ranks": shards.tensor_parallel}, shards.left_out)


# -- directories of torch.distributed.checkpoint --------------------------------------------------------------------------
def _recognise_directory(sample: Sample) -> bool:
    return sample.is_directory and bool(_folders(sample))


def _folders(sample: Sample) -> list[str]:
    """The folders that hold such a checkpoint, relative to the sample."""
    names = [PurePosixPath(name) for name in sample.names]
    chunks = {str(name.parent) for name in names if name.suffix == ".distcp"}
    others = {str(name.parent) for name in names if name.name in ("metadata.json", COMMON_FILE)}
    return [str(name.parent) for name in names if name.name == METADATA and str(name.parent) in chunks | others]


def open_directory(sample: Sample) -> Opened:
    """Open a directory that megatron-core wrote with `--ckpt-format torch_dist` or `torch_dcp`; stacked layers are taken apart.

    Args:
        sample: the directory of the run, or of one iteration.

    Raises:
        CheckpointError: when there is none or more than one, when files are missing or damaged, or when the numbers of
            stacked layers contradict each other or the arguments.
    """
    folders, files = _folders(sample) if sample.is_directory else [], Files(sample)
    chosen = tracked_folder(files) if len(folders) > 1 else (folders or [""])[0]
    if chosen not in folders:
        raise CheckpointError(
            f"{sample.path} holds {len(folders)} checkpoints of torch.distributed.checkpoint", folders[:12],
            f"Give the directory of one of them, with its {METADATA}, or a {TRACKER} that names one.")
    checkpoint = DistributedCheckpoint(sample.path / chosen)
    common, left_out = _common(checkpoint), {}
    names = []
    for name in [*checkpoint.names, *checkpoint.objects]:
        reason = _baggage(name)
        if name in (COMMON_OBJECT, *READ):
            continue
        if reason or name in checkpoint.objects:
            left_out[name] = reason or "no tensor"
        else:
            names.append(name)
    stored = checkpoint.tensors(names)
    args = arguments(common.get("args"))
    tensors = _unstacked(sample, stored, args.get("num_layers"))
    places = sorted({chunk.place.file for tensor in stored.values() for chunk in tensor.chunks})
    return Opened(sample.path, "megatron-core, torch.distributed.checkpoint",
                  [(PurePosixPath(chosen) / file).as_posix() for file in (METADATA, *places)], tensors, args,
                  {"files": files}, left_out)


def _common(checkpoint: DistributedCheckpoint) -> Mapping[str, Any]:
    """What is no tensor: arguments, iteration. It lies in a file of its own, or among the tensors as one object or several."""
    file = checkpoint.directory / COMMON_FILE
    if file.is_file():
        content = pickle_reader.load(file)
    elif COMMON_OBJECT in checkpoint.objects:
        saved = checkpoint.load_object(COMMON_OBJECT)
        content = saved[0] if isinstance(saved, list) and len(saved) == 1 else saved
    else:
        content = {name: checkpoint.load_object(name) for name in READ if name in checkpoint.objects}
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{checkpoint.directory}: what is common to all ranks is a {type(content).__name__}",
                              remedy="Expected is a dictionary with the arguments of the run.")
    return content


def _baggage(name: str) -> str:
    """Why an entry is no weight, as its name tells; empty where it does not."""
    if name.partition("/")[0].endswith(EXTRA_STATE):
        return "state of Transformer Engine"
    head = re.split(r"[./]", name, maxsplit=1)[0]
    return next((reason for key, reason in BAGGAGE.items() if head in (key, f"{key}_state")), "")


def _unstacked(sample: Sample, stored: Mapping[str, ChunkedTensor], layers: Any) -> dict[str, LazyTensor]:
    """The tensors under the names that they have in a model; of a stacked one, each layer."""
    tensors: dict[str, LazyTensor] = {}
    depths: dict[str, int] = {}
    problems: list[str] = []
    for full_name, whole in stored.items():
        name = full_name.removeprefix(PREFIX)
        rest = name.removeprefix(LAYERS)
        if rest == name or rest[:1].isdecimal():
            parts = {name: whole.whole}
        elif not whole.shape or not 0 < whole.shape[0] <= MOST_LAYERS:
            problems.append(f"{full_name}: {list(whole.shape)} cannot be a stack of layers")
            continue
        else:
            depths[full_name] = whole.shape[0]
            parts = {f"{LAYERS}{number}.{rest}": partial(whole.layer, number) for number in range(whole.shape[0])}
        problems += [f"{part}: is there twice" for part in parts if part in tensors]
        tensors |= {part: read() for part, read in parts.items()}
    expected = layers if isinstance(layers, int) else next(iter(depths.values()), 0)
    origin = "the arguments say" if isinstance(layers, int) else f"{next(iter(depths), '')} has"
    problems += [f"{name}: is a stack of {depth} layers, {origin} {expected}" for name, depth in depths.items()
                 if depth != expected]
    if problems:
        raise CheckpointError(f"the tensors of {sample.path} do not fit together", problems[:40],
                              "Fetch or save the checkpoint again.")
    return tensors


# -- reading ------------------------------------------------------------------------------------------------------------
def read_core(opened: Opened, options: Options) -> Original:
    """See an opened checkpoint as MegatronBERT.

    Args:
        opened: see `open_ranks` and `open_directory`.
        options: as for `megatron.read_megatron`.

    Raises:
        CheckpointError: when it is a model that MegatronBERT cannot express, when names are unknown, or when arguments and
            tensors contradict each other.
        ConfigError: when an option is impossible.
    """
    args = {**opened.settings, **(options.config or {})}
    strange = _strange(opened.tensors, args)
    if strange:
        raise CheckpointError(f"{opened.path} holds what no MegatronBERT has", strange,
                              "Only BERT as Megatron-LM has trained it from the beginning can be converted.")
    encoder = {name: tensor for name, tensor in opened.tensors.items() if name != DECODER}
    renamed = translate(encoder, [*NAMES, *ENGINE_NAMES]).check(
        f"{opened.path} is no BERT of megatron-core, or of an unknown version of it")
    settings = opened.settings | TAKEN_CARE_OF
    facts = opened.facts | {"version": VERSION}
    try:
        original = read_megatron(replace(opened, tensors=renamed.tensors, settings=settings, facts=facts), options)
    except BertkitError as error:
        raise type(error)(error.headline, [_in_core_names(problem) for problem in error.problems], error.remedy) from error
    translation, names = original.translation, {change.new: change.old for change in renamed.changes}
    translation.changes = [change._replace(old=names.get(change.old, change.old)) for change in translation.changes]
    if DECODER in opened.tensors:
        _add_decoder(original, opened.tensors[DECODER], opened.tensors[WORDS].shape)
    return original


def _add_decoder(original: Original, decoder: LazyTensor, expected: tuple[int, ...]) -> None:
    """Give the model a decoder of its own, which it has been trained with."""
    if decoder.shape != expected:
        raise CheckpointError(f"{original.path}: its decoder does not fit its word embeddings",
                              [f"{DECODER}: got {list(decoder.shape)}, expected {list(expected)}"])
    kept = original.config.vocab_size
    made = translate({DECODER: decoder}, _decoder(CUT if kept < expected[0] else SAME), {"vocab_size": kept})
    original.config.tie_word_embeddings = False
    original.translation.tensors |= made.tensors
    original.translation.changes += made.changes


def _decoder(vocabulary: Any) -> list[Rule]:
    return tensor(DECODER, OUR_DECODER, vocabulary)


def _strange(tensors: Mapping[str, LazyTensor], args: Mapping[str, Any]) -> list[str]:
    """What arguments, names and shapes tell that no MegatronBERT has."""
    found = [f"{name}: the arguments say {args[name]!r}" for name, values in SUPPORTED.items()
             if args.get(name) is not None and args[name] not in values]
    groups, heads = args.get("num_query_groups"), args.get("num_attention_heads")
    if args.get("group_query_attention") and groups != heads:
        found.append(f"num_query_groups: the arguments say {groups!r} for {heads!r} heads (grouped queries)")
    if args.get("untie_embeddings_and_output_weights") and DECODER not in tensors and "output_layer.bias" in tensors:
        found.append(f"{DECODER}: is not there, but the arguments say that the decoder is not tied")
    for pattern, what in FOREIGN_PARTS.items():
        name = next((name for name in tensors if re.search(pattern, name)), None)
        if name:
            found.append(f"{name}: {what}")
    if WORDS in tensors and "embedding.position_embeddings.weight" not in tensors:
        found.append("embedding.position_embeddings.weight: is not there (rotary position embeddings, or none)")
    for owner in ("encoder.final_layernorm", "lm_head.layer_norm"):
        if f"{owner}.weight" in tensors and f"{owner}.bias" not in tensors:
            found.append(f"{owner}.bias: is not there (RMSNorm)")
    for inner, outer, times, what in (
        ("self_attention.linear_qkv", "self_attention.linear_proj", 3, "grouped queries"),
        ("mlp.linear_fc1", "mlp.linear_fc2", 1, "a gated activation such as SwiGLU"),
    ):
        name = f"{LAYERS}0.{inner}.weight"
        wide, narrow = tensors.get(name), tensors.get(f"{LAYERS}0.{outer}.weight")
        if wide and narrow and len(wide.shape) == len(narrow.shape) == 2 and wide.shape[0] != times * narrow.shape[1]:
            found.append(f"{name}: got {wide.shape[0]} rows, expected {times * narrow.shape[1]} ({what})")
    return found


def _in_core_names(text: str) -> str:
    """A message about Megatron-LM's names with those of megatron-core in their place.

    Example:
        >>> _in_core_names("lm_head.layernorm.bias: is not there")
        'lm_head.layer_norm.bias: is not there'
    """

    def name_of(match: re.Match[str]) -> str:
        for rule in NAMES:
            numbers = numbers_of(rule.ours[0], match[0])
            if numbers is not None:
                return rule.theirs[0].replace("{i}", str(numbers.get("i")))
        return match[0]

    return re.sub(r"\w+(?:\.\w+)+", name_of, text)


# -- writing ------------------------------------------------------------------------------------------------------------
TASKS = ("ForPreTraining", "ForMaskedLM")
ORDER = [rule for known in NAMES for rule in (*(_decoder(SAME) if known.theirs == ("output_layer.bias",) else ()), known)]
"""The names in the order of a model's modules."""


def write_core(original: Original, options: Options) -> dict[str, bytes | Write]:
    """The files that megatron-core loads with `--ckpt-format torch`: `release/mp_rank_*/model_optim_rng.pt` and the tracker.

    The names are those of megatron-core's own layers. The vocabulary is padded as for Megatron-LM.

    Args:
        original: the model, in our names.
        options: `tensor_parallel` and `pipeline_parallel`.

    Raises:
        ConfigError: naming all that megatron-core cannot hold.
    """
    config, task = original.config, original.task or "Model"
    ranks, stages = (1 if number is None else number for number in (options.tensor_parallel, options.pipeline_parallel))
    tied = original.config.tie_word_embeddings
    problems = [f"task: got {task}, expected one of {', '.join(TASKS)}"] if task not in TASKS else []
    if (config.head_act or config.hidden_act) != "gelu":
        problems.append(f"head_act: got {config.head_act or config.hidden_act!r}, expected 'gelu'")
    if problems:
        raise ConfigError("megatron-core cannot hold this model", problems)
    check_writable(type(config).from_dict({**config.to_dict(), "tie_word_embeddings": True}), task, ranks, stages, VERSION)
    tensors = dict(original.translation.tensors)
    if task == "ForMaskedLM":
        leave_out_types(tensors, original.notes)
    unit = DIVISIBLE_BY * ranks
    padded = -(-config.vocab_size // unit) * unit
    vocabulary = CUT if padded != config.vocab_size else SAME
    if vocabulary is CUT:
        original.notes.append(f"the vocabulary is padded from {config.vocab_size} to {padded} rows with zeros")
    facts = {"version": VERSION, "heads": config.num_attention_heads, "padded_vocab_size": padded}
    what = f"{original.path} has tensors that megatron-core does not know"
    decoder = {} if tied else translate({OUR_DECODER: tensors.pop(OUR_DECODER)}, inverted(_decoder(vocabulary)), facts).tensors
    legacy = translate(tensors, inverted(rules_of(Generation(), vocabulary)), facts).check(what)
    renamed = translate(legacy.tensors, inverted(NAMES)).check(what)
    names = {change.old[0]: change.new[0] for change in renamed.changes}
    original.translation.changes += [Change(change.operation, change.old, tuple(names.get(name, name) for name in change.new))
                                     for change in legacy.changes]
    theirs = renamed.tensors | decoder
    parts = split(theirs, layout_of(tied), ranks, stages)
    args = SimpleNamespace(**{
        **args_of(original, task, padded, ranks, stages, VERSION),
        "untie_embeddings_and_output_weights": not tied, "position_embedding_type": "learned_absolute",
        "normalization": "LayerNorm", "add_bias_linear": True, "swiglu": False, "group_query_attention": False,
        "num_experts": None, "transformer_impl": "local", "ckpt_format": "torch",
    })
    common = {"args": args, "checkpoint_version": float(VERSION), "iteration": 0}
    files: dict[str, bytes | Write] = {TRACKER: b"release"}
    for (rank, stage), mine in parts.items():
        name = f"release/{directory_of(rank, stage, stages)}/{MODEL_FILES[0]}"
        files[name] = partial(save_tree, {**common, "model": in_order(mine, ORDER)})
    if "vocab.txt" in original.tokenizer_files:
        files["vocab.txt"] = original.tokenizer_files["vocab.txt"]
    return files


MEGATRON_CORE = Format(
    "megatron-core", "BERT of megatron-core", ("megatron-bert",), _recognise_ranks, open_ranks, read_core, write_core,
    writing=("tensor_parallel", "pipeline_parallel"),
)
MEGATRON_DIST = Format(
    "megatron-dist", "BERT of megatron-core, as torch.distributed.checkpoint stores it", ("megatron-bert",),
    _recognise_directory, open_directory, read_core,
)
