"""What is measured for I-BERT: RoBERTa-base's layers in every engine, and bertkit's integers at every level.

All get the same random weights and the same ids, so that their hidden states can be compared. Other engines get
transformers' RoBERTa in the form that is fastest for them, without masks; ours are called as users call them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.bench.engines import CompiledTorch, CTranslate2, Engine, OnnxRuntime, OpenVino, TensorFlow, Torch
from bertkit.bench.report import draw_bars
from bertkit.bench.subjects import PRECISIONS, Setup, Subject, largest_shares, token_ids
from bertkit.core.ibert import IBERT, IBertConfig
from bertkit.core.native import LEVELS, PORTABLE

ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
"""What RoBERTa-base has otherwise than I-BERT's defaults."""
BASELINE = "torch-eager"
"""The subject that speed-ups refer to."""
PACKAGES = ("torch", "tensorflow", "tensorflow-cpu", "keras", "transformers", "onnxruntime", "openvino", "nncf", "torchao",
            "ctranslate2")
CALIBRATION_BATCHES, CALIBRATION_SHAPE = 4, (4, 128)
SLOW_TOKENS = 1024
PHASES = ("embeddings", "query, key, value", "attention", "attention's output", "attention's norm", "inner with GELU", "output",
          "output's norm")
"""bk_ibert_phase of csrc/bertkit.h."""


LENGTHS, BATCHES = [32, 128, 384, 512], [1, 8, 32]
"""What is measured where nothing else is asked for."""


def make_setup(directory: str, threads: int, layers: int) -> Setup:
    """The model of a run."""
    config = IBertConfig(**ROBERTA, num_hidden_layers=layers).to_dict()
    return Setup(directory, threads, config, weights(config))


def longest(config: dict[str, Any]) -> int:
    """Tokens of the longest sequence."""
    return config["max_position_embeddings"] - 2


def title(found: Mapping[str, Any]) -> str:
    """What stands above the picture."""
    return (f"I-BERT beside other engines: speed-up over {found['baseline']}, {found['threads']} threads, "
            f"{found['machine']['cpu']}")


draw = draw_bars


def work(subject: Subject, config: dict[str, Any], batch: int, length: int) -> tuple[int, int]:
    """Multiplications and additions of all layers' products, and the bytes of their weights.

    Example:
        >>> work(SUBJECTS[BASELINE], IBertConfig().to_dict(), 1, 128)[0] / 1e9
        22.347251712
    """
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    operations = batch * length * (2 * weights(config) + layers * 4 * length * width)
    return operations, weights(config) * PRECISIONS[subject.precision]


def weights(config: dict[str, Any]) -> int:
    """Weights of all layers' products.

    Example:
        >>> weights(IBertConfig().to_dict())
        84934656
    """
    width, inner = config["hidden_size"], config["intermediate_size"]
    return config["num_hidden_layers"] * (4 * width * width + 2 * width * inner)


# -- models -------------------------------------------------------------------------------------------------------------
def _config(setup: Setup) -> IBertConfig:
    return IBertConfig(**{name: value for name, value in setup.config.items() if name != "model_type"})


def _calibration(setup: Setup) -> list[np.ndarray]:
    shape = (CALIBRATION_SHAPE[0], min(CALIBRATION_SHAPE[1], setup.config["max_position_embeddings"] - 2))
    return [token_ids(*shape, setup.config["vocab_size"], seed) for seed in range(1, 1 + CALIBRATION_BATCHES)]


def _roberta(setup: Setup, attention: str) -> Any:
    """transformers' RoBERTa with the weights of the run."""
    from safetensors.torch import load_file
    from transformers import RobertaConfig, RobertaModel

    known = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
             "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id")
    config = RobertaConfig(**{name: setup.config[name] for name in known}, attn_implementation=attention)
    model = RobertaModel(config, add_pooling_layer=False)
    missing, _ = model.load_state_dict(load_file(setup.file("checkpoint") / "model.safetensors"), strict=False)
    if missing:
        raise ValueError(f"transformers' RoBERTa has tensors that I-BERT lacks: {', '.join(missing)}")
    return model.eval()


