"""`hf-reformer convert` of transformers' checkpoints of 2020 to today, and back to them."""

import json
import os

import pytest
import safetensors
import safetensors.torch
import torch
from helpers import assert_close, build, second_bias, tiny_config, tokens
from huggingface_hub import ModelCard
from transformers import AutoTokenizer
from transformers.models.reformer import ReformerConfig as TheirConfig
from transformers.models.reformer import ReformerModelWithLMHead as TheirModel

import hf_reformer
from hf_reformer.conversion import convert


def published_config(**changes):
    return tiny_config(["local", "lsh"], hash_seed=3, vocab_size=258, **changes)


def logits_of(model, length=24):
    with torch.no_grad():
        return model.eval()(tokens(model.config, 2, length)).logits


@pytest.fixture
def model():
    return build(published_config(), dtype=torch.float32)


OLD_FIELDS = {
    "attn_type": "mixed", "num_hidden_layers": 2, "attention_probs_dropout_prob": 0.1, "num_chunks_before": 1,
    "num_chunks_after": 0, "seed": 3, "sinusoidal_pos_embds": False, "output_past": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 100}},
}  # fmt: skip
RENAMED = ("attn_layers", "hash_seed", "lsh_attention_probs_dropout_prob", "local_attention_probs_dropout_prob")
RENAMED += tuple(f"{kind}_num_chunks_{side}" for kind in ("lsh", "local") for side in ("before", "after"))


def write_of_2020(folder, model, legacy=False, **extra):
    """pytorch_model.bin with the bias twice and the masks as buffers, and a configuration with the old names."""
    folder.mkdir()
    state = dict(model.state_dict())
    state["lm_head.decoder.bias"] = state["lm_head.bias"]
    for layer in range(2):
        attention = f"reformer.encoder.layers.{layer}.attention.self_attention"
        state[f"{attention}.mask_value_float16"] = torch.tensor(-1e4)
        state[f"{attention}.self_mask_value_float32"] = torch.tensor(-1e5)
    torch.save(state | extra, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    fields = {name: value for name, value in model.config.to_dict().items() if name not in (*RENAMED, "reversible")}
    (folder / "config.json").write_text(
        json.dumps(fields | OLD_FIELDS | {"architectures": ["ReformerModelWithLMHead"]})
    )
    return folder


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before PyTorch 1.6"])
def test_a_checkpoint_of_2020(model, tmp_path, legacy):
    convert(write_of_2020(tmp_path / "old", model, legacy), tmp_path / "out")
    new = hf_reformer.ReformerModelWithLMHead.from_pretrained(tmp_path / "out")
    assert new.config.attn_layers == ["local", "lsh"]
    assert new.config.lsh_attention_probs_dropout_prob == 0.1
    assert torch.equal(logits_of(new), logits_of(model))
    with safetensors.safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(model.state_dict())


def test_a_bias_that_is_there_under_its_old_name_only(model, tmp_path):
    source = write_of_2020(tmp_path / "old", model)
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    del state["lm_head.bias"]
    torch.save(state, source / "pytorch_model.bin")
    convert(source, tmp_path / "out")
    new = hf_reformer.ReformerModelWithLMHead.from_pretrained(tmp_path / "out")
    assert torch.equal(new.lm_head.bias, model.lm_head.bias)


def test_two_biases_that_differ_are_an_error(model, tmp_path):
    source = write_of_2020(tmp_path / "old", model, **{"lm_head.decoder.bias": torch.zeros(258)})
    with pytest.raises(ValueError, match="lm_head.bias is there twice"):
        convert(source, tmp_path / "out")


def save_changed(folder, model, change, **fields):
    """pytorch_model.bin with every tensor changed by `change(index, tensor)`, and a configuration with other fields."""
    folder.mkdir()
    tensors = {name: change(i, tensor) for i, (name, tensor) in enumerate(model.state_dict().items())}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict() | fields))
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_stay_as_stored(model, tmp_path, dtype):
    convert(save_changed(tmp_path / "old", model, lambda _, tensor: tensor.to(dtype)), tmp_path / "out")
    new = safetensors.torch.load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(new[name], tensor.to(dtype)) for name, tensor in model.state_dict().items())


def test_weights_of_several_types_take_the_widest_with_a_note(model, tmp_path):
    source = save_changed(tmp_path / "old", model, lambda i, tensor: tensor.half() if i % 2 else tensor)
    report = convert(source, tmp_path / "out")
    assert report.notes == ["weights of torch.float16, torch.float32 are all torch.float32 now"]


