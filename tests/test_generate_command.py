"""`hf-reformer generate`: what it writes where, byte for byte, and what it refuses."""

import io
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from hf_reformer import ReformerByteTokenizer, ReformerConfig, ReformerForMaskedLM, ReformerModelWithLMHead, cli
from hf_reformer.cli.streaming import TokenStreamer, unfinished_character

TEXT = "Zaïre, 日本 and 🦒 — all of them."


def config_of(**changes):
    settings = {
        "attn_layers": ["strict_local", "strict_lsh"], "vocab_size": 258, "hidden_size": 32, "num_attention_heads": 2,
        "attention_head_size": 16, "feed_forward_size": 32, "axial_pos_embds": False, "max_position_embeddings": 300,
        "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "is_decoder": True, "eos_token_id": None,
        "initializer_range": 0.3,
    }  # fmt: skip
    return ReformerConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    ReformerModelWithLMHead(config_of()).save_pretrained(folder)
    ReformerByteTokenizer(model_max_length=300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parrot(tmp_path_factory):
    """A model that says TEXT whatever it is asked: only its positions count, and token p is the one after position p."""
    folder = tmp_path_factory.mktemp("parrot")
    data = TEXT.encode()
    model = ReformerModelWithLMHead(config_of(hidden_size=256, max_position_embeddings=256, vocab_size=258))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.reformer.embeddings.position_embeddings.embedding.weight.copy_(torch.eye(256))
        model.reformer.encoder.layer_norm.weight.fill_(1)
        for position, byte in enumerate(data):
            model.lm_head.decoder.weight[byte + 2, position] = 1
    model.save_pretrained(folder)
    ReformerByteTokenizer().save_pretrained(folder)
    return folder


def run(capfd, *arguments):
    """Exit code, standard output, standard error."""
    code = cli.main(["generate", *map(str, arguments)])
    return code, *capfd.readouterr()


def test_the_continuation_is_what_the_model_generates_and_nothing_else_is_written(checkpoint, capfd):
    tokenizer, model = ReformerByteTokenizer(), ReformerModelWithLMHead.from_pretrained(checkpoint).eval()
    inputs = tokenizer("Once", return_tensors="pt")
    capfd.readouterr()
    expected = tokenizer.decode(model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, 4:])
    assert run(capfd, checkpoint, "--prompt", "Once", "--max-new-tokens", 40, "--temperature", 0) == (
        0, expected + "\n", "",
    )  # fmt: skip


