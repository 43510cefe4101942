"""What a foreign format is made of: how it is recognised, how its files are opened, read as ours, and written.

Reading has two steps. `open` gives the tensors as the files name them, which is what `bertkit inspect` shows. `read` sees
them as one of bertkit's variants, through a table of `bertkit.convert.rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from bertkit.convert.rules import Translation
from bertkit.core.errors import CheckpointError
from bertkit.core.files import pickle_reader
from bertkit.core.spec import Variant
from bertkit.core.tensors import LazyTensor

LARGEST_LISTING = 10_000
"""Files of a directory that are looked at before a format is chosen."""


class Sample:
    """A file or directory whose format is not known yet.

    Args:
        path: where it is.

    Raises:
        CheckpointError: when there is nothing, or far too much.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file() and not path.is_dir():
            what = "is neither a file nor a directory" if path.exists() else "does not exist"
            raise CheckpointError(f"{path} {what}", remedy="Give a file, or a directory.")
        self.path = path

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.path.is_dir()

    @cached_property
    def names(self) -> list[str]:
        """Names of the files, relative to the directory with `/`; of a single file its own name."""
        if not self.is_directory:
            return [self.path.name]
        found = []
        for file in self.path.rglob("*"):
            if file.is_file():
                found.append(file.relative_to(self.path).as_posix())
            if len(found) > LARGEST_LISTING:
                raise CheckpointError(f"{self.path} holds more than {LARGEST_LISTING} files",
                                      remedy="Give the directory of one checkpoint.")
        return sorted(found)

    @cached_property
    def content(self) -> Any:
        """What `torch.save` wrote to the file, tensors unread; None where it is no such file."""
        if self.is_directory or not _may_be_pickled(self.path):
            return None
        return pickle_reader.load(self.path)


def _may_be_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(16)
    return start.startswith((b"PK", pickle_reader.LEGACY_START)) and path.suffix != ".zip"


@dataclass
class Opened:
    """The files of a foreign checkpoint, opened.

    Args:
        path: the file or directory.
        format: the format, in words: "Megatron-LM, checkpoint version 3, 2 x 2 shards".
        files: names of the files that hold tensors.
        tensors: every tensor, by the name that it has there; shards already put together.
        settings: what the files tell about the model, as plain values by their names (args, configuration).
        facts: what else was found and reading needs: versions, numbers of shards, ...
        left_out: reason by name of what is no weight: optimizer, random states, ...
    """

    path: Path
    format: str
    files: list[str]
    tensors: dict[str, LazyTensor]
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass
class Original:
    """A checkpoint seen as one of bertkit's variants.

    Args:
        path: the file or directory.
        format: the format, in words.
        variant: the variant.
        config: its configuration, under which the weights compute what they did.
        translation: the tensors under our names, and what happened to them.
        task: the class that it is of, e.g. "ForPreTraining"; None lets the tensors decide.
        made: reason by our name of tensors that the source has not; they are in `translation.tensors`.
        tokenizer_files: contents by name, of the files that our tokenizers read.
        notes: what a user should know, a sentence each.
    """

    path: Path
    format: str
    variant: Variant
    config: Any
    translation: Translation
    task: str | None = None
    made: dict[str, str] = field(default_factory=dict)
    tokenizer_files: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


Write = Callable[[BinaryIO, Callable[[int], Any]], None]
"""Writes a file; calls its second argument with the number of bytes that were written."""


@dataclass(frozen=True)
class Options:
    """What a user may ask of a conversion, where the format knows it. None or False where nothing was asked.

    Args:
        task: the class of the result.
        config: settings that the source does not hold, in its own names or in ours.
        vocab: a vocabulary file for the tokenizer, where the source has none.
        vocab_size: rows of the vocabulary to keep: padded rows after them are cut off.
        hf_compat: write the configuration that transformers' script writes, also where it differs from the training.
        decoder: which of two different decoders to keep: "tied" (the word embeddings) or "own".
        zero_padding_row: set the row of the padding token to zero.
        tensor_parallel: number of tensor-parallel ranks to write.
        pipeline_parallel: number of pipeline stages to write.
        checkpoint_version: version of the layout to write.
    """

    task: str | None = None
    config: Mapping[str, Any] | None = None
    vocab: Path | None = None
    vocab_size: int | None = None
    hf_compat: bool = False
    decoder: str | None = None
    zero_padding_row: bool = False
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    checkpoint_version: int | None = None

    @classmethod
    def names(cls) -> list[str]:
        """Names of all options."""
        return [item.name for item in fields(cls)]

    @property
    def asked(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        return [item.name for item in fields(self) if getattr(self, item.name) != item.default]


READING = ("task", "config", "vocab", "vocab_size", "hf_compat")
"""Options that reading a foreign format knows."""


@dataclass(frozen=True)
class Format:
    """A foreign format.

    Args:
        name: what `--from` and `--to` call it.
        title: the program that writes it, and what of it.
        model_types: the variants that it can hold.
        recognise: whether a file or directory is of this format; looks at names and structure, not at values.
        open: opens its files.
        read: sees an opened checkpoint as one of our variants.
        write: gives the files to write, by relative path, for a checkpoint in our names, and adds what it does to the
            checkpoint's changes and notes; None where only reading is known.
        reading: options that `read` knows.
        writing: options that `write` knows.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    recognise: Callable[[Sample], bool]
    open: Callable[[Sample], Opened]
    read: Callable[[Opened, Options], Original]
    write: Callable[[Original, Options], dict[str, bytes | Write]] | None = None
    reading: tuple[str, ...] = READING
    writing: tuple[str, ...] = ()
