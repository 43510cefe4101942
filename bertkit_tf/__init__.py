"""bertkit_tf: MobileBERT, I-BERT, MegatronBERT and YOSO for TensorFlow and Keras 3; `bertkit` has them for PyTorch.

Names are loaded when they are first used, so that importing this package loads no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import bertkit
from bertkit import __version__ as __version__

_NEUTRAL = [name for name, home in bertkit._HOME_OF.items() if home.startswith("core.")]
_MIRRORED = {name: home for name, home in bertkit._HOME_OF.items() if home in ("modeling", "outputs", "auto")
             or home.startswith("models.")}
_HOME_OF = {
    **{f"TF{name}": home for name, home in _MIRRORED.items() if name != "ModelOutput"},
    "ModelOutput": "outputs",
    "calibrate": "calibration",
    "freeze": "integer",
    "load_model": "auto",
    "fast_hash": "kernels.lsh",
    "lsh_cumulation": "kernels.lsh",
    "lsh_weighted_cumulation": "kernels.lsh",
}

__all__ = sorted([*_HOME_OF, *_NEUTRAL])


def __getattr__(name: str) -> Any:
    if name in _NEUTRAL:
        value = getattr(bertkit, name)
    elif name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
