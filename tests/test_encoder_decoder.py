"""The encoder-decoder against its definition, Trax, ordinary autograd, and itself with and without cache, alone and in batches."""

import copy

import pytest
import torch
from dense_model import dense_encoder_decoder_logits
from helpers import (
    DROPOUT,
    assert_close,
    assert_same_tensors,
    build,
    gradients,
    inject_rotations,
    rotations_by_layer,
    tiny_config,
    tokens,
)
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from hf_reformer import (
    ReformerByteTokenizer,
    ReformerCache,
    ReformerConfig,
    ReformerEncoderDecoderModel,
    ReformerForConditionalGeneration,
    ReformerModel,
    ReformerModelWithLMHead,
)
from hf_reformer.model.layer import Context

STRICT = ["strict_local", "strict_lsh", "full"]
BOTH = {"attn_layers": STRICT, "decoder_attn_layers": ["strict_lsh", "full_shared_qk", "strict_local", "strict_lsh"]}
SOURCE, TARGET = 23, 17


def make_config(attn_layers=STRICT, decoder_attn_layers=BOTH["decoder_attn_layers"], **changes):
    sizes = {"local_num_chunks_after": 1, "lsh_num_chunks_after": 1, "is_decoder": False, "use_cache": True}
    if set(attn_layers) | set(decoder_attn_layers or ()) <= {"local", "lsh"}:
        sizes = {**sizes, "local_num_chunks_after": 0, "lsh_num_chunks_after": 0}
    own = {"is_encoder_decoder": True, "decoder_attn_layers": decoder_attn_layers}
    return tiny_config(attn_layers, **{**sizes, **own, **changes})


def make_model(*layers, seed=0, dtype=torch.float64, **changes):
    return build(make_config(*layers, **changes), ReformerForConditionalGeneration, seed, dtype)


def texts(model, batch=3, seed=0):
    """Source and target without token 0, and the mask of the source, padded on the right, on the left and not at all."""
    source = tokens(model.config, batch, SOURCE, seed).clamp(min=1)
    target = tokens(model.config.decoder_part(), batch, TARGET, seed + 1).clamp(min=1)
    mask = torch.ones_like(source)
    mask[0, 16:] = 0
    mask[1, :5] = 0
    return source * mask, target, mask


def modes_of(model, reversible):
    for part in (model.reformer.encoder, model.reformer.decoder):
        part.encoder.reversible = reversible
    return model


# --- against the definition, and against Trax


@pytest.mark.parametrize(
    ("layers", "changes"),
    [
        ((STRICT, BOTH["decoder_attn_layers"]), {}),
        ((["local", "lsh", "full"], ["lsh", "local"]), {}),
        ((STRICT, None), {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 29}),
        ((STRICT, None), {"axial_pos_embds": False, "decoder_max_position_embeddings": 31}),
    ],
    ids=["strict", "published", "two vocabularies", "position tables of two lengths"],
)
def test_logits_of_the_definition(layers, changes, monkeypatch):
    model = make_model(*layers, **changes)
    source, target, mask = texts(model)
    target_mask = torch.ones_like(target)
    target_mask[1, 12:] = 0
    rotations = rotations_by_layer(tiny_config(["lsh"] * 4, num_buckets=4))
    inject_rotations(monkeypatch, rotations)
    found = model(source, mask, target, target_mask, use_cache=False).logits
    expected = dense_encoder_decoder_logits(
        model.config, dict(model.named_parameters()), source, target, (mask, target_mask), rotations
    )
    real = target_mask.bool()
    assert_close(found[real], expected[real], 1e-10)


@pytest.mark.parametrize("given", [False, True])
def test_both_parts_hash_as_often_as_the_model_says_now(given, monkeypatch):
    model = make_model()
    calls = inject_rotations(monkeypatch, rotations_by_layer(tiny_config(["lsh"] * 4, num_hashes=3)))
    model.config.num_hashes = 7 if given else 3
    source, target, mask = texts(model)
    model(source, mask, target, num_hashes=3 if given else None)
    assert [call["num_hashes"] for call in calls] == [3] * 3


