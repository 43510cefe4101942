"""Finding and choosing compiled kernels: what serves, what is said where it cannot, and that nothing happens before."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from bertkit.cli import main
from bertkit.core import native
from bertkit.core.errors import BackendError
from tests.packaging.stubs import ROOT

COMPILER = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
LACKING = {"scalar": None, "avx2": None, "avxvnni": "this CPU has no avx_vnni", "avx512": "this CPU has no avx512_vnni",
           "amx": "this CPU has no avx512_vnni, amx_int8"}


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """A process that has not needed the kernels yet, and whose user has no wishes."""
    for name in ("BERTKIT_KERNELS", "BERTKIT_LIBRARY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"request": None, "library": None, "level": None, "warned": False}.items():
        monkeypatch.setattr(native._State, name, value)


@pytest.fixture
def missing(monkeypatch, tmp_path):
    """A directory without a library."""
    monkeypatch.setenv("BERTKIT_LIBRARY", str(tmp_path))
    return tmp_path


@pytest.fixture
def found(monkeypatch):
    """A library of which this CPU runs two levels."""
    library = native.Library(Path("libbertkit.so"), ctypes.CDLL(None), LACKING)
    monkeypatch.setattr(native._State, "library", library)
    return library


def build(directory: Path, source: str) -> None:
    """Compile a library that is not ours."""
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    code, library = directory / "library.c", directory / native.file_name("bertkit")
    code.write_text(source)
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, code], check=True)


def set_machine(library: Path) -> None:
    """Make it one of a CPU that nobody has."""
    code = bytearray(library.read_bytes())
    if code[:4] != b"\x7fELF":
        pytest.skip("knows where an ELF file names its machine")
    code[18:20] = (2).to_bytes(2, sys.byteorder)  # SPARC
    library.write_bytes(code)


def test_importing_looks_for_nothing(tmp_path):
    (tmp_path / native.file_name("bertkit")).write_text("no library")
    program = ("import bertkit, bertkit.core.native as native, bertkit.core.native_ibert\n"
               "print(native._State.library, native._State.request, bertkit.use_kernels is native.use_kernels)")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BERTKIT_KERNELS": "nonsense", "BERTKIT_LIBRARY": str(tmp_path)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("None None True\n", "")


# -- without a library ----------------------------------------------------------------------------------------------
def test_without_a_library_portable_kernels_serve_and_say_so_once(missing):
    with pytest.warns(UserWarning, match="portable kernels, which are slower: There is no compiled library") as said:
        assert native.level() == "portable"
    assert str(missing) in str(said[0].message) and "make native" in str(said[0].message)
    with warnings.catch_warnings(), native.use_kernels("portable"):
        warnings.simplefilter("error")
        assert native.level() == "portable"
    assert native.level() == "portable"


def test_who_asks_for_portable_kernels_is_not_warned(missing, monkeypatch):
    monkeypatch.setenv("BERTKIT_KERNELS", "portable")
    assert native.level() == "portable"
    assert native.kernels_status().reason == "BERTKIT_KERNELS asks for it."


@pytest.mark.parametrize("choice", ["native", "scalar", "amx"])
def test_native_kernels_that_are_demanded_and_missing_are_an_error(missing, monkeypatch, choice):
    monkeypatch.setenv("BERTKIT_KERNELS", choice)
    refused = f"BERTKIT_KERNELS asks for {choice} kernels, which cannot be had\n.*no compiled library.*\n`bertkit kernels`"
    with pytest.raises(BackendError, match=refused):
        native.level()
    with pytest.raises(BackendError, match=f"there are no {choice} kernels here\n.*no compiled library"):
        native.use_kernels(choice)
    with pytest.raises(BackendError, match="no compiled library"):
        native.library()
    assert native.kernels_status().level is None


@pytest.mark.parametrize(("source", "said"), [
    (None, "cannot be loaded: .*file too short|invalid ELF header"),
    ("int something_else;", "cannot be loaded: .*bk_abi"),
    ("int of_another_cpu;", "cannot be loaded: "),
    (f"int bk_abi(void) {{ return {native.ABI + 1}; }}", f"interface is number {native.ABI + 1}, expected {native.ABI}"),
])
def test_a_library_that_cannot_be_used_is_named_and_portable_kernels_serve(missing, source, said):
    if source is None:
        (missing / native.file_name("bertkit")).write_text("no library")
    else:
        build(missing, source)
    if "another_cpu" in str(source):
        set_machine(missing / native.file_name("bertkit"))
    with pytest.warns(UserWarning, match=said):
        assert native.level() == "portable"
    assert native.kernels_status().library is None


# -- with one -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("choice", "level"), [
    ("auto", "avx2"), ("native", "avx2"), ("portable", "portable"), ("scalar", "scalar"), ("avx2", "avx2")])
@pytest.mark.parametrize("by", ["BERTKIT_KERNELS", "use_kernels"])
def test_a_choice_gives_the_level_that_it_names(found, monkeypatch, choice, level, by):
    if by == "use_kernels":
        native.use_kernels(choice)
    else:
        monkeypatch.setenv(by, choice)
    assert native.level() == level
    status = native.kernels_status()
    assert (status.level, status.choice, status.asked_by) == (level, choice, by)
    assert status.levels == LACKING and status.library == "libbertkit.so" and status.cores >= 1
    assert pickle.loads(pickle.dumps(status)) == status


def test_a_level_that_this_cpu_lacks_is_refused_with_what_is_missing(found, monkeypatch):
    with pytest.raises(BackendError, match="avx512: this CPU has no avx512_vnni"):
        native.use_kernels("avx512")
    assert native.level() == "avx2"
    native.use_kernels("auto")
    monkeypatch.setenv("BERTKIT_KERNELS", "amx")
    monkeypatch.setattr(native._State, "request", None)
    with pytest.raises(BackendError, match="amx: this CPU has no avx512_vnni, amx_int8"):
        native.level()


@pytest.mark.parametrize("choice", ["fast", "AMX", "sse2"])
def test_a_choice_that_does_not_exist_is_refused(found, monkeypatch, choice):
    expected = f"got {choice!r}, expected one of auto, native, portable, scalar, avx2, avxvnni, avx512, amx"
    with pytest.raises(BackendError, match=f"use_kernels: {expected}"):
        native.use_kernels(choice)
    monkeypatch.setenv("BERTKIT_KERNELS", choice)
    for call in (native.level, native.kernels_status):
        with pytest.raises(BackendError, match=f"BERTKIT_KERNELS: {expected}"):
            call()


def test_a_with_block_brings_back_the_choice_before(found, monkeypatch):
    monkeypatch.setenv("BERTKIT_KERNELS", "scalar")
    with native.use_kernels("portable"):
        assert native.level() == "portable"
        with pytest.raises(RuntimeError), native.use_kernels("avx2"):
            assert native.level() == "avx2"
            raise RuntimeError
        assert native.level() == "portable"
    assert native.level() == "scalar"


# -- the command ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("choice", "code", "said"), [
    ("auto", 0, "in use: avx2. It is the best"), ("portable", 0, "in use: portable. BERTKIT_KERNELS asks"),
    ("amx", 1, "in use: nothing. amx: this CPU has no avx512_vnni, amx_int8."), ("fast", 2, "expected one of auto")])
def test_the_command_shows_the_level_and_why(found, monkeypatch, capsys, choice, code, said):
    monkeypatch.setenv("BERTKIT_KERNELS", choice)
    assert main(["kernels"]) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


@pytest.mark.parametrize(("spec", "choice", "said"), [
    (object(), "auto", "on a GPU: YOSO in PyTorch runs in Triton"),
    (object(), "portable", "on a GPU: portable; Triton would serve"),
    (None, "auto", "on a GPU: portable; no Triton")])
def test_the_command_says_what_serves_on_a_gpu(found, monkeypatch, capsys, spec, choice, said):
    monkeypatch.setenv("BERTKIT_KERNELS", choice)
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: spec)
    assert main(["kernels"]) == 0
    assert said in capsys.readouterr().out


def test_the_command_prints_json(found, capsys):
    assert main(["kernels", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["level"] == "avx2" and printed["levels"] == LACKING
