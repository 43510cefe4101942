"""The compiled encoder holds no floating-point instruction."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict

import pytest

from bertkit.core.native import kernels_status

FLOATING_POINT = re.compile(
    r"v?(add|sub|mul|div|sqrt|min|max|round|rndscale|reduce|getexp|getmant|scalef|rcp|rcp14|rsqrt|rsqrt14|cmp|comi|ucomi|hadd|dp"
    r"|fn?m(add|sub)\d*|fmaddsub\d*|cvtt?\w*2)[sp][sdh]|v?cvt\w+|f(ld|i?st|i?add|i?sub|i?mul|i?div|sqrt)\w*|tdpbf16ps|tdpfp16ps"
    r"|vdpbf16ps")
PRODUCTS = {"vpdpbusd": "avx512", "tdpbssd": "amx", "vpmaddwd": "avx2"}


@pytest.mark.parametrize(("instruction", "is_one"), [
    ("vmulps", True), ("vfmadd231pd", True), ("cvtsi2sd", True), ("vcvtdq2ps", True), ("vroundpd", True), ("fld", True),
    ("divss", True), ("vmovups", False), ("vpmuldq", False), ("vpdpbusd", False), ("tdpbssd", False), ("vxorps", False),
    ("vpaddd", False), ("vbroadcastss", False),
])
def test_instructions_are_told_apart(instruction, is_one):
    """Moves and bitwise operations have floating-point names on x86, but only move and combine bits."""
    assert bool(FLOATING_POINT.fullmatch(instruction)) is is_one


def test_the_encoder_has_no_floating_point_instruction():
    library = kernels_status().library
    if library is None or shutil.which("objdump") is None:
        pytest.skip("needs the compiled kernels and objdump")
    listing = subprocess.run(["objdump", "-d", "-C", "--no-show-raw-insn", library], capture_output=True, text=True, check=True)
    used: defaultdict[str, set[str]] = defaultdict(set)
    ours = False
    for line in listing.stdout.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            ours = "bertkit::" in header[1] and "bertkit::lsh" not in header[1]  # YOSO's kernels compute with floats
            name = header[1]
        elif ours and (instruction := re.match(r"\s+[0-9a-f]+:\s+(?:lock |rep )?(\w+)", line)):
            used[name].add(instruction[1])
    every = set().union(*used.values())
    if any(instruction.startswith("v") for instruction in every):  # x86: the levels are really in the listing
        assert set(PRODUCTS) <= every
    found = {name: sorted(filter(FLOATING_POINT.fullmatch, instructions)) for name, instructions in used.items()}
    assert {name: instructions for name, instructions in found.items() if instructions} == {}
