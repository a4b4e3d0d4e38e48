"""Which modules peft's LoRA adapts when its user names none."""

import importlib.abc
import importlib.machinery
import sys

LORA_TARGET_MODULES = ("query_key", "query", "value")  # queries (shared with keys in LSH layers) and values
TABLES = "peft.utils.constants"


def register_lora_targets():
    """Tells peft now, or as soon as somebody imports it: `LoraConfig` then needs no `target_modules`. peft keeps a table by
    model type and offers no way to be told otherwise; an entry of its own would win. Called when a model is built."""
    if TABLES in sys.modules:
        _enter(sys.modules[TABLES])
    elif not any(isinstance(finder, _WhenPeftIsImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenPeftIsImported())


def _enter(tables):
    table = getattr(tables, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", None)
    if table is not None:
        table.setdefault("reformer", list(LORA_TARGET_MODULES))


class _WhenPeftIsImported(importlib.abc.MetaPathFinder):
    """Finds nothing itself; it stands before the other finders until peft's tables are looked for, once."""

    def find_spec(self, name, path=None, target=None):
        if name != TABLES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_enter(module):
                execute(module)
                _enter(module)

            spec.loader.exec_module = execute_and_enter
        return spec
