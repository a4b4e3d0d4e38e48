"""Token-wise modules in chunks: the same outputs and gradients as at once, and nothing of the whole length is kept."""

import weakref

import pytest
import torch
from helpers import DROPOUT, build, tiny_config, tokens
from torch import nn

import hf_reformer
from hf_reformer.model import encoder, layer, modeling_reformer, recompute, reversible
from hf_reformer.model import tokenwise as tokenwise_module
from hf_reformer.model.tokenwise import tokenwise

KINDS = ["local", "lsh", "strict_local", "strict_lsh"]


@pytest.fixture(autouse=True)
def modules_of_this_file_are_known(monkeypatch):
    monkeypatch.setattr(tokenwise_module, "_TOKENWISE", (*tokenwise_module._TOKENWISE, TwoOutputs))
    monkeypatch.setattr(tokenwise_module, "_LIBRARIES", (*tokenwise_module._LIBRARIES, __name__))


class TwoOutputs(nn.Module):
    """One input that needs no gradient, two outputs and a missing one, as a projection to shared queries and keys has."""

    def __init__(self):
        super().__init__()
        self.dense, self.unused = nn.Linear(5, 7), nn.Linear(2, 3)

    def forward(self, x, scale):
        y = self.dense(x) * scale
        return y.tanh(), None, y[..., :3]


def call(module, *inputs):
    return module(*inputs)


def in_pieces(module, step, *inputs, keep):
    """`step` tokens at a time: asked for as such, or as what fits into the cache."""
    if not keep:
        return tokenwise(call, (module,), *inputs, step=step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenwise_module, "fitting_tokens", lambda *sizes: step)
        return tokenwise(call, (module,), *inputs, numbers=1)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("step", [1, 3, 4, 11, 20])
