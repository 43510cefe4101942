"""What all TensorFlow models have in common: calling, training, loading, saving, embeddings, pruning."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from typing import Any, ClassVar, TypeVar

import keras
import numpy as np
import tensorflow as tf

from bertkit.core.checkpoint import open_checkpoint, write_checkpoint
from bertkit.core.config import CONFIG_NAME, PretrainedConfig, pop_hub_options, read_config_dict
from bertkit.core.errors import BackendError, BertkitError, ConfigError, InputError
from bertkit.core.hub import CONFIG_FILES, WEIGHT_FILES, resolve_directory
from bertkit.core.initial import initial_value
from bertkit.core.inputs import check_range, check_shapes
from bertkit.core.loading import LoadPlan, check_overrides, check_saved, plan_loading, warn_about
from bertkit.core.native import PORTABLE, use_kernels
from bertkit.core.outputs import ModelOutput, OutputChoices
from bertkit.core.spec import Param, Variant
from bertkit.core.surgery import check_changeable, common_part, plan_pruning, resized_vocabulary
from bertkit_tf import state
from bertkit_tf.layers import Block, dtype_policy, random_seed, seeded

Model = TypeVar("Model", bound="TFPreTrainedModel")

FLAGS = ("output_attentions", "output_hidden_states", "return_dict", "use_cache", "training")
"""Arguments of a call that are no tensors."""


def unpack_inputs(call: Callable[..., Any]) -> Callable[..., Any]:
    """Let `call` take its inputs as keywords, as a list in documented order, or as a mapping."""
    names = [name for name in inspect.signature(call).parameters if name != "self"]

    @wraps(call)
    def unpacked(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = collect_inputs(names, args, kwargs)
        try:
            return call(self, **{self.input_aliases.get(name, name): value for name, value in inputs.items()})
        except BertkitError as error:
            error._keras_call_info_injected = True  # else Keras makes an error of its own from the message alone
            raise

    return unpacked


@cache
def argument_names(model_class: type) -> tuple[str, ...]:
    """Names of what a model's `call` takes, in documented order."""
    return tuple(name for name in inspect.signature(model_class.call).parameters if name != "self")


