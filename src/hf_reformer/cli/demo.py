"""`hf-reformer demo`: a page in the browser to write with a model, or to complete images, and to see what it looked at."""

import argparse
import os

from .options import add_device, add_revision

MODEL = "text-16k"


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    parser = subparsers.add_parser("demo", help="a page in the browser to write with a model", description=__doc__)
    parser.add_argument(
        "model", nargs="?", default=MODEL,
        help="folder of a run or checkpoint, a model's name on the Hub, or one that ships (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve at; 0.0.0.0 for all (default %(default)s)"
    )
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    add_device(parser)
    add_revision(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command; it serves until it is interrupted."""
    if arguments.port is not None and not 1 <= arguments.port < 65_536:
        raise ValueError(f"--port is {arguments.port}, but must be from 1 to 65535")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no word to anybody
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError("the page needs Gradio: pip install 'hf-reformer[page]'") from error
    from transformers.utils import logging

    from .page import build

    logging.disable_progress_bar()
    page = build(arguments.model, arguments.device or "auto", arguments.revision)
    page.open(arguments.host, arguments.port, arguments.no_browser)
    return 0
