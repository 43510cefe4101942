# Written by tests/packaging/stubs.py from the table in __init__.py.
from bertkit.auto import AutoModel as AutoModel
from bertkit.auto import AutoModelForCausalLM as AutoModelForCausalLM
from bertkit.auto import AutoModelForMaskedLM as AutoModelForMaskedLM
from bertkit.auto import AutoModelForMultipleChoice as AutoModelForMultipleChoice
from bertkit.auto import AutoModelForNextSentencePrediction as AutoModelForNextSentencePrediction
from bertkit.auto import AutoModelForPreTraining as AutoModelForPreTraining
from bertkit.auto import AutoModelForQuestionAnswering as AutoModelForQuestionAnswering
from bertkit.auto import AutoModelForSequenceClassification as AutoModelForSequenceClassification
from bertkit.auto import AutoModelForTokenClassification as AutoModelForTokenClassification
from bertkit.calibration import calibrate as calibrate
from bertkit.core.auto import AutoConfig as AutoConfig
from bertkit.core.calibration import CalibrationReport as CalibrationReport
from bertkit.core.config import PretrainedConfig as PretrainedConfig
from bertkit.core.errors import BackendError as BackendError
from bertkit.core.errors import BertkitError as BertkitError
from bertkit.core.errors import CheckpointError as CheckpointError
from bertkit.core.errors import ConfigError as ConfigError
from bertkit.core.errors import InputError as InputError
from bertkit.core.errors import TokenizerError as TokenizerError
from bertkit.core.freezing import FreezeError as FreezeError
from bertkit.core.hub import HubError as HubError
from bertkit.core.ibert import IBertConfig as IBertConfig
from bertkit.core.megatron_bert import MegatronBertConfig as MegatronBertConfig
from bertkit.core.mobilebert import MobileBertConfig as MobileBertConfig
from bertkit.core.native import KernelsStatus as KernelsStatus
from bertkit.core.native import kernels_status as kernels_status
from bertkit.core.native import use_kernels as use_kernels
from bertkit.core.quantization import CalibrationError as CalibrationError
from bertkit.core.tokenization import AutoTokenizer as AutoTokenizer
from bertkit.core.tokenization import BatchEncoding as BatchEncoding
from bertkit.core.tokenization import BertTokenizer as BertTokenizer
from bertkit.core.tokenization import BertTokenizerFast as BertTokenizerFast
from bertkit.core.tokenization import MobileBertTokenizer as MobileBertTokenizer
from bertkit.core.tokenization import MobileBertTokenizerFast as MobileBertTokenizerFast
from bertkit.core.tokenization import PreTrainedTokenizerFast as PreTrainedTokenizerFast
from bertkit.core.tokenization import RobertaTokenizer as RobertaTokenizer
from bertkit.core.tokenization import RobertaTokenizerFast as RobertaTokenizerFast
from bertkit.core.yoso import YosoConfig as YosoConfig
from bertkit.integer import freeze as freeze
from bertkit.kernels.lsh import fast_hash as fast_hash
from bertkit.kernels.lsh import lsh_cumulation as lsh_cumulation
from bertkit.kernels.lsh import lsh_weighted_cumulation as lsh_weighted_cumulation
from bertkit.modeling import PreTrainedModel as PreTrainedModel
from bertkit.models.ibert import IBertForMaskedLM as IBertForMaskedLM
from bertkit.models.ibert import IBertForMultipleChoice as IBertForMultipleChoice
from bertkit.models.ibert import IBertForQuestionAnswering as IBertForQuestionAnswering
from bertkit.models.ibert import IBertForSequenceClassification as IBertForSequenceClassification
from bertkit.models.ibert import IBertForTokenClassification as IBertForTokenClassification
from bertkit.models.ibert import IBertModel as IBertModel
from bertkit.models.megatron_bert import MegatronBertForCausalLM as MegatronBertForCausalLM
from bertkit.models.megatron_bert import MegatronBertForMaskedLM as MegatronBertForMaskedLM
from bertkit.models.megatron_bert import MegatronBertForMultipleChoice as MegatronBertForMultipleChoice
from bertkit.models.megatron_bert import MegatronBertForNextSentencePrediction as MegatronBertForNextSentencePrediction
from bertkit.models.megatron_bert import MegatronBertForPreTraining as MegatronBertForPreTraining
from bertkit.models.megatron_bert import MegatronBertForQuestionAnswering as MegatronBertForQuestionAnswering
from bertkit.models.megatron_bert import MegatronBertForSequenceClassification as MegatronBertForSequenceClassification
from bertkit.models.megatron_bert import MegatronBertForTokenClassification as MegatronBertForTokenClassification
from bertkit.models.megatron_bert import MegatronBertModel as MegatronBertModel
from bertkit.models.mobilebert import MobileBertForMaskedLM as MobileBertForMaskedLM
from bertkit.models.mobilebert import MobileBertForMultipleChoice as MobileBertForMultipleChoice
from bertkit.models.mobilebert import MobileBertForNextSentencePrediction as MobileBertForNextSentencePrediction
from bertkit.models.mobilebert import MobileBertForPreTraining as MobileBertForPreTraining
from bertkit.models.mobilebert import MobileBertForQuestionAnswering as MobileBertForQuestionAnswering
from bertkit.models.mobilebert import MobileBertForSequenceClassification as MobileBertForSequenceClassification
from bertkit.models.mobilebert import MobileBertForTokenClassification as MobileBertForTokenClassification
from bertkit.models.mobilebert import MobileBertModel as MobileBertModel
from bertkit.models.yoso import YosoForMaskedLM as YosoForMaskedLM
from bertkit.models.yoso import YosoForMultipleChoice as YosoForMultipleChoice
from bertkit.models.yoso import YosoForQuestionAnswering as YosoForQuestionAnswering
from bertkit.models.yoso import YosoForSequenceClassification as YosoForSequenceClassification
from bertkit.models.yoso import YosoForTokenClassification as YosoForTokenClassification
from bertkit.models.yoso import YosoModel as YosoModel
from bertkit.outputs import BaseModelOutputWithCrossAttentions as BaseModelOutputWithCrossAttentions
from bertkit.outputs import BaseModelOutputWithPooling as BaseModelOutputWithPooling
from bertkit.outputs import BaseModelOutputWithPoolingAndCrossAttentions as BaseModelOutputWithPoolingAndCrossAttentions
from bertkit.outputs import CausalLMOutputWithCrossAttentions as CausalLMOutputWithCrossAttentions
from bertkit.outputs import MaskedLMOutput as MaskedLMOutput
from bertkit.outputs import MegatronBertForPreTrainingOutput as MegatronBertForPreTrainingOutput
from bertkit.outputs import MobileBertForPreTrainingOutput as MobileBertForPreTrainingOutput
from bertkit.outputs import ModelOutput as ModelOutput
from bertkit.outputs import MultipleChoiceModelOutput as MultipleChoiceModelOutput
from bertkit.outputs import NextSentencePredictorOutput as NextSentencePredictorOutput
from bertkit.outputs import QuestionAnsweringModelOutput as QuestionAnsweringModelOutput
from bertkit.outputs import SequenceClassifierOutput as SequenceClassifierOutput
from bertkit.outputs import TokenClassifierOutput as TokenClassifierOutput

