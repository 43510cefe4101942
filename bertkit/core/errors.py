"""The errors of bertkit: one family, each listing everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Sequence


class BertkitError(ValueError):
    """Base of every error that bertkit raises on purpose.

    Args:
        headline: what failed, in one line.
        problems: every single thing that is wrong, with what was received and what was expected.
        remedy: what the user can do about it.

    Example:
        >>> print(ConfigError("bad configuration", ["hidden_size: got 0, expected a positive integer"]))
        bad configuration
          - hidden_size: got 0, expected a positive integer
    """

    def __init__(self, headline: str, problems: Sequence[str] = (), remedy: str = "") -> None:
        self.headline, self.problems, self.remedy = headline, tuple(problems), remedy
        lines = [headline, *(f"  - {problem}" for problem in problems)]
        super().__init__("\n".join([*lines, remedy] if remedy else lines))

    def __reduce__(self):
        return type(self), (self.headline, self.problems, self.remedy)


class ConfigError(BertkitError):
    """A configuration value is impossible, or config.json cannot be read."""


class CheckpointError(BertkitError):
    """A checkpoint is missing, damaged, hostile, or does not fit the model."""


class InputError(BertkitError):
    """A model was called with inputs that do not fit together or do not fit the configuration."""


class TokenizerError(BertkitError):
    """A tokenizer's files or arguments cannot be used."""


class BackendError(BertkitError):
    """A framework is missing, too old, or set up in a way that cannot work."""
