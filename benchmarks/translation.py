"""Translation of LibreOffice's help, ours beside an ordinary encoder-decoder of the same size (transformers' Marian).

    apt-get download libreoffice-help-en-us libreoffice-help-de                # Debian packages, MPL-2.0
    for package in libreoffice-help-*.deb; do dpkg -x $package help; done
    python -m benchmarks.translation data help/usr/share/libreoffice/help pairs
    hf-reformer train help-en-de --output ours --data pairs/train.jsonl --set data.evaluation_files=[pairs/validation.jsonl]
    python -m benchmarks.translation peer pairs peer --set training.max_steps=2850   # the same data, order, tokenizer, optimizer
    python -m benchmarks.translation score pairs ours/model peer/model           # chrF and BLEU by sacrebleu, on pairs/test.jsonl

Paragraphs are aligned by page and identifier. Pages are held out by the hash of their name, so that neighbouring paragraphs stay
together; a pair whose source or target also stands in a held-out page is left out of training, and each text is taken once.
"""

import argparse
import hashlib
import json
import re
import time
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianConfig, MarianMTModel

from hf_reformer.files import replacing_file
from hf_reformer.training.run import running

RESULTS = Path("benchmarks/results/translation.json")
HELD_OUT = {"test": (0, 3), "validation": (3, 5)}  # percent of the pages
SHORTEST, LONGEST, RATIO = 15, 400, 2.0  # characters of a paragraph; the longer side over the shorter


class Paragraphs(HTMLParser):
    """Texts of a page's paragraphs by identifier, without what is written for one system (macOS) only."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: dict[str, str] = {}
        self.identifier: str | None = None
        self.pieces: list[str] = []
        self.spans: list[bool] = []  # whether each open span is left out

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = dict(attributes)
        if tag in ("p", "h1", "h2", "h3", "h4", "h5") and values.get("id"):
            self.identifier, self.pieces, self.spans = values["id"], [], []
        elif tag == "span" and self.identifier is not None:
            self.spans.append(values.get("class") in ("MAC", "UNIX", "CALC", "WRITER", "IMPRESS", "DRAW", "MATH"))
        elif tag == "br":
            self.pieces.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self.spans:
            self.spans.pop()
        elif tag in ("p", "h1", "h2", "h3", "h4", "h5") and self.identifier is not None:
            text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", "".join(self.pieces))).strip()
            self.texts.setdefault(self.identifier, text)
            self.identifier = None

    def handle_data(self, data: str) -> None:
        if self.identifier is not None and not any(self.spans):
            self.pieces.append(data)


def paragraphs(page: Path) -> dict[str, str]:
    parser = Paragraphs()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.texts


def usable(source: str, target: str) -> bool:
    """Whether a pair is a translation: neither a heading of one word, nor code, nor left untranslated."""
    lengths = sorted((len(source), len(target)))
    letters = sum(character.isalpha() or character.isspace() for character in source)
    return (
        lengths[0] >= SHORTEST
        and lengths[1] <= LONGEST
        and lengths[1] <= RATIO * lengths[0]
        and source != target
        and letters >= 0.7 * len(source)
    )


def share_of(name: str) -> str:
    percent = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100
    return next((share for share, (first, last) in HELD_OUT.items() if first <= percent < last), "train")


def aligned(folder: Path, source: str, target: str) -> dict[str, list[dict]]:
    """Pairs by share ("train", "validation", "test"), each text once; held-out shares come first."""
    found: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    for page in sorted((folder / source).rglob("*.html")):
        other = folder / target / page.relative_to(folder / source)
        if not other.is_file():
            continue
        name, theirs = str(page.relative_to(folder / source)), paragraphs(other)
        pairs = ((text, theirs.get(identifier, "")) for identifier, text in paragraphs(page).items())
        found[share_of(name)] += [{"source": a, "target": b, "page": name} for a, b in pairs if usable(a, b)]
    seen: set[str] = set()
    kept: dict[str, list[dict]] = {}
    for share in ("test", "validation", "train"):
        kept[share] = []
        for pair in found[share]:
            if pair["source"] not in seen and pair["target"] not in seen:
                kept[share].append(pair)
                seen |= {pair["source"], pair["target"]}
    return kept


def write_pairs(folder: Path, output: Path, source: str, target: str) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for share, pairs in aligned(folder, source, target).items():
        with replacing_file(output / f"{share}.jsonl") as path:
            path.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
        print(f"{share}: {len(pairs):,} pairs, {sum(len(pair['target']) for pair in pairs):,} characters of target")


# --- the peer -----------------------------------------------------------------------------------------------------------


def peer_of(config) -> MarianMTModel:
    """An ordinary encoder-decoder with the sizes of a Reformer's configuration, words shared by both sides and the head."""
    heads, inner = config.num_attention_heads, config.feed_forward_size
    return MarianMTModel(
        MarianConfig(
            vocab_size=config.vocab_size, d_model=config.hidden_size, max_position_embeddings=config.maximum_length,
            encoder_layers=config.num_hidden_layers, decoder_layers=config.num_hidden_layers,
            encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=inner, decoder_ffn_dim=inner,
            activation_function=config.hidden_act, dropout=config.hidden_dropout_prob,
            attention_dropout=config.local_attention_probs_dropout_prob, scale_embedding=True,
            pad_token_id=config.pad_token_id, eos_token_id=config.eos_token_id, forced_eos_token_id=None,
            decoder_start_token_id=config.pad_token_id, share_encoder_decoder_embeddings=True,
            keys_to_ignore_at_inference=["past_key_values", "encoder_last_hidden_state"],
        )
    )  # fmt: skip


