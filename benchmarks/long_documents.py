"""Needles in long documents, for a tag of each token, a class of the whole, and an answer in it: `python -m
benchmarks.long_documents --kind strict_lsh` trains on rows of 64 to 1,024 tokens and tries the model on rows of up to 16,384, with
padding behind them.

A document is filler; somewhere in it are eight facts, a name and behind it one of four values. Tags: each name stands once more,
where its value is the tag. Class: the last two tokens are a mark and a name, whose value is the class. Answer: the first two are a
mark and a name, whose value is the answer. So all need what may stand anywhere in the document. Two layers and no positions as in
`benchmarks.distance`, but both ways; tags are learned first, and the two other heads go on from that model.
"""

from pathlib import Path

import torch

from hf_reformer import (
    ReformerConfig,
    ReformerForQuestionAnswering,
    ReformerForSequenceClassification,
    ReformerForTokenClassification,
)

from .distance import CHUNK, STD, WIDTH, Family, by_distance, command, fit

RESULTS = Path("benchmarks/results/long-documents")
LENGTHS, EVALUATED, DISTANCES = (64, 128, 256, 512, 1024), (256, 1024, 4096, 16_384), (16, 256, 1024, 4096, 16_384)
TOKENS, FACTS, NAMES, VALUES, FILLERS = 4096, 8, 32, 4, 64
PADDING, FIRST_VALUE, MARK, FIRST_FILLER = 0, 1 + NAMES, 1 + NAMES + VALUES, 2 + NAMES + VALUES
HEADS = {
    "tags": ReformerForTokenClassification,
    "class": ReformerForSequenceClassification,
    "answer": ReformerForQuestionAnswering,
}