def test_equals_the_module_at_once(step, keep):
    torch.manual_seed(0)
    module = TwoOutputs().double()
    x = torch.randn(2, 11, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(2, 11, 1, dtype=torch.float64)
    results = []
    for outputs in (module(x, scale), in_pieces(module, step, x, scale, keep=keep)):
        assert outputs[1] is None
        loss = (outputs[0] ** 2).sum() + (outputs[2] * scale).sum()
        grads = torch.autograd.grad(loss, [x, module.dense.weight, module.dense.bias])
        results.append([outputs[0], outputs[2], *grads])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("keep", [False, True])
def test_a_derivative_of_the_gradient(keep):
    torch.manual_seed(0)
    module = TwoOutputs().double()
    x = torch.randn(2, 11, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(2, 11, 1, dtype=torch.float64)
    results = []
    for outputs in (module(x, scale), in_pieces(module, 4, x, scale, keep=keep)):
        loss = (outputs[0] ** 2).sum() + (outputs[2] * scale).sum()
        grads = torch.autograd.grad(loss, [x, module.dense.weight], create_graph=True)
        penalty = sum((g**2).sum() for g in grads)
        results.append(torch.autograd.grad(penalty, [x, module.dense.weight, module.dense.bias]))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("keep", [False, True])
def test_dropout_is_the_same_in_backward_and_in_a_second_one(keep):
    torch.manual_seed(0)
    x = torch.ones(1, 12, 4, requires_grad=True)
    out = in_pieces(nn.Dropout(0.5), 5, x, keep=keep)
    assert 0 < int((out == 0).sum()) < out.numel()
    for retain_graph in (True, False):
        (grad,) = torch.autograd.grad(out.sum(), x, retain_graph=retain_graph)
        assert torch.equal(grad, out.detach())


@pytest.mark.parametrize("keep", [False, True])
def test_the_mode_of_the_forward_counts(keep):
    """Switched to evaluation before backward, dropout is the forward's all the same."""
    torch.manual_seed(0)
    x, dropout = torch.ones(1, 12, 4, requires_grad=True), nn.Dropout(0.5)
    out = in_pieces(dropout, 5, x, keep=keep)
    dropout.eval()
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, out.detach())


@pytest.mark.parametrize("keep", [False, True])
def test_an_output_that_nothing_depends_on_needs_no_gradient(keep):
    module, x = TwoOutputs().double(), torch.randn(2, 11, 5, dtype=torch.float64, requires_grad=True)
    first, _, _ = in_pieces(module, 4, x, x.new_ones(2, 11, 1), keep=keep)
    expected = torch.autograd.grad(module(x, 1)[0].sum(), [x, *module.dense.parameters()])
    for one, other in zip(torch.autograd.grad(first.sum(), [x, *module.dense.parameters()]), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("keep", [False, True])
def test_a_parameter_changed_before_backward_raises(keep):
    module, x = nn.Linear(5, 3), torch.randn(2, 11, 5, requires_grad=True)
    loss = in_pieces(module, 4, x, keep=keep).sum()
    with torch.no_grad():
        module.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("keep", [False, True])
def test_a_hook_on_a_parameter_runs_once(keep):
    """It doubles the gradient, which must not become fourfold."""
    module, x = nn.Linear(5, 3), torch.randn(2, 11, 5)
    module.weight.register_hook(lambda grad: 2 * grad)
    grads = []
    for out in (module(x), in_pieces(module, 4, x, keep=keep)):
        grads.append(torch.autograd.grad(out.square().sum(), module.weight)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("keep", [False, True])
def test_gradients_of_many_pieces_in_half_precision_are_added_up_in_float32(keep):
    """In bfloat16 a sum of 512 pieces stops growing after a few dozen."""
    module = nn.Linear(16, 3).bfloat16()
    x = torch.ones(1, 512, 16, dtype=torch.bfloat16)
    in_pieces(module, 1, x, keep=keep).float().sum().backward()
    assert torch.equal(module.bias.grad.float(), torch.full((3,), 512.0))


@pytest.mark.parametrize("hooked", [True, False])
def test_a_module_that_is_hooked_or_unknown_is_given_all_tokens(hooked):
    seen = []

    class Mixing(nn.Linear):
        def forward(self, x):
            seen.append(x.shape[1])
            return super().forward(x - x.mean(1, keepdim=True))

    Mixing.__module__ = "somebody.else"
    module = nn.Linear(5, 3) if hooked else Mixing(5, 3)
    if hooked:
        module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    tokenwise(call, (nn.Sequential(module),), torch.randn(2, 11, 5), step=4)
    assert seen == [11]


def work_in_pieces(monkeypatch, tokens_at_once=7):
    for module in (tokenwise_module, layer):
        monkeypatch.setattr(module, "fitting_tokens", lambda *sizes: tokens_at_once)
    monkeypatch.setattr(modeling_reformer, "LEAST_TOKENS", 1)
    for module in (encoder, reversible):
        monkeypatch.setattr(module, "WORTH_REUSING", 1)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("reversible", [True, False])
def test_a_model_in_cache_sized_pieces(reversible, labelled, monkeypatch):
    """Everything token-wise 7 of 50 tokens at a time, with and without gradient: logits, loss and gradients agree."""
    config = tiny_config(KINDS, reversible=reversible, hash_seed=1)
    model, input_ids = build(config).train(), tokens(config, 2, 50)

    def results():
        model.zero_grad()
        out = model(input_ids, labels=input_ids if labelled else None)
        loss = out.loss if labelled else (out.logits * out.logits.detach().cos()).sum()
        loss.backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters()}
        with torch.no_grad():
            return {**found, "logits": out.logits.detach(), "loss": loss.detach(), "evaluated": model(input_ids).logits}

    expected = results()
    work_in_pieces(monkeypatch)
    assert tokenwise_module.fitting_tokens(None, 1, 1) == 7
    for name, tensor in results().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-11, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_a_hook_on_the_norm_or_the_head_sees_all_tokens_at_once(monkeypatch):
    work_in_pieces(monkeypatch)
    config = tiny_config(KINDS)
    model, input_ids = build(config), tokens(config, 2, 50)
    for module in (model.reformer, model.reformer.encoder, model.lm_head, model.lm_head.decoder):
        seen = []
        handle = module.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        with torch.no_grad():
            model(input_ids)
        handle.remove()
        first = seen[0] if torch.is_tensor(seen[0]) else seen[0][0]
        assert len(seen) == 1 and first.shape[:2] == (2, 50), type(module)


def test_gradients_that_a_hook_keeps_are_not_written_over(monkeypatch):
    work_in_pieces(monkeypatch)
    config = tiny_config(KINDS, hash_seed=1)
    model, input_ids = build(config).train(), tokens(config, 2, 50)
    kept, copies = [], []

    def keep(module, grad_input, grad_output):
        for grad in (*grad_input, *grad_output):
            if grad is not None:
                kept.append(grad)
                copies.append(grad.clone())

    for module in model.reformer.encoder.layers:
        module.register_full_backward_hook(keep)
    model(input_ids, labels=input_ids).loss.backward()
    assert len(kept) >= 2 * len(KINDS)
    for grad, copy in zip(kept, copies, strict=True):
        assert torch.equal(grad, copy)


def test_pieces_of_large_batches_hold_some_tokens_all_the_same():
    assert tokenwise_module.fitting_tokens(torch.empty(1), 4096, 128) == 16
    assert tokenwise_module.fitting_tokens(torch.empty(1), 256, 1) == 2048


def test_streams_are_handed_down_to_the_device_of_the_layer_below():
    """Layers may lie on several devices; a device without memory stands for another one here."""
    handover = reversible.Handover()
    handover.put(torch.ones(2), torch.ones(3), None, ())
    x1, x2, *_ = handover.take(torch.device("meta"))
    assert (x1.device.type, x2.device.type) == ("meta", "meta")
    with pytest.raises(RuntimeError, match="before that of the layer above"):
        handover.take(torch.device("cpu"))


def make_many(monkeypatch):
    """From here on, 32 tokens count as many."""
    for module in (layer, tokenwise_module):
        monkeypatch.setattr(module, "MANY_TOKENS", 32)


def named_gradients(model, input_ids):
    torch.manual_seed(3)
    model.zero_grad()
    model(input_ids, labels=input_ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("reversible", [True, False])
def test_a_model_whose_token_wise_parts_work_in_chunks(reversible, monkeypatch):
    """Projections, norms, feed-forward and language-model loss in chunks of 16 or 7 of 50 tokens, causal local attention in
    segments with what its windows reach back to: all gradients agree."""
    config = tiny_config(KINDS, reversible=reversible)
    input_ids = tokens(config, 2, 50)
    expected = named_gradients(build(config).train(), input_ids)
    make_many(monkeypatch)
    chunked = tiny_config(KINDS, reversible=reversible, chunk_size_feed_forward=7, chunk_size_lm_head=7)
    actual = named_gradients(build(chunked).train(), input_ids)
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad, atol=1e-11, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_chunks_and_dropout_are_replayed_in_a_reversible_model(monkeypatch):
    """With dropout, a reversible model in chunks has the gradients of an ordinary one in the same chunks."""
    make_many(monkeypatch)
    grads = []
    for rebuilt in (True, False):
        config = tiny_config(
            KINDS, reversible=rebuilt, chunk_size_feed_forward=50, chunk_size_lm_head=7, hash_seed=1, **DROPOUT
        )
        grads.append(named_gradients(build(config).train(), tokens(config, 2, 50)))
    for name, grad in grads[1].items():
        torch.testing.assert_close(grads[0][name], grad, atol=1e-10, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_chunked_loss_keeps_no_logits_in_training_only():
    config = tiny_config(KINDS, chunk_size_lm_head=7, hash_seed=1)
    model, input_ids = build(config), tokens(config, 2, 50)
    evaluated = model(input_ids, labels=input_ids)
    trained = model.train()(input_ids, labels=input_ids)
    assert trained.logits is None and evaluated.logits.shape == (2, 50, 19)
    whole = hf_reformer.ReformerModelWithLMHead(tiny_config(KINDS, hash_seed=1)).double()
    whole.load_state_dict(model.state_dict())
    expected = whole(input_ids, labels=input_ids, num_items_in_batch=torch.tensor(31)).loss
    actual = model(input_ids, labels=input_ids, num_items_in_batch=torch.tensor(31)).loss
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 5])
def test_local_attention_by_segments_sees_what_its_windows_hold(before, batch, monkeypatch):
    """Segments give what the whole gives, forward and backward, also those at the beginning, which have nothing before
    them, and however little fits into the cache; and no more than a fourth of the work is done twice."""
    config = tiny_config(["local", "strict_local", "local"], local_num_chunks_before=before)
    model, input_ids = build(config).train(), tokens(config, batch, 97)
    expected = named_gradients(model, input_ids)
    make_many(monkeypatch)
    monkeypatch.setattr(layer, "fitting_tokens", lambda *sizes: 16)
    worked = []
    alone = layer._attend_alone

    def counted(layer_norm, self_attention, hidden_states):
        worked.append(hidden_states.shape[1])
        return alone(layer_norm, self_attention, hidden_states)

    monkeypatch.setattr(layer, "_attend_alone", counted)
    actual = named_gradients(model, input_ids)
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad, atol=1e-11, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    passes = sum(worked) / (3 * 97)  # forward, again in backward, and again for its gradient
    assert len(worked) > 9 and passes < 3 * 1.25


def test_gradients_of_exposed_hidden_states_are_not_written_over(monkeypatch):
    make_many(monkeypatch)
    config = tiny_config(KINDS)
    model, input_ids = build(config), tokens(config, 2, 50)
    outputs = model(input_ids, output_hidden_states=True)
    kept = []
    for hidden in outputs.hidden_states[1:]:
        hidden.register_hook(lambda grad: kept.append((grad, grad.clone())))
    (outputs.logits.square().sum() + sum(h.square().sum() for h in outputs.hidden_states)).backward()
    assert len(kept) == len(KINDS)
    for grad, as_it_was in kept:
        assert torch.equal(grad, as_it_was)


def test_outputs_are_gone_while_their_gradients_are_computed():
    """Only then does the memory of a million tokens suffice: what a layer's attention gave is not held to the end."""
    alive = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            alive.append(output() is not None)
            return grad

    leaf = torch.randn(3, requires_grad=True)
    outputs = [2 * Probe.apply(leaf)]
    output = weakref.ref(outputs[0])
    pull = recompute.Pullback(outputs, [leaf])
    outputs.clear()
    (gradient,), _ = pull([], [torch.ones(3)])
    assert torch.equal(gradient, torch.full((3,), 2.0))
    assert alive == [False]
