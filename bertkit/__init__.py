"""bertkit: MobileBERT, I-BERT, MegatronBERT and YOSO for PyTorch; `bertkit_tf` has them for TensorFlow.

Names are loaded when they are first used, so that importing this package loads no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_TASKS = {
    "mobilebert": ("MobileBert", "PreTraining MaskedLM NextSentencePrediction SequenceClassification MultipleChoice "
                                 "TokenClassification QuestionAnswering"),
    "ibert": ("IBert", "MaskedLM SequenceClassification MultipleChoice TokenClassification QuestionAnswering"),
    "megatron_bert": ("MegatronBert", "PreTraining MaskedLM CausalLM NextSentencePrediction SequenceClassification "
                                      "MultipleChoice TokenClassification QuestionAnswering"),
    "yoso": ("Yoso", "MaskedLM SequenceClassification MultipleChoice TokenClassification QuestionAnswering"),
}
_HOMES = {
    "core.config": "PretrainedConfig",
    "core.errors": "BertkitError ConfigError CheckpointError InputError TokenizerError BackendError",
    "core.hub": "HubError",
    "core.native": "KernelsStatus kernels_status use_kernels",
    "core.quantization": "CalibrationError",
    "core.auto": "AutoConfig",
    "core.tokenization": "AutoTokenizer BatchEncoding BertTokenizer BertTokenizerFast MobileBertTokenizer "
                         "MobileBertTokenizerFast PreTrainedTokenizerFast RobertaTokenizer RobertaTokenizerFast",
    "core.freezing": "FreezeError",
    "modeling": "PreTrainedModel",
    "core.calibration": "CalibrationReport",
    "calibration": "calibrate",
    "integer": "freeze",
    "outputs": "ModelOutput BaseModelOutputWithCrossAttentions BaseModelOutputWithPooling "
               "BaseModelOutputWithPoolingAndCrossAttentions CausalLMOutputWithCrossAttentions MaskedLMOutput "
               "MegatronBertForPreTrainingOutput MobileBertForPreTrainingOutput MultipleChoiceModelOutput "
               "NextSentencePredictorOutput QuestionAnsweringModelOutput SequenceClassifierOutput TokenClassifierOutput",
    "auto": "AutoModel AutoModelForPreTraining AutoModelForMaskedLM AutoModelForCausalLM "
            "AutoModelForNextSentencePrediction AutoModelForSequenceClassification AutoModelForMultipleChoice "
            "AutoModelForTokenClassification AutoModelForQuestionAnswering",
    "kernels.lsh": "fast_hash lsh_cumulation lsh_weighted_cumulation",
    **{f"core.{file}": f"{name}Config" for file, (name, _) in _TASKS.items()},
    **{f"models.{file}": " ".join([f"{name}Model", *(f"{name}For{task}" for task in tasks.split())])
       for file, (name, tasks) in _TASKS.items()},
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
