"""Losses of the tasks: scalars in float32; 0 where no label counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bertkit.core.errors import InputError

IGNORED = -100


def cross_entropy(logits: Tensor, labels: Tensor, ignored: int = IGNORED) -> Tensor:
    """Mean cross-entropy over the labels that are not `ignored`; 0 when all are.

    Args:
        logits: [..., classes].
        labels: [...], of any integer dtype.

    Raises:
        InputError: when the shapes do not fit.
    """
    if logits.shape[:-1].numel() != labels.numel():
        raise InputError(f"labels: got shape {list(labels.shape)}, expected {list(logits.shape[:-1])} to fit the logits")
    labels = labels.reshape(-1).long()
    counted = (labels != ignored).sum()
    total = F.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), labels, ignore_index=ignored, reduction="sum")
    return total / counted.clamp(min=1)


def next_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each token's scores [batch, length, classes] against the label after it, of [batch, length].

    Raises:
        InputError: when the shapes do not fit.
    """
    if labels.shape != logits.shape[:-1]:
        raise InputError(f"labels: got shape {list(labels.shape)}, expected {list(logits.shape[:-1])} to fit the logits")
    return cross_entropy(logits[:, :-1], labels[:, 1:])


def classification(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """Loss of sequence classification or regression.

    Args:
        logits: [batch, labels].
        labels: class indices [batch], or values or 0/1 floats [batch, labels].
        problem_type: the kind of problem; None infers it: one label is regression, integers are classes, floats
            are several labels at once.
    """
    if problem_type is None:
        several = labels.is_floating_point()
        problem_type = "regression" if logits.shape[-1] == 1 else (
            "multi_label_classification" if several else "single_label_classification")
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels)
    if logits.numel() != labels.numel():
        raise InputError(f"labels: got shape {list(labels.shape)}, expected {list(logits.shape)} for {problem_type}")
    logits, labels = logits.float(), labels.reshape(logits.shape).float()
    if problem_type == "regression":
        return F.mse_loss(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels)


def span(start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Mean of the losses of start and end; positions behind the end do not count, negative ones are the first token.

    Args:
        start_logits, end_logits: [batch, length].
        start, end: [batch] or [batch, 1].
    """
    length = start_logits.shape[1]
    start, end = (p.reshape(-1).clamp(0, length) for p in (start, end))
    return torch.stack([cross_entropy(start_logits, start, length), cross_entropy(end_logits, end, length)]).mean()
