"""Byte sources and archives: the right bytes in any order, bounded memory, and refusal of what is damaged or hostile."""

import io
import os
import struct
import threading
import zipfile
import zlib

import numpy as np
import pytest

from bertkit.core.errors import CheckpointError
from bertkit.core.files import byte_source
from bertkit.core.files.archive import Archive
from bertkit.core.files.byte_source import ByteStream, FileBytes, Inflated, Part, as_source
from tests.core.sources import InMemory

RANDOM = np.random.default_rng(0)


def deflate(content, level=6):
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


@pytest.fixture
def small_blocks(monkeypatch):
    for name, value in (("BLOCK", 1000), ("INPUT", 100), ("STATE_DISTANCE", 3000), ("WINDOW", 2**16)):
        monkeypatch.setattr(byte_source, name, value)


CONTENT = RANDOM.integers(0, 50, 70_001, np.uint8).tobytes()


def make(kind, tmp_path):
    if kind == "inflated":
        return Inflated(InMemory(deflate(CONTENT)), len(CONTENT), zlib.crc32(CONTENT))
    path = tmp_path / "x"
    path.write_bytes(CONTENT if kind == "file" else b"before" + CONTENT + b"after")
    return FileBytes(path) if kind == "file" else Part(FileBytes(path), 6, 6 + len(CONTENT))


# -- sources ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["file", "part", "inflated"])
def test_any_range_in_any_order(tmp_path, small_blocks, kind):
    source = make(kind, tmp_path)
    for _ in range(200):
        begin, end = sorted(RANDOM.integers(0, len(CONTENT) + 1, 2))
        values = source.read(int(begin), int(end))
        assert values.dtype == np.uint8 and values.flags.writeable and values.tobytes() == CONTENT[begin:end]


@pytest.mark.parametrize("kind", ["file", "part", "inflated"])
@pytest.mark.parametrize("begin, end", [(-1, 3), (3, 2), (0, 70_002), (70_002, 70_002)])
def test_ranges_that_do_not_exist(tmp_path, kind, begin, end):
    with pytest.raises(CheckpointError, match="bytes"):
        make(kind, tmp_path).read(begin, end)


def test_part_beyond_its_source():
    with pytest.raises(CheckpointError, match="lies at bytes"):
        Part(InMemory(b"abc"), 1, 4)


