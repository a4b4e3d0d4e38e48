"""All randomness comes from the global generator, which is drawn from in training and never seeded."""

import pytest
import torch
from helpers import DROPOUT, assert_close, build, gradients, tiny_config, tokens

from hf_reformer.model import hashing

LAYERS = ["local", "lsh", "strict_lsh", "strict_local"]


def training_model(**changes):
    return build(tiny_config(LAYERS, **{**DROPOUT, **changes}), dtype=torch.float32).train()


def three_training_steps(seed):
    model = training_model()
    optimiser, input_ids = torch.optim.AdamW(model.parameters(), lr=0.01), tokens(model.config, 2, 53)
    torch.manual_seed(seed)
    losses = []
    for _ in range(3):
        loss = model(input_ids, labels=input_ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses), model.state_dict()


def test_the_same_seed_gives_the_same_training_steps_bit_for_bit():
    (losses, state), (other_losses, other_state) = three_training_steps(7), three_training_steps(7)
    assert torch.equal(losses, other_losses)
    assert all(torch.equal(state[name], other_state[name]) for name in state)


def test_another_seed_gives_other_training_steps():
    assert not torch.equal(three_training_steps(7)[0], three_training_steps(8)[0])


def recorded_rotations(monkeypatch):
    """Every set of rotations that is made from now on, as (layer, rotations)."""
    made, original = [], hashing.sample_rotations

    def recorder(**arguments):
        rotations = original(**arguments)
        made.append((arguments["layer_idx"], rotations))
        return rotations

    monkeypatch.setattr(hashing, "sample_rotations", recorder)
    return made


def test_rotations_are_made_once_per_hashing_layer_and_forward_and_not_in_backward(monkeypatch):
    model, made = training_model(), recorded_rotations(monkeypatch)
    input_ids = tokens(model.config, 2, 53)
    model(input_ids, labels=input_ids).loss.backward()
    assert [layer for layer, _ in made] == [1, 2]


@pytest.mark.parametrize("num_hashes", [None, 5])
def test_rotations_have_the_documented_shape(num_hashes, monkeypatch):
    model, made = training_model(num_buckets=[2, 4]), recorded_rotations(monkeypatch)
    model(tokens(model.config, 2, 53), num_hashes=num_hashes)
    for _, rotations in made:
        assert rotations.shape == (3, 5, num_hashes or 2, 3)  # heads, head size, rounds, (2 + 4) / 2


def test_training_draws_fresh_rotations_for_every_forward_and_layer(monkeypatch):
    model, made = training_model(), recorded_rotations(monkeypatch)
    for _ in range(2):
        model(tokens(model.config, 2, 53))
    rotations = [drawn for _, drawn in made]
    assert len(rotations) == 4
    assert not any(torch.equal(a, b) for i, a in enumerate(rotations) for b in rotations[:i])


def test_evaluation_uses_the_same_rotations_each_time_and_others_in_every_layer(monkeypatch):
    model, made = training_model(num_hashes=3).eval(), recorded_rotations(monkeypatch)
    for seed in (1, 2):
        torch.manual_seed(seed)
        model(tokens(model.config, 2, 53))
    assert torch.equal(made[0][1], made[2][1]) and torch.equal(made[1][1], made[3][1])
    assert not torch.equal(made[0][1], made[1][1])


def test_two_evaluations_agree():
    model, input_ids = training_model().eval(), tokens(training_model().config, 2, 53)
    with torch.no_grad():
        first = model(input_ids).logits
        torch.manual_seed(99)
        assert torch.equal(first, model(input_ids).logits)


