"""Fuzzing of every reader: originals of every format are damaged in thousands of ways, and each is opened and read whole.

    python -m tests.conversion.fuzz --cases 1000 --seed 1 [--format fairseq]

The result must be a success or a `BertkitError`, soon and in little memory; nothing is written, executed or fetched. Cases are
numbered: the same seed and number give the same damage. A worker without torch reads them in a process of its own, so that a
crash of a library in C is seen, and told, like any other failure.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickletools
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bertkit.core.errors import BertkitError
from bertkit.core.files.crc32c import crc32c, masked
from bertkit.core.files.protobuf import read_varint
from bertkit.core.files.sstable import FOOTER_SIZE, read_table, table_of

SECONDS = 2.0
"""Of the processor, that a case may take."""

MEMORY = 512 * 2**20
"""Bytes that a case may take, beside what the process has at its start."""

STALLED = 60.0
"""Seconds without progress after which a worker is given up."""

ROOT = Path(__file__).parents[2]
MODULE = "tests.conversion.fuzz"

FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn",
    "socket.", "urllib.Request", "ftplib.", "http.client.", "smtplib.", "os.remove", "os.rename", "os.mkdir", "os.rmdir",
    "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "shutil.", "pickle.find_class", "ctypes.",
    "tempfile.", "os.kill", "os.putenv", "webbrowser.",
)
"""Events of Python's audit that no reader has a reason for."""


# -- originals ------------------------------------------------------------------------------------------------------------
def make_originals(directory: Path) -> None:
    """One tiny original of every family, each in a directory of its name; needs torch, TensorFlow and h5py."""
    for name, make in FAMILIES.items():
        if not (directory / name).exists():
            random.seed(0)
            make(directory / name)


def _megatron(**recipe: Any) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        from tests.conversion.originals import megatron

        sizes = {"hidden": 8, "heads": 2, "layers": 1, "inner": 8, "positions": 4, "vocabulary": 16}
        chosen = megatron.Recipe(**{**sizes, **recipe})
        megatron.write(directory, _seeded(megatron.weights, chosen), chosen)

    return make


def _ngc(deflate: bool) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        from tests.conversion.originals import megatron

        unpacked = directory.with_name(f"{directory.name}.unpacked")
        # Without arguments the number of heads follows from the width, which is 64 for each.
        _megatron(version=0, names=1, args=None, baggage=False, legacy=deflate, hidden=64, heads=1, layers=1)(unpacked)
        directory.mkdir()
        megatron.zipped(directory / "megatron.zip", unpacked, deflate=deflate)
        shutil.rmtree(unpacked)

    return make


def _core(distributed: bool) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        from tests.conversion.originals import megatron_core

        write = megatron_core.write_dist if distributed else megatron_core.write_ranks
        with warnings.catch_warnings(), patch.multiple(megatron_core, LAYERS=1, WORDS=32):
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            write(directory, _seeded(megatron_core.weights), ranks=2)

    return make


def _fairseq(legacy: bool) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        from tests.conversion.originals import fairseq

        recipe = {"prefix": "decoder"} if legacy else {"quantised": True}
        with patch.object(fairseq, "LAYERS", 1):
            settings = {"args": fairseq.arguments()} if legacy else {"cfg": fairseq.hydra()}
            model = _seeded(fairseq.weights, **recipe)
            fairseq.dictionary(directory)
            fairseq.save(directory / "checkpoint_best.pt", model, legacy=legacy, **settings)

    return make


def _yoso(training: bool) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        from tests.conversion.originals import yoso

        settings = {**yoso.SETTINGS, "num_layers": 1}
        weights = _seeded(yoso.state, settings)
        if training:
            yoso.save_training(directory / "model" / "cp-0001.cp", weights)
        else:
            yoso.save_model(directory / "model" / "cp-0099.model", weights)
        (directory / "config.json").write_text(json.dumps({"model": settings}))

    return make


