"""Public entries and how their arguments are drawn. Each is a function of `draw` that gives (action, description of the case).

An action asserts what a right result is: finite numbers, the text that went in, the output of the row alone.
"""

import contextlib
import copy
import dataclasses
import functools
import io
import math
import re
import tempfile
import types
import warnings
from pathlib import Path

import numpy as np
import torch
from helpers import build, tiny_config, tokens
from hypothesis import strategies as st
from siege import Finding

import hf_reformer
from hf_reformer import ReformerByteTokenizer, ReformerCache, ReformerConfig, ReformerImageProcessor
from hf_reformer.cli import main
from hf_reformer.training.recipes import load_recipe
from hf_reformer.training.settings import recipe_names

KINDS = ["local", "lsh", "strict_local", "strict_lsh", "full", "full_shared_qk"]
STRICT = ["strict_local", "strict_lsh", "full"]
HUGE = [2**31, 2**63 - 1, -(2**63), 10**30]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.sampled_from(HUGE), st.floats(width=32), st.text(max_size=5),
    st.sampled_from(["lsh", "auto", "relu", "no", "", "\0", "\ud800", b"bytes", 1j]),
)  # fmt: skip
ODD = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.tuples(SCALARS, SCALARS),
    st.dictionaries(st.text(max_size=3), SCALARS, max_size=2),
)
DTYPES = [torch.int64, torch.int32, torch.uint8, torch.int16, torch.float32, torch.float16, torch.bfloat16, torch.float64,
          torch.bool, torch.complex64]  # fmt: skip
VALUES = [0, 1, 2, -1, 18, 19, 255, 1e4, -100]


@functools.cache
def model_of(head, kinds, reversible=True):
    decoder = head in ("ReformerModelWithLMHead", "ReformerModel")
    more = (
        {"is_encoder_decoder": True, "decoder_attn_layers": ["strict_local", "full"]} if "Conditional" in head else {}
    )
    config = tiny_config(kinds, is_decoder=decoder, reversible=reversible, **more)
    return build(config, getattr(hf_reformer, head), dtype=torch.float32)


