"""What backward computes again is what forward computed, whatever happened in between; or one error says why not.

float64 and weights of real scale; the reference is the same model under ordinary autograd (`reversible=False`).
"""

import sys
import threading

import peft
import pytest
import torch
from helpers import DROPOUT, assert_same_tensors, build, gradients, tiny_config, tokens
from torch import nn

from hf_reformer.model import encoder, recompute, reversible, tokenwise
from hf_reformer.model.dropout import Dropout

TOLERANCE = 1e-10
LAYERS = ["strict_local", "strict_lsh", "local", "lsh"]
LENGTH = 61


def pair(**changes):
    """The reversible model and the ordinary one, with the same weights, in training mode."""
    settings = {"attn_layers": LAYERS, **DROPOUT, **changes}
    return [build(tiny_config(reversible=kept, **settings)).train() for kept in (True, False)]


def loss_of(model, draw=11, seed=0):
    ids = tokens(model.config if hasattr(model, "config") else model.base_model.config, 2, LENGTH, seed=seed)
    torch.manual_seed(draw)
    return model(input_ids=ids, labels=ids).loss


def compare(run, **changes):
    """`run(model)` must leave the same gradients in both models."""
    results = []
    for model in pair(**changes):
        more = run(model) or {}
        results.append({**gradients(model), **more})
    assert len(results[0]) > 0
    assert_same_tensors(*results, TOLERANCE)


def layers_of(model):
    return model.reformer.encoder.layers


# --- what changes between forward and backward ------------------------------------------------------------------------


def test_the_mode_is_that_of_the_forward():
    def run(model):
        loss = loss_of(model)
        model.eval()
        loss.backward()
        assert not layers_of(model)[0].training, "backward leaves the mode alone"

    compare(run)


def test_two_forwards_in_two_modes_and_one_backward():
    def run(model):
        first = loss_of(model.train(), draw=1)
        second = loss_of(model.eval(), draw=2, seed=2)
        (first + second).backward()

    compare(run)


def test_a_dropout_that_is_changed_in_between():
    def run(model):
        loss = loss_of(model)
        for module in model.modules():
            if isinstance(module, Dropout):
                module.p = 0.7
        loss.backward()

    compare(run)


@pytest.mark.parametrize("targets", [["query", "query_key", "value"], "all-linear"], ids=str)
def test_each_forward_has_its_own_active_adapter(targets):
    results = []
    for model in pair():
        torch.manual_seed(3)
        lora = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, lora_dropout=0.1)
        adapted = peft.get_peft_model(model, lora)
        adapted.add_adapter("other", lora)
        adapted.double().train()
        total = 0
        for draw, adapter in enumerate(("default", "other")):
            adapted.set_adapter(adapter)
            total = total + loss_of(adapted, draw=draw)
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_("lora" in name)  # the first was frozen when the second became active
        total.backward()
        results.append(gradients(adapted))
    assert {name.split(".")[-2] for name in results[1]} == {"default", "other"}
    assert_same_tensors(*results, TOLERANCE)


def test_adapters_that_are_disabled_for_a_reference():
    results = []
    for model in pair():
        torch.manual_seed(3)
        lora = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        adapted = peft.get_peft_model(model, lora).double().train()
        loss = loss_of(adapted)
        with adapted.disable_adapter(), torch.no_grad():
            reference = loss_of(adapted)
        (loss - reference).square().backward()
        results.append(gradients(adapted))
    assert_same_tensors(*results, TOLERANCE)


def test_a_parameter_that_is_frozen_in_between_still_gets_the_gradient_of_the_forward():
    def run(model):
        loss = loss_of(model)
        weight = layers_of(model)[1].feed_forward.dense.dense.weight
        weight.requires_grad_(False)
        found = torch.autograd.grad(loss, [layers_of(model)[0].feed_forward.dense.dense.weight])[0]
        return {"found": found}

    compare(run)


def test_values_of_a_functional_call_are_those_of_the_forward():
    def run(model):
        others = {n: (1.1 * p.detach()).requires_grad_() for n, p in model.named_parameters()}
        ids = tokens(model.config, 2, LENGTH)
        torch.manual_seed(11)
        loss = torch.func.functional_call(model, others, kwargs={"input_ids": ids, "labels": ids}).loss
        loss.backward()
        assert all(p.grad is None for p in model.parameters())
        return {name: p.grad for name, p in others.items()}

    compare(run)