def collect_inputs(names: Sequence[str], args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All inputs of a call by name, however they were passed.

    Raises:
        InputError: naming the arguments that are given twice or that are too many.
    """
    if args and isinstance(args[0], Mapping):
        first = dict(args[0])
        args = (first.pop("input_ids", None), *args[1:])
    elif args and isinstance(args[0], (list, tuple)) and not _is_numbers(args[0]):
        first, args = dict(zip(names, args[0], strict=False)), (None, *args[1:])
    else:
        first = {}
    placed = {name: value for name, value in zip(names, args, strict=False) if value is not None}
    given = {name: value for name, value in kwargs.items() if value is not None}
    twice = sorted({*first, *placed} & {*given} | {*first} & {*placed})
    if twice or len(args) > len(names):
        raise InputError("the model's inputs do not fit", [f"{name}: given twice" for name in twice] or
                         [f"got {len(args)} positional arguments, expected at most {len(names)}: {', '.join(names)}"])
    return {name: value for name, value in {**first, **placed, **given}.items() if value is not None}


def _is_numbers(values: Any) -> bool:
    while isinstance(values, (list, tuple)) and values:
        values = values[0]
    return isinstance(values, (bool, int, float, np.number))


class TFPreTrainedModel(keras.Model):
    """Base of all TensorFlow models: a configuration, the tensors of the weight spec, and what users do with them.

    A model takes its inputs as keywords (`model(input_ids=ids)`), as a list in documented order
    (`model([ids, mask])`) or as a mapping (`model({"input_ids": ids})`), eagerly, inside `tf.function`, or inside a
    functional Keras model. With `compile` and `fit` it trains in four ways: with a Keras loss on `logits`; with
    labels as `y` and no loss (the model's own loss); with a dictionary of labels as `y`; with the labels among the
    inputs.

    Args:
        config: the configuration; it is kept as `model.config` and never changed by a call.
        *inputs: not used; Keras's habit.
        name: name of the Keras model.
        dtype: Keras dtype policy, e.g. "mixed_bfloat16"; default the global one.

    Raises:
        ConfigError: when the configuration holds impossible values.
    """

    variant: ClassVar[Variant]
    task: ClassVar[str]
    config_class: ClassVar[type[PretrainedConfig]]
    base_model_prefix: ClassVar[str]
    main_input_name: ClassVar[str] = "input_ids"
    main_output_name: ClassVar[str] = "logits"
    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    ids_rank: ClassVar[int] = 2
    input_aliases: ClassVar[Mapping[str, str]] = {}
    """Other names of arguments."""
    name_or_path: str = ""
    """Where the model was loaded from."""
    calls_alone: bool = False
    """Whether nothing that Keras does around an eager call matters: it takes half a millisecond."""

    def __init_subclass__(cls, *, variant: Variant | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if variant is not None:
            cls.variant, cls.config_class, cls.base_model_prefix = variant, variant.config, variant.prefix
            cls.task = cls.__name__.removeprefix(f"TF{variant.name}")
            keras.saving.register_keras_serializable("bertkit")(cls)

    def __init__(self, config: PretrainedConfig, *inputs: Any, name: str | None = None, dtype: Any = None,
                 **options: Any) -> None:
        super().__init__(name=name, dtype=dtype, autocast=False)
        if not isinstance(config, self.config_class):
            raise ConfigError(f"{type(self).__name__} takes a {self.config_class.__name__}, got {type(config).__name__}")
        config.validate()
        fresh = options.pop("initialise", True)
        self.config, self._options = config, options
        with dtype_policy(self.layers_policy()):
            self.assemble(config, **options)
        self.built = True
        self.tie_weights()
        if fresh:
            self._initialise(self.params().values())

    def assemble(self, config: Any, **options: Any) -> None:
        """Make the layers; their variables get their initial values afterwards, all at once."""
        raise NotImplementedError

    def layers_policy(self) -> Any:
        """The dtype policy of the layers: the model's, or float32 where float16 cannot hold the numbers."""
        return self.dtype_policy

    # -- calling --------------------------------------------------------------------------------------------
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        names = argument_names(type(self))
        inputs = collect_inputs(names, args, kwargs)
        options = {name: inputs.pop(name) for name in FLAGS if name in inputs}
        unknown = [name for name in inputs if name not in names and name not in self.input_aliases]
        if unknown:
            problems = [f"{name}: no argument of {type(self).__name__}" for name in unknown]
            raise InputError("the model's inputs do not fit", problems, f"It takes: {', '.join(names)}.")
        past = {"past_key_values": inputs.pop("past_key_values")} if "past_key_values" in inputs else {}
        tensors = {name: _tensor(value) for name, value in inputs.items()}
        if self.calls_alone and tf.executing_eagerly() and all(hasattr(x, "numpy") for x in tensors.values()):
            return self.call(**tensors, **options)
        return super().__call__(tensors, **past, **options)

    # -- the weight spec ------------------------------------------------------------------------------------
    def params(self) -> dict[str, Param]:
        """The weight spec of this very model: every tensor by canonical name."""
        return self.variant.params(self.task, self.config, pooled=self.base_model.pooler is not None)

    @property
    def base_model(self) -> TFPreTrainedModel:
        """The encoder; the model itself where it is one."""
        return self if self.task == "Model" else getattr(self, self.base_model_prefix)

    def init_weights(self) -> None:
        """Give every tensor its initial value, anew."""
        self._initialise(self.params().values())

    def _initialise(self, params: Iterable[Param]) -> None:
        random = np.random.default_rng(random_seed().numpy().tolist())
        for param in params:
            if param.tied_to is None and param.kind != "derived":
                state.set_value(self, param, initial_value(param, self.config, random))

    def tie_weights(self) -> None:
        """Make tied tensors one again, e.g. after a layer was replaced."""
        state.tie(self, self.params())

    # -- loading and saving ---------------------------------------------------------------------------------
    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike,
        *model_args: Any,
        config: PretrainedConfig | str | os.PathLike | None = None,
        dtype: Any = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        weights_variant: str | None = None,
        **kwargs: Any,
    ) -> Model | tuple[Model, dict[str, list]]:
        """Load a model from a checkpoint directory or a repository of the hub; the same files as in PyTorch.

        Args:
            pretrained_model_name_or_path: a directory with config.json and weights, or a hub id.
            *model_args: further arguments of the constructor.
            config: a configuration, or where to read one, instead of the checkpoint's.
            dtype: Keras dtype policy, e.g. "mixed_bfloat16" or "float16"; "auto" takes the dtype that the
                checkpoint was saved in; default the global policy.
            ignore_mismatched_sizes: give initial values to tensors of another shape instead of failing.
            output_loading_info: give `(model, info)` with the missing, unexpected and mismatched names.
            weights_variant: load e.g. `model.fp16.safetensors` for "fp16".
            **kwargs: `torch_dtype`, another name of `dtype`; hub options (`revision`, `token`, `cache_dir`,
                `local_files_only`, `force_download`, `subfolder`), values that override the configuration's
                (`num_labels=3`), and keyword arguments of the constructor.

        Raises:
            CheckpointError: when the weights are missing, damaged or do not fit: everything that is wrong at once.
            ConfigError: when the configuration is impossible.

        Example:
            >>> from bertkit_tf import TFMobileBertForSequenceClassification
            >>> model = TFMobileBertForSequenceClassification.from_pretrained("dir", num_labels=3)  # doctest: +SKIP
        """
        hub = pop_hub_options(kwargs)
        kwargs.pop("from_pt", None)
        dtype = kwargs.pop("torch_dtype", None) if dtype is None else dtype
        dtype = str(dtype).removeprefix("torch.") if type(dtype).__module__ == "torch" else dtype
        constructor = {name: kwargs.pop(name) for name in ("add_pooling_layer", "add_binary_head", "name") if name in kwargs}
        directory = resolve_directory(pretrained_model_name_or_path, allow_patterns=[*CONFIG_FILES, *WEIGHT_FILES], **hub)
        if kwargs or not isinstance(config, PretrainedConfig):
            values = config.to_dict() if isinstance(config, PretrainedConfig) else read_config_dict(config or directory)
            check_overrides(cls.config_class, values, kwargs)
            config = cls.config_class.from_dict(values, **kwargs)
        with open_checkpoint(directory, variant=weights_variant) as checkpoint:
            policy = _stored_dtype(config, checkpoint) if dtype == "auto" else dtype
            model, plan = cls._from_checkpoint(
                checkpoint, config, model_args, {**constructor, "dtype": policy}, ignore_mismatched_sizes)
        model.name_or_path = str(pretrained_model_name_or_path)
        warn_about(plan, cls.__name__, str(pretrained_model_name_or_path))
        return (model, plan.as_info()) if output_loading_info else model

    @classmethod
    def _from_checkpoint(
        cls: type[Model], checkpoint: Any, config: PretrainedConfig, args: tuple, constructor: Mapping[str, Any],
        ignore_mismatched_sizes: bool,
    ) -> tuple[Model, LoadPlan]:
        model = cls(config, *args, initialise=False, **constructor)
        params = model.params()
        plan = plan_loading(checkpoint, params, cls.variant, config, ignore_mismatched_sizes=ignore_mismatched_sizes)
        model._initialise(p for n, p in params.items() if n not in plan.sources)
        if any(param.frozen_dtype for param in params.values()):
            checkpoint.verify()
        for name, source in plan.sources.items():
            state.set_value(model, params[name], checkpoint.read(source))
        return model, plan

    def save_pretrained(self, save_directory: str | os.PathLike, *, max_shard_size: int | str = "5GB") -> None:
        """Write config.json and the weights as safetensors, in one step: a failure leaves what was there.

        PyTorch reads the same directory.

        Args:
            save_directory: the directory, made when absent.
            max_shard_size: largest weights file, in bytes or as "2GB"; larger models are split, with an index.

        Raises:
            CheckpointError: when the target cannot be written, or the model has tensors that no checkpoint names.
        """
        config = type(self.config).from_dict(self.config.to_dict())
        config.architectures = [type(self).__name__.removeprefix("TF")]
        config.torch_dtype = self.variable_dtype
        params = self.params()
        check_saved(type(self).__name__, params, state.held_names(self, params))
        tensors = state.lazy_tensors(self, params)
        frozen = any(param.frozen_dtype for param in params.values())
        write_checkpoint(save_directory, tensors, max_shard_size=max_shard_size, checksum=frozen,
                         extra_files={CONFIG_NAME: config.to_json_string()})

    def get_config(self) -> dict[str, Any]:
        """What `.keras` files keep beside the weights."""
        return {"config": self.config.to_dict(), "name": self.name,
                "dtype": keras.dtype_policies.serialize(self.dtype_policy), **self._options}

    @classmethod
    def from_config(cls: type[Model], config: Any, **_: Any) -> Model:
        """A model with initial weights, from a configuration or from what `get_config` gave."""
        if isinstance(config, PretrainedConfig):
            return cls(config)
        options = {name: value for name, value in config.items() if name != "config"}
        model = cls(cls.config_class.from_dict(config["config"]), initialise=False, **options)
        model._initialise(param for param in model.params().values() if param.frozen_dtype is None)
        return model

    def __dir__(self) -> list[str]:
        """All names but `base_model`: Keras saves what it finds here, and would find the encoder twice."""
        return [name for name in super().__dir__() if name != "base_model"]

    def export(self, filepath: str | os.PathLike, *args: Any, input_signature: Any = None, **kwargs: Any) -> None:
        """Write a SavedModel to serve, or what else Keras's `export` offers.

        It gives the output's tensors by name, without the tuples (hidden states, attentions, cache).

        Args:
            filepath: the directory, or the file.
            *args: as for Keras.
            input_signature: what to trace; default one dictionary of `input_ids`, `attention_mask` and, where the
                model has more than one type, `token_type_ids`, int32 and of any batch and length. Keras's own
                default would make the ids floats.
            **kwargs: as for Keras, e.g. `format`.
        """
        with use_kernels(PORTABLE):  # what is exported runs where bertkit is not
            _Served(self).export(filepath, *args, input_signature=input_signature or [self.serving_signature()], **kwargs)

    def serving_signature(self) -> dict[str, tf.TensorSpec]:
        """Inputs that an exported model takes, by name."""
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if self.config.type_vocab_size > 1 else [])]
        return {name: tf.TensorSpec([None] * self.ids_rank, tf.int32, name) for name in names}

    # -- training -------------------------------------------------------------------------------------------
    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Any = None, **kwargs: Any) -> None:
        """Prepare for `fit`; without a loss the model's own is used.

        The optimizer gets its variables here, all at once, which makes the first step much faster.

        Raises:
            BackendError: when a `keras.distribution` is set, which Keras ignores on TensorFlow.
        """
        if keras.distribution.distribution() is not None:
            raise BackendError("keras.distribution does nothing on TensorFlow: every device would train the whole model alone",
                               remedy="Call keras.distribution.set_distribution(None) and use tf.distribute, "
                                      "e.g. MirroredStrategy.")
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the model in a `.keras` file was."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of `fit`."""
        return super().train_step(self._with_own_labels(data))

    def test_step(self, data: Any) -> dict[str, Any]:
        """One step of `evaluate`."""
        return super().test_step(self._with_own_labels(data))

    def predict_step(self, data: Any) -> Any:
        """One step of `predict`; the loss is left out, as it has no row for each example."""
        output = super().predict_step(data)
        return _without_loss(output)

    def _with_own_labels(self, data: Any) -> Any:
        """Where no Keras loss was compiled, labels given as `y` go to the model's own loss."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if self._compile_loss is not None or y is None:
            return data
        if sample_weight is not None:
            raise InputError("sample_weight and class_weight need a Keras loss", remedy="Pass loss= to compile().")
        several = y if isinstance(y, (list, tuple)) else (y,)
        labels = y if isinstance(y, Mapping) else dict(zip(self.label_names, several, strict=True))
        return ({**self._by_name(x), **labels},)

    def _by_name(self, x: Any) -> dict[str, Any]:
        """The inputs of a batch by name, however they came."""
        if isinstance(x, Mapping):
            return dict(x)
        return dict(zip(argument_names(type(self)), x if isinstance(x, (list, tuple)) else (x,), strict=False))

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Under `tf.distribute` Keras shows the mean of a batch over the replicas, where ids are no integers any more."""
        if data_batch is not None:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data_batch)
            x = {name: tf.cast(value, tf.int64) if name.endswith("_ids") else value for name, value in self._by_name(x).items()}
            data_batch = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        super()._symbolic_build(iterator, data_batch)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
                     training: bool = True) -> tf.Tensor:
        """The Keras loss where one was compiled, else the model's own; both scaled alike for replicas."""
        if self._compile_loss is not None:
            if y is None:
                raise InputError("compile() was given a loss, but there is no y for it",
                                 remedy="Pass labels as y, or compile without a loss to use the model's own.")
            return super().compute_loss(x, *self._compared(y, y_pred), sample_weight, training)
        if not isinstance(y_pred, ModelOutput) or "loss" not in y_pred:
            raise InputError("there is no loss", remedy=f"Pass {' and '.join(self.label_names)} among the inputs or as y, "
                                                        "or give compile() a loss.")
        losses = [self._aggregate_additional_loss(loss) for loss in (y_pred["loss"], *self.losses)]
        return tf.add_n(losses)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """The metrics of `compile`, on what `y` names, else on the main output."""
        if y is None:
            y = {name: x[name] for name in self.label_names if isinstance(x, Mapping) and name in x} or None
        return super().compute_metrics(x, *self._compared(y, y_pred), sample_weight)

    def _compared(self, y: Any, y_pred: Any) -> tuple[Any, Any]:
        """Labels and the outputs that they belong to, as plain dictionaries or tensors."""
        if not isinstance(y_pred, ModelOutput):
            return y, y_pred
        if isinstance(y, Mapping) and all(name in y_pred for name in y):
            return dict(y), {name: y_pred[name] for name in y}
        if isinstance(y, Mapping) and len(y) == 1:
            (y,) = y.values()
        if y is not None and self.main_output_name in y_pred:
            return y, y_pred[self.main_output_name]
        return None, dict(y_pred)

    # -- embeddings -----------------------------------------------------------------------------------------
    def get_input_embeddings(self) -> Block:
        """The word embeddings."""
        return self.base_model.embeddings.word_embeddings

    def set_input_embeddings(self, value: Block) -> None:
        """Replace the word embeddings; a tied decoder follows."""
        check_changeable(self.config)
        self.base_model.embeddings.replace("word_embeddings", value)
        self.tie_weights()

    def get_output_embeddings(self) -> Block | None:
        """The decoder onto the vocabulary, or None where the class has none."""
        head = self._language_model_head()
        return None if head is None else head.decoder

    def set_output_embeddings(self, new_embeddings: Block) -> None:
        """Replace the decoder onto the vocabulary."""
        check_changeable(self.config)
        head = self._language_model_head()
        if head is None:
            raise BertkitError(f"{type(self).__name__} has no output embeddings")
        head.replace("decoder", new_embeddings)
        head.replace("bias", new_embeddings.bias)

    def _language_model_head(self) -> Block | None:
        head = getattr(self, "lm_head", None) or getattr(getattr(self, "cls", None), "predictions", None)
        return head if hasattr(head, "decoder") else None

    def resize_token_embeddings(self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None) -> Block:
        """Make the vocabulary larger or smaller, in the embeddings and in every part of a decoder.

        Variables are replaced: compile again afterwards.

        Args:
            new_num_tokens: the new number of words; new rows get initial values, and the last rows are dropped
                where it is smaller. None leaves the number.
            pad_to_multiple_of: round the number up.

        Returns:
            The word embeddings.

        Raises:
            ConfigError: for a number that leaves no words, or not the padding token, or for a frozen model.
        """
        rows = resized_vocabulary(self.config, new_num_tokens, pad_to_multiple_of)
        old = {p.name: p for p in self.params().values() if p.stored}
        self.config.vocab_size = rows
        random = np.random.default_rng(random_seed().numpy().tolist())
        for name, param in ((n, p) for n, p in self.params().items() if p.stored and p.shape != old[n].shape):
            before = state.to_disk(param, np.asarray(state.get_variable(self, param).value))
            fresh = initial_value(param, self.config, random).astype(before.dtype)
            common = common_part(old[name].shape, param.shape)
            fresh[common] = before[common]
            state.set_value(self, param, fresh)
        self.tie_weights()
        return self.get_input_embeddings()

    # -- heads ----------------------------------------------------------------------------------------------
    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Remove attention heads for good. Variables are replaced: compile again afterwards.

        Args:
            heads_to_prune: heads by layer, in the numbering before any pruning.

        Raises:
            ConfigError: for layers or heads that do not exist, or a layer that would have none left, or for a frozen model.
        """
        pruned, kept = plan_pruning(self.config, heads_to_prune)
        for layer, heads in kept.items():
            for attention in self.base_model.encoder.layer[layer].attentions():
                attention.keep_heads(heads)
        self.config.pruned_heads = pruned

    # -- memory ---------------------------------------------------------------------------------------------
    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Compute activations again in the backward pass instead of keeping them; for graphs made from now on."""
        self.base_model.encoder.checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.base_model.encoder.checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return self.base_model.encoder.checkpointing

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of parameters, each shared one counted once; I-BERT's statistics are none."""
        statistics = {id(state.get_variable(self, p)) for p in self.params().values() if p.kind == "stat"}
        variables = self.trainable_variables if only_trainable else self.variables
        return sum(int(np.prod(v.shape)) for v in variables if id(v) not in statistics)

    @property
    def device(self) -> str:
        """Where the variables are."""
        return self.variables[0].value.device


