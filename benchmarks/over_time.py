"""Which model is better after the same time? `python -m benchmarks.over_time MODEL --context N --minutes M` trains a byte model on
one thread for so long, and notes what it needs of held-out text as it goes; `python -m benchmarks.over_time page` draws that.

Models of 4 layers of width 128, feed-forward 512, 2 heads: `ours` (strict_local and strict_lsh in turn, 2 rounds), `full` (the same
with full attention instead of strict_lsh), `local` (the same with strict_local instead) and `gpt2` (transformers' GPT-2 with SDPA).
The same windows in the same order, 16,384 bytes a step, AdamW, learning rate by the share of the time that has passed; evaluation
does not count. Time is the processor's, so that other processes on the machine change little. At the end: with less context, and by
how far back the text before a byte stands for the last time.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from hf_reformer import ReformerConfig, ReformerForCausalLM
from hf_reformer.files import replacing_file
from hf_reformer.training.recipes import load_recipe
from hf_reformer.training.task import Plan
from hf_reformer.training.tasks import build_task

RESULTS, PICTURE = Path("benchmarks/results/over-time"), Path("docs/pictures/over-time.png")
BYTES = 16_384  # a step
HELD_OUT = 65_536  # bytes that are evaluated
POINTS = 10
REPEATED = 8  # bytes: a byte is repeated text where these before it stand earlier in its window
DISTANCES = (128, 1024, 4096, 16_384)
MODELS = {
    "ours": "Reformer (strict_local, strict_lsh)",
    "full": "the same with full attention",
    "local": "the same without strict_lsh",
    "gpt2": "GPT-2 with SDPA",
}


def model_of(name, context):
    if name == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=258, n_positions=context, n_embd=128, n_layer=4, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
                attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, use_cache=False, attn_implementation="sdpa",
            )
        )  # fmt: skip
    kinds = ["strict_local", {"ours": "strict_lsh", "full": "full", "local": "strict_local"}[name]] * 2
    return ReformerForCausalLM(
        ReformerConfig(
            attn_layers=kinds, vocab_size=258, hidden_size=128, feed_forward_size=512, num_attention_heads=2,
            attention_head_size=64, num_hashes=2, local_attn_chunk_length=64, lsh_attn_chunk_length=64,
            max_position_embeddings=context, axial_pos_shape=[context // 128, 128], axial_pos_embds_dim=[32, 96],
            is_decoder=True, eos_token_id=None, hidden_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0,
            lsh_attention_probs_dropout_prob=0.0, reversible="auto", use_cache=False,
        )
    )  # fmt: skip


def windows(context, seed):
    """Training examples, and ids (N, context) of held-out ones."""
    changes = [
        ("data", "context", context),
        ("data", "window_plan", None),
        ("data", "near_duplicates", 0.3),
        ("evaluation", "examples", HELD_OUT // context),
    ]
    task = build_task(load_recipe("text", changes), Plan(steps=100_000, per_step=BYTES // context, seed=seed))
    return task.training, torch.stack([torch.as_tensor(x["input_ids"]) for x in task.evaluation])


@torch.no_grad()
def bits(model, held_out):
    """(N, context - 1) bits that each byte but the first of each row of `held_out` (N, context) needs."""
    model.eval()
    losses = [F.cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="none") for row in held_out]
    model.train()
    return torch.stack(losses) / torch.log(torch.tensor(2.0))


def distances(held_out):
    """(N, context - 1) how many bytes back the REPEATED bytes before each byte but the first stand last, 0 for never."""
    found = torch.zeros(len(held_out), held_out.shape[1] - 1, dtype=torch.long)
    for row, distance in zip(held_out.tolist(), found, strict=True):
        seen = {}
        for place in range(REPEATED, len(row)):
            before = tuple(row[place - REPEATED : place])
            distance[place - 1] = place - seen.get(before, place)
            seen[before] = place
    return found


def by_distance(needed, held_out):
    """[[least distance, largest, share of all bytes, bits per byte]], the first [0, 0, ...] for text that was not there before."""
    found, rows, least = distances(held_out), [], 0
    for largest in (0, *DISTANCES):
        there = (found >= least) & (found <= largest)
        if there.any():
            rows.append([least, largest, round(float(there.float().mean()), 4), round(float(needed[there].mean()), 4)])
        least = largest + 1
    return rows


def train(name, context, minutes, rate, seed):
    """What came out: the curve [[seconds of training, steps, bits per byte]], bits per byte with a quarter and a sixteenth of the
    context, and `by_distance`."""
    torch.manual_seed(seed)
    model, (training, held_out) = model_of(name, context).train(), windows(context, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    per_step, step, spent, curve = BYTES // context, 0, 0.0, []
    while True:
        share = min(spent / (60 * minutes), 1.0)
        if share >= len(curve) / POINTS:
            needed = bits(model, held_out)
            curve.append([round(spent, 1), step, round(float(needed.mean()), 4)])
            print(name, context, *curve[-1], flush=True)
        if share >= 1.0:
            shorter = [context // 4, context // 16]
            return {
                "parameters": sum(p.numel() for p in model.parameters()),
                "curve": curve,
                "by_context": [[n, round(float(bits(model, held_out.view(-1, n)).mean()), 4)] for n in shorter],
                "by_distance": by_distance(needed, held_out),
            }
        start = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(share / 0.05 + 1e-3, (1 - share) / 0.95)
        ids = torch.stack([torch.as_tensor(training[step * per_step + i]["input_ids"]) for i in range(per_step)])
        F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        spent, step = spent + time.process_time() - start, step + 1


def draw(results):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    contexts = sorted({result["context"] for result in results})
    axes = figure.subplots(1, len(contexts), squeeze=False)[0]
    for axis, context in zip(axes, contexts, strict=True):
        for name, label in MODELS.items():
            for result in results:
                if (result["model"], result["context"]) == (name, context):
                    seconds, steps, needed = zip(*result["curve"], strict=True)
                    axis.plot([s / 60 for s in seconds], needed, marker=".", label=f"{label}: {steps[-1]:,} steps")
        axis.set(
            xlabel="minutes of training, one thread",
            ylabel="bits per byte, held out",
            title=f"{context:,} bytes of context",
        )
        axis.set_ylim(top=5)
        axis.legend(fontsize=8)
    with replacing_file(PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.over_time", description=__doc__)
    parser.add_argument("model", choices=[*MODELS, "page"])
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    if arguments.model == "page":
        draw([json.loads(path.read_text()) for path in sorted(arguments.output.glob("*.json"))])
        return
    torch.set_num_threads(1)
    given = (arguments.model, arguments.context, arguments.minutes, arguments.learning_rate, arguments.seed)
    names = ("model", "context", "minutes", "learning_rate", "seed")
    machine = {"torch": torch.__version__, "machine": platform.machine()}
    result = dict(zip(names, given, strict=True)) | machine | train(*given)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{arguments.model}-{arguments.context}-{arguments.seed}.json"
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
