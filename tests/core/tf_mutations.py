"""Damaged and hostile checkpoints of TensorFlow, made from a whole one by a random generator.

Checksums hide most damage: what is changed at random never gets past them. So some of these changes renew the checksums.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bertkit.core.errors import CheckpointError
from bertkit.core.files.crc32c import crc32c, masked
from bertkit.core.files.protobuf import BYTES, FIXED32, VARINT, field, read_varint, varint
from bertkit.core.files.sstable import FOOTER_SIZE, MAGIC, read_table, table_of
from bertkit.core.files.tf_checkpoint import TensorFlowCheckpoint, open_tf_checkpoint

EDGES = [0, 1, 2, 3, 7, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def mutate_bytes(random: np.random.Generator, content: bytes) -> bytes:
    """Some bytes changed, put in, taken out, doubled or cut off."""
    changed = bytearray(content)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(len(changed) + 1))
        length = int(random.integers(1, 12))
        match random.integers(6):
            case 0:
                changed[place : place + 1] = random.bytes(1)
            case 1:
                changed[place:place] = random.bytes(length)
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length]
            case 4:
                changed[place : place + 1] = varint(EDGES[random.integers(len(EDGES))])
            case _ if random.random() < 0.3:
                del changed[place:]
    return bytes(changed)


def mutate_block(random: np.random.Generator, index: bytes) -> bytes:
    """A block of the index changed, with the right checksum and the right place in the table again."""
    footer = index[-FOOTER_SIZE:]
    _, place = read_varint(footer, 0)
    _, place = read_varint(footer, place)
    offset, place = read_varint(footer, place)
    size, _ = read_varint(footer, place)
    index_block = index[offset : offset + size]
    blocks = [index[: _first_size(index_block)], index_block]
    which = int(random.integers(2))
    blocks[which] = mutate_bytes(random, blocks[which])
    table, handles = b"", []
    for block in blocks:
        handles.append((len(table), len(block)))
        kind = bytes([random.choice([0, 0, 0, 0, 1, 2])])
        table += block + kind + masked(crc32c(block + kind)).to_bytes(4, "little")
    footer = b"".join(map(varint, (*handles[0], *handles[1])))
    return table + footer.ljust(FOOTER_SIZE - 8, b"\0") + MAGIC


def _first_size(index_block: bytes) -> int:
    _, place = read_varint(index_block, 0)
    added, place = read_varint(index_block, place)
    _, place = read_varint(index_block, place)
    _, place = read_varint(index_block, place + added)
    return read_varint(index_block, place)[0]


def mutate_entries(random: np.random.Generator, index: bytes) -> bytes:
    """Keys or messages of a table changed, in a table that is whole."""
    table = list(read_table(index).items())
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(len(table)))
        key, message = table[at]
        match random.integers(6):
            case 0:
                table[at] = key, mutate_bytes(random, message)
            case 1:
                table[at] = mutate_bytes(random, key), message
            case 2:
                table[at] = key, table[random.integers(len(table))][1]
            case 3:
                table[at] = key, random_entry(random)
            case 4:
                table.append((random.choice([b"", b"\0", b"\xff"]) + key, message))
            case 5 if len(table) > 1:
                del table[at]
    if random.random() < 0.9:
        table = sorted(dict(table).items())
    return table_of(table)


def random_entry(random: np.random.Generator) -> bytes:
    """An entry that could be one: fields of the right kinds, with numbers that are likely to be troublesome."""

    def number() -> int:
        return int(random.integers(20)) if random.random() < 0.6 else EDGES[random.integers(len(EDGES))]

    def extent() -> bytes:
        return field(1, VARINT, number()) + (field(2, VARINT, number()) if random.random() < 0.5 else b"")

    shape = b"".join(field(2, BYTES, field(1, VARINT, number())) for _ in range(random.integers(4)))
    slices = [
        field(7, BYTES, b"".join(field(1, BYTES, extent()) for _ in range(random.integers(3))))
        for _ in range(max(0, int(random.integers(-3, 4))))
    ]
    return b"".join([
        field(1, VARINT, number()), field(2, BYTES, shape), field(3, VARINT, int(random.integers(2)) and number()),
        field(4, VARINT, number()), field(5, VARINT, number()), field(6, FIXED32, int(random.integers(2**32))), *slices,
    ])  # fmt: skip


def mutate(random: np.random.Generator, files: dict[str, bytes]) -> dict[str, bytes]:
    """A checkpoint's files by name, with something wrong in one of them."""
    changed = dict(files)
    name = next(name for name in files if name.endswith(".index"))
    match random.integers(10):
        case 0:
            changed[name] = mutate_bytes(random, files[name])
        case 1 | 2 | 3:
            changed[name] = mutate_block(random, files[name])
        case 4 | 5 | 6 | 7:
            changed[name] = mutate_entries(random, files[name])
        case _:
            others = [other for other in files if other != name]
            other = others[random.integers(len(others))]
            changed[other] = mutate_bytes(random, files[other])
    return changed


def survives(path: Path) -> bool:
    """Whether everything of a checkpoint can be read; False after the one error that is allowed."""
    try:
        checkpoint = open_tf_checkpoint(path)
    except CheckpointError as error:
        assert path.name in error.headline
        return False
    whole = [_reads(checkpoint, name) for name in (*checkpoint.tensors, *checkpoint.strings)]
    return all(whole)


def _reads(checkpoint: TensorFlowCheckpoint, name: str) -> bool:
    try:
        value = (checkpoint.tensors.get(name) or checkpoint.strings[name])()
    except CheckpointError as error:
        assert checkpoint.prefix.name in error.headline and name in str(error)
        return False
    if name in checkpoint.tensors:
        assert getattr(value, "bits", value).shape == checkpoint.tensors[name].shape
    return True