def _plain_roberta(setup: Setup, attention: str = "sdpa") -> Any:
    """The same as other engines like it best: no mask, and positions that need no arithmetic on the ids."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = _roberta(setup, attention)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            first = setup.config["pad_token_id"] + 1
            positions = torch.arange(first, first + ids.shape[1])[None]
            embedded = self.model.embeddings(input_ids=ids, position_ids=positions, token_type_ids=torch.zeros_like(ids))
            return self.model.encoder(embedded)[0]

    return Plain().eval()


def _ibert(setup: Setup, directory: str, **options: Any) -> Any:
    from bertkit import IBertModel

    return IBertModel.from_pretrained(setup.file(directory), add_pooling_layer=False, **options)


# -- what is made once --------------------------------------------------------------------------------------------------
def _make_checkpoint(setup: Setup, target: Path) -> None:
    """Random weights, as a float I-BERT."""
    from bertkit.core.checkpoint import write_checkpoint
    from bertkit.core.initial import initial_value

    config, random = _config(setup), np.random.default_rng(0)
    tensors = {param.name: initial_value(param, config, random)
               for param in IBERT.params("Model", config, pooled=False).values() if param.stored}
    write_checkpoint(target, tensors)
    config.save_pretrained(target)


def _make_calibrated(setup: Setup, target: Path, channel_scales: bool = True) -> None:
    """The same with the ranges of its activations."""
    import torch

    from bertkit import calibrate

    model = _ibert(setup, "checkpoint")
    calibrate(model, [{"input_ids": torch.from_numpy(ids)} for ids in _calibration(setup)], channel_scales=channel_scales)
    model.save_pretrained(target)


def _make_calibrated_plain(setup: Setup, target: Path) -> None:
    """With one range for each activation, which is all that transformers knows."""
    _make_calibrated(setup, target, channel_scales=False)


def _make_frozen(setup: Setup, target: Path) -> None:
    """The same in integers."""
    from bertkit import freeze

    freeze(_ibert(setup, "calibrated")).save_pretrained(target)


def _make_onnx(setup: Setup, target: Path) -> None:
    """RoBERTa as transformers computes it, for any batch and length."""
    import torch

    axes = {0: "batch", 1: "length"}
    torch.onnx.export(_plain_roberta(setup, "eager"), (torch.from_numpy(token_ids(2, 16, setup.config["vocab_size"])),),
                      target, input_names=["ids"], output_names=["hidden"], dynamic_axes={"ids": axes, "hidden": axes},
                      opset_version=18, dynamo=False)


def _fused(setup: Setup, attention: bool) -> Any:
    """The ONNX model with ONNX Runtime's operators for norms and GELU, and perhaps for attention."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.enable_attention = attention
    return optimize_model(str(setup.file("roberta.onnx")), "bert", setup.config["num_attention_heads"],
                          setup.config["hidden_size"], options, opt_level=0)


def _make_fused_onnx(setup: Setup, target: Path) -> None:
    _fused(setup, attention=True).save_model_to_file(str(target))


def _make_dynamic_onnx(setup: Setup, target: Path) -> None:
    """Weights in int8, activations quantised as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(setup.file("fused.onnx"), target, per_channel=True, weight_type=QuantType.QInt8,
                     extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})


def _make_static_onnx(setup: Setup, target: Path) -> None:
    """Weights and activations in int8, by ranges, with QuantizeLinear and DequantizeLinear."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        batches = iter(_calibration(setup))

        def get_next(self) -> dict[str, np.ndarray] | None:
            ids = next(self.batches, None)
            return None if ids is None else {"ids": ids}

    fused = target.with_name("unquantised.onnx")
    # With attention as one operator its products could not be quantised one by one.
    _fused(setup, attention=False).save_model_to_file(str(fused))
    # Where the type of a product's input is not known, the quantiser leaves it in float32.
    quant_pre_process(str(fused), str(fused), skip_optimization=True, skip_onnx_shape=True, auto_merge=True)
    quantize_static(fused, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=["MatMul"],
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})


def _make_openvino(setup: Setup, target: Path) -> None:
    import openvino
    import torch

    example = torch.from_numpy(token_ids(2, 16, setup.config["vocab_size"]))
    model = openvino.convert_model(_plain_roberta(setup), example_input=example, input=[(-1, -1)])
    target.mkdir()
    openvino.save_model(model, target / "model.xml", compress_to_fp16=False)


def _make_openvino_int8(setup: Setup, target: Path) -> None:
    import nncf
    import openvino

    batches = _calibration(setup)
    model = nncf.quantize(openvino.Core().read_model(setup.file("openvino") / "model.xml"), nncf.Dataset(batches),
                          subset_size=len(batches), model_type=nncf.ModelType.TRANSFORMER,
                          preset=nncf.QuantizationPreset.PERFORMANCE)
    target.mkdir()
    openvino.save_model(model, target / "model.xml", compress_to_fp16=False)


