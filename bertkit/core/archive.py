"""Zip archives read in place: nothing is unpacked to disk, and what no honest archive contains is refused."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from itertools import pairwise

from bertkit.core.byte_source import LARGEST_RATIO, ByteSource, ByteStream, Inflated, Part
from bertkit.core.errors import CheckpointError

LARGEST_DIRECTORY = 8 * 2**20
LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")
ENCRYPTED = 0x1 | 0x40 | 0x2000
METHODS = {0: "stored", 8: "deflate", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz", 98: "ppmd", 99: "AES"}
READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Member:
    """A file in an archive, as the archive's directory describes it.

    Args:
        name: its name with the folders, separated by "/".
        size: bytes when unpacked.
        packed: bytes in the archive.
        method: 0 for stored, 8 for deflate.
        checksum: CRC-32 of the unpacked bytes.
        header: where its own header begins in the archive.
        limit: where the next member, or the directory, begins.
    """

    name: str
    size: int
    packed: int
    method: int
    checksum: int
    header: int
    limit: int


class _Bounded(ByteStream):
    """Refuses to read at once what only a hostile archive needs."""

    def read(self, size: int = -1) -> bytes:
        if size is None or size < 0:
            size = max(self._source.size - self._position, 0)
        if size > LARGEST_DIRECTORY:
            raise CheckpointError(f"{self._source.name} is refused: its directory claims {size} bytes")
        return super().read(size) or b""


class Archive:
    """The files in a zip archive, each as a source of bytes.

    Args:
        source: the archive.

    Raises:
        CheckpointError: when it is damaged, or when a member is encrypted, compressed in a way that is not read, named like
            another or like a path outside, larger than possible, or overlaps another.

    Example:
        >>> archive = Archive(FileBytes("megatron_bert_345m_v0_1_uncased.zip"))  # doctest: +SKIP
        >>> archive.open("release/mp_rank_00/model_optim_rng.pt").size  # doctest: +SKIP
        671147384
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        entries, end = _directory(source)
        problems = _problems(entries, end)
        if problems:
            raise CheckpointError(
                f"{source.name} is refused: its members are damaged or hostile", problems[:20], "Fetch it again."
            )
        starts = [*sorted(entry.header_offset for entry in entries), end]
        limits = dict(pairwise(starts))
        self.members = {
            entry.filename: Member(
                entry.filename, entry.file_size, entry.compress_size, entry.compress_type, entry.CRC, entry.header_offset,
                limits[entry.header_offset],
            )
            for entry in entries
            if not entry.filename.endswith("/")
        }
        """The files by name, in the order of the archive's directory."""

    def open(self, name: str) -> ByteSource:
        """The bytes of a member, unpacked as they are read.

        Raises:
            CheckpointError: when there is no such member, or when its own header contradicts the directory.
        """
        if name not in self.members:
            raise CheckpointError(f"{self.source.name} has no member {name!r}")
        member = self.members[name]
        title = f"{self.source.name}!{name}"
        begin = member.header + LOCAL_HEADER.size
        if begin > self.source.size:
            raise CheckpointError(f"{title} is damaged: its header lies beyond the end of the archive")
        header = self.source.read(member.header, begin).tobytes()
        signature, flags, method, name_length, extra_length = LOCAL_HEADER.unpack(header)
        if signature != b"PK\x03\x04" or method != member.method or flags & ENCRYPTED:
            raise CheckpointError(f"{title} is damaged: its header contradicts the archive's directory")
        begin += name_length + extra_length
        if begin + member.packed > member.limit:
            raise CheckpointError(f"{title} is damaged: it reaches into what follows it")
        packed = Part(self.source, begin, begin + member.packed, title)
        if member.method == zipfile.ZIP_STORED:
            return packed
        return Inflated(packed, member.size, member.checksum, title)


def _directory(source: ByteSource) -> tuple[list[zipfile.ZipInfo], int]:
    """The entries of an archive's directory, and where it begins."""
    try:
        with zipfile.ZipFile(_Bounded(source)) as archive:
            return archive.infolist(), archive.start_dir
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, struct.error, EOFError, zlib.error) as error:
        raise CheckpointError(
            f"{source.name} is damaged: {error} (is it complete?)", remedy="Fetch or save the file again."
        ) from error


def _problems(entries: list[zipfile.ZipInfo], end: int) -> list[str]:
    problems = []
    names: set[str] = set()
    for entry in entries:
        problem = _problem_of_name(entry.orig_filename) or _problem_of_content(entry)
        if entry.filename in names:
            problem = "appears twice"
        names.add(entry.filename)
        if problem:
            problems.append(f"{entry.orig_filename[:200]!r}: {problem}")
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    limits = [*(entry.header_offset for entry in ordered), end][1:]
    for entry, limit in zip(ordered, limits, strict=True):
        least = LOCAL_HEADER.size + entry.compress_size
        if entry.header_offset < 0 or entry.header_offset + least > limit:
            problems.append(f"{entry.orig_filename[:200]!r}: overlaps what follows it, at byte {limit}")
    return problems


def _problem_of_name(name: str) -> str:
    if not name or "\0" in name:
        return "is no name"
    if "\\" in name or name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        return "leads out of the archive"
    return ""


def _problem_of_content(entry: zipfile.ZipInfo) -> str:
    if entry.flag_bits & ENCRYPTED:
        return "is encrypted"
    if entry.compress_type not in READABLE:
        method = METHODS.get(entry.compress_type, f"method {entry.compress_type}")
        return f"is compressed with {method}, which is not read; pack it anew as an ordinary zip (deflate)"
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
        return f"has {entry.compress_size} bytes and claims {entry.file_size}"
    if entry.file_size > LARGEST_RATIO * entry.compress_size:
        return f"is refused as a zip bomb: {entry.compress_size} bytes claim to hold {entry.file_size}"
    if entry.filename.endswith("/") and entry.file_size:
        return "is a folder with content"
    return ""