def test_a_seed_gives_the_same_text_again_and_another_seed_another(checkpoint, capfd):
    texts = [run(capfd, checkpoint, "--prompt", "a", "--max-new-tokens", 30, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_rounds_of_hashing_reach_the_model(checkpoint, capfd, monkeypatch):
    asked, forward = [], ReformerModelWithLMHead.forward

    def spy(self, *args, num_hashes=None, **kwargs):
        asked.append(num_hashes)
        return forward(self, *args, num_hashes=num_hashes, **kwargs)

    spy.__signature__ = __import__("inspect").signature(forward)
    monkeypatch.setattr(ReformerModelWithLMHead, "forward", spy)
    assert run(capfd, checkpoint, "--prompt", "a", "--max-new-tokens", 3, "--num-hashes", 5)[0] == 0
    assert asked == [5] * 3


def test_text_of_any_script_comes_out_as_it_is(parrot, capfd):
    data = TEXT.encode()
    for length in range(1, len(data)):  # cuts inside characters too
        prompt = parrot / "prompt"
        prompt.write_bytes(data[:length])
        code, out, err = run(
            capfd, parrot, "--prompt-file", prompt, "--temperature", 0, "--max-new-tokens", len(data) - length
        )
        # position p says byte p: the one at p + 1 comes out one late
        expected = (data[:length] + data[length - 1 : -1])[length - len(unfinished_character(data[:length])) :]
        assert (code, out, err) == (0, expected.decode("utf-8", "replace") + "\n", "")


def test_a_character_is_written_when_its_last_byte_is_there():
    class Pieces(io.StringIO):
        def write(self, text):
            pieces.append(text)

    tokenizer = ReformerByteTokenizer()
    for tail in (b"", "é".encode()[:1], "🦒".encode()[:3]):
        pieces = []
        streamer = TokenStreamer(tokenizer, Pieces())
        streamer.put(torch.tensor([tokenizer.encode_bytes(b"prompt" + tail)]))
        data = {b"": b"", b"\xc3": b"\xa9"}.get(tail, "🦒".encode()[3:]) + TEXT.encode() + b"\xff\xe6\x97"
        for token in tokenizer.encode_bytes(data):
            streamer.put(torch.tensor([token]))
        streamer.end()
        expected = [*(tail + data[:-3]).decode(), "\ufffd\ufffd\n"]
        assert pieces == expected


def test_a_streamer_writes_one_row_only():
    with pytest.raises(ValueError, match="`value` has 2 rows"):
        TokenStreamer(ReformerByteTokenizer(), io.StringIO()).put(torch.zeros(2, 3, dtype=torch.long))


def test_ids_that_stand_for_no_token_write_nothing():
    """The default vocabulary has 320 of them, the tokenizer of bytes 258."""
    tokenizer, file = ReformerByteTokenizer(), io.StringIO()
    streamer = TokenStreamer(tokenizer, file)
    streamer.put(torch.tensor([tokenizer.encode_bytes(b"prompt")]))
    for token in [*tokenizer.encode_bytes(b"a"), 258, 319, 1, 0, *tokenizer.encode_bytes(b"b")]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert file.getvalue() == "ab\n"


def test_pieces_of_words_come_with_their_spaces():
    backend = Tokenizer(models.BPE({"a": 0, "\u2581b": 1, "c": 2}, []))
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    file = io.StringIO()
    streamer = TokenStreamer(PreTrainedTokenizerFast(tokenizer_object=backend), file)
    streamer.put(torch.tensor([[0, 2]]))
    for token in [1, 2, 1]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert file.getvalue() == " bc b\n"


@pytest.mark.parametrize(
    ("data", "tail"),
    [
        (b"", b""),
        (b"a", b""),
        (b"a\xc3", b"\xc3"),
        ("é".encode(), b""),
        (b"\xf0\x9f\xa6", b"\xf0\x9f\xa6"),
        (b"\xa6", b""),
    ],
)
def test_the_unfinished_character_at_the_end(data, tail):
    assert unfinished_character(data) == tail


def test_bytes_from_standard_input(checkpoint):
    command = [sys.executable, "-m", "hf_reformer.cli", "generate", str(checkpoint), "--prompt-file", "-"]
    done = subprocess.run(
        [*command, "--max-new-tokens", "5", "--temperature", "0"], input=b"\xff\x00\xfe", capture_output=True
    )
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.endswith(b"\n") and len(done.stdout) > 1


def test_whoever_reads_may_stop_reading(checkpoint):
    command = f"{sys.executable} -m hf_reformer.cli generate {checkpoint} --prompt a --max-new-tokens 200 | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_checkpoint_without_tokenizer_and_a_byte_vocabulary(tmp_path, checkpoint, capfd):
    ReformerModelWithLMHead.from_pretrained(checkpoint).save_pretrained(tmp_path)
    arguments = ("--prompt", "a", "--temperature", 0, "--max-new-tokens", 9)
    capfd.readouterr()
    assert run(capfd, tmp_path, *arguments) == run(capfd, checkpoint, *arguments)


def test_a_checkpoint_without_tokenizer_and_another_vocabulary(tmp_path, capfd):
    ReformerModelWithLMHead(config_of(vocab_size=300)).save_pretrained(tmp_path)
    code, out, err = run(capfd, tmp_path, "--prompt", "a")
    assert code == 2 and out == "" and "which cannot be loaded" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt-file", "/no/such/file"], "--prompt-file /no/such/file cannot be read: No such file or directory"),
        (["--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens is 0, but must be at least 1"),
        (["--prompt", "a", "--max-new-tokens", "300"], "`max_new_tokens` is 300"),
        (
            ["--prompt", "a", "--temperature", "-1"],
            "--temperature is -1.0, but must be 0 or a number of at least 0.0001",
        ),
        (
            ["--prompt", "a", "--temperature", "nan"],
            "--temperature is nan, but must be 0 or a number of at least 0.0001",
        ),
        (["--prompt", "a", "--temperature", "1e-320"], "--temperature is 1e-320, but must be 0 or a number"),
        (
            ["--prompt", "a", "--num-hashes", "10000000000000000000"],
            "`num_hashes` is 10000000000000000000, but must be",
        ),
        (["--prompt", "a", "--seed", "18446744073709551616"], "--seed is 18446744073709551616, but must be at least 0"),
        (["--prompt", "a", "--seed", "-1"], "--seed is -1, but must be at least 0"),
        (["--prompt", "a", "--tail-bytes", "0"], "--tail-bytes is 0, but must be at least 1"),
        (["--prompt", "a" * 300], "--prompt has more than the 299 bytes that this model can take; --tail-bytes N"),
        (["--prompt-file", "/dev/zero"], "--prompt-file /dev/zero has more than the 299 bytes"),
        (["--prompt", "a", "--top-p", "0"], "--top-p is 0.0, but must be above 0 and at most 1"),
        (["--prompt", "a", "--num-hashes", "0"], "--num-hashes is 0, but must be at least 1"),
        (["--prompt", "a", "--device", "toaster"], "device is 'toaster', which cannot be used here"),
    ],
)
def test_bad_arguments_are_one_line_on_stderr(checkpoint, arguments, message, capfd):
    code, out, err = run(capfd, checkpoint, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err


def test_a_draw_is_from_all_tokens_not_from_the_fifty_likeliest(checkpoint, monkeypatch):
    asked = []
    monkeypatch.setattr(ReformerModelWithLMHead, "generate", lambda self, *_, **how: asked.append(how))
    assert cli.main(["generate", str(checkpoint), "--prompt", "a", "--top-p", "0.9", "--temperature", "0.7"]) == 0
    assert {name: asked[0][name] for name in ("do_sample", "top_k", "top_p", "temperature")} == {
        "do_sample": True, "top_k": 0, "top_p": 0.9, "temperature": 0.7,
    }  # fmt: skip


def test_the_end_of_a_prompt_that_is_too_long(checkpoint, tmp_path, capfd):
    (tmp_path / "long").write_bytes(bytes(range(256)) * 3000 + b"the end")
    short, how = ("--prompt", "end"), ("--temperature", 0, "--max-new-tokens", 9)
    expected = run(capfd, checkpoint, *short, *how)
    assert expected[0] == 0
    assert run(capfd, checkpoint, "--prompt-file", tmp_path / "long", "--tail-bytes", 3, *how) == expected
    assert run(capfd, checkpoint, "--prompt", "the end", "--tail-bytes", 3, *how) == expected
    pipe = f"cat {tmp_path}/long | {sys.executable} -m hf_reformer.cli generate {checkpoint} --tail-bytes 3 --prompt-file - "
    done = subprocess.run(["bash", "-c", pipe + " ".join(map(str, how))], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == expected


def test_a_prompt_from_a_pipe_with_a_name(checkpoint, tmp_path, capfd):
    os.mkfifo(tmp_path / "pipe")
    how = ("--temperature", 0, "--max-new-tokens", 9)
    expected = run(capfd, checkpoint, "--prompt", "end", *how)
    for tail in ((), ("--tail-bytes", 3)):
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"the end" if tail else b"end",))
        writer.start()
        assert run(capfd, checkpoint, "--prompt-file", tmp_path / "pipe", *tail, *how) == expected
        writer.join()


def test_the_model_of_a_run_is_found(checkpoint, tmp_path, capfd):
    (tmp_path / "model").symlink_to(checkpoint)
    how = ("--prompt", "a", "--temperature", 0, "--max-new-tokens", 9)
    assert run(capfd, tmp_path, *how) == run(capfd, checkpoint, *how)


@pytest.mark.parametrize("name", ["/no/such", "./nothing", "here/nothing", "a/b/c", "~x", "owner/nothing", "nothing"])
def test_a_model_that_is_not_there_is_said_at_once(name, tmp_path, monkeypatch, capfd):
    """Without asking the network for a path: `model_info` is the only question, and not repeated."""
    asked = []

    def model_info(self, name, **_):
        asked.append(name)
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    code, out, err = run(capfd, name, "--prompt", "a")
    assert code == 2 and out == "" and err.count("\n") == 1 and name in err
    on_hub = name in ("owner/nothing", "nothing")
    assert asked == [name] * on_hub
    assert ("no network" if on_hub else "does not exist") in err


def test_weights_that_are_not_there_are_an_error(checkpoint, tmp_path, capfd):
    shutil.copytree(checkpoint, tmp_path / "copy")
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    lost = next(name for name in weights if "layers.1" in name)
    save_file(
        {name: tensor for name, tensor in weights.items() if name != lost},
        tmp_path / "copy" / "model.safetensors",
        {"format": "pt"},
    )
    code, out, err = run(capfd, tmp_path / "copy", "--prompt", "a")
    assert code == 2 and out == "" and f"lacks 1 of the weights of a ReformerModelWithLMHead, as {lost}" in err


def test_a_cut_file_of_weights_is_one_line(checkpoint, tmp_path, capfd):
    shutil.copytree(checkpoint, tmp_path / "copy")
    os.truncate(tmp_path / "copy" / "model.safetensors", 1000)
    code, out, err = run(capfd, tmp_path / "copy", "--prompt", "a")
    assert code == 2 and out == "" and err.count("\n") == 1


def test_models_that_cannot_be_loaded(tmp_path, capfd):
    code, out, err = run(capfd, tmp_path / "nothing", "--prompt", "a")
    assert code == 2 and out == "" and "does not exist" in err
    ReformerForMaskedLM(config_of(is_decoder=False)).save_pretrained(tmp_path)
    code, out, err = run(capfd, tmp_path, "--prompt", "a")
    assert code == 2 and out == "" and "not a causal language model" in err
