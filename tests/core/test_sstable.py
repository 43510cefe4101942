"""LevelDB's tables and the wire format of protocol buffers: whole ones there and back, and hostile ones refused in time."""

import numpy as np
import pytest

from bertkit.core.errors import CheckpointError
from bertkit.core.files import sstable
from bertkit.core.files.crc32c import crc32c, masked
from bertkit.core.files.protobuf import BYTES, FIXED32, FIXED64, VARINT, field, parse, read_varint, varint
from bertkit.core.files.sstable import FOOTER_SIZE, MAGIC, PLAIN, SNAPPY, read_table, table_of, unsnappy
from bertkit.core.files.tf_checkpoint import open_tf_checkpoint, write_tf_checkpoint


def block(*entries, restarts=(0,)):
    """A block of (bytes shared with the key before, rest of the key, value)."""
    parts = [varint(shared) + varint(len(rest)) + varint(len(value)) + rest + value for shared, rest, value in entries]
    return b"".join([*parts, *(number.to_bytes(4, "little") for number in (*restarts, len(restarts)))])


def table(*blocks, kind=PLAIN, handles=None):
    """A table of blocks as they are; their places can be other ones."""
    content, places = b"", []
    for piece in blocks:
        places.append(varint(len(content)) + varint(len(piece)))
        content += sealed(piece, kind)
    index = block(*((0, b"z%d" % number, place) for number, place in enumerate(handles or places)))
    footer = varint(0) * 2 + varint(len(content)) + varint(len(index))
    return content + sealed(index, PLAIN) + footer.ljust(FOOTER_SIZE - 8, b"\0") + MAGIC


def sealed(piece, kind):
    piece += bytes([kind])
    return piece + masked(crc32c(piece)).to_bytes(4, "little")


def snappy(content):
    """Compressed, not well: a run of one byte is a copy of what came just before; everything else stays as it is."""
    packed, place = varint(len(content)), 0
    while place < len(content):
        run = 1
        while content[place : place + 1] == content[place + run : place + run + 1] and run < 60:
            run += 1
        packed += b"\x00" + content[place : place + 1]
        if run > 1:
            packed += bytes([(run - 2) << 2 | 2, 1, 0])
        place += run
    return packed


# -- whole ones ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 200, 20_000])
def test_there_and_back(size):
    entries = {b"\xff" * (index % 7) + b"%06d" % index: b"v" * (index % 50) for index in range(size)}
    entries = dict(sorted(entries.items()))
    assert list(read_table(table_of(entries.items())).items()) == list(entries.items())


def test_keys_are_shared():
    entries = {b"same/" * 100 + b"%d" % index: b"" for index in range(10, 42)}
    assert len(table_of(entries.items())) < 2 * 500 + 32 * 6 + 120  # two keys are whole: one in 16


@pytest.mark.parametrize(
    "packed, content",
    [
        (b"\0", b""),
        (b"\x05\x10hello", b"hello"),
        (b"\x46\xf0\x45" + b"x" * 70, b"x" * 70),
        (b"\x46\xf4\x45\0" + b"x" * 70, b"x" * 70),
        (b"\x0a\x04ab\x11\x02", b"ab" * 5),  # one byte of distance
        (b"\x0a\x04ab\x1e\x02\0", b"ab" * 5),  # two
        (b"\x0a\x04ab\x1f\x02\0\0\0", b"ab" * 5),  # four
        (snappy(b"aaaabbbbbbbbbc" * 50), b"aaaabbbbbbbbbc" * 50),
    ],
)
def test_snappy(packed, content):
    assert unsnappy(packed, len(content)) == content


def test_compressed_checkpoint(tmp_path):
    """TensorFlow writes none, but it reads them, and reads the same."""
    tensors = {f"a/{'x' * 40}/{index}": np.float32([index]) for index in range(9)}
    write_tf_checkpoint(tmp_path / "x", tensors)
    entries = read_table((tmp_path / "x.index").read_bytes())
    whole = block(*((0, key, value) for key, value in entries.items()))
    compressed = table(snappy(whole), kind=SNAPPY)
    assert len(compressed) < len(whole)
    (tmp_path / "x.index").write_bytes(compressed)
    checkpoint = open_tf_checkpoint(tmp_path / "x")
    assert {name: tensor().tolist() for name, tensor in checkpoint.tensors.items()} == {
        name: value.tolist() for name, value in tensors.items()
    }
    tf = pytest.importorskip("tensorflow", exc_type=ImportError)
    reader = tf.train.load_checkpoint(str(tmp_path / "x"))
    assert {name: reader.get_tensor(name) for name in tensors} == tensors


