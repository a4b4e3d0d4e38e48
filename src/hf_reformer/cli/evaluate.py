"""`hf-reformer evaluate`: measure a model on a recipe's evaluation data, or on other text, perhaps with other attention."""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from .options import add_revision, add_run_options, given


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    parser = subparsers.add_parser("evaluate", help="measure a model", description=__doc__)
    parser.add_argument("model", help="folder of a run, model or checkpoint, or a model's name on the Hub")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--recipe", help="recipe whose data to use (default: the one that lies beside the model)")
    data.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="files and folders of text (language models), or of images (models of images)",
    )
    add_run_options(parser)
    add_revision(parser)
    parser.add_argument("--smoke", action="store_true", help="the recipe's generated data")
    parser.add_argument("--output", metavar="FILE", help="write the metrics to a JSON file too")
    parser.add_argument(
        "--predictions", metavar="FILE", help="write what the model says of each example, a JSON line each"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command; it prints the metrics as JSON and nothing else."""
    from ..files import replacing_file
    from ..training.evaluate import evaluate_model
    from .loading import model_folder

    for path in filter(None, (arguments.output, arguments.predictions)):
        check_writable(path)
    more = given(arguments, "device", "batch_size", "quiet", "revision", "predictions")
    model = model_folder(arguments.model, arguments.revision)
    with contextlib.redirect_stdout(sys.stderr):  # what else is said, by Trainer's callbacks for one
        results = evaluate_model(model, arguments.recipe, arguments.data, arguments.changes, arguments.smoke, **more)
    text = json.dumps(results, indent=2)
    if arguments.output:
        with replacing_file(arguments.output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def check_writable(path: str) -> None:
    """Better known before the work than after it: `OSError` where the file cannot be written."""
    if Path(path).is_dir():
        raise ValueError(f"{path!r} is a folder, but must be a file to write")
    is_new = not Path(path).exists()
    with open(path, "ab"):
        pass
    if is_new:
        Path(path).unlink()
