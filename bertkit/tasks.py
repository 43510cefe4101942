"""Task templates: what a class does with its encoder and its head. A class itself is a declaration of both.

    class YosoForMaskedLM(MaskedLM, encoder=YosoModel, cls=LanguageModelHead): ...
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from bertkit import losses
from bertkit.core.errors import InputError
from bertkit.core.spec import no_head
from bertkit.generation import Generation
from bertkit.modeling import EncoderModel, PreTrainedModel
from bertkit.outputs import (
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    PreTrainingOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)


class TaskModel(PreTrainedModel):
    """Template of all task classes: an encoder and one or more heads.

    Subclasses are declared with `encoder=` and their heads by attribute name. Whether the head reads the pooled
    first token or all tokens follows from the weight spec.

    Args:
        config: the configuration.
    """

    encoder_class: ClassVar[type[EncoderModel]]
    head_classes: ClassVar[dict[str, Callable[[Any], nn.Module]]]

    def __init_subclass__(
        subclass, /, *, encoder: type[EncoderModel] | None = None, **heads: Callable[[Any], nn.Module]
    ) -> None:
        super().__init_subclass__(variant=encoder.variant if encoder else None)
        if encoder is not None:
            subclass.encoder_class, subclass.head_classes = encoder, heads

    def __init__(self, config: Any) -> None:
        super().__init__(config)

    def assemble(self, config: Any) -> None:
        """Make the encoder, with a pooler where the task needs one, and the heads."""
        self.add_module(self.base_model_prefix, self.make_encoder(config))
        for name, head in self.head_classes.items():
            self.add_module(name, head(config))

    def make_encoder(self, config: Any) -> EncoderModel:
        """The encoder, with a pooler where the head reads one."""
        if self.variant.pooler is no_head:
            return self.encoder_class(config)
        return self.encoder_class(config, add_pooling_layer=self.pooled)

    @property
    def pooled(self) -> bool:
        """Whether the encoder has a pooler, which the head then reads."""
        return self.variant.tasks[self.task].pooled

    def encode(self, **inputs: Any) -> ModelOutput:
        """Run the encoder."""
        return self.base_model(**inputs, return_dict=True)

    def finish(self, output: ModelOutput, return_dict: bool | None) -> ModelOutput | tuple:
        """The output as the caller wants it: by name, or as a tuple."""
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def refuse_unknown(arguments: dict[str, Any]) -> None:
    """Refuse arguments that a call does not have.

    Raises:
        InputError: naming them.
    """
    if arguments:
        raise InputError(f"unknown arguments: {', '.join(arguments)}")


def _extras(encoded: ModelOutput, *names: str) -> dict[str, Any]:
    return {name: encoded.get(name) for name in ("hidden_states", "attentions", *names)}


class MaskedLM(TaskModel):
    """Template of masked language modelling."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple:
        """Score all words for each token.

        Args:
            input_ids: [batch, length] token ids.
            attention_mask: [batch, length] or [batch, length, length], 1 for tokens to attend to, 0 for padding.
            token_type_ids: [batch, length] segment of each token.
            position_ids: [batch, length] row of the position table for each token.
            head_mask: [heads] or [layers, heads], 1 keeps a head.
            inputs_embeds: [batch, length, width] word embeddings instead of `input_ids`.
            labels: [batch, length] the right words; -100 does not count.
            output_attentions, output_hidden_states, return_dict: default: what the configuration says.

        Raises:
            InputError: listing everything that does not fit.
        """
        encoded = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
            head_mask=head_mask, inputs_embeds=inputs_embeds, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        return self.score(encoded, labels, return_dict)

    def score(self, encoded: ModelOutput, labels: Tensor | None, return_dict: bool | None) -> MaskedLMOutput | tuple:
        """Scores and loss from the encoder's output."""
        head = next(iter(self.head_classes))
        logits = getattr(self, head)(encoded.last_hidden_state)
        loss = None if labels is None else losses.cross_entropy(logits, labels)
        return self.finish(MaskedLMOutput(loss=loss, logits=logits, **_extras(encoded)), return_dict)


