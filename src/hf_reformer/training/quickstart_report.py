"""What a quickstart run leaves behind: the checkpoint folder with its card, `loss.png`, `results.json`, a continuation."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..files import replacing_file, replacing_folder
from ..model.tokenization_reformer import ReformerByteTokenizer
from .quickstart_training import Run

# Run as it stands, by a fresh Python, and printed as it stands in the card.
GENERATE = """\
import sys

import hf_reformer  # registers the model classes
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline, set_seed

folder, prompt = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
room = tokenizer.model_max_length - len(tokenizer(prompt)["input_ids"])
set_seed(0)
print(generate(prompt, max_new_tokens=min(160, room), do_sample=True, temperature=0.7)[0]["generated_text"])
"""

TEXT_NAMES = {True: "The Python standard library's sources", False: "Text of the user's own"}

CARD = """\
---
{front_matter}
---

# A byte-level Reformer, trained by `hf-reformer quickstart`

A causal language model over bytes with a context of {context:,}: {layers} layers alternating `strict_local` and
`strict_lsh`, {parameters:,} parameters. It was trained for {minutes:.1f} minutes to show that training, saving, loading and
generating work; it is no useful model of anything else.

## Text

{text}: {training_bytes:,} bytes in {training_files} files to train on, {held_out_bytes:,} bytes in {held_out_files} other
files held out. Training read {bytes_read:,} bytes.

## Measured

Bits per byte of {evaluated_bytes:,} held-out bytes ({windows} windows, each predicted on its own from its first byte on):

| | bits per byte |
| --- | --- |
| this model before training | {before:.3f} |
| this model | {after:.3f} |
| `gzip -9` of the same bytes | {gzip:.3f} |
| `xz -9` of the same bytes | {xz:.3f} |

{steps} steps, seed {seed}, peak memory {peak_memory_gib:.1f} GiB, {machine}, `hf_reformer` {version}, torch {torch},
transformers {transformers}.

![Training loss](loss.png)

## Use

```python
{generate}```

The model classes come from `hf_reformer`, so that import is needed: without it, transformers refuses the `strict_*` layers.
"""


def results_of(run: Run, measured: dict) -> dict:
    """All figures of a finished run, as they go into `results.json` and the card."""
    from .. import __version__

    model = run.accelerator.unwrap_model(run.model)
    return {
        **measured,
        "steps": run.settings.steps,
        "context": run.settings.context,
        "seed": run.settings.seed,
        "learning_rate": run.settings.learning_rate,
        "layers": list(model.config.attn_layers),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_seconds": round(run.seconds, 1),
        "peak_memory_gib": round(peak_memory_gib(), 2),
        "hf_reformer": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": describe_machine(run.accelerator.device),
    }


def describe_machine(device: torch.device) -> str:
    """One line: the device, and for a CPU how many of its cores work."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def peak_memory_gib() -> float:
    """The most memory that this process has had resident; where the system does not say, 0."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def write_card(folder: Path, results: dict) -> None:
    """README.md with front matter that the Hub reads."""
    own = results["standard_library"]
    data = ModelCardData(
        model_name="hf-reformer-quickstart",
        language="code" if own else None,
        license="apache-2.0" if own else None,  # of a model of other text only its maker can say
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["reformer", "hf_reformer", "byte-level"],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type="python-standard-library" if own else "text",
                dataset_name=f"{TEXT_NAMES[own]}, held-out files",
                metric_type="bits_per_byte",
                metric_name="held-out bits per byte",
                metric_value=round(results["after"], 4),
            )
        ],
    )
    card = CARD.format(
        **{**results, "layers": len(results["layers"])},
        front_matter=data.to_yaml(),
        minutes=results["training_seconds"] / 60,
        text=TEXT_NAMES[own],
        generate=GENERATE,
        version=results["hf_reformer"],
    )
    ModelCard(card)  # raises on front matter that does not parse
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_checkpoint(run: Run, folder: Path, results: dict | None = None, figure: Path | None = None) -> None:
    """Model (safetensors), tokenizer and, for a finished run, the card and its figure; the folder is replaced whole."""
    model = run.accelerator.unwrap_model(run.model)
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        ReformerByteTokenizer(model_max_length=model.config.maximum_length).save_pretrained(temporary)
        if results is not None:
            write_card(temporary, results)
            (temporary / figure.name).write_bytes(figure.read_bytes())


def write_results(path: Path, results: dict) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def plot_losses(path: Path, run: Run, results: dict) -> None:
    """Training loss over the steps, beside what the held-out text costs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    steps = range(1, len(run.losses) + 1)
    axes.plot(steps, run.losses, linewidth=0.5, alpha=0.4, color="tab:blue")
    axes.plot(steps, running_mean(run.losses), color="tab:blue", label="training, mean of the last 25 steps")
    axes.plot(
        [0, len(run.losses)],
        [results["before"], results["after"]],
        "o",
        color="tab:red",
        label="held-out, before and after",
    )
    axes.axhline(results["gzip"], color="gray", linestyle="--", label="gzip -9, the same held-out bytes")
    axes.axhline(results["xz"], color="gray", linestyle=":", label="xz -9")
    axes.set(xlabel="step", ylabel="bits per byte", ylim=(0, None))
    axes.legend()
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


def running_mean(values: list[float], width: int = 25) -> list[float]:
    """Mean of each value and the up to `width` - 1 before it."""
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - width) : i + 1])]


def continuation(folder: Path, prompt: str) -> str:
    """What the checkpoint in `folder` makes of `prompt`, in a fresh Python process.

    Raises:
        RuntimeError: with the process's own words, when it fails.
    """
    command = [sys.executable, "-c", GENERATE, str(folder), prompt]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"generating from {folder} failed:\n{done.stderr}")
    return done.stdout