# --- gradients


@pytest.mark.parametrize(
    "changes", [{}, DROPOUT | {"cross_attention_probs_dropout_prob": 0.2}], ids=["plain", "dropout"]
)
def test_gradients_of_reversible_layers_are_those_of_ordinary_autograd(changes):
    model = make_model(**changes).train()
    source, target, mask = texts(model)
    found = {}
    for reversible in (True, False):
        modes_of(model, reversible).zero_grad()
        torch.manual_seed(3)
        model(source, mask, labels=target).loss.backward()
        found[reversible] = gradients(model)
    assert set(found[True]) == {name for name, _ in model.named_parameters()}
    assert_same_tensors(found[True], found[False], 1e-10)


def test_gradients_reach_embeddings_and_encoder_outputs_that_are_given():
    model = make_model().train()
    source, target, mask = texts(model)
    embeds = model.get_input_embeddings()(source).detach()
    memory = model.get_encoder()(source, mask).last_hidden_state.detach()
    found = {}
    for reversible in (True, False):
        modes_of(model, reversible)
        given = [x.clone().requires_grad_() for x in (embeds, memory)]
        torch.manual_seed(3)
        model(inputs_embeds=given[0], attention_mask=mask, labels=target).loss.backward()
        torch.manual_seed(3)
        model(encoder_outputs=(given[1],), attention_mask=mask, labels=target).loss.backward()
        found[reversible] = {"embeds": given[0].grad, "memory": given[1].grad}
    assert_same_tensors(found[True], found[False], 1e-10)


def test_a_frozen_encoder():
    model = make_model().train()
    source, target, mask = texts(model)
    found = {}
    for reversible in (True, False):
        modes_of(model, reversible).zero_grad()
        model.get_encoder().requires_grad_(False)
        torch.manual_seed(3)
        model(source, mask, labels=target).loss.backward()
        found[reversible] = gradients(model)
    assert not any(".encoder.embeddings" in name for name in found[True])
    assert_same_tensors(found[True], found[False], 1e-10)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    model = modes_of(make_model().train(), False)
    source, target, mask = texts(model)
    found = []
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        torch.manual_seed(3)
        model(source, mask, labels=target).loss.backward()
        found.append(gradients(model))
    assert_same_tensors(found[1], found[0], 1e-10)


def numbers_kept(layers):
    model = make_model(["strict_local"] * 2, ["strict_local"] * layers).train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(x):
        at = x.untyped_storage().data_ptr()
        kept[at] = 0 if at in parameters else x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(tokens(model.config, 2, 200), decoder_input_ids=tokens(model.config, 2, 200)).logits.sum()
    return sum(kept.values())


def test_memory_kept_for_backward_does_not_grow_with_depth():
    """For each layer less than a fifth of one stream."""
    assert numbers_kept(6) - numbers_kept(2) < 4 * 0.2 * (2 * 200 * 14)


def test_scores_of_cross_attention_are_never_kept_as_a_whole(monkeypatch):
    """With dropout there is no fused kernel; the pieces' scores are computed again in backward, with the same dropout."""
    from hf_reformer.model import attention_cross

    model = modes_of(make_model(cross_attention_probs_dropout_prob=0.3).train(), False)
    mask = texts(model)[2]
    layer = model.get_decoder().encoder.layers[0].cross_attention
    hidden, memory = torch.randn(3, 40, 14, dtype=torch.float64), torch.randn(3, SOURCE, 14, dtype=torch.float64)
    monkeypatch.setattr(attention_cross, "SCORES", 16 * SOURCE)
    largest = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: largest.append(x.numel()) or x, lambda x: x):
        attended, _ = layer.cross_attention(hidden, memory, mask.bool())
    assert max(largest) < 3 * 3 * 40 * SOURCE
    assert torch.isfinite(torch.autograd.grad(attended.sum(), layer.cross_attention.key.weight)[0]).all()


