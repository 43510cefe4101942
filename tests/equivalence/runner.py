"""What the equivalence tests share: the configuration and the weights of a golden case."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertkit.core.spec import Param
from bertkit.core.variants import find_variant
from tests.fixtures.cases import Case
from tests.fixtures.fill import fill


def config_of(case: Case) -> Any:
    """The configuration of a case, set to behave as transformers does where that is a switch."""
    switches = {"hf_compat_scales": True} if case.variant == "ibert" else {}
    return find_variant(case.variant).config(**case.config, **switches)


def golden_value(param: Param, case: Case) -> np.ndarray | None:
    """The value that the golden script gave a tensor; None where the model keeps its own."""
    if param.kind == "stat":
        return case.state.get(param.name)
    return fill(param.name, param.shape, case.config.get("tie_word_embeddings", True))


def compared_outputs(case: Case, errors: dict[str, float]) -> dict[str, float]:
    """The errors that mean something: transformers' YOSO gives contexts in the place of attention weights."""
    return {name: error for name, error in errors.items() if case.variant != "yoso" or not name.startswith("attentions.")}


def is_transformers_bug(case: Case) -> bool:
    """Cases that show a gradient which transformers loses; the repaired twin of each is compared instead."""
    return case.id.endswith("_unrepaired")
