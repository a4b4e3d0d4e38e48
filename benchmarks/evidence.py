"""Does LSH attention help? `python -m benchmarks.evidence TASK` trains the same small model with each kind of second layer on
the same rows in the same order, and evaluates each again with other rounds of hashing, with full attention and with its LSH
outputs set to 0. One JSON file for each run appears as it ends; what is there is not run again. `python -m benchmarks.evidence
page` writes docs/does-lsh-help.md from these files alone.

Tasks, whose rows are drawn anew for every step:
- `duplication`: 0w0w, the paper's (section 5.2, table 2): the second w is predicted, by one layer with a table of positions (a
  layer that shares queries and keys finds the place by position).
- `recall`: associative recall: pairs of a key and its value, then keys of these, one after another, each of whose values is
  predicted (Zoology's MQAR, but for its fillers: every place behind the pairs is a query, since repetition makes it learnable).
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional as F

from hf_reformer import ReformerConfig, ReformerForCausalLM
from hf_reformer.files import replacing_file

from . import evidence_page

RESULTS = Path("benchmarks/results/evidence")
EVALUATED = 512  # rows
FULL = "full_shared_qk"


@dataclass(frozen=True)
class Setting:
    """One training run. `kind`: of the second layer, `none` for another local one; `coin` and `full first` train the parameters
    of an LSH layer as `full_shared_qk` too, at every other step by chance and in the first half."""

    task: str
    kind: str
    rounds: int = 1
    seed: int = 0
    length: int = 64
    pairs: int = 8
    symbols: int = 127
    steps: int = 2000
    batch: int = 64
    learning_rate: float = 2e-3
    width: int = 128
    heads: int = 2
    chunk: int = 16
    std: float = 0.1  # of all weights at the start, words and positions too

    @property
    def name(self):
        return f"{self.task}-{self.length}-{self.kind.replace(' ', '_')}-{self.rounds}-{self.steps}-{self.seed}"


# --- rows ---------------------------------------------------------------------------------------------------------------


def duplication(setting, count, generator):
    """(count, length) ids and labels, -100 where nothing is asked."""
    w = torch.randint(1, setting.symbols + 1, (count, setting.length // 2 - 1), generator=generator)
    zero = torch.zeros(count, 1, dtype=torch.long)
    ids = torch.cat([zero, w, zero, w], 1)
    labels = ids.clone()
    labels[:, : setting.length // 2 + 1] = -100
    return ids, labels


def recall(setting, count, generator):
    """The same: `pairs` keys and values, then keys drawn from these, with the value as the label there (no shift)."""
    half = setting.symbols // 2
    keys = torch.rand(count, half, generator=generator).argsort(1)[:, : setting.pairs] + 1
    values = torch.rand(count, half, generator=generator).argsort(1)[:, : setting.pairs] + 1 + half
    context = torch.stack([keys, values], 2).flatten(1)
    asked = torch.randint(setting.pairs, (count, setting.length - context.shape[1]), generator=generator)
    labels = torch.cat([torch.full_like(context, -100), values.gather(1, asked)], 1)
    return torch.cat([context, keys.gather(1, asked)], 1), labels


TASKS = {"duplication": duplication, "recall": recall}


def shifted(task, labels):
    """Labels of the logits: those of `recall` stand at the key, those of `duplication` are the next token."""
    return F.pad(labels, (0, 1), value=-100)[:, 1:] if task == "duplication" else labels


# --- the model ----------------------------------------------------------------------------------------------------------


def config_of(setting, kind, rounds):
    rows, kind = 2 ** (setting.length.bit_length() // 2), "strict_local" if kind == "none" else kind
    return ReformerConfig(
        attn_layers=[kind] if setting.task == "duplication" else ["strict_local", kind], num_hashes=rounds,
        hidden_size=setting.width, feed_forward_size=2 * setting.width, num_attention_heads=setting.heads,
        attention_head_size=setting.width // setting.heads, vocab_size=setting.symbols + 1, is_decoder=True,
        axial_pos_embds=setting.task != "duplication",
        local_attn_chunk_length=setting.chunk // 2, lsh_attn_chunk_length=setting.chunk, eos_token_id=None,
        axial_pos_shape=[rows, -(-setting.length // rows)], axial_pos_embds_dim=[setting.width // 2] * 2,
        max_position_embeddings=setting.length, hidden_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0,
        lsh_attention_probs_dropout_prob=0.0, layer_norm_eps=1e-6, embedding_init="published",
        initializer_range=setting.std, axial_norm_std=setting.std, reversible="auto",
    )  # fmt: skip


def with_the_parameters_of(model, kind, rounds):
    """A model of another kind of second layer on the very parameters of `model`."""
    other = ReformerForCausalLM(config_of(model.setting, kind, rounds))
    parameters = dict(model.named_parameters())
    for name, _ in list(other.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(owner), leaf, parameters[name])
    return other.train(model.training)


def trained(setting):
    """The model after its steps, and its losses."""
    kind, rows = {"coin": "strict_lsh", "full first": "strict_lsh"}.get(setting.kind, setting.kind), TASKS[setting.task]
    torch.manual_seed(setting.seed)
    model = ReformerForCausalLM(config_of(setting, kind, setting.rounds)).train()
    model.setting = setting
    full = with_the_parameters_of(model, FULL, 1) if kind == "strict_lsh" else None
    generator = torch.Generator().manual_seed(1_000 + setting.seed)  # the same rows for all kinds
    coin = torch.Generator().manual_seed(setting.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, weight_decay=0.1)
    warm = setting.steps // 20 + 1
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (setting.steps - step) / (setting.steps - warm))
    )
    curve = []
    for step in range(setting.steps):
        ids, labels = rows(setting, setting.batch, generator)
        heads = float(torch.rand((), generator=coin)) < 0.5
        as_full = (setting.kind == "coin" and heads) or (setting.kind == "full first" and 2 * step < setting.steps)
        logits = (full if as_full else model)(ids).logits
        loss = F.cross_entropy(logits.flatten(0, 1), shifted(setting.task, labels).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 49:
            curve.append([step + 1, round(loss.item(), 4)])
    return model, curve


@torch.no_grad()
def accuracy(model, setting):
    """Share of the labels that are the likeliest token, over rows that no training saw."""
    model.eval()
    right = asked = 0
    generator = torch.Generator().manual_seed(77)
    for _ in range(EVALUATED // setting.batch):
        ids, labels = TASKS[setting.task](setting, setting.batch, generator)
        labels = shifted(setting.task, labels)
        found = model(ids).logits.argmax(-1)
        right += int(((found == labels) & (labels >= 0)).sum())
        asked += int((labels >= 0).sum())
    return right / asked


def evaluations(model, setting):
    """Accuracy as trained, with other rounds, with full attention in place of LSH, and without the last layer's attention."""
    found = {"as trained": accuracy(model, setting)}
    kind = model.config.attn_layers[-1]
    if kind in ("lsh", "strict_lsh", FULL):
        for rounds in (1, 2, 4, 8):
            hashed = "strict_lsh" if kind == FULL else kind
            found[f"{hashed}-{rounds}"] = accuracy(with_the_parameters_of(model, hashed, rounds), setting)
        found["full"] = accuracy(with_the_parameters_of(model, FULL, 1), setting)
    output = model.reformer.encoder.layers[-1].attention.output.dense.weight
    kept = output.detach().clone()
    with torch.no_grad():
        output.zero_()
        found["attention of the last layer zeroed"] = accuracy(model, setting)
        output.copy_(kept)
    return found


