"""Conversion of checkpoints: between dtypes, shards and file formats, and from other models to bertkit's.

Neutral: neither PyTorch nor TensorFlow is needed, and at most a few tensors are in memory at a time.
"""

from __future__ import annotations

from bertkit.convert.api import Report, convert

__all__ = ["Report", "convert"]
