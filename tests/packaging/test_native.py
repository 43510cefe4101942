"""The compiled kernels reach a user with pip install, and their absence stops nobody."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import bertkit
from bertkit.core.native import LEVELS, file_name
from tests.packaging.stubs import ROOT
from tests.packaging.wheels import NO_COMPILER, build_wheel, names, needs_pip, pip

pytestmark = [
    pytest.mark.slow, needs_pip,
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"),
]
LIBRARIES = {f"bertkit/core/_native/{file_name(name)}" for name in ("bertkit", "bertkit_tf")}


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """Where CMake works; the tests share it, so that each file is compiled once."""
    return tmp_path_factory.mktemp("build")


def options(build: Path, emulate: str = "OFF") -> list[str]:
    return [f"-Cbuild-dir={build}", f"-Ccmake.define.BERTKIT_EMULATE_AMX={emulate}"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, build) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"), *options(build))


def kernels(directory: Path, **variables: str) -> dict:
    """What `bertkit kernels` says of an installation."""
    program = f"""
import site, sys
site.addsitedir({str(directory)!r})
from bertkit.cli import main
sys.exit(main(["kernels", "--json"]))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BERTKIT_")}
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=directory, capture_output=True, text=True,
                          env={**environment, "PYTHONPATH": os.pathsep.join(site.getsitepackages()), **variables})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_wheel_serves_every_python_on_a_platform(wheel):
    assert re.fullmatch(rf"bertkit-{bertkit.__version__}-py3-none-(?!any)\w+\.whl", wheel.name)
    compiled = {name for name in names(wheel) if Path(name).suffix not in (".py", ".pyi", ".typed")}
    assert compiled == LIBRARIES


def test_what_pip_installs_is_found_and_runs(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    found = kernels(tmp_path)
    assert found["library"] == str(tmp_path / "bertkit/core/_native" / file_name("bertkit"))
    assert list(found["levels"]) == list(LEVELS) and found["levels"][found["level"]] is None
    assert kernels(tmp_path, BERTKIT_KERNELS="scalar")["level"] == "scalar"


def test_an_editable_installation_finds_its_libraries(build, tmp_path):
    pip("install", *options(build), "--prefix", tmp_path, "--ignore-installed", "--editable", ROOT)
    (directory,) = tmp_path.glob("lib*/python*/site-packages")
    found = kernels(directory)
    assert Path(found["library"]).name == file_name("bertkit") and found["level"] in LEVELS


def test_without_a_compiler_portable_kernels_serve(tmp_path):
    pure = build_wheel(tmp_path, **NO_COMPILER)
    assert pure.name == f"bertkit-{bertkit.__version__}-py3-none-any.whl"
    zipfile.ZipFile(pure).extractall(tmp_path)
    found = kernels(tmp_path)
    assert (found["level"], found["library"]) == ("portable", None)
    assert "no compiled library" in found["reason"]


def test_the_source_distribution_can_be_compiled(tmp_path, monkeypatch):
    from scikit_build_core.build import build_sdist

    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build_sdist(str(tmp_path))) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "bertkit/core/csrc").iterdir()}
    assert sources < held and "tests/conftest.py" in held
    assert not LIBRARIES & held


# -- the libraries --------------------------------------------------------------------------------------------------
def symbols(file: Path, *options: str) -> list[tuple[str, str]]:
    """Kind and name of the symbols that a file defines."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    listed = subprocess.run(["nm", "--defined-only", *options, file], capture_output=True, text=True, check=True).stdout
    return [tuple(line.split()[-2:]) for line in listed.splitlines() if len(line.split()) >= 2]


@pytest.mark.skipif(sys.platform != "linux", reason="of the symbols of ELF")
def test_the_library_shows_its_interface_and_nothing_else(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    shown = {name for _, name in symbols(tmp_path / "bertkit/core/_native/libbertkit.so", "-D")}
    declared = set(re.findall(r"^BK_API.*?\b(bk_\w+)\(", (ROOT / "bertkit/core/csrc/bertkit.h").read_text(), re.MULTILINE))
    assert shown == declared


@pytest.mark.skipif(sys.platform != "linux", reason="of the symbols of ELF")
def test_no_level_shares_functions_with_another(wheel, build):
    """The linker would keep one copy of an inline function for all, perhaps that with instructions this CPU lacks."""
    objects = [path for path in build.rglob("*.o") if re.search(rf"_({'|'.join(LEVELS)})\.cpp", path.name)]
    assert len(objects) >= len(LEVELS) - 1
    weak = {path.name: found for path in objects if (found := [name for kind, name in symbols(path) if kind in "WVu"])}
    assert not weak


def test_the_code_for_amx_gives_the_oracles_integers_with_emulated_tiles(build, tmp_path):
    """On a CPU that has no tiles: the same code, in which plain C++ stands for the instructions."""
    emulated = build_wheel(tmp_path, *options(build, "ON"))
    zipfile.ZipFile(emulated).extractall(tmp_path)
    if kernels(tmp_path)["levels"]["avx512"] is not None:
        pytest.skip("needs AVX-512")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "amx", "tests/core/test_native_ibert.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={
        **os.environ, "BERTKIT_LIBRARY": str(tmp_path / "bertkit/core/_native"), "BERTKIT_KERNELS": "amx"})
    assert done.returncode == 0, done.stdout
    assert re.search(r"^[1-9]\d* passed", done.stdout, re.MULTILINE) and "skipped" not in done.stdout
