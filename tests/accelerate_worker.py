"""What `test_accelerate_launch.py` launches: a user's training script, once for each of the scenarios on the command line.

Rank 0 writes logged losses, the gradients of the first step as the optimiser meets them, and the parameters at the end.
"""

import os
import sys
from pathlib import Path

import torch
from accelerate import DistributedType, ParallelismConfig, PartialState
from helpers import build, tiny_config
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_reformer.training.sequence_trainer import SequenceParallelTrainer

LAYERS = ["strict_lsh", "lsh", "strict_local", "local"]
STEPS, GLOBAL_BATCH, LENGTH = 4, 8, 29


def rows():
    """Rows of 5 to 29 tokens, all padded to 29: published layers count padding, so each row must always have the same."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for index in range(GLOBAL_BATCH * STEPS):
        ids, length = torch.randint(1, 19, (LENGTH,), generator=generator), 5 + 7 * index % 25
        mask = (torch.arange(LENGTH) < length).long()
        made.append({"input_ids": ids * mask, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return made


class FirstGradients(TrainerCallback):
    def __init__(self):
        self.gradients = None

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if self.gradients is None:
            self.gradients = {name: whole(parameter.grad) for name, parameter in model.named_parameters()}


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def let_accelerate_shard_on_cpus():
    """accelerate 1.15 quietly takes DDP instead of FSDP2 on CPUs. Told that they are GPUs, it shards there too."""
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def train(folder, processes, sharded=False, sequence=1, trainer_class=Trainer, **settings):
    """Losses, gradients and parameters of a run whose global batch does not depend on the number of processes, nor on how
    many share a `sequence`."""
    torch.set_num_threads(1)
    model = build(tiny_config(LAYERS, hash_seed=11))  # dropout is off, and rotations are the same on every process
    arguments = TrainingArguments(
        output_dir=folder, max_steps=STEPS, per_device_train_batch_size=GLOBAL_BATCH * sequence // processes // 2,
        gradient_accumulation_steps=2, learning_rate=0.01, logging_steps=1, logging_first_step=True, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", lr_scheduler_type="constant", **settings,
    )  # fmt: skip
    if sharded or sequence > 1:
        let_accelerate_shard_on_cpus()
    gradients = FirstGradients()
    trainer = trainer_class(model, arguments, train_dataset=rows(), eval_dataset=rows()[:8], callbacks=[gradients])
    trainer.train()
    return {
        "evaluation": trainer.evaluate()["eval_loss"],
        "predictions": torch.tensor(trainer.predict(rows()[:8]).predictions),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "gradients": gradients.gradients,
        "parameters": {name: whole(parameter) for name, parameter in trainer.model.named_parameters()},
        "wrapped": type(trainer.model_wrapped).__name__,
    }


def in_sequence(folder, processes):
    """Two processes share each sequence."""
    shared = ParallelismConfig(sp_size=2, sp_backend="deepspeed")
    os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"  # for DDP on CPUs that are told to be GPUs
    return train(folder, processes, sequence=2, trainer_class=SequenceParallelTrainer, parallelism_config=shared)


def in_sequence_by_configuration(folder, processes):
    """The same, asked for by the configuration file of `accelerate launch` alone."""
    return train(folder, processes, sequence=2, sharded=True, trainer_class=SequenceParallelTrainer)


SCENARIOS = {
    "ddp": {},
    "fsdp2": {"sharded": True},
    "ddp without a search for unused parameters": {"ddp_find_unused_parameters": False},
    "sequence": in_sequence,
    "sequence by configuration": in_sequence_by_configuration,
}


def main(folder, *names):
    for name in names:
        scenario, processes = SCENARIOS[name], int(os.environ["WORLD_SIZE"])
        result = scenario(folder, processes) if callable(scenario) else train(folder, processes, **scenario)
        if os.environ["RANK"] == "0":
            torch.save(result, Path(folder, f"{name}.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # an ordinary exit aborts now and then: PyTorch ends threads of gloo that still run
