"""Configurations: plain dataclasses with the documented arguments, checked values and a config.json of their own."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from bertkit.core.errors import ConfigError

CONFIG_NAME = "config.json"
ConfigType = TypeVar("ConfigType", bound="PretrainedConfig")


@dataclass(frozen=True)
class Check:
    """What a field accepts: a sentence for the error message and the test itself."""

    allowed: str
    accepts: Callable[[Any], bool]

    def __or__(self, other: Check) -> Check:
        return Check(f"{self.allowed} or {other.allowed}", lambda v: self.accepts(v) or other.accepts(v))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def one_of(*choices: str) -> Check:
    """A check that accepts exactly the given strings."""
    return Check(f"one of {', '.join(map(repr, choices))}", lambda v: v in choices)


NONE = Check("None", lambda v: v is None)
POSITIVE = Check("a positive integer", lambda v: _is_int(v) and v > 0)
COUNT = Check("an integer >= 0", lambda v: _is_int(v) and v >= 0)
LAYERS = Check("an integer from 0 to 1000", lambda v: _is_int(v) and 0 <= v <= 1000)
NETWORKS = Check("an integer from 1 to 100", lambda v: _is_int(v) and 1 <= v <= 100)
LABELS = Check("an integer from 1 to 1000000", lambda v: _is_int(v) and 1 <= v <= 1_000_000)
INTEGER = Check("an integer", _is_int)
PROBABILITY = Check("a number in [0, 1]", lambda v: _is_real(v) and 0 <= v <= 1)
POSITIVE_REAL = Check("a number > 0", lambda v: _is_real(v) and v > 0)
NOT_NEGATIVE_REAL = Check("a number >= 0", lambda v: _is_real(v) and v >= 0)
FLAG = Check("True or False", lambda v: isinstance(v, bool))
ACTIVATIONS = ("gelu", "gelu_new", "relu", "relu6", "selu", "silu", "swish", "tanh", "sigmoid")
ACTIVATION = one_of(*ACTIVATIONS) | Check("a callable", callable)

Positive = Annotated[int, POSITIVE]
Layers = Annotated[int, LAYERS]
Networks = Annotated[int, NETWORKS]
Probability = Annotated[float, PROBABILITY]
PositiveReal = Annotated[float, POSITIVE_REAL]
NotNegativeReal = Annotated[float, NOT_NEGATIVE_REAL]
Flag = Annotated[bool, FLAG]
TokenId = Annotated[int | None, INTEGER | NONE]
Text = Annotated[str | None, Check("a string", lambda v: isinstance(v, str)) | NONE]
Activation = Annotated[str | Callable, ACTIVATION]
PositionEmbedding = Annotated[str, one_of("absolute", "relative_key", "relative_key_query")]
ProblemType = Annotated[
    str | None,
    one_of("regression", "single_label_classification", "multi_label_classification") | NONE,
]


def configuration(cls: type[ConfigType]) -> type[ConfigType]:
    """Make a dataclass whose constructor also takes any other keyword and keeps it as an attribute."""
    cls = dataclass(cls, repr=False, eq=False)
    declared_init = cls.__init__
    names = {item.name for item in fields(cls)}

    @wraps(declared_init)
    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        extra = {key: kwargs.pop(key) for key in list(kwargs) if key not in names}
        self._accept_extra(extra)
        declared_init(self, *args, **kwargs)

    declared = signature(declared_init)
    others = Parameter("kwargs", Parameter.VAR_KEYWORD, annotation="Any")
    __init__.__signature__ = declared.replace(parameters=[*declared.parameters.values(), others])  # type: ignore[attr-defined]
    cls.__init__ = __init__  # type: ignore[assignment,method-assign]
    return cls


@dataclass(kw_only=True, repr=False, eq=False)
class PretrainedConfig:
    """What the configurations of all variants share.

    Every keyword that no field declares is kept as an attribute and written back to config.json, so that a
    file made by another tool survives a round trip. `num_labels` may be given instead of `id2label`.

    Args:
        id2label: label names by class index; `num_labels` is its length (default: two labels).
        label2id: the inverse; made from `id2label` when absent.
        problem_type: "regression", "single_label_classification", "multi_label_classification", or None to
            infer it from `num_labels` and the dtype of the labels, anew at every call.
        output_attentions, output_hidden_states, return_dict: defaults of the model's call arguments.
        is_decoder, add_cross_attention: decoder behaviour (MegatronBERT).
        tie_word_embeddings: whether the language-model head shares the word embeddings' tensor.
        pruned_heads: heads removed from each layer, `{layer: [head, ...]}` in original numbering.
        torch_dtype: the dtype the weights were saved in ("float32", "float16", "bfloat16").
        architectures: names of the classes that wrote the checkpoint.
        tokenizer_class: name of the tokenizer class that belongs to it.

    Raises:
        ConfigError: one error that lists every field with an impossible value.
    """

    model_type: ClassVar[str] = ""
    derived: ClassVar[frozenset[str]] = frozenset()
    """Keys that other tools write but that bertkit computes from the other fields."""

    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None
    problem_type: ProblemType = None
    output_attentions: Flag = False
    output_hidden_states: Flag = False
    return_dict: Flag = True
    is_decoder: Flag = False
    add_cross_attention: Flag = False
    tie_word_embeddings: Flag = True
    pruned_heads: dict[int, list[int]] = field(default_factory=dict)
    torch_dtype: Text = None
    architectures: list[str] | None = None
    tokenizer_class: Text = None

    if TYPE_CHECKING:  # every variant has these

        @property
        def hidden_size(self) -> int: ...
        @property
        def num_hidden_layers(self) -> int: ...
        @property
        def num_attention_heads(self) -> int: ...

    def __post_init__(self) -> None:
        problems = [*self._name_labels(self.__dict__.pop("num_labels", None)), *self._number_pruned_heads()]
        if type(self.torch_dtype).__module__ == "torch":
            self.torch_dtype = str(self.torch_dtype).removeprefix("torch.")
        self._raise_if([*problems, *self.problems()])

    def _accept_extra(self, extra: dict[str, Any]) -> None:
        methods = [key for key in extra if callable(getattr(type(self), key, None))]
        self._raise_if([f"{key}: is a method, expected another name" for key in methods])
        for key, value in extra.items():
            if key not in self.derived and key != "model_type":
                self.__dict__[key] = value

    def _name_labels(self, num_labels: Any) -> list[str]:
        """Make `id2label` and `label2id` complete from what was given; what is wrong with it is given back."""
        problems = []
        if num_labels is not None and not LABELS.accepts(num_labels):
            problems.append(f"num_labels: got {num_labels!r}, expected {LABELS.allowed}")
        elif num_labels is not None and isinstance(self.id2label, Mapping) and len(self.id2label) != num_labels:
            problems.append(f"num_labels: got {num_labels}, but id2label names {len(self.id2label)}")
        names, indices = _with_indices(self.id2label), _with_indices(_inverse(self.label2id))
        if self.id2label is not None and not names:
            problems.append(f"id2label: got {self.id2label!r}, expected names by class index, at least one")
        if self.label2id is not None and indices is None:
            problems.append(f"label2id: got {self.label2id!r}, expected class indices by name")
        if problems or not (names or indices):
            names, indices = {index: f"LABEL_{index}" for index in range(2 if problems else num_labels or 2)}, None
        self.id2label = names or indices or {}
        given = self.label2id if indices else None
        self.label2id = {str(name): int(index) for name, index in (given or _inverse(self.id2label)).items()}
        return problems

    def _number_pruned_heads(self) -> list[str]:
        given, self.pruned_heads = self.pruned_heads, {}
        try:
            heads: dict[int, list[Any]] = {int(layer): sorted(pruned) for layer, pruned in (given or {}).items()}
        except (TypeError, ValueError, AttributeError, OverflowError):
            heads = {0: [None]}
        if not all(_is_int(head) for pruned in heads.values() for head in pruned):
            return [f"pruned_heads: got {given!r}, expected lists of heads by layer"]
        self.pruned_heads = heads
        return []

    @property
    def num_labels(self) -> int:
        """Number of classes of a classification head, or of values of a regression head."""
        return len(self.id2label or ())

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        if value != self.num_labels:
            self.id2label = self.label2id = None
            self._raise_if(self._name_labels(value))

    @property
    def use_return_dict(self) -> bool:
        """Whether a call gives a named output where the call itself does not say."""
        return self.return_dict

    def kept_heads(self, layer: int) -> int:
        """Number of attention heads that layer `layer` still has after pruning."""
        return self.num_attention_heads - len(self.pruned_heads.get(layer, ()))

    # -- checking -------------------------------------------------------------------------------------------
    @classmethod
    def _checks(cls) -> Iterator[tuple[Field, Check]]:
        hints = get_type_hints(cls, include_extras=True)
        for item in fields(cls):
            if get_origin(hints[item.name]) is Annotated:
                yield item, next(a for a in get_args(hints[item.name]) if isinstance(a, Check))

    def problems(self) -> list[str]:
        """Everything that is wrong with the current values, one sentence each; empty when all is well."""
        return [
            f"{item.name}: got {getattr(self, item.name)!r}, expected {check.allowed}"
            for item, check in self._checks()
            if not check.accepts(getattr(self, item.name))
        ] or self.contradictions()

    def contradictions(self) -> list[str]:
        """Fields that are fine alone but not together; asked only when each field is fine."""
        hidden, heads = self.attention_size, self.num_attention_heads
        found = []
        if hidden % heads:
            found.append(f"num_attention_heads: got {heads}, expected a divisor of the attention width {hidden}")
        for layer, pruned in self.pruned_heads.items():
            valid = {head for head in pruned if 0 <= head < heads}
            if not 0 <= layer < self.num_hidden_layers or len(valid) != len(pruned):
                found.append(f"pruned_heads: got {{{layer}: {pruned}}}, expected layers below "
                             f"{self.num_hidden_layers} and different heads below {heads}")
            elif len(pruned) >= heads:
                found.append(f"pruned_heads: layer {layer} would have no head left")
        return found

    @property
    def attention_size(self) -> int:
        """Width of the space in which attention works, over all heads before pruning."""
        return self.hidden_size

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.attention_size // self.num_attention_heads

    def validate(self) -> None:
        """Check all values again, e.g. after attributes were set by hand.

        Raises:
            ConfigError: listing every field with an impossible value.
        """
        self._raise_if(self.problems())

    def _raise_if(self, problems: list[str]) -> None:
        if problems:
            raise ConfigError(f"{type(self).__name__}: {len(problems)} bad value(s)", problems)

    # -- dictionaries and files -----------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """All values, the unknown keys included, as plain Python objects that JSON can hold."""
        named = {key: _json_name(value) for key, value in copy.deepcopy(self.__dict__).items()}
        return {"model_type": self.model_type, **named}

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: the variant's own fields, and shared fields that differ from their default."""
        shared = {item.name: item for item in fields(PretrainedConfig)}
        everything = self.to_dict()
        if self.num_labels == 2 and self.id2label == {0: "LABEL_0", 1: "LABEL_1"}:
            del everything["id2label"], everything["label2id"]
        return {k: v for k, v in everything.items() if k not in shared or v != _default(shared[k])}

    def to_json_string(self, use_diff: bool = True) -> str:
        """The text of config.json: sorted keys, two spaces of indentation, a newline at the end.

        Raises:
            ConfigError: when an attribute holds what JSON cannot.
        """
        values = self.to_diff_dict() if use_diff else self.to_dict()
        try:
            text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{type(self).__name__} cannot be written as JSON: {error}") from error
        return text

    @classmethod
    def from_dict(
        cls: type[ConfigType], config_dict: Mapping[str, Any], *, return_unused_kwargs: bool = False, **overrides: Any
    ) -> ConfigType | tuple[ConfigType, dict[str, Any]]:
        """Build a configuration from a mapping; keywords override its values.

        Args:
            config_dict: the content of a config.json.
            return_unused_kwargs: give `(config, unused)`, where `unused` holds the overrides that no field declares.
            **overrides: values that replace those of the mapping.

        Raises:
            ConfigError: for impossible values, or when the mapping belongs to another variant.
        """
        if not isinstance(config_dict, Mapping) or not all(isinstance(key, str) for key in config_dict):
            raise ConfigError(f"{cls.__name__}.from_dict: got {config_dict!r}, expected values by name")
        values = {key: value for key, value in config_dict.items() if key not in ("transformers_version", "_num_labels")}
        found = values.pop("model_type", cls.model_type)
        if found != cls.model_type:
            raise ConfigError(f"{cls.__name__} reads model_type {cls.model_type!r}, but this config.json says {found!r}",
                              remedy="Use AutoConfig, or the class of that variant.")
        if "dtype" in values:
            values.setdefault("torch_dtype", values.pop("dtype"))
        known = {item.name for item in fields(cls)} | {"num_labels"}
        unused = {key: overrides.pop(key) for key in list(overrides) if key not in known} if return_unused_kwargs else {}
        if overrides.get("id2label") is not None or overrides.get("num_labels") is not None:
            values = _without_other_labels(values, overrides)
        elif values.get("id2label") is not None:
            values.pop("num_labels", None)
        config = cls(**{**values, **overrides})
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def from_pretrained(
        cls: type[ConfigType], pretrained_model_name_or_path: str | os.PathLike, *, return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> ConfigType | tuple[ConfigType, dict[str, Any]]:
        """Read a configuration from a directory, a config.json, or a repository of the hub.

        Args:
            pretrained_model_name_or_path: a directory, a JSON file, or a hub id such as "google/mobilebert-uncased".
            return_unused_kwargs: see `from_dict`.
            **kwargs: hub options (`revision`, `token`, `cache_dir`, `local_files_only`, `force_download`,
                `subfolder`) and values that override those of the file.

        Raises:
            ConfigError: when the file is no JSON object or holds impossible values.
            CheckpointError: when there is no such file.

        Example:
            >>> from bertkit import YosoConfig
            >>> YosoConfig.from_pretrained("path/to/checkpoint", num_labels=3)  # doctest: +SKIP
        """
        values = read_config_dict(pretrained_model_name_or_path, **pop_hub_options(kwargs))
        return cls.from_dict(values, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write config.json into a directory, which is made when absent; an older file is replaced in one step."""
        from bertkit.core.checkpoint import write_files

        self.validate()
        write_files(save_directory, {CONFIG_NAME: self.to_json_string()})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PretrainedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_diff_dict(), indent=2, ensure_ascii=False, default=repr)}"


def _with_indices(names: Any) -> dict[int, str] | None:
    """Labels by class index in ascending order; None where it is no such mapping."""
    try:
        return dict(sorted((int(index), str(name)) for index, name in names.items()))
    except (TypeError, ValueError, AttributeError, OverflowError):
        return None


def _inverse(names: Any) -> Any:
    """Keys by value; None where it is no such mapping."""
    try:
        return {value: key for key, value in names.items()}
    except (TypeError, AttributeError):
        return None


def _without_other_labels(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The values without the labels that overrides replace; as many labels as before keep their names."""
    names, number = values.get("id2label"), overrides.get("num_labels")
    keeps_names = overrides.get("id2label") is None and isinstance(names, Mapping) and len(names) == number
    replaced = ("num_labels",) if keeps_names else ("num_labels", "id2label", "label2id")
    return {key: value for key, value in values.items() if key not in replaced}


def _default(item: Field) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _json_name(value: Any) -> Any:
    return getattr(value, "__name__", str(value)) if callable(value) else value


HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


def pop_hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the options of the hub out of a call's keywords."""
    if "use_auth_token" in kwargs:
        kwargs.setdefault("token", kwargs.pop("use_auth_token"))
    return {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}


def read_config_dict(name_or_path: str | os.PathLike, **hub: Any) -> dict[str, Any]:
    """The content of a config.json, found in a directory, as a file, or on the hub.

    Raises:
        ConfigError: when the file is no JSON object.
        CheckpointError: when there is no such file.
    """
    from bertkit.core.errors import CheckpointError
    from bertkit.core.hub import resolve_directory

    path = Path(name_or_path)
    if not path.is_file():
        path = resolve_directory(name_or_path, allow_patterns=[CONFIG_NAME], **hub) / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"no {CONFIG_NAME} in {path.parent}", remedy="Give the directory of a checkpoint, which has one.")
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a JSON {type(values).__name__}, expected an object with the model's settings")
    return values
