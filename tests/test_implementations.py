"""Every `attn_implementation` against the dense reference: logits and every gradient, float64, 1e-9."""

import pytest
import torch
from helpers import build, tiny_config, tokens
from test_strict_attention import compare_with_dense

from hf_reformer import ReformerConfig, ReformerModelWithLMHead
from hf_reformer.model import attention_chunked as chunked_attention

IMPLEMENTATIONS = ["eager", "sdpa"]
KINDS = ["local", "lsh", "strict_local", "strict_lsh"]


def config_with(implementation, kinds, **changes):
    config = tiny_config(kinds, **changes)
    config._attn_implementation = implementation
    return config


@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_the_dense_reference(implementation, kind, is_decoder, monkeypatch):
    after = {} if is_decoder else {"local_num_chunks_after": 1, "lsh_num_chunks_after": 1}
    config = config_with(implementation, [kind] * 3, is_decoder=is_decoder, num_hashes=3, **after)
    compare_with_dense(config, 47, None, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_the_dense_reference_with_padding(implementation, kind, monkeypatch):
    mask = torch.ones(2, 41, dtype=torch.long)
    mask[0, :5], mask[1, 30:] = 0, 0
    compare_with_dense(config_with(implementation, [kind] * 3), 41, mask, monkeypatch)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_only_the_asked_for_kernel_runs(implementation, monkeypatch):
    """Otherwise the comparisons above would compare the eager kernel with itself."""
    used = []

    def spy(name, function):
        def wrapped(*args):
            used.append(name)
            return function(*args)

        return wrapped

    for name, kernel in (("eager", "EagerBlocks"), ("sdpa", "SdpaBlocks")):
        monkeypatch.setattr(
            getattr(chunked_attention, kernel), "forward", spy(name, getattr(chunked_attention, kernel).forward)
        )
    config = config_with(implementation, KINDS)
    build(config)(tokens(config, 2, 47))
    assert set(used) == {implementation}


def test_attention_dropout_falls_back_to_the_eager_kernel_and_says_so(monkeypatch):
    """The fused kernels know no dropout mask; the result is the eager one's, not one without dropout."""
    outputs, said = [], []
    monkeypatch.setattr(chunked_attention.logger, "warning_once", said.append)
    for name in ("eager", "sdpa"):
        config = config_with(
            name, KINDS, local_attention_probs_dropout_prob=0.3, lsh_attention_probs_dropout_prob=0.3, hash_seed=1
        )
        model = build(config).train()
        torch.manual_seed(3)
        outputs.append(model(tokens(config, 2, 47)).logits)
    assert torch.equal(*outputs)
    assert set(said) == {"attn_implementation='sdpa' runs as 'eager': its kernels know no attention dropout."}


def test_default_is_eager_and_can_be_changed_and_saved(tmp_path):
    model = build(tiny_config(KINDS), dtype=torch.float32)
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert model.reformer.encoder.layers[0].attention.self_attention.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    loaded = ReformerModelWithLMHead.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.config._attn_implementation == "eager"
    input_ids = tokens(model.config, 2, 47)
    torch.testing.assert_close(loaded(input_ids).logits, model(input_ids).logits, atol=1e-5, rtol=1e-5)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="flash_attention_2.*eager"):
        ReformerModelWithLMHead(ReformerConfig(is_decoder=True, attn_implementation="flash_attention_2"))
