"""Retrieval over long documents: a small two-sided Reformer of bytes, trained by sentence-transformers, beside TF-IDF.

    pip install sentence-transformers
    python -m benchmarks.retrieval                     # minutes on one core; --steps 5 tries it out

The corpus is what every Python brings along: the modules of its standard library, without tests, generated tables and
character sets. A document is the beginning of a module, at least 4,096 bytes and at most `--length`; the query is a passage of
512 bytes out of the rest of it. A quarter of the modules is held out: the figures are of these alone, one query each, every
document among the candidates. Training pairs, both sides 512 bytes, are cut at random out of the other modules.

TF-IDF is of byte 3- to 5-grams, as scikit-learn counts them; it is fitted to the held-out documents, without any training.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sklearn.feature_extraction.text import TfidfVectorizer

from hf_reformer import ReformerByteTokenizer, ReformerConfig, ReformerModel

RESULTS = Path("benchmarks/results/retrieval.json")
SHORTEST, QUERY = 4_096, 512
LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "encodings",
    "pydoc_data",
    "unidata",
    "__pycache__",
}


def modules(seed):
    """(held-out, training) texts of the standard library's modules, a quarter held out by chance."""
    root = Path(os.__file__).parent
    names = [path.relative_to(root) for path in root.rglob("*.py")]
    names = sorted(name for name in names if not LEFT_OUT & set(name.parts))
    texts = [(root / name).read_text("utf-8", errors="ignore") for name in names]
    texts = [text for text in texts if text.isascii() and len(text) >= SHORTEST + QUERY]
    random.Random(seed).shuffle(texts)
    return texts[: len(texts) // 4], texts[len(texts) // 4 :]


def pair(text, length, chance, at_random):
    """(query, document): a passage that does not stand in the document; training cuts both out anywhere."""
    size = min(length, len(text) - QUERY)
    start = chance.randint(0, len(text) - QUERY - size) if at_random else 0
    rest = len(text) - QUERY - size  # where a passage may start, before the document or behind it
    place = chance.randint(0, rest)
    place = place if place + QUERY <= start else max(place, start) + size
    return text[place : place + QUERY], text[start : start + size]


def recall(queries, documents):
    """Of vectors of length 1, row i of one belonging to row i of the other: recall at 1 and at 10, and mean reciprocal rank."""
    scores = np.asarray(queries @ documents.T)
    ranks = (scores > scores.diagonal()[:, None]).sum(1)
    return {
        "recall@1": float((ranks < 1).mean()),
        "recall@10": float((ranks < 10).mean()),
        "mrr": float((1 / (ranks + 1)).mean()),
    }


def encoder(length, width, folder):
    """A SentenceTransformer of a new Reformer, read from a folder. Its states are 2 * hidden_size wide: two streams.

    The coarse axis of its positions is 0 and stays so: a byte knows its place within its stretch of some hundred alone, and what is
    learned on short pieces holds in long documents.
    """
    config = ReformerConfig.for_bytes(
        length, "tiny", is_decoder=False, hidden_size=width, num_attention_heads=1, feed_forward_size=2 * width, num_hashes=1,
        hidden_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = ReformerModel(config)
    model.embeddings.position_embeddings.weights[0].data.zero_()  # the coarse axis
    model.save_pretrained(folder)
    ReformerByteTokenizer(model_max_length=length).save_pretrained(folder)
    modules = [Transformer(folder), Pooling(2 * config.hidden_size, "mean")]
    modules[0].model.embeddings.position_embeddings.weights[0].requires_grad_(False)
    return SentenceTransformer(modules=modules, device="cpu")


def evaluate(model, pairs):
    queries, documents = (
        model.encode(list(texts), batch_size=8, normalize_embeddings=True) for texts in zip(*pairs, strict=True)
    )
    return recall(queries, documents)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=16_384, help="longest document in bytes")
    parser.add_argument("--piece", type=int, default=512, help="bytes of what stands for a document in training")
    parser.add_argument("--width", type=int, default=64, help="hidden_size")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--scale", type=float, default=20, help="of similarities in the loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    held_out, training = modules(args.seed)
    chance = random.Random(args.seed)
    pairs = [pair(text, args.length, chance, at_random=False) for text in held_out]
    rows = [pair(chance.choice(training), args.piece, chance, at_random=True) for _ in range(args.steps * args.batch)]
    counted = TfidfVectorizer(analyzer="char", ngram_range=(3, 5), lowercase=False, sublinear_tf=True)
    documents = counted.fit_transform(document for _, document in pairs)
    queries = counted.transform(query for query, _ in pairs)
    lengths = sorted(len(document) for _, document in pairs)
    result = {
        "command": " ".join(["python -m benchmarks.retrieval", *sys.argv[1:]]),
        "python": sys.version.split()[0], "torch": torch.__version__,
        "held_out": len(pairs), "training_modules": len(training),
        "document_bytes": [lengths[0], lengths[len(lengths) // 2], lengths[-1]],
        "chance": {"recall@1": 1 / len(pairs), "recall@10": 10 / len(pairs)},
        "tf-idf": recall(queries.toarray(), documents.toarray()),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        model = encoder(args.length, args.width, folder)
        result["before"] = evaluate(model, pairs)
        print(json.dumps(result, indent=1), flush=True)
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder, max_steps=args.steps, per_device_train_batch_size=args.batch, learning_rate=args.learning_rate,
            lr_scheduler_type="cosine", warmup_steps=args.steps // 10, logging_steps=10, save_strategy="no", report_to="none",
            use_cpu=True, seed=args.seed,
        )  # fmt: skip
        data = Dataset.from_dict(
            {"anchor": [query for query, _ in rows], "positive": [document for _, document in rows]}
        )
        began = time.perf_counter()
        loss = MultipleNegativesRankingLoss(model, scale=args.scale)
        SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss).train()
        result["training_seconds"] = round(time.perf_counter() - began)
        result["after"] = evaluate(model, pairs)
    print(json.dumps(result, indent=1))
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