def run(setting, folder):
    path = folder / f"{setting.name}.json"
    if path.exists():
        return
    start = time.perf_counter()
    model, curve = trained(setting)
    seconds = time.perf_counter() - start
    result = {"setting": asdict(setting), "seconds": round(seconds), "curve": curve}
    result["accuracy"] = evaluations(model, setting)
    if result["accuracy"]["as trained"] >= 0.99:
        model.save_pretrained(folder.parent / "evidence-models" / setting.name)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1))
    print(setting.name, f"{seconds:.0f} s", {k: round(v, 4) for k, v in result["accuracy"].items()}, flush=True)


# --- what is run --------------------------------------------------------------------------------------------------------

KINDS = (
    ("strict_lsh", 4), ("full", 1), (FULL, 1), ("none", 1), ("strict_lsh", 1), ("strict_lsh", 2), ("lsh", 4), ("coin", 4),
    ("full first", 4),
)  # fmt: skip


def settings(task, seeds=(0,), **changes):
    first = Setting(task, "none", **changes)
    return [replace(first, kind=kind, rounds=rounds, seed=seed) for seed in seeds for kind, rounds in KINDS]


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("task", choices=[*TASKS, "page"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", nargs="+", help="default: all")
    parser.add_argument("--output", type=Path, default=RESULTS)
    for name, kind in Setting.__annotations__.items():
        if name not in ("task", "kind", "seed", "rounds"):
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    arguments = parser.parse_args(argv)
    if arguments.task == "page":
        evidence_page.write(arguments.output, answer=Path(__file__).with_name("evidence_answer.md").read_text())
        return
    given = {
        name: getattr(arguments, name) for name in Setting.__annotations__ if getattr(arguments, name, None) is not None
    }
    given.pop("task")
    for setting in settings(arguments.task, arguments.seeds, **given):
        if not arguments.kinds or setting.kind in arguments.kinds:
            run(setting, arguments.output)


if __name__ == "__main__":
    main()