class _Served(keras.Model):
    """A model whose output has tensors alone, which is all that a SavedModel can name."""

    def __init__(self, model: TFPreTrainedModel) -> None:
        super().__init__(name=model.name, dtype=model.dtype_policy, autocast=False)
        self.model = model
        self.built = True

    def call(self, inputs: Any) -> dict[str, tf.Tensor]:
        output = self.model(inputs, return_dict=True, training=False)
        return {name: value for name, value in output.items() if tf.is_tensor(value)}


class TFEncoderModel(OutputChoices, TFPreTrainedModel):
    """Template of the bare encoders: embeddings, layers and an optional pooler."""

    main_output_name = "last_hidden_state"

    def __init__(self, config: PretrainedConfig, *inputs: Any, add_pooling_layer: bool = True, **kwargs: Any) -> None:
        super().__init__(config, *inputs, add_pooling_layer=add_pooling_layer, **kwargs)

    @property
    def embedding_width(self) -> int:
        """Width of `inputs_embeds`."""
        return _table(self.embeddings.word_embeddings).shape[1]

    @property
    def max_tokens(self) -> int:
        """Longest sequence that the position table covers."""
        return self.config.max_position_embeddings

    def check_inputs(self, *, past: int = 0, **inputs: tf.Tensor | None) -> None:
        """Refuse inputs that do not fit, with one error.

        Inside a graph only shapes are known; there TensorFlow itself refuses ids outside a table.

        Raises:
            InputError: listing every problem.
        """
        given = {name: value for name, value in inputs.items() if value is not None}
        wrong = [f"{name}: got {value.dtype.name}, expected an integer dtype" for name, value in given.items()
                 if name.endswith("_ids") and not value.dtype.is_integer]
        wrong += [f"{name}: got {value.dtype.name}, expected a floating-point dtype" for name, value in given.items()
                  if name == "inputs_embeds" and not value.dtype.is_floating]
        check_shapes(self.config, {name: value.shape.as_list() for name, value in given.items()},
                     embedding_width=self.embedding_width, max_tokens=self.max_tokens, past=past, problems=wrong)
        for name, rows in self._tables().items():
            ids = given.get(name)
            if ids is not None and tf.is_tensor(ids) and hasattr(ids, "numpy") and ids.shape.num_elements():
                values = ids.numpy()  # TensorFlow's own minimum of a constant inside a graph would be a symbol
                check_range(name, int(values.min()), int(values.max()), rows)

    def _tables(self) -> dict[str, int]:
        tables = self.embeddings
        return {"input_ids": _table(tables.word_embeddings).shape[0],
                "token_type_ids": _table(tables.token_type_embeddings).shape[0],
                "position_ids": _table(tables.position_embeddings).shape[0]}


