"""The foreign formats by name."""

from __future__ import annotations

from bertkit.convert.original import Format

FORMATS: dict[str, Format] = {format.name: format for format in ()}
