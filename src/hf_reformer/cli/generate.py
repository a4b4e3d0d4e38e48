"""`hf-reformer generate`: a model continues a prompt, and the text appears as it is made; or it makes images, a PNG of several."""

import argparse
import sys

from . import images
from .options import add_device, add_revision

NEW_TOKENS = 200


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    parser = subparsers.add_parser("generate", help="continue a prompt, or make images", description=__doc__)
    parser.add_argument("model", help="folder of a run or checkpoint, or a model's name on the Hub")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", help="text to continue")
    prompt.add_argument("--prompt-file", metavar="FILE", help="file to continue, byte for byte; - for standard input")
    parser.add_argument("--tail-bytes", type=int, metavar="N", help="take the last N bytes of the prompt only")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help=f"default {NEW_TOKENS}")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest (default %(default)s)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw from the likeliest tokens that make up this much"
    )
    parser.add_argument("--num-hashes", type=int, metavar="N", help="rounds of hashing (default: the model's)")
    parser.add_argument("--seed", type=int, help="of the drawing (default: another text every time)")
    images.add_options(parser)
    add_device(parser)
    add_revision(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command. The continuation goes to standard output, without the prompt, and nothing else does; images go to a file."""
    check_arguments(arguments)
    has_text = arguments.prompt is not None or arguments.prompt_file is not None
    if images.are_asked_for(arguments, has_text):
        return make_images(arguments)
    if not has_text:
        raise ValueError(
            "nothing to generate from: give --prompt or --prompt-file, or, for images, --output grid.png and perhaps --image"
        )
    from transformers.utils import logging

    from ..training.machine import pick_device
    from ..training.vocabulary import load_tokenizer
    from .loading import load_config, load_model, model_folder
    from .prompt import encode, longest_prompt, read_prompt
    from .streaming import TokenStreamer

    logging.disable_progress_bar()
    device, revision = pick_device(arguments.device or "auto"), arguments.revision
    name = model_folder(arguments.model, revision)
    config = load_config(name, revision)
    if not getattr(config, "is_decoder", True):
        raise ValueError(
            f"model {name} is not a causal language model (`is_decoder` is false): it cannot continue text"
        )
    tokenizer, positions = (
        load_tokenizer(name, config.maximum_length, revision, config.vocab_size),
        config.maximum_length,
    )
    most = longest_prompt(tokenizer, positions)
    prompt = read_prompt(arguments.prompt, arguments.prompt_file, arguments.tail_bytes, most)
    input_ids = encode(tokenizer, prompt, positions)
    model = load_model("AutoModelForCausalLM", name, config, device, revision)
    generate(model, tokenizer, input_ids, TokenStreamer(tokenizer, sys.stdout), arguments)
    return 0


def make_images(arguments) -> int:
    """The command for images."""
    images.check_arguments(arguments)
    from transformers.utils import logging

    from ..training.machine import pick_device
    from .loading import load_config, load_model, model_folder

    logging.disable_progress_bar()
    device, revision = pick_device(arguments.device or "auto"), arguments.revision
    name = model_folder(arguments.model, revision)
    config, processor = load_config(name, revision), images.load_processor(name, revision)
    model = load_model("AutoModelForCausalLM", name, config, device, revision)
    print(images.make(model, processor, device, arguments))
    return 0


def generate(model, tokenizer, input_ids, streamer, arguments) -> None:
    """Runs `model.generate` with the arguments of the command line."""
    import torch

    how = {"do_sample": False}
    if arguments.temperature > 0:
        # without top_k=0 transformers draws from the 50 likeliest only
        how = {"do_sample": True, "temperature": float(arguments.temperature), "top_p": arguments.top_p, "top_k": 0}
    if arguments.num_hashes is not None:
        how["num_hashes"] = arguments.num_hashes
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed)
    input_ids = input_ids.to(model.device)
    model.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=arguments.max_new_tokens or NEW_TOKENS,
        streamer=streamer, pad_token_id=tokenizer.pad_token_id, **how,
    )  # fmt: skip


def check_arguments(arguments) -> None:
    """Raises `ValueError` for a number out of range."""
    from ..model.generation import COLDEST, is_temperature

    for name, fits, allowed in (
        ("max_new_tokens", lambda value: value >= 1, "at least 1"),
        ("tail_bytes", lambda value: value >= 1, "at least 1"),
        ("temperature", is_temperature, f"0 or a number of at least {COLDEST}"),
        ("top_p", lambda value: 0 < value <= 1, "above 0 and at most 1"),
        ("num_hashes", lambda value: value >= 1, "at least 1"),
        ("seed", lambda value: 0 <= value < 2**64, "at least 0 and below 2 to the power of 64"),
    ):
        value = getattr(arguments, name)
        if value is not None and not fits(value):
            raise ValueError(f"--{name.replace('_', '-')} is {value}, but must be {allowed}")