__version__: str
__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "BackendError",
    "BaseModelOutputWithCrossAttentions",
    "BaseModelOutputWithPooling",
    "BaseModelOutputWithPoolingAndCrossAttentions",
    "BatchEncoding",
    "BertTokenizer",
    "BertTokenizerFast",
    "BertkitError",
    "CalibrationError",
    "CalibrationReport",
    "CausalLMOutputWithCrossAttentions",
    "CheckpointError",
    "ConfigError",
    "FreezeError",
    "HubError",
    "IBertConfig",
    "IBertForMaskedLM",
    "IBertForMultipleChoice",
    "IBertForQuestionAnswering",
    "IBertForSequenceClassification",
    "IBertForTokenClassification",
    "IBertModel",
    "InputError",
    "KernelsStatus",
    "MaskedLMOutput",
    "MegatronBertConfig",
    "MegatronBertForCausalLM",
    "MegatronBertForMaskedLM",
    "MegatronBertForMultipleChoice",
    "MegatronBertForNextSentencePrediction",
    "MegatronBertForPreTraining",
    "MegatronBertForPreTrainingOutput",
    "MegatronBertForQuestionAnswering",
    "MegatronBertForSequenceClassification",
    "MegatronBertForTokenClassification",
    "MegatronBertModel",
    "MobileBertConfig",
    "MobileBertForMaskedLM",
    "MobileBertForMultipleChoice",
    "MobileBertForNextSentencePrediction",
    "MobileBertForPreTraining",
    "MobileBertForPreTrainingOutput",
    "MobileBertForQuestionAnswering",
    "MobileBertForSequenceClassification",
    "MobileBertForTokenClassification",
    "MobileBertModel",
    "MobileBertTokenizer",
    "MobileBertTokenizerFast",
    "ModelOutput",
    "MultipleChoiceModelOutput",
    "NextSentencePredictorOutput",
    "PreTrainedModel",
    "PreTrainedTokenizerFast",
    "PretrainedConfig",
    "QuestionAnsweringModelOutput",
    "RobertaTokenizer",
    "RobertaTokenizerFast",
    "SequenceClassifierOutput",
    "TokenClassifierOutput",
    "TokenizerError",
    "YosoConfig",
    "YosoForMaskedLM",
    "YosoForMultipleChoice",
    "YosoForQuestionAnswering",
    "YosoForSequenceClassification",
    "YosoForTokenClassification",
    "YosoModel",
    "calibrate",
    "fast_hash",
    "freeze",
    "kernels_status",
    "lsh_cumulation",
    "lsh_weighted_cumulation",
    "use_kernels",
]