def _google(garden: bool) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        from tests.conversion.originals import google_mobilebert as google

        settings = {**google.SETTINGS["student"], "num_hidden_layers": 1, "num_feedforward_networks": 2}
        values = google.values(google.shapes(settings))
        if garden:
            google.save_garden(directory, settings, google.garden(settings, values))
        else:
            google.save(directory, settings, {**values, **google.baggage(values)}, vocabulary=map(str, range(37)))
        for file in directory.rglob("*.meta"):  # a graph, which nobody reads
            file.unlink()

    return make


def _own(kind: str) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        from tests import cases
        from tests.cli.common import TOKENIZER, weights, write

        config = cases.config("yoso", "ForMaskedLM", vocab_size=32, num_hidden_layers=1)
        tensors = weights("yoso", "ForMaskedLM", config)
        settings = {**config.to_dict(), "architectures": ["YosoForMaskedLM"]}
        if kind == "safetensors":
            write(directory, settings, tensors, tokenizer=False)
            return
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(settings))
        halves = [dict(list(tensors.items())[place::2]) for place in range(2)]
        if kind == "sharded safetensors":
            from safetensors.numpy import save_file

            for number, half in enumerate(halves, 1):
                save_file(half, directory / f"model-{number:05d}-of-00002.safetensors")
            _write_index(directory / "model.safetensors.index.json", halves, "model", "safetensors")
        else:
            import torch

            for number, half in enumerate(halves, 1):
                content = {name: torch.from_numpy(value) for name, value in half.items()}
                torch.save(content, directory / f"pytorch_model-{number:05d}-of-00002.bin")
            _write_index(directory / "pytorch_model.bin.index.json", halves, "pytorch_model", "bin")
        shutil.copy(TOKENIZER, directory / "vocab.txt")

    return make


def _write_index(file: Path, halves: list[dict[str, Any]], stem: str, suffix: str) -> None:
    places = {name: f"{stem}-{number:05d}-of-00002.{suffix}" for number, half in enumerate(halves, 1) for name in half}
    file.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def _keras(directory: Path) -> None:
    from tests import cases
    from tests.cli.common import weights
    from tests.conversion.test_keras_h5 import write_h5

    config = cases.config("mobilebert", "ForMaskedLM", vocab_size=24, num_hidden_layers=1)
    write_h5(directory, weights("mobilebert", "ForMaskedLM", config),
             {**config.to_dict(), "architectures": ["MobileBertForMaskedLM"]})


def _seeded(make: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    import numpy as np
    import torch

    torch.manual_seed(0)
    np.random.seed(0)
    return make(*arguments, **settings)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "ngc-megatron": _ngc(deflate=False),
    "ngc-megatron-deflated": _ngc(deflate=True),
    "megatron-lm": _megatron(tensor=2, pipeline=2, layers=2, version=3, names=3, enums=True),
    "megatron-lm-legacy": _megatron(tensor=1, version=1, names=1, legacy=True),
    "megatron-core": _core(distributed=False),
    "megatron-dist": _core(distributed=True),
    "fairseq": _fairseq(legacy=False),
    "fairseq-legacy": _fairseq(legacy=True),
    "mlpen-yoso": _yoso(training=False),
    "mlpen-yoso-training": _yoso(training=True),
    "google-mobilebert": _google(garden=False),
    "model-garden": _google(garden=True),
    "safetensors": _own("safetensors"),
    "sharded-safetensors": _own("sharded safetensors"),
    "sharded-bin": _own("bin"),
    "transformers-tf": _keras,
}
"""What makes an original, by the name of the family: that of a format, or of one of its forms."""