# -- damaged and hostile ones -------------------------------------------------------------------------------------------
ONE = block((0, b"k", b"v"))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "0 bytes do not end like a table"),
        (table(ONE)[:-1], "do not end like a table"),
        (table(ONE)[1:], "a block has bytes|checksum"),
        (table(ONE, kind=7), "unknown compression 7"),
        (table(ONE, handles=[varint(0) + varint(2**63)]), "a block has bytes 0 to 9223372036854775808"),
        (table(ONE, handles=[varint(2**64 - 1) + varint(1)]), "a block has bytes"),
        (table(ONE, handles=[b"\xff" * 10]), "the number at byte 0 does not end"),
        (table(ONE, handles=[b""]), "the number at byte 0 does not end"),
        (table(ONE, ONE, handles=[varint(0) + varint(len(ONE))] * 2), "begins at byte 0, before the end of another"),
        (table(ONE, ONE), "twice or out of order"),
        (table(block((0, b"b", b""), (0, b"a", b""))), "twice or out of order"),
        (table(block((0, b"b", b""), (2, b"a", b""))), "reaches out of it"),
        (table(block((0, b"b", b""))[:-4] + (2**31).to_bytes(4, "little")), "should end with 2147483648 restarts"),
        (table(b"\0" * 3), "has 3 bytes"),
        (table(varint(0) + varint(2**40) + varint(0) + ONE), "reaches out of it"),
        (table(b"\x80" * 20 + ONE), "does not end"),
        (table(varint(2**30), kind=SNAPPY), "unpacks to 1073741824 bytes"),
        (table(b"\x08\x11\x02", kind=SNAPPY), "before its beginning"),
        (table(b"\x08\x10hello", kind=SNAPPY), "unpacks to 5 bytes, expected 8"),
        (table(b"\x08\x10he", kind=SNAPPY), "unpacks to 2 bytes, expected 8"),
        (table(b"\x03\x10hello", kind=SNAPPY), "unpacks to 5 bytes, expected 3"),
    ],
)
def test_hostile_tables(content, message):
    with pytest.raises(CheckpointError, match=message):
        read_table(content)


def test_keys_that_unpack_to_far_more(monkeypatch):
    """Each key shares all of the one before: a file of a few kilobytes would become megabytes."""
    monkeypatch.setattr(sstable, "LARGEST_TABLE", 1 << 16)
    entries = [(0, b"k" * 1000, b""), *((1000 + index, b"k", b"") for index in range(1000))]
    content = table(block(*entries))
    assert len(content) < 8000
    with pytest.raises(CheckpointError, match="it unpacks to more than 131072 bytes"):
        read_table(content)


def test_blocks_that_unpack_to_far_more(monkeypatch):
    run = varint(10_000) + b"\0\0" + b"\xfe\x01\0" * 156 + bytes([14 << 2 | 2, 1, 0])
    assert unsnappy(run, 10_000) == bytes(10_000)
    monkeypatch.setattr(sstable, "LARGEST_TABLE", 9_000)
    with pytest.raises(CheckpointError, match="unpacks to 10000 bytes, expected at most 9000"):
        read_table(table(run, kind=SNAPPY))
    with pytest.raises(CheckpointError, match="it has 20000 bytes, expected at most 9000"):
        read_table(bytes(20_000))


# -- messages -----------------------------------------------------------------------------------------------------------
def test_messages():
    fields = [(1, VARINT, 2**64 - 1), (2, FIXED32, 7), (3, FIXED64, 2**63), (4, BYTES, b""), (1, VARINT, 5)]
    message = b"".join(field(*each) for each in fields)
    found = parse(message, {1: VARINT, 2: FIXED32, 3: FIXED64, 4: BYTES, 9: BYTES})
    assert found == {1: [-1, 5], 2: [7], 3: [2**63], 4: [b""], 9: []}
    assert parse(message, {}) == {} and field(1, VARINT, 0) == b""


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, 2**32, 2**64 - 1])
def test_varints(value):
    coded = varint(value)
    assert read_varint(b"x" + coded + b"y", 1) == (value, 1 + len(coded))
    with pytest.raises(CheckpointError):
        read_varint(coded[:-1], 0)


@pytest.mark.parametrize("content", [b"\xff" * 9 + b"\x02", b"\x80" * 10 + b"\x01"])
def test_numbers_that_are_too_large(content):
    with pytest.raises(CheckpointError, match="too large"):
        read_varint(content, 0)
