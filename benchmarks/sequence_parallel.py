"""`python -m benchmarks.sequence_parallel [--tokens 4096] [--processes 1 2 4]`: memory and exchange of one training step whose
sequence is shared by gloo processes on this machine, beside theory, and a calculation for many more.

Memory: the sum of all tensors that live at the peak of forward and backward on the fullest process, without parameters and their
gradients (`benchmarks.memory`); counted for two lengths, so that what does not grow with the tokens is told apart. Exchange:
bytes that a process hands to others in all-to-alls, counted where they are sent.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

import hf_reformer
from hf_reformer.parallel import sequence_parallel

from .memory import LiveTensors

KINDS = ("strict_local", "strict_lsh")
MiB, GiB = 2**20, 2**30
CALCULATED = (64, 64 * 2**20)  # processes, tokens


@dataclass(frozen=True)
class Model:
    """Width, heads, head size and layers; float32, one hash round, reversible."""

    width: int = 256
    heads: int = 8
    head_size: int = 32
    layers: int = 4
    kinds: tuple = KINDS

    def build(self, length):
        torch.manual_seed(0)
        config = hf_reformer.ReformerConfig(
            attn_layers=[self.kinds[i % len(self.kinds)] for i in range(self.layers)], hidden_size=self.width,
            feed_forward_size=2 * self.width,
            num_attention_heads=self.heads, attention_head_size=self.head_size, vocab_size=320, num_hashes=1, num_buckets=16,
            max_position_embeddings=length, axial_pos_embds=False, is_decoder=True, hidden_dropout_prob=0.0,
            local_attention_probs_dropout_prob=0.0, lsh_attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return hf_reformer.ReformerForCausalLM(config).train()

    def theory(self, kind, tokens, processes, batch=1, itemsize=4):
        """Bytes that a process sends for one layer in one training step, `tokens` being all of a sequence.

        (w + 1) H D numbers of each token, where w vectors go in (queries that are keys and values: 2; else 3) and one comes out;
        of them (N - 1) / N leave the process; three times: in forward, in backward again, and for the gradients.
        """
        vectors = (2 if kind == "strict_lsh" else 3) + 1
        own = batch * tokens // processes
        return 3 * vectors * own * self.heads * self.head_size * itemsize * (processes - 1) // processes


class Sent:
    """Counts the bytes that `all_to_all_single` hands to other processes."""

    def __enter__(self):
        self.bytes, self.calls, self.original = 0, 0, dist.all_to_all_single
        dist.all_to_all_single = self
        return self

    def __exit__(self, *failure):
        dist.all_to_all_single = self.original

    def __call__(self, output, given, received, sent, group=None):
        others = sum(sent) - sent[dist.get_rank(group)]
        self.bytes, self.calls = self.bytes + others * given.element_size(), self.calls + 1
        return self.original(output, given, received, sent, group=group)


def step(model, tokens, rank, processes, group=None):
    """The peak of living tensors and the bytes sent of one training step on this process."""
    built = model.build(tokens)
    ids = torch.randint(320, (1, tokens), generator=torch.Generator().manual_seed(1))
    labels = torch.nn.functional.pad(ids, (0, 1), value=-100)[:, 1:]
    ids, labels = (x.tensor_split(processes, 1)[rank].contiguous() for x in (ids, labels))
    with sequence_parallel(built, group):  # what is made once
        built(input_ids=ids[:, :64], shift_labels=labels[:, :64]).loss.backward()
    built.zero_grad(set_to_none=True)
    with LiveTensors(built.parameters()) as live, Sent() as sent:
        with sequence_parallel(built, group):
            loss = built(input_ids=ids, shift_labels=labels, num_items_in_batch=tokens).loss
        loss.backward()
    gradients = {p.grad.untyped_storage()._cdata for p in built.parameters()}
    peak = sum(s.size for s in live.peak if s.reference.cdata not in gradients)
    return {"peak": peak, "sent": sent.bytes, "exchanges": sent.calls}


def process(rank, processes, runs, folder):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    where = Path(folder, "meeting").as_uri()
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=processes)
    found = [step(model, length, rank, processes) for model, length in runs]
    gathered = [None] * processes
    dist.all_gather_object(gathered, found)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(gathered))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # an ordinary exit aborts now and then: PyTorch ends threads of gloo that still run


def measure(runs, processes):
    """Of each (model, length), the largest figures of any process."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (processes, runs, folder), nprocs=processes)
        gathered = json.loads(Path(folder, "found.json").read_text())
    return [{name: max(p[i][name] for p in gathered) for name in gathered[0][i]} for i in range(len(runs))]


def report(model, tokens, counts):
    """The table, and the growth with a token of a shard on the last number of processes."""
    first, only = None, [(replace(model, kinds=(kind,), layers=2), tokens) for kind in KINDS]
    print("| processes | tokens of each | peak, MiB | of one process | bytes per token of a shard |", end="")
    print(
        " sent per local layer, MiB: counted / theory | per LSH layer: counted / theory |\n|---|---|---|---|---|---|---|"
    )
    for processes in counts:
        half, whole, *sent = measure([(model, tokens // 2), (model, tokens), *only], processes)
        first = first or whole["peak"]
        growth = (whole["peak"] - half["peak"]) / (tokens // 2 / processes)
        theory = [model.theory(kind, tokens, processes) for kind in KINDS]
        pairs = [f"{s['sent'] / 2 / MiB:.2f} / {t / MiB:.2f}" for s, t in zip(sent, theory, strict=True)]
        print(
            f"| {processes} | {tokens // processes:,} | {whole['peak'] / MiB:.1f} | {whole['peak'] / first:.3f} | {growth:,.0f} | "
            f"{pairs[0]} | {pairs[1]} |",
            flush=True,
        )
    return growth


def calculate(model, growth):
    """What the figures say of many more processes and tokens: a calculation, nothing of it has run."""
    processes, tokens = CALCULATED
    local, lsh = (model.theory(kind, tokens, processes) / GiB for kind in KINDS)
    memory = growth * tokens / processes / GiB
    print(
        f"\nCalculation, not a run: {tokens:,} tokens on {processes} processes, {tokens // processes:,} each, float32, "
        f"{model.heads} heads of {model.head_size}, width {model.width}: {memory:.1f} GiB of activations on each, whatever the "
        f"number of layers; {local:.1f} GiB sent for each local layer and step, {lsh:.1f} GiB for each LSH layer, half of it in "
        "bfloat16."
    )


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequence_parallel", description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    for name, default in (("width", 256), ("heads", 8), ("head-size", 32), ("layers", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    model = Model(args.width, args.heads, args.head_size, args.layers)
    growth = report(model, args.tokens, args.processes)
    if model.heads % CALCULATED[0] == 0:
        calculate(model, growth)


if __name__ == "__main__":
    main()
