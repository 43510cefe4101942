"""Losses of the tasks: scalars in float32; 0 where no label counts."""

from __future__ import annotations

import tensorflow as tf

from bertkit.core.errors import InputError
from bertkit_tf.layers import wide

IGNORED = -100


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, ignored: int | tf.Tensor = IGNORED) -> tf.Tensor:
    """Mean cross-entropy over the labels that are not `ignored`; 0 when all are.

    Args:
        logits: [..., classes].
        labels: [...], of any integer dtype.

    Raises:
        InputError: when the shapes do not fit.
    """
    expected, got = logits.shape[:-1].num_elements(), labels.shape.num_elements()
    if None not in (expected, got) and expected != got:
        raise InputError(f"labels: got shape {labels.shape}, expected {logits.shape[:-1]} to fit the logits")
    labels = tf.reshape(labels, [-1])
    counted = labels != tf.cast(ignored, labels.dtype)
    scores = wide(tf.reshape(logits, [-1, logits.shape[-1] or tf.shape(logits)[-1]]))
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(counted, labels, 0), scores)
    counted = tf.cast(counted, each.dtype)
    return tf.reduce_sum(each * counted) / tf.maximum(tf.reduce_sum(counted), 1)


def next_token(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of each token's scores [batch, length, classes] against the label after it, of [batch, length].

    Raises:
        InputError: when the shapes do not fit.
    """
    if not labels.shape.is_compatible_with(logits.shape[:-1]):
        raise InputError(f"labels: got shape {labels.shape}, expected {logits.shape[:-1]} to fit the logits")
    return cross_entropy(logits[:, :-1], labels[:, 1:])


def classification(logits: tf.Tensor, labels: tf.Tensor, problem_type: str | None) -> tf.Tensor:
    """Loss of sequence classification or regression.

    Args:
        logits: [batch, labels].
        labels: class indices [batch], or values or 0/1 floats [batch, labels].
        problem_type: the kind of problem; None infers it: one label is regression, integers are classes, floats
            are several labels at once.
    """
    if problem_type is None:
        several = labels.dtype.is_floating
        problem_type = "regression" if logits.shape[-1] == 1 else (
            "multi_label_classification" if several else "single_label_classification")
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels)
    expected, got = logits.shape.num_elements(), labels.shape.num_elements()
    if None not in (expected, got) and expected != got:
        raise InputError(f"labels: got shape {labels.shape}, expected {logits.shape} for {problem_type}")
    logits = wide(logits)
    labels = tf.cast(tf.reshape(labels, tf.shape(logits)), logits.dtype)
    if problem_type == "regression":
        return tf.reduce_mean(tf.math.squared_difference(logits, labels))
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))


def span(start_logits: tf.Tensor, end_logits: tf.Tensor, start: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Mean of the losses of start and end; positions behind the end do not count, negative ones are the first token.

    Args:
        start_logits, end_logits: [batch, length].
        start, end: [batch] or [batch, 1].
    """
    length = tf.shape(start_logits)[1]
    start, end = (tf.clip_by_value(tf.cast(tf.reshape(p, [-1]), tf.int32), 0, length) for p in (start, end))
    return (cross_entropy(start_logits, start, length) + cross_entropy(end_logits, end, length)) / 2
