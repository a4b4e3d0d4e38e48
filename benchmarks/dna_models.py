"""What held-out bases cost: Markov models, `xz -9`, counted two-sided contexts, and trained models, all in bits per base."""

import json
import lzma
from pathlib import Path

import numpy as np
import torch

from hf_reformer import ReformerByteTokenizer, ReformerForCausalLM, ReformerForMaskedLM
from hf_reformer.training import examples
from hf_reformer.training.evaluate import evaluate_model
from hf_reformer.training.vocabulary import load_tokenizer

ORDERS, FLANKS, SMOOTHING = range(1, 13), range(11), (1, 1 / 4, 1 / 16)
BLENDED, WEIGHT = (4, 16), 1 / 16  # orders; chosen on the last 20,000 bases of the training text of each record
MASK_SHARE, RUN = 0.15, 24


def read(folder: Path) -> dict[str, bytes]:
    """Name -> letters of the files that `prepare` has written."""
    found = {path.stem: path.read_bytes() for path in sorted(Path(folder).glob("*.txt"))}
    if not found:
        raise ValueError(f"--data has no .txt files in {str(folder)!r}; allowed is a folder that prepare has written")
    return found


class Counts:
    """How often each letter stands in which context in the training documents; contexts of `left` letters before, `right` after.

    A context is a number whose digits are its letters. Only those that occur are kept.
    """

    def __init__(self, documents: list[bytes], letters: bytes, left: int, right: int = 0):
        self.letters, self.left, self.right = letters, left, right
        codes = [self.codes(self.symbols(document)) for document in documents]
        pairs = np.concatenate([context * len(letters) + middle for context, middle in codes])
        self.pairs, self.times = np.unique(pairs, return_counts=True)

    def symbols(self, document: bytes) -> np.ndarray:
        """(bases,) int64: the place of each among the letters; -1: none of them."""
        places = np.full(256, -1)
        places[list(self.letters)] = range(len(self.letters))
        return places[np.frombuffer(document, np.uint8)]

    def codes(self, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(context, letter in its middle) of each place that has `left` letters before it and `right` after it."""
        count = max(0, len(symbols) - self.left - self.right)
        context = np.zeros(count, np.int64)
        for i in [*range(self.left), *range(self.left + 1, self.left + 1 + self.right)]:
            context = context * len(self.letters) + symbols[i : i + count]
        return context, symbols[self.left : self.left + count]

    def of(self, context: np.ndarray) -> np.ndarray:
        """(contexts, letters): how often each letter was met in each context."""
        wanted = context[:, None] * len(self.letters) + np.arange(len(self.letters))
        places = np.searchsorted(self.pairs, wanted).clip(max=len(self.pairs) - 1)
        return np.where(self.pairs[places] == wanted, self.times[places], 0)


def markov_bits(counts: Counts, document: bytes, smoothing: float) -> float:
    """Bits per base of order 1 or more, all but the first; a base with too few before it costs what any letter would."""
    context, middle = counts.codes(counts.symbols(document))
    found = counts.of(context) + smoothing
    chances = np.take_along_axis(found, middle[:, None], 1)[:, 0] / found.sum(1)
    first = (counts.left - 1) * np.log2(len(counts.letters))
    return float((first - np.log2(chances).sum()) / (len(document) - 1))


def markov(training: list[bytes], held_out: dict[str, bytes], letters: bytes) -> dict:
    """Order -> bits per base of each held-out document and of all, with the smoothing that is best for all of them."""
    found = {}
    for order in ORDERS:
        counts = Counts(training, letters, order)
        trials = []
        for smoothing in SMOOTHING:
            bits = {name: markov_bits(counts, document, smoothing) for name, document in held_out.items()}
            trials.append({"all": mean(bits, held_out), **bits, "smoothing": smoothing})
        found[order] = min(trials, key=lambda trial: trial["all"])
        own = {str(i): markov_bits(counts, document, found[order]["smoothing"]) for i, document in enumerate(training)}
        found[order]["training"] = mean(own, dict(zip(own, training, strict=True)))
    return found


def blend_bits(tables: list[Counts], document: bytes, weight: float) -> float:
    """Bits per base, all but the first, where each order counts as `weight` more bases that came as the order below it says.

    Args:
        tables: of rising orders; the base at place i is told by the orders up to i.
    """
    chances = np.full((len(document), len(tables[0].letters)), 1 / len(tables[0].letters))
    for table in tables:
        context, _ = table.codes(table.symbols(document))
        found = table.of(context)
        chances[table.left :] = (found + weight * chances[table.left :]) / (found.sum(1, keepdims=True) + weight)
    return float(-np.log2(np.take_along_axis(chances, tables[0].symbols(document)[:, None], 1)[1:]).mean())


def blend(training: list[bytes], held_out: dict[str, bytes], letters: bytes) -> dict:
    """Bits per base of the orders `BLENDED` together: what is usual, and what stood after the same bases before."""
    tables = [Counts(training, letters, order) for order in BLENDED]
    bits = {name: blend_bits(tables, document, WEIGHT) for name, document in held_out.items()}
    return {"all": mean(bits, held_out), **bits, "orders": BLENDED, "weight": WEIGHT}


def mean(bits: dict[str, float], documents: dict[str, bytes]) -> float:
    """Bits per base of several documents, by their length; the first base of each is not predicted."""
    sizes = {name: len(document) - 1 for name, document in documents.items()}
    return sum(bits[name] * size for name, size in sizes.items()) / sum(sizes.values())


def xz_bits(training: bytes, document: bytes) -> float:
    """Bits per base that `xz -9` needs more for training text and document than for the training text."""
    sizes = [len(lzma.compress(text, preset=9)) for text in (training, training + document)]
    return 8 * (sizes[1] - sizes[0]) / len(document)


def known_runs(training: list[bytes], document: bytes, length: int = RUN) -> np.ndarray:
    """(places,) whether the run of `length` bases that begins at each place of the document stands in the training text too."""
    runs = {text[i : i + length] for text in training for i in range(len(text) - length + 1)}
    return np.array([document[i : i + length] in runs for i in range(len(document) - length + 1)])


@torch.no_grad()
def costs_after_runs(model: Path, known: dict[str, np.ndarray], held_out: dict[str, bytes]) -> dict:
    """Bits per base of a causal model, after runs that stand in the training text and after others."""
    network, tokenizer, found = ReformerForCausalLM.from_pretrained(model).eval(), ReformerByteTokenizer(), {}
    for name, document in held_out.items():
        ids = torch.tensor([tokenizer.encode_bytes(document)])
        logits = network(input_ids=ids).logits[0, RUN - 1 : -1]
        bits = torch.nn.functional.cross_entropy(logits.float(), ids[0, RUN:], reduction="none").numpy() / np.log(2)
        places = known[name][:-1]
        groups = {"known": bits[places], "new": bits[~places]}
        found[name] = {group: float(values.mean()) for group, values in groups.items() if len(values)}
    return found


def causal(model: Path, folder: Path) -> dict:
    """Bits per base of a causal model, on each held-out document and on the text that it was trained on."""
    held_out = read(folder / "held-out")
    files = {name: folder / "held-out" / f"{name}.txt" for name in held_out}
    bits = {name: evaluate_model(str(model), files=[file], quiet=True)["bits_per_byte"] for name, file in files.items()}
    own = evaluate_model(str(model), files=[folder / "training"], quiet=True)["bits_per_byte"]
    return {"all": mean(bits, held_out), **bits, "training": own}


def masked_window(document: bytes, tokenizer, seed: int = 0) -> dict:
    """BERT's task on a document as one window: `input_ids`, and `labels`, which are IGNORED but where a base is to be told."""
    ids = np.array(tokenizer.encode_bytes(document))
    others = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    random = examples.generator(seed, examples.EVALUATION, 0)
    return examples.masked_example(ids, random, MASK_SHARE, tokenizer.mask_token_id, others)


def flank_chances(counts: list[Counts], visible: np.ndarray, smoothing: float) -> np.ndarray:
    """(places, letters): chances of each base by the longest two-sided context that is visible and was met in training.

    Args:
        counts: of contexts of 0, 1, 2, ... letters to each side.
        visible: (places,) the letters as places among them; -1: masked.
    """
    chances = np.zeros((len(visible), len(counts[0].letters)))
    for table in counts:
        context, _ = table.codes(visible)
        seen = table.codes((visible < 0).astype(np.int64))[0] == 0  # no digit of the context is hidden
        found = np.where(seen[:, None], table.of(context), 0)
        places = np.flatnonzero(found.sum(1)) + table.left
        found = found[places - table.left] + smoothing
        chances[places] = found / found.sum(1, keepdims=True)
    return chances


def score(chances: np.ndarray, truth: np.ndarray) -> dict:
    """Bits per masked base and share of those that are told right."""
    right = np.take_along_axis(chances, truth[:, None], 1)[:, 0]
    return {"bits": float(-np.log2(right).mean()), "accuracy": float((chances.argmax(1) == truth).mean())}


@torch.no_grad()
def masked(model: Path, training: list[bytes], held_out: dict[str, bytes], letters: bytes) -> dict:
    """Bits and accuracy of masked bases: of the model, and of counted contexts of 0, 1, 2, ... letters to each side."""
    tokenizer = load_tokenizer(str(model), 2**30)
    network = ReformerForMaskedLM.from_pretrained(model).eval()
    counts = [Counts(training, letters, flank, flank) for flank in FLANKS]
    ids = torch.tensor([tokenizer.encode_bytes(letters)[i] for i in range(len(letters))])
    rows = {"model": []} | {f"{flank} to each side": [] for flank in FLANKS}
    truths = []
    for document in held_out.values():
        window = masked_window(document, tokenizer)
        hidden = (window["input_ids"] == tokenizer.mask_token_id).numpy()
        truths.append(counts[0].symbols(document)[hidden])
        logits = network(input_ids=window["input_ids"][None]).logits[0, torch.from_numpy(hidden)]
        rows["model"].append(logits.float().softmax(-1)[:, ids].numpy())
        visible = counts[0].symbols(
            tokenizer.decode_bytes(window["input_ids"].where(torch.from_numpy(~hidden), ids[0]))
        )
        visible[hidden] = -1
        for flank in FLANKS:
            rows[f"{flank} to each side"].append(flank_chances(counts[: flank + 1], visible, 1)[hidden])
    truth = np.concatenate(truths)
    return {"masked_bases": len(truth)} | {name: score(np.concatenate(parts), truth) for name, parts in rows.items()}


def run_of(model: Path) -> dict:
    """How a model was trained, from the results that its run left beside it."""
    path = Path(model).parent / "results.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {key: found[key] for key in ("command", "steps", "training_seconds", "seed", "parameters") if key in found}


def compare(folder: Path, causal_model: Path | None, masked_model: Path | None) -> dict:
    """All figures on the folders that `prepare` has written."""
    training, held_out = read(folder / "training"), read(folder / "held-out")
    texts, letters = list(training.values()), bytes(sorted(set(b"".join([*training.values(), *held_out.values()]))))
    whole = b"\n".join(texts) + b"\n"
    known = {name: known_runs(texts, document) for name, document in held_out.items()}
    xz = {name: xz_bits(whole, document) for name, document in held_out.items()}
    result = {
        "training_bases": sum(map(len, texts)),
        "held_out_bases": {name: len(document) for name, document in held_out.items()},
        f"held_out_{RUN}-mers_in_training": {name: float(places.mean()) for name, places in known.items()},
        "markov": markov(texts, held_out, letters),
        "blend": blend(texts, held_out, letters),
        "xz -9": {"all": mean(xz, held_out), **xz},
    }
    if causal_model is not None:
        result["causal"] = {**run_of(causal_model), **causal(causal_model, folder)}
        result["causal"][f"after_{RUN}-mers"] = costs_after_runs(causal_model, known, held_out)
    if masked_model is not None:
        result["masked"] = {**run_of(masked_model), **masked(masked_model, texts, held_out, letters)}
    return result
