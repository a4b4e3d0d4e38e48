"""A real task on long documents: what is this name? `python -m benchmarks.python_names --kind strict_lsh` trains on files of
Python's standard library to tag each name that its file imports, or defines as a function or a class, at the top level and nowhere
else: import, function or class. Names get numbers by chance, anew for each row, so that none can be known by heart: the tag is seen
where the file binds the name, which may be thousands of tokens away, or guessed from how the name is used.

Files are rows of up to 16,384 tokens of Python (words, signs, ends of lines; longer files are cut), with padding; about a tenth of
them are held out. Four layers without positions: local ones, which see three tokens back and three ahead, and ones of the kind that
is looked at.
"""

import ast
import io
import keyword
import os
import tokenize
import zlib
from pathlib import Path

import torch

from hf_reformer import ReformerConfig, ReformerForTokenClassification

from .distance import Family, by_distance, command, fit

RESULTS = Path("benchmarks/results/python-names")
KINDS = ("import", "function", "class")
LONGEST, LEAST, TRAINED, NUMBERS = 16_384, 256, (512, 1024, 2048, 4096), 2048
DISTANCES = (8, 64, 512, 4096, LONGEST)
PADDING, IGNORED = 0, -100
# what binds such a name stands right before it; what imports one, anywhere before it in its line
BEFORE = {1: "def", 2: "class"}


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
        own, first, ids, tags, distances, imports = {}, {}, [], [], [], False
        for place, (text, name) in enumerate(words):
            if not name:
                ids.append(self.signs.get(text, len(self.signs) + 1))
            else:
                ids.append(2 + len(self.signs) + numbers[own.setdefault(text, len(own)) % NUMBERS])
            known = name and text in kinds
            tags.append(kinds[text] if known and text in first else IGNORED)
            distances.append(place - first[text] if known and text in first else 0)
            imports = text == "import" or (imports and text != "NEWLINE")
            if known and text not in first:
                before = words[max(place - 1, 0)][0]
                if imports if kinds[text] == 0 else before == BEFORE[kinds[text]]:
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
    """Its loss every 50 steps."""
    generator = torch.Generator().manual_seed(1_000 + seed)

    def loss_of(step):
        length = TRAINED[step % len(TRAINED)]
        chosen = torch.randint(len(training), (TRAINED[-1] // length,), generator=generator).tolist()
        inputs, _ = data.batch([data.row(training[i], generator, length) for i in chosen])
        asked = bool((inputs["labels"] >= 0).any())
        return family.member(rounds, length)(**inputs).loss if asked else None

    return fit(family, steps, rate, loss_of, family.kind, rounds, seed)


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
    tags = torch.cat(tags)
    found = by_distance(torch.cat(hits), torch.cat(far), DISTANCES)
    return found | {"tags": len(tags), "commonest": round(float(tags.bincount().max() / len(tags)), 4)}


def run(kind, rounds, steps, rate, seed):
    """How many files there are, curve and accuracies."""
    training, held_out = files()
    data = Rows(training)
    torch.manual_seed(seed)
    family = Family(kind, builder(data.vocabulary))
    curve = train(family, data, training, rounds, steps, rate, seed)
    ways = sorted({rounds, 8, 16}) if kind == "strict_lsh" else [rounds]
    found = {f"{n} rounds": accuracy(family.member(n, LONGEST), data, held_out) for n in ways}
    print(found, flush=True)
    return {"files": [len(training), len(held_out)], "curve": curve, "accuracy": found}


def main(argv=None):
    command("python_names", __doc__, ["strict_lsh", "full", "full_shared_qk", "none"], 400, RESULTS, run, argv)


if __name__ == "__main__":
    main()