def _make_ctranslate2(setup: Setup, target: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    class Words:
        """A vocabulary without words: ids go in."""

        bos_token, eos_token, unk_token = "0", "2", "3"

        def get_vocab(self) -> dict[str, int]:
            return {str(row): row for row in range(setup.config["vocab_size"])}

    class Converter(TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> Words:
            return Words()

    from transformers import RobertaModel

    model = _roberta(setup, "eager")
    complete = RobertaModel(model.config)  # it insists on a pooler
    complete.load_state_dict(model.state_dict(), strict=False)
    source = target.with_name("roberta")
    complete.save_pretrained(source)
    Converter(str(source)).convert(str(target), quantization="int8")


ARTEFACTS = {
    "checkpoint": _make_checkpoint, "calibrated": _make_calibrated, "calibrated-plain": _make_calibrated_plain,
    "frozen": _make_frozen, "roberta.onnx": _make_onnx, "fused.onnx": _make_fused_onnx,
    "dynamic.onnx": _make_dynamic_onnx, "static.onnx": _make_static_onnx,
    "openvino": _make_openvino, "openvino-int8": _make_openvino_int8, "ctranslate2": _make_ctranslate2,
}
"""What is made before anything is measured, each in a process of its own."""


# -- subjects -----------------------------------------------------------------------------------------------------------
def _torch_eager(setup: Setup) -> Engine:
    from importlib.util import find_spec

    return Torch(_roberta(setup, "eager") if find_spec("transformers") else _ibert(setup, "checkpoint"), setup.threads)


def _torch_compiled(setup: Setup) -> Engine:
    return CompiledTorch(_plain_roberta(setup), setup.threads)


def _torch_compiled_bf16(setup: Setup) -> Engine:
    import torch

    return CompiledTorch(_plain_roberta(setup).to(torch.bfloat16), setup.threads)


def _inductor_int8(setup: Setup, autocast: bool = False) -> Engine:
    """PyTorch's quantisation of exported programs (pt2e) for inductor on x86."""
    import torch
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer

    torch.set_num_threads(setup.threads)
    batches = [torch.from_numpy(ids) for ids in _calibration(setup)]
    longest = setup.config["max_position_embeddings"] - 2
    shapes = {"ids": {0: torch.export.Dim("batch", max=1024), 1: torch.export.Dim("length", max=longest)}}
    quantizer = x86_inductor_quantizer.X86InductorQuantizer()
    quantizer.set_global(x86_inductor_quantizer.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        program = torch.export.export(_plain_roberta(setup), (batches[0],), dynamic_shapes=shapes)
        model = prepare_pt2e(program.module(), quantizer)
        for ids in batches:
            model(ids)
        model = convert_pt2e(model)
    move_exported_model_to_eval(model)
    return CompiledTorch(_Exported(model), setup.threads, autocast)


def _inductor_int8_bf16(setup: Setup) -> Engine:
    return _inductor_int8(setup, autocast=True)


class _Exported:
    """An exported program, which is in evaluation mode already and refuses to be put there again."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def eval(self) -> Any:
        return self.model


def _torchao_int8(setup: Setup) -> Engine:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = _plain_roberta(setup)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return CompiledTorch(model, setup.threads)


def _transformers_simulation(setup: Setup) -> Engine:
    from transformers import IBertModel

    model = IBertModel.from_pretrained(setup.file("calibrated-plain"), quant_mode=True, add_pooling_layer=False)
    return Simulated(model, setup.threads)


class Simulated(Torch):
    """A model whose floats hold integers."""

    def evidence(self) -> str:
        return "float32 that holds integers"


class IntegerTorch(Torch):
    """bertkit's integers in PyTorch."""

    def evidence(self) -> str:
        return _level()

    def shares(self) -> dict[str, float]:
        from bertkit.core import native

        if native.level() == PORTABLE:
            return super().shares()
        times = np.zeros(len(PHASES), np.int64)
        self.run()
        native.library().functions.bk_ibert_times(ctypes.c_void_p(times.ctypes.data))
        return largest_shares(zip(PHASES, times.tolist(), strict=True), most=len(PHASES))


class IntegerTensorFlow(TensorFlow):
    """bertkit's integers in TensorFlow."""

    def evidence(self) -> str:
        return f"{super().evidence()}, {_level()}"


def _level() -> str:
    from bertkit.core.native import kernels_status

    status = kernels_status()
    return f"integers, level {status.level}: {status.reason}"


def _integer_tensorflow(setup: Setup) -> Engine:
    from bertkit.core import native

    def load() -> Any:
        from bertkit_tf import TFIBertModel

        return TFIBertModel.from_pretrained(setup.file("frozen"), add_pooling_layer=False)

    return IntegerTensorFlow(load, setup.threads, xla=native.level() == PORTABLE)


EXPORTED = ("torch", "transformers")
ONNX = (*EXPORTED, "onnx", "onnxruntime")
OPENVINO = (*EXPORTED, "openvino")
TORCHAO = (*EXPORTED, "torchao")
FUSED_ONNX = ("checkpoint", "roberta.onnx", "fused.onnx")
COMPILING = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # no further processes beside each one that compiles
FROZEN = ("checkpoint", "calibrated", "frozen")


def _onnx(file: str) -> Any:
    return lambda setup: OnnxRuntime(setup.file(file), setup.threads)


def _openvino(directory: str, precision: str) -> Any:
    return lambda setup: OpenVino(setup.file(directory) / "model.xml", setup.threads, precision)


def _ours(level: str) -> list[Subject]:
    """The integer model of both frameworks at a level."""
    options = {"precision": "int8", "ours": True, "made_of": FROZEN, "environment": {"BERTKIT_KERNELS": level},
               "most_tokens": SLOW_TOKENS if level in ("scalar", PORTABLE) else None}
    return [
        Subject(f"bertkit-torch-{level}", f"bertkit integers, PyTorch, {level}",
                start=lambda setup: IntegerTorch(_ibert(setup, "frozen"), setup.threads), needs=("torch",), **options),
        Subject(f"bertkit-tf-{level}", f"bertkit integers, TensorFlow, {level}", start=_integer_tensorflow,
                needs=("tensorflow", "torch"), **options),
    ]


_SUBJECTS = [
    Subject(BASELINE, "PyTorch eager fp32", "fp32", _torch_eager, ("torch",)),
    Subject("bertkit-float", "bertkit float I-BERT, PyTorch eager", "fp32",
            lambda setup: Torch(_ibert(setup, "checkpoint"), setup.threads), ("torch",), ours=True),
    Subject("torch-compile-fp32", "torch.compile fp32", "fp32", _torch_compiled, EXPORTED, environment=COMPILING),
    Subject("onnxruntime-fp32", "ONNX Runtime fp32, fused", "fp32", _onnx("fused.onnx"), ONNX, FUSED_ONNX),
    Subject("openvino-fp32", "OpenVINO fp32", "fp32", _openvino("openvino", "f32"), OPENVINO, ("checkpoint", "openvino")),
    Subject("torch-compile-bf16", "torch.compile bf16", "bf16", _torch_compiled_bf16, EXPORTED, environment=COMPILING),
    Subject("openvino-bf16", "OpenVINO bf16", "bf16", _openvino("openvino", "bf16"), OPENVINO, ("checkpoint", "openvino")),
    Subject("onnxruntime-int8-dynamic", "ONNX Runtime int8 dynamic", "int8", _onnx("dynamic.onnx"), ONNX,
            (*FUSED_ONNX, "dynamic.onnx")),
    Subject("onnxruntime-int8-static", "ONNX Runtime int8 static QDQ", "int8", _onnx("static.onnx"), ONNX,
            ("checkpoint", "roberta.onnx", "static.onnx")),
    Subject("openvino-int8", "OpenVINO int8 (NNCF)", "int8", _openvino("openvino-int8", "f32"), (*OPENVINO, "nncf"),
            ("checkpoint", "openvino", "openvino-int8")),
    Subject("openvino-int8-bf16", "OpenVINO int8 (NNCF) + bf16", "int8", _openvino("openvino-int8", "bf16"),
            (*OPENVINO, "nncf"), ("checkpoint", "openvino", "openvino-int8")),
    Subject("inductor-int8", "torch int8 (pt2e, inductor)", "int8", _inductor_int8, TORCHAO, environment=COMPILING),
    Subject("inductor-int8-bf16", "torch int8 (pt2e, inductor) + bf16", "int8", _inductor_int8_bf16, TORCHAO,
            environment=COMPILING),
    Subject("torchao-int8", "torchao int8 dynamic, compiled", "int8", _torchao_int8, TORCHAO, environment=COMPILING),
    Subject("ctranslate2-int8", "CTranslate2 int8", "int8",
            lambda setup: CTranslate2(setup.file("ctranslate2"), setup.threads, "int8"), (*EXPORTED, "ctranslate2"),
            ("checkpoint", "ctranslate2"), environment={"KMP_BLOCKTIME": "20"}),  # its threads wait 200 ms in a loop else
    Subject("transformers-simulation", "transformers I-BERT, simulated", "fp32", _transformers_simulation, EXPORTED,
            ("checkpoint", "calibrated-plain"), simulated=True, most_tokens=SLOW_TOKENS),
    Subject("bertkit-simulation", "bertkit I-BERT, simulated", "fp32",
            lambda setup: Simulated(_ibert(setup, "calibrated", quant_mode=True), setup.threads), ("torch",),
            ("checkpoint", "calibrated"), ours=True, simulated=True, most_tokens=SLOW_TOKENS),
    *(subject for level in (*reversed(LEVELS), PORTABLE) for subject in _ours(level)),
]
SUBJECTS = {subject.name: subject for subject in _SUBJECTS}
"""Every subject by its name, in the order of the table."""
