"""Draws docs/pictures/attention-map.png: `python docs/attention_map_picture.py` (a few seconds)."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_reformer
from hf_reformer.cli.page_attention import draw

PICTURE = Path(__file__).parent / "pictures" / "attention-map.png"
TEXT = (Path(__file__).parent / "guides" / "long-documents.md").read_text(encoding="utf-8")[:1200]


def main():
    folder = hf_reformer.pretrained("text-16k")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    draw(hf_reformer.attention_map(model, ids)).savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    main()
