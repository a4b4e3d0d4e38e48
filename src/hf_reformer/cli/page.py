"""The page of `hf-reformer demo`, by Gradio: to write with a causal model and see what it looked at, or to complete images."""

import io
import math
import os
import threading
import time
import traceback
from dataclasses import dataclass, field
from types import SimpleNamespace

import gradio as gr

from . import generate, images, page_attention
from .failures import exit_code, one_line
from .page_desk import Desk, Waiting

NEW_TOKENS = 400  # at first
MOST_ROUNDS = 16
LARGEST_FILE = "64mb"
THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)  # none from a network
CSS = "#written textarea {font-family: var(--font-mono)} #places td {padding: 0 0.6em; white-space: nowrap}"


def build(name: str, device: str, revision: str | None) -> "Page":
    """The page of a model: of images, if it has an image processor, or else of text.

    Raises:
        ValueError: for a model that is not there, or not causal.
    """
    from transformers.utils import cached_file

    from ..training.machine import pick_device
    from ..training.vocabulary import load_tokenizer
    from .loading import load_config, load_model, model_folder

    folder, device = model_folder(name, revision), pick_device(device)
    config = load_config(folder, revision)
    if not getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"model {name} is not a causal language model (`is_decoder`), but must be one for the page")
    look = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    of_images = any(cached_file(folder, file, **look) for file in images.PROCESSOR_FILES)
    processor = images.load_processor(folder, revision) if of_images else None
    tokenizer = None if of_images else load_tokenizer(folder, config.maximum_length, revision, config.vocab_size)
    model = load_model("AutoModelForCausalLM", folder, config, device, revision)
    return ImagePage(name, model, processor) if of_images else TextPage(name, model, tokenizer)


class Page:
    """What both have: one model, one desk where visitors are served, and their stop buttons."""

    def __init__(self, name, model):
        self.name, self.model, self.desk = name, model, Desk()
        self.stops = {}  # of the visitors: an event of each of their jobs
        with gr.Blocks(
            title=f"{name} - hf_reformer", analytics_enabled=False, delete_cache=(3600, 3600)
        ) as self.blocks:
            config = model.config
            gr.Markdown(
                f"# {name}\n{sum(p.numel() for p in model.parameters()):,} parameters, {config.maximum_length:,} tokens of "
                f"context, layers {', '.join(dict.fromkeys(config.attn_layers))}. Everything stays on this machine."
            )
            self.lay_out()
            self.blocks.unload(self.stop)

    def open(self, host: str, port: int | None, no_browser: bool, block: bool = True) -> str:
        """Serves the page, until it is interrupted where it blocks; gives its address otherwise."""
        self.blocks.queue(default_concurrency_limit=None)  # the desk says who waits for whom
        _, address, _ = self.blocks.launch(
            server_name=host, server_port=port, inbrowser=not no_browser, prevent_thread_lock=not block, quiet=not block,
            show_error=True, max_file_size=LARGEST_FILE, footer_links=[], theme=THEME, css=CSS, ssr_mode=False, share=False,
        )  # fmt: skip
        return address

    def stop(self, request: gr.Request):
        """Ends the visitor's jobs, or takes them out of the line; also when the page is closed."""
        for event in self.stops.pop(request.session_hash, ()):
            event.set()

    def serve(self, job, request):
        """Yields what a job reports; its errors are shown on the page."""
        stop = threading.Event()
        self.stops.setdefault(request.session_hash, []).append(stop)
        try:
            yield from self.desk.serve(job, stop)
        except Exception as error:
            raise shown(error) from error
        finally:
            if stop in (own := self.stops.get(request.session_hash, [])):
                own.remove(stop)


def shown(error: Exception) -> gr.Error:
    """The error as the page shows it; a programming error is printed with its trace too."""
    if exit_code(error) is None:
        traceback.print_exception(error)
        return gr.Error(
            f"{type(error).__name__}: {one_line(error)} (a fault of the program: its trace is in the terminal)"
        )
    return gr.Error(one_line(error), duration=None)


