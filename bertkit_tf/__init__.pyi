# Written by tests/packaging/stubs.py from the table in __init__.py.
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
from bertkit_tf.auto import TFAutoModel as TFAutoModel
from bertkit_tf.auto import TFAutoModelForCausalLM as TFAutoModelForCausalLM
from bertkit_tf.auto import TFAutoModelForMaskedLM as TFAutoModelForMaskedLM
from bertkit_tf.auto import TFAutoModelForMultipleChoice as TFAutoModelForMultipleChoice
from bertkit_tf.auto import TFAutoModelForNextSentencePrediction as TFAutoModelForNextSentencePrediction
from bertkit_tf.auto import TFAutoModelForPreTraining as TFAutoModelForPreTraining
from bertkit_tf.auto import TFAutoModelForQuestionAnswering as TFAutoModelForQuestionAnswering
from bertkit_tf.auto import TFAutoModelForSequenceClassification as TFAutoModelForSequenceClassification
from bertkit_tf.auto import TFAutoModelForTokenClassification as TFAutoModelForTokenClassification
from bertkit_tf.auto import load_model as load_model
from bertkit_tf.calibration import calibrate as calibrate
from bertkit_tf.integer import freeze as freeze
from bertkit_tf.kernels.lsh import fast_hash as fast_hash
from bertkit_tf.kernels.lsh import lsh_cumulation as lsh_cumulation
from bertkit_tf.kernels.lsh import lsh_weighted_cumulation as lsh_weighted_cumulation
from bertkit_tf.modeling import TFPreTrainedModel as TFPreTrainedModel
from bertkit_tf.models.ibert import TFIBertForMaskedLM as TFIBertForMaskedLM
from bertkit_tf.models.ibert import TFIBertForMultipleChoice as TFIBertForMultipleChoice
from bertkit_tf.models.ibert import TFIBertForQuestionAnswering as TFIBertForQuestionAnswering
from bertkit_tf.models.ibert import TFIBertForSequenceClassification as TFIBertForSequenceClassification
from bertkit_tf.models.ibert import TFIBertForTokenClassification as TFIBertForTokenClassification
from bertkit_tf.models.ibert import TFIBertModel as TFIBertModel
from bertkit_tf.models.megatron_bert import TFMegatronBertForCausalLM as TFMegatronBertForCausalLM
from bertkit_tf.models.megatron_bert import TFMegatronBertForMaskedLM as TFMegatronBertForMaskedLM
from bertkit_tf.models.megatron_bert import TFMegatronBertForMultipleChoice as TFMegatronBertForMultipleChoice
from bertkit_tf.models.megatron_bert import TFMegatronBertForNextSentencePrediction as TFMegatronBertForNextSentencePrediction
from bertkit_tf.models.megatron_bert import TFMegatronBertForPreTraining as TFMegatronBertForPreTraining
from bertkit_tf.models.megatron_bert import TFMegatronBertForQuestionAnswering as TFMegatronBertForQuestionAnswering
from bertkit_tf.models.megatron_bert import TFMegatronBertForSequenceClassification as TFMegatronBertForSequenceClassification
from bertkit_tf.models.megatron_bert import TFMegatronBertForTokenClassification as TFMegatronBertForTokenClassification
from bertkit_tf.models.megatron_bert import TFMegatronBertModel as TFMegatronBertModel
from bertkit_tf.models.mobilebert import TFMobileBertForMaskedLM as TFMobileBertForMaskedLM
from bertkit_tf.models.mobilebert import TFMobileBertForMultipleChoice as TFMobileBertForMultipleChoice
from bertkit_tf.models.mobilebert import TFMobileBertForNextSentencePrediction as TFMobileBertForNextSentencePrediction
from bertkit_tf.models.mobilebert import TFMobileBertForPreTraining as TFMobileBertForPreTraining
from bertkit_tf.models.mobilebert import TFMobileBertForQuestionAnswering as TFMobileBertForQuestionAnswering
from bertkit_tf.models.mobilebert import TFMobileBertForSequenceClassification as TFMobileBertForSequenceClassification
from bertkit_tf.models.mobilebert import TFMobileBertForTokenClassification as TFMobileBertForTokenClassification
from bertkit_tf.models.mobilebert import TFMobileBertModel as TFMobileBertModel
from bertkit_tf.models.yoso import TFYosoForMaskedLM as TFYosoForMaskedLM
from bertkit_tf.models.yoso import TFYosoForMultipleChoice as TFYosoForMultipleChoice
from bertkit_tf.models.yoso import TFYosoForQuestionAnswering as TFYosoForQuestionAnswering
from bertkit_tf.models.yoso import TFYosoForSequenceClassification as TFYosoForSequenceClassification
from bertkit_tf.models.yoso import TFYosoForTokenClassification as TFYosoForTokenClassification
from bertkit_tf.models.yoso import TFYosoModel as TFYosoModel
from bertkit_tf.outputs import ModelOutput as ModelOutput
from bertkit_tf.outputs import TFBaseModelOutputWithCrossAttentions as TFBaseModelOutputWithCrossAttentions
from bertkit_tf.outputs import TFBaseModelOutputWithPooling as TFBaseModelOutputWithPooling
from bertkit_tf.outputs import TFBaseModelOutputWithPoolingAndCrossAttentions as TFBaseModelOutputWithPoolingAndCrossAttentions
from bertkit_tf.outputs import TFCausalLMOutputWithCrossAttentions as TFCausalLMOutputWithCrossAttentions
from bertkit_tf.outputs import TFMaskedLMOutput as TFMaskedLMOutput
from bertkit_tf.outputs import TFMegatronBertForPreTrainingOutput as TFMegatronBertForPreTrainingOutput
from bertkit_tf.outputs import TFMobileBertForPreTrainingOutput as TFMobileBertForPreTrainingOutput
from bertkit_tf.outputs import TFMultipleChoiceModelOutput as TFMultipleChoiceModelOutput
from bertkit_tf.outputs import TFNextSentencePredictorOutput as TFNextSentencePredictorOutput
from bertkit_tf.outputs import TFQuestionAnsweringModelOutput as TFQuestionAnsweringModelOutput
from bertkit_tf.outputs import TFSequenceClassifierOutput as TFSequenceClassifierOutput
from bertkit_tf.outputs import TFTokenClassifierOutput as TFTokenClassifierOutput