# -- damage: bytes --------------------------------------------------------------------------------------------------------
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40,
           2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, insertions, moved blocks, and numbers at the edges of what fits."""
    data = bytearray(content)
    kind = rng.randrange(10)
    # Headers stand at the beginning or the end: damage is likelier there.
    place = rng.choice((rng.randrange, lambda n: min(int(rng.expovariate(1 / 64)), n - 1),
                        lambda n: n - 1 - min(int(rng.expovariate(1 / 64)), n - 1)))(len(data)) if data else 0
    size = min(rng.choice((1, 2, 4, 8, 16, 64, 512)), max(len(data) - place, 0))
    if not data or kind == 0:
        data[place:place] = rng.choice((rng.randbytes(rng.choice((1, 2, 8, 100))), b"\0" * rng.choice((1, 8, 4096))))
    elif kind <= 2:
        for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
            spot = min(len(data) - 1, place + rng.randrange(64))
            data[spot] ^= 1 << rng.randrange(8)
    elif kind == 3:
        data[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif kind == 4:
        del data[place:]
    elif kind == 5:
        del data[place:place + size]
    elif kind == 6:
        other = rng.randrange(len(data))
        block = bytes(data[other:other + size])
        data[place:place + len(block)] = block
    elif kind == 7:
        data[place:place] = data[place:place + size] * rng.choice((1, 1, 2, 1000))
    else:
        width = rng.choice((1, 2, 4, 8))
        number = rng.choice(NUMBERS) + rng.choice((0, 0, -1, 1))
        data[place:place + width] = (number % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "little", "big")))
    return bytes(data)


# -- damage: pickles ------------------------------------------------------------------------------------------------------
HOSTILE = (
    b"cos\nsystem\n(S'touch canary'\ntR", b"cposix\nsystem\n(S'touch canary'\ntR", b"cbuiltins\neval\n(S'1'\ntR",
    b"csubprocess\nPopen\n((S'touch'\nS'canary'\nltR", b"cbuiltins\ngetattr\n(cbuiltins\nobject\nS'__subclasses__'\ntR",
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n)R", b"cargparse\nNamespace\n)R", b"ctorch\nSize\n(I-1\ntR", b"ccopyreg\n_reconstructor\n",
    b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR", b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR", b"cbuiltins\nbytearray\n(I2147483647\ntR",
    b"cdatetime\ndatetime\n)R", b"cmegatron.core.enums\nModelType\n(I1\ntR", b"ctorch\nfloat32\n", b"cfunctools\npartial\n)R",
    b"(lp0\ng0\na", b"(dp0\nS'a'\ng0\ns", b"2", b"0", b"1", b"(", b"t", b")", b"]", b"}", b"N", b"R", b"b", b"Q", b"a", b"u",
    b"s", b"e", b"\x81", b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"\x8f", b"\x90", b"\x91", b"\x92", b"\x93", b"\x94",
    b"o", b"l", b"d", b"\x82\x01", b"\x97", b"\x98", b"I1\n", b"I-1\n", b"L99999999999999999999L\n", b"F1e999\n", b"Fnan\n",
    b"h\x00", b"q\x00", b"r\xff\xff\xff\x7f", b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\xff" + b"\x7f" * 255,
    b"X\x04\x00\x00\x00../a", b"X\x00\x00\x00\x00", b"X\xff\xff\xff\x7f", b"B\xff\xff\xff\xff", b"C\x00", b"\x95" + b"\xff" * 8,
    b"\x80\x05", b"X\x05\x00\x00\x00model", b"X\x0a\x00\x00\x00__class__\x00",
)
"""Pieces of programs: what attacks are made of, and every single instruction."""


def instructions(content: bytes) -> tuple[list[bytes], bytes]:
    """The instructions of a pickle, and what follows it."""
    stream = io.BytesIO(content)
    places = [place for _, _, place in pickletools.genops(stream)]
    ends = [*places[1:], stream.tell()]
    return [content[place:end] for place, end in zip(places, ends, strict=True)], content[stream.tell():]


def mutate_pickle(content: bytes, rng: random.Random) -> bytes:
    """Instructions are left out, doubled, exchanged, moved, given other arguments, or put in."""
    try:
        steps, rest = instructions(content)
    except Exception:  # damaged before
        return mutate_bytes(content, rng)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        place = rng.randrange(len(steps)) if steps else 0
        kind = rng.randrange(9)
        if not steps or kind <= 1:
            steps.insert(place, rng.choice(HOSTILE))
        elif kind == 2:
            del steps[place:place + rng.choice((1, 1, 1, 3, 20))]
        elif kind == 3:
            steps[place:place] = steps[place:place + rng.choice((1, 1, 4, 40))] * rng.choice((1, 1, 1, 50))
        elif kind == 4:
            other = rng.randrange(len(steps))
            steps[place], steps[other] = steps[other], steps[place]
        elif kind == 5:
            steps.insert(rng.randrange(len(steps)), steps.pop(place))
        elif kind == 6:
            numbers = [spot for spot, step in enumerate(steps) if step[:1] in b"KMJ\x8aX\x8c" and len(step) < 100]
            place = rng.choice(numbers) if numbers else place
            steps[place] = _other_argument(steps[place], rng)
        elif kind == 7:
            steps[place] = rng.choice(HOSTILE)
        else:
            steps[place] = steps[place][:1] + mutate_bytes(steps[place][1:], rng)
    return b"".join(steps) + rest


def _other_argument(step: bytes, rng: random.Random) -> bytes:
    if step[:1] in b"X\x8c":
        text = rng.choice((b"", b"\xff\xfe", b"../../x", b"0", b"weight", b"a" * 70000, b"\0", "ÿ\u2028".encode(), b"__init__",
                           mutate_bytes(step[5:] if step[:1] == b"X" else step[2:], rng)))
        return b"X" + len(text).to_bytes(4, "little") + text
    number = rng.choice((*NUMBERS, -1, -2**31, -2**63, 2**4000)) + rng.choice((0, 0, 1, -1))
    packed = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + len(packed).to_bytes(4, "little") + packed


# -- damage: text -----------------------------------------------------------------------------------------------------------
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**53, 2**63, -2**63, 2**200, 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "0", "../x", "/etc/passwd", "\0", "\ud800", "x" * 100_000, [], {}, [[]], [0], [-1], [0, 0], [2**62, 2**62], [0] * 40,
    {"a": {}}, "F32", "BF16", "F8_E4M3", "I64", "gelu", "relu", "yoso", "bert",
)


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """A JSON value with something in it exchanged, left out, doubled or nested."""
    places: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(places) < 5000:
        node = waiting.pop()
        items = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        places += [(node, key) for key, _ in items]
        waiting += [value for _, value in items if isinstance(value, dict | list)]
    if not places or rng.random() < 0.02:
        return rng.choice(VALUES)
    node, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind <= 3:
        node[key] = rng.choice(VALUES)
    elif kind == 4:
        del node[key]
    elif kind == 5:
        other, there = rng.choice(places)
        if there in other if isinstance(other, dict) else there < len(other):
            node[key] = other[there]
    elif kind == 6 and isinstance(node, dict):
        node[rng.choice(("", "x", str(key) + "x", "../x", "__metadata__", "\ud800", "a" * 10_000))] = node.pop(key)
    elif isinstance(node[key], bool) or not isinstance(node[key], int):
        node[key] = [node[key]]
    else:
        node[key] += rng.choice((-1, 1, 8, -8, 2**32))
    return tree


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """JSON that is still JSON."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return mutate_bytes(content, rng)
    if rng.random() < 0.02:
        return b"[" * rng.choice((10, 1000, 100_000)) + content
    for _ in range(rng.choice((1, 1, 2, 4))):
        if isinstance(tree, dict | list):
            tree = mutate_tree(tree, rng)
    try:
        return json.dumps(tree).encode()
    except (ValueError, RecursionError):  # it contains itself
        return content[:-1]


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Another header, of the length that it claims."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 + length:
        return mutate_bytes(content, rng)
    header = mutate_json(content[8:8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length:]


# -- damage: archives and tables --------------------------------------------------------------------------------------------
def mutate_zip(content: bytes, rng: random.Random) -> bytes:
    """An archive whose checksums are right, with members that are damaged, renamed, left out, doubled, packed or moved."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info, archive.read(info)) for info in archive.infolist()]
    except Exception:  # damaged before
        return mutate_bytes(content, rng)
    if not members:
        return mutate_bytes(content, rng)
    kind = rng.randrange(12)
    likely = [place for place, (info, _) in enumerate(members) if info.filename.endswith((".pkl", ".pt"))]
    place = rng.choice(likely) if likely and rng.random() < 0.8 else rng.randrange(len(members))
    info, data = members[place]
    packing = rng.choice((0, 0, 0, 8)) if kind == 9 else info.compress_type
    if kind <= 6:
        members[place] = info, mutate(info.filename, data, rng, times=1)
    elif kind == 7:
        name = info.filename
        info.filename = rng.choice((f"../{name}", f"/{name}", "", "a\0b", name.upper(), "archive/data.pkl", f"x/{name}",
                                    "C:\\x", members[rng.randrange(len(members))][0].filename))
    elif kind == 8:
        del members[place]
    elif kind == 10:
        rng.shuffle(members)
    elif kind == 11:
        name = rng.choice((info.filename, "x", "archive/byteorder", "archive/data/0"))
        members.append((zipfile.ZipInfo(name), rng.randbytes(8)))
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w") as archive:
        warnings.simplefilter("ignore")  # of members with one name
        for item, data in members:
            fresh = zipfile.ZipInfo("x", item.date_time)
            fresh.filename = item.filename
            archive.writestr(fresh, data, compress_type=packing if item is info else item.compress_type)
    packed = bytearray(made.getvalue())
    if rng.random() < 0.1:  # the directory lies
        entry = packed.find(b"PK\1\2", rng.randrange(len(packed)))
        if entry > 0:
            field, width = rng.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4)))
            packed[entry + field:entry + field + width] = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(packed)


def mutate_legacy(content: bytes, rng: random.Random) -> bytes:
    """Torch's form before 1.6: one of its five pickles is damaged, or the values."""
    parts, rest = [], content
    try:
        for _ in range(5):
            steps, after = instructions(rest)
            parts.append(b"".join(steps))
            rest = after
    except Exception:  # damaged before
        return mutate_bytes(content, rng)
    place = rng.choice((0, 1, 2, 3, 3, 3, 3, 3, 4, 5))
    if place == 5:
        return b"".join(parts) + mutate_bytes(rest, rng)
    parts[place] = mutate_pickle(parts[place], rng)
    return b"".join(parts) + rest


def mutate_table(content: bytes, rng: random.Random) -> bytes:
    """An index of TensorFlow with other entries, or with damaged blocks; the checksums are right."""
    try:
        table = list(read_table(content).items())
        if rng.random() < 0.6:
            return _other_entries(table, rng)
        footer = content[-FOOTER_SIZE:]
        blocks, place = [], 0
        for _ in range(2):
            offset, place = read_varint(footer, place)
            size, place = read_varint(footer, place)
            blocks.append((offset, size))
    except Exception:  # damaged before
        return mutate_bytes(content, rng)
    blocks.append((0, min(offset for offset, _ in blocks) - 5))
    offset, size = rng.choice([block for block in blocks if block[1] > 0])
    block = mutate_bytes(content[offset:offset + size], rng)[:size].ljust(size, b"\0")
    block += bytes([rng.choice((0, 0, 0, 0, 1, 2))])
    return content[:offset] + block + masked(crc32c(block)).to_bytes(4, "little") + content[offset + size + 5:]


def _other_entries(table: list[tuple[bytes, bytes]], rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(table)) if rng.random() < 0.8 else 0
        key, value = table[place]
        kind = rng.randrange(7)
        if kind <= 3:
            table[place] = key, mutate_bytes(value, rng)
        elif kind == 4 and len(table) > 1:
            del table[place]
        elif kind == 5:
            table[place] = rng.choice((mutate_bytes(key, rng), b"", b"\0", key + b"/x")), value
        else:
            table[place] = key, table[rng.randrange(len(table))][1]
    if rng.random() < 0.9:
        table.sort()
    return table_of(table)


# -- damage: files ----------------------------------------------------------------------------------------------------------
def mutate(name: str, content: bytes, rng: random.Random, times: int = 0) -> bytes:
    """The content of a file with some damage that fits its kind."""
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        special = _damage_for(name, content) if rng.random() < 0.75 else mutate_bytes
        content = special(content, rng)
    return content


def _damage_for(name: str, content: bytes) -> Callable[[bytes, random.Random], bytes]:
    if content[:2] == b"PK":
        return mutate_zip
    if content[:4] == b"\x80\x02\x8a\x0a":
        return mutate_legacy
    if name.endswith((".pkl", ".metadata")):
        return mutate_pickle
    if name.endswith(".index"):
        return mutate_table
    if name.endswith(".json"):
        return mutate_json
    if name.endswith(".safetensors"):
        return mutate_safetensors
    return mutate_distributed if name.endswith(".distcp") else mutate_bytes


def mutate_distributed(content: bytes, rng: random.Random) -> bytes:
    """One of the archives that stand one behind the other, of the same length where it can be."""
    begins = [found.start() for found in re.finditer(rb"PK\x03\x04.{26}[^/]+/data\.pkl", content, re.DOTALL)]
    if not begins:
        return mutate_bytes(content, rng)
    place = rng.randrange(len(begins))
    begin, end = begins[place], [*begins[1:], len(content)][place]
    made = mutate_zip(content[begin:end], rng)
    return content[:begin] + made[:end - begin].ljust(end - begin, b"\0") + content[end:]


def damage(files: Mapping[str, bytes], rng: random.Random) -> dict[str, bytes | None]:
    """What to change in a directory: new contents by name, None for a file that is gone."""
    # Not by size: the small files say what the large ones mean.
    names = sorted(files)
    changed: dict[str, bytes | None] = {}
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 1, 1, 2)))):
        lot = rng.random()
        if lot < 0.01 and len(names) > 1:
            changed[name] = None
        elif lot < 0.02:
            changed[name] = b""
        elif lot < 0.03:
            changed[name] = files[rng.choice(names)]
        else:
            changed[name] = mutate(name, files[name], rng)
    return changed