def test_weights_of_integers_are_refused_by_name(model, tmp_path):
    source = save_changed(tmp_path / "old", model, lambda i, tensor: tensor.long() if i < 2 else tensor)
    with pytest.raises(ValueError, match=r"2 problems: reformer.embeddings.word_embeddings.weight is of torch.int64"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("architectures", [None, 5, [5], "ReformerModel", []])
def test_architectures_that_name_nothing_leave_it_to_the_weights(model, tmp_path, architectures):
    source = save_changed(tmp_path / "old", model, lambda _, tensor: tensor, architectures=architectures)
    convert(source, tmp_path / "out")
    fields = json.loads((tmp_path / "out/config.json").read_text())
    assert fields["architectures"] == ["ReformerModelWithLMHead"]


def test_a_reference_to_code_elsewhere_stays_behind(model, tmp_path):
    code = {"AutoModelForCausalLM": "somebody/else--modeling_reformer.ReformerModelWithLMHead"}
    source = save_changed(tmp_path / "old", model, lambda _, tensor: tensor, auto_map=code)
    hf_reformer.ReformerByteTokenizer(model_max_length=77).save_pretrained(source)
    path = source / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["somebody/else--t.T", None]}})
    )
    convert(source, tmp_path / "out")
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "out" / name).read_text())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 77


def test_a_quantised_checkpoint_is_refused(model, tmp_path):
    source = save_changed(tmp_path / "old", model, lambda _, tensor: tensor, quantization_config={"load_in_8bit": True})
    with pytest.raises(ValueError, match="quantised"):
        convert(source, tmp_path / "out")


def test_pytorch_shards(model, tmp_path):
    names = list(model.state_dict())
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    source = save_changed(tmp_path / "old", model, lambda _, tensor: tensor)
    (source / "pytorch_model.bin").unlink()
    for file in set(files.values()):
        torch.save({name: model.state_dict()[name] for name in names if files[name] == file}, source / file)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    convert(source, tmp_path / "out")
    new = hf_reformer.ReformerModelWithLMHead.from_pretrained(tmp_path / "out")
    assert torch.equal(logits_of(new), logits_of(model))


def test_everything_that_does_not_fit_is_listed(model, tmp_path):
    source = write_of_2020(tmp_path / "old", model, surplus=torch.zeros(2), another=torch.zeros(3))
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    del state["reformer.encoder.layer_norm.weight"]
    state["lm_head.bias"] = state["lm_head.decoder.bias"] = torch.zeros(5)
    torch.save(state, source / "pytorch_model.bin")
    with pytest.raises(ValueError) as error:
        convert(source, tmp_path / "out")
    for text in (
        "missing: reformer.encoder.layer_norm.weight",
        "unused: surplus",
        "unused: another",
        "lm_head.bias has",
    ):
        assert text in str(error.value)
    assert "4 problems" in str(error.value)
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize("bits", [True, False], ids=["sharded", "whole"])
def test_safetensors(model, tmp_path, bits):
    model.save_pretrained(tmp_path / "source", **({"max_shard_size": "10KB"} if bits else {}))
    assert (tmp_path / "source/model.safetensors.index.json").exists() == bits
    convert(tmp_path / "source", tmp_path / "out")
    new = hf_reformer.ReformerModelWithLMHead.from_pretrained(tmp_path / "out")
    assert torch.equal(logits_of(new), logits_of(model))


