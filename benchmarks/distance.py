"""Recall over distance: `python -m benchmarks.distance --kind strict_lsh` trains on rows of 64 to 1,024 tokens and tries the model
on rows of 64 to 16,384. Keys and their values come first; then fillers, and among them, at places drawn by chance, each key
once, whose value is predicted. A model that sees a window only cannot know it.

Two layers: a local one that sees each token and the one before (a value meets its key there), and one of the kind that is looked
at. No positions, so that the length may grow. In the first third of the steps rows have 64 tokens, and keys instead of fillers (a
repeated question is learned sooner); then the length changes from step to step, 64, 128 ... 1,024, always 4,096 tokens a step.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from hf_reformer import ReformerConfig, ReformerForCausalLM
from hf_reformer.files import replacing_file

RESULTS = Path("benchmarks/results/distance")
LENGTHS, EVALUATED = (64, 128, 256, 512, 1024), (64, 256, 1024, 4096, 16_384)
TOKENS, PAIRS, SYMBOLS, FILLERS, WIDTH, CHUNK, STD = 4096, 8, 64, 64, 128, 16, 0.1


def rows(length, generator, dense=False):
    """(N, length) ids and labels, -100 where nothing is asked; keys are 1 to 32, values 33 to 64, fillers above."""
    count, half = max(1, TOKENS // length), SYMBOLS // 2
    drawn = lambda n: torch.rand(count, n, generator=generator).argsort(1)
    keys, values = drawn(half)[:, :PAIRS] + 1, drawn(half)[:, :PAIRS] + 1 + half
    context, rest = torch.stack([keys, values], 2).flatten(1), length - 2 * PAIRS
    if dense:
        asked = torch.randint(PAIRS, (count, rest), generator=generator)
        ids, labels = keys.gather(1, asked), values.gather(1, asked)
    else:
        ids = torch.randint(FILLERS, (count, rest), generator=generator) + 1 + SYMBOLS
        labels = torch.full((count, rest), -100)
        places, asked = drawn(rest)[:, :PAIRS], drawn(PAIRS)
        ids.scatter_(1, places, keys.gather(1, asked))
        labels.scatter_(1, places, values.gather(1, asked))
    return torch.cat([context, ids], 1), torch.cat([torch.full_like(context, -100), labels], 1)


def config_of(kind, rounds, length):
    last = {"none": "strict_local"}.get(kind, kind)
    return ReformerConfig(
        attn_layers=["strict_local", last], num_hashes=rounds, hidden_size=WIDTH, feed_forward_size=2 * WIDTH,
        num_attention_heads=2, attention_head_size=WIDTH // 2, vocab_size=1 + SYMBOLS + FILLERS, is_decoder=True,
        eos_token_id=None, local_attn_chunk_length=1, local_num_chunks_before=CHUNK if kind == "none" else 1,
        lsh_attn_chunk_length=CHUNK, max_position_embeddings=length, use_absolute_position_embeddings=False,
        hidden_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0, lsh_attention_probs_dropout_prob=0.0, layer_norm_eps=1e-6,
        embedding_init="published", initializer_range=STD, reversible="auto", use_cache=False,
    )  # fmt: skip


class Family:
    """Models for several kinds, rounds and lengths, all on the same parameters, of which none is of a length."""

    def __init__(self, kind, build=lambda *key: ReformerForCausalLM(config_of(*key))):
        self.first = build(kind, 1, LENGTHS[0])
        self.members, self.kind, self.build = {}, kind, build

    def parameters(self):
        return list(self.first.parameters())

    def member(self, rounds, length, kind=None):
        key = (kind or self.kind, rounds, length)
        if key not in self.members:
            other, own = self.build(*key), dict(self.first.named_parameters())
            for name, _ in list(other.named_parameters()):
                owner, _, leaf = name.rpartition(".")
                setattr(other.get_submodule(owner), leaf, own[name])
            self.members[key] = other.train()
        return self.members[key]


def fit(family, steps, rate, loss_of, *name):
    """Trains the family by AdamW on `loss_of(step)`, where that is not None; its loss every 50 steps, printed behind `name`."""
    optimizer = torch.optim.AdamW(family.parameters(), lr=rate, weight_decay=0.1)
    warm, curve = steps // 20 + 1, []
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm))
    )
    for step in range(steps):
        loss = loss_of(step)
        if loss is None:
            continue
        loss.backward()
        torch.nn.utils.clip_grad_norm_(family.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 49:
            curve.append([step + 1, round(loss.item(), 4)])
            print(*name, *curve[-1], flush=True)
    return curve


def by_distance(hits, far, distances):
    """Shares of `hits` (n,), of all and where `far` (n,) is up to each of `distances`: {"all": ..., "16": up to 16, ...}."""
    found, least = {"all": round(float(hits.double().mean()), 4)}, 0
    for largest in distances:
        within = (far > least) & (far <= largest)
        found |= {str(largest): round(float(hits[within].double().mean()), 4)} if within.any() else {}
        least = largest
    return found


def command(name, description, kinds, steps, results, run, argv):
    """`python -m benchmarks.NAME`: calls `run(kind, rounds, steps, learning_rate, seed)` and writes what it gives into a file."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--kind", default="strict_lsh", choices=kinds)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=results)
    arguments = vars(parser.parse_args(argv))
    output, start = arguments.pop("output"), time.process_time()
    result = {"setting": arguments, **run(*arguments.values())}
    result["processor_seconds"] = round(time.process_time() - start)
    output.mkdir(parents=True, exist_ok=True)
    with replacing_file(output / "{kind}-{rounds}-{steps}-{seed}.json".format(**arguments)) as temporary:
        temporary.write_text(json.dumps(result, indent=1))