def test_arrays_outlive_their_file_and_never_change_it(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(CONTENT)
    source = FileBytes(path)
    first = source.read(0, 1000)
    (tmp_path / "new").write_bytes(b"\1" * len(CONTENT))
    os.replace(tmp_path / "new", path)
    assert source.read(1000, 2000).tobytes() == CONTENT[1000:2000]
    first[:] = 7
    del source
    assert first.tobytes() == b"\7" * 1000 and path.read_bytes() == b"\1" * len(CONTENT)


def test_file_without_maps(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no maps here")

    source = make("file", tmp_path)
    monkeypatch.setattr(byte_source.mmap, "mmap", refuse)
    assert source.read(10, 60_000).tobytes() == CONTENT[10:60_000]


@pytest.mark.parametrize("mapped", [True, False])
def test_file_that_is_cut_off_while_it_is_read(tmp_path, monkeypatch, mapped):
    source = make("file", tmp_path)
    if not mapped:
        monkeypatch.setattr(source, "_map", lambda *_: (_ for _ in ()).throw(OSError("no maps here")))
    os.truncate(tmp_path / "x", 1000)
    assert source.read(0, 900).tobytes() == CONTENT[:900]
    with pytest.raises(CheckpointError, match="became shorter"):
        source.read(0, 2000)


def test_maps_do_not_pile_up(tmp_path, small_blocks):
    """Each map costs a file descriptor: arrays share them, and those of a large file are larger."""
    path = tmp_path / "x"
    path.write_bytes(bytes(2**16) * 200)
    source = FileBytes(path)
    arrays = [source.read(begin, begin + 64) for begin in range(0, source.size, 2**12)]
    assert len(arrays) == 3200 and len(source._maps) <= byte_source.MOST_WINDOWS


def test_files_that_cannot_be_opened(tmp_path):
    for path in (tmp_path / "absent", tmp_path, "with\0null"):
        with pytest.raises(CheckpointError, match="cannot read"):
            as_source(path)


def test_reading_in_order_unpacks_once(small_blocks):
    packed = InMemory(deflate(CONTENT))
    source = Inflated(packed, len(CONTENT), zlib.crc32(CONTENT))
    for begin in range(0, len(CONTENT), 777):
        source.read(begin, min(begin + 777, len(CONTENT)))
    assert packed.read_bytes <= packed.size * 2  # the rest of each piece of input is given to zlib again


def test_going_back_starts_from_a_state(small_blocks):
    packed = InMemory(deflate(CONTENT))
    source = Inflated(packed, len(CONTENT))
    source.read(len(CONTENT) - 10, len(CONTENT))
    packed.reads.clear()
    source.read(40_000, 40_010)
    assert packed.read_bytes < packed.size / 10
    assert len(source._states) <= byte_source.MOST_STATES + 1


def test_threads_share_a_stream(small_blocks):
    source = Inflated(InMemory(deflate(CONTENT)), len(CONTENT))
    wrong = []

    def work(seed):
        for begin in np.random.default_rng(seed).integers(0, 60_000, 50).tolist():
            wrong.extend([begin] * (source.read(begin, begin + 5000).tobytes() != CONTENT[begin : begin + 5000]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def read_all(source):
    return source.read(0, source.size).tobytes()


@pytest.mark.parametrize(
    "content, size, checksum, message",
    [
        (deflate(CONTENT), len(CONTENT) - 1, None, "more than"),
        (deflate(CONTENT), len(CONTENT) - 1000, None, "more than"),
        (deflate(CONTENT), len(CONTENT) + 1, None, "unpacks to 70001 bytes"),
        (deflate(CONTENT)[:-100], len(CONTENT), None, "unpacks to"),
        (deflate(CONTENT) + b"x", len(CONTENT), None, "ends at byte"),
        (deflate(CONTENT), len(CONTENT), 1, "checksum"),
        (b"\xff" * 1000, 1000, None, "damaged"),
        (b"", 0, None, "ends at byte"),
    ],
)
def test_damaged_streams(content, size, checksum, message):
    if not content:
        assert read_all(Inflated(InMemory(content), 0)) == b""
        return
    with pytest.raises(CheckpointError, match=message):
        read_all(Inflated(InMemory(content), size, checksum))


def test_bombs():
    with pytest.raises(CheckpointError, match="zip bomb"):
        Inflated(InMemory(deflate(bytes(10**6))), 10**9)
    source = Inflated(InMemory(deflate(bytes(10**7))), 10**6)  # holds more than it claims: it is never unpacked further
    with pytest.raises(CheckpointError, match="more than"):
        read_all(source)


def test_an_error_is_given_again(small_blocks):
    packed = bytearray(deflate(CONTENT))
    packed[len(packed) // 2] ^= 0xFF
    source = Inflated(InMemory(bytes(packed)), len(CONTENT), zlib.crc32(CONTENT))
    for _ in range(2):
        with pytest.raises(CheckpointError):
            read_all(source)
    assert source.read(0, 500).tobytes() == CONTENT[:500]


def test_source_as_a_file():
    stream = io.BufferedReader(ByteStream(InMemory(b"one\ntwo\n"), 4))
    assert stream.read() == b"two\n" and stream.seek(-8, 2) == 0 and stream.readline() == b"one\n"
    with pytest.raises(ValueError):
        ByteStream(InMemory(b"")).seek(-1)


# -- archives -----------------------------------------------------------------------------------------------------------
def zipped(members, method=zipfile.ZIP_DEFLATED):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name) if name.endswith("/") else name, content)
    return memory.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members(method):
    members = {"a/b.pt": CONTENT, "empty": b"", "é.txt": b"text"}
    archive = Archive(InMemory(zipped([("a/", b""), *members.items()], method)))
    assert list(archive.members) == list(members)
    assert {name: read_all(archive.open(name)) for name in members} == members
    assert archive.open("a/b.pt").name == "memory!a/b.pt"
    with pytest.raises(CheckpointError, match="no member"):
        archive.open("a/")


def test_archive_in_an_archive(small_blocks):
    inner = zipped([("x", CONTENT)], zipfile.ZIP_STORED)
    outer = Archive(InMemory(zipped([("inner.zip", inner)])))
    source = Archive(outer.open("inner.zip")).open("x")
    assert source.in_order and source.name == "memory!inner.zip!x" and read_all(source) == CONTENT


def test_large_archive_form():
    """The 64-bit form, whose sizes stand elsewhere."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive, archive.open("x", "w", force_zip64=True) as member:
        member.write(CONTENT)
    assert read_all(Archive(InMemory(memory.getvalue())).open("x")) == CONTENT


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\\b", "C:/x", "c:x", "..", "a\0b"])
def test_names_that_lead_out(name):
    content = zipped([("_" * len(name.encode()), b"1")]).replace(b"_" * len(name.encode()), name.encode())
    with pytest.raises(CheckpointError, match=r"leads out|is no name"):
        Archive(InMemory(content))


def entry_at(content):
    return content.index(b"PK\x01\x02")


def patched(content, place, form, *values):
    changed = bytearray(content)
    struct.pack_into(form, changed, place, *values)
    return bytes(changed)


GOOD = zipped([("one", CONTENT), ("two", b"2" * 100)])
STORED = zipped([("one", b"1" * 200), ("two", b"2" * 100)], zipfile.ZIP_STORED)
HOSTILE_ARCHIVES = {
    "encrypted": (patched(GOOD, entry_at(GOOD) + 8, "<H", 1), "encrypted"),
    "deflate64": (patched(GOOD, entry_at(GOOD) + 10, "<H", 9), "deflate64"),
    "bzip2": (patched(GOOD, entry_at(GOOD) + 10, "<H", 12), "bzip2"),
    "lzma": (patched(GOOD, entry_at(GOOD) + 10, "<H", 14), "lzma"),
    "unknown method": (patched(GOOD, entry_at(GOOD) + 10, "<H", 77), "method 77"),
    "claims gigabytes": (patched(GOOD, entry_at(GOOD) + 24, "<I", 2**32 - 2), "zip bomb"),
    "packed beyond the next": (patched(GOOD, entry_at(GOOD) + 20, "<I", 10**8), "overlaps"),
    "stored with two sizes": (patched(STORED, entry_at(STORED) + 24, "<I", 300), "claims 300"),
    "twice": (STORED.replace(b"two", b"one"), "appears twice"),
    "overlap": (patched(STORED, entry_at(STORED) + 46 + 3 + 42, "<I", 10), "overlaps"),
    "same place": (patched(STORED, entry_at(STORED) + 46 + 3 + 42, "<I", 0), "overlaps"),
    "header beyond the end": (patched(STORED, entry_at(STORED) + 46 + 3 + 42, "<I", 10**6), "overlaps|damaged"),
    "no directory": (GOOD[: entry_at(GOOD)], "damaged"),
    "cut off": (GOOD[:-10], "damaged"),
    "nothing": (b"", "damaged"),
    "directory of gigabytes": (patched(GOOD, len(GOOD) - 22 + 12, "<I", 2**32 - 2), "damaged|directory"),
    "local header of another kind": (patched(GOOD, 0, "<4s", b"PK\x05\x06"), "contradicts"),
    "local header of another method": (patched(GOOD, 8, "<H", 0), "contradicts"),
    "local header reaching further": (patched(STORED, 28, "<H", 60_000), "reaches into"),
}


@pytest.mark.parametrize("content, message", HOSTILE_ARCHIVES.values(), ids=HOSTILE_ARCHIVES)
def test_hostile_archives(content, message):
    with pytest.raises(CheckpointError, match=message):
        archive = Archive(InMemory(content))
        [read_all(archive.open(name)) for name in archive.members]


def test_large_directory_is_refused(monkeypatch):
    monkeypatch.setattr("bertkit.core.files.archive.LARGEST_DIRECTORY", 80)
    with pytest.raises(CheckpointError, match="directory claims"):
        Archive(InMemory(GOOD))


@pytest.mark.parametrize("content", [GOOD, STORED], ids=["deflated", "stored"])
def test_changed_archives_never_escape(content):
    """Bytes of the archive's structure are changed one at a time: our error, or content, and never anything else."""
    places = [*range(40), *range(entry_at(content), len(content))]
    for place in places:
        for value in (0, 0xFF, content[place] ^ 1, content[place] ^ 0x80):
            changed = bytearray(content)
            changed[place] = value
            try:
                archive = Archive(InMemory(bytes(changed)))
                found = {name: read_all(archive.open(name)) for name in archive.members}
            except CheckpointError:
                continue
            assert all(isinstance(member, bytes) for member in found.values())
