"""`hf-reformer serve`: `transformers serve` (HTTP, in the manner of OpenAI's interface) with this package's models.

transformers' own command takes the class that `config.json` names from `transformers` itself, whatever is registered: its
Reformer, which does not know the strict layer types and drops the head's bias. Here it finds ours.
"""

import argparse


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model over HTTP: transformers serve with this package's models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder of a run or checkpoint, or a model's name on the Hub")
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, help="options of `transformers serve`: --port 8000, --host localhost, ..."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command; it serves until it is interrupted."""
    from transformers.utils import import_utils

    if not import_utils.is_serve_available():
        raise ValueError("packages are missing: pip install 'hf-reformer[serving]'.")
    from transformers.cli.serving import model_manager
    from transformers.cli.transformers import app

    from ..model.modeling_reformer import ReformerModelWithLMHead
    from .loading import model_folder

    model_manager.transformers.ReformerModelWithLMHead = ReformerModelWithLMHead
    command = ["serve", model_folder(arguments.model), *arguments.options]
    return app(command, prog_name="hf-reformer", standalone_mode=False) or 0
