"""What a process holds and shares: models, threads and forks in one, open files, a home that cannot be written, no network."""

import copy
import os
import subprocess
import sys
import threading

import psutil
import pytest
import torch
from helpers import assert_close, assert_same_tensors, build, gradients, tiny_config, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_reformer
from hf_reformer.training.recipes import load_recipe
from hf_reformer.training.task import Plan
from hf_reformer.training.tasks import build_task

CONFIGS = [  # hash_seed: without it, training draws rotations from the one generator that all share
    tiny_config(["strict_local", "strict_lsh", "full_shared_qk"], use_cache=True, hash_seed=1),
    tiny_config(["lsh", "local", "lsh", "local"], num_hashes=3, num_buckets=[2, 4], use_cache=True, hash_seed=2),
]


def in_threads(*functions):
    """What each gives, when all run at once."""
    found, barrier = [None] * len(functions), threading.Barrier(len(functions))

    def work(i, function):
        barrier.wait()
        found[i] = function()

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


class Work:
    """One model's work in steps: training, a forward, and generation."""

    def __init__(self, number):
        self.config = CONFIGS[number]
        self.model = build(self.config, seed=number)
        self.ids = tokens(self.config, 2, 61, seed=number)
        self.found = {}

    def train(self):
        self.model.train()
        self.model(self.ids, labels=self.ids).loss.backward()
        self.found |= {f"gradient of {name}": value for name, value in gradients(self.model).items()}

    def forward(self):
        self.model.eval()
        with torch.no_grad():
            self.found["logits"] = self.model(self.ids).logits

    def generate(self):
        self.model.eval()
        self.found["text"] = self.model.generate(
            self.ids[:, :20], max_new_tokens=15, do_sample=False, pad_token_id=0
        ).double()

    def all(self):
        self.train(), self.forward(), self.generate()
        return self.found


def alone(number):
    return Work(number).all()


# --- models and threads -------------------------------------------------------------------------------------------------


def test_two_models_in_turn_give_what_each_gives_alone():
    expected = [alone(0), alone(1)]
    works = [Work(0), Work(1)]
    for step in ("train", "forward", "generate"):
        for work in works:
            getattr(work, step)()
    for work, one in zip(works, expected, strict=True):
        assert_same_tensors(work.found, one, 1e-12)


def test_models_of_several_threads_give_what_each_gives_alone():
    expected = [alone(0), alone(1)]
    for _ in range(3):
        works = [Work(i % 2) for i in range(4)]
        found = in_threads(*(work.all for work in works))
        for i, tensors in enumerate(found):
            assert_same_tensors(tensors, expected[i % 2], 1e-12)


@pytest.mark.parametrize("number", [0, 1])
def test_several_threads_use_one_model(number):
    """Each with a text and a cache of its own."""
    config = CONFIGS[number]
    model = build(config)
    prompts = [tokens(config, 1, length, seed=length) for length in (7, 19, 40, 53)]

    def use(ids):
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits
        text = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
        return {"logits": logits, "text": text.double()}

    expected = [use(ids) for ids in prompts]
    for _ in range(3):
        found = in_threads(*(lambda ids=ids: use(ids) for ids in prompts))
        for tensors, one in zip(found, expected, strict=True):
            assert_same_tensors(tensors, one, 1e-12)


# --- other processes ----------------------------------------------------------------------------------------------------


def test_a_forked_process_computes_after_its_parent_has():
    model = build(CONFIGS[0])
    ids = tokens(CONFIGS[0], 1, 50)
    expected = model(ids).logits.detach()
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(model(ids).logits.detach().tolist()), daemon=True)
    child.start()
    assert_close(torch.tensor(queue.get(timeout=60), dtype=torch.float64), expected, 1e-12)
    child.join(30)
    assert child.exitcode == 0


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_loader_give_the_same_batches(method):
    task = build_task(load_recipe("text", smoke=True), Plan(steps=3, per_step=2, seed=0))
    build(CONFIGS[0])(tokens(CONFIGS[0], 1, 9))  # the parent has computed before
    loader = lambda **how: torch.utils.data.DataLoader(task.training, batch_size=2, collate_fn=task.collate, **how)
    expected = list(loader())
    batches = list(loader(num_workers=2, multiprocessing_context=method))
    assert len(batches) == len(expected) == 3
    for batch, one in zip(batches, expected, strict=True):
        assert batch.keys() == one.keys() and all(torch.equal(batch[key], one[key]) for key in one)


# --- files and network --------------------------------------------------------------------------------------------------


def test_files_that_were_opened_are_closed_again(tmp_path):
    model, tokenizer = build(CONFIGS[0], dtype=torch.float32), hf_reformer.ReformerByteTokenizer()

    def use():
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        AutoTokenizer.from_pretrained(tmp_path / "model")
        again.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3, pad_token_id=0)
        copy.deepcopy(again)

    use()  # what is opened once and kept
    opened = psutil.Process().num_fds()
    for _ in range(20):
        use()
    assert psutil.Process().num_fds() <= opened


USE = """
import hf_reformer
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = hf_reformer.pretrained("text-16k")
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
ids = tokenizer("Once", return_tensors="pt").input_ids
model(ids, labels=ids).loss.backward()
print(tokenizer.decode(model.generate(ids, max_new_tokens=3)[0]))
from hf_reformer.cli import main
assert main(["generate", "text-16k", "--prompt", "Once", "--max-new-tokens", "3"]) == 0
"""


def run_code(code, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_home_that_cannot_be_written_is_enough(tmp_path):
    home = tmp_path / "home"
    home.write_text("a file: nothing can be made below it, whoever tries")
    names = ("HOME", "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")
    done = run_code(USE, **dict.fromkeys(names, str(home / "below")))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("Once")
    assert os.listdir(tmp_path) == ["home"]


WATCH = """
import socket, sys
tried = []
def refuse(name):
    def call(*args, **kwargs):
        tried.append((name, args[1:] if name == "connect" else args))
        raise OSError(f"{name} was called")
    return call
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse(name))
socket.socket.connect = refuse("connect")
"""


def test_nothing_asks_the_network_for_what_is_here(tmp_path):
    """HF_HUB_OFFLINE is not set."""
    saved = f"model.save_pretrained({str(tmp_path)!r}); AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
    done = run_code(WATCH + USE + saved + "assert not tried, tried\n")
    assert done.returncode == 0, done.stderr[-3000:]
    done = run_code(WATCH + "try: socket.create_connection(('a', 1))\nexcept OSError: pass\nassert not tried, tried")
    assert "AssertionError" in done.stderr, "the watch sees nothing"


def test_the_import_brings_nothing_that_only_some_commands_need():
    code = "import sys, transformers, torch, hf_reformer\nprint(*sorted(n for n in sys.modules if '.' not in n))"
    done = run_code(code)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "hf_reformer" in loaded
    assert loaded.isdisjoint({"matplotlib", "gradio", "datasets", "pyarrow", "tensorboard", "peft", "seqeval", "onnx"})
