"""What the equivalence tests share: filling a model with golden weights and running a golden case."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertkit.core.spec import Param
from bertkit.core.variants import find_variant
from tests.fixtures.cases import Case
from tests.fixtures.fill import fill


def config_of(case: Case) -> Any:
    """The configuration of a case, set to behave as transformers does where that is a switch."""
    values = dict(case.config)
    if case.variant == "ibert":
        values["hf_compat_scales"] = True
    return find_variant(case.variant).config(**values)


def golden_value(param: Param, case: Case) -> np.ndarray | None:
    """The value that the golden script gave a tensor; None where the model keeps its own."""
    if param.kind == "stat":
        return case.state.get(param.name)
    return fill(param.name, param.shape, case.config.get("tie_word_embeddings", True))
