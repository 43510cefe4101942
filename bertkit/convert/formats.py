"""The formats by name, and which of them a file or directory is."""

from __future__ import annotations

from pathlib import Path

from bertkit.convert.fairseq import FAIRSEQ
from bertkit.convert.google_mobilebert import GOOGLE_MOBILEBERT, MODEL_GARDEN
from bertkit.convert.megatron import MEGATRON_LM, NGC_MEGATRON
from bertkit.convert.megatron_core import MEGATRON_CORE, MEGATRON_DIST
from bertkit.convert.original import Format, Sample
from bertkit.convert.source import has_weights
from bertkit.convert.transformers import TRANSFORMERS, TRANSFORMERS_TF
from bertkit.convert.yoso import MLPEN_YOSO
from bertkit.core.errors import CheckpointError

FORMATS: dict[str, Format] = {format.name: format for format in (
    NGC_MEGATRON, MEGATRON_LM, MEGATRON_CORE, MEGATRON_DIST, GOOGLE_MOBILEBERT, MODEL_GARDEN, FAIRSEQ, MLPEN_YOSO,
    TRANSFORMERS, TRANSFORMERS_TF,
)}


def find_format(path: Path, name: str | None = None) -> Format | None:
    """The format of a file or directory, or None where it is of none of them.

    Args:
        path: the file or directory.
        name: the format or model type, where the user has named it; directories with model types are those of transformers.

    Raises:
        CheckpointError: when it is of two formats at once, or damaged.
    """
    if name is not None:
        return FORMATS.get(name, TRANSFORMERS if has_weights(path) else None)
    sample, found, damage = Sample(path), [], None
    for format in FORMATS.values():
        try:
            found += [format] if format.recognise(sample) else []
        except CheckpointError as error:  # tells more than that nobody knows the file
            damage = damage or error
    if damage is not None and not found:
        raise damage
    if len(found) > 1:
        raise CheckpointError(f"{path} is of {len(found)} formats at once: {', '.join(format.name for format in found)}",
                              remedy="Choose one with --from, or give the file or directory of one of them.")
    return found[0] if found else None
