"""`hf-reformer evaluate`: measure a model on a recipe's evaluation data, or on other text, perhaps with other attention."""

import argparse
import json
from pathlib import Path


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    parser = subparsers.add_parser("evaluate", help="measure a model", description=__doc__)
    parser.add_argument("model", help="folder of a model or checkpoint, or its name on the Hub")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--recipe", help="recipe whose data to use (default: the one that lies beside the model)")
    data.add_argument("--data", nargs="+", metavar="PATH", help="files and folders of text (language models only)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="changes",
        help="as model.attn_layers=[full,full_shared_qk] (repeated over the layers), model.num_hashes=8, evaluation.examples=4",
    )  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="the recipe's generated data")
    parser.add_argument("--output", metavar="FILE", help="write the metrics to a JSON file too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command; it prints the metrics as JSON."""
    from ..training.evaluate import evaluate_model
    from ..training.report import write_results

    results = evaluate_model(arguments.model, arguments.recipe, arguments.data, arguments.changes, arguments.smoke)
    print(json.dumps(results, indent=2))
    if arguments.output:
        write_results(Path(arguments.output), results)
    return 0