def test_values_that_are_themselves_functions_of_others():
    """As in meta-learning: the weights of the call have a graph of their own."""

    def run(model):
        scale = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
        others = {n: p.detach() * scale for n, p in model.named_parameters()}
        ids = tokens(model.config, 2, LENGTH)
        torch.manual_seed(11)
        torch.func.functional_call(model, others, kwargs={"input_ids": ids, "labels": ids}).loss.backward()
        return {"scale": scale.grad}

    compare(run)


def test_a_hook_on_a_parameter_runs_once():
    def run(model):
        calls = []
        layers_of(model)[1].feed_forward.dense.dense.weight.register_hook(lambda g: calls.append(1) or 3 * g)
        loss_of(model).backward()
        assert len(calls) == 1

    compare(run)


class OwnSource(nn.Module):
    """Noise from a generator of its own, which no replay knows."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.generator = inner, torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.inner(x) * (1 + 0.1 * torch.rand(x.shape[-1:], generator=self.generator).mean())


@pytest.mark.parametrize(
    "part", ["feed_forward.dense.dense", "attention.self_attention.value", "attention.output.dense"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_module_with_a_random_source_of_its_own_ends_in_an_error_that_names_the_layer(part, dtype):
    model = pair()[0].to(dtype)
    parent, _, name = part.rpartition(".")
    parent = layers_of(model)[2].get_submodule(parent)
    setattr(parent, name, OwnSource(getattr(parent, name)))
    with pytest.raises(RuntimeError, match=r"encoder\.layers\[2\].*reversible=False"):
        loss_of(model).backward()


def test_a_buffer_that_forward_changes_is_changed_once():
    """Spectral norm goes one step of its power iteration on in every forward in training."""

    def run(model):
        torch.manual_seed(4)
        nn.utils.parametrizations.spectral_norm(layers_of(model)[1].feed_forward.dense.dense)
        loss_of(model.double()).backward()
        return {f"buffer {n}": b.clone() for n, b in model.named_buffers() if "_u" in n or "_v" in n}

    compare(run)


def test_the_scale_of_an_adapter_is_that_of_the_forward():
    """With `lora_B` still 0, as at the first step, no output tells the difference."""
    results = []
    for model in pair():
        torch.manual_seed(3)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear")).double().train()
        adapters = [module for module in adapted.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
        for adapter in adapters:
            adapter.scale_layer(0.25)
        loss = loss_of(adapted)
        for adapter in adapters:
            adapter.unscale_layer()
        loss.backward()
        results.append({name: grad for name, grad in gradients(adapted).items() if "lora_B" in name})
    assert_same_tensors(*results, TOLERANCE)


def test_a_hook_that_comes_after_the_forward_is_not_called_in_backward():
    calls = []

    def run(model):
        loss = loss_of(model)
        layers_of(model)[1].feed_forward.dense.register_forward_hook(lambda module, inputs, output: calls.append(1))
        loss.backward()

    compare(run)
    assert calls == []


class Shifted(nn.Module):
    """Adds a learned vector for each position: for a batch of one, autograd gives one tensor as both gradients."""

    def __init__(self, inner, length, size):
        super().__init__()
        self.inner = inner
        torch.manual_seed(8)
        self.shift = nn.Parameter(0.1 * torch.randn(1, length, size, dtype=torch.float64))

    def forward(self, x):
        return self.inner(x + self.shift)


def test_gradients_that_autograd_gives_as_one_tensor_are_not_written_over():
    def run(model):
        attention = layers_of(model)[1].attention
        attention.layer_norm = Shifted(attention.layer_norm, LENGTH, model.config.hidden_size)
        ids = tokens(model.config, 1, LENGTH)
        torch.manual_seed(11)
        model(ids, labels=ids).loss.backward()

    compare(run)


def test_a_hook_on_a_parameter_that_comes_after_the_forward(monkeypatch):
    """Also on the head, whose pieces keep their graphs."""
    monkeypatch.setattr(tokenwise, "fitting_tokens", lambda *sizes: 16)
    monkeypatch.setattr("hf_reformer.model.modeling_reformer.LEAST_TOKENS", 1)

    def run(model):
        loss = loss_of(model)
        for module in (model.lm_head.decoder, layers_of(model)[1].feed_forward.dense.dense):
            module.weight.register_hook(lambda grad: 2 * grad)
        loss.backward()

    compare(run, hidden_dropout_prob=0.0)


class Stopped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.detach())


def test_a_gradient_that_is_stopped_before_attention():
    def run(model):
        attention = layers_of(model)[1].attention
        attention.layer_norm = Stopped(attention.layer_norm)
        loss_of(model).backward()

    compare(run)


def test_a_half_without_a_norm():
    def run(model):
        layers_of(model)[1].feed_forward.layer_norm = nn.Identity()
        loss_of(model).backward()

    compare(run)


@pytest.mark.parametrize("part", ["attention", "feed_forward"])
def test_a_forward_that_somebody_has_overridden_counts(part):
    def run(model):
        half = layers_of(model)[1].get_submodule(part)
        forward = half.forward

        def halved(*arguments, **keywords):
            output = forward(*arguments, **keywords)
            return 0.5 * output if torch.is_tensor(output) else output._replace(hidden_states=0.5 * output[0])

        half.forward = halved
        loss = loss_of(model)
        loss.backward()
        return {"loss": loss.detach()}

    compare(run)


class Wrapped(nn.Module):
    """A layer within another module, which keeps what it gave."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *arguments):
        output = self.inner(*arguments)
        self.seen = output[1]
        return output


