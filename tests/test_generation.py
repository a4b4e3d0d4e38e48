"""Everything that `generate` and the text-generation pipeline of transformers can do, with and without the cache the same,
and every row of a batch as it would be alone."""

import contextlib
import io
import json
import warnings
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from helpers import assert_close, build, tiny_config, tokens
from test_trax_parity import config_of, to_our_layout
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
    StopStringCriteria,
    TextStreamer,
    pipeline,
)

from hf_reformer import ReformerByteTokenizer, ReformerCache, ReformerConfig, ReformerModelWithLMHead

STRICT = ["strict_local", "strict_lsh", "full", "strict_lsh"]
NEW = 12


def make_model(layers=STRICT, **changes):
    # token 0 is padding: never generated, so that a mask can be told from the tokens
    return build(tiny_config(layers, use_cache=True, num_hashes=3, **changes))


def prompt(model, batch=2, length=30, seed=0):
    return tokens(model.config, batch, length, seed).clamp(min=1)


def generate(model, input_ids=None, **arguments):
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "suppress_tokens": [0]}
    if input_ids is not None and "attention_mask" not in arguments:
        settings["attention_mask"] = (input_ids != 0).long()
    torch.manual_seed(5)  # for sampling
    return model.generate(input_ids, **{**settings, **arguments})


def left_padded(rows):
    longest = max(len(row) for row in rows)
    return torch.stack([torch.cat([row.new_zeros(longest - len(row)), row]) for row in rows])


# --- the same tokens with and without cache


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"do_sample": True, "temperature": 1.5, "top_k": 7},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
        {"num_beams": 3, "do_sample": True},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"min_new_tokens": 5, "eos_token_id": 7},
        {"num_hashes": 5},
    ],
    ids=lambda how: " ".join(f"{name}={value}" for name, value in how.items()) or "greedy",
)
@pytest.mark.parametrize("padded", [False, True], ids=["all real", "left padding"])
def test_generating_with_the_cache_gives_the_tokens_it_gives_without(how, padded):
    model = make_model()
    input_ids = left_padded([prompt(model)[0], prompt(model)[1, :17]]) if padded else prompt(model)
    expected = generate(model, input_ids, use_cache=False, **how)
    assert torch.equal(generate(model, input_ids, **how), expected)


@pytest.mark.parametrize("layers", [["local"] * 3, ["lsh"]], ids=["local", "lsh"])
def test_published_types_with_the_cache_give_the_tokens_they_give_without(layers):
    model = make_model(layers)
    expected = generate(model, prompt(model), max_new_tokens=30, use_cache=False)
    assert torch.equal(generate(model, prompt(model), max_new_tokens=30), expected)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"prefill_chunk_size": 7}], ids=["greedy", "beams", "chunks"])
def test_each_row_of_a_padded_batch_is_generated_as_it_is_alone(how):
    model = make_model()
    rows = [prompt(model, 1, length, seed=length)[0] for length in (1, 9, 30)]
    together = generate(model, left_padded(rows), **how)
    for row, generated in zip(rows, together, strict=True):
        assert torch.equal(generated[30:], generate(model, row[None], **how)[0, len(row) :])


@pytest.mark.parametrize("length", [1, 2, 3, 6, 7, 40])
def test_prompts_from_one_token_on(length):
    model = make_model(num_buckets=2)
    expected = generate(model, prompt(model, length=length), max_new_tokens=40, use_cache=False)
    assert torch.equal(generate(model, prompt(model, length=length), max_new_tokens=40), expected)


@pytest.mark.parametrize("size", [1, 7, 29, 30, 100])
def test_prefill_in_chunks(size):
    model = make_model()
    expected = generate(model, prompt(model))
    assert torch.equal(generate(model, prompt(model), prefill_chunk_size=size), expected)


def test_prompt_lookup():
    model = make_model()
    input_ids = prompt(model, 1, 10).repeat(1, 3)
    expected = generate(model, input_ids, max_new_tokens=40)
    found = generate(model, input_ids, max_new_tokens=40, prompt_lookup_num_tokens=4)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("room", [0, 1, 3, 6])
