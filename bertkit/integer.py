"""The frozen I-BERT: modules that hold integers and compute with integers, from ids to the last hidden state.

The weights are buffers that nobody trains or casts, under the names of the simulated model. `bertkit.kernels.int8` has the
arithmetic, `bertkit.kernels.native` the same in compiled code, which serves where it can: both give the integers of
`bertkit.core.reference.int8`, bit for bit. `freeze` makes such a model of a calibrated one.

Shape suffixes: B batch, L length, N heads, S keys, D head size, E width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertkit import state
from bertkit.core import native_ibert
from bertkit.core.errors import InputError
from bertkit.core.freezing import freeze_tensors
from bertkit.core.ibert import IBertConfig, check_ibert, native_tensors
from bertkit.core.native import PORTABLE
from bertkit.core.quantization import EMBEDDING_BITS, NORM_BITS
from bertkit.kernels import int8, native
from bertkit.layers import merge_heads, split_heads
from bertkit.modeling import LayerStack, PreTrainedModel, head_masks
from bertkit.quantization import quantise

Model = TypeVar("Model", bound=PreTrainedModel)


def freeze(model: Model) -> Model:
    """Turn a calibrated I-BERT, in float or simulated, into one that computes in integers alone.

    Args:
        model: any class of I-BERT; it stays as it is.

    Returns:
        A model of the same class, on the same device and in evaluation mode, whose encoder is frozen. Its head is a
        copy, and can be trained.

    Raises:
        ConfigError: for a model whose arithmetic is not all in integers, or that is frozen already.
        CalibrationError: naming every activation whose range is empty, not finite, or has no width.
        FreezeError: naming every layer in which a number may not fit its width, or is not finite.

    Reference:
        Kim et al., "I-BERT: Integer-only BERT Quantization", https://arxiv.org/abs/2101.01321

    Example:
        >>> from bertkit import IBertModel, freeze
        >>> model = IBertModel.from_pretrained("calibrated")  # doctest: +SKIP
        >>> freeze(model).save_pretrained("frozen")  # doctest: +SKIP
    """
    check_ibert(model, PreTrainedModel, "freeze")
    stored = [name for name, param in model.params().items() if param.stored]
    tensors = {name: state.get_tensor(model, name).detach().float().cpu().numpy() for name in stored}
    pooled = model.base_model.pooler is not None
    config, frozen = freeze_tensors(tensors, model.config, model.task, pooled)
    with torch.device("meta"):
        result = type(model)(config, **({"add_pooling_layer": pooled} if model.task == "Model" else {}))
    for name, tensor in frozen.items():
        state.set_tensor(result, name, state.from_numpy(tensor))
    result.tie_weights()
    return result.to(model.device, model.dtype).eval()


# -- what holds integers --------------------------------------------------------------------------------------------
class IntegerModule(nn.Module):
    """A module with buffers that keep their dtype: integers stay integers, and scales float32, however a model is cast."""

    loads: ClassVar[int] = 0
    """How often such a module was given other values: what was made of them before is out of date."""

    def integers(self, name: str, *shape: int, dtype: torch.dtype = torch.int32) -> None:
        """Make a buffer; the model gives it its values."""
        self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            IntegerModule.loads += 1
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def keeping_dtype(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            same = isinstance(tensor, nn.Parameter) or result.dtype == tensor.dtype
            return result if same else tensor.to(result.device)

        return super()._apply(keeping_dtype, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str],
                              unexpected: list[str], errors: list[str]) -> None:
        for name, buffer in self._buffers.items():
            given = state_dict.get(prefix + name, buffer)
            if given.dtype != buffer.dtype:
                errors.append(f"dtype of {prefix}{name}: got {given.dtype}, expected {buffer.dtype}")
        IntegerModule.loads += 1
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)


class IntegerEmbedding(IntegerModule):
    """A lookup table of 8 bits.

    Args:
        rows, columns: size of the table.
        scaled: whether it knows the scales of its integers.
    """

    def __init__(self, rows: int, columns: int, scaled: bool = False) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, columns
        self.integers("weight_integer", rows, columns, dtype=torch.int8)
        self.integers("multiplier", columns)
        self.integers("right_shift", columns)
        if scaled:
            self.integers("weight_scaling_factor", columns, dtype=torch.float32)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up `ids` [...]: integers [..., columns] at the scale of the sum of all tables."""
        return int8.rescale(F.embedding(ids, self.weight_integer), self.multiplier, self.right_shift)


