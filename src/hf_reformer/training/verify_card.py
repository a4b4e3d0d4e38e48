"""`python -m hf_reformer.training.verify_card MODEL [--data PATH ...]`: measures a model again on the data of its recipe, and says
where its card's figures differ. Exit code 1 where one does.

MODEL is the folder of a trained model, or the name of one that ships with the package.
"""

import argparse
import sys
from pathlib import Path

from huggingface_hub import ModelCard

from ..auto import pretrained, shipped
from .evaluate import evaluate_model

DIGITS = 4  # of the figures in a card
ROUNDING = 0.005  # relative: other processors and numbers of threads add up in another order


def verify(folder: str | Path, files: list[str] | None = None, evaluate=evaluate_model) -> list[tuple]:
    """(name, in the card, measured, whether they agree) of each figure in the card's front matter.

    Args:
        files: where the recipe's files lie here, if not where they lay in training.

    Raises:
        ValueError: where there is no card, or it has no figures.
    """
    path = Path(folder, "README.md")
    if not path.is_file():
        raise ValueError(f"model {str(folder)!r} has no card: README.md is missing")
    try:
        said = {result.metric_type: result.metric_value for result in ModelCard.load(path).data.eval_results or []}
    except Exception as error:  # PyYAML and huggingface_hub raise of all kinds
        raise ValueError(f"card {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
    if not said:
        raise ValueError(f"card {str(path)!r} has no figures to verify")
    changes = [] if files is None else [("data", "files", list(files))]
    found = evaluate(str(folder), changes=changes, quiet=True)
    if found["same_data_as_the_card"] is False:
        raise ValueError(
            "data is not what the card was measured on: its fingerprint is another; name the right files by --data"
        )
    return [
        (
            name,
            value,
            found.get(name),
            name in found and abs(found[name] - value) <= 10**-DIGITS + ROUNDING * abs(value),
        )
        for name, value in said.items()
    ]


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hf_reformer.training.verify_card", description=__doc__)
    parser.add_argument("model")
    parser.add_argument(
        "--data", nargs="+", metavar="PATH", help="files and folders that the recipe's data lies in here"
    )
    arguments = parser.parse_args(argv)
    folder = pretrained(arguments.model) if arguments.model in shipped() else arguments.model
    try:
        figures = verify(folder, arguments.data)
    except ValueError as error:
        print(f"verify_card: {error}", file=sys.stderr)
        return 2
    for name, said, found, same in figures:
        measured = "not measured" if found is None else f"{found:.{DIGITS}f}"
        print(f"{name}: card {said:.{DIGITS}f}, measured {measured}{'' if same else '  DIFFERENT'}")
    return 0 if all(same for *_, same in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
