"""Finding a model: a folder, a run's folder with a model in it, or a name on the Hub; one clear line where it is none of them."""

import os
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig

from ..auto import pretrained, shipped

CONFIG = "config.json"


def model_folder(name: str, revision: str | None = None) -> str:
    """The folder of a model, also that of the run it lies in, or one that ships with the package; a name that stands for one on
    the Hub is given back as it is.

    Raises:
        ValueError: where there is neither. It is known at once: the network is asked once, and not for what looks like a path.
    """
    folders = [folder for folder in (Path(name), Path(name, "model")) if (folder / CONFIG).is_file()]
    if folders:
        return str(folders[0])
    if name in shipped():
        return pretrained(name)
    if Path(name).exists():
        raise ValueError(f"model {name!r} holds no model: {CONFIG} is missing, and model{os.sep}{CONFIG}, too")
    owner, *rest = Path(name).parts or [""]
    if name.startswith(("/", ".", "~")) or "\\" in name or len(rest) > 1 or (rest and Path(owner).exists()):
        raise ValueError(
            f"model {name!r} does not exist; allowed are the folder of a model or run, {', '.join(shipped())} and a name on the Hub"
        )
    check_on_hub(name, revision)
    return name


def check_on_hub(name: str, revision: str | None) -> None:
    """Raises `ValueError` where the Hub has no such model, or cannot be asked and the model was not had from it before."""
    from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, CONFIG, revision=revision), str):
        return
    try:
        if is_offline_mode():
            raise OSError("HF_HUB_OFFLINE is set")
        HfApi().model_info(name, revision=revision, timeout=10)
    except Exception as error:  # of the network, of several libraries; whichever it is, the model cannot be had
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"model {name!r} is no folder here and cannot be loaded from the Hub: {reason}") from error


def load_config(name: str, revision: str | None = None):
    """The configuration in a folder or on the Hub."""
    try:
        return AutoConfig.from_pretrained(name, revision=revision)
    except OSError as error:
        raise ValueError(f"model {name} cannot be loaded: {error}") from error


def load_model(auto_class: str, name: str, config, device: torch.device, revision: str | None = None):
    """The model in evaluation mode; raises `ValueError` where some of its weights are not in the checkpoint."""
    try:
        load = getattr(transformers, auto_class).from_pretrained
        model, found = load(name, config=config, revision=revision, output_loading_info=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"model {name} cannot be loaded: {error}") from error
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ValueError(
            f"model {name} lacks {len(missing)} of the weights of a {type(model).__name__}, as {missing[0]}: they would be random"
        )
    return model.to(device).eval()