class IntegerLinear(IntegerModule):
    """A linear layer from 8 to 32 bits."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.integers("weight_integer", outputs, inputs, dtype=torch.int8)
        self.integers("bias_integer", outputs)

    def forward(self, x: Tensor) -> Tensor:
        return int8.linear(x, self.weight_integer, self.bias_integer)


class IntegerActivation(IntegerModule):
    """The way from one scale to another, and to 8 bits."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.integers("multiplier", size)
        self.integers("right_shift", size)

    def forward(self, x: Tensor) -> Tensor:
        return int8.to_stream(int8.rescale(x, self.multiplier, self.right_shift))


class IntegerSum(IntegerActivation):
    """The sum of a value and the stream, each from its own scale, in as many bits as layer norms read."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.integers("identity_multiplier", size)
        self.integers("identity_right_shift", size)

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        x = int8.rescale(x, self.multiplier, self.right_shift)
        stream = int8.rescale(stream, self.identity_multiplier, self.identity_right_shift)
        return int8.saturate(x + stream, NORM_BITS)


class IntegerScale(IntegerModule):
    """The scale of a value."""

    def __init__(self) -> None:
        super().__init__()
        self.integers("act_scaling_factor", 1, dtype=torch.float32)


class IntegerStream(IntegerActivation):
    """The way from a layer norm into the stream, whose scales leave the encoder with it."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.integers("offset", size, dtype=torch.int64)
        self.integers("act_scaling_factor", size, dtype=torch.float32)


class IntegerLayerNorm(IntegerModule):
    """Layer normalisation; its gain and bias are in the activation behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.integers("shift", 1)

    def forward(self, x: Tensor, activation: IntegerStream) -> Tensor:
        return int8.layer_norm(x, self.shift, activation.multiplier, activation.right_shift, activation.offset)


class IntegerGELU(IntegerModule):
    """GELU by a polynomial."""

    def __init__(self, size: int) -> None:
        super().__init__()
        for name, dtype in (("clip", torch.int32), ("one", torch.int64), ("unit", torch.int32), ("drop", torch.int32)):
            self.integers(name, size, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return int8.gelu(x, self.clip, self.one, self.unit, self.drop)


class IntegerSoftmax(IntegerModule):
    """The numbers of softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.integers("constants", 4)
        self.act = IntegerActivation(1)