class MaskedLMWithEncoder(MaskedLM):
    """Template of masked language modelling on top of an encoder that can look at another one's states."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple:
        """Score all words for each token; see `MaskedLM.forward`.

        Args:
            encoder_hidden_states: [batch, encoder length, hidden_size] states for cross-attention.
            encoder_attention_mask: [batch, encoder length], 0 for padding.
        """
        encoded = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
            head_mask=head_mask, inputs_embeds=inputs_embeds, encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        return self.score(encoded, labels, return_dict)


class CausalLM(Generation, TaskModel):
    """Template of causal language modelling; `config.is_decoder` must be set."""

    def assemble(self, config: Any) -> None:
        """Make the encoder and the head."""
        if not config.is_decoder:
            warnings.warn(f"{type(self).__name__} without is_decoder=True: each token sees the ones that it should predict",
                          stacklevel=4)
        super().assemble(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: tuple | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions | tuple:
        """Score the next word at each token; see `MaskedLM.forward`.

        Args:
            encoder_hidden_states: [batch, encoder length, hidden_size] states for cross-attention.
            encoder_attention_mask: [batch, encoder length], 0 for padding.
            labels: [batch, length] the tokens themselves; they are shifted here. -100 does not count.
            past_key_values: the cache that an earlier call gave; then only new tokens are passed in.
            use_cache: give the cache; never while `labels` are given.
            **kwargs: refused by name; there for callers that pass on what they were given.
        """
        refuse_unknown(kwargs)
        encoded = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
            head_mask=head_mask, inputs_embeds=inputs_embeds, encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask, past_key_values=past_key_values,
            use_cache=use_cache if labels is None else False, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.cls(encoded.last_hidden_state)
        loss = None if labels is None else losses.next_token(logits, labels)
        extras = _extras(encoded, "past_key_values", "cross_attentions")
        return self.finish(CausalLMOutputWithCrossAttentions(loss=loss, logits=logits, **extras), return_dict)


class PreTraining(TaskModel):
    """Template of pretraining: masked language modelling and next-sentence prediction at once."""

    output_class: ClassVar[type[PreTrainingOutput]] = PreTrainingOutput

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> PreTrainingOutput | tuple:
        """Score all words for each token, and whether the second segment follows; see `MaskedLM.forward`.

        Args:
            labels: [batch, length] the right words; -100 does not count.
            next_sentence_label: [batch], 0 where the second segment follows, 1 where it is random. The loss is
                there only when both kinds of labels are.
        """
        encoded = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
            head_mask=head_mask, inputs_embeds=inputs_embeds, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        words, follows = self.cls(encoded.last_hidden_state, encoded.pooler_output)
        loss = None
        if labels is not None and (follows is None or next_sentence_label is not None):
            loss = losses.cross_entropy(words, labels)
            if follows is not None:
                loss = loss + losses.cross_entropy(follows, next_sentence_label)
        output = self.output_class(loss=loss, prediction_logits=words, seq_relationship_logits=follows, **_extras(encoded))
        return self.finish(output, return_dict)


class NextSentencePrediction(TaskModel):
    """Template of next-sentence prediction."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> NextSentencePredictorOutput | tuple:
        """Score whether the second segment follows the first; see `MaskedLM.forward`.

        Args:
            labels: [batch], 0 where the second segment follows, 1 where it is random. `next_sentence_label` is
                an older name of it.
        """
        if "next_sentence_label" in kwargs and labels is None:
            labels = kwargs.pop("next_sentence_label")
        refuse_unknown(kwargs)
        encoded = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
            head_mask=head_mask, inputs_embeds=inputs_embeds, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.cls(encoded.pooler_output)
        loss = None if labels is None else losses.cross_entropy(logits, labels)
        return self.finish(NextSentencePredictorOutput(loss=loss, logits=logits, **_extras(encoded)), return_dict)


class Classifier(TaskModel):
    """Template of tasks whose only head is `classifier`, behind dropout."""

    def assemble(self, config: Any) -> None:
        """Make the encoder, the dropout and the head."""
        super().assemble(config)
        self.dropout = nn.Dropout(self.classifier_dropout(config))

    @staticmethod
    def classifier_dropout(config: Any) -> float:
        """Dropout in front of the classifier."""
        own = getattr(config, "classifier_dropout", None)
        return config.hidden_dropout_prob if own is None else own