@pytest.mark.parametrize("changes", [{}, {"hash_seed": 4}, {"allow_duplicate_attention": False}], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_the_callers_default_type_and_device_change_no_rotation_and_no_result(training, changes, monkeypatch):
    model, made = training_model(num_hashes=3, **changes).train(training), recorded_rotations(monkeypatch)
    input_ids, logits = tokens(model.config, 2, 53), []
    for dtype, device in (
        (torch.float32, "cpu"),
        (torch.float64, "cpu"),
        (torch.bfloat16, "cpu"),
        (torch.float32, "meta"),
    ):
        torch.manual_seed(1)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                logits.append(model(input_ids).logits)
        finally:
            torch.set_default_dtype(before)
    rotations = [drawn for _, drawn in made]
    assert len(rotations) == 8 and all(
        torch.equal(a, b) for a, b in zip(rotations, rotations[2:] + rotations[:2], strict=True)
    )
    assert all(torch.equal(one, logits[0]) for one in logits)


def test_an_evaluation_leaves_the_global_generator_as_it_was():
    model = training_model().eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model(tokens(model.config, 2, 53))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_forward_with_a_hash_seed_and_no_dropout_draws_nothing():
    model = build(tiny_config(LAYERS, hash_seed=3)).train()
    before = torch.get_rng_state()
    model(tokens(model.config, 2, 53)).logits.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_training_never_seeds_the_global_generator(monkeypatch):
    model = training_model(hash_seed=4)

    def refuse(*_):
        raise AssertionError("the global generator was seeded")

    input_ids = tokens(model.config, 2, 53)
    for name in ("manual_seed", "seed", "random.manual_seed", "random.seed"):
        monkeypatch.setattr(f"torch.{name}", refuse)
    model(input_ids, labels=input_ids).loss.backward()


def test_a_hash_seed_fixes_the_rotations_of_training_too(monkeypatch):
    model, made = training_model(hash_seed=4), recorded_rotations(monkeypatch)
    for _ in range(2):
        model(tokens(model.config, 2, 53))
    assert torch.equal(made[0][1], made[2][1]) and torch.equal(made[1][1], made[3][1])


def test_with_a_hash_seed_an_lsh_layer_has_the_rotations_of_transformers(monkeypatch):
    model, made = training_model(hash_seed=4), recorded_rotations(monkeypatch)
    model(tokens(model.config, 2, 53))
    torch.manual_seed(4)
    assert torch.equal(dict(made)[1], torch.randn(3, 5, 2, 2))


def test_another_hash_seed_gives_other_rotations(monkeypatch):
    made = recorded_rotations(monkeypatch)
    for hash_seed in (4, 5):
        model = training_model(hash_seed=hash_seed)
        model(tokens(model.config, 2, 53))
    assert not torch.equal(made[0][1], made[2][1]) and not torch.equal(made[1][1], made[3][1])


def test_dropout_is_on_in_training_and_off_in_evaluation():
    model = build(tiny_config(["strict_local"] * 3, **DROPOUT))
    input_ids = tokens(model.config, 2, 53)
    with torch.no_grad():
        assert not torch.equal(model.train()(input_ids).logits, model(input_ids).logits)
        assert torch.equal(model.eval()(input_ids).logits, model(input_ids).logits)


@pytest.mark.parametrize(
    "name", ["hidden_dropout_prob", "local_attention_probs_dropout_prob", "lsh_attention_probs_dropout_prob"]
)
@pytest.mark.parametrize("reversible", [True, False])
def test_each_dropout_probability_acts(name, reversible):
    layers = {"local": ["local", "strict_local", "full"], "lsh_a": ["lsh", "strict_lsh", "full_shared_qk"]}
    for kind in layers.get(name[:5], layers["lsh_a"]):
        model = build(tiny_config([kind] * 3, reversible=reversible, hash_seed=1, **{name: 0.3})).train()
        input_ids, logits = tokens(model.config, 2, 53), []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            logits.append(model(input_ids).logits.detach())
        assert torch.equal(logits[0], logits[1])
        assert (logits[1] - logits[2]).abs().max() > 1e-3, f"{name} has no effect on {kind}"


@pytest.mark.parametrize("kind", ["strict_local", "strict_lsh", "full", "full_shared_qk", "local", "lsh"])
def test_attention_dropout_keeps_the_mean(kind):
    """Averaged over many draws, one attention layer with dropout gives what it gives without (it is linear in them)."""
    prefix = "lsh" if kind in ("lsh", "strict_lsh", "full_shared_qk") else "local"
    config = tiny_config([kind], hash_seed=1, **{f"{prefix}_attention_probs_dropout_prob": 0.3})
    model, input_ids = build(config).reformer, tokens(config, 2, 48)
    # without the last norm, the first stream is the input plus the attention's output
    model.encoder.layer_norm.register_forward_hook(lambda module, inputs, output: inputs[0])
    with torch.no_grad():
        embedded = model(input_ids, output_hidden_states=True).hidden_states[0]
        exact = model(input_ids).last_hidden_state[..., :14] - embedded
        model.train()
        draws = [model(input_ids).last_hidden_state[..., :14] - embedded for _ in range(300)]
    assert_close(torch.stack(draws).mean(dim=0), exact, 0.15)
    slope = (torch.stack(draws).mean(dim=0) * exact).sum() / exact.square().sum()
    assert abs(slope - 1) < 0.02


def test_axial_positions_drop_other_features_in_every_example():
    config = tiny_config(["strict_local"], hidden_dropout_prob=0.5)
    model = build(config).reformer.train()
    torch.nn.init.zeros_(model.embeddings.word_embeddings.weight)
    rows = model(torch.zeros(2, 29, dtype=torch.long), output_hidden_states=True).hidden_states[0]
    assert (rows[0] == 0).any() and not torch.equal(rows[0], rows[1])


def test_gradients_of_a_training_step_repeat_with_its_seed():
    found = []
    for _ in range(2):
        model = training_model()
        input_ids = tokens(model.config, 2, 53)
        torch.manual_seed(13)
        model(input_ids, labels=input_ids).loss.backward()
        found.append(gradients(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