def train(kind, rounds, steps, rate, seed):
    """The family, and its loss every 50 steps."""
    torch.manual_seed(seed)
    family, generator = Family(kind), torch.Generator().manual_seed(1_000 + seed)

    def loss_of(step):
        dense = 3 * step < steps
        length = LENGTHS[0] if dense else LENGTHS[step % len(LENGTHS)]
        ids, labels = rows(length, generator, dense)
        logits, asked = family.member(rounds, length)(ids).logits, labels >= 0
        return F.cross_entropy(logits[asked], labels[asked])

    return family, fit(family, steps, rate, loss_of, kind, rounds, seed)


@torch.no_grad()
def accuracy(model, length, batches=16):
    """Share of the asked values that are the likeliest token."""
    model.eval()
    generator, right, asked = torch.Generator().manual_seed(77), 0, 0
    for _ in range(batches):
        ids, labels = rows(length, generator)
        found = model(ids).logits.argmax(-1)
        right += int(((found == labels) & (labels >= 0)).sum())
        asked += int((labels >= 0).sum())
    return right / asked


def evaluations(family, rounds):
    """{how: {length: accuracy}}: as trained, with other rounds, and with full attention in place of hashing."""
    hashes = family.kind in ("strict_lsh", "lsh")
    ways = {"as trained": (rounds, family.kind)}
    ways |= {f"{r} rounds": (r, family.kind) for r in (1, 2, 4, 8, 16)} if hashes else {}
    ways |= {"full_shared_qk": (1, "full_shared_qk")} if hashes else {}
    return {
        how: {length: round(accuracy(family.member(r, length, kind), length), 4) for length in EVALUATED}
        for how, (r, kind) in ways.items()
    }


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distance", description=__doc__)
    parser.add_argument("--kind", default="strict_lsh", choices=["strict_lsh", "lsh", "full", "full_shared_qk", "none"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        path = arguments.output / f"{arguments.kind}-{arguments.rounds}-{arguments.steps}-{seed}.json"
        if path.exists():
            continue
        start = time.perf_counter()
        family, curve = train(arguments.kind, arguments.rounds, arguments.steps, arguments.learning_rate, seed)
        setting = {name: getattr(arguments, name) for name in ("kind", "rounds", "steps", "learning_rate")} | {
            "seed": seed
        }
        result = {"setting": setting, "seconds": round(time.perf_counter() - start), "curve": curve}
        result["accuracy"] = evaluations(family, arguments.rounds)
        if result["accuracy"]["as trained"][EVALUATED[-1]] >= 0.99:
            models = arguments.output.parent / "evidence-models"
            family.member(arguments.rounds, EVALUATED[-1]).save_pretrained(models / f"distance-{path.stem}")
        with replacing_file(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1))
        print(path.stem, f"{result['seconds']} s", result["accuracy"], flush=True)


if __name__ == "__main__":
    main()
