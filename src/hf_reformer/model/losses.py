"""Losses of the heads, each with its formula in one place. Shapes: B batch, L length, V vocabulary."""

import torch
from torch.nn import functional as F

IGNORED = -100


def next_token_labels(labels):
    """(B, L) -> (B, L): the label of position t is token t + 1; the last position has none."""
    return F.pad(labels, (0, 1), value=IGNORED)[:, 1:]


def token_cross_entropy(logits, labels, num_items_in_batch=None, ignore_index=IGNORED):
    """Sum of -log softmax(logits)[label] over the labels that are not ignored, by `num_items_in_batch` or their number.

    Args:
        logits: (..., V); half precision is raised to float32.
        labels: (...), int64.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits.device)
    total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=ignore_index, reduction="sum")
    return _per_item(total, labels, num_items_in_batch, ignore_index)


def token_losses(function, with_logits):
    """Of a function of modules and inputs (B, L, ...) that gives logits (B, L, V): one of modules, inputs and labels (B, L)
    that gives the loss of each token (B, L), 0 where it is ignored, and the logits or None."""

    def losses(*arguments):
        *arguments, labels = arguments
        logits = function(*arguments)
        raised = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(raised.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.view(labels.shape), logits if with_logits else None

    return losses


def mean_token_loss(losses, labels, num_items_in_batch=None):
    """The sum of losses (B, L) of tokens by `num_items_in_batch`, or by the number of labels (B, L)."""
    return _per_item(losses.sum(), labels, num_items_in_batch, IGNORED)


def _per_item(total, labels, num_items_in_batch, ignore_index):
    if num_items_in_batch is None:
        num_items_in_batch = (labels != ignore_index).sum()
    elif torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


def problem_type_of(config, labels):
    """`config.problem_type`, or as transformers guesses it: one label is a regression, integers are classes, other labels
    several classes at once. The configuration is not written to."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    integers = labels.dtype in (torch.int32, torch.int64)
    return "single_label_classification" if integers else "multi_label_classification"


def sequence_loss(logits, labels, problem_type):
    """Loss of a sequence classifier over logits (B, labels): mean squared error, cross entropy or binary cross entropy."""
    labels = labels.to(logits.device)
    if problem_type == "regression":
        return F.mse_loss(logits, labels.to(logits.dtype).view_as(logits))
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, labels.flatten())
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def span_loss(start_logits, end_logits, start_positions, end_positions, attention_mask=None):
    """Mean of the cross entropies of a span's start and end, (B, L) and (B) each, over the tokens that are no padding;
    positions beyond L are ignored."""
    length = start_logits.shape[1]
    losses = []
    for logits, positions in ((start_logits, start_positions), (end_logits, end_positions)):
        if attention_mask is not None:
            logits = logits.masked_fill(attention_mask.to(logits.device) == 0, -torch.inf)
        positions = positions.to(logits.device).view(-1).clamp(0, length)
        losses.append(F.cross_entropy(logits, positions, ignore_index=length))
    return (losses[0] + losses[1]) / 2
