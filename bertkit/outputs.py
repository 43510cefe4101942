"""Model outputs, known to torch as trees of tensors (export, compilation, data parallelism)."""

from __future__ import annotations

from torch.utils import _pytree

from bertkit.core import outputs as _outputs
from bertkit.core.outputs import *  # noqa: F403
from bertkit.core.outputs import ModelOutput


def _flatten(output: ModelOutput) -> tuple[list, tuple[str, ...]]:
    return list(output.values()), tuple(output)


def _register(cls: type[ModelOutput]) -> None:
    _pytree.register_pytree_node(
        cls,
        _flatten,
        lambda values, names: cls(**dict(zip(names, values, strict=True))),
        serialized_type_name=f"bertkit.{cls.__name__}",
        flatten_with_keys_fn=lambda output: (
            [(_pytree.MappingKey(name), value) for name, value in output.items()], tuple(output)
        ),
    )


for _cls in _outputs.outputs():
    _register(_cls)
