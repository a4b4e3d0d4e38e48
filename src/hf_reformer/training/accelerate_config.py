"""Where the configuration files for `accelerate launch` lie: `python -m hf_reformer.training.accelerate_config fsdp2`."""

import sys
from pathlib import Path

FOLDER = Path(__file__).with_name("accelerate")


def accelerate_config(name) -> Path:
    """Path of the shipped configuration `"ddp"`, `"fsdp2"` or `"sequence"`."""
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"`name` is {name!r}, but must be one of {', '.join(known)}.")
    return FOLDER / f"{name}.yaml"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m hf_reformer.training.accelerate_config NAME")
    print(accelerate_config(sys.argv[1]))