def test_error_under_bf16_autocast():
    """At most 1.2 times that of ordinary autograd."""
    errors = {}
    for reversible in (True, False):
        model = modes_of(
            make_model(["strict_local", "full"], ["strict_local", "full"], dtype=torch.float32).train(), reversible
        )
        source, target, mask = texts(model)
        model(source, mask, labels=target).loss.backward()
        exact = gradients(modes_of(model, False))
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = modes_of(model, reversible)(source, mask, labels=target).loss
        loss.backward()
        errors[reversible] = sum(float((g - exact[n]).square().sum()) for n, g in gradients(model).items()) ** 0.5
    assert 0 < errors[True] <= 1.2 * errors[False]


def kept_and_estimated(source):
    """Bytes that ordinary autograd keeps of three layers of a decoder of 256 tokens, and those that they are taken to keep."""
    sizes = {"hidden_size": 96, "axial_pos_embds_dim": [32, 64], "attention_head_size": 16, "feed_forward_size": 160}
    sizes |= {"max_position_embeddings": 1024, "axial_pos_shape": [32, 32], "reversible": False}
    model = make_model(["strict_local"], ["strict_local"] * 3, dtype=torch.float32, **sizes).train()
    stack, kept = model.get_decoder().encoder, {}
    hidden, memory = (torch.randn(3, length, 96, requires_grad=True) for length in (256, source))
    for tensor in (hidden, memory, *model.parameters()):
        kept[tensor.untyped_storage()._cdata] = (0, tensor)

    def note(tensor):
        kept.setdefault(tensor.untyped_storage()._cdata, (tensor.untyped_storage().nbytes(), tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        stack.streams(hidden, Context(memory=memory))
    estimate = 3 * 256 * sum(layer.bytes_kept(torch.float32, source / 256) for layer in stack.layers)
    return sum(size for size, _ in kept.values()), estimate


def test_the_estimate_of_what_the_decoder_would_keep_is_near_what_it_keeps():
    short, long = kept_and_estimated(64), kept_and_estimated(1024)
    assert 0.7 < short[1] / short[0] < 1.3
    assert 0.7 < (long[1] - short[1]) / (long[0] - short[0]) < 1.3  # what the encoder's tokens cost


# --- labels, masks and losses


def test_labels_are_the_target_and_are_read_shifted():
    model = make_model()
    source, target, mask = texts(model)
    labels = target.clone()
    labels[0, 9:] = -100
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert shifted[:, 0].tolist() == [model.config.decoder_start_token_id] * 3
    assert torch.equal(shifted[1, 1:], target[1, :-1])
    assert shifted[0, 11] == model.config.pad_token_id
    output = model(source, mask, labels=labels)
    logits = model(source, mask, shifted).logits
    assert_close(output.logits, logits, 1e-12)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert_close(output.loss, expected, 1e-12)
    divided = model(source, mask, labels=labels, num_items_in_batch=10).loss
    assert_close(divided * 10, expected * (labels >= 0).sum(), 1e-12)


def test_padding_of_the_source_changes_nothing():
    model = make_model()
    source, target, mask = texts(model)
    together = model(source, mask, target).logits
    for row in range(3):
        real = mask[row].bool()
        alone = model(source[row : row + 1, real], decoder_input_ids=target[row : row + 1]).logits
        assert_close(together[row : row + 1], alone, 1e-10)
    other = torch.where(mask.bool(), source, 7)
    assert torch.equal(together, model(other, mask, target).logits)


def test_a_later_token_of_the_target_changes_no_earlier_logit():
    model = make_model()
    source, target, mask = texts(model)
    changed = target.clone()
    changed[:, 11] = changed[:, 11] % 18 + 1
    before, after = (model(source, mask, ids).logits for ids in (target, changed))
    assert_close(after[:, :11], before[:, :11], 1e-13)
    assert float((before - after)[:, 11:].abs().amax(2).min()) > 1e-3


def test_every_token_of_the_source_is_read():
    model = make_model()
    source, target, _ = texts(model)
    before = model(source, decoder_input_ids=target).logits
    for at in range(SOURCE):
        changed = source.clone()
        changed[:, at] = changed[:, at] % 18 + 1
        assert (model(changed, decoder_input_ids=target).logits - before).abs().amax((1, 2)).min() > 0


def test_outputs_on_request():
    model = make_model()
    source, target, mask = texts(model)
    output = model(source, mask, target, output_attentions=True, output_hidden_states=True)
    assert len(output.decoder_attentions) == len(output.cross_attentions) == 4
    assert len(output.encoder_attentions) == 3
    assert len(output.decoder_hidden_states) == 5
    assert output.cross_attentions[2].shape == (3, 3, TARGET, SOURCE)
    assert_close(output.cross_attentions[2].sum(-1), torch.ones(3, 3, TARGET, dtype=torch.float64), 1e-12)
    assert float(output.cross_attentions[2][0, :, :, 16:].abs().max()) == 0
    with torch.no_grad():
        body = model.reformer(source, mask, target)
    assert body.last_hidden_state.shape == (3, TARGET, 14)
    assert_close(model.lm_head(body.last_hidden_state), output.logits, 1e-10)


# --- cache and generation


@pytest.mark.parametrize("pieces", [[17], [1] * 17, [9, 3, 5]], ids=str)
def test_cached_decoding_equals_the_whole(pieces):
    model = make_model()
    source, target, mask = texts(model)
    with torch.no_grad():
        whole = model(source, mask, target, use_cache=False).logits
        memory, cache, found = model.get_encoder()(source, mask), ReformerCache(model.config), []
        for piece in target.split(pieces, 1):
            output = model(encoder_outputs=memory, attention_mask=mask, decoder_input_ids=piece, past_key_values=cache)
            found.append(output.logits)
    assert_close(torch.cat(found, 1), whole, 1e-10)
    assert all(layer.source[0].shape == (3, 3, SOURCE, 5) for layer in cache.layers)


def test_keys_of_the_source_are_made_once():
    model = make_model()
    source, _, mask = texts(model)
    calls = []
    for layer in model.get_decoder().encoder.layers:
        layer.cross_attention.cross_attention.key.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model.generate(source, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert len(calls) == 4


HOW = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 1.4},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 3, "do_sample": True},
    "several": {"num_beams": 4, "num_return_sequences": 2},
    "prompt": {"decoder_input_ids": torch.tensor([[0, 5, 3], [0, 2, 7], [0, 4, 4]])},
    "padded prompt": {
        "decoder_input_ids": torch.tensor([[0, 5, 3], [0, 0, 7], [0, 4, 4]]),
        "decoder_attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1]]),
    },
}


