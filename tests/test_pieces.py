"""How much is worked on at a time: the user's limit reaches every piece, and changes nothing but memory."""

import pytest
import torch
from helpers import DROPOUT, assert_same_tensors, build, cotangent, gradients, tiny_config, tokens

import hf_reformer
from hf_reformer.model import attention_layout, hashing, pieces, tokenwise
from hf_reformer.model.pieces import piece_numbers, set_piece_memory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def default_afterwards():
    yield
    set_piece_memory(None)


def test_sizes():
    assert piece_numbers(CPU, 5, 7) == 5 and piece_numbers(torch.device("cuda"), 5, 7) == 7
    hf_reformer.set_piece_memory(8)
    assert piece_numbers(CPU, 5, 7) == piece_numbers(torch.device("cuda"), 5, 7) == 2**21
    set_piece_memory(1e-9)
    assert piece_numbers(CPU, 5, 7) == 2**16


def test_free_memory_decides_once_and_says_so_once(monkeypatch):
    free, said = [2**33], []
    monkeypatch.setattr(pieces, "free_memory", lambda device: free[0])
    monkeypatch.setattr(pieces.logger, "warning_once", said.append)
    set_piece_memory("auto")
    gpu = torch.device("cuda", 1)
    assert piece_numbers(gpu, 5, 7) == 2**33 // 64
    free[0] = 2**20  # taken by the model since
    assert piece_numbers(gpu, 5, 7) == 2**33 // 64
    assert said == ["8,192 MiB are free on cuda:1: pieces of 512.0 MiB at most."]
    assert piece_numbers(CPU, 2**19, 7) == 2**16 and piece_numbers(CPU, 5, 7) == 5 and len(said) == 2
    set_piece_memory("auto")
    assert piece_numbers(gpu, 5, 7) == 2**16


def test_the_memory_of_this_machine_is_asked_for():
    assert 2**26 < pieces.free_memory(CPU) < 2**50


@pytest.mark.parametrize("mib", [0, -1, "all", float("nan"), float("inf"), True, [2]])
def test_other_limits_are_refused(mib):
    with pytest.raises(ValueError, match="`mib` is .*, but must be a number above 0"):
        set_piece_memory(mib)


def test_gradients_are_the_same_whatever_the_pieces(monkeypatch):
    layers = ["local", "strict_lsh", "full", "lsh", "strict_local", "full_shared_qk"]
    config = tiny_config(layers, **{**DROPOUT, "hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0})
    model, asked = build(config).train(), []

    def few(device, *sizes):
        asked.append(sizes)
        return 64

    def of_a_step():
        model.zero_grad()
        torch.manual_seed(0)
        logits = model(tokens(config, 2, 61)).logits
        (logits * cotangent(logits)).sum().backward()
        return gradients(model)

    whole = of_a_step()
    for module in (tokenwise, hashing, attention_layout):
        monkeypatch.setattr(module, "piece_numbers", few)
    assert_same_tensors(of_a_step(), whole, 1e-10)
    assert len(set(asked)) == 3  # of token-wise pieces, of hashing, of blocks
