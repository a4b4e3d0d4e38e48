"""`hf-reformer convert`: checkpoints of Trax and transformers to ours and back."""

import argparse

TARGETS = ("hf_reformer", "transformers", "trax")


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    parser = subparsers.add_parser("convert", help="convert a checkpoint of Trax or transformers", description=__doc__)
    parser.add_argument("source", help="folder of a checkpoint, or one of its files")
    parser.add_argument("--output", required=True, help="folder to write; it must not exist, or be empty")
    parser.add_argument(
        "--config", help="config.gin or JSON with the architecture (default: what lies beside the source)"
    )
    parser.add_argument("--to", choices=TARGETS, default=TARGETS[0], help="format to write (default %(default)s)")
    parser.add_argument(
        "--tokenizer", help="byte, none or a SentencePiece model (default: what lies beside the source)"
    )
    parser.add_argument(
        "--max-length", type=int, metavar="N",
        help="positions to write out where Trax computes them (default: the training length)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command; what was wrong with the source is a `ValueError`."""
    from transformers.utils import logging

    from ..conversion import convert

    if arguments.max_length is not None and arguments.max_length < 1:
        raise ValueError(f"--max-length is {arguments.max_length}, but must be at least 1")
    logging.disable_progress_bar()
    report = convert(
        arguments.source,
        arguments.output,
        config=arguments.config,
        to=arguments.to,
        tokenizer=arguments.tokenizer,
        max_length=arguments.max_length,
    )
    print(f"{report.output}: from {report.origin}")
    for note in report.notes:
        print(f"note: {note}")
    print(report.fingerprint)
    return 0