@pytest.mark.parametrize("index", range(len(LAYERS)))
def test_a_layer_in_a_wrapper(index, monkeypatch):
    for module in (encoder, reversible):
        monkeypatch.setattr(module, "WORTH_REUSING", 1)

    def run(model):
        layers_of(model)[index] = Wrapped(layers_of(model)[index])
        loss = loss_of(model)
        (loss + layers_of(model)[index].seen.square().mean()).backward()

    compare(run)


def test_a_gradient_that_the_caller_gives_is_not_written_over(monkeypatch):
    for module in (encoder, reversible):
        monkeypatch.setattr(module, "WORTH_REUSING", 1)
    model = pair(hidden_dropout_prob=0.0)[0]
    model.reformer.encoder.layer_norm = nn.Identity()
    hidden = model.reformer(tokens(model.config, 2, LENGTH)).last_hidden_state
    given = torch.ones_like(hidden)
    hidden.backward(given)
    assert torch.equal(given, torch.ones_like(hidden))


@pytest.mark.parametrize("kind", ["closure", "attribute", "buffer"])
def test_a_tensor_that_is_no_parameter_but_takes_a_gradient_is_refused(kind):
    model = pair()[0]
    dense = layers_of(model)[1].feed_forward.dense.dense
    outside = (0.1 * torch.ones_like(dense.weight)).requires_grad_()
    if kind == "closure":
        forward = dense.forward
        dense.forward = lambda x: forward(x) + x @ outside.T
    elif kind == "attribute":
        weight = dense.weight.detach()
        del dense.weight
        dense.weight = weight * outside
    else:
        dense.register_buffer("outside", outside)
        dense.forward = lambda x: nn.functional.linear(x, dense.weight + dense.outside, dense.bias)
    with pytest.raises(RuntimeError, match="none of its parameters"):
        loss_of(model).backward()


class Stashing(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        output = self.inner(x)
        self.balance = output.square().mean()
        return output


def test_a_loss_that_a_module_keeps_for_later_is_refused():
    model = pair()[0]
    half = layers_of(model)[1].feed_forward.dense
    half.dense = Stashing(half.dense)
    with pytest.raises(RuntimeError, match="keeps the tensor `balance`"):
        loss_of(model)


def test_one_huge_feature_hides_no_difference():
    model = pair()[0].float()
    with torch.no_grad():
        layers_of(model)[0].feed_forward.output.dense.bias[0] = 1e5
    dense = layers_of(model)[2].feed_forward.dense
    dense.dense = OwnSource(dense.dense)
    with pytest.raises(RuntimeError, match="reversible=False"):
        loss_of(model).backward()


def test_rounding_of_many_layers_is_no_difference():
    for dtype, autocast in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False)):
        model = pair(attn_layers=LAYERS * 12, initializer_range=0.3)[0].to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = loss_of(model)
        loss.backward()


