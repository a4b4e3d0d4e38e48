"""`hf-reformer quickstart`: train a byte-level Reformer on text, measure it, save it, load it afresh and generate."""

import argparse
import hashlib
import importlib.util
import sys
from dataclasses import fields, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from ..training.quickstart_report import continuation, plot_losses, results_of, write_checkpoint, write_results
from ..training.quickstart_training import (
    Run,
    Settings,
    held_out_bits_per_byte,
    load_state,
    restore,
    start_run,
    total_bytes,
    train,
)
from ..training.text_data import (
    TextSplit,
    as_bytes_tensor,
    find_files,
    gzip_bits_per_byte,
    split_by_file,
    standard_library_files,
    xz_bits_per_byte,
)

HELD_OUT_WINDOWS = 8
PROMPT_BYTES = 240
DEFAULT_OUTPUT = "quickstart-output"


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    default = Settings()
    parser = subparsers.add_parser(
        "quickstart", help="train, save, reload and generate on real text", description=__doc__
    )
    parser.add_argument(
        "--data", nargs="+", metavar="PATH", help="files and folders (default: Python's standard library)"
    )
    parser.add_argument("--steps", type=int, help=f"training steps (default {default.steps})")
    parser.add_argument("--context", type=int, help=f"bytes of context (default {default.context})")
    parser.add_argument("--seed", type=int, help=f"seed of everything that is drawn (default {default.seed})")
    parser.add_argument("--learning-rate", type=float, help=f"highest learning rate (default {default.learning_rate})")
    parser.add_argument("--output", default=DEFAULT_OUTPUT, help="folder to write to (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command. Exit code 0, or 130 after Ctrl-C."""
    output = Path(arguments.output)
    accelerator = make_accelerator(arguments.device)
    check_plotting()
    given = given_settings(arguments)
    state = load_state(state_path(output)) if arguments.resume else None
    settings = settings_of_resumed(given, state["settings"]) if state else replace(Settings(), **given)
    check_settings(settings)
    if not arguments.resume:
        check_output(output)
    text = read_text(settings)
    digest = hashlib.sha256(text.training + text.held_out).hexdigest()
    if state and state["text_digest"] != digest:
        raise ValueError(
            "data has changed since the run in --output began; allowed is the same text, or a new --output"
        )
    training_run = start_run(settings, digest, accelerator)
    if state:
        restore(training_run, state)
    return carry_out(training_run, text, output)


def carry_out(training_run: Run, text: TextSplit, output: Path) -> int:
    """Evaluate, train, evaluate, write everything, generate."""
    settings, device = training_run.settings, training_run.accelerator.device
    windows = held_out_windows(text.held_out, settings.context)
    say(
        f"{len(text.training):,} bytes to train on ({text.training_files} files), {len(text.held_out):,} held out "
        f"({text.held_out_files} files), {settings.steps} steps, {total_bytes(settings):,} bytes read, context "
        f"{settings.context:,}, on {device}"
    )
    if training_run.bits_before is None:
        training_run.bits_before = held_out_bits_per_byte(training_run.model, windows, device)
    for stale in (output / "loss.png", output / "results.json"):
        stale.unlink(missing_ok=True)
    if not train(training_run, as_bytes_tensor(text.training), state_path(output)):
        write_checkpoint(training_run, output / "model")
        say(f"stopped after step {training_run.step} of {settings.steps}; model and training state are in {output}")
        say(f"to continue: hf-reformer quickstart --resume --output {output}")
        return 130
    results = results_of(training_run, measure(training_run, text, windows))
    figure = output / "loss.png"
    plot_losses(figure, training_run, results)
    write_results(output / "results.json", results)
    write_checkpoint(training_run, output / "model", results, figure)
    print_results(results, output)
    say("\nLoaded by a fresh process, the checkpoint continues held-out text:\n")
    say(continuation(output / "model", prompt_from(text.held_out, settings.context)))
    return 0


def measure(training_run: Run, text: TextSplit, windows: list[torch.Tensor]) -> dict:
    """Bits per byte of model and compressors on the same held-out bytes, and what they were measured on."""
    evaluated = b"".join(bytes(window.tolist()) for window in windows)
    return {
        "before": training_run.bits_before,
        "after": held_out_bits_per_byte(training_run.model, windows, training_run.accelerator.device),
        "gzip": gzip_bits_per_byte(evaluated),
        "xz": xz_bits_per_byte(evaluated),
        "gzip_of_all_held_out": gzip_bits_per_byte(text.held_out),
        "evaluated_bytes": len(evaluated),
        "windows": len(windows),
        "standard_library": not training_run.settings.data,
        "training_bytes": len(text.training),
        "training_files": text.training_files,
        "held_out_bytes": len(text.held_out),
        "held_out_files": text.held_out_files,
        "bytes_read": total_bytes(training_run.settings),
    }


def print_results(results: dict, output: Path) -> None:
    verdict = "below" if results["after"] < results["gzip"] else "not below"
    say(
        f"\nbits per byte of {results['evaluated_bytes']:,} held-out bytes:\n"
        f"  before training  {results['before']:.3f}\n"
        f"  after training   {results['after']:.3f}   ({verdict} gzip -9)\n"
        f"  gzip -9          {results['gzip']:.3f}\n"
        f"  xz -9            {results['xz']:.3f}\n"
        f"trained for {results['training_seconds']:.0f} s, peak memory {results['peak_memory_gib']:.1f} GiB; "
        f"checkpoint in {output / 'model'}, figure in {output / 'loss.png'}"
    )


def held_out_windows(held_out: bytes, context: int) -> list[torch.Tensor]:
    """Up to `HELD_OUT_WINDOWS` uint8 windows of `context` bytes, evenly spread over the held-out text, none overlapping."""
    text = as_bytes_tensor(held_out)
    count = min(HELD_OUT_WINDOWS, len(text) // context)
    if count < 2:
        return [text[:context]]
    starts = [i * (len(text) - context) // (count - 1) for i in range(count)]
    return [text[start : start + context] for start in starts]


def prompt_from(held_out: bytes, context: int) -> str:
    """The beginning of the held-out text, without what an argument of a process cannot carry, half a context at most."""
    return held_out[: min(PROMPT_BYTES, context // 2)].decode("utf-8", "ignore").replace("\0", "") or "\n"


def state_path(output: Path) -> Path:
    return output / "training" / "state.pt"


def given_settings(arguments: argparse.Namespace) -> dict:
    """The settings that were named on the command line."""
    given = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    if given["data"] is not None:
        given["data"] = tuple(str(Path(path).resolve()) for path in given["data"])
    return {name: value for name, value in given.items() if value is not None}


def settings_of_resumed(given: dict, stored: Settings) -> Settings:
    """The settings of the run that is resumed; naming one again is fine, changing it is not."""
    for name, value in given.items():
        if value != getattr(stored, name):
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{option} is {value!r}, but the run to resume has {getattr(stored, name)!r}; leave it out"
            )
    return stored


def check_settings(settings: Settings) -> None:
    for name, least in (("steps", 1), ("context", 2), ("seed", 0)):
        value = getattr(settings, name)
        if value < least:
            raise ValueError(f"--{name} is {value}; allowed are whole numbers from {least}")
    if not 0 < settings.learning_rate < float("inf"):
        raise ValueError(f"--learning-rate is {settings.learning_rate}; allowed are numbers above 0")


def check_output(output: Path) -> None:
    """A new run may replace a finished one, and nothing else."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {str(output)!r} is a file; allowed is a folder, or a name that is free")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not state_path(output).is_file():
        raise ValueError(
            f"--output {str(output)!r} exists and holds no quickstart run; allowed are an empty folder, a free name, or the "
            "folder of a finished run"
        )
    state = load_state(state_path(output))
    if state["step"] < state["settings"].steps:
        raise ValueError(
            f"--output {str(output)!r} holds a run that stopped after step {state['step']} of {state['settings'].steps}; "
            "continue it with --resume, remove the folder, or choose another --output"
        )


def check_plotting() -> None:
    """Better known before training than after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "quickstart draws loss.png with matplotlib, which is not installed: pip install 'hf-reformer[demo]'"
        )


def read_text(settings: Settings) -> TextSplit:
    """Training and held-out text of the settings, enough of it for the context."""
    files = find_files(settings.data) if settings.data else standard_library_files()
    text = split_by_file(files, seed=settings.seed, held_out_bytes=HELD_OUT_WINDOWS * settings.context)
    if len(text.training) < settings.context:
        raise ValueError(
            f"data has too little text: {len(text.training):,} bytes to train on, --context {settings.context} needs at "
            "least as many; give more text or a smaller --context"
        )
    return text


def make_accelerator(device: str) -> Accelerator:
    """An `Accelerator` on the device named."""
    available = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device not in available:
        raise ValueError(f"--device is {device!r}; allowed are {', '.join(available)}")
    if not available[device]:
        raise ValueError(
            f"--device is {device!r}, which this machine does not have; allowed here are "
            f"{', '.join(name for name, present in available.items() if present)}"
        )
    accelerator = Accelerator(cpu=device == "cpu")
    if accelerator.num_processes > 1:
        raise ValueError(f"quickstart trains in one process, but {accelerator.num_processes} were launched")
    return accelerator


def say(text: str) -> None:
    """Print, with a question mark for what the terminal cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)