def test_prompt_lookup_up_to_the_maximum_length(room):
    model = make_model()
    input_ids = prompt(model, 1, 5).repeat(1, 44)[:, : 221 - room - 1]
    longest = {"max_length": 221, "max_new_tokens": None}
    found = generate(model, input_ids, prompt_lookup_num_tokens=10, **longest)
    assert found.shape == (1, 221)
    assert torch.equal(found, generate(model, input_ids, **longest))


def test_an_assistant_up_to_the_maximum_length():
    model = make_model()
    longest = {"max_length": 221, "max_new_tokens": None}
    found = generate(model, prompt(model, 1, 210), assistant_model=make_model(["strict_lsh"]), **longest)
    assert torch.equal(found, generate(model, prompt(model, 1, 210), **longest))


@pytest.mark.parametrize("assistant", ["smaller", "itself"])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampling"])
def test_assisted_decoding(assistant, do_sample):
    model = make_model()
    helper = model if assistant == "itself" else make_model(["strict_lsh"])
    found = generate(model, prompt(model, 1), max_new_tokens=40, assistant_model=helper, do_sample=do_sample)
    assert found.shape == (1, 70)
    if not do_sample:
        assert torch.equal(found, generate(model, prompt(model, 1), max_new_tokens=40))


def test_embeddings_in_place_of_tokens():
    model = make_model()
    input_ids = prompt(model)
    embeds = model.get_input_embeddings()(input_ids)
    expected = generate(model, input_ids)
    assert torch.equal(generate(model, inputs_embeds=embeds), expected[:, 30:])
    assert torch.equal(generate(model, input_ids, inputs_embeds=embeds), expected)


@pytest.mark.parametrize("only_new", [False, True], ids=["all tokens", "new tokens only"])
def test_going_on_from_a_returned_cache(only_new):
    model = make_model()
    rows = left_padded([prompt(model)[0], prompt(model)[1, :17]])
    first = generate(model, rows, return_dict_in_generate=True)
    assert isinstance(first.past_key_values, ReformerCache)
    turn = torch.cat([first.sequences, prompt(model, 2, 9, seed=3)], 1)
    expected = generate(model, turn, use_cache=False)
    known = first.past_key_values.get_seq_length()
    found = generate(
        model, turn[:, known:] if only_new else turn, attention_mask=(turn != 0).long(),
        past_key_values=first.past_key_values,
    )  # fmt: skip
    assert torch.equal(found[:, -NEW:], expected[:, -NEW:])


def test_a_prompt_that_was_prepared_once_serves_several_continuations():
    import copy

    model = make_model()
    system, cache = prompt(model, 1, 25), ReformerCache(model.config)
    with torch.no_grad():
        model(system, past_key_values=cache)
    for seed in (1, 2, 3):
        question = torch.cat([system, prompt(model, 1, 7, seed)], 1)
        assert torch.equal(
            generate(model, question, past_key_values=copy.deepcopy(cache)), generate(model, question, use_cache=False)
        )


def test_scores_hidden_states_and_attentions_of_every_step():
    model = make_model()
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    found = generate(model, prompt(model), output_hidden_states=True, output_attentions=True, **wanted)
    expected = generate(model, prompt(model), use_cache=False, **wanted)
    for step in range(NEW):
        assert_close(found.logits[step], expected.logits[step], 1e-10)
    assert len(found.hidden_states) == len(found.attentions) == NEW
    assert found.hidden_states[5][2].shape == (2, 1, 14) and found.attentions[5][1].shape[:3] == (2, 3, 1)


