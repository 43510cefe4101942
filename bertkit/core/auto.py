"""The configuration class of a checkpoint, found by its `model_type`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from bertkit.core.config import PretrainedConfig, pop_hub_options, read_config_dict
from bertkit.core.errors import BertkitError, ConfigError
from bertkit.core.spec import Variant
from bertkit.core.variants import VARIANTS, find_variant


class AutoConfig:
    """Makes the configuration of the variant that config.json names.

    Example:
        >>> AutoConfig.for_model("yoso", num_hash=8).num_hash
        8
    """

    @staticmethod
    def for_model(model_type: str, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """A new configuration of a variant."""
        return find_variant(model_type).config(*args, **kwargs)

    @staticmethod
    def from_dict(values: Mapping[str, Any], **kwargs: Any) -> Any:
        """The configuration that a config.json's content describes; see `PretrainedConfig.from_dict`."""
        return find_variant(values.get("model_type")).config.from_dict(values, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Read a configuration; see `PretrainedConfig.from_pretrained`.

        Raises:
            ConfigError: when the checkpoint is of none of the four variants.
        """
        values = read_config_dict(pretrained_model_name_or_path, **pop_hub_options(kwargs))
        return cls.from_dict(values, **kwargs)


class AutoClass:
    """Template of the classes that choose a model class by the configuration's `model_type`.

    Subclasses name their task and where the model classes are found.
    """

    task: str
    prefix: str = ""

    def __init__(self) -> None:
        raise BertkitError(f"{type(self).__name__} is not made itself; use from_pretrained(...) or from_config(...)")

    @classmethod
    def _find(cls, name: str) -> type:
        raise NotImplementedError

    @classmethod
    def model_class(cls, config: PretrainedConfig) -> Any:
        """The class for a configuration.

        Raises:
            ConfigError: when the variant has no class for this task, naming those that it has.
        """
        variant = find_variant(config.model_type)
        if cls.task not in variant.tasks:
            raise ConfigError(f"{variant.name} has no class for {cls.task}", remedy=f"It has: {_names(variant, cls.prefix)}.")
        return cls._find(cls.prefix + variant.name + cls.task)

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:
        """A model with initial weights."""
        return cls.model_class(config)(config, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *model_args: Any, **kwargs: Any) -> Any:
        """Load a model; arguments as for the model class's own `from_pretrained`."""
        config = kwargs.pop("config", None)
        if not isinstance(config, PretrainedConfig):
            hub = pop_hub_options(kwargs)
            values = read_config_dict(config or pretrained_model_name_or_path, **hub)
            config = AutoConfig.from_dict(values)
            kwargs = {**hub, **kwargs}
        return cls.model_class(config).from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)


def _names(variant: Variant, prefix: str) -> str:
    return ", ".join(prefix + name for name in variant.class_names())


def task_suffixes() -> tuple[str, ...]:
    """Every task that some variant has, in a fixed order."""
    return tuple(dict.fromkeys(task for variant in VARIANTS.values() for task in variant.tasks))