# -- the property -----------------------------------------------------------------------------------------------------------
def examine(path: Path, source_type: str | None = None) -> None:
    """Recognise, open and read whatever lies there, every tensor of it, as it is and as ours."""
    from bertkit.convert.api import read_original
    from bertkit.convert.formats import find_format
    from bertkit.convert.original import Options, Sample

    format = find_format(path, source_type)
    if format is None:
        original = read_original(path, Options(), source_type=source_type)
    else:
        opened = format.open(Sample(path))
        try:
            for tensor in opened.tensors.values():
                tensor()
        finally:
            original = format.read(opened, Options())
    for tensor in original.translation.tensors.values():
        tensor()


@dataclass
class Result:
    """What became of the cases of a family."""

    cases: int = 0
    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    slowest_case: int = -1
    memory: int = 0
    failures: list[str] = field(default_factory=list)
    headlines: Counter[str] = field(default_factory=Counter)


class Watch:
    """Python's own audit, while a case is read."""

    def __init__(self) -> None:
        self.active, self.seen = False, []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        if event == "open":
            _, mode, flags = arguments
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            if writes or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                self.seen.append(f"open {arguments}")
        elif event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {arguments}"[:200])


SINGLE_FILES = {"ngc-megatron": "megatron.zip", "ngc-megatron-deflated": "megatron.zip",
                "mlpen-yoso-training": "model/cp-0001.cp"}