def test_logits_processors_and_stopping_criteria_see_the_tokens():
    class Only(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores = torch.full_like(scores, -1e4)
            scores[:, input_ids.shape[1] % 5 + 1] = 0
            return scores

    model = make_model()
    found = generate(
        model, prompt(model), logits_processor=LogitsProcessorList([Only()]), max_new_tokens=30,
        stopping_criteria=StoppingCriteriaList([lambda ids, scores, **kw: torch.tensor([ids.shape[1] >= 36] * 2)]),
    )  # fmt: skip
    assert found[:, 30:].tolist() == [[1, 2, 3, 4, 5, 1]] * 2


# --- words that change the decoding change it as they change the forward


def same_with_and_without(model):
    expected = generate(model, prompt(model), max_new_tokens=30, use_cache=False)
    found = generate(model, prompt(model), max_new_tokens=30)
    assert torch.equal(found, expected)
    return found


def test_lora_counts():
    peft = pytest.importorskip("peft")
    model = make_model()
    before = same_with_and_without(model)
    targets = ["query_key", "query", "key", "value"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=targets, init_lora_weights=False)).eval()
    after = same_with_and_without(adapted)
    assert not torch.equal(before, after)
    with adapted.disable_adapter():
        assert torch.equal(same_with_and_without(adapted), before)


@pytest.mark.filterwarnings("ignore")
def test_int8_dynamic_quantisation_counts():
    if (
        "fbgemm" not in torch.backends.quantized.supported_engines
        and "x86" not in torch.backends.quantized.supported_engines
    ):
        pytest.skip("no quantised kernels on this machine")
    model = make_model().float()
    expected = generate(model, prompt(model), return_dict_in_generate=True, output_logits=True).logits[0]
    small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    wanted = {"return_dict_in_generate": True, "output_logits": True}
    cached, uncached = (generate(small, prompt(model), use_cache=c, **wanted) for c in (True, False))
    assert not torch.equal(cached.logits[0], expected)
    # activations are quantised with the range of the whole call: near, not equal
    assert_close(cached.logits[0], uncached.logits[0], 1e-5)
    assert_close(cached.logits[1], uncached.logits[1], 0.3)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_count_and_their_training_is_refused(where, tmp_path):
    """Accelerate brings each layer's weights in for its turn only; they are no parameters that a gradient could reach."""
    model = make_model()
    expected = same_with_and_without(model)
    device = {"execution_device": torch.device("cpu")}
    offloaded = (
        accelerate.cpu_offload(model, **device)
        if where == "cpu"
        else accelerate.disk_offload(model, tmp_path, **device)
    )
    assert all(parameter.device.type == "meta" for parameter in offloaded.parameters())
    assert torch.equal(same_with_and_without(offloaded), expected)
    ids = prompt(model)
    with pytest.raises(RuntimeError, match="takes a gradient and is none of its parameters"):
        offloaded.train()(ids, labels=ids).loss.backward()


# --- pipeline, streams, strings


@pytest.fixture(scope="module")
def byte_model():
    torch.manual_seed(0)
    config = ReformerConfig(
        attn_layers=["strict_local", "strict_lsh", "strict_local"], vocab_size=258, hidden_size=32, num_attention_heads=2,
        attention_head_size=16, feed_forward_size=32, axial_pos_embds=False, max_position_embeddings=400,
        local_attn_chunk_length=8, lsh_attn_chunk_length=8, num_hashes=4, is_decoder=True, eos_token_id=None,
        initializer_range=0.3,
    )  # fmt: skip
    return ReformerModelWithLMHead(config).eval(), ReformerByteTokenizer(model_max_length=400)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_pipeline_gives_each_prompt_what_it_gets_alone(byte_model, batch_size):
    model, tokenizer = byte_model
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts = ["The reformer", "a", "What was it that the longest prompt of all said?"]
    arguments = {"max_new_tokens": 15, "do_sample": False}
    alone = [generator(text, **arguments)[0]["generated_text"] for text in prompts]
    together = [found[0]["generated_text"] for found in generator(prompts, batch_size=batch_size, **arguments)]
    assert together == alone
    assert all(found.startswith(text) and len(found) > len(text) for found, text in zip(alone, prompts, strict=True))


def test_a_streamer_gets_the_text_and_a_stop_string_ends_it(byte_model):
    model, tokenizer = byte_model
    inputs = tokenizer("The reformer", return_tensors="pt")
    text = tokenizer.decode(model.generate(**inputs, max_new_tokens=30, do_sample=False, pad_token_id=0)[0])
    stop = text[len("The reformer") :][8:10]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        found = model.generate(
            **inputs, max_new_tokens=30, do_sample=False, pad_token_id=0, streamer=TextStreamer(tokenizer),
            stop_strings=[stop], tokenizer=tokenizer,
        )  # fmt: skip
    assert tokenizer.decode(found[0]) == printed.getvalue().rstrip("\n")
    assert stop in printed.getvalue()[len("The reformer") :] and len(found[0]) < len(inputs.input_ids[0]) + 30
    assert StopStringCriteria(tokenizer, [stop])(found, None).all()


