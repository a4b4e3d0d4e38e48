"""Which model is better after the same time? `python -m benchmarks.over_time MODEL --context N --minutes M` trains a byte model on
one thread for so long, and notes what it needs of held-out text as it goes; `python -m benchmarks.over_time page` draws that.

Models of 4 layers of width 128, feed-forward 512, 2 heads: `ours` (strict_local and strict_lsh in turn, 2 rounds), `full` (the same
with full attention instead of strict_lsh) and `gpt2` (transformers' GPT-2 with SDPA). The same windows in the same order, 16,384
bytes a step, AdamW, learning rate by the share of the time that has passed; evaluation does not count.
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
MODELS = {
    "ours": "Reformer (strict_local, strict_lsh)",
    "full": "the same with full attention",
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
    kinds = ["strict_local", "strict_lsh" if name == "ours" else "full"] * 2
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
        ("evaluation", "examples", HELD_OUT // context),
    ]
    task = build_task(load_recipe("text", changes), Plan(steps=100_000, per_step=BYTES // context, seed=seed))
    return task.training, torch.stack([torch.as_tensor(x["input_ids"]) for x in task.evaluation])


@torch.no_grad()
def bits_per_byte(model, held_out):
    model.eval()
    losses = [F.cross_entropy(model(row[None]).logits[0, :-1], row[1:]) for row in held_out]
    model.train()
    return float(torch.stack(losses).mean() / torch.log(torch.tensor(2.0)))


def train(name, context, minutes, rate, seed):
    """The curve [[seconds of training, steps, bits per byte]], and the model."""
    torch.manual_seed(seed)
    model, (training, held_out) = model_of(name, context).train(), windows(context, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    per_step, step, spent, curve = BYTES // context, 0, 0.0, []
    while True:
        share = min(spent / (60 * minutes), 1.0)
        if share >= len(curve) / POINTS:
            curve.append([round(spent, 1), step, round(bits_per_byte(model, held_out), 4)])
            print(name, context, *curve[-1], flush=True)
        if share >= 1.0:
            return curve, model
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(share / 0.05 + 1e-3, (1 - share) / 0.95)
        ids = torch.stack([torch.as_tensor(training[step * per_step + i]["input_ids"]) for i in range(per_step)])
        F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        spent, step = spent + time.perf_counter() - start, step + 1


def draw(results):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    contexts = sorted({result["context"] for result in results})
    axes = figure.subplots(1, len(contexts), squeeze=False)[0]
    for axis, context in zip(axes, contexts, strict=True):
        for name, label in MODELS.items():
            for result in results:
                if (result["model"], result["context"]) == (name, context):
                    seconds, steps, bits = zip(*result["curve"], strict=True)
                    axis.plot([s / 60 for s in seconds], bits, marker=".", label=f"{label}: {steps[-1]:,} steps")
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
    curve, model = train(*given)
    names = ("model", "context", "minutes", "learning_rate", "seed")
    result = dict(zip(names, given, strict=True)) | {
        "parameters": sum(p.numel() for p in model.parameters()), "torch": torch.__version__, "machine": platform.machine(),
        "curve": curve,
    }  # fmt: skip
    arguments.output.mkdir(parents=True, exist_ok=True)
    with replacing_file(arguments.output / f"{arguments.model}-{arguments.context}.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