# -- blocks ---------------------------------------------------------------------------------------------------------
class IntegerEmbeddings(IntegerModule):
    """Words, token types and positions, and their norm."""

    def __init__(self, config: IBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = IntegerEmbedding(config.vocab_size, width)
        self.token_type_embeddings = IntegerEmbedding(config.type_vocab_size, width, scaled=True)
        self.position_embeddings = IntegerEmbedding(config.max_position_embeddings, width)
        self.embeddings_act1 = IntegerScale()
        self.LayerNorm = IntegerLayerNorm()
        self.output_activation = IntegerStream(width)

    def forward(self, words: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        """The stream [B, L, E] of ids [B, L], or of integers that `quantised` gives for vectors in the place of words."""
        if words.dim() == 2:
            words = int8.saturate(self.word_embeddings(words) + self.token_type_embeddings(token_type_ids), EMBEDDING_BITS)
        total = int8.saturate(words + self.position_embeddings(position_ids), EMBEDDING_BITS)
        return self.LayerNorm(total, self.output_activation)

    def quantised(self, vectors: Tensor, token_type_ids: Tensor) -> Tensor:
        """Vectors [B, L, E] plus token types as integers: the last floating-point numbers before the encoder."""
        types = self.token_type_embeddings
        total = vectors + F.embedding(token_type_ids, types.weight_integer) * types.weight_scaling_factor
        return quantise(total.float(), self.embeddings_act1.act_scaling_factor, EMBEDDING_BITS).to(torch.int64)


class IntegerSelfAttention(IntegerModule):
    """Attention."""

    def __init__(self, config: IBertConfig, heads: int) -> None:
        super().__init__()
        self.head_size = config.head_size
        width, inner = config.hidden_size, heads * self.head_size
        self.query, self.key, self.value = (IntegerLinear(width, inner) for _ in range(3))
        self.query_activation, self.key_activation, self.value_activation = (IntegerActivation(inner) for _ in range(3))
        self.softmax = IntegerSoftmax()
        self.output_activation = IntegerActivation(1)

    def forward(self, stream: Tensor, keep: Tensor | None, heads: Tensor | None) -> tuple[Tensor, Tensor]:
        """Context [B, L, E] and probabilities [B, N, L, S] in 1/256."""
        query_BNLD = split_heads(self.query_activation(self.query(stream)), self.head_size)
        key_BNSD = split_heads(self.key_activation(self.key(stream)), self.head_size)
        value_BNSD = split_heads(self.value_activation(self.value(stream)), self.head_size)
        context_BNLD, probabilities = int8.attend(
            query_BNLD, key_BNSD, value_BNSD, keep, heads, self.softmax.constants, self.softmax.act.multiplier,
            self.softmax.act.right_shift)
        return self.output_activation(merge_heads(context_BNLD)), probabilities


class IntegerOutput(IntegerModule):
    """Back to the stream's width, added to the stream, normed."""

    def __init__(self, config: IBertConfig, inputs: int) -> None:
        super().__init__()
        self.dense = IntegerLinear(inputs, config.hidden_size)
        self.ln_input_act = IntegerSum(config.hidden_size)
        self.LayerNorm = IntegerLayerNorm()
        self.output_activation = IntegerStream(config.hidden_size)

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        return self.LayerNorm(self.ln_input_act(self.dense(x), stream), self.output_activation)


class IntegerAttention(IntegerModule):
    """Attention and its way back into the stream."""

    def __init__(self, config: IBertConfig, heads: int) -> None:
        super().__init__()
        self.self = IntegerSelfAttention(config, heads)
        self.output = IntegerOutput(config, heads * config.head_size)

    def forward(self, stream: Tensor, keep: Tensor | None, heads: Tensor | None) -> tuple[Tensor, Tensor]:
        context, probabilities = self.self(stream, keep, heads)
        return self.output(context, stream), probabilities


class IntegerIntermediate(IntegerModule):
    """The first half of the feed-forward network."""

    def __init__(self, config: IBertConfig) -> None:
        super().__init__()
        self.dense = IntegerLinear(config.hidden_size, config.intermediate_size)
        self.gelu = IntegerGELU(config.intermediate_size)
        self.output_activation = IntegerActivation(config.intermediate_size)

    def forward(self, stream: Tensor) -> Tensor:
        return self.output_activation(self.gelu(self.dense(stream)))


class IntegerLayer(IntegerModule):
    """One layer: attention and feed-forward."""

    def __init__(self, config: IBertConfig, index: int) -> None:
        super().__init__()
        self.attention = IntegerAttention(config, config.kept_heads(index))
        self.intermediate = IntegerIntermediate(config)
        self.output = IntegerOutput(config, config.intermediate_size)

    def forward(self, stream: Tensor, keep: Tensor | None, heads: Tensor | None) -> tuple[Tensor, Tensor]:
        stream, probabilities = self.attention(stream, keep, heads)
        return self.output(self.intermediate(stream), stream), probabilities


class IntegerEncoder(LayerStack):
    """All layers."""

    def __init__(self, config: IBertConfig) -> None:
        super().__init__(IntegerLayer(config, index) for index in range(config.num_hidden_layers))

    def forward(self, stream: Tensor, mask: Tensor | None, head_mask: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Hidden states [B, L, E], the stream as it came first, and probabilities [B, N, L, S] of each layer.

        Args:
            stream: [B, L, E], int8.
            mask: [B, S], [B, L, S] or [B, 1 or N, L, S], true for tokens to attend to. Tokens that a [B, S] mask leaves
                out are 0 in every hidden state.
            head_mask: [heads] or [layers, heads] of 0 and 1.
        """
        keep, real = mask, None
        if mask is not None:
            keep, real = (mask[:, None, None], mask[..., None]) if mask.dim() == 2 else (mask, None)
            keep = keep[:, None] if keep.dim() == 3 else keep
        stream = stream if real is None else stream * real
        states, probabilities = [stream], []
        for layer, heads in zip(self.layer, head_masks(head_mask, len(self.layer)), strict=True):
            stream, found = layer(stream, keep, _which_heads(heads))
            stream = stream if real is None else stream * real
            states.append(stream)
            probabilities.append(found)
        return states, probabilities


def _which_heads(heads: Tensor | None) -> Tensor | None:
    if heads is None:
        return None
    if not torch.compiler.is_compiling() and not ((heads == 0) | (heads == 1)).all():
        raise InputError("head_mask: got values other than 0 and 1, which integers cannot be multiplied by")
    return (heads.view(-1, 1, 1) if heads.dim() == 1 else heads) != 0


class IntegerDecoder(IntegerModule):
    """The decoder onto the vocabulary, whose 8 bit weight is a floating-point one when it computes.

    Args:
        inputs: width of the head.
        words: number of words.
    """

    def __init__(self, inputs: int, words: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, words
        self._weight: Tensor | None = None
        self.integers("weight_integer", words, inputs, dtype=torch.int8)
        self.integers("weight_scaling_factor", words, dtype=torch.float32)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    @property
    def weight(self) -> Tensor:
        """[words, inputs] in the dtype of the bias; made at the first call, and then kept."""
        if self._weight is not None:
            return self._weight
        if torch.compiler.is_compiling():
            return self.as_floats()
        with torch.inference_mode(False):  # what is kept must serve training, too
            self._weight = self.as_floats()
        return self._weight

    def as_floats(self) -> Tensor:
        """The integers times their scales."""
        return (self.weight_integer * self.weight_scaling_factor[:, None]).to(self.bias.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self._weight = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._weight = None
        super()._load_from_state_dict(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_weight": None}


# -- the whole encoder ----------------------------------------------------------------------------------------------
class IntegerInference:
    """How a frozen encoder gets from ids to hidden states; a part of `IBertModel`."""

    config: IBertConfig
    embeddings: IntegerEmbeddings
    encoder: IntegerEncoder
    head_dtype: torch.dtype = torch.float32
    """What heads read."""
    _packed: Packed | None = None

    def encode(self, words: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor, position_ids: Tensor,
               head_mask: Tensor | None, output_attentions: bool, output_hidden_states: bool) -> dict[str, Any]:
        """The hidden states and probabilities that a call asks for, in floating point.

        Args:
            words: [B, L] ids, or [B, L, E] vectors.
            attention_mask: [B, L], [B, L, S] or [B, 1 or N, L, S], 0 for padding.
            token_type_ids, position_ids: [B, L] or [1, L].
            head_mask: [heads] or [layers, heads] of 0 and 1.
            output_attentions, output_hidden_states: what is asked for beside the last hidden state.
        """
        if words.is_floating_point():
            words = self.embeddings.quantised(words, token_type_ids)
        states, probabilities = self.integers(words, attention_mask, token_type_ids, position_ids, head_mask,
                                              output_attentions, output_hidden_states)
        layers = len(self.encoder.layer)
        last = states[-1] * self.scale(layers)
        hidden_states = None
        if output_hidden_states:
            hidden_states = (*(states[index] * self.scale(index) for index in range(layers)), last)
        return {
            "last_hidden_state": last.to(self.head_dtype),
            "hidden_states": hidden_states,
            "attentions": tuple(p * (1 / 256) for p in probabilities) if output_attentions else None,
        }

    def integers(
        self, words: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor, position_ids: Tensor,
        head_mask: Tensor | None, output_attentions: bool, output_hidden_states: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The integers behind `encode`; of hidden states at least the last one. No floating-point number is on the way."""
        mask = None if attention_mask is None else attention_mask != 0
        level = PORTABLE
        if words.dim() == 2 and words.device.type == "cpu" and head_mask is None and not output_attentions and (
                mask is None or mask.dim() == 2) and not is_exporting():
            level = native.level()
        if level == PORTABLE:
            return self.encoder(self.embeddings(words, token_type_ids, position_ids), mask, head_mask)
        tables = (self.embeddings.word_embeddings, self.embeddings.token_type_embeddings, self.embeddings.position_embeddings)
        states = native.ibert_encode(
            self.packed(level), *(table.weight_integer for table in tables), words, token_type_ids.expand_as(words),
            position_ids.expand_as(words), mask, len(self.encoder.layer) + 1 if output_hidden_states else 1)
        return list(states.unbind()), []

    def scale(self, layers: int) -> Tensor:
        """The scales of the hidden state behind so many layers, [E]."""
        block = self.encoder.layer[layers - 1].output if layers else self.embeddings
        return block.output_activation.act_scaling_factor

    def packed(self, level: str) -> Tensor:
        """The weights as the compiled kernels of a level read them; made at the first call, and then kept."""
        key, kept = (level, IntegerModule.loads), self._packed
        if kept is not None and kept.key == key and (torch.compiler.is_compiling() or kept.edits == edits(kept.tensors)):
            return kept.weights
        return self.pack(*key)

    @native.constant_when_traced
    def pack(self, level: str, loads: int) -> Tensor:
        """Make what `packed` gives. What is being traced takes it for this call: the next one is traced with what is kept."""
        tensors = {name: state.get_tensor(self, name) for name in native_tensors(self.config)}
        weights = native_ibert.pack(self.config, {name: tensor.numpy() for name, tensor in tensors.items()}, level)
        self._packed = Packed((level, loads), torch.from_numpy(weights), list(tensors.values()), edits(tensors.values()))
        return self._packed.weights

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        if self.config.integer_format is not None:
            moved = fn(torch.empty(0, dtype=self.head_dtype, device="cpu"))
            self.head_dtype = moved.dtype
            int8.is_exact(moved.device.type)  # tried now, since a model that is being traced cannot
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}


class Packed(NamedTuple):
    """The weights of an encoder as a level reads them, and what they were made of."""

    key: tuple[str, int]
    """The level, and `IntegerModule.loads` then."""
    weights: Tensor
    tensors: list[Tensor]
    edits: int
    """What `edits` of the tensors was then."""


def edits(tensors: Iterable[Tensor]) -> int:
    """How often some tensors were changed in place, as far as they count it."""
    return sum(0 if tensor.is_inference() else tensor._version for tensor in tensors)


is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""Exported programs are portable; where PyTorch is too old to tell, so is everything that is traced."""
