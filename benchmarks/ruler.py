"""RULER's variable tracking, common and frequent words on a language model of bytes, by lm-evaluation-harness, beside chance.

    pip install lm_eval wonderwords nltk
    python -m benchmarks.ruler [FOLDER] --tasks vt cwe fwe --lengths 4096 8192 16384 --samples 10

FOLDER is a checkpoint with a tokenizer; left out, it is the `text-16k` that ships. Lengths are tokens: bytes for that one. The
tasks, prompts and scores are lm_eval's; only the number of samples is ours (it makes 500 of each, whatever its `--limit`), and the
example in the prompt of `vt`, which lm_eval gives 500 tokens: with bytes it does not fit into so few, and `ruler_vt` never ends.

Chance names distinct words of the prompt, in random order, for as long as the model may write.
"""

import argparse
import importlib
import json
import random
import re
import sys
from pathlib import Path

import lm_eval
import numpy as np
import torch
from lm_eval.tasks.ruler.common_utils import string_match_all
from transformers import AutoTokenizer

import hf_reformer

RESULTS = Path("benchmarks/results/ruler.json")
EXAMPLE = 1_000  # bytes of the example in a prompt of vt
ANSWER = {"vt": 30, "cwe": 120, "fwe": 50}  # tokens that a model may write, in lm_eval
GUESSES = 20  # of chance for each prompt


def module_of(task):
    return importlib.import_module(f"lm_eval.tasks.ruler.{task}_utils")


def rows(task, tokenizer, length, samples):
    """Prompts and answers of one task at one length; ValueError where it has no answers at this length."""
    made_by = module_of(task)
    if task == "vt":
        example = made_by.sys_vartrack_w_noise_random(tokenizer, 1, EXAMPLE, incremental=5)[0]
        made = made_by.sys_vartrack_w_noise_random(tokenizer, samples, length, icl_example=example)
    elif task == "cwe":
        made = made_by.sys_word_pair_random(samples, length, tokenizer)
    else:
        made = made_by.sys_kwext(tokenizer, length, samples)
    if not all(row["outputs"] for row in made):
        raise ValueError(f"{task} at {length} tokens of {type(tokenizer).__name__}: not even ten words fit")
    return made


def mean_and_error(scores):
    return {"mean": float(np.mean(scores)), "standard_error": float(np.std(scores, ddof=1) / len(scores) ** 0.5)}


def guess(row, task, generator):
    words = sorted(set(re.findall(r"[A-Za-z]+", row["input"])))
    generator.shuffle(words)
    return string_match_all([" ".join(words)[: ANSWER[task]]], [row["outputs"]])


def measure(task, folder, length, samples, seed):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    random.seed(seed)
    np.random.seed(seed)
    made = rows(task, tokenizer, length, samples)
    made_by = module_of(task)
    made_by.__mtime__ = Path(made_by.__file__).stat().st_mtime_ns  # without it lm_eval would read the module anew
    made_by.get_dataset = lambda *_, **__: made
    answered = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(folder)}, tasks=[f"ruler_{task}"], device="cpu", batch_size=1,
        bootstrap_iters=0, metadata={"max_seq_lengths": [length]},
    )  # fmt: skip
    samples_of = next(iter(answered["samples"].values()))
    generator = random.Random(seed)
    return {
        "task": task, "tokens": length, "n": len(samples_of),
        "longest_prompt": max(len(tokenizer(row["input"]).input_ids) for row in made),
        "model": mean_and_error([sample[str(length)] for sample in samples_of]),
        "chance": float(np.mean([guess(row, task, generator) for row in made for _ in range(GUESSES)])),
        "an_answer": samples_of[0]["resps"][0][0], "asked": samples_of[0]["doc"]["outputs"],
    }  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ruler", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=hf_reformer.pretrained("text-16k"))
    parser.add_argument("--tasks", nargs="+", choices=sorted(ANSWER), default=["vt", "cwe", "fwe"])
    parser.add_argument(
        "--lengths", nargs="+", type=int, choices=[4_096, 8_192, 16_384], default=[4_096, 8_192, 16_384]
    )
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    measured = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    for task in args.tasks:
        for length in args.lengths:
            try:
                row = measure(task, args.folder, length, args.samples, args.seed)
            except ValueError as error:
                print(error, file=sys.stderr)
                continue
            print(json.dumps(row), flush=True)
            measured = [old for old in measured if (old["task"], old["tokens"]) != (task, length)] + [row]
            result = {
                "lm_eval": lm_eval.__version__,
                "torch": torch.__version__,
                "model": Path(args.folder).name,
                "rows": measured,
            }
            args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
