"""The public names of both packages: they resolve, pickle, and are visible to editors."""

from __future__ import annotations

import importlib
import inspect
import pickle

import pytest

from bertkit.core.variants import VARIANTS
from tests.packaging.stubs import PACKAGES, file_of, stub

PREFIX = {"bertkit": "", "bertkit_tf": "TF"}
FRAMEWORK = {"bertkit": "torch", "bertkit_tf": "tensorflow"}


@pytest.fixture(params=PACKAGES)
def package(request):
    pytest.importorskip(FRAMEWORK[request.param], exc_type=ImportError)
    return importlib.import_module(request.param)


def test_every_name_resolves_and_is_documented(package):
    for name in package.__all__:
        value = getattr(package, name)
        assert value.__doc__, name
        assert value.__module__.split(".")[0] in PACKAGES, name


def test_the_29_classes_are_public(package):
    names = [PREFIX[package.__name__] + name for variant in VARIANTS.values() for name in variant.class_names()]
    assert len(names) == 29
    assert set(names) <= set(package.__all__)


def test_star_import_and_dir(package):
    namespace: dict = {}
    exec(f"from {package.__name__} import *", namespace)
    assert set(package.__all__) <= set(namespace)
    assert {*package.__all__, "__version__"} <= set(dir(package))
    assert package.__all__ == sorted(set(package.__all__))


def test_no_other_name(package):
    with pytest.raises(AttributeError, match="no attribute 'YosoForChess'"):
        _ = package.YosoForChess
    with pytest.raises(ImportError, match="YosoForChess"):
        exec(f"from {package.__name__} import YosoForChess")


def test_classes_pickle_by_reference(package):
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isclass(value):
            assert pickle.loads(pickle.dumps(value)) is value


def test_neutral_names_are_the_same_in_both():
    import bertkit
    import bertkit_tf

    for name in ("MobileBertConfig", "AutoTokenizer", "AutoConfig", "CheckpointError"):
        assert getattr(bertkit, name) is getattr(bertkit_tf, name)
    assert bertkit.__version__ == bertkit_tf.__version__


@pytest.mark.parametrize("name", PACKAGES)
def test_the_stub_is_what_the_table_says(name):
    assert file_of(name).read_text("utf-8") == stub(name), "run python -m tests.packaging.stubs"
