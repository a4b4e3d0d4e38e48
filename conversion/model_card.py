"""The README.md of a converted checkpoint: what it is, where it came from, how it loads, what it was checked with."""

import hf_reformer

CARD = """---
library_name: transformers
pipeline_tag: {pipeline}
tags:
- reformer
- hf_reformer
---

# {title}

A Reformer of {layers} layers ({kinds}), {parameters:,} parameters, converted by `hf-reformer convert` {version} from {origin}.

| | |
|---|---|
| vocabulary, hidden size, feed-forward | {vocab}, {hidden}, {inner} |
| heads, head size | {heads}, {head_size} |
| longest input | {maximum:,} tokens |

```python
import hf_reformer  # registers its classes; without it, transformers loads its own Reformer
from transformers import {auto_class}

model = {auto_class}.from_pretrained("PATH_OR_REPOSITORY")
```

{notes}
## Check

{fingerprint}

Not evaluated on any data: a conversion measures nothing.
"""
PIPELINES = {
    "ReformerModelWithLMHead": ("text-generation", "AutoModelForCausalLM"),
    "ReformerForMaskedLM": ("fill-mask", "AutoModelForMaskedLM"),
    "ReformerForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ReformerForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
    "ReformerForQuestionAnswering": ("question-answering", "AutoModelForQuestionAnswering"),
}


def model_card(model, origin, notes, fingerprint, title):
    """Text of the card; `notes` are sentences about what could not be carried over as it was."""
    config = model.config
    pipeline, auto_class = PIPELINES.get(type(model).__name__, ("feature-extraction", "AutoModel"))
    notes = [*notes, *_trax_note(origin)]
    return CARD.format(
        title=title,
        pipeline=pipeline,
        auto_class=auto_class,
        layers=len(config.attn_layers),
        kinds=", ".join(f"{config.attn_layers.count(kind)} {kind}" for kind in dict.fromkeys(config.attn_layers)),
        parameters=sum(p.numel() for p in model.parameters()),
        version=hf_reformer.__version__,
        origin=origin,
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        inner=config.feed_forward_size,
        heads=config.num_attention_heads,
        head_size=config.attention_head_size,
        maximum=config.maximum_length,
        notes="".join(f"- {note}\n" for note in notes),
        fingerprint="\n".join(f"    {line}" for line in fingerprint.splitlines()),
    )


def _trax_note(origin):
    if "Trax" not in origin:
        return []
    return [
        "Trax shifts its input inside the model: its logits for tokens x are those of this model for [0, x[:-1]], so a "
        "prompt starts with token 0 (give `attention_mask` ones, because 0 is the padding token too)."
    ]