"""What of the directory of a family is given, where it is not the directory."""


def source_of(directory: Path, family: str) -> Path:
    """What a user would name of an original."""
    return directory / SINGLE_FILES.get(family, "")


def format_of(family: str) -> str | None:
    """The name of a family's format; None for directories of transformers."""
    from bertkit.convert.formats import FORMATS

    names = [name for name in FORMATS if family.startswith(name)]
    return max(names, key=len, default=None)


def work(originals: Path, family: str, seed: int, numbers: Iterable[int], progress: Path, keep: Path | None = None) -> Result:
    """Read some cases of a family in this process."""
    files = {file.relative_to(originals / family).as_posix(): file.read_bytes()
             for file in sorted((originals / family).rglob("*")) if file.is_file()}
    watch, result, format = Watch(), Result(), format_of(family)
    with tempfile.TemporaryDirectory(dir=progress.parent) as scratch, open(progress, "wb", buffering=0) as pen:
        directory, nowhere = Path(scratch) / "original", Path(scratch) / "nowhere"
        nowhere.mkdir()
        os.chdir(nowhere)
        _put(directory, files)
        examine(source_of(directory, family), None)  # whole it is read; and what is imported late is imported
        resident = _resident("VmRSS")
        resource.setrlimit(resource.RLIMIT_AS, (_resident("VmSize") + MEMORY, resource.RLIM_INFINITY))
        for number in numbers:
            os.pwrite(pen.fileno(), b"%-20d" % number, 0)
            rng = random.Random(f"{seed}/{family}/{number}")
            changed = damage(files, rng)
            _put(directory, changed)
            named = format if rng.random() < 0.5 else None
            before, start = sorted(directory.rglob("*")), time.process_time()
            problem = _outcome(source_of(directory, family), named, watch, result)
            seconds = time.process_time() - start
            if seconds > result.slowest:
                result.slowest, result.slowest_case = seconds, number
            result.memory = max(result.memory, _resident("VmHWM") - resident)
            if not problem and seconds > SECONDS:
                problem = f"took {seconds:.1f} s"
            if watch.seen:
                problem = f"did what it must not: {watch.seen[:3]}"
                watch.seen.clear()
            if sorted(directory.rglob("*")) != before or any(nowhere.iterdir()):
                problem = "made or removed a file"
            if problem:
                result.failures.append(f"{family} {seed}/{number} ({', '.join(changed)}; from {named}): {problem}")
                if keep is not None:
                    shutil.copytree(directory, keep / f"{family}-{seed}-{number}", dirs_exist_ok=True)
            result.cases += 1
            _put(directory, {name: files[name] for name in changed})
        os.chdir("/")
    return result


