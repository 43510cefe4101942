"""What importing loads: no framework by itself, never the other one, and nothing that it does not need."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import bertkit.core
from bertkit.core.variants import VARIANTS
from tests.packaging.stubs import ROOT

FRAMEWORKS = ("torch", "tensorflow", "keras")
CORE = sorted(module.name for module in pkgutil.walk_packages(bertkit.core.__path__, "bertkit.core."))
OTHER = {"bertkit": ("tensorflow", "keras"), "bertkit_tf": ("torch",)}
NEEDS = {"bertkit": "torch", "bertkit_tf": "tensorflow"}
CLASSES = [variant.name + task for variant in VARIANTS.values() for task in variant.tasks]


def run(program: str, *, without: tuple[str, ...] = (), cwd: Path = ROOT) -> str:
    """Run a program in a fresh interpreter in which some packages cannot be imported; gives what it prints."""
    blocked = f"import sys\nfor name in {without!r}: sys.modules[name] = None\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", blocked + program], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(package: str) -> None:
    if find_spec(NEEDS[package]) is None:
        pytest.skip(f"needs {NEEDS[package]}")


@pytest.mark.parametrize("package", NEEDS)
def test_importing_a_package_loads_no_framework_and_writes_nothing(package):
    program = f"""
import os, sys
before = dict(os.environ)
import {package}
loaded = [name for name in {FRAMEWORKS!r} + ("numpy", "tokenizers", "huggingface_hub") if name in sys.modules]
print(loaded, os.environ == before, {package}.__version__)
"""
    assert run(program).split(" ", 1)[0] == "[]"
    assert run(program).strip().endswith(f"True {bertkit.__version__}")


def test_every_module_of_core_works_without_any_framework():
    imports = "\n".join(f"import {name}" for name in CORE)
    assert run(imports + "\nprint('fine')", without=FRAMEWORKS) == "fine\n"


def test_configurations_and_tokenizers_work_without_any_framework(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n")
    program = """
import bertkit, bertkit_tf
bertkit_tf.MobileBertConfig(num_labels=3).save_pretrained(".")
tokenizer = bertkit.AutoTokenizer.from_pretrained(".")
print(bertkit.AutoConfig.from_pretrained(".").num_labels, tokenizer("hello").input_ids)
"""
    assert run(program, without=FRAMEWORKS, cwd=tmp_path) == "3 [2, 5, 3]\n"


@pytest.mark.parametrize("package", NEEDS)
def test_every_class_loads_without_the_other_framework(package):
    needs(package)
    program = f"""
import {package}
for name in {package}.__all__:
    getattr({package}, name)
print([name for name in {OTHER[package]!r} if sys.modules.get(name)])
"""
    assert run(program, without=OTHER[package]) == "[]\n"


def test_the_classes_load_without_the_compiler_of_pytorch():
    """It takes as long to load as the rest of PyTorch."""
    needs("bertkit")
    program = """
import bertkit
for name in bertkit.__all__:
    getattr(bertkit, name)
print("torch._dynamo" in sys.modules)
"""
    assert run(program) == "False\n"


@pytest.mark.parametrize("package", NEEDS)
def test_a_class_whose_framework_is_missing_says_so(package):
    name = {"bertkit": "YosoModel", "bertkit_tf": "TFYosoModel"}[package]
    program = f"""
import {package}
try:
    {package}.{name}
except ImportError as error:
    print(type(error).__name__, error)
"""
    assert NEEDS[package] in run(program, without=FRAMEWORKS)


def test_the_command_line_shows_its_help_without_a_framework():
    program = """
from bertkit.cli import main
print(main(["--help"]), [name for name in ("torch", "tensorflow", "keras") if sys.modules.get(name)])
"""
    printed = run(program, without=FRAMEWORKS)
    assert printed.rstrip().endswith("0 []")
    assert all(command in printed for command in ("convert", "inspect", "verify", "predict"))
