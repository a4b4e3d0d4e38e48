"""Google's Trax, the original, at 1e-5: streams, loss and every weight's gradient, with its rotations injected; the logits are
in `test_conversion_trax.py`.

The arrays are in `fixtures/` (see the README there). Trax shifts its tokens right inside the model, ours does not.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, assert_same_tensors, inject_rotations

import hf_reformer

TOLERANCE = 1e-5
FIXTURES = Path(__file__).parent / "fixtures"
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "fast_gelu": "gelu_fast"}
LANGUAGE_MODELS = ["lm01", "lm03", "lm04", "lm05", "lm08", "lm14"]


def load(case):
    arrays = {name: torch.from_numpy(array) for name, array in np.load(FIXTURES / f"{case}.npz").items()}
    return json.loads((FIXTURES / f"{case}.json").read_text()), arrays


def config_of(trax, length, **changes):
    """The configuration that corresponds to the arguments of a Trax `ReformerLM`."""
    model, attention = trax["model"], trax["attention"]
    layers = [attention[index % len(attention)] for index in range(model["n_layers"])]
    settings = {
        "attn_layers": ["full" if layer["chunk_len"] is None else layer["type"] for layer in layers],
        "vocab_size": model["vocab_size"],
        "hidden_size": model["d_model"],
        "feed_forward_size": model["d_ff"],
        "attention_head_size": model["d_attention_key"],
        "num_attention_heads": model["n_heads"],
        "hidden_act": ACTIVATIONS[model["ff_activation"]],
        "max_position_embeddings": model["max_len"],
        "axial_pos_embds": "pos_axial_shape" in model,
        "layer_norm_eps": 1e-6,
        "is_decoder": True,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
    }
    if "pos_axial_shape" in model:
        settings.update(axial_pos_shape=model["pos_axial_shape"], axial_pos_embds_dim=model["pos_d_axial_embs"])
    for layer in layers:
        settings[f"{layer['type']}_attn_chunk_length"] = layer["chunk_len"] or length
        settings[f"{layer['type']}_num_chunks_before"] = layer["n_chunks_before"]
        settings.update({ours: layer[name] for ours, name in HASHING.items() if name in layer})
    return hf_reformer.ReformerConfig(**{**settings, **changes})


HASHING = {"num_hashes": "n_hashes", "num_buckets": "n_buckets"}


def to_our_layout(weights, num_layers):
    """Names and shapes of our parameters from Trax's: heads first there, heads joined and transposed here."""
    ours = {
        "reformer.embeddings.word_embeddings.weight": weights["embedding"],
        "reformer.encoder.layer_norm.weight": weights["final.ln.scale"],
        "reformer.encoder.layer_norm.bias": weights["final.ln.bias"],
        "lm_head.decoder.weight": weights["out.dense.w"].T,
        "lm_head.bias": weights["out.dense.b"],
    }
    position = "reformer.embeddings.position_embeddings."
    for name, weight in weights.items():
        if name.startswith("pos.axial"):
            ours[f"{position}weights.{name.removeprefix('pos.axial')}"] = weight.squeeze(0)
        elif name == "pos.table":
            ours[f"{position}embedding.weight"] = weight
    for index in range(num_layers):
        ours.update(layer_to_our_layout(weights, f"block{index}", f"reformer.encoder.layers.{index}"))
    return ours


def layer_to_our_layout(weights, theirs, ours):
    out = {}
    for side, module in (("attn", "attention"), ("ff", "feed_forward")):
        out[f"{ours}.{module}.layer_norm.weight"] = weights[f"{theirs}.{side}.ln.scale"]
        out[f"{ours}.{module}.layer_norm.bias"] = weights[f"{theirs}.{side}.ln.bias"]
    for number, module in (("1", "dense.dense"), ("2", "output.dense")):
        out[f"{ours}.feed_forward.{module}.weight"] = weights[f"{theirs}.ff.dense{number}.w"].T
        out[f"{ours}.feed_forward.{module}.bias"] = weights[f"{theirs}.ff.dense{number}.b"]
    out.update(attention_to_our_layout(weights, f"{theirs}.attn.", f"{ours}.attention."))
    return out


def attention_to_our_layout(weights, theirs, ours):
    names = {"w_q": "query", "w_k": "key", "w_v": "value", "w_qk": "query_key"}
    out = {
        f"{ours}self_attention.{name}.weight": weights[theirs + weight].transpose(1, 2).flatten(0, 1)
        for weight, name in names.items()
        if theirs + weight in weights
    }
    return out | {f"{ours}output.dense.weight": weights[f"{theirs}w_o"].flatten(0, 1).T}


def select(arrays, kind):
    return {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}