def said(text: str) -> str:
    """HTML of the line that says what goes on, which screen readers speak."""
    return f'<p role="status" aria-live="polite">{text}</p>'


def said_of(waiting: Waiting) -> str:
    others = "1 visitor is" if waiting.before == 1 else f"{waiting.before} visitors are"
    return said(f"{others} before you; your turn comes.")


def drawing(model):
    """The controls of how tokens are drawn: temperature, top_p, rounds, seed."""
    temperature = gr.Slider(0.0, 2.0, 0.8, step=0.05, label="Temperature", info="0: always the likeliest")
    top_p = gr.Slider(0.05, 1.0, 0.95, step=0.05, label="Top-p", info="the likeliest that make up this much")
    hashes = any(kind in ("lsh", "strict_lsh") for kind in model.config.attn_layers)
    rounds = gr.Slider(
        1, MOST_ROUNDS, model.config.num_hashes, step=1, label="Rounds of hashing", info="more find more, slower",
        visible=hashes,
    )  # fmt: skip
    seed = gr.Textbox("", label="Seed", info="empty: another result every time", max_lines=1)
    return [temperature, top_p, rounds, seed]


def number_of(name: str, value) -> float:
    """What a slider gave, which may have been emptied."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, but must be a number")
    return value


def arguments_of(temperature, top_p, rounds, seed, **others):
    """As those of `hf-reformer generate`, checked as there."""
    seed = (seed or "").strip()
    if seed and not (seed.isascii() and seed.isdecimal()):
        raise ValueError(f"the seed is {seed!r}, but must be a whole number, or nothing")
    arguments = SimpleNamespace(
        temperature=number_of("the temperature", temperature), top_p=number_of("top-p", top_p),
        num_hashes=int(number_of("the number of rounds", rounds)), seed=int(seed) if seed else None, tail_bytes=None,
        max_new_tokens=None,
    )  # fmt: skip
    arguments.__dict__.update(others)
    generate.check_arguments(arguments)
    return arguments


# --- text ---------------------------------------------------------------------------------------------------------------


@dataclass
class Written:
    """A text as it grows: the tokens of the prompt, those that came, and the times of first and last."""

    prompt: list[int]
    rounds: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    asked: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    last: float = 0.0

    def add(self, token: int) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.tokens.append(token)


class TextPage(Page):
    """A prompt or a long text, continued as one watches; then, for each new token, what the model looked at."""

    def __init__(self, name, model, tokenizer):
        self.tokenizer = tokenizer
        super().__init__(name, model)

    def lay_out(self):
        most = self.model.config.maximum_length
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                prompt = gr.Textbox(
                    label="Your text", lines=5, max_lines=14, autofocus=True, placeholder="Shift + Enter writes on"
                )
                file = gr.File(label="A long text to stand before it (optional)", height=150)
                with gr.Row():
                    write = gr.Button("Write", variant="primary", elem_id="write", min_width=120)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=120)
                status = gr.HTML(said("Nothing is written yet."), elem_id="status")
                text = gr.Textbox(
                    label="What the model writes", lines=10, max_lines=24, elem_id="written", buttons=["copy"]
                )
            with gr.Column(scale=1, min_width=220):
                count = gr.Slider(1, most - 1, min(NEW_TOKENS, most // 2), step=1, label="New tokens, at most")
                how = drawing(self.model)
        with gr.Accordion("What did it look at?", open=True):
            number = gr.Slider(1, 2, 1, step=1, label="Which of the new tokens", interactive=True, elem_id="number")
            look = gr.Button("Show", elem_id="look")
            picture = gr.Image(
                label="By layer, head and round",
                interactive=False,
                elem_id="picture",
                buttons=["download", "fullscreen"],
            )
            found = gr.HTML(elem_id="places")
        written = gr.State()
        # `written` is what the visitor's browser does not see: the tokens
        steps = {"inputs": [prompt, file, count, *how], "outputs": [text, status, written, number]}
        write.click(self.write, **steps, show_progress="hidden", api_name="write")
        prompt.submit(self.write, **steps, show_progress="hidden", api_name=False)
        stop.click(self.stop, queue=False, api_name="stop")
        look.click(self.look, [written, number], [picture, found, status], api_name="look")

    def write(self, prompt, file, count, temperature, top_p, rounds, seed, request: gr.Request):
        """Yields the text, what goes on, the tokens, and how many of them can be looked at."""
        try:
            arguments = arguments_of(
                temperature, top_p, rounds, seed, max_new_tokens=int(number_of("the number of new tokens", count))
            )
            ids, cut = self.tokens_of(prompt, file, arguments.max_new_tokens)
        except Exception as error:
            raise shown(error) from error
        written = Written(ids[0].tolist(), arguments.num_hashes)
        yield "", said(f"Reading {ids.shape[1]:,} tokens. {cut}"), None, gr.skip()
        job = lambda report: generate.generate(
            self.model, self.tokenizer, ids, watched(self.tokenizer, written, report), arguments
        )
        for report in self.serve(job, request):
            if isinstance(report, Waiting):
                yield gr.skip(), said_of(report), gr.skip(), gr.skip()
            else:
                yield report.text, said(f"{self.rate(report)} {cut}"), gr.skip(), gr.skip()
        done = f"{self.rate(written)} {cut}" if written.tokens else "Stopped before the first token."
        seen = gr.Slider(maximum=max(2, len(written.tokens)), value=1)
        yield written.text, said(done), written if written.tokens else None, seen

    def tokens_of(self, prompt, file, count):
        """(1, L) ids that leave room for `count` new tokens, and what was cut, in words."""
        from .prompt import encode, last_bytes, longest_prompt

        most = self.model.config.maximum_length
        data, size = b"", 0
        if file is not None:
            with open(file, "rb") as opened:
                data, size = last_bytes(opened, longest_prompt(self.tokenizer, most)), os.path.getsize(file)
        typed = (prompt or "").encode("utf-8", "replace")  # half of a character can be typed no further
        data, size = data + typed, size + len(typed)
        if not data:
            raise ValueError("there is nothing to continue: type some text, or give a file")
        ids = encode(self.tokenizer, data, 1 + 4 * len(data))  # of any length: it is cut here
        room = most - count
        if room < 1:
            raise ValueError(f"{count:,} new tokens leave no room for a prompt: the model takes {most:,} tokens in all")
        kept = ids[:, -room:]
        cut = kept.shape[1] < ids.shape[1] or len(data) < size
        return kept, f"Of {size:,} bytes only the last {kept.shape[1]:,} tokens fit." if cut else ""

    def rate(self, written):
        """How fast, and how full."""
        new, spent = len(written.tokens), written.last - written.first
        rate = f", {(new - 1) / spent:.1f} tokens per second" if new > 1 and spent else ""
        read = f"; the prompt took {written.first - written.asked:.1f} s"
        context = f"; context used: {len(written.prompt) + new:,} of {self.model.config.maximum_length:,} tokens."
        return f"{new:,} new tokens{rate}{read}{context}"

    def look(self, written, number, request: gr.Request):
        """Yields the picture and the places of what the model looked at when it wrote a token, and what goes on."""
        if written is None:
            raise gr.Error("there is nothing to look at yet: let it write first", duration=None)
        try:
            number = min(max(1, int(number_of("the token", number))), len(written.tokens))
        except ValueError as error:
            raise shown(error) from error
        tokens = [*written.prompt, *written.tokens]
        end = len(written.prompt) + number - 1  # the token that looks is the one before
        job = lambda report: report(self.looked_at(tokens, end, number, written.rounds))
        yield gr.skip(), gr.skip(), said("Looking.")
        for report in self.serve(job, request):
            if isinstance(report, Waiting):
                yield gr.skip(), gr.skip(), said_of(report)
            else:
                yield *report, said(f"What it looked at when it wrote token {number:,}.")

    def looked_at(self, tokens, end, number, rounds):
        """A picture of PIL and HTML of the places."""
        import torch
        from PIL import Image

        from ..model.attention_map import attention_map

        ids = torch.tensor([tokens[:end]], device=self.model.device)
        maps = attention_map(self.model, ids, num_hashes=rounds)
        stream = io.BytesIO()
        page_attention.draw(maps).savefig(stream, format="png", dpi=110)
        where = page_attention.quoted(self.tokenizer, tokens, end)
        heading = f"<p>Token {number:,} of the new ones, here: {where}</p>"
        return Image.open(stream), heading + page_attention.table(maps, self.tokenizer, tokens[:end])


def watched(tokenizer, written, report):
    """A streamer of `generate` that adds to `written` and reports it."""
    from .streaming import TokenStreamer

    class Watched(TokenStreamer):
        def put(self, value):
            prompt = self.stream is None
            super().put(value)
            if not prompt:
                for token in value.flatten().tolist():
                    written.add(token)
                report(written)

    def write(text):
        written.text += text

    return Watched(tokenizer, SimpleNamespace(write=write, flush=lambda: None))


# --- images -------------------------------------------------------------------------------------------------------------


class ImagePage(Page):
    """An image whose upper rows are kept and whose others are made, or whole images."""

    def __init__(self, name, model, processor):
        self.processor = processor
        super().__init__(name, model)

    def lay_out(self):
        height, _ = self.processor.image_size()
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                image = gr.Image(
                    label="An image to complete (empty: whole images are made)", type="pil", image_mode=None
                )
                with gr.Row():
                    make = gr.Button("Make", variant="primary", elem_id="write", min_width=120)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=120)
                status = gr.HTML(said("Nothing is made yet."), elem_id="status")
                grid = gr.Image(
                    label="What the model makes",
                    interactive=False,
                    elem_id="picture",
                    format="png",
                    buttons=["download", "fullscreen"],
                )
            with gr.Column(scale=1, min_width=220):
                rows = gr.Slider(1, height, height // 2, step=1, label=f"Rows that are kept, of {height}")
                samples = gr.Slider(1, 16, 4, step=1, label="How many")
                how = drawing(self.model)
        make.click(
            self.make, [image, rows, samples, *how], [grid, status], show_progress="hidden", api_name="make",
        )  # fmt: skip
        stop.click(self.stop, queue=False, api_name="stop")

    def make(self, image, rows, samples, temperature, top_p, rounds, seed, request: gr.Request):
        """Yields the grid and what goes on."""
        try:
            arguments = arguments_of(temperature, top_p, rounds, seed)
        except Exception as error:
            raise shown(error) from error
        how = {name: getattr(arguments, name) for name in ("temperature", "top_p", "num_hashes", "seed")}
        rows = None if image is None else int(rows)
        job = lambda report: report(self.made(image, report, rows=rows, num_images=int(samples), **how))
        yield None, said("Beginning.")
        grid = None
        for report in self.serve(job, request):
            if isinstance(report, Waiting):
                yield gr.skip(), said_of(report)
            elif isinstance(report, str):
                yield gr.skip(), said(report)
            else:
                grid = report
        yield grid, said("Stopped." if grid is None else f"{int(samples)} image(s).")

    def made(self, image, report, **how):
        """The grid."""
        from ..model.image_completion import ReformerImagePipeline, grid

        pipe = ReformerImagePipeline(model=self.model, image_processor=self.processor, device=self.model.device)
        pictures = pipe(image, streamer=Counter(self.model.config.maximum_length, report), **how)
        return grid(pictures, scale=max(1, -(-images.ENLARGED // max(pictures[0].size))))


class Counter:
    """How much of the images is there, as a streamer of `generate`."""

    def __init__(self, length, report):
        self.length, self.report, self.count = length, report, 0

    def put(self, value):
        """The given tokens first, (images, L), then those of each step, (images,)."""
        self.count += 1 if self.count else value.shape[-1]
        self.report(f"{self.count:,} of {self.length:,} values of each image.")

    def end(self):
        pass
