"""Draws docs/pictures/attention-map.png: `python docs/attention_map_picture.py` (a few seconds)."""

from pathlib import Path

import matplotlib
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_reformer

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PICTURE = Path(__file__).parent / "pictures" / "attention-map.png"
TEXT = (Path(__file__).parent / "guides" / "long-documents.md").read_text(encoding="utf-8")[:1200]


def main():
    folder = hf_reformer.pretrained("text-16k")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    maps = [(i, m) for i, m in enumerate(hf_reformer.attention_map(model, ids)) if m.buckets is not None]
    figure, axes = plt.subplots(len(maps), 1, figsize=(9, 5.5), sharex=True, constrained_layout=True)
    for axis, (layer, found) in zip(axes, maps, strict=True):
        heads, rounds, length = found.weights.shape
        rows = found.weights.flatten(0, 1)
        same = (found.buckets == found.buckets[..., -1:]).flatten(0, 1)
        for row in range(heads * rounds):
            axis.eventplot(
                same[row].nonzero()[:, 0].tolist(), lineoffsets=row, linelengths=0.8, linewidths=0.7, color="0.88"
            )
        row, token = (rows > 0.002).nonzero(as_tuple=True)
        axis.scatter(token, row, s=200 * rows[row, token], color="tab:red", zorder=2)
        names = [f"head {h} round {r}" for h in range(heads) for r in range(rounds)]
        axis.set(yticks=range(len(names)), yticklabels=names, title=f"layer {layer}", xlim=(0, length))
        axis.tick_params(labelsize=7)
    axes[-1].set_xlabel("token; grey: in the bucket of the last one; red: what that one looked at, by area")
    figure.savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    main()
