"""The foreign formats by name, and which of them a file or directory is."""

from __future__ import annotations

import os
from pathlib import Path

from bertkit.convert.fairseq import FAIRSEQ
from bertkit.convert.google_mobilebert import GOOGLE_MOBILEBERT, MODEL_GARDEN
from bertkit.convert.megatron import MEGATRON_LM, NGC_MEGATRON
from bertkit.convert.megatron_core import MEGATRON_CORE, MEGATRON_DIST
from bertkit.convert.original import Format, Sample
from bertkit.convert.transformers import TRANSFORMERS, TRANSFORMERS_TF
from bertkit.convert.yoso import MLPEN_YOSO
from bertkit.core.errors import CheckpointError

FORMATS: dict[str, Format] = {format.name: format for format in (
    NGC_MEGATRON, MEGATRON_LM, MEGATRON_CORE, MEGATRON_DIST, GOOGLE_MOBILEBERT, MODEL_GARDEN, FAIRSEQ, MLPEN_YOSO,
    TRANSFORMERS, TRANSFORMERS_TF,
)}

OWN = TRANSFORMERS.name
"""The name for directories of bertkit and transformers: config.json beside their weights."""


def find_format(source: str | os.PathLike, name: str | None = None) -> Format | None:
    """The foreign format of a source; None for a directory of bertkit or transformers, and for a hub id.

    Args:
        source: a file, a directory or a hub id.
        name: the format, where the user has named it; other names are model types, of bertkit's own directories.

    Raises:
        CheckpointError: when the source is of two formats at once.
    """
    if name is not None:
        return FORMATS.get(name) if name != OWN else None
    path = Path(source)
    if not path.exists():
        return None
    sample = Sample(path)
    found = [format.name for format in FORMATS.values() if format.recognise(sample)]
    if len(found) > 1:
        raise CheckpointError(f"{path} is of {len(found)} formats at once: {', '.join(found)}",
                              remedy="Choose one with --from, or give the file or directory of one of them.")
    return FORMATS[found[0]] if found and found != [OWN] else None