@st.composite
def odd_tensors(draw):
    shape = draw(st.lists(st.integers(0, 11), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    value = draw(st.sampled_from(VALUES))
    return torch.full(shape, value % 256 if dtype == torch.uint8 else value).to(dtype)


def finite(output):
    """Every floating-point tensor of an output holds numbers only."""
    for name, value in output.items():
        if torch.is_tensor(value) and value.is_floating_point() and not bool(value.isfinite().all()):
            raise Finding(f"{name} is not finite")


def quietly(action):
    """Without what transformers has to say about it."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return action()


# --- configurations -------------------------------------------------------------------------------------------------

FIELDS = [
    field.name
    for field in dataclasses.fields(ReformerConfig)
    if field.name not in ("attn_layers", "transformers_version") and not field.name.startswith("_")
]


def too_large(value):
    values = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(x, (int, float)) and abs(x) > 300 for x in values)


def configuration(draw):
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    changes = draw(st.dictionaries(st.sampled_from(FIELDS), ODD, min_size=1, max_size=3))
    head = draw(st.sampled_from(["ReformerModelWithLMHead", "ReformerModel", "ReformerForSequenceClassification"]))

    def action():
        config = quietly(lambda: tiny_config(kinds, **changes))
        again = ReformerConfig.from_dict(config.to_dict())
        for name in changes:
            ours, theirs = (
                list(x) if isinstance(x, tuple) else x for x in (getattr(config, name), getattr(again, name))
            )
            assert ours == theirs or (ours != ours), f"{name} is {ours!r}, saved and read {theirs!r}"
        if any(too_large(value) for value in config.to_dict().values()):
            return
        model = quietly(lambda: getattr(hf_reformer, head)(config)).eval()
        length = min(config.maximum_length, 13)
        with torch.no_grad():
            finite(quietly(lambda: model(torch.zeros(2, length, dtype=torch.long))))

    return action, lambda: (kinds, changes, head)


# --- forwards -------------------------------------------------------------------------------------------------------

HEADS = ["ReformerModel", "ReformerModelWithLMHead", "ReformerForMaskedLM", "ReformerForSequenceClassification",
         "ReformerForTokenClassification", "ReformerForQuestionAnswering", "ReformerForConditionalGeneration"]  # fmt: skip
ARGUMENTS = ["input_ids", "inputs_embeds", "attention_mask", "position_ids", "labels", "num_hashes", "use_cache",
             "past_key_values", "output_hidden_states", "output_attentions", "return_dict", "logits_to_keep", "start_positions",
             "end_positions", "decoder_input_ids", "decoder_attention_mask", "encoder_outputs", "decoder_inputs_embeds",
             "shift_labels", "num_items_in_batch", "token_type_ids", "decoder_position_ids"]  # fmt: skip


def sound_arguments(draw, head, length):
    """Arguments that fit together, some of them left out."""
    ids = torch.arange(2 * length).reshape(2, length) % 19
    every = {"attention_mask": torch.ones(2, length, dtype=torch.long), "num_hashes": draw(st.integers(1, 3))}
    if head in ("ReformerModelWithLMHead", "ReformerForMaskedLM"):
        every["labels"] = ids
    if head == "ReformerForConditionalGeneration":
        every["decoder_input_ids"] = ids[:, :5]
    left_out = draw(st.sets(st.sampled_from(sorted(every))))
    kept = {name: value for name, value in every.items() if name not in left_out or name == "decoder_input_ids"}
    return {"input_ids": ids, **kept}


def forward(draw):
    head = draw(st.sampled_from(HEADS))
    kinds = draw(st.sampled_from([("local", "lsh"), ("strict_local", "strict_lsh"), ("full", "full_shared_qk")]))
    model = model_of(head, kinds)
    given = sound_arguments(draw, head, draw(st.integers(1, 23)))
    given |= draw(st.dictionaries(st.sampled_from(ARGUMENTS), st.one_of(ODD, odd_tensors()), max_size=2))

    def action():
        with torch.no_grad():
            output = quietly(lambda: model(**given))
        finite(output if isinstance(output, dict) else dict(enumerate(output)))

    return action, lambda: (
        head,
        kinds,
        {k: (tuple(v.shape), v.dtype) if torch.is_tensor(v) else v for k, v in given.items()},
    )


def mask(draw):
    """Padding on either side and in the middle: real tokens of strict layers are as in the row alone."""
    kinds = tuple(draw(st.lists(st.sampled_from(STRICT), min_size=2, max_size=2)))
    model = model_of(draw(st.sampled_from(["ReformerForMaskedLM", "ReformerModelWithLMHead"])), kinds)
    length = draw(st.integers(1, 29))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=1, max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 9))

    def action():
        real = torch.tensor(rows)
        input_ids = tokens(model.config, len(rows), length, seed)
        with torch.no_grad():
            logits = quietly(lambda: model(input_ids, attention_mask=real.to(dtype)).logits)
            finite({"logits": logits})
            for row, kept, found in zip(input_ids, real, logits, strict=True):
                if kept.any():
                    alone = model(row[kept][None]).logits[0]
                    error = float((found[kept] - alone).abs().max())
                    assert error < 2e-4 * float(alone.abs().max() + 1), f"padding changed a real token by {error}"

    return action, lambda: (kinds, rows, dtype)


# --- caches ---------------------------------------------------------------------------------------------------------

OPERATIONS = ["feed", "crop", "fork", "repeat", "select", "reorder", "reset", "odd"]


def cache(draw):
    """Any row of operations on a cache; at its end the next logits are those of a full forward over what it should hold."""
    kinds = tuple(draw(st.lists(st.sampled_from(["strict_local", "strict_lsh", "full"]), min_size=2, max_size=2)))
    model = model_of("ReformerModelWithLMHead", kinds)
    steps = draw(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 9)), max_size=7))
    odd = draw(st.one_of(ODD, odd_tensors()))

    def action():
        held, known = ReformerCache(model.config), tokens(model.config, 2, 0)
        for what, number in [*steps, ("feed", 1)]:
            held, known = operate(model, held, known, what, number, odd)

    return action, lambda: (kinds, steps, odd)


def operate(model, held, known, what, number, odd):
    """One operation on the cache `held`, in which the tokens `known` (B, L) are."""
    length = known.shape[1]
    if what == "feed" and length + number < 60:
        more = tokens(model.config, len(known), max(number, 1), number)
        both = torch.cat([known, more], 1)
        with torch.no_grad():
            found, wanted = model(more, past_key_values=held).logits, model(both).logits[:, length:]
        assert float((found - wanted).abs().max()) < 2e-4 * float(wanted.abs().max() + 1), "a cached token differs"
        return held, both
    if what == "crop":
        held.crop(-number)
        return held, known[:, : max(0, length - number)]
    if what == "fork":
        return copy.deepcopy(held), known
    if what == "repeat" and len(known) < 9:
        held.batch_repeat_interleave(1 + number % 3)
        return held, known.repeat_interleave(1 + number % 3, dim=0)
    if what in ("select", "reorder"):
        rows = torch.arange(len(known)).roll(number)
        held.batch_select_indices(rows) if what == "select" else held.reorder_cache(rows)
        return held, known[rows]
    if what == "reset":
        held.reset()
        return held, known[:, :0]
    if what == "odd":
        names = ["crop", "reorder_cache", "batch_repeat_interleave", "batch_select_indices"]
        with contextlib.suppress(ValueError):  # refused: the cache is as it was, which the next step shows
            before = held.get_seq_length()
            getattr(held, names[number % 4])(odd)
            return resized(held, known, before)
    return held, known


def resized(held, known, before):
    """What an odd argument that was taken has made of the tokens is known no more; the cache begins anew."""
    assert held.get_seq_length() <= before
    held.reset()
    return held, known[:, :0]


# --- tokenizers and processors --------------------------------------------------------------------------------------


def tokenizer(draw):
    text = draw(st.one_of(st.text(max_size=40), st.lists(st.text(max_size=9), max_size=3), SCALARS))
    options = draw(
        st.fixed_dictionaries(
            {}, optional={"padding": SCALARS, "truncation": SCALARS, "max_length": SCALARS, "return_tensors": SCALARS,
                          "add_special_tokens": st.booleans(), "split_special_tokens": st.booleans(),
                          "is_split_into_words": st.booleans(), "return_offsets_mapping": st.booleans()},
        )
    )  # fmt: skip
    made = ReformerByteTokenizer(model_max_length=64)

    def action():
        found = quietly(lambda: made(text, **options))
        if (
            isinstance(text, str)
            and not options.get("truncation")
            and not set(options) - {"add_special_tokens", "split_special_tokens"}
        ):
            assert made.decode(found.input_ids) == text

    return action, lambda: (text, options)


def token_bytes(draw):
    data = draw(st.one_of(st.binary(max_size=40), ODD))
    ids = draw(st.one_of(st.lists(st.integers(-2, 300), max_size=9), ODD, odd_tensors()))
    made = ReformerByteTokenizer()

    def action():
        if isinstance(data, bytes):
            assert made.decode_bytes(made.encode_bytes(data)) == data
            assert made.decode_bytes(torch.tensor(made.encode_bytes(data), dtype=torch.long)) == data
        else:
            try:
                made.encode_bytes(data)
            except ValueError as error:
                assert "data" in str(error)
            else:
                raise Finding("encode_bytes took what is no bytes")
        made.decode_bytes(ids)

    return action, lambda: (data, ids)


@st.composite
def pictures(draw):
    """PIL images of every mode, arrays and tensors of every type and shape."""
    from PIL import Image

    kind = draw(st.integers(0, 2))
    if kind == 0:
        channels = draw(st.sampled_from([1, 3, 4]))
        shape = draw(st.sampled_from([(4, 4, channels), (channels, 5, 7), (6, 5), (2, 4, 4, 3), (9, 2, 3)]))
        return np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, shape, np.uint8)
    if kind == 1:
        mode = draw(
            st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
        )
        return Image.new(mode, (draw(st.integers(0, 9)), draw(st.integers(0, 9))))
    shape = draw(st.lists(st.integers(0, 7), max_size=5))
    dtype = draw(
        st.sampled_from(["uint8", "int8", "int64", "uint16", "float32", "float16", "bool", "complex64", "O", "U3"])
    )
    array = np.full(shape, draw(st.sampled_from([0, 1, 100]))).astype(dtype)
    return torch.from_numpy(array) if draw(st.booleans()) and dtype not in ("O", "U3") else array


def image(draw):
    given = draw(st.one_of(pictures(), pictures(), pictures(), st.lists(pictures(), max_size=2), ODD))
    names = ["size", "crop_size", "do_resize", "do_center_crop", "resample", "token_offset", "token_dtype", "first_values",
             "return_tensors", "input_data_format", "do_convert_rgb", "do_normalize", "do_rescale", "rows"]  # fmt: skip
    sizes = st.fixed_dictionaries({"height": st.integers(-1, 9), "width": st.integers(-1, 9)})
    options = draw(st.one_of(st.just({}), st.dictionaries(st.sampled_from(names), st.one_of(ODD, sizes), max_size=2)))
    at_start = draw(st.booleans())
    whole = draw(st.booleans())

    def action():
        start = {k: v for k, v in options.items() if k not in ("return_tensors", "input_data_format", "rows")}
        more = {} if at_start else options
        made = ReformerImageProcessor(**(start if at_start else {"size": {"height": 4, "width": 4}}))
        if not whole:
            made.upper_rows(given, rows=options.get("rows", 2), input_data_format=options.get("input_data_format"))
            return
        if "rows" in more:
            return
        found = quietly(lambda: made(given, **more))["input_ids"]
        assert all(int(np.min(row)) >= 0 and int(np.max(row)) < 256 + 2**63 for row in found)
        if not more and not start:
            assert all(np.array_equal(made(made.decode(row))["input_ids"][0], row) for row in found)

    return action, lambda: (
        given if not hasattr(given, "shape") else (given.shape, given.dtype),
        options,
        at_start,
        whole,
    )


def image_back(draw):
    row = st.lists(st.integers(0, 255), min_size=12, max_size=12)
    ids = draw(
        st.one_of(
            ODD,
            odd_tensors(),
            st.lists(st.lists(st.integers(-1, 300), max_size=12), max_size=2),
            st.lists(row, max_size=2),
        )
    )
    size = draw(
        st.one_of(ODD, st.none(), st.fixed_dictionaries({"height": st.integers(-1, 4), "width": st.integers(-1, 4)}))
    )
    output = draw(st.one_of(st.sampled_from(["np", "pt", "pil"]), ODD))
    made = ReformerImageProcessor(size={"height": 2, "width": 2}, do_convert_rgb=draw(st.booleans()))
    return lambda: made.post_process(ids, size, output), lambda: (ids, size, output)


# --- recipes and the command line -----------------------------------------------------------------------------------

SECTIONS = ["model", "data", "training", "evaluation", "peft", "smoke", "name"]
KEYS = [
    "num_hashes", "hidden_size", "attn_layers", "context", "files", "window_plan", "training_range", "max_steps",
    "learning_rate", "seed", "optim", "examples", "temperature", "r", "size", "alike", "length", "symbols",
    "tokenizer", "vocab_size", "format", "pretrained", "dtype", "no_such_key", "axial_pos_shape",
    "max_position_embeddings", "per_device_train_batch_size",
]  # fmt: skip
YAML_VALUES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["1", "-1", "1e-3", ".nan", ".inf", "[1, 2]", "{a: 1}", "null", "true", "!!python/object:os.x", "&a [*a]", "[" * 60,
         "2001-01-01", "!!binary aGk=", "0x10", "1_000", "~", "<<: 3"]
    ),
)  # fmt: skip


def recipe(draw):
    name = draw(st.sampled_from([*recipe_names(), *recipe_names(), "no-such", "", "/", "x.yaml"]))
    texts = st.builds("{}.{}={}".format, st.sampled_from(SECTIONS), st.sampled_from(KEYS), YAML_VALUES)
    triples = st.tuples(st.sampled_from(SECTIONS[:5]), st.sampled_from(KEYS), ODD)
    changes = draw(st.lists(st.one_of(texts, triples, st.text(max_size=9)), max_size=3))
    smoke = draw(st.booleans())

    def action():
        made = load_recipe(name, changes, smoke)
        again = load_recipe(name, changes, smoke)
        assert repr(made) == repr(again)

    return action, lambda: (name, changes, smoke)


WORDS = [
    "quickstart", "train", "evaluate", "predict", "generate", "convert", "serve", "text-16k", "emoji-16", "NOWHERE",
    "FILE", "EMPTY", "--prompt", "--prompt-file", "--tail-bytes", "--max-new-tokens", "--temperature", "--top-p",
    "--num-hashes", "--seed", "--image", "--rows", "--samples", "--output", "--scale", "--device", "--data",
    "--recipe", "--set", "--smoke", "--resume", "--minutes", "--quiet", "--batch-size", "--question", "--beams",
    "--to", "--config", "--tokenizer", "--max-length", "--threads", "--revision", "1", "0", "-1", "3", "nan", "inf",
    "1e9", "x", "", "cpu", "cuda", "byte", "trax", "\ud800", "\0", "model.num_hashes=0", "data.context=1", "Once",
    "out.png", "--help", "--version", "ü", "text", "imagenet64", "-",
]  # fmt: skip
COMMANDS = ["train", "evaluate", "predict", "generate", "generate", "convert", "convert", "quickstart"]


def command_line(draw):
    """In this process. What would take minutes (a sound `train`, `quickstart`, `serve`) is made unsound at its end."""
    command = draw(st.sampled_from(COMMANDS))
    argv = [command, *draw(st.lists(st.sampled_from(WORDS), max_size=6))]
    if command == "generate":
        argv += ["--max-new-tokens", "3"] if draw(st.booleans()) else ["--prompt", "On", "--max-new-tokens", "2"]
    if command in ("train", "quickstart", "evaluate"):
        argv += ["--set", "training.max_steps=-1"] if command != "quickstart" else ["--steps", "-1"]
    argv = ["predict" if word in ("serve", "push") else word for word in argv]

    def action():
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.chdir(folder) if hasattr(contextlib, "chdir") else chdir(folder),
        ):
            Path("FILE").write_bytes(b"some text\nand more\n")
            Path("EMPTY").mkdir()
            code, said = run_command(argv)
            left = [str(path) for path in Path().rglob("*") if re.search(r"\.(tmp|old)$", path.name)]
        assert code in (0, 1, 2), f"exit code {code}: {said[-200:]}"
        lines = [line for line in said.strip().splitlines() if line]
        assert not code or (lines and "Traceback" not in said), f"code {code} says {said[-300:]!r}"
        assert not code or lines[-1].startswith("hf-reformer"), f"code {code} ends with {lines[-1]!r}"
        assert not left, f"left behind: {left}"

    return action, lambda: argv


@contextlib.contextmanager
def chdir(folder):
    import os

    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_command(argv):
    """(exit code, what stderr was told)."""
    errors, output = io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    threads = torch.get_num_threads()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code = main(argv)
        except SystemExit as end:
            code = end.code
        finally:
            torch.set_num_threads(threads)
    return code, errors.getvalue()


def generation(draw):
    kinds = draw(st.sampled_from([("local", "lsh"), ("strict_local", "strict_lsh"), ("full", "strict_lsh")]))
    model = model_of("ReformerModelWithLMHead", kinds)
    length, rows = draw(st.integers(0, 9)), draw(st.integers(0, 3))
    options = {
        "max_new_tokens": draw(st.integers(1, 5)),
        "do_sample": draw(st.booleans()),
        "num_beams": draw(st.integers(1, 3)),
    }
    names = ["num_hashes", "attention_mask", "inputs_embeds", "past_key_values", "use_cache", "num_hash"]
    options |= draw(st.dictionaries(st.sampled_from(names), st.one_of(ODD, odd_tensors()), max_size=1))
    more = draw(
        st.sampled_from(
            [{}, {"temperature": 1e-3}, {"temperature": 1e4}, {"top_p": 0.01}, {"prompt_lookup_num_tokens": 2}]
        )
    )
    if more and "prompt_lookup_num_tokens" in more:
        options["num_beams"] = 1

    def action():
        found = quietly(
            lambda: model.generate(tokens(model.config, rows, length), pad_token_id=0, **{**options, **more})
        )
        assert found.shape[0] == rows and length < found.shape[1] <= length + options["max_new_tokens"]
        assert int(found.max()) < 19 and int(found.min()) >= 0

    return action, lambda: (kinds, rows, length, options, more)


def loss(draw):
    """Labels of every kind: a loss and gradients that are numbers."""
    head = draw(st.sampled_from(["ReformerModelWithLMHead", "ReformerForMaskedLM", "ReformerForTokenClassification"]))
    model = model_of(head, draw(st.sampled_from([("lsh", "local"), ("strict_lsh", "strict_local")])))
    length = draw(st.integers(1, 17))
    classes = 19 if "LM" in head else model.config.num_labels
    labels = draw(st.lists(st.sampled_from([-100, 0, classes - 1]), min_size=length, max_size=length))
    real = draw(st.lists(st.booleans(), min_size=length, max_size=length))

    def action():
        model.zero_grad()
        made = quietly(
            lambda: model(
                torch.full((1, length), 3), labels=torch.tensor([labels]), attention_mask=torch.tensor([real])
            )
        )
        made.loss.backward()
        assert math.isfinite(made.loss.item())
        finite({name: p.grad for name, p in model.named_parameters() if p.grad is not None})

    return action, lambda: (head, labels, real)


# --- the page of `hf-reformer demo` -----------------------------------------------------------------------------------


@functools.cache
def text_page():
    from hf_reformer.cli.page import TextPage

    config = tiny_config(["strict_local", "strict_lsh"], vocab_size=258, use_cache=True)
    return TextPage(
        "siege", build(config, hf_reformer.ReformerModelWithLMHead, dtype=torch.float32), ReformerByteTokenizer()
    )


def written_page(draw):
    """What the page's functions get from a browser, or from whoever speaks to them without one."""
    prompt = draw(st.one_of(st.text(max_size=40), st.none(), st.text(alphabet="a\0\ud800\n", max_size=80)))
    data = draw(st.one_of(st.none(), st.binary(max_size=200)))
    of = lambda sound: SCALARS.filter(lambda x: not isinstance(x, complex)) if draw(st.integers(0, 9)) == 0 else sound
    count, rounds = draw(of(st.integers(1, 30))), draw(of(st.integers(1, 5)))
    temperature, top_p = draw(of(st.floats(0, 2))), draw(of(st.floats(0.01, 1)))
    seed = draw(of(st.sampled_from(["", " 12 ", None, "3"])).filter(lambda x: x is None or isinstance(x, str)))
    number = draw(of(st.integers(-1, 30)))

    def action():
        import gradio

        page, request = text_page(), types.SimpleNamespace(session_hash="one")
        with tempfile.NamedTemporaryFile() as file:
            file.write(data or b"")
            file.flush()
            try:
                given = (prompt, None if data is None else file.name, count, temperature, top_p, rounds, seed)
                *_, (text, said, written, _) = page.write(*given, request)
                assert isinstance(text, str) and "new tokens" in said and len(written.tokens) <= count
                *_, (picture, found, _) = page.look(written, number, request)
                assert picture.size[0] > 100 and found.startswith("<p>Token")
            except gradio.Error as error:
                assert "fault of the program" not in error.message, error.message
                raise ValueError(error.message) from error

    return action, lambda: (prompt, data, count, temperature, top_p, rounds, seed, number)


ENTRIES = {
    "configurations": configuration,
    "forwards": forward,
    "masks": mask,
    "losses and gradients": loss,
    "caches": cache,
    "generation": generation,
    "tokenizer": tokenizer,
    "bytes and ids": token_bytes,
    "image processor": image,
    "images from tokens": image_back,
    "recipes and changes": recipe,
    "command line": command_line,
    "page": written_page,
}
