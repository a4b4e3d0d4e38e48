"""A real task on long documents: what is this name? `python -m benchmarks.python_names --kind strict_lsh` trains on files of
Python's standard library to tag each name that its file imports, or defines as a function or a class, at the top level and nowhere
else: import, function or class. Names get numbers by chance, anew for each row, so that none can be known by heart: the tag is seen
where the file binds the name, which may be thousands of tokens away, or guessed from how the name is used.

Files are rows of up to 16,384 tokens of Python (words, signs, ends of lines; longer files are cut), with padding; about a tenth of
them are held out. Four layers without positions: local ones, which see three tokens back and three ahead, and ones of the kind that
is looked at.
"""

import argparse
import ast
import io
import json
import keyword
import os
import time
import tokenize
import zlib
from pathlib import Path

import torch

from hf_reformer import ReformerConfig, ReformerForTokenClassification
from hf_reformer.files import replacing_file

from .distance import Family

RESULTS = Path("benchmarks/results/python-names")
KINDS = ("import", "function", "class")
LONGEST, LEAST, TRAINED, NUMBERS = 16_384, 256, (512, 1024, 2048, 4096), 2048
DISTANCES = (8, 64, 512, 4096, LONGEST)
PADDING, IGNORED = 0, -100


def bindings(tree):
    """{name: kind} of names that the top level binds once, and that nothing else in the file binds."""
    found, bound = {}, {}
    for node in ast.walk(tree):
        names = [node.id] if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) else []
        names += [node.arg] if isinstance(node, (ast.arg, ast.keyword)) and node.arg else []
        names += [node.attr] if isinstance(node, ast.Attribute) else []
        names += [node.name] if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else []
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names += [(alias.asname or alias.name).split(".")[0] for alias in node.names]
        for name in names:
            bound[name] = bound.get(name, 0) + 1
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0]: 0 for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[node.name] = 2 if isinstance(node, ast.ClassDef) else 1
    return {name: kind for name, kind in found.items() if bound[name] == 1}


def read(path):
    """Words of a file in order as (text, whether it is a name), and its `bindings`; None where it is no Python."""
    try:
        text = path.read_text("utf-8")
        kinds, words = bindings(ast.parse(text)), []
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER):
                continue
            name = token.type == tokenize.NAME and not keyword.iskeyword(token.string)
            sign = token.type == tokenize.OP or keyword.iskeyword(token.string)
            words.append((token.string if name or sign else tokenize.tok_name[token.type], name))
    except (SyntaxError, ValueError, UnicodeDecodeError, tokenize.TokenError):
        return None
    return words[:LONGEST], kinds


def files():
    """(training, held-out): files of the standard library of LEAST words or more, a tenth held out by the sum of their names."""
    folder = Path(os.__file__).parent
    paths = [p for p in sorted(folder.rglob("*.py")) if "site-packages" not in p.parts and "test" not in p.parts]
    parts = ([], [])
    for path in paths:
        found = read(path)
        if found and len(found[0]) >= LEAST and found[1]:
            parts[zlib.crc32(str(path.relative_to(folder)).encode()) % 10 == 0].append(found)
    return parts


class Rows:
    """Files as ids, tags and distances to the place where a name is bound."""

    def __init__(self, training):
        signs = sorted({text for words, _ in training for text, name in words if not name})
        self.signs = {text: i + 1 for i, text in enumerate(signs)}
        self.vocabulary = 2 + len(signs) + NUMBERS

    def row(self, file, generator, longest=LONGEST):
        words, kinds = file
        begin = int(torch.randint(max(1, len(words) - longest + 1), (1,), generator=generator))
        words = words[begin : begin + longest]
        numbers = torch.randperm(NUMBERS, generator=generator).tolist()
        own, first, ids, tags, distances = {}, {}, [], [], []
        for place, (text, name) in enumerate(words):
            if not name:
                ids.append(self.signs.get(text, len(self.signs) + 1))
            else:
                ids.append(2 + len(self.signs) + numbers[own.setdefault(text, len(own)) % NUMBERS])
            known = name and text in kinds
            tags.append(kinds[text] if known and text in first else IGNORED)
            distances.append(place - first[text] if known and text in first else 0)
            if known and text not in first and words[place - 1][0] in ("import", "def", "class", ",", "(", "as"):
                first[text] = place
        return ids, tags, distances

    def batch(self, rows):
        longest = max(len(ids) for ids, _, _ in rows)
        fill = lambda i, value: torch.tensor([row[i] + [value] * (longest - len(row[i])) for row in rows])
        ids = fill(0, PADDING)
        return {"input_ids": ids, "attention_mask": (ids != PADDING).long(), "labels": fill(1, IGNORED)}, fill(2, 0)