def model_of(case, monkeypatch, **changes):
    trax, arrays = load(case)
    config = config_of(trax, arrays["tokens"].shape[1], **changes)
    model = hf_reformer.ReformerModelWithLMHead(config).eval()
    model.load_state_dict(to_our_layout(select(arrays, "weight."), len(config.attn_layers)))
    rotations = {i: arrays[f"lsh{i}_rotations"] for i, kind in enumerate(config.attn_layers) if kind == "lsh"}
    inject_rotations(monkeypatch, rotations)  # a leading batch dimension: another rotation for each example
    shifted = F.pad(arrays["tokens"].long(), (1, -1))
    return model, shifted, arrays


@pytest.mark.parametrize("case", LANGUAGE_MODELS)
def test_feed_forward_stream_after_every_layer(case, monkeypatch):
    model, shifted, arrays = model_of(case, monkeypatch)
    with torch.no_grad():
        states = model.reformer(shifted, output_hidden_states=True).hidden_states
    expected = [arrays["embed_out"]] + [arrays[f"block{i}_ff_stream"] for i in range(len(states) - 1)]
    for state, stream in zip(states, expected, strict=True):
        assert_close(state, stream, TOLERANCE)


@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "ordinary autograd"])
@pytest.mark.parametrize("case", LANGUAGE_MODELS)
def test_loss_and_every_gradient(case, reversible, monkeypatch):
    model, shifted, arrays = model_of(case, monkeypatch, reversible=reversible)
    logits = model(shifted).logits
    loss = F.cross_entropy(logits.flatten(0, 1), arrays["tokens"].long().flatten())
    loss.backward()
    assert_close(loss.detach(), arrays["loss"], TOLERANCE)
    actual = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = to_our_layout(select(arrays, "grad."), len(model.config.attn_layers))
    assert_same_tensors(actual, expected, TOLERANCE)


def test_full_attention_is_local_attention_in_a_single_chunk(monkeypatch):
    model, shifted, arrays = model_of("lm03", monkeypatch, attn_layers=["local", "local"], local_attn_chunk_length=24)
    with torch.no_grad():
        assert_close(model(shifted).logits, arrays["logits"], TOLERANCE)


def attention_alone(case, monkeypatch):
    """A model that is nothing but one attention layer: no positions, no norms, no feed-forward."""
    trax, arrays = load(case)
    arguments, kind = trax["kwargs"], "lsh" if case == "lay01" else "local"
    config = hf_reformer.ReformerConfig(
        attn_layers=[kind], is_decoder=arguments["causal"], hidden_size=trax["d_model"], axial_pos_embds=False,
        attention_head_size=arguments["d_qk"], num_attention_heads=arguments["n_heads"], hidden_dropout_prob=0.0,
        num_hashes=arguments.get("n_hashes", 1), num_buckets=arguments.get("n_buckets"), feed_forward_size=1,
        local_attention_probs_dropout_prob=0.0,
        **{f"{kind}_{name}": arguments[argument] for name, argument in WINDOW.items()},
    )  # fmt: skip
    model = hf_reformer.ReformerModel(config).eval()
    layer, weights = model.encoder.layers[0], select(arrays, "weight.")
    torch.nn.init.zeros_(model.embeddings.position_embeddings.embedding.weight)
    for norm in (model.encoder.layer_norm, layer.attention.layer_norm):
        norm.register_forward_hook(lambda module, inputs, output: inputs[0])
    layer.load_state_dict(attention_to_our_layout(weights, "", "attention."), strict=False)
    if kind == "lsh":
        inject_rotations(monkeypatch, {0: arrays["rotations"]})
    return model, arrays


WINDOW = {
    "attn_chunk_length": "chunk_len",
    "num_chunks_before": "n_chunks_before",
    "num_chunks_after": "n_chunks_after",
}


@pytest.mark.parametrize("case", ["lay01", "lay04"])
def test_bidirectional_layer_with_a_mask(case, monkeypatch):
    model, arrays = attention_alone(case, monkeypatch)
    x, mask = arrays["x"], arrays["mask"]
    with torch.no_grad():
        both_streams = model(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state
    assert_close((both_streams[..., : x.shape[-1]] - x)[mask], arrays["out"][mask], TOLERANCE)


@pytest.mark.parametrize("case", ["lay01", "lay04"])
def test_gradients_of_a_bidirectional_layer_with_a_mask(case, monkeypatch):
    model, arrays = attention_alone(case, monkeypatch)
    x = arrays["x"].clone().requires_grad_()
    both_streams = model(inputs_embeds=x, attention_mask=arrays["mask"].long()).last_hidden_state
    ((both_streams[..., : x.shape[-1]] - x) * arrays["cotangent"]).sum().backward()
    assert_close(x.grad, arrays["grad_input0"], TOLERANCE)
    expected = attention_to_our_layout(select(arrays, "grad."), "", "attention.")
    parameters = dict(model.encoder.layers[0].named_parameters())
    assert_same_tensors({name: parameters[name].grad for name in expected}, expected, TOLERANCE)
