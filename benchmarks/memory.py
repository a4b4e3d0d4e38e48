"""`python -m benchmarks.memory [tokens] [--layers N] [--pieces MIB]`: the tensors that live when a training step needs most
memory, largest first, by the place that made them; the model of the case `million`, 1 hash round. Tensors alone are counted,
not what the allocator keeps; parameters, their gradients and the optimiser's state are left out.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import hf_reformer

from .cases import CASES
from .models import build

PACKAGE = Path(hf_reformer.__file__).parent


@dataclass
class Storage:
    reference: StorageWeakRef
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    place: str


def place():
    """The innermost function of the package that is running."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return f"{path.stem}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "autograd"


class LiveTensors(TorchDispatchMode):
    """Follows every storage that an operation makes; `peak` holds those alive when their sum was greatest."""

    def __init__(self, ignored):
        super().__init__()
        self.ignored = {x.untyped_storage()._cdata for x in ignored}
        self.live, self.peak, self.highest = {}, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        new = [self._add(x) for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
        if any(new):
            self.live = {key: s for key, s in self.live.items() if not s.reference.expired()}
            total = sum(s.size for s in self.live.values())
            if total > self.highest:
                self.highest, self.peak = total, list(self.live.values())
        return out

    def _add(self, x):
        storage = x.untyped_storage()
        reference = StorageWeakRef(storage)
        known = self.live.get(reference.cdata)
        if storage._cdata in self.ignored or (known is not None and not known.reference.expired()):
            return False
        self.live[reference.cdata] = Storage(reference, storage.nbytes(), tuple(x.shape), x.dtype, place())
        return True


def peak_of_a_step(run):
    """The storages alive at the peak of forward and backward, without parameters and their gradients."""
    model = build(run).train()
    input_ids = torch.randint(320, (1, run.length))
    with LiveTensors(model.parameters()) as tensors:
        model(input_ids, labels=input_ids).loss.backward()
    gradients = {p.grad.untyped_storage()._cdata for p in model.parameters()}
    return [s for s in tensors.peak if s.reference.cdata not in gradients]


def table(storages):
    """Markdown; storages of one place and shape stand in one row."""
    rows, total = {}, sum(s.size for s in storages)
    for s in storages:
        row = rows.setdefault((s.place, s.shape, s.dtype), [0, 0])
        row[0] += 1
        row[1] += s.size
    lines = ["| made in | shape | type | tensors | MiB |", "|---|---|---|---|---|"]
    for (where, shape, dtype), (count, size) in sorted(rows.items(), key=lambda row: -row[1][1]):
        if size >= total / 500:
            lines.append(f"| `{where}` | {shape} | {str(dtype)[6:]} | {count} | {size / 2**20:,.0f} |")
    return "\n".join([*lines, f"| all | | | {len(storages)} | {total / 2**20:,.0f} |"])


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("tokens", nargs="?", type=int, default=2**18)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--pieces", type=float, help="MiB of a piece, for `hf_reformer.set_piece_memory`")
    args = parser.parse_args()
    hf_reformer.set_piece_memory(args.pieces)
    run = next(case for case in CASES if case.name == "million").runs[-1]
    print(table(peak_of_a_step(replace(run, length=args.tokens, layers=args.layers))))


if __name__ == "__main__":
    main()
