"""What all PyTorch models have in common: loading, saving, embeddings, pruning, checkpointing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bertkit import state
from bertkit.core.checkpoint import open_checkpoint, write_checkpoint
from bertkit.core.config import CONFIG_NAME, PretrainedConfig, pop_hub_options, read_config_dict
from bertkit.core.errors import BertkitError, ConfigError, InputError
from bertkit.core.hub import CONFIG_FILES, WEIGHT_FILES, resolve_directory
from bertkit.core.initial import initial_value
from bertkit.core.inputs import check_range, check_shapes
from bertkit.core.loading import LoadPlan, check_overrides, check_saved, plan_loading, warn_about
from bertkit.core.outputs import OutputChoices
from bertkit.core.spec import Param, Variant
from bertkit.core.surgery import check_changeable, common_part, plan_pruning, resized_vocabulary

Model = TypeVar("Model", bound="PreTrainedModel")


class PreTrainedModel(nn.Module):
    """Base of all PyTorch models: a configuration, the tensors of the weight spec, and what users do with them.

    Subclasses declare their family with `variant=`; the task follows from the class name. Weights get their
    initial values when the outermost model is complete.

    Args:
        config: the configuration; it is kept as `model.config` and never changed by a call.

    Raises:
        ConfigError: when the configuration is of another variant or holds impossible values.
    """

    variant: ClassVar[Variant]
    task: ClassVar[str]
    config_class: ClassVar[type[PretrainedConfig]]
    base_model_prefix: ClassVar[str]
    main_input_name: ClassVar[str] = "input_ids"
    supports_gradient_checkpointing: ClassVar[bool] = True
    name_or_path: str = ""
    """Where the model was loaded from."""

    config: Any

    def __init_subclass__(cls, *, variant: Variant | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if variant is not None:
            cls.variant, cls.config_class, cls.base_model_prefix = variant, variant.config, variant.prefix
            cls.task = cls.__name__.removeprefix(variant.name)

    def __init__(self, config: PretrainedConfig, **options: Any) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ConfigError(f"{type(self).__name__} takes a {self.config_class.__name__}, got {type(config).__name__}")
        config.validate()
        self.config = config
        device = default_device()
        with torch.device("meta"):
            self.assemble(config, **options)
        self.tie_weights()
        if device.type != "meta":
            self._initialise(self.params().values(), device, torch.get_default_dtype())
            self.to(device)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run the model; under float16 autocast in float32 where float16 cannot hold the numbers."""
        if self.base_model.exceeds_float16:
            kind = self.device.type
            if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
                with torch.autocast(kind, enabled=False):
                    return super().__call__(*inputs, **options)
        return super().__call__(*inputs, **options)

    def assemble(self, config: Any, **options: Any) -> None:
        """Make the modules; their tensors get memory and initial values afterwards, all at once."""
        raise NotImplementedError

    # -- the weight spec ------------------------------------------------------------------------------------
    def params(self) -> dict[str, Param]:
        """The weight spec of this very model: every tensor by canonical name."""
        return self.variant.params(self.task, self.config, pooled=self.base_model.pooler is not None)

    @property
    def base_model(self) -> PreTrainedModel:
        """The encoder; the model itself where it is one."""
        return self if self.task == "Model" else getattr(self, self.base_model_prefix)

    def init_weights(self) -> None:
        """Give every tensor its initial value, anew."""
        self._initialise(self.params().values())

    def _initialise(
        self, params: Iterable[Param], device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        random = np.random.default_rng(int(torch.randint(2**62, (), device="cpu")))
        for param in params:
            if param.tied_to is None and param.kind != "derived":
                value = initial_value(param, self.config, random)
                old = state.get_tensor(self, param.name)
                where = device or old.device
                state.set_tensor(self, param.name, state.from_numpy(value, device=where, dtype=dtype or old.dtype))
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make tied tensors one again, e.g. after a parameter was replaced."""
        state.tie(self, self.params())

    # -- loading and saving ---------------------------------------------------------------------------------
    @classmethod
    def from_config(cls: type[Model], config: PretrainedConfig, **_: Any) -> Model:
        """A model with initial weights."""
        return cls(config)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike,
        *model_args: Any,
        config: PretrainedConfig | str | os.PathLike | None = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        weights_variant: str | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> Model | tuple[Model, dict[str, list]]:
        """Load a model from a checkpoint directory or a repository of the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a directory with config.json and weights, or a hub id.
            *model_args: further arguments of the constructor.
            config: a configuration, or where to read one, instead of the checkpoint's.
            torch_dtype, dtype: dtype of the parameters; "auto" takes the one that the checkpoint was saved in;
                default float32.
            ignore_mismatched_sizes: give initial values to tensors of another shape instead of failing.
            output_loading_info: give `(model, info)` with the missing, unexpected and mismatched names.
            weights_variant: load e.g. `model.fp16.safetensors` for "fp16".
            device: where the parameters go; default the CPU, or the device of an active `torch.device` context.
            **kwargs: hub options (`revision`, `token`, `cache_dir`, `local_files_only`, `force_download`,
                `subfolder`), values that override the configuration's (`num_labels=3`), and keyword arguments of
                the constructor.

        Raises:
            CheckpointError: when the weights are missing, damaged or do not fit: everything that is wrong at once.
            ConfigError: when the configuration is impossible.

        Example:
            >>> from bertkit import MobileBertForSequenceClassification
            >>> model = MobileBertForSequenceClassification.from_pretrained("dir", num_labels=3)  # doctest: +SKIP
        """
        hub = pop_hub_options(kwargs)
        constructor = {name: kwargs.pop(name) for name in ("add_pooling_layer", "add_binary_head") if name in kwargs}
        directory = resolve_directory(pretrained_model_name_or_path, allow_patterns=[*CONFIG_FILES, *WEIGHT_FILES], **hub)
        if kwargs or not isinstance(config, PretrainedConfig):
            values = config.to_dict() if isinstance(config, PretrainedConfig) else read_config_dict(config or directory)
            check_overrides(cls.config_class, values, kwargs)
            config = cls.config_class.from_dict(values, **kwargs)
        with open_checkpoint(directory, variant=weights_variant) as checkpoint:
            model, plan = cls._from_checkpoint(
                checkpoint, config, model_args, constructor, ignore_mismatched_sizes,
                _dtype(torch_dtype if dtype is None else dtype, config, checkpoint), device or default_device(),
            )
        model.eval()
        model.name_or_path = str(pretrained_model_name_or_path)
        warn_about(plan, cls.__name__, str(pretrained_model_name_or_path))
        return (model, plan.as_info()) if output_loading_info else model

    @classmethod
    def _from_checkpoint(
        cls: type[Model], checkpoint: Any, config: PretrainedConfig, args: tuple, constructor: Mapping[str, Any],
        ignore_mismatched_sizes: bool, dtype: torch.dtype, device: torch.device | str,
    ) -> tuple[Model, LoadPlan]:
        with torch.device("meta"):
            model = cls(config, *args, **constructor)
        params = model.params()
        plan = plan_loading(checkpoint, params, cls.variant, config, ignore_mismatched_sizes=ignore_mismatched_sizes)
        model._initialise((p for n, p in params.items() if n not in plan.sources), torch.device(device), dtype)
        if any(param.frozen_dtype for param in params.values()):
            checkpoint.verify()
        for name, source in plan.sources.items():
            array = checkpoint.read(source)
            frozen = params[name].frozen_dtype is not None  # these stay where they are mapped
            value = torch.from_numpy(array).to(device) if frozen else state.from_numpy(array, device=device, dtype=dtype)
            state.set_tensor(model, name, value)
        model.tie_weights()
        return model.to(device, dtype), plan

    def save_pretrained(self, save_directory: str | os.PathLike, *, max_shard_size: int | str = "5GB") -> None:
        """Write config.json and the weights as safetensors, in one step: a failure leaves what was there.

        Args:
            save_directory: the directory, made when absent.
            max_shard_size: largest weights file, in bytes or as "2GB"; larger models are split, with an index.

        Raises:
            CheckpointError: when the target cannot be written, or the model has tensors that no checkpoint names.
        """
        config = type(self.config).from_dict(self.config.to_dict())
        config.architectures = [type(self).__name__]
        config.torch_dtype = str(self.dtype).removeprefix("torch.")
        params = self.params()
        check_saved(type(self).__name__, params, self.state_dict())
        tensors = state.lazy_tensors(self, params)
        frozen = any(param.frozen_dtype for param in params.values())
        write_checkpoint(save_directory, tensors, max_shard_size=max_shard_size, checksum=frozen,
                         extra_files={CONFIG_NAME: config.to_json_string()})

    # -- embeddings -----------------------------------------------------------------------------------------
    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.base_model.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings; a tied decoder follows."""
        check_changeable(self.config)
        self.base_model.embeddings.word_embeddings = value
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Module | None:
        """The decoder onto the vocabulary, or None where the class has none."""
        head = self._language_model_head()
        return None if head is None else head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the decoder onto the vocabulary."""
        head = self._language_model_head()
        if head is None:
            raise BertkitError(f"{type(self).__name__} has no output embeddings")
        check_changeable(self.config)
        if getattr(new_embeddings, "bias", None) is None:
            raise BertkitError("the output embeddings need a bias", remedy="Give an nn.Linear with bias=True.")
        head.decoder = new_embeddings
        head.bias = new_embeddings.bias

    def _language_model_head(self) -> nn.Module | None:
        head = getattr(self, "lm_head", None) or getattr(getattr(self, "cls", None), "predictions", None)
        return head if hasattr(head, "decoder") else None

    def resize_token_embeddings(self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None) -> nn.Module:
        """Make the vocabulary larger or smaller, in the embeddings and in every part of a decoder.

        Args:
            new_num_tokens: the new number of words; new rows get initial values, and the last rows are dropped
                where it is smaller. None leaves the number.
            pad_to_multiple_of: round the number up.

        Returns:
            The word embeddings.

        Raises:
            ConfigError: for a number that leaves no words, or not the padding token.
        """
        rows = resized_vocabulary(self.config, new_num_tokens, pad_to_multiple_of)
        old = {p.name: p for p in self.params().values() if p.stored}
        self.config.vocab_size = rows
        random = np.random.default_rng(int(torch.randint(2**62, (), device="cpu")))
        for name, param in ((n, p) for n, p in self.params().items() if p.stored and p.shape != old[n].shape):
            tensor = state.get_tensor(self, name)
            fresh = state.from_numpy(initial_value(param, self.config, random), like=tensor)
            common = common_part(old[name].shape, param.shape)
            with torch.no_grad():
                fresh[common] = tensor[common]
            state.set_tensor(self, name, fresh)
        self.get_input_embeddings().num_embeddings = rows
        decoder = self.get_output_embeddings()
        if decoder is not None:
            decoder.out_features = rows
        self.tie_weights()
        return self.get_input_embeddings()

    # -- heads ----------------------------------------------------------------------------------------------
    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Remove attention heads for good.

        Args:
            heads_to_prune: heads by layer, in the numbering before any pruning.

        Raises:
            ConfigError: for layers or heads that do not exist, or a layer that would have none left.
        """
        pruned, kept = plan_pruning(self.config, heads_to_prune)
        for layer, heads in kept.items():
            for attention in self.base_model.encoder.layer[layer].attentions():
                attention.keep_heads(heads)
        self.config.pruned_heads = pruned

    # -- memory ---------------------------------------------------------------------------------------------
    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Compute activations again in the backward pass instead of keeping them.

        Args:
            gradient_checkpointing_kwargs: options of `torch.utils.checkpoint.checkpoint`; default
                `use_reentrant=False`.
        """
        self.base_model.encoder.checkpointing = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """`gradient_checkpointing_enable` by the name under which transformers' Trainer looks for it.

        Raises:
            BertkitError: for `every_n_layers` or `offload`, which are not there.
        """
        if every_n_layers != 1 or offload:
            raise BertkitError(f"every_n_layers: got {every_n_layers}, expected 1; offload: got {offload}, expected False")
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.base_model.encoder.checkpointing = None

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return self.base_model.encoder.checkpointing is not None

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of parameters, each shared one counted once; the integers of a frozen model are such that nobody trains."""
        tables = [m for m in self.modules() if hasattr(m, "num_embeddings")] if exclude_embeddings else []
        left_out = {id(tensor) for table in tables for tensor in (*table.parameters(), *table.buffers())}
        integers = [] if only_trainable else [b for b in self.buffers() if not b.is_floating_point()]
        return sum(p.numel() for p in (*self.parameters(), *integers)
                   if (p.requires_grad or not only_trainable) and id(p) not in left_out)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(t.dtype for t in chain(self.parameters(), self.buffers()) if t.is_floating_point())


class EncoderModel(OutputChoices, PreTrainedModel):
    """Template of the bare encoders: embeddings, layers and an optional pooler."""

    def __init__(self, config: PretrainedConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)

    @property
    def exceeds_float16(self) -> bool:
        """Whether hidden states grow beyond what float16 can hold."""
        return False

    @property
    def embedding_width(self) -> int:
        """Width of `inputs_embeds`."""
        return _table(self.embeddings.word_embeddings).shape[1]

    @property
    def max_tokens(self) -> int:
        """Longest sequence that the position table covers."""
        return self.config.max_position_embeddings

    def check_inputs(self, *, past: int = 0, **inputs: Tensor | None) -> None:
        """Refuse inputs that do not fit, with one error.

        Raises:
            InputError: listing every problem.
        """
        given = {name: value for name, value in inputs.items() if value is not None}
        others = [f"{name}: got {type(value).__name__}, expected a torch.Tensor" for name, value in given.items()
                  if not isinstance(value, Tensor)]
        if others:
            raise InputError("the model's inputs do not fit", others, 'A tokenizer gives tensors with return_tensors="pt".')
        wrong = [f"{name}: got {value.dtype}, expected an integer dtype" for name, value in given.items()
                 if name.endswith("_ids") and (value.is_floating_point() or value.dtype == torch.bool)]
        wrong += [f"{name}: got {value.dtype}, expected a floating-point dtype" for name, value in given.items()
                  if name == "inputs_embeds" and not value.is_floating_point()]
        check_shapes(self.config, {name: value.shape for name, value in given.items()},
                     embedding_width=self.embedding_width, max_tokens=self.max_tokens, past=past, problems=wrong)
        if torch.compiler.is_compiling():
            return
        for name, rows in self._tables().items():
            ids = given.get(name)
            if ids is not None and ids.device.type == "cpu" and ids.numel():
                check_range(name, int(ids.min()), int(ids.max()), rows)

    def _tables(self) -> dict[str, int]:
        tables = self.embeddings
        return {"input_ids": _table(tables.word_embeddings).shape[0],
                "token_type_ids": _table(tables.token_type_embeddings).shape[0],
                "position_ids": _table(tables.position_embeddings).shape[0]}


def _table(embeddings: nn.Module) -> Tensor:
    """The table of embeddings, in floating point or frozen."""
    frozen = getattr(embeddings, "weight_integer", None)
    return embeddings.weight if frozen is None else frozen


class LayerStack(nn.Module):
    """Template of the encoders' stacks: runs the layers and gathers what the caller wants to see.

    Args:
        layers: the layers, first one first.
    """

    checkpointing: dict[str, Any] | None = None

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)

    def run(self, layer: nn.Module, *inputs: Any, **options: Any) -> Any:
        """Call one layer, with gradient checkpointing where it is enabled."""
        if self.checkpointing is not None and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, **options, **self.checkpointing)
        return layer(*inputs, **options)


