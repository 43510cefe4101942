"""The four variants, by the `model_type` that config.json names."""

from __future__ import annotations

from bertkit.core.errors import ConfigError
from bertkit.core.ibert import IBERT
from bertkit.core.megatron_bert import MEGATRON_BERT
from bertkit.core.mobilebert import MOBILEBERT
from bertkit.core.spec import Variant
from bertkit.core.yoso import YOSO

VARIANTS: dict[str, Variant] = {
    variant.config.model_type: variant for variant in (IBERT, MEGATRON_BERT, MOBILEBERT, YOSO)
}


def find_variant(model_type: str | None) -> Variant:
    """The variant of a `model_type`.

    Raises:
        ConfigError: naming the variants that there are.
    """
    if not isinstance(model_type, str) or model_type not in VARIANTS:
        raise ConfigError(f"model_type: got {model_type!r}, expected one of {', '.join(map(repr, VARIANTS))}",
                          remedy="Other models can be converted where their architecture allows; see `bertkit convert --help`.")
    return VARIANTS[model_type]