def train_peer(pairs: Path, output: Path, changes: list[str]) -> None:
    """The recipe's run with the peer in place of the Reformer; the model is written to `output/model`."""
    changes = [f"data.files=[{pairs}/train.jsonl]", f"data.evaluation_files=[{pairs}/validation.jsonl]", *changes]
    with running("help-en-de", output, changes, model_init=True) as run:
        ours = run.trainer.model_init()
        run.trainer.model_init = None
        run.trainer.model = run.trainer.model_wrapped = peer_of(ours.config).to(run.trainer.args.device)
        run.train()
        run.trainer.model.save_pretrained(output / "model")
        run.task.tokenizer.save_pretrained(output / "model")


# --- scores -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def translations(model, tokenizer, texts: list[str], beams: int, longest: int = 192) -> list[str]:
    """What a model writes for each text, the longest texts first, so that rows of a batch are alike."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    written: dict[int, str] = {}
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        ids = [tokenizer(texts[i], add_special_tokens=False).input_ids[:longest] for i in rows]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        out = model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, num_beams=beams, do_sample=False, max_length=longest
        )  # fmt: skip
        written |= dict(zip(rows, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True))
    return [written[i] for i in range(len(texts))]


def score(pairs: Path, folder: Path, beams: int) -> dict:
    """chrF and BLEU of a model on the test pairs, with sacrebleu's signatures, and three translations."""
    from sacrebleu.metrics import BLEU, CHRF

    rows = [json.loads(line) for line in (pairs / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    began = time.perf_counter()
    said = translations(model, tokenizer, [row["source"] for row in rows], beams)
    seconds = time.perf_counter() - began
    figures = {}
    for name, metric in (("chrF", CHRF()), ("BLEU", BLEU())):
        figures[name] = round(metric.corpus_score(said, [[row["target"] for row in rows]]).score, 2)
        figures[f"{name}_signature"] = str(metric.get_signature())
    return {
        "model": type(model).__name__, "parameters": model.num_parameters(), "beams": beams, "test_pairs": len(rows),
        "seconds": round(seconds, 1), **figures,
        "examples": [{**rows[i], "written": said[i]} for i in range(0, len(rows), len(rows) // 3)][:3],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="write pairs of paragraphs")
    data.add_argument("help", type=Path, help="folder with one folder of pages per language")
    data.add_argument("output", type=Path)
    data.add_argument("--source", default="en-US")
    data.add_argument("--target", default="de")
    peer = commands.add_parser("peer", help="train the ordinary encoder-decoder")
    peer.add_argument("pairs", type=Path)
    peer.add_argument("output", type=Path)
    peer.add_argument("--set", action="append", default=[], help="as of hf-reformer train")
    scores = commands.add_parser("score", help="chrF and BLEU of models")
    scores.add_argument("pairs", type=Path)
    scores.add_argument("models", type=Path, nargs="+")
    scores.add_argument("--beams", type=int, default=4)
    scores.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "data":
        write_pairs(arguments.help, arguments.output, arguments.source, arguments.target)
    elif arguments.command == "peer":
        train_peer(arguments.pairs, arguments.output, arguments.set)
    else:
        rows = [score(arguments.pairs, folder, arguments.beams) for folder in arguments.models]
        for row in rows:
            print({name: value for name, value in row.items() if name != "examples"})
        with replacing_file(arguments.out) as path:
            path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
