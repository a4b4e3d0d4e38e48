"""A run that goes on with another number of processes: the same examples in each step, in the same order."""

import os

from .sealing import facts_of

NOT_THE_SAME = (
    "Not bit for bit the same are sums over examples, which are rounded in another order, dropout and rotations, which are drawn "
    "anew, what a random collator draws where batches are smaller, and a last step of an epoch that is not full."
)


def sequence_size(arguments) -> int:
    """How many processes share a sequence, as the arguments or `accelerate launch` say."""
    if getattr(arguments, "parallelism_config", None) is not None:
        return arguments.parallelism_config.sp_size
    by_launch = os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true"
    return int(os.environ.get("PARALLELISM_CONFIG_SP_SIZE", "1")) if by_launch else 1


def examples_per_step(arguments) -> int:
    """Examples of one optimizer step, over all processes."""
    groups = arguments.world_size // sequence_size(arguments)
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * groups


def keep_examples_per_step(arguments, checkpoint) -> str | None:
    """Changes `gradient_accumulation_steps` (and, where it must, `per_device_train_batch_size`), so that a step of the resumed run
    has as many examples as the steps before `checkpoint`, whatever the number of processes.

    Returns:
        What is to be said of it; None where all is as it was.

    Raises:
        ValueError: where so many examples cannot be dealt out evenly.
    """
    facts, now = facts_of(checkpoint), arguments.world_size
    before, examples = facts.get("processes", now), facts.get("examples_per_step")
    said = f"{checkpoint} was written by {before} processes, now there are {now}: "
    if examples is None:
        return None if before == now else said + "the run goes on, but not as it would have."
    if examples != examples_per_step(arguments):
        _deal_out(arguments, examples, now // sequence_size(arguments))
    elif before == now:
        return None
    return (
        said
        + (
            f"each step has {examples} examples as before, in the same order, with per_device_train_batch_size="
            f"{arguments.per_device_train_batch_size} and gradient_accumulation_steps={arguments.gradient_accumulation_steps}. "
            + ("" if before == now else NOT_THE_SAME)
        ).rstrip()
    )


def _deal_out(arguments, examples, groups):
    each, devices = examples // groups, max(1, arguments.n_gpu)
    if examples % (groups * devices):
        raise ValueError(
            f"The number of processes is {arguments.world_size}, but the {examples} examples of a step of the run to resume cannot "
            f"be dealt out evenly: the number must divide {examples}."
        )
    batch = min(arguments.per_device_train_batch_size, each // devices)
    while each % (batch * devices):
        batch -= 1
    arguments.per_device_train_batch_size = batch
    arguments.gradient_accumulation_steps = each // (batch * devices)