__version__: str
__all__ = [
    "AutoConfig",
    "AutoTokenizer",
    "BackendError",
    "BatchEncoding",
    "BertTokenizer",
    "BertTokenizerFast",
    "BertkitError",
    "CalibrationError",
    "CalibrationReport",
    "CheckpointError",
    "ConfigError",
    "FreezeError",
    "HubError",
    "IBertConfig",
    "InputError",
    "KernelsStatus",
    "MegatronBertConfig",
    "MobileBertConfig",
    "MobileBertTokenizer",
    "MobileBertTokenizerFast",
    "ModelOutput",
    "PreTrainedTokenizerFast",
    "PretrainedConfig",
    "RobertaTokenizer",
    "RobertaTokenizerFast",
    "TFAutoModel",
    "TFAutoModelForCausalLM",
    "TFAutoModelForMaskedLM",
    "TFAutoModelForMultipleChoice",
    "TFAutoModelForNextSentencePrediction",
    "TFAutoModelForPreTraining",
    "TFAutoModelForQuestionAnswering",
    "TFAutoModelForSequenceClassification",
    "TFAutoModelForTokenClassification",
    "TFBaseModelOutputWithCrossAttentions",
    "TFBaseModelOutputWithPooling",
    "TFBaseModelOutputWithPoolingAndCrossAttentions",
    "TFCausalLMOutputWithCrossAttentions",
    "TFIBertForMaskedLM",
    "TFIBertForMultipleChoice",
    "TFIBertForQuestionAnswering",
    "TFIBertForSequenceClassification",
    "TFIBertForTokenClassification",
    "TFIBertModel",
    "TFMaskedLMOutput",
    "TFMegatronBertForCausalLM",
    "TFMegatronBertForMaskedLM",
    "TFMegatronBertForMultipleChoice",
    "TFMegatronBertForNextSentencePrediction",
    "TFMegatronBertForPreTraining",
    "TFMegatronBertForPreTrainingOutput",
    "TFMegatronBertForQuestionAnswering",
    "TFMegatronBertForSequenceClassification",
    "TFMegatronBertForTokenClassification",
    "TFMegatronBertModel",
    "TFMobileBertForMaskedLM",
    "TFMobileBertForMultipleChoice",
    "TFMobileBertForNextSentencePrediction",
    "TFMobileBertForPreTraining",
    "TFMobileBertForPreTrainingOutput",
    "TFMobileBertForQuestionAnswering",
    "TFMobileBertForSequenceClassification",
    "TFMobileBertForTokenClassification",
    "TFMobileBertModel",
    "TFMultipleChoiceModelOutput",
    "TFNextSentencePredictorOutput",
    "TFPreTrainedModel",
    "TFQuestionAnsweringModelOutput",
    "TFSequenceClassifierOutput",
    "TFTokenClassifierOutput",
    "TFYosoForMaskedLM",
    "TFYosoForMultipleChoice",
    "TFYosoForQuestionAnswering",
    "TFYosoForSequenceClassification",
    "TFYosoForTokenClassification",
    "TFYosoModel",
    "TokenizerError",
    "YosoConfig",
    "calibrate",
    "fast_hash",
    "freeze",
    "kernels_status",
    "load_model",
    "lsh_cumulation",
    "lsh_weighted_cumulation",
    "use_kernels",
]
