"""Which modules peft's LoRA adapts when its user names none."""

import sys

LORA_TARGET_MODULES = ("query_key", "query", "value")  # queries (shared with keys in LSH layers) and values


def register_lora_targets():
    """Tells peft, if somebody has imported it: `LoraConfig` then needs no `target_modules`. Its own entry would win.

    peft keeps a table by model type and offers no way to be told otherwise. `ReformerConfig.to_dict` calls this, because
    peft asks a model for that dictionary before it looks into the table, whatever was imported first.
    """
    constants = sys.modules.get("peft.utils.constants")
    table = getattr(constants, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", None)
    if table is not None:
        table.setdefault("reformer", list(LORA_TARGET_MODULES))