def generate(model, source, mask, **how):
    torch.manual_seed(5)
    settings = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "suppress_tokens": [0]}
    return model.generate(source, attention_mask=mask, **{**settings, **how})


@pytest.mark.parametrize("how", HOW)
def test_generation_with_and_without_cache(how):
    model = make_model()
    source, _, mask = texts(model)
    cached, plain = (generate(model, source, mask, use_cache=kept, **HOW[how]) for kept in (True, False))
    assert torch.equal(cached, plain)
    assert len(set(cached[:, 1:].flatten().tolist())) > 2


@pytest.mark.parametrize("how", ["greedy", "beams", "prompt"])
def test_generation_of_a_batch_is_that_of_each_row_alone(how):
    model = make_model()
    source, _, mask = texts(model)
    together = generate(model, source, mask, **HOW[how])
    for row in range(3):
        one = {n: x[row : row + 1] if torch.is_tensor(x) else x for n, x in HOW[how].items()}
        alone = generate(model, source[row : row + 1, mask[row].bool()], None, **one)
        assert torch.equal(together[row : row + 1], alone)


def test_more_tokens_than_fit_are_refused_before_any_work():
    model = make_model(decoder_max_position_embeddings=31)
    source, _, mask = texts(model)
    with pytest.raises(ValueError, match=r"start and new tokens may become 33 tokens, .* at most 32"):
        generate(model, source, mask, max_new_tokens=32)