def builder(vocabulary):
    def build(kind, rounds, length):
        other = "strict_local" if kind == "none" else kind
        config = ReformerConfig(
            attn_layers=["strict_local", other] * 2, num_hashes=rounds, hidden_size=128, feed_forward_size=256,
            num_attention_heads=2, attention_head_size=64, vocab_size=vocabulary, pad_token_id=PADDING, is_decoder=False,
            local_attn_chunk_length=1, local_num_chunks_before=3, local_num_chunks_after=3, lsh_attn_chunk_length=32,
            lsh_num_chunks_after=1, max_position_embeddings=length, use_absolute_position_embeddings=False,
            hidden_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0, lsh_attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-6, embedding_init="published", initializer_range=0.1, reversible="auto", num_labels=len(KINDS),
        )  # fmt: skip
        return ReformerForTokenClassification(config)

    return build


def train(family, data, training, rounds, steps, rate, seed):
    generator, curve = torch.Generator().manual_seed(1_000 + seed), []
    optimizer = torch.optim.AdamW(family.parameters(), lr=rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 50, (steps - s) / steps))
    for step in range(steps):
        length = TRAINED[step % len(TRAINED)]
        chosen = torch.randint(len(training), (TRAINED[-1] // length,), generator=generator).tolist()
        inputs, _ = data.batch([data.row(training[i], generator, length) for i in chosen])
        if not (inputs["labels"] >= 0).any():
            continue
        loss = family.member(rounds, length)(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(family.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 49:
            curve.append([step + 1, round(loss.item(), 4)])
            print(family.kind, rounds, seed, *curve[-1], flush=True)
    return curve


@torch.no_grad()
def accuracy(model, data, held_out):
    """Shares of right tags, of all and by distance, how many tags there are, and the share of the commonest kind."""
    model.eval()
    generator, hits, far, tags = torch.Generator().manual_seed(77), [], [], []
    for file in held_out:
        inputs, distances = data.batch([data.row(file, generator)])
        asked = inputs["labels"] >= 0
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        hits.append((logits.argmax(-1) == inputs["labels"])[asked])
        far.append(distances[asked])
        tags.append(inputs["labels"][asked])
    hits, far, tags = torch.cat(hits).double(), torch.cat(far), torch.cat(tags)
    found, least = {"all": round(float(hits.mean()), 4)}, 0
    for largest in DISTANCES:
        within = (far > least) & (far <= largest)
        found |= {str(largest): round(float(hits[within].mean()), 4)} if within.any() else {}
        least = largest
    return found | {"tags": len(tags), "commonest": round(float(tags.bincount().max() / len(tags)), 4)}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.python_names", description=__doc__)
    parser.add_argument("--kind", default="strict_lsh", choices=["strict_lsh", "full", "full_shared_qk", "none"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    names = ("kind", "rounds", "steps", "learning_rate", "seed")
    setting = {name: getattr(arguments, name) for name in names}
    training, held_out = files()
    data = Rows(training)
    torch.manual_seed(arguments.seed)
    family, start = Family(arguments.kind, builder(data.vocabulary)), time.process_time()
    curve = train(family, data, training, arguments.rounds, arguments.steps, arguments.learning_rate, arguments.seed)
    ways = [arguments.rounds] if arguments.kind != "strict_lsh" else sorted({arguments.rounds, 8, 16})
    found = {f"{n} rounds": accuracy(family.member(n, LONGEST), data, held_out) for n in ways}
    result = {"setting": setting, "files": [len(training), len(held_out)], "curve": curve, "accuracy": found}
    result["processor_seconds"] = round(time.process_time() - start)
    print(result["accuracy"], flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{arguments.kind}-{arguments.rounds}-{arguments.steps}-{arguments.seed}.json"
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