def _table(embeddings: Block) -> keras.Variable:
    """The table of embeddings, in floating point or frozen."""
    frozen = getattr(embeddings, "weight_integer", None)
    return embeddings.embeddings if frozen is None else frozen


class LayerStack(Block):
    """Template of the encoders' stacks: runs the layers and gathers what the caller wants to see.

    Args:
        layers: the layers, first one first.
    """

    def __init__(self, layers: Iterable[Block]) -> None:
        super().__init__()
        self.checkpointing = False
        self.layer = list(layers)

    def run(self, layer: Block, hidden: tf.Tensor, *inputs: Any, training: bool | None, **options: Any) -> tuple:
        """Call one layer, with gradient checkpointing where it is enabled."""
        if not (self.checkpointing and training):
            return layer(hidden, *inputs, training=training, **options)
        absent: list[bool] = []

        @tf.recompute_grad
        def again(hidden: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
            with seeded(seed):
                outputs = layer(hidden, *inputs, training=training, **options)
            absent[:] = [output is None for output in outputs]
            return [output for output in outputs if output is not None]

        present = iter(again(hidden, random_seed()))
        return tuple(None if missing else next(present) for missing in absent)


def head_masks(head_mask: tf.Tensor | None, layers: int) -> list[tf.Tensor | None]:
    """The mask of each layer.

    Args:
        head_mask: [heads], [layers, heads], or None.
        layers: number of layers.

    Raises:
        InputError: for another rank or number of layers.
    """
    if head_mask is None:
        return [None] * layers
    if head_mask.shape.rank == 1:
        return [head_mask] * layers
    if head_mask.shape.rank > 5 or head_mask.shape[0] != layers:
        raise InputError(f"head_mask: got shape {head_mask.shape}, expected [heads] or [{layers}, heads]")
    return tf.unstack(head_mask, layers)


def _tensor(value: Any) -> Any:
    if tf.is_tensor(value) or isinstance(value, keras.KerasTensor):
        return value
    return tf.convert_to_tensor(value.value if isinstance(value, keras.Variable) else np.asarray(value))


def _without_loss(output: Any) -> Any:
    if isinstance(output, ModelOutput):
        return type(output)(**{name: value for name, value in output.items() if name != "loss"})
    return output


def _stored_dtype(config: PretrainedConfig, checkpoint: Any) -> str:
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    stored = (names.get(checkpoint.info(name).dtype) for name in checkpoint.names())
    return config.torch_dtype or next(filter(None, stored), "float32")