# --- hooks ------------------------------------------------------------------------------------------------------------

INSIDE = ["attention", "attention.layer_norm", "attention.self_attention", "attention.self_attention.value"]
INSIDE += [
    "attention.output",
    "feed_forward",
    "feed_forward.layer_norm",
    "feed_forward.dense",
    "feed_forward.dense.dense",
]


@pytest.mark.parametrize("name", [f"encoder.layers.1.{part}" for part in INSIDE] + ["encoder.layer_norm", "embeddings"])
@pytest.mark.parametrize("training", [True, False])
def test_a_hook_sees_all_tokens_once_for_each_forward(name, training, monkeypatch):
    for module in (tokenwise, encoder, reversible):
        monkeypatch.setattr(module, "MANY_TOKENS" if module is tokenwise else "WORTH_REUSING", 8)
    model, seen = pair(chunk_size_feed_forward=7)[0], []
    module = model.reformer.get_submodule(name)
    module.register_forward_hook(
        lambda module, inputs, output: seen.append(output if torch.is_tensor(output) else output[0])
    )
    with torch.set_grad_enabled(training):
        loss = loss_of(model)
    if training:
        loss.backward()
    assert [x.shape[:2] for x in seen] == [(2, LENGTH)]


@pytest.mark.parametrize("part", ["feed_forward.dense", "attention.output", "attention.self_attention.value"])
def test_what_a_hook_inside_a_layer_collects_trains(part):
    def run(model):
        seen = []
        layers_of(model)[1].get_submodule(part).register_forward_hook(
            lambda module, inputs, output: seen.append(output)
        )
        (loss_of(model) + seen[0].abs().mean()).backward()

    compare(run)


def test_an_auxiliary_loss_alone_trains():
    def run(model):
        seen = []
        layers_of(model)[2].feed_forward.register_forward_hook(lambda module, inputs, output: seen.append(output))
        loss_of(model)
        seen[0].square().mean().backward()

    compare(run)


@pytest.mark.parametrize("kind", ["output", "input", "inside"])
@pytest.mark.parametrize("index", range(len(LAYERS)))
def test_a_hook_that_changes_what_passes_through_a_layer(index, kind):
    def run(model):
        layer = layers_of(model)[index]
        vector = torch.linspace(-1, 1, model.config.hidden_size, dtype=torch.float64) ** 3
        if kind == "output":
            layer.register_forward_hook(lambda module, inputs, out: (out[0] + vector, 2 * out[1], *out[2:]))
        elif kind == "input":
            layer.register_forward_pre_hook(lambda module, inputs: (inputs[0], inputs[1] + vector, *inputs[2:]))
        else:
            layer.feed_forward.register_forward_hook(lambda module, inputs, out: out + vector)
        loss_of(model).backward()

    compare(run)


@pytest.mark.parametrize("index", range(len(LAYERS)))
@pytest.mark.parametrize("alone", [True, False])
def test_a_loss_on_a_layer_taken_by_a_hook(index, alone):
    def run(model):
        seen = []
        layers_of(model)[index].register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
        loss = loss_of(model)
        (seen[0].square().mean() + (0 if alone else loss)).backward()

    compare(run)


def test_a_backward_hook_on_a_layer_sees_the_gradients_of_ordinary_autograd():
    def run(model):
        found = []
        layers_of(model)[1].register_full_backward_hook(lambda module, grads_in, grads_out: found.append(grads_out[:2]))
        loss_of(model).backward()
        return {"y1": found[0][0], "y2": found[0][1]}

    compare(run)


