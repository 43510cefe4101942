"""Several files of a directory replaced in one step: all of them, or none; and whole directories."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from bertkit.core.errors import CheckpointError

REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space or choose another directory.",
    errno.EDQUOT: "Your quota is used up: free some space or choose another directory.",
    errno.EFBIG: "The file system does not take files of that size: choose a smaller max_shard_size.",
    errno.EROFS: "The file system is read-only: choose another directory.",
    errno.EACCES: "You may not write there: choose another directory or change its permissions.",
    errno.EPERM: "You may not write there: choose another directory or change its permissions.",
    errno.EEXIST: "There is a file of that name: choose another directory.",
    errno.ENOTDIR: "A part of the path is a file: choose another directory.",
    errno.EISDIR: "A directory has the name of a file that is to be written: move it away.",
}


class StagedFiles:
    """Files that are written under temporary names and take their places together.

    Everything is written and flushed to the disk before the first file moves, so that a full disk, an exception or
    an interrupt leaves the directory as it was. Moving is a rename per file, in the order of writing; if one fails,
    those before it are taken back. Only a machine that stops between two renames leaves some files moved and others
    not: write the one that makes the others count last.

    Args:
        directory: where the files belong; made when absent.

    Raises:
        CheckpointError: when the directory cannot be written.

    Example:
        >>> with StagedFiles(directory) as files:  # doctest: +SKIP
        ...     files.write("config.json", "{}")
        ...     files.commit()
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._mark = uuid.uuid4().hex
        self._staged: dict[Path, Path] = {}
        self._kept: list[Path] = []
        self._made: list[Path] = []

    def __enter__(self) -> StagedFiles:
        absent = [path for path in (self.directory, *self.directory.parents) if not path.exists()]
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._explained(error) from error
        self._made = absent
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for path in (*self._staged.values(), *self._kept):
            with contextlib.suppress(OSError):
                path.unlink()
        if error is not None:
            for path in self._made:
                with contextlib.suppress(OSError):
                    path.rmdir()
        if isinstance(error, OSError):
            raise self._explained(error) from error

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A new file that will be `name`.

        Raises:
            CheckpointError: when `name` is not the plain name of a file.
        """
        if not is_plain_name(name):
            raise CheckpointError(f"cannot write {name!r}", remedy="Give a file name without directories.")
        temporary = self._temporary(name)
        self._staged[self.directory / name] = temporary
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def write(self, name: str, content: str | bytes) -> None:
        """Stage a whole file; text is written as UTF-8."""
        with self.open(name) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    def commit(self, retire: Iterable[str] = ()) -> list[Path]:
        """Move all files to their places, in the order of writing, then remove those named in `retire`, in order."""
        undo: list[tuple[Path, Path | None]] = []
        try:
            for target, temporary in self._staged.items():
                undo.append((target, self._keep(target)))
                os.replace(temporary, target)
            for target in (self.directory / name for name in retire):
                if os.path.lexists(target):
                    away = self._temporary(target.name)
                    self._kept.append(away)
                    undo.append((target, away))
                    os.replace(target, away)
        except BaseException:
            for target, kept in reversed(undo):
                with contextlib.suppress(OSError):
                    os.replace(kept, target) if kept else target.unlink()
            raise
        _flush(self.directory)  # renames survive a power cut once the directory is on the disk
        return list(self._staged)

    def _keep(self, target: Path) -> Path | None:
        """A second name for the present file, from which it can be restored; None when there is no present file."""
        if not os.path.lexists(target):
            return None
        kept = self._temporary(target.name)
        self._kept.append(kept)
        # A file system without hard links only loses the way back from a rename that fails after another one.
        with contextlib.suppress(OSError):
            os.link(target, kept, follow_symlinks=False)
        return kept

    def _temporary(self, name: str) -> Path:
        return self.directory / f".{name}.{self._mark}.{len(self._staged) + len(self._kept)}.tmp"

    def _explained(self, error: OSError) -> CheckpointError:
        return _cannot_write(self.directory, error)


def write_files(directory: str | os.PathLike[str], files: Mapping[str, str | bytes]) -> list[Path]:
    """Write files of a directory whole or not at all.

    Args:
        directory: made when absent.
        files: contents by name; text is written as UTF-8.

    Raises:
        CheckpointError: when they cannot be written.
    """
    with StagedFiles(directory) as staged:
        for name, content in files.items():
            staged.write(name, content)
        return staged.commit()


@contextlib.contextmanager
def staged_directory(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A new directory that takes the place of `target`, with all that it holds, when the block ends without an error.

    Args:
        target: where it belongs; what is there before is removed at the end. Whether it may be is up to the caller.

    Raises:
        CheckpointError: when it cannot be written; the target is then what it was.

    Example:
        >>> with staged_directory("dir") as made:  # doctest: +SKIP
        ...     (made / "weights.bin").write_bytes(b"")
    """
    target = Path(os.path.abspath(target))
    mark = uuid.uuid4().hex
    made, away = (target.parent / f".{target.name}.{mark}.{what}" for what in ("tmp", "old"))
    absent = [path for path in target.parents if not path.exists()]
    try:
        made.mkdir(parents=True)
        yield made
        for item in (made, *made.rglob("*")):
            _flush(item)
        if os.path.lexists(target):
            os.replace(target, away)
        try:
            os.replace(made, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.replace(away, target)
            raise
        _flush(target.parent)
    except BaseException as error:
        shutil.rmtree(made, ignore_errors=True)
        for path in absent:
            with contextlib.suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            raise _cannot_write(target, error) from error
        raise
    shutil.rmtree(away, ignore_errors=True)


def start_flushing(file: BinaryIO, begin: int, size: int) -> None:
    """Let the system bring a part of a file to the disk while the next one is made, so that the end is soon done.

    Args:
        file: the file; a system that cannot do that, or a file that is none of the system's, is left alone.
        begin, size: the part, in bytes.
    """
    with contextlib.suppress(OSError, AttributeError):
        os.posix_fadvise(file.fileno(), begin, size, os.POSIX_FADV_DONTNEED)


def _flush(path: Path) -> None:
    """Bring a file or directory to the disk, where the system lets one say so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_write(directory: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot write {directory}: {error.strerror or error}; what was there before is unchanged",
        remedy=REMEDIES.get(error.errno or 0, ""),
    )


def is_plain_name(name: object) -> bool:
    """Whether this is the name of a file of the directory itself, on every operating system."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\:\0")
