"""Zip archives read in place: nothing is unpacked to disk, and what no honest archive contains is refused."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from itertools import pairwise

from bertkit.core.errors import CheckpointError
from bertkit.core.files.byte_source import LARGEST_RATIO, ByteSource, ByteStream, Inflated, Part

LARGEST_DIRECTORY = 8 * 2**20
LOCAL_HEADER = struct.Struct("<4s2xHH8x2L2H")
ENCRYPTED = 0x1 | 0x40 | 0x2000
DESCRIBED_BEHIND = 0x8
DESCRIPTORS = (struct.Struct("<4sL2L"), struct.Struct("<4sL2Q"))
LONGEST_DESCRIPTOR = DESCRIPTORS[-1].size
SEARCHED = 4096
"""How far the end of a member is searched for that does not tell its size."""

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
        signature, flags, method, *_, name_length, extra_length = LOCAL_HEADER.unpack(header)
        if signature != b"PK\x03\x04" or method != member.method or flags & ENCRYPTED:
            raise CheckpointError(f"{title} is damaged: its header contradicts the archive's directory")
        begin += name_length + extra_length
        if begin + member.packed > member.limit:
            raise CheckpointError(f"{title} is damaged: it reaches into what follows it")
        packed = Part(self.source, begin, begin + member.packed, title)
        if member.method == zipfile.ZIP_STORED:
            return packed
        return Inflated(packed, member.size, member.checksum, title)


class Walk:
    """The members of an archive one after the other from its first byte on, without the directory at its end.

    Understood are members that are not compressed and lie one behind the other, as torch.save writes them. All else is an
    error, which does not mean that the archive is damaged: its directory may know better.

    Args:
        source: the archive.

    Attributes:
        name: name of the present member; at first, of the first one.
        content: its bytes; when its size is not told ahead, all bytes up to the end of the archive.
        is_sized: whether its size is told ahead.

    Raises:
        CheckpointError: when the archive does not begin with such a member.

    Example:
        >>> walk = Walk(FileBytes("pytorch_model.bin"))  # doctest: +SKIP
        >>> walk.name  # doctest: +SKIP
        'archive/data.pkl'
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._enter(0)

    def _enter(self, position: int) -> None:
        begin = position + LOCAL_HEADER.size
        header = self._source.read(position, begin).tobytes()
        signature, flags, method, packed, size, name_length, extra_length = LOCAL_HEADER.unpack(header)
        is_sized = not flags & DESCRIBED_BEHIND
        if signature != b"PK\x03\x04" or method or flags & ENCRYPTED or packed != size or (is_sized and size == 2**32 - 1):
            raise self._unusual(position)
        name = self._source.read(begin, begin + name_length).tobytes().decode("utf-8", "replace")
        begin += name_length + extra_length
        content = Part(self._source, begin, begin + size if is_sized else self._source.size)
        self.name, self.content, self.is_sized, self._begin = name, content, is_sized, begin

    def leave(self, size: int | None = None) -> None:
        """Go on to the next member.

        Args:
            size: how many bytes the present one has; needed unless it is told ahead, or small.

        Raises:
            CheckpointError: when what follows is not the end of so many bytes, or not another such member.
        """
        if self.is_sized:
            self._enter(self._begin + self.content.size)
            return
        if size is None:
            start = self.content.read(0, min(SEARCHED, self.content.size)).tobytes()
            size = next((place for place in range(len(start)) if _descriptor(start[place:], place)), 0)
        end = self._begin + size
        length = _descriptor(self._source.read(end, min(end + LONGEST_DESCRIPTOR, self._source.size)).tobytes(), size)
        if not length:
            raise self._unusual(end)
        self._enter(end + length)

    def _unusual(self, position: int) -> CheckpointError:
        return CheckpointError(f"{self._source.name} is no plain archive at byte {position}")


def _descriptor(content: bytes, size: int) -> int:
    """Length of the descriptor of so many bytes with which the content begins; 0 if there is none."""
    for form in DESCRIPTORS:
        if len(content) >= form.size:
            signature, _, *sizes = form.unpack_from(content)
            if signature == b"PK\x07\x08" and sizes == [size, size]:
                return form.size
    return 0


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
