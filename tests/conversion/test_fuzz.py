"""A small fixed part of what `fuzz.py` does: the same damage every time; and that the harness sees what it looks for."""

from __future__ import annotations

import random
import sys

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the harness asks Linux for limits and sizes")
if sys.platform.startswith("linux"):
    from tests.conversion import fuzz

CASES, SEED = 15, 3
NEEDS = {"google-mobilebert": "tensorflow", "model-garden": "tensorflow", "transformers-tf": "h5py"}
FAMILIES = list(fuzz.FAMILIES) if sys.platform.startswith("linux") else []


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    return tmp_path_factory.mktemp("originals")


def make(directory, family):
    pytest.importorskip(NEEDS.get(family, "torch"))
    if not (directory / family).exists():
        fuzz.FAMILIES[family](directory / family)
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_damaged_originals_are_read_or_refused(originals, family):
    result = fuzz.campaign(make(originals, family), family, CASES, SEED)
    assert result.failures == []
    assert result.cases == CASES == result.read + result.refused and result.refused > CASES // 10


@pytest.mark.parametrize("family", ["safetensors", "fairseq-legacy", "megatron-lm"])
def test_the_same_seed_does_the_same_damage(originals, family):
    directory = make(originals, family) / family
    files = {file.name: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    first, second, other = (fuzz.damage(files, random.Random(seed)) for seed in (1, 1, 2))
    assert first == second != other


MISDEEDS = {
    "a plain exception": "raise KeyError('x')",
    "an exception that is no Exception": "raise KeyboardInterrupt",
    "endless recursion": "f = lambda: f()\nf()",
    "memory": "bytearray(2**30)",
    "time": "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass",
    "a file": "open('made', 'w')",
    "a file elsewhere": "import os\nos.close(os.open('/dev/null', os.O_WRONLY))",
    "a process": "import subprocess\nsubprocess.run(['true'])",
    "a connection": "import socket\nsocket.socket().connect_ex(('127.0.0.1', 9))",
    "real pickle": "import pickle\npickle.loads(b'cbuiltins\\nlen\\n.')",
    "a crash": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
}


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_every_misdeed_is_seen(originals, tmp_path, monkeypatch, misdeed):
    """A reader that does one of these, put in the place of bertkit's in the worker."""
    make(originals, "safetensors")
    hook = (
        "import sys\nfrom tests.conversion import fuzz\nfuzz.SECONDS = 0.2\ncalls = []\nexamine = fuzz.examine\n"
        f"def bad(path, source_type=None):\n    calls.append(1)\n    if len(calls) == 1: return examine(path, source_type)\n"
        f"    exec({MISDEEDS[misdeed]!r}, {{}})\nfuzz.examine = bad\nsys.exit(fuzz.main(sys.argv[1:]))\n"
    )
    (tmp_path / "badreader.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(fuzz, "MODULE", "badreader")
    result = fuzz.campaign(originals, "safetensors", 1, SEED)
    assert len(result.failures) == 1


@pytest.mark.parametrize("content", [b"\x80\x02}q\x00.", b"\x80\x02(X\x01\x00\x00\x00aK\x01u."])
def test_pickles_are_taken_apart_and_put_together(content):
    steps, rest = fuzz.instructions(content + b"rest")
    assert b"".join(steps) == content and rest == b"rest"