@pytest.mark.parametrize("beams", [1, 2])
def test_the_longest_target_that_can_be_trained_can_be_written(beams):
    model = make_model(decoder_max_position_embeddings=31)
    source, _, mask = texts(model)
    how = {"max_new_tokens": 31, "num_beams": beams, "eos_token_id": None}
    cached, plain = (generate(model, source, mask, use_cache=kept, **how) for kept in (True, False))
    assert cached.shape == (3, 32) and torch.equal(cached, plain)
    assert model(source, attention_mask=mask, labels=cached[:, 1:]).logits.shape[1] == 31


def test_a_cache_is_forked_and_cropped():
    model = make_model()
    source, target, mask = texts(model)
    with torch.no_grad():
        memory = model.get_encoder()(source, mask)
        given = {"encoder_outputs": memory, "attention_mask": mask}
        cache = model(decoder_input_ids=target[:, :9], use_cache=True, **given).past_key_values
        fork = copy.deepcopy(cache)
        first = model(decoder_input_ids=target[:, 9:], past_key_values=cache, **given).logits
        second = model(decoder_input_ids=target[:, 9:], past_key_values=fork, **given).logits
        fork.crop(9 - TARGET)
        third = model(decoder_input_ids=target[:, 9:], past_key_values=fork, **given).logits
    assert torch.equal(first, second)
    assert_close(third, first, 1e-12)


def test_rows_of_a_cache_are_chosen_repeated_and_reordered_with_their_source():
    model = make_model()
    source, target, mask = texts(model)

    def following(rows, change):
        """Logits of the next token, of rows that a cache of all three was changed to."""
        with torch.no_grad():
            cache = model(source, mask, target[:, :9], use_cache=True).past_key_values
            change(cache)
            return model(source[rows], mask[rows], target[rows, 9:10], past_key_values=cache).logits, rows

    changes = {
        (2, 0, 0): lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])),
        (0, 0, 1, 1, 2, 2): lambda cache: cache.batch_repeat_interleave(2),
        (2, 1): lambda cache: cache.batch_select_indices(torch.tensor([2, 1])),
    }
    with torch.no_grad():
        whole = model(source, mask, target[:, :10]).logits[:, 9:]
    for rows, change in changes.items():
        found, rows = following(torch.tensor(rows), change)
        assert_close(found, whole[rows], 1e-10)


# --- as its users call it