class Mixing(nn.Module):
    """Not token-wise: each token is seen beside the mean of all."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x - 0.5 * x.mean(1, keepdim=True))


@pytest.mark.parametrize("part", ["feed_forward.dense.dense", "feed_forward.output.dense", "attention.output.dense"])
def test_a_module_that_mixes_tokens_is_given_all_of_them(part, monkeypatch):
    """Put in the place of a token-wise one: with small pieces the outputs and gradients are those of the whole."""
    monkeypatch.setattr(tokenwise, "fitting_tokens", lambda *sizes: 16)
    monkeypatch.setattr("hf_reformer.model.layer.fitting_tokens", lambda *sizes: 16)
    results = []
    for model in pair(hidden_dropout_prob=0.0):  # masks are drawn piece by piece
        parent, _, name = part.rpartition(".")
        parent = layers_of(model)[1].get_submodule(parent)
        setattr(parent, name, Mixing(getattr(parent, name)))
        loss = loss_of(model)
        loss.backward()
        ids = tokens(model.config, 2, LENGTH)
        with torch.no_grad():
            evaluated = model.eval()(ids).logits
        with torch.enable_grad():
            whole = model(ids).logits
        results.append({"loss": loss.detach(), **gradients(model)})
        torch.testing.assert_close(evaluated, whole.detach(), atol=1e-11, rtol=1e-9)
    assert_same_tensors(*results, TOLERANCE)


# --- the stack --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 3])
def test_a_layer_may_be_removed(index, monkeypatch):
    for module in (encoder, reversible):
        monkeypatch.setattr(module, "WORTH_REUSING", 1)

    def run(model):
        del layers_of(model)[index]
        loss_of(model).backward()

    compare(run)


def test_one_layer_may_stand_in_several_places(monkeypatch):
    for module in (encoder, reversible):
        monkeypatch.setattr(module, "WORTH_REUSING", 1)

    def run(model):
        layers = layers_of(model)
        layers[2] = layers[0]
        layers[3] = layers[0]
        loss_of(model).backward()

    compare(run)


def test_layers_may_change_places(monkeypatch):
    for module in (encoder, reversible):
        monkeypatch.setattr(module, "WORTH_REUSING", 1)

    def run(model):
        layers = layers_of(model)
        layers[0], layers[2] = layers[2], layers[0]
        loss_of(model).backward()

    compare(run)


# --- threads ----------------------------------------------------------------------------------------------------------


def in_threads(*jobs):
    failed = []

    def guarded(job):
        try:
            job()
        except BaseException as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == []


@pytest.mark.parametrize("hooked", [False, True])
def test_two_threads_that_train_one_model_lose_nothing(hooked, monkeypatch):
    monkeypatch.setattr(tokenwise, "fitting_tokens", lambda *sizes: 16)
    model = build(tiny_config(LAYERS, hash_seed=1)).train()
    if hooked:  # then backward works with stand-ins
        for p in model.parameters():
            p.register_hook(lambda grad: 2 * grad)
    own = {name: id(p) for name, p in model.named_parameters()}
    ids = tokens(model.config, 2, LENGTH)
    named = dict(model.named_parameters())

    def step():
        loss = model(ids, labels=ids).loss
        return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))

    expected, found = step(), []
    in_threads(*[lambda: [found.append(step()) for _ in range(5)]] * 2)
    assert {name: id(p) for name, p in model.named_parameters()} == own
    assert len(found) == 10
    for grads in found:
        assert_same_tensors(expected, grads, TOLERANCE)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_second_derivative_of_reversible_layers_is_refused():
    model = pair(hash_seed=1, hidden_dropout_prob=0.0)[0]
    loss = loss_of(model)
    with pytest.raises(RuntimeError, match="reversible=False"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


@pytest.mark.parametrize("kept", [True, False])
def test_torch_func_gives_the_gradients_of_autograd(kept):
    """Under its transforms everything is computed by ordinary operations, also in a model of reversible layers."""
    model = build(tiny_config(LAYERS, reversible=kept, hash_seed=1)).eval()
    ids = tokens(model.config, 2, LENGTH)
    model(ids, labels=ids).loss.backward()

    def loss(parameters):
        return torch.func.functional_call(model, parameters, kwargs={"input_ids": ids, "labels": ids}).loss

    found = torch.func.grad(loss)({n: p.detach() for n, p in model.named_parameters()})
    assert_same_tensors(gradients(model), found, TOLERANCE)


def test_second_derivatives_of_ordinary_layers():
    """A penalty on the gradient: its own gradient is that of finite differences."""
    model = build(tiny_config(["strict_local", "strict_lsh", "lsh"], reversible=False, hash_seed=1)).train()
    ids = tokens(model.config, 1, 23)
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    weight = layers_of(model)[1].feed_forward.dense.dense.weight

    def penalty():
        loss = model(inputs_embeds=embeds, labels=ids).loss
        return torch.autograd.grad(loss, embeds, create_graph=True)[0].square().sum()

    (found,) = torch.autograd.grad(penalty(), weight)
    direction, step = torch.randn_like(weight), 1e-5
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * step)
        ends.append(penalty().item())
        with torch.no_grad():
            weight.sub_(direction, alpha=sign * step)
    assert float((found * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_a_replica_of_data_parallel_is_refused():
    """nn.DataParallel's replicas have no parameters: what it does is imitated."""
    model = pair()[0]
    replica = model._replicate_for_data_parallel()
    replica.reformer = model.reformer._replicate_for_data_parallel()
    ids = tokens(model.config, 2, LENGTH)
    for module in (replica, replica.reformer):
        with pytest.raises(RuntimeError, match=r"accelerate launch"):
            module(ids)


