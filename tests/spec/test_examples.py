"""Every example of the specification's pages runs when only its import line is changed."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest

from bertkit.core.hub import HubError
from bertkit.core.outputs import ModelOutput
from tests.spec import hub, pages
from tests.spec.pages import Example

EXAMPLES = [example for page in pages.PAGES for example in pages.examples(page)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The hub, offline: its cache holds what the examples ask for."""
    directory = tmp_path_factory.mktemp("hub")
    hub.make_cache(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(directory))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield directory


def run(example: Example, package: str) -> tuple[dict[str, Any], dict[int, Any]]:
    """The names that an example leaves behind, and the values of its bare expressions by line."""
    source = example.source.replace("from transformers import", f"from {package} import")
    names: dict[str, Any] = {}
    shown = {}
    with warnings.catch_warnings():
        # A base checkpoint in a task class: the examples do that, and the user is told.
        warnings.filterwarnings("ignore", message="(?s).*(newly initialised|left out)")
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Expr):
                shown[statement.end_lineno] = eval(compile(ast.Expression(statement.value), str(example), "eval"), names)
            else:
                exec(compile(ast.Module([statement], []), str(example), "exec"), names)
    return names, shown


def numbers(value: Any) -> np.ndarray:
    return value.detach().numpy() if hasattr(value, "detach") else np.asarray(value)


def at_full_size(example: Example) -> list[pytest.MarkDecorator]:
    """The configurations' examples make a model of the published size."""
    return [pytest.mark.slow] if example.owner.endswith("Config") else []


@pytest.mark.parametrize("example", [pytest.param(e, id=str(e), marks=at_full_size(e)) for e in EXAMPLES])
def test_example(example: Example, cache: Path):
    in_tensorflow = "import TF" in example.source or ", TF" in example.source
    pytest.importorskip("tensorflow" if in_tensorflow else "torch", exc_type=ImportError)
    names, shown = run(example, "bertkit_tf" if in_tensorflow else "bertkit")
    check_printed(example, shown)
    for name in ("loss", "logits", "prediction_logits", "seq_relationship_logits", "last_hidden_states", "start_logits"):
        if name in names:
            assert np.isfinite(numbers(names[name])).all(), name
    if "loss" in names:
        assert numbers(names["loss"]).shape == ()
    if "outputs" in names:
        assert isinstance(names["outputs"], ModelOutput)


def check_printed(example: Example, shown: dict[int, Any]) -> None:
    """What the page prints is of the type that we give; the numbers are those of other weights."""
    for line, text in example.printed:
        try:
            documented = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            continue
        if line in shown and documented is not ...:
            assert type(shown[line]) is type(documented), (line, text, shown[line])


@pytest.mark.skipif(not EXAMPLES, reason="needs the pages of ../shared/spec")
def test_all_examples_were_found():
    per_page = {page.name[:3]: len(list(pages.examples(page))) for page in pages.PAGES}
    assert per_page == {"000": 7, "001": 10, "002": 6, "003": 18, "004": 8}


def test_a_name_that_is_not_in_the_cache(cache: Path):
    from bertkit import AutoConfig

    with pytest.raises(HubError, match="could not be fetched"):
        AutoConfig.from_pretrained("owner/unknown")


def test_the_hub_gives_configuration_and_tokenizer_without_a_framework(cache: Path):
    from bertkit import AutoConfig, AutoTokenizer

    for name, repository in hub.REPOSITORIES.items():
        config, tokenizer = AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
        assert config.model_type == repository.variant
        assert (len(tokenizer), tokenizer.mask_token) == (config.vocab_size, repository.mask)
        assert tokenizer(f"a {repository.mask}").input_ids[-2] == tokenizer.mask_token_id