def _outcome(path: Path, named: str | None, watch: Watch, result: Result) -> str:
    """Why a case is a failure; empty where it is none."""
    watch.active = True
    try:
        examine(path, named)
        result.read += 1
    except BertkitError as error:
        result.refused += 1
        result.headlines[re.sub(r"/\S+|\d+", "_", str(error).splitlines()[0])[:80]] += 1
    except BaseException as error:
        watch.active = False
        place = traceback.extract_tb(error.__traceback__)
        inside = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in place if "bertkit" in f.filename]
        return f"{type(error).__name__}: {str(error)[:200]} at {' < '.join(reversed(inside[-3:]))}"
    finally:
        watch.active = False
    return ""


def _put(directory: Path, files: Mapping[str, bytes | None]) -> None:
    for name, content in files.items():
        file = directory / name
        if content is None:
            file.unlink(missing_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def _resident(what: str) -> int:
    """Bytes of memory of this process: VmRSS now, VmHWM at most so far, VmSize with all that is only mapped."""
    found = re.search(rf"{what}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


# -- campaigns --------------------------------------------------------------------------------------------------------------
def campaign(originals: Path, family: str, cases: int, seed: int, keep: Path | None = None, first: int = 0) -> Result:
    """Read cases of a family in processes of their own, a new one after each crash."""
    total = Result()
    # A worker that crashes leaves its files behind; they are removed with this directory, which is in memory where it can be.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as scratch:
        progress, answer = Path(scratch) / "progress", Path(scratch) / "answer"
        while first < cases:
            answer.unlink(missing_ok=True)
            settings: dict[str, Any] = {"worker": answer, "progress": progress, "originals": originals, "format": family,
                                        "seed": seed, "first": first, "cases": cases, **({"keep": keep} if keep else {})}
            words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
            paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1",
                           "OPENBLAS_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
            with open(Path(scratch) / "errors", "w+") as errors:
                worker = subprocess.Popen([sys.executable, "-m", MODULE, *words], stderr=errors, env=environment)
                cause = _wait(worker, progress)
                errors.seek(0)
                told = errors.read()
            if answer.exists():
                content = json.loads(answer.read_text())
                part = Result(**{**content, "headlines": Counter(content["headlines"])})
                _add(total, part)
                break
            last = int(progress.read_text() or -1) if progress.exists() else -1
            if last < first:
                raise RuntimeError(f"the worker of {family} did not start:\n{told}")
            total.failures.append(f"{family} {seed}/{last}: {cause}\n{told[-1500:]}")
            total.cases += last - first + 1
            first = last + 1
    return total


def _wait(worker: subprocess.Popen[bytes], progress: Path) -> str:
    seen, since = "", time.monotonic()
    while worker.poll() is None:
        time.sleep(0.05)
        now = progress.read_text() if progress.exists() else ""
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > STALLED:
            worker.kill()
            worker.wait()
            return f"hung for {STALLED} s"
    return f"the process ended with {worker.returncode}"


def _add(total: Result, part: Result) -> None:
    for name in ("cases", "read", "refused"):
        setattr(total, name, getattr(total, name) + getattr(part, name))
    if part.slowest > total.slowest:
        total.slowest, total.slowest_case = part.slowest, part.slowest_case
    total.memory = max(total.memory, part.memory)
    total.failures += part.failures
    total.headlines += part.headlines


def main(argv: list[str] | None = None) -> int:
    """Fuzz some families and report."""
    parser = argparse.ArgumentParser(description="Damage originals of every format and read them.")
    parser.add_argument("--cases", type=int, default=1000, help="of each family")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=list(FAMILIES), help="only this family")
    parser.add_argument("--reasons", type=int, default=0, metavar="N", help="show the N most common refusals")
    parser.add_argument("--keep", type=Path, help="directory for the files of cases that fail")
    parser.add_argument("--originals", type=Path, help="directory in which the originals are kept between runs")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--progress", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.worker:
        result = work(given.originals, given.format, given.seed, range(given.first, given.cases), given.progress, given.keep)
        given.worker.write_text(json.dumps(vars(result)))
        return 0
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        originals = given.originals or Path(scratch)
        make_originals(originals)
        for family in [given.format] if given.format else FAMILIES:
            start = time.monotonic()
            result = campaign(originals, family, given.cases, given.seed, given.keep, given.first)
            failed |= bool(result.failures)
            print(f"{family:24} {result.cases:7} cases in {time.monotonic() - start:5.0f} s: {result.read} read, "
                  f"{result.refused} refused, {len(result.failures)} failed; slowest {result.slowest:.2f} s "
                  f"(case {result.slowest_case}), {result.memory / 2**20:.0f} MB", flush=True)
            for failure in result.failures[:40]:
                print(f"    {failure}", flush=True)
            for headline, count in result.headlines.most_common(given.reasons):
                print(f"    {count:6} x {headline}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
