"""What `test_resuming.py` runs: a run in float64 that notes which examples each step read, on any number of processes."""

import os
import sys
from pathlib import Path

import torch
from accelerate import ParallelismConfig
from accelerate_worker import let_accelerate_shard_on_cpus
from helpers import DROPOUT, build, tiny_config
from transformers import TrainingArguments

from hf_reformer.training.checkpoints import CheckpointedTrainer

STEPS, SAVED, ROWS, LENGTH = 7, 3, 32, 23  # 4 steps in an epoch of 8 examples each


def rows():
    """The first two tokens are the number of the row."""
    ids = torch.randint(19, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    ids[:, 0], ids[:, 1] = torch.arange(ROWS) // 6, torch.arange(ROWS) % 6
    return [{"input_ids": row, "labels": row} for row in ids]


class NotingTrainer(CheckpointedTrainer):
    """Notes the rows of each micro-batch, and the first number that the first of them would draw."""

    def training_step(self, model, inputs, *args, **kwargs):
        state = torch.get_rng_state()
        read = (inputs["input_ids"][:, 0] * 6 + inputs["input_ids"][:, 1]).tolist()
        self.noted.append((self.state.global_step, read, float(torch.rand(()))))
        torch.set_rng_state(state)
        return super().training_step(model, inputs, *args, **kwargs)


def train(folder, *options, dropout=False):
    """From the checkpoint in the folder, where there is one; weights and notes lie in it at the end. With the option
    "sequence" two processes share each sequence."""
    torch.set_num_threads(1)
    changes = DROPOUT if dropout else {"hash_seed": 11}
    model = build(tiny_config(["strict_lsh", "strict_local", "full"], **changes))
    shared = ParallelismConfig(sp_size=2, sp_backend="deepspeed") if options else None
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=0.01, save_steps=SAVED, use_cpu=True, report_to=[], disable_tqdm=True, seed=3,
        parallelism_config=shared, logging_strategy="no",
    )  # fmt: skip
    if options:
        os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"  # for DDP on CPUs that are told to be GPUs
        let_accelerate_shard_on_cpus()
    trainer = NotingTrainer(model, arguments, train_dataset=rows())
    trainer.noted = []
    trainer.train(resume_from_checkpoint=any(Path(folder).glob("checkpoint-*")))
    rank = arguments.process_index
    torch.save(trainer.noted, Path(folder, f"noted-{rank}.pt"))
    if rank == 0:
        torch.save({n: p.detach() for n, p in trainer.model.named_parameters()}, Path(folder, "weights.pt"))


if __name__ == "__main__":
    train(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # an ordinary exit aborts now and then: PyTorch ends threads of gloo that still run