def test_saving_and_loading(tmp_path):
    model = make_model()
    source, target, mask = texts(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert type(loaded) is ReformerForConditionalGeneration
    fields = [{**m.config.to_dict(), "_name_or_path": ""} for m in (loaded, model)]
    assert fields[0] == fields[1]
    # not bit for bit: weights that are mapped from a file begin at other addresses, and some processors then add in another order
    assert_close(loaded(source, mask, target).logits, model(source, mask, target).logits, 1e-12)
    assert loaded.generation_config.decoder_start_token_id == 0


def rows(config, count=24):
    source = tokens(config, count, 7).clamp(min=1)
    return [
        {"input_ids": row[: 3 + at % 5].tolist(), "labels": row[: 3 + at % 5].flip(0).tolist()}
        for at, row in enumerate(source)
    ]


def byte_model(**changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 16, "axial_pos_embds_dim": [16, 16]}
    config = make_config(vocab_size=258, **sizes, **changes)
    return ReformerForConditionalGeneration(config)


def test_seq2seq_trainer_with_generation(tmp_path):
    model, tokenizer = byte_model(), ReformerByteTokenizer()
    seen = []
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(
            tmp_path, max_steps=3, per_device_train_batch_size=4, predict_with_generate=True, generation_max_length=12,
            label_smoothing_factor=0.1, report_to="none", eval_strategy="steps", eval_steps=3, use_cpu=True,
        ),
        train_dataset=rows(model.config), eval_dataset=rows(model.config, 6), processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        compute_metrics=lambda found: seen.append(found) or {"rows": len(found.predictions)},
    )  # fmt: skip
    trainer.train()
    assert (seen[0].predictions[:, 12:] == 0).all()  # padded to the configuration's length
    assert trainer.state.log_history[-2]["eval_rows"] == 6
    trainer.save_model(tmp_path / "model")
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model").config.is_encoder_decoder


def test_accumulation_by_tokens(tmp_path):
    """Two steps of two rows each move the parameters as one step of four does, however unequal the numbers of labels."""
    ends = []
    for batch, accumulated in ((4, 1), (2, 2)):
        tokenizer = ReformerByteTokenizer()
        arguments = TrainingArguments(
            tmp_path / str(batch), max_steps=2, per_device_train_batch_size=batch, use_cpu=True, report_to="none",
            gradient_accumulation_steps=accumulated, optim="sgd", learning_rate=0.5, max_grad_norm=0.0,
        )  # fmt: skip
        model = byte_model(hash_seed=1).double()
        collate = DataCollatorForSeq2Seq(tokenizer, model=model)
        Trainer(model, arguments, data_collator=collate, train_dataset=rows(model.config)).train()
        ends.append(dict(model.named_parameters()))
    assert_same_tensors(ends[0], ends[1], 1e-8)


def test_lora(tmp_path):
    peft = pytest.importorskip("peft")
    model = make_model().train()
    source, target, mask = texts(model)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
    ).double()
    found = {}
    for reversible in (True, False):
        modes_of(model, reversible)
        adapted.zero_grad()
        torch.manual_seed(3)
        adapted(input_ids=source, attention_mask=mask, labels=target).loss.backward()
        found[reversible] = gradients(adapted)
    assert any("cross_attention" in name for name in found[True])
    assert_same_tensors(found[True], found[False], 1e-10)
    assert adapted.generate(input_ids=source, attention_mask=mask, max_new_tokens=3).shape[0] == 3


def test_more_words():
    model = make_model()
    source, target, mask = texts(model)
    before = model(source, mask, target).logits
    model.resize_token_embeddings(23, mean_resizing=False)
    assert_close(model(source, mask, target).logits[..., :19], before, 1e-12)
    assert model(source.clamp(max=0) + 22, mask, labels=target.clamp(max=0) + 22).logits.shape[-1] == 23
    other = make_model(STRICT, None, share_encoder_decoder_embeddings=False)
    with pytest.raises(ValueError, match="share_encoder_decoder_embeddings"):
        other.resize_token_embeddings(23)


def test_all_parameters_start_as_the_configuration_says():
    torch.manual_seed(0)
    model = ReformerForConditionalGeneration(make_config())
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
    layer = model.get_decoder().encoder.layers[0].cross_attention
    assert 0.2 < float(layer.cross_attention.query.weight.std()) < 0.4
    assert torch.equal(layer.layer_norm.weight, torch.ones(14))


# --- what is wrong with an input


def call(model, **changes):
    source, target, mask = texts(model)
    return model(**{"input_ids": source, "attention_mask": mask, "decoder_input_ids": target, **changes})


