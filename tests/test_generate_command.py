"""`hf-reformer generate`: what it writes where, byte for byte, and what it refuses."""

import io
import subprocess
import sys

import pytest
import torch

from hf_reformer import ReformerByteTokenizer, ReformerConfig, ReformerForMaskedLM, ReformerModelWithLMHead, cli
from hf_reformer.cli.byte_streamer import ByteStreamer
from hf_reformer.cli.generate import unfinished_character

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
        streamer = ByteStreamer(tokenizer, Pieces(), tail)
        streamer.put(torch.tensor([tokenizer.encode_bytes(b"prompt" + tail)]))
        data = {b"": b"", b"\xc3": b"\xa9"}.get(tail, "🦒".encode()[3:]) + TEXT.encode() + b"\xff\xe6\x97"
        for token in tokenizer.encode_bytes(data):
            streamer.put(torch.tensor([token]))
        streamer.end()
        expected = [*(tail + data[:-3]).decode(), "\ufffd", "\ufffd\n"]
        assert pieces == expected


def test_a_streamer_writes_one_row_only():
    with pytest.raises(ValueError, match="`value` has 2 rows"):
        ByteStreamer(ReformerByteTokenizer(), io.StringIO()).put(torch.zeros(2, 3, dtype=torch.long))


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
    assert code == 2 and out == "" and "has no tokenizer that can be used" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt-file", "/no/such/file"], "--prompt-file /no/such/file cannot be read: No such file or directory"),
        (["--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens is 0, but must be at least 1"),
        (["--prompt", "a", "--max-new-tokens", "300"], "`max_new_tokens` is 300"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature is -1.0, but must be at least 0"),
        (["--prompt", "a", "--top-p", "0"], "--top-p is 0.0, but must be above 0 and at most 1"),
        (["--prompt", "a", "--num-hashes", "0"], "--num-hashes is 0, but must be at least 1"),
        (["--prompt", "a", "--device", "toaster"], "--device is toaster, which cannot be used here"),
    ],
)
def test_bad_arguments_are_one_line_on_stderr(checkpoint, arguments, message, capfd):
    code, out, err = run(capfd, checkpoint, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err


def test_models_that_cannot_be_loaded(tmp_path, capfd):
    code, out, err = run(capfd, tmp_path / "nothing", "--prompt", "a")
    assert code == 2 and out == "" and "cannot be loaded" in err
    ReformerForMaskedLM(config_of(is_decoder=False)).save_pretrained(tmp_path)
    code, out, err = run(capfd, tmp_path, "--prompt", "a")
    assert code == 2 and out == "" and "not a causal language model" in err
