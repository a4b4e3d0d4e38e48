"""`Trainer` under Accelerate's switch for sequence parallelism, `ParallelismConfig(sp_size=N, sp_backend="deepspeed")`.

What of that switch fits is used as it stands: its sizes, and how `Trainer` counts steps and batches under it. Accelerate makes no
group for it (DeepSpeed does), its sharding loader is DeepSpeed's, and so is the attention, which is SDPA without masks. Group,
loader and attention are ours; DeepSpeed need not be installed. Shapes: B batch, L length.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer

from ..model.losses import next_token_labels
from ..parallel import sequence_parallel


class SequenceParallelTrainer(Trainer):
    """`transformers.Trainer`; where `sp_size` is above 1, each group of so many neighbouring processes shares its sequences.

    Steps, epochs and batch sizes are those that `Trainer` documents: of `per_device_train_batch_size` sequences for each group,
    not for each process. Training and evaluation are sharded, generation is not.

    Raises:
        ValueError: for settings that sequence parallelism cannot have.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sequence_group = self._sequence_group()
        if self.sequence_group is not None:
            self.model_accepts_loss_kwargs = True
            self.accelerator.deepspeed_ulysses_dl_adapter = lambda loader, model: ShardLoader(
                Shards(loader, self), batch_size=None
            )

    def _sequence_group(self):
        size, world = self.get_sp_size(), self.args.world_size
        if size == 1:
            return None
        if self.is_deepspeed_enabled:
            raise ValueError("`sp_size` is given with a DeepSpeed engine, but must be with DDP or FSDP2.")
        if world % size:
            raise ValueError(f"`sp_size` is {size}, but must divide the number of processes, {world}.")
        if not self.args.average_tokens_across_devices:
            raise ValueError("`average_tokens_across_devices` is False, but must be True with `sp_size` above 1.")
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise ValueError(
                "`compute_loss_func` or `label_smoothing_factor` is given, but must not be with `sp_size` above 1."
            )
        mesh = init_device_mesh(self.args.device.type, (world // size, size), mesh_dim_names=("dp", "sp"))
        return mesh["sp"].get_group()

    def scatter(self, batch, source):
        """Of the batch of process `source` of the group (None on the others) the shard of this process."""
        group, size = self.sequence_group, self.get_sp_size()
        shards = cut(batch, size, self._loss_shifts_labels) if dist.get_rank(group) == source else None
        found = [None]
        dist.scatter_object_list(found, shards, dist.get_global_rank(group, source), group)
        return self._prepare_inputs(found[0])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of this process's tokens, so that the mean over all processes is that of the whole batch."""
        if self.sequence_group is None or not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if num_items_in_batch is not None:  # `Trainer` divides by `sp_size`, as if each process had the whole sequence
            inputs = {**inputs, "num_items_in_batch": num_items_in_batch * self.get_sp_size()}
        with sequence_parallel(model, self.sequence_group):
            outputs = model(**inputs)
        # DDP and FSDP2 take the mean over all processes; a group's own mean is over its own processes alone
        loss = outputs["loss"] * (self.get_sp_size() if num_items_in_batch is None else self.args.world_size)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """One batch of each process of the group after the other, sharded; each process gets what is its own."""
        if self.sequence_group is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        rank, own = dist.get_rank(self.sequence_group), None
        for source in range(self.get_sp_size()):
            shard = self.scatter(inputs, source)
            with torch.no_grad(), self.compute_loss_context_manager(), sequence_parallel(model, self.sequence_group):
                outputs = model(**shard)
            loss = outputs["loss"].detach().clone()
            dist.all_reduce(loss, group=self.sequence_group)
            logits = None if prediction_loss_only else self._joined(outputs["logits"], source)
            if source == rank:
                own = loss, logits
        return *own, None if prediction_loss_only else self._prepare_inputs(inputs)["labels"]

    def _joined(self, logits, source):
        """(B, l, V) -> (B, L, V) on process `source` of the group."""
        parts = [None] * self.get_sp_size() if dist.get_rank(self.sequence_group) == source else None
        dist.gather_object(logits.cpu(), parts, dist.get_global_rank(self.sequence_group, source), self.sequence_group)
        return None if parts is None else torch.cat(parts, 1).to(logits.device)


def cut(batch, size, shifts_labels):
    """A batch in `size` parts of nearly equal length; where the loss would shift labels, these are shifted before (and stay
    beside them, since `Trainer` counts where there are labels)."""
    batch = dict(batch)
    length = batch["inputs_embeds" if "inputs_embeds" in batch else "input_ids"].shape[1]
    if length < size:
        raise ValueError(
            f"A batch has rows of {length} tokens, but must have at least one for each of {size} processes."
        )
    if shifts_labels and "labels" in batch and "shift_labels" not in batch:
        batch["shift_labels"] = next_token_labels(batch["labels"])
    parts = [dict(batch) for _ in range(size)]
    for name, value in batch.items():
        if torch.is_tensor(value) and value.dim() > 1 and value.shape[1] == length:
            for part, piece in zip(parts, value.tensor_split(size, 1), strict=True):
                part[name] = piece.cpu().contiguous()
    return parts


class Shards(IterableDataset):
    """This process's shards of all batches of its group, in the order in which one process would take the batches."""

    def __init__(self, loader, trainer):
        self.loader, self.trainer = loader, trainer

    def __iter__(self):
        for batch in self.loader:
            for source in range(self.trainer.get_sp_size()):
                yield self.trainer.scatter(batch, source)


class ShardLoader(DataLoader):
    """A loader around `Shards`, which `accelerate.skip_first_batches` knows how to cut when a run is resumed."""

    def set_epoch(self, epoch):
        """Tells the loader of whole batches, if it asks for that."""
        if hasattr(self.dataset.loader, "set_epoch"):
            self.dataset.loader.set_epoch(epoch)