def test_nothing_is_printed_and_nobody_is_warned(byte_model, capfd):
    model, tokenizer = byte_model
    inputs = tokenizer("The reformer", return_tensors="pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert capfd.readouterr() == ("", "")


# --- refusals, before work starts


class Untouchable(ReformerModelWithLMHead):
    def forward(self, *args, **kwargs):
        raise AssertionError("work has started")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 192}, "`max_new_tokens` is 192, .* may become 222 tokens, .* at most 221"),
        ({"max_new_tokens": None, "max_length": 300}, "`max_length` is 300, .* at most 221"),
        ({"cache_implementation": "static"}, "`cache_implementation` is 'static', but must be None"),
        ({"past_key_values": object()}, "`past_key_values` is a object, but must be a ReformerCache"),
    ],
)
@pytest.mark.parametrize("as_embeddings", [False, True])
def test_what_cannot_fit_is_refused_before_work_starts(arguments, message, as_embeddings):
    model = build(tiny_config(STRICT, use_cache=True), Untouchable)
    given = {"input_ids": prompt(model)}
    if as_embeddings:
        given = {"inputs_embeds": model.get_input_embeddings()(given["input_ids"])}
    with pytest.raises(ValueError, match=message):
        generate(model, **given, **arguments)


def test_the_longest_text_that_fits_and_the_default_length():
    model = make_model()
    assert generate(model, prompt(model, 1), max_new_tokens=191).shape == (1, 221)
    assert model.generate(prompt(model, 1, 215), do_sample=False, pad_token_id=0).shape == (1, 221)
    assert model.generate(prompt(model, 1, 30), do_sample=False, pad_token_id=0).shape == (1, 50)
    assert model.generate(prompt(model, 1), GenerationConfig(max_new_tokens=3, pad_token_id=0)).shape == (1, 33)


# --- Trax


@pytest.mark.parametrize("pieces", [[1] * 40, [8, 1, 1, 30], [17] + [1] * 23, [40]], ids=str)
def test_trax_decoding_token_by_token(pieces):
    """Trax's predict mode, logits of every step at 1e-5, and its greedy text."""
    fixtures = Path(__file__).parent / "fixtures"
    trax = json.loads((fixtures / "dec01.json").read_text())
    arrays = {name: torch.from_numpy(array) for name, array in np.load(fixtures / "dec01.npz").items()}
    config = config_of(trax, 40, eos_token_id=None)
    model = ReformerModelWithLMHead(config).eval()
    weights = {name.removeprefix("weight."): array for name, array in arrays.items() if name.startswith("weight.")}
    model.load_state_dict(to_our_layout(weights, config.num_hidden_layers))
    cache, logits = ReformerCache(config), []
    with torch.no_grad():
        for piece in arrays["fed_tokens"].long().split(pieces, 1):
            logits.append(model(piece, past_key_values=cache).logits)
    assert_close(torch.cat(logits, 1), arrays["logits"], 1e-5)
    start = torch.zeros(2, 1, dtype=torch.long)
    with_start = model.generate(start, max_new_tokens=39, do_sample=False, attention_mask=start + 1)
    assert torch.equal(with_start[:, 1:], arrays["greedy"][:, :39].long())


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (3,)], ids=str)
def test_a_prompt_without_tokens_is_refused(shape, beams):
    with pytest.raises(ValueError, match="must have at least one row of one token"):
        make_model().generate(torch.zeros(shape, dtype=torch.long), max_new_tokens=2, num_beams=beams, pad_token_id=0)


def test_a_mask_that_is_no_tensor_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match="`attention_mask` is a str"):
        model.generate(prompt(model, 2), attention_mask="", max_new_tokens=2, pad_token_id=0)
