"""`hf-reformer generate`: a model continues a prompt; the text appears as it is made."""

import argparse
import os
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TextStreamer
from transformers.utils import logging

from ..model.tokenization_reformer import NUM_BYTES, NUM_SPECIAL_TOKENS, ReformerByteTokenizer
from .byte_streamer import ByteStreamer


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    parser = subparsers.add_parser("generate", help="continue a prompt", description=__doc__)
    parser.add_argument("model", help="folder of a checkpoint, or its name on the Hub")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", help="text to continue")
    prompt.add_argument("--prompt-file", metavar="FILE", help="file to continue, byte for byte; - for standard input")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="default %(default)s")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest (default %(default)s)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw from the likeliest tokens that make up this much"
    )
    parser.add_argument("--num-hashes", type=int, metavar="N", help="rounds of hashing (default: the model's)")
    parser.add_argument("--seed", type=int, help="of the drawing (default: another text every time)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command. The continuation goes to standard output, without the prompt, and nothing else does."""
    check_arguments(arguments)
    prompt = read_prompt(arguments)
    logging.disable_progress_bar()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without such a character shows a question mark
    tokenizer, model = load(arguments.model, pick_device(arguments.device))
    input_ids, tail = encode(tokenizer, prompt)
    if isinstance(tokenizer, ReformerByteTokenizer):
        streamer = ByteStreamer(tokenizer, sys.stdout, tail)
    else:
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    try:
        generate(model, tokenizer, input_ids, streamer, arguments)
    except BrokenPipeError:  # whoever read the text has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def generate(model, tokenizer, input_ids, streamer, arguments) -> None:
    """Runs `model.generate` with the arguments of the command line."""
    how = {"do_sample": False}
    if arguments.temperature > 0:
        how = {"do_sample": True, "temperature": arguments.temperature, "top_p": arguments.top_p, "top_k": 0}
    if arguments.num_hashes is not None:
        how["num_hashes"] = arguments.num_hashes
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed)
    input_ids = input_ids.to(model.device)
    model.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=arguments.max_new_tokens,
        streamer=streamer, pad_token_id=tokenizer.pad_token_id, **how,
    )  # fmt: skip


def check_arguments(arguments) -> None:
    """Raises `ValueError` for a number out of range."""
    for name, fits, allowed in (
        ("max_new_tokens", arguments.max_new_tokens >= 1, "at least 1"),
        ("temperature", arguments.temperature >= 0, "at least 0"),
        ("top_p", 0 < arguments.top_p <= 1, "above 0 and at most 1"),
        ("num_hashes", arguments.num_hashes is None or arguments.num_hashes >= 1, "at least 1"),
    ):
        if not fits:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}, but must be {allowed}")


def read_prompt(arguments) -> bytes:
    """The prompt as bytes, at least one of them."""
    if arguments.prompt is not None:
        prompt, source = os.fsencode(arguments.prompt), "--prompt"
    else:
        source = f"--prompt-file {arguments.prompt_file}"
        try:
            prompt = (
                sys.stdin.buffer.read() if arguments.prompt_file == "-" else Path(arguments.prompt_file).read_bytes()
            )
        except OSError as error:
            raise ValueError(f"{source} cannot be read: {error.strerror}") from error
    if not prompt:
        raise ValueError(f"{source} is empty, but must hold something to continue")
    return prompt


def pick_device(name) -> torch.device:
    """`auto` is a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device is {name}, which cannot be used here: {str(error).splitlines()[0]}") from error


def load(name, device):
    """Tokenizer and causal language model, in evaluation mode on `device`."""
    try:
        config = AutoConfig.from_pretrained(name)
        if not getattr(config, "is_decoder", True):
            raise ValueError(
                f"model {name} is not a causal language model (`is_decoder` is false): it cannot continue text"
            )
        model = AutoModelForCausalLM.from_pretrained(name, config=config)
    except OSError as error:
        raise ValueError(f"model {name} cannot be loaded: {error}") from error
    return load_tokenizer(name, config), model.to(device).eval()


def load_tokenizer(name, config):
    """The checkpoint's own; bytes for one that brings none and has a byte vocabulary (as `google/reformer-enwik8`)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        if len(tokenizer) <= config.vocab_size and tokenizer("a").input_ids:
            return tokenizer
    except Exception as error:  # what a missing tokenizer raises differs from version to version
        reason = error
    else:
        reason = f"its tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}"
    if config.vocab_size == NUM_SPECIAL_TOKENS + NUM_BYTES:
        return ReformerByteTokenizer(model_max_length=config.maximum_length)
    raise ValueError(f"model {name} has no tokenizer that can be used: {reason}") from None


def encode(tokenizer, prompt: bytes) -> tuple[torch.Tensor, bytes]:
    """Token ids (1, L) of the prompt, and its last bytes where they are an unfinished character."""
    if isinstance(tokenizer, ReformerByteTokenizer):
        return torch.tensor([tokenizer.encode_bytes(prompt)]), unfinished_character(prompt)
    try:
        text = prompt.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the prompt is not UTF-8 ({error.reason} at byte {error.start}): this model's tokenizer takes text only"
        ) from error
    return tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids, b""


def unfinished_character(data: bytes) -> bytes:
    """The bytes at the end that start a UTF-8 character and do not end it."""
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[-length:] if length < needed else b""
        if byte < 0x80:
            break
    return b""