WRONG = {
    "no decoder inputs": ({"decoder_input_ids": None}, "`decoder_input_ids` is None"),
    "no source": ({"input_ids": None}, "`input_ids` and `inputs_embeds`"),
    "source twice": ({"encoder_outputs": (torch.zeros(3, SOURCE, 14).double(),)}, "`input_ids` is given"),
    "mask of another length": ({"attention_mask": torch.ones(3, 5)}, "`attention_mask` has the shape"),
    "rows of the target": ({"decoder_input_ids": torch.ones(2, 4, dtype=torch.long)}, "2 rows"),
    "mask of the target": ({"decoder_attention_mask": torch.ones(3, 5)}, "`decoder_attention_mask` has the shape"),
    "long source": ({"input_ids": torch.ones(3, 230, dtype=torch.long), "attention_mask": None}, "at most 221"),
    "long target": ({"decoder_input_ids": torch.ones(3, 230, dtype=torch.long)}, "`decoder_input_ids` has rows of 230"),
    "words": ({"decoder_input_ids": torch.full((3, 4), 19)}, "`decoder_input_ids` holds 19"),
    "labels": ({"labels": torch.full((3, TARGET), 19)}, "`labels` holds 19"),
    "shape of labels": ({"labels": torch.ones(3, 4, dtype=torch.long)}, "`labels` has the shape"),
    "packed targets": (
        {"decoder_position_ids": torch.cat([torch.arange(9), torch.arange(TARGET - 9)])[None]},
        "`decoder_position_ids` begins again",
    ),
    "a misspelt name": ({"decoder_attention_masks": torch.ones(3, TARGET)}, "did you mean `decoder_attention_mask`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_error_that_names_it(case):
    arguments, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as error:
        call(make_model(), **arguments)
    assert "\n" not in str(error.value)


def test_encoder_outputs_of_a_wrong_shape():
    model = make_model()
    for memory, mask in ((torch.zeros(3, SOURCE, 13), None), (torch.zeros(3, 9, 14), torch.ones(3, SOURCE))):
        with pytest.raises(ValueError, match=r"encoder_outputs|attention_mask"):
            call(model, input_ids=None, encoder_outputs=(memory.double(),), attention_mask=mask)


def test_a_cache_of_another_source_is_refused_and_left_as_it_was():
    model = make_model()
    source, target, mask = texts(model)
    other = texts(model, seed=7)[0]
    with torch.no_grad():
        cache = model(source, mask, target[:, :5], use_cache=True).past_key_values
        for ids, real in ((other, mask), (source[:, :9], mask[:, :9])):
            with pytest.raises(ValueError, match="another source"):
                model(ids, real, target[:, 5:6], past_key_values=cache)
        assert cache.get_seq_length() == 5
        model(source, mask, target[:, 5:6], past_key_values=cache)
        plain = ReformerModelWithLMHead(tiny_config(STRICT)).double().eval()
        cache = plain(target, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="was made for"):
            model(source, mask, target[:, 5:6], past_key_values=cache)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True, "local_num_chunks_after": 0, "lsh_num_chunks_after": 0}, "is_decoder"),
        ({"decoder_attn_layers": []}, "decoder_attn_layers"),
        ({"decoder_attn_layers": ["dense"]}, "'dense' is not one"),
        ({"decoder_vocab_size": 29}, "share_encoder_decoder_embeddings"),
        ({"decoder_max_position_embeddings": 0}, "decoder_max_position_embeddings"),
        ({"decoder_start_token_id": 19}, "decoder_start_token_id"),
        ({"cross_attention_probs_dropout_prob": 1.0}, "cross_attention_probs_dropout_prob"),
        ({"is_encoder_decoder": False}, "decoder_attn_layers"),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_classes_refuse_configurations_of_others():
    with pytest.raises(ValueError, match="AutoModelForSeq2SeqLM"):
        ReformerModel(make_config())
    with pytest.raises(ValueError, match="is_encoder_decoder"):
        ReformerEncoderDecoderModel(tiny_config(STRICT))
    assert isinstance(make_config(), ReformerConfig)