@pytest.mark.parametrize("file", ["../../outside.safetensors", "/etc/passwd", "absent.safetensors", "config.json"])
def test_an_index_names_nothing_but_weights_beside_it(model, tmp_path, file):
    model.save_pretrained(tmp_path / "source", max_shard_size="10KB")
    index = tmp_path / "source/model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.bias"] = file
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="names files that are not weights beside it|do not exist"):
        convert(tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "decoder"),
    [
        ("ReformerModel", True),
        ("ReformerForMaskedLM", False),
        ("ReformerForSequenceClassification", False),
        ("ReformerForTokenClassification", False),
        ("ReformerForQuestionAnswering", False),
    ],
)
@pytest.mark.parametrize("named", [True, False], ids=["architectures", "names of tensors"])
def test_every_head(tmp_path, kind, decoder, named):
    cls = getattr(hf_reformer, kind)
    config = published_config(is_decoder=decoder)
    build(config, cls, dtype=torch.float32).save_pretrained(tmp_path / "source")
    if not named:
        path = tmp_path / "source/config.json"
        fields = json.loads(path.read_text())
        del fields["architectures"]
        path.write_text(json.dumps(fields))
    convert(tmp_path / "source", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [kind]
    first, second = (safetensors.torch.load_file(tmp_path / n / "model.safetensors") for n in ("source", "out"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_to_transformers(model, tmp_path):
    """transformers computes the same numbers, plus the bias that its head leaves out."""
    model.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
    fields = json.loads((tmp_path / "theirs/config.json").read_text())
    assert not {"reversible", "allow_duplicate_attention"} & fields.keys()
    theirs = TheirModel(TheirConfig.from_dict(fields))
    state = safetensors.torch.load_file(tmp_path / "theirs/model.safetensors")
    theirs.load_state_dict(state | second_bias(theirs))
    assert_close(logits_of(theirs) + model.lm_head.bias, logits_of(model), 1e-5)
    convert(tmp_path / "theirs", tmp_path / "again")
    again = safetensors.torch.load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


def test_to_transformers_writes_the_number_of_buckets_out(tmp_path):
    build(published_config(num_buckets=None), dtype=torch.float32).save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
    assert json.loads((tmp_path / "theirs/config.json").read_text())["num_buckets"] == 74


@pytest.mark.parametrize("changes", [{"attn_layers": ["strict_local"]}, {"allow_duplicate_attention": False}])
def test_to_transformers_refuses_what_it_cannot_compute(tmp_path, changes):
    config = tiny_config(**{"attn_layers": ["local"], **changes})
    build(config, dtype=torch.float32).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="transformers' Reformer cannot compute"):
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
    assert os.listdir(tmp_path) == ["ours"]


# --- what else is written -------------------------------------------------------------------------------------------


def test_a_vocabulary_of_258_gets_the_byte_tokenizer_and_a_card(model, tmp_path):
    model.save_pretrained(tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("Ü").input_ids == [0xC3 + 2, 0x9C + 2]
    assert tokenizer.model_max_length == model.config.maximum_length
    card = (tmp_path / "out/README.md").read_text()
    assert ModelCard(card).data.pipeline_tag == "text-generation"
    assert all(line in card for line in report.fingerprint.splitlines())
    assert "import hf_reformer" in card
    assert sorted(os.listdir(tmp_path / "out")) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_a_sentencepiece_model_beside_the_source(tmp_path):
    spm = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    config = tiny_config(["local"], vocab_size=60)
    build(config, dtype=torch.float32).save_pretrained(tmp_path / "source")
    text = tmp_path / "text"
    text.write_text("a few months later he was positively for an inst\n" * 20)
    spm.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "source/spiece"), vocab_size=40, model_type="bpe", minloglevel=2
    )
    convert(tmp_path / "source", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert isinstance(tokenizer, hf_reformer.ReformerTokenizer)
    expected = spm.SentencePieceProcessor(model_file=str(tmp_path / "source/spiece.model")).encode("a few months later")
    assert tokenizer("a few months later", add_special_tokens=False).input_ids == expected
    with pytest.raises(ValueError, match="has 40 tokens, but the vocabulary has 19"):
        build(tiny_config(["local"]), dtype=torch.float32).save_pretrained(tmp_path / "small")
        convert(tmp_path / "small", tmp_path / "other", tokenizer=str(tmp_path / "source/spiece.model"))


@pytest.fixture
def source(model, tmp_path):
    """A folder with a model and the four files of a tokenizer."""
    model.save_pretrained(tmp_path / "source")
    hf_reformer.ReformerByteTokenizer(model_max_length=77).save_pretrained(tmp_path / "source")
    (tmp_path / "source/special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    (tmp_path / "source/added_tokens.json").write_text("{}")
    return tmp_path / "source"


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def test_the_files_of_a_tokenizer_are_copied(source, tmp_path):
    convert(source, tmp_path / "out")
    for name in TOKENIZER_FILES:
        assert (tmp_path / "out" / name).read_text() == (source / name).read_text()


@pytest.mark.parametrize("name", TOKENIZER_FILES)
@pytest.mark.parametrize("kind", ["file outside", "device", "pipe", "text", "list", "deep", "zeros"])
def test_a_file_of_a_tokenizer_that_is_none_is_refused(source, tmp_path, name, kind):
    (tmp_path / "secret.json").write_text('{"pad_token": "secret"}')
    path = source / name
    path.unlink()
    texts = {"text": "secret", "list": "[]", "deep": '{"a":' * 10_000}
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zeros":
        with open(path, "wb") as file:
            file.truncate(2**40)  # takes no room
    elif kind in texts:
        path.write_text(texts[kind])
    else:
        path.symlink_to("../secret.json" if kind == "file outside" else "/dev/zero")
    with pytest.raises(ValueError, match=name):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "spiece.model"])
def test_other_files_that_are_found_in_a_folder_are_not_those_of_somebody_else(source, tmp_path, name):
    if (source / name).exists():
        (source / name).rename(tmp_path / name)
    else:
        (tmp_path / name).touch()
    (source / name).symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is a link to .*, outside its folder"):
        convert(source, tmp_path / "out")


def test_links_within_a_folder_are_followed(source, tmp_path):
    (source / "tokenizer.json").rename(source / "real.json")
    (source / "tokenizer.json").symlink_to("real.json")
    convert(source, tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_text() == (source / "real.json").read_text()
    assert not (tmp_path / "out/tokenizer.json").is_symlink()


@pytest.fixture
def cache(source, tmp_path):
    """The same model as a snapshot in the Hub's cache: (snapshot, blobs)."""
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(source.iterdir()):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot, blobs


def test_a_snapshot_in_the_cache_of_the_hub_is_read(cache, tmp_path):
    convert(cache[0], tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 77


@pytest.mark.parametrize("how", ["blob", "blobs", "beside"])
def test_a_cache_whose_blobs_lead_elsewhere_is_refused(cache, tmp_path, how):
    snapshot, blobs = cache
    blob = (snapshot / "tokenizer.json").resolve()
    if how == "blob":
        blob.rename(tmp_path / "secret")
        blob.symlink_to(tmp_path / "secret")
    elif how == "blobs":
        blobs.rename(tmp_path / "home")
        blobs.symlink_to(tmp_path / "home")
    else:
        blob.rename(blobs.parent / "secret")
        (snapshot / "tokenizer.json").unlink()
        (snapshot / "tokenizer.json").symlink_to("../../secret")
    with pytest.raises(ValueError, match="outside its folder"):
        convert(snapshot, tmp_path / "out")


@pytest.mark.parametrize("change", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(source, tmp_path, change):
    fields = json.loads((source / change).read_text())
    if change == "tokenizer.json":
        fields["added_tokens"].append(fields["added_tokens"][0] | {"id": 258, "content": "<more>"})
    else:
        fields["mask_token"] = "<mask>"  # not in the vocabulary, so it is added to it
    (source / change).write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="has 259 tokens, but the vocabulary has 258"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_json_that_is_no_tokenizer_is_refused(source, tmp_path):
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json cannot be read as a tokenizer"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- what can be told before the work -------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["file/x", "x" * 300])
def test_an_output_that_cannot_be_written_is_known_before_anything_is_read(tmp_path, output, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("hf_reformer.conversion.converting.read_checkpoint", lambda *_: pytest.fail("read"))
    with pytest.raises(ValueError, match="cannot be written"):
        convert(tmp_path / "source", tmp_path / output)


def test_a_source_that_the_system_cannot_read_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: File name too long"):
        convert(tmp_path / ("x" * 300), tmp_path / "out")


@pytest.mark.parametrize(("length", "message"), [(0, "must be at least 1"), (5, "stores its positions")])
def test_a_length_that_has_no_effect_is_refused(source, tmp_path, length, message):
    with pytest.raises(ValueError, match=f"`max_length` is {length}, .*{message}"):
        convert(source, tmp_path / "out", max_length=length)


def test_the_fingerprint_tells_models_apart(model, tmp_path):
    model.save_pretrained(tmp_path / "a")
    first = convert(tmp_path / "a", tmp_path / "out").fingerprint
    assert first == convert(tmp_path / "a", tmp_path / "again").fingerprint
    with torch.no_grad():
        model.lm_head.bias[0] += 1e-6
    model.save_pretrained(tmp_path / "b")
    assert convert(tmp_path / "b", tmp_path / "other").fingerprint.splitlines()[0] != first.splitlines()[0]


def test_weights_that_give_nan_are_refused(model, tmp_path):
    with torch.no_grad():
        model.lm_head.bias[0] = float("nan")
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="NaN"):
        convert(tmp_path / "source", tmp_path / "out")


def test_an_output_with_anything_in_it_is_left_alone(model, tmp_path):
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("precious")
    with pytest.raises(ValueError, match="exists already"):
        convert(tmp_path / "source", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_a_failure_while_writing_leaves_nothing(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "source")
    monkeypatch.setattr(
        "hf_reformer.conversion.converting.model_card", lambda *a: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        convert(tmp_path / "source", tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]


def test_a_sentencepiece_model_without_pieces_is_refused(model, tmp_path):
    write_of_2020(tmp_path / "old", model)
    (tmp_path / "old/spiece.model").write_bytes(b"")
    with pytest.raises(ValueError, match=r"spiece.model cannot be read as a tokenizer"):
        convert(tmp_path / "old", tmp_path / "out")
    assert not (tmp_path / "out").exists()
