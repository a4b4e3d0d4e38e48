"""Losses of the heads, each with its formula in one place. Shapes: B batch, L length, V vocabulary."""

import torch
from torch.nn import functional as F
from transformers.utils import logging

from .tracing import readable

logger = logging.get_logger(__name__)

IGNORED = -100


def next_token_labels(labels):
    """(B, L) -> (B, L): the label of position t is token t + 1; the last position has none."""
    return F.pad(labels, (0, 1), value=IGNORED)[:, 1:]


def shifted_right(labels, start, padding):
    """(B, L) -> (B, L): what a decoder reads to predict these labels: `start`, then all but the last, `padding` where ignored."""
    read = F.pad(labels, (1, 0), value=start)[:, :-1]
    return read.masked_fill(read == IGNORED, padding)


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
        """Logits, and the loss of each token."""
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
    """A sum over no label is divided by 1: such a batch (its completions were cut off, say) has the loss 0 and gradients 0,
    where a mean would be 0 / 0 and the log of a whole run NaN."""
    if num_items_in_batch is None:
        num_items_in_batch = (labels != ignore_index).sum()
        if readable(labels) and num_items_in_batch == 0:
            logger.warning_once("A batch has no label that counts: its loss is 0, and nothing is learned from it.")
    elif not torch.is_tensor(num_items_in_batch):
        if (
            isinstance(num_items_in_batch, bool)
            or not isinstance(num_items_in_batch, (int, float))
            or not num_items_in_batch >= 0
        ):
            raise ValueError(f"`num_items_in_batch` is {num_items_in_batch!r}, but must be a number of at least 0.")
        return total / max(num_items_in_batch, 1)
    elif num_items_in_batch.numel() != 1 or num_items_in_batch.is_complex() or num_items_in_batch.dtype == torch.bool:
        found = f"{tuple(num_items_in_batch.shape)} of {num_items_in_batch.dtype}"
        raise ValueError(f"`num_items_in_batch` is a tensor {found}, but must be one number.")
    return total / num_items_in_batch.to(total.device).clamp(min=1).reshape(())


def problem_type_of(config, labels):
    """`config.problem_type`, or as transformers guesses it: one label is a regression, integers are classes, other labels
    several classes at once. The configuration is not written to."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    integers = not (labels.is_floating_point() or labels.dtype == torch.bool)
    return "single_label_classification" if integers else "multi_label_classification"


def sequence_loss(logits, labels, problem_type):
    """Loss of a sequence classifier over logits (B, labels): mean squared error, cross entropy or binary cross entropy."""
    labels = labels.to(logits.device)
    if problem_type == "regression":
        return F.mse_loss(logits, labels.to(logits.dtype).view_as(logits))
    if problem_type == "single_label_classification":
        return token_cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def span_loss(start_logits, end_logits, start_positions, end_positions, attention_mask=None):
    """Mean of the cross entropies of a span's start and end, (B, L) and (B) each; -100 and positions beyond L are ignored.

    Padding is no candidate, so that a row's loss does not depend on how much of it there is; but where a label itself is
    padding (0 for "no answer" in a row padded on the left) it must be one, and all tokens of that row are, as in
    transformers.
    """
    losses = []
    for logits, positions in ((start_logits, start_positions), (end_logits, end_positions)):
        positions = positions.to(logits.device)
        ignored = (positions < 0) | (positions >= logits.shape[1])
        if attention_mask is not None:
            logits = logits.masked_fill(
                _no_candidates(attention_mask.to(logits.device), positions, ignored), -torch.inf
            )
        losses.append(token_cross_entropy(logits, positions.masked_fill(ignored, IGNORED)))
    return (losses[0] + losses[1]) / 2


def _no_candidates(attention_mask, positions, ignored):
    """(B, L) bool: the padding of rows whose label is a real token."""
    padding = attention_mask == 0
    on_padding = padding.gather(1, positions.masked_fill(ignored, 0)[:, None]) & ~ignored[:, None]
    if readable(positions) and on_padding.any():
        logger.warning_once(
            "A start or end position is padding: in the loss of its row, padding is then a candidate too."
        )
    return padding & ~on_padding
