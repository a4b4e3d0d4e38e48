"""A run of CheckpointedTrainer in a process of its own that can be made to die, stop or fail at any point of it.

Points are counted, not timed: calls of modules (forward, and again in backward), and file operations in the output folder
(opening for writing, renaming, making and removing: what Python's audit events tell).
"""

import ctypes
import errno
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import torch
from accelerate_worker import let_accelerate_shard_on_cpus, whole
from helpers import DROPOUT, build, tiny_config
from transformers import TrainingArguments

from hf_reformer.training.checkpoints import CheckpointedTrainer, latest_whole_checkpoint

STEPS, SAVE_EVERY = 30, 4  # 6 steps in an epoch, the last one with fewer batches
ROWS = 22
WRITING = os.O_WRONLY | os.O_RDWR
CREATING = ("open", "os.rename")
EVENTS = (*CREATING, "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def rows():
    """Rows of 9 to 30 tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = [9 + 7 * index % 22 for index in range(ROWS)]
    return [{"input_ids": torch.randint(19, (length,), generator=generator)} for length in lengths]


def padded_with_noise(examples):
    """Pads, and replaces one token in ten at random, as masking does."""
    ids = torch.nn.utils.rnn.pad_sequence([example["input_ids"] for example in examples], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(e["input_ids"]) for e in examples], batch_first=True)
    noisy = torch.where(torch.rand(ids.shape) < 0.1, torch.randint(19, ids.shape), ids)
    return {"input_ids": noisy, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def trainer(folder, sharded=False, **settings):
    model = build(tiny_config(["strict_lsh", "strict_local", "lsh"], **DROPOUT), dtype=torch.float32)
    settings = {"max_steps": STEPS, "save_steps": SAVE_EVERY, "save_total_limit": 1, **settings}
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.01,
        lr_scheduler_type="cosine", warmup_steps=3, use_cpu=True, seed=5, report_to=[], disable_tqdm=True,
        logging_strategy="no", **settings,
    )  # fmt: skip
    if sharded:
        let_accelerate_shard_on_cpus()
    return CheckpointedTrainer(
        model, arguments, data_collator=padded_with_noise, train_dataset=rows(), eval_dataset=rows()[:3]
    )


def at_module_call(number, action):
    """`action()` at the call of a module with this number."""
    count, call = iter(range(number)), torch.nn.Module._call_impl

    def counted(module, *arguments, **keywords):  # no hook: in front of one, a layer keeps its graph
        if next(count, None) is None:
            action()
        return call(module, *arguments, **keywords)

    torch.nn.Module._call_impl = counted


def at_file_operation(folder, act, events=EVENTS):
    """`act(number)` before each file operation in `folder`. There is no way to take this back: a process for each use."""
    count = iter(range(10**9))

    def hook(event, arguments):
        if event not in events or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if event == "open" and not arguments[2] & WRITING:
            return
        if str(folder) in os.fspath(arguments[0]):
            act(next(count))

    sys.addaudithook(hook)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def tear_files_of_torch(number):
    """The torch.save with this number writes half a file and dies."""
    save, count = torch.save, iter(range(number))

    def half(value, path, *args, **kwargs):
        save(value, path, *args, **kwargs)
        if next(count, None) is None:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    torch.save = half


def train(folder, point=None, number=0, number_of_signal=signal.SIGKILL, **settings):
    """Trains on from the latest whole checkpoint, if there is one, and is hit by a signal at a point.

    At the end the weights lie in `final.pt`; `steps.txt` gets a line: the last step, and the signal that stopped it.
    """
    folder = Path(folder)

    def hit():
        os.kill(os.getpid(), number_of_signal)

    if point == "module call":
        at_module_call(number, hit)
    elif point == "file operation":
        at_file_operation(folder, lambda n: n == number and hit())
    elif point == "half a file":
        tear_files_of_torch(number)
    run = trainer(folder, **settings)
    run.train(resume_from_checkpoint=latest_whole_checkpoint(folder))
    weights = {name: whole(weight) for name, weight in run.model.state_dict().items()}
    if run.args.should_save:
        with (folder / "steps.txt").open("a") as file:
            file.write(f"{run.state.global_step} {run.stopped_by}\n")
    if run.args.should_save and not run.stopped_by:
        torch.save(weights, folder / "final.pt")


def fill_disk_at_every_file_operation(folder):
    """Saves once whole, then again and again with an error at one file operation more; writes what came of each.

    That is (errno or None, message, names in the folder).
    """
    run, left, results = trainer(folder, max_steps=1, save_strategy="no", save_total_limit=None), [-1], []

    def act(number):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.ENOSPC, "No space left on device")

    run.train()
    run._save_checkpoint(run.model, None)
    run.state.global_step = 2
    at_file_operation(folder, act, CREATING)
    while left[0] < 0:
        left[0], error = len(results), OSError()
        try:
            run._save_checkpoint(run.model, None)
        except OSError as caught:
            error = caught
        results.append((error.errno, str(error), sorted(os.listdir(folder))))
    torch.save(results, f"{folder}-results.pt")


def mount_small_disk(folder, size):
    """Mounts a file system of `size` bytes at a folder, for this process alone; False where the system forbids it."""
    library, new_mounts, new_user = ctypes.CDLL(None, use_errno=True), 0x20000, 0x10000000
    user = os.getuid()
    if user == 0:
        done = library.unshare(new_mounts) == 0
    else:
        done = library.unshare(new_mounts | new_user) == 0
        done and Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    options = f"size={size}".encode()
    return done and library.mount(b"none", os.fsencode(folder), b"tmpfs", 0, options) == 0


def fill_a_small_disk(folder):
    """Saves until a disk of 2 MiB is full, several times with a little less room left for the last checkpoint."""
    results = []
    Path(folder).mkdir()
    if not mount_small_disk(folder, 1 << 21):
        return
    run = trainer(folder, max_steps=1, save_strategy="no", save_total_limit=None)
    run.train()
    run._save_checkpoint(run.model, None)
    used = sum(path.stat().st_size for path in Path(folder, "checkpoint-1").iterdir())
    ballast = Path(folder, "ballast")
    run.state.global_step = 2
    for tenths in range(10):
        ballast.write_bytes(b"")
        ballast.write_bytes(bytes(shutil.disk_usage(folder).free - used * tenths // 10 & -4096))
        try:
            run._save_checkpoint(run.model, None)
        except OSError as error:
            cause = type(error.__cause__).__name__
            results.append((error.errno, cause, sorted(os.listdir(folder)), latest_whole_checkpoint(folder).name))
    torch.save(results, f"{folder}-results.pt")


def call(function, log, *args, **kwargs):
    """Entry of the process: one thread, output in a file, exit status 1 with a traceback there."""
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        function(*args, **kwargs)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    folder, sharded, rank, *interruption = sys.argv[1:]
    if interruption and os.environ["RANK"] == rank:
        point, number, number_of_signal = interruption
        train(folder, point, int(number), int(number_of_signal), sharded=sharded == "sharded")
    else:
        train(folder, sharded=sharded == "sharded")
    sys.stdout.flush()
    os._exit(0)  # an ordinary exit aborts now and then: PyTorch ends threads of gloo that still run