# --- devices and wrappers ---------------------------------------------------------------------------------------------


def test_a_device_without_contexts_is_replayed(monkeypatch):
    """Apple's has one device, and its generator takes no argument."""
    state = [torch.tensor([1], dtype=torch.uint8)]

    class Mps:
        @staticmethod
        def get_rng_state():
            return state[0].clone()

        @staticmethod
        def set_rng_state(new):
            state[0] = new.clone()

    class OnMps:
        device = torch.device("mps")

    monkeypatch.setattr(torch, "get_device_module", lambda kind: Mps)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.float16)
    replay = recompute.Replay(OnMps)
    state[0] = torch.tensor([2], dtype=torch.uint8)
    with replay():
        assert state[0].item() == 1
    assert state[0].item() == 2


@pytest.mark.parametrize("kept", [True, False])
def test_a_training_step_reads_no_number_off_its_device(kept):
    """Tensors without data raise where somebody looks at a value, for which a GPU would have to be waited for. (The one look
    at the check of all layers, at the end of backward, is left out for them.)"""
    model = pair()[0].to("meta")
    model.reformer.encoder.reversible = kept
    ids = torch.zeros(2, LENGTH, dtype=torch.int64, device="meta")
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert loss.shape == ()
    assert all(p.grad.shape == p.shape for p in model.parameters())


def test_frozen_weights_that_must_not_be_detached():
    """4-bit weights lose what they need to be read (`quant_state`) when they are detached."""

    class Quantised(nn.Parameter):
        def detach(self):
            raise AssertionError("a quantised weight was detached")

    class Linear4bit(nn.Linear):
        def forward(self, x):
            assert type(self.weight) is Quantised
            return nn.functional.linear(x, self.weight.data, None if self.bias is None else self.bias)

    results = []
    for model in pair():
        for layer in layers_of(model):
            for parent in (layer.feed_forward.dense, layer.feed_forward.output, layer.attention.output):
                old = parent.dense
                new = Linear4bit(old.in_features, old.out_features, bias=old.bias is not None).double()
                new.weight, new.bias = Quantised(old.weight.data, requires_grad=False), old.bias
                parent.dense = new
        loss_of(model).backward()
        results.append(gradients(model))
    assert_same_tensors(*results, TOLERANCE)


@pytest.mark.parametrize("kept", [True, False])
def test_a_compiled_training_step_has_the_gradients_of_an_ordinary_one(kept):
    model = build(tiny_config(["strict_local", "strict_lsh"], reversible=kept, hash_seed=1)).train()
    ids = tokens(model.config, 2, LENGTH)
    model(ids, labels=ids).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    torch.compile(model, backend="eager")(ids, labels=ids).loss.backward()
    assert_same_tensors(expected, gradients(model), TOLERANCE)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_ordinary_layers(reentrant):
    reference = pair(hash_seed=1)[1]
    loss_of(reference).backward()
    model = pair(hash_seed=1)[1]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    loss_of(model).backward()
    assert_same_tensors(gradients(reference), gradients(model), TOLERANCE)


def test_streams_that_somebody_rounded_between_layers_are_said_once(caplog, monkeypatch):
    """FSDP2's mixed precision casts what a layer is given, unless it is told not to."""
    model = pair()[0].float()
    said = []
    monkeypatch.setattr(reversible.logger, "warning_once", said.append)
    for layer in layers_of(model):
        layer.register_forward_pre_hook(lambda module, inputs: tuple(x.bfloat16() for x in inputs[:2]) + inputs[2:])
    loss_of(model).backward()
    assert "cast_forward_inputs=False" in said[0]