class SequenceClassification(Classifier):
    """Template of sequence classification and regression.

    A `FirstTokenClassifier` reads all tokens and drops out by itself; any other head reads the pooled first token.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple:
        """Score the labels of each sequence; see `MaskedLM.forward`.

        Args:
            labels: [batch] class indices, or [batch] or [batch, num_labels] floats for regression and several
                labels at once. `config.problem_type` decides; None infers it from each call's labels.
        """
        encoded = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
            head_mask=head_mask, inputs_embeds=inputs_embeds, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        features = self.dropout(encoded.pooler_output) if self.pooled else encoded.last_hidden_state
        logits = self.classifier(features)
        loss = None if labels is None else losses.classification(logits, labels, self.config.problem_type)
        return self.finish(SequenceClassifierOutput(loss=loss, logits=logits, **_extras(encoded)), return_dict)


class MultipleChoice(Classifier):
    """Template of multiple choice."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MultipleChoiceModelOutput | tuple:
        """Score the choices of each question; see `MaskedLM.forward`.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: [batch, choices, length].
            inputs_embeds: [batch, choices, length, width].
            labels: [batch] index of the right choice.
        """
        main, rank, axes = (input_ids, 3, "length") if inputs_embeds is None else (inputs_embeds, 4, "length, width")
        if main is not None and main.dim() != rank:
            raise InputError(f"got shape {list(main.shape)}, expected {rank} dimensions [batch, choices, {axes}]")
        encoded = self.encode(
            input_ids=_flat(input_ids), attention_mask=_flat(attention_mask), token_type_ids=_flat(token_type_ids),
            position_ids=_flat(position_ids), head_mask=head_mask, inputs_embeds=_flat(inputs_embeds),
            output_attentions=output_attentions, output_hidden_states=output_hidden_states,
        )
        scores = self.score(encoded)
        logits = scores if main is None else scores.view(-1, main.shape[1])
        loss = None if labels is None else losses.cross_entropy(logits, labels)
        return self.finish(MultipleChoiceModelOutput(loss=loss, logits=logits, **_extras(encoded)), return_dict)

    def score(self, encoded: ModelOutput) -> Tensor:
        """One score per row, [batch * choices, 1]."""
        return self.classifier(self.dropout(encoded.pooler_output))


class FirstTokenMultipleChoice(MultipleChoice):
    """Template of multiple choice for encoders without a pooler: a head `pre_classifier` reads the first token."""

    def score(self, encoded: ModelOutput) -> Tensor:
        """One score per row, [batch * choices, 1]."""
        return self.classifier(self.pre_classifier(encoded.last_hidden_state))


class TokenClassification(Classifier):
    """Template of token classification."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput | tuple:
        """Score the labels of each token; see `MaskedLM.forward`.

        Args:
            labels: [batch, length] class indices; -100 does not count.
        """
        encoded = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
            head_mask=head_mask, inputs_embeds=inputs_embeds, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        loss = None if labels is None else losses.cross_entropy(logits, labels)
        return self.finish(TokenClassifierOutput(loss=loss, logits=logits, **_extras(encoded)), return_dict)


class QuestionAnswering(TaskModel):
    """Template of extractive question answering."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringModelOutput | tuple:
        """Score each token as the start and as the end of the answer; see `MaskedLM.forward`.

        Args:
            start_positions, end_positions: [batch] index of the first and last token; behind the end they do
                not count. The loss is there only when both are.
        """
        encoded = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
            head_mask=head_mask, inputs_embeds=inputs_embeds, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        start_logits, end_logits = self.qa_outputs(encoded.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = losses.span(start_logits, end_logits, start_positions, end_positions)
        output = QuestionAnsweringModelOutput(loss=loss, start_logits=start_logits, end_logits=end_logits, **_extras(encoded))
        return self.finish(output, return_dict)


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.flatten(0, 1)


class ChoicesFirstArgument(MultipleChoice):
    """`MultipleChoice` with I-BERT's documented order of arguments."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MultipleChoiceModelOutput | tuple:
        """Score the choices of each question; see `MultipleChoice.forward`."""
        return super().forward(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds, labels, output_attentions,
            output_hidden_states, return_dict,
        )
