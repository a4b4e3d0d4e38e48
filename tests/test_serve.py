"""`hf-reformer serve`: a request over HTTP is answered by this package's model."""

import importlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
import torch
from helpers import build, tiny_config

from hf_reformer import ReformerByteTokenizer, cli

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ECHO_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def ask(url, **body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    return json.loads(OPENER.open(request, timeout=60).read())


@contextmanager
def serving(folder, log):
    """The address of a server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "hf_reformer.cli",
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        for _ in range(600):
            try:
                OPENER.open(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [["strict_local", "strict_lsh"], ["local", "lsh"]], ids=["strict", "published"])
def test_completions_and_chat_over_http(tmp_path, layers):
    pytest.importorskip("fastapi")
    pytest.importorskip("openai")
    pytest.importorskip("uvicorn")
    model = build(tiny_config(layers, vocab_size=258, use_cache=True), dtype=torch.float32)
    tokenizer = ReformerByteTokenizer(model_max_length=221, chat_template=ECHO_TEMPLATE)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    tokens = model.generate(**tokenizer("ab", return_tensors="pt"), max_new_tokens=7, do_sample=False)[0, 2:]
    expected, options = tokenizer.decode(tokens, skip_special_tokens=True), {"max_tokens": 7, "temperature": 0}
    with serving(tmp_path / "model", tmp_path / "log") as url:
        name = str(tmp_path / "model")
        completion = ask(f"{url}/completions", model=name, prompt="ab", **options)
        chat = ask(
            f"{url}/chat/completions", model=name, messages=[{"role": "user", "content": "ab"}], stream=False, **options
        )
    assert completion["choices"][0]["text"] == expected
    assert chat["choices"][0]["message"]["content"] == expected


def test_without_its_packages_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    assert cli.main(["serve", "somewhere", "--port", "1"]) == 2
    assert "hf-reformer[serving]" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--no-such-option"], ["--port", "abc"]], ids=" ".join)
def test_a_wrong_option_of_the_server_is_one_line(options, tmp_path, monkeypatch, capsys):
    importlib.import_module("transformers.cli.serving")  # before it is told that its packages are there
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: True)
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["serve", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("hf-reformer serve: ") and options[0] in error