def default_device() -> torch.device:
    """Where new tensors go; before PyTorch 2.6 `torch.get_default_device` knows nothing of `with torch.device(...)`."""
    return torch.empty(0).device


def head_masks(head_mask: Tensor | None, layers: int) -> list[Tensor | None]:
    """The mask of each layer.

    Args:
        head_mask: [heads], [layers, heads], or None.
        layers: number of layers.

    Raises:
        InputError: for another rank or number of layers.
    """
    if head_mask is None:
        return [None] * layers
    if head_mask.dim() == 1:
        return [head_mask] * layers
    if head_mask.dim() > 5 or head_mask.shape[0] != layers:
        raise InputError(f"head_mask: got shape {list(head_mask.shape)}, expected [heads] or [{layers}, heads]")
    return list(head_mask)


def _dtype(wanted: torch.dtype | str | None, config: PretrainedConfig, checkpoint: Any) -> torch.dtype:
    if wanted is None:
        return torch.get_default_dtype()
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted == "auto":
        names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
        stored = (names.get(checkpoint.info(name).dtype) for name in checkpoint.names())
        wanted = config.torch_dtype or next(filter(None, stored), "float32")
    found = getattr(torch, str(wanted).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise BertkitError(f"torch_dtype: got {wanted!r}, expected 'auto', 'float32', 'float16', 'bfloat16' or a torch dtype")
    return found