def document(length, generator, dense=False):
    """(length) ids, the places of FACTS names that have a value behind them, their values, and the places of these names alone."""
    draw = lambda high, n: torch.randint(high, (n,), generator=generator)
    order = lambda n: torch.randperm(n, generator=generator)
    names, values = order(NAMES)[:FACTS] + 1, draw(VALUES, FACTS)
    ids = draw(FILLERS, length) + FIRST_FILLER
    pairs = order(length // 2)  # of neighbours; a fact takes one, and so does a name alone, behind a filler
    facts, alone = 2 * pairs[:FACTS], 2 * pairs[FACTS:][: len(pairs) if dense else FACTS] + 1
    ids[facts], ids[facts + 1] = names, values + FIRST_VALUE
    which = torch.cat([torch.arange(FACTS), draw(FACTS, len(alone) - FACTS)]) if dense else torch.arange(FACTS)
    ids[alone] = names[which]
    return ids, facts, values, alone, which


def row(task, length, generator, dense=False):
    """The inputs of one example as lists, its label or labels, and how far each lies from its fact."""
    ids, facts, values, alone, which = document(length, generator, dense)
    if task == "tags":
        labels = torch.full_like(ids, -100)
        labels[alone] = values[which]
        distance = torch.zeros_like(ids)
        distance[alone] = (alone - facts[which]).abs()
        return {"input_ids": ids, "labels": labels}, distance
    asked = int(torch.randint(FACTS, (1,), generator=generator))
    place = int(facts[asked])
    question = torch.tensor([MARK, int(ids[place])])
    if task == "class":
        return {"input_ids": torch.cat([ids, question]), "labels": values[asked]}, length + 1 - place
    value = torch.tensor(place + 3)
    return {"input_ids": torch.cat([question, ids]), "start_positions": value, "end_positions": value}, place + 1


def batch(task, length, generator, dense=False):
    """Inputs (N, up to length) with padding behind rows of half the length or more, and distances."""
    room = length - 2 * (task != "tags")
    drawn = [
        int(torch.randint(max(room // 2, 4 * FACTS), room + 1, (1,), generator=generator))
        for _ in range(max(1, TOKENS // length))
    ]
    rows, distances = zip(*(row(task, n, generator, dense) for n in drawn), strict=True)
    pad = lambda tensors, value: torch.stack(
        [torch.nn.functional.pad(x, (0, length - len(x)), value=value) for x in tensors]
    )
    ids = pad([r["input_ids"] for r in rows], PADDING)
    inputs = {"input_ids": ids, "attention_mask": (ids != PADDING).long()}
    for name in rows[0].keys() - {"input_ids"}:
        inputs[name] = (pad if rows[0][name].dim() else lambda x, _: torch.stack(x))([r[name] for r in rows], -100)
    return inputs, pad(distances, 0) if task == "tags" else torch.tensor(distances)


def builder(task):
    """What makes a model of a kind of second layer, with so many rounds, for inputs of a length."""

    def build(kind, rounds, length):
        reach = CHUNK if kind == "none" else 1
        config = ReformerConfig(
            attn_layers=["strict_local", "strict_local" if kind == "none" else kind], num_hashes=rounds, hidden_size=WIDTH,
            feed_forward_size=2 * WIDTH, num_attention_heads=2, attention_head_size=WIDTH // 2, is_decoder=False,
            vocab_size=FIRST_FILLER + FILLERS, pad_token_id=PADDING, local_attn_chunk_length=1, local_num_chunks_before=reach,
            local_num_chunks_after=reach if kind == "none" else 0, lsh_attn_chunk_length=CHUNK, lsh_num_chunks_after=1,
            max_position_embeddings=length, use_absolute_position_embeddings=False, hidden_dropout_prob=0.0,
            local_attention_probs_dropout_prob=0.0, lsh_attention_probs_dropout_prob=0.0, layer_norm_eps=1e-6,
            embedding_init="published", initializer_range=STD, reversible="auto", pooling="last",
            num_labels=2 if task == "answer" else VALUES,
        )  # fmt: skip
        return HEADS[task](config)

    return build


def train(task, family, rounds, steps, rate, seed):
    """Its loss every 50 steps. Tags begin with rows full of names."""
    generator = torch.Generator().manual_seed(1_000 + seed)

    def loss_of(step):
        dense = task == "tags" and 3 * step < steps
        length = LENGTHS[0] if dense else LENGTHS[step % len(LENGTHS)]
        return family.member(rounds, length)(**batch(task, length, generator, dense)[0]).loss

    return fit(family, steps, rate, loss_of, task, family.kind, rounds, seed)


@torch.no_grad()
def accuracy(task, model, length, batches=16):
    """Shares of right tags, classes or answers, `by_distance` in tokens."""
    model.eval()
    generator, right, far = torch.Generator().manual_seed(77), [], []
    for _ in range(batches):
        inputs, distances = batch(task, length, generator)
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        if task == "answer":
            masked = lambda logits, real: logits.masked_fill(real == 0, -1e9).argmax(-1)
            given = [masked(x, inputs["attention_mask"]) for x in (output.start_logits, output.end_logits)]
            hits = (given[0] == inputs["start_positions"]) & (given[1] == inputs["end_positions"])
        else:
            hits = output.logits.argmax(-1) == inputs["labels"]
        there = distances > 0
        right, far = [*right, hits[there]], [*far, distances[there]]
    return by_distance(torch.cat(right), torch.cat(far), DISTANCES)


def take_body(family, other):
    """The parameters of `other` below its head."""
    family.first.reformer.load_state_dict(other.first.reformer.state_dict())


def run(kind, rounds, steps, rate, seed):
    """{task: curve and accuracies}."""
    torch.manual_seed(seed)
    found, tags = {}, None
    ways = [rounds] if kind in ("none", "full", "full_shared_qk") else sorted({rounds, 8, 16})
    for task in HEADS:
        family = Family(kind, builder(task))
        if tags is not None:
            take_body(family, tags)
        tags = family if tags is None else tags
        curve = train(task, family, rounds, steps if task == "tags" else steps // 2, rate, seed)
        measured = {
            f"{r} rounds": {length: accuracy(task, family.member(r, length), length) for length in EVALUATED}
            for r in ways
        }
        found[task] = {"curve": curve, "accuracy": measured}
        print(task, kind, {r: {n: x["all"] for n, x in by.items()} for r, by in measured.items()}, flush=True)
    return found


def main(argv=None):
    command("long_documents", __doc__, ["strict_lsh", "lsh", "full", "full_shared_qk", "none"], 400, RESULTS, run, argv)


if __name__ == "__main__":
    main()
