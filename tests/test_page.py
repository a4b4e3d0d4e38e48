"""`hf-reformer demo`: visitors are served one by one, what a page says is what the model does, and errors are shown."""

import re
import sys
import threading
import time
import types
from html import unescape

import pytest
import torch

pytest.importorskip("gradio")
from gradio_client import Client, handle_file
from transformers import AutoModelForCausalLM

from hf_reformer import (
    ReformerByteTokenizer,
    ReformerConfig,
    ReformerForMaskedLM,
    ReformerImageProcessor,
    ReformerModelWithLMHead,
    attention_map,
    cli,
)
from hf_reformer.cli import page, page_attention
from hf_reformer.cli.page_desk import Desk, Stopped, Waiting

LENGTH = 256


def save(folder, **changes):
    settings = {
        "attn_layers": ["strict_local", "strict_lsh", "strict_lsh"], "vocab_size": 258, "hidden_size": 32,
        "num_attention_heads": 2, "attention_head_size": 16, "feed_forward_size": 32, "axial_pos_embds": False,
        "max_position_embeddings": LENGTH, "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_hashes": 2,
        "is_decoder": True, "eos_token_id": None, "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(0)
    kind = ReformerModelWithLMHead if changes.get("is_decoder", True) else ReformerForMaskedLM
    kind(ReformerConfig(**{**settings, **changes})).save_pretrained(folder)
    ReformerByteTokenizer(model_max_length=LENGTH).save_pretrained(folder)
    return folder


# --- the desk -----------------------------------------------------------------------------------------------------------


def served(desk, job, stop=None):
    return list(desk.serve(job, stop or threading.Event()))


def test_the_newest_report_comes_and_the_last_one_always_does():
    def job(report):
        for i in range(1000):
            report(i)

    reports = served(Desk(), job)
    assert reports[-1] == 999 and len(reports) < 1000 and reports == sorted(reports)


def test_visitors_are_served_one_by_one_in_their_order_and_know_how_many_come_first():
    desk, order, go = Desk(), [], threading.Event()
    first = desk.serve(lambda report: (report("begun"), go.wait(20), order.append(0)), threading.Event())
    assert next(first) == "begun"
    others = [desk.serve(lambda report, i=i: (order.append(i), report("done")), threading.Event()) for i in (1, 2)]
    assert [next(other) for other in others] == [Waiting(1), Waiting(2)]
    go.set()
    assert list(first) == [] and list(others[1])[-1] == "done" and list(others[0])[-1] == "done"
    assert order == [0, 1, 2]


def test_the_error_of_a_job_is_raised_and_the_next_visitor_is_served():
    desk = Desk()
    with pytest.raises(ValueError, match="this one"):
        served(desk, lambda report: (_ for _ in ()).throw(ValueError("this one")))
    assert served(desk, lambda report: report(1)) == [1]


@pytest.mark.parametrize("how", ["stop", "reader gone"])
def test_a_stopped_job_ends_at_its_next_report_and_holds_nobody_up(how):
    desk, stop, ended = Desk(), threading.Event(), threading.Event()

    def job(report):
        try:
            while True:
                report(1)
                time.sleep(0.01)
        except Stopped:
            ended.set()
            raise

    reader = desk.serve(job, stop)
    assert next(reader) == 1
    stop.set() if how == "stop" else reader.close()
    assert ended.wait(20)
    assert served(desk, lambda report: report(2))[-1] == 2


def test_whoever_stops_while_he_waits_is_not_served():
    desk, go, begun, stop = Desk(), threading.Event(), [], threading.Event()
    first = desk.serve(lambda report: (report("begun"), go.wait(20)), threading.Event())
    next(first)
    second = desk.serve(lambda report: begun.append(1), stop)
    assert next(second) == Waiting(1)
    stop.set()
    list(second)  # ends while the first one works
    go.set()
    list(first)
    assert begun == []


# --- what it looked at --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint"))


def test_the_places_are_the_heaviest_of_all_layers_that_hash(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = torch.randint(2, 258, (1, 100), generator=torch.Generator().manual_seed(0))
    maps = attention_map(model, ids)
    every = [
        (float(maps[layer].weights[h, r, p]), layer, h, r, int(maps[layer].buckets[h, r, p]), p)
        for layer in (1, 2)
        for h in range(2)
        for r in range(2)
        for p in range(100)
    ]
    assert page_attention.places(maps, 5) == sorted(every, reverse=True)[:5]
    figure = page_attention.draw(maps)
    assert [axis.get_title() for axis in figure.axes] == ["layer 1, strict_lsh", "layer 2, strict_lsh"]


def test_where_no_layer_hashes_all_are_drawn(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save(tmp_path, attn_layers=["strict_local", "full"]))
    maps = attention_map(model, torch.tensor([[65, 66, 67]]))
    assert len(page_attention.draw(maps).axes) == 2
    assert {place[1] for place in page_attention.places(maps, 100)} == {0, 1}


def test_a_quoted_text_shows_the_token_and_is_no_html_of_its_own():
    tokenizer = ReformerByteTokenizer()
    tokens = tokenizer("<b>&\n", add_special_tokens=False).input_ids
    assert page_attention.quoted(tokenizer, tokens, 1) == "<code>&lt;<mark>b</mark>&gt;&amp;⏎</code>"


# --- the page of text ---------------------------------------------------------------------------------------------------


class Visitor:
    """What a browser gets, as plain text."""

    def __init__(self, address):
        self.client = Client(address, verbose=False)

    def begin(self, prompt="A", file=None, count=20, temperature=0.8, top_p=0.9, rounds=2, seed="1"):
        file = None if file is None else handle_file(str(file))
        return self.client.submit(prompt, file, count, temperature, top_p, rounds, seed, api_name="/write")

    def write(self, *args, **kwargs):
        """The text, and what the page says at the end."""
        text, said, *_ = self.begin(*args, **kwargs).result(timeout=60)
        return text, plain(said)

    def look(self, number):
        return self.client.predict(number, api_name="/look")


def plain(html):
    return unescape(re.sub("<[^>]*>", "", html))


@pytest.fixture(scope="module")
def served_page(checkpoint):
    served = page.build(str(checkpoint), "cpu", None)
    served.address = served.open("127.0.0.1", None, no_browser=True, block=False)
    yield served
    served.blocks.close()


def test_the_page_writes_what_the_command_writes(served_page, checkpoint, capfd):
    options = ["--max-new-tokens", "20", "--temperature", "0.8", "--top-p", "0.9", "--num-hashes", "3", "--seed", "5"]
    assert cli.main(["generate", str(checkpoint), "--prompt", "Zaïre", *options]) == 0
    text, said = Visitor(served_page.address).write("Zaïre", rounds=3, seed="5")
    assert text == capfd.readouterr().out
    assert said.startswith("20 new tokens, ") and "tokens per second" in said
    assert f"context used: 26 of {LENGTH} tokens." in said


def test_a_file_stands_before_the_text_and_what_does_not_fit_is_said(served_page, tmp_path):
    file, visitor = tmp_path / "long.txt", Visitor(served_page.address)
    file.write_bytes(b"\xff" + b"x" * 99)
    text, said = visitor.write("yz", file)
    assert "context used: 122 of 256" in said and "only" not in said
    file.write_bytes(b"\xff" * 100_000 + b"x" * (LENGTH - 22))
    cut, said = visitor.write("yz", file)
    assert "context used: 256 of 256" in said
    assert said.endswith(f"Of {100_000 + LENGTH - 20:,} bytes only the last {LENGTH - 20} tokens fit.")
    assert cut == visitor.write("x" * (LENGTH - 22) + "yz")[0] != text


@pytest.mark.parametrize(
    "given, message",
    [
        ({"prompt": ""}, "there is nothing to continue"),
        ({"seed": "one"}, "the seed is 'one', but must be a whole number"),
        ({"seed": str(2**64)}, "seed is 18446744073709551616, but must be"),
        ({"count": LENGTH}, "Value 256 is greater than maximum value 255"),
    ],
)
def test_an_error_is_shown_and_the_page_lives_on(served_page, given, message):
    visitor = Visitor(served_page.address)
    with pytest.raises(Exception, match=message):
        visitor.write(**given)
    assert visitor.write()[0]


def test_a_fault_of_the_program_is_shown_too_and_its_trace_is_printed(served_page, monkeypatch, capsys):
    monkeypatch.setattr(page.generate, "generate", lambda *args: {}["missing"])
    with pytest.raises(Exception, match="KeyError.*fault of the program"):
        Visitor(served_page.address).write()
    assert "Traceback" in capsys.readouterr().err


def test_a_second_visitor_waits_and_is_told_so_and_a_stop_frees_the_desk(served_page, monkeypatch):
    generate = page.generate.generate

    def slowly(model, tokenizer, ids, streamer, arguments):
        put = streamer.put
        streamer.put = lambda value: (time.sleep(0.2), put(value))
        generate(model, tokenizer, ids, streamer, arguments)

    monkeypatch.setattr(page.generate, "generate", slowly)
    first, second = Visitor(served_page.address), Visitor(served_page.address)
    long = first.begin(count=200)
    while not any("new tokens" in output[1] for output in long.outputs()):
        time.sleep(0.05)
    short = second.begin(count=2)
    while not any("1 visitor is before you; your turn comes." in output[1] for output in short.outputs()):
        time.sleep(0.05)
    first.client.predict(api_name="/stop")
    assert plain(short.result(timeout=60)[1]).startswith("2 new tokens")
    stopped = int(re.match(r"(\d+) new tokens", plain(long.result(timeout=60)[1]))[1])
    assert 0 < stopped < 200


def test_a_stop_ends_all_jobs_of_the_visitor_and_of_nobody_else(served_page):
    desk = page.Page.serve
    jobs = lambda report: [report(time.sleep(0.01)) for _ in range(3000)]
    one, other = types.SimpleNamespace(session_hash="one"), types.SimpleNamespace(session_hash="other")
    running = [desk(served_page, jobs, visitor) for visitor in (one, one, other)]
    for job in running:
        next(job)
    served_page.stop(one)
    assert len(list(running[0])) < 100 and len(list(running[1])) < 100
    next(running[2])
    served_page.stop(other)
    list(running[2])
    assert not served_page.desk.line


def test_a_token_that_was_written_can_be_looked_at(served_page, checkpoint):
    visitor = Visitor(served_page.address)
    with pytest.raises(Exception, match="nothing to look at yet"):
        visitor.look(1)
    visitor.write("A text of some length.", temperature=0.0, count=10)
    _, found, said = visitor.look(3)
    assert plain(said) == "What it looked at when it wrote token 3."
    tokenizer, model = ReformerByteTokenizer(), AutoModelForCausalLM.from_pretrained(checkpoint)
    tokens = tokenizer("A text of some length.", add_special_tokens=False).input_ids
    ids = model.generate(torch.tensor([tokens]), max_new_tokens=2, do_sample=False)  # token 2 looks and 3 is written
    maps = attention_map(model, ids, num_hashes=2)
    assert found.endswith(page_attention.table(maps, tokenizer, ids[0].tolist()))


# --- the page of images, and the command --------------------------------------------------------------------------------


def test_images_are_made_and_completed(tmp_path):
    from PIL import Image

    folder = save(tmp_path / "model", vocab_size=256, max_position_embeddings=48)
    size = {"height": 4, "width": 4}
    ReformerImageProcessor(size=size, token_offset=0, first_values=[1.0] * 256).save_pretrained(folder)
    Image.new("RGB", (4, 4), (200, 10, 10)).save(tmp_path / "red.png")
    served = page.build(str(folder), "cpu", None)
    address = served.open("127.0.0.1", None, no_browser=True, block=False)
    try:
        client = Client(address, verbose=False)
        grid, said = client.predict(None, 2, 4, 1.0, 1.0, 1, "1", api_name="/make")
        assert plain(said) == "4 image(s)." and Image.open(grid["path"] if isinstance(grid, dict) else grid).size == (
            258,
            258,
        )
        image = handle_file(str(tmp_path / "red.png"))
        grid, _ = client.predict(image, 2, 1, 1.0, 1.0, 1, "1", api_name="/make")
        pixels = Image.open(grid["path"] if isinstance(grid, dict) else grid)
        assert {pixels.getpixel((x, y)) for x in (0, 127) for y in (0, 63)} == {(200, 10, 10)}
        assert pixels.getpixel((5, 100)) != (200, 10, 10)
    finally:
        served.blocks.close()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, monkeypatch):
    encoder = save(tmp_path, is_decoder=False)
    for arguments, message in (
        ([str(encoder)], "is not a causal language model"),
        (["no/such"], "does not exist|no folder here"),
        (["--port", "70000"], "--port is 70000, but must be from 1 to 65535"),
    ):
        assert cli.main(["demo", "--no-browser", *arguments]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error) and len(error.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo"]) == 2
    assert "pip install 'hf-reformer[page]'" in capsys.readouterr().err
