"""Other doors: `torch.compile` in one graph, `torch.export` and ONNX with lengths that stay open, all equal to eager."""

import io

import pytest
import torch
from helpers import assert_close, build, inject_rotations, rotations_by_layer, tiny_config, tokens

import hf_reformer

PUBLISHED, STRICT = ["local", "lsh"], ["strict_local", "strict_lsh"]
SIZES = [(2, 23), (3, 5), (5, 60), (1, 200), (2, 2)]  # rows and tokens; 221 tokens are the most


def inputs_of(config, batch, length, masked):
    """Token ids and, where wanted, a mask with padding at the left, inside and at the right."""
    inputs = {"input_ids": tokens(config, batch, length)}
    if masked:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, 0] = 0
        if length > 4:
            inputs["attention_mask"][-1, [2, -1]] = 0
    return inputs


def assert_same_logits(actual, model, inputs, tolerance):
    """At real tokens."""
    with torch.no_grad():
        expected = model(**inputs).logits
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    assert_close(actual[real], expected[real], tolerance)


# --- torch.compile --------------------------------------------------------------------------------------------------

BOTH_WAYS = {"is_decoder": False, "lsh_num_chunks_after": 1, "local_num_chunks_after": 1, "lsh_num_chunks_before": 2}


def check_one_graph(model, sizes):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # a graph break would be an error
    for length, masked in sizes:
        inputs = inputs_of(model.config, 2, length, masked)
        with torch.no_grad():
            logits = compiled(**inputs).logits
        assert_same_logits(logits, model, inputs, 1e-5)


@pytest.mark.parametrize("layers", [PUBLISHED, STRICT, ["full", "full_shared_qk"]], ids=["published", "strict", "full"])
def test_compiled_in_one_graph(layers):
    check_one_graph(build(tiny_config(layers, use_cache=True), dtype=torch.float32), [(24, False), (23, True)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("changes", [{}, {"num_buckets": [4, 6]}, BOTH_WAYS], ids=["causal", "factorised", "both ways"])
@pytest.mark.parametrize("layers", [PUBLISHED, STRICT], ids=["published", "strict"])
def test_more_models_compiled_in_one_graph(layers, changes, dtype):
    model = build(tiny_config(layers, **changes), dtype=dtype)
    check_one_graph(model, [(5, False), (5, True), (24, False), (47, True)])


@pytest.mark.slow
@pytest.mark.parametrize("layers", [PUBLISHED, STRICT], ids=["published", "strict"])
def test_compiled_to_machine_code(layers):
    model = build(tiny_config(layers), dtype=torch.float32)
    torch._dynamo.reset()
    compiled, inputs = torch.compile(model, fullgraph=True), inputs_of(model.config, 2, 24, True)
    with torch.no_grad():
        logits = compiled(**inputs).logits
    assert_same_logits(logits, model, inputs, 1e-5)


def test_a_compiled_model_hashes_with_the_rotations_of_the_eager_one(monkeypatch):
    """They are asked for once, when the graph is made, and are constants in it."""
    model = build(tiny_config(["strict_lsh"]), dtype=torch.float32)
    calls = inject_rotations(monkeypatch, rotations_by_layer(model.config, seed=7))
    torch._dynamo.reset()
    compiled, inputs = torch.compile(model, fullgraph=True, backend="eager"), inputs_of(model.config, 2, 60, False)
    with torch.no_grad():
        logits = [compiled(**inputs).logits for _ in range(2)]
    assert len(calls) == 1
    assert torch.equal(*logits)
    assert_same_logits(logits[0], model, inputs, 1e-5)


# --- torch.export and ONNX ------------------------------------------------------------------------------------------


def open_sizes(config, inputs):
    rows = torch.export.Dim("rows", min=1, max=64)
    length = torch.export.Dim("length", min=2, max=config.maximum_length)
    return {name: {0: rows, 1: length} for name in inputs}


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize(
    ("layers", "changes"),
    [
        (STRICT, {}),
        pytest.param(STRICT, BOTH_WAYS, marks=pytest.mark.slow),
        (["full", "full_shared_qk"], {}),
        pytest.param(["strict_lsh"], {"axial_pos_embds": False, "num_buckets": 1}, marks=pytest.mark.slow),
    ],
    ids=["strict", "both ways", "full", "one bucket"],
)
def test_exported_with_open_length_and_number_of_rows(layers, changes, masked):
    model = build(tiny_config(layers, **changes), dtype=torch.float32)
    inputs = inputs_of(model.config, *SIZES[0], masked)
    exported = torch.export.export(model, (), inputs, dynamic_shapes=open_sizes(model.config, inputs)).module()
    for size in SIZES:
        inputs = inputs_of(model.config, *size, masked)
        with torch.no_grad():
            logits = exported(**inputs).logits
        assert_same_logits(logits, model, inputs, 1e-5)


@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True], ids=["", "masked"])
@pytest.mark.parametrize(
    "kind", ["SequenceClassification", pytest.param("TokenClassification", marks=pytest.mark.slow)]
)
def test_heads_are_exported_with_open_sizes_too(kind, masked):
    config = tiny_config(["strict_lsh"], **BOTH_WAYS)
    model = build(config, getattr(hf_reformer, f"ReformerFor{kind}"), dtype=torch.float32)
    inputs = inputs_of(config, *SIZES[0], masked)
    exported = torch.export.export(model, (), inputs, dynamic_shapes=open_sizes(config, inputs)).module()
    for size in SIZES:
        inputs = inputs_of(config, *size, masked)
        with torch.no_grad():
            actual, expected = exported(**inputs).logits, model(**inputs).logits
        if masked and expected.dim() == 3:
            actual, expected = (x[inputs["attention_mask"].bool()] for x in (actual, expected))
        assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True], ids=["", "masked"])
def test_onnx_with_open_length_and_number_of_rows(masked):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build(tiny_config([*STRICT, "full"]), dtype=torch.float32)
    inputs, file = inputs_of(model.config, *SIZES[0], masked), io.BytesIO()
    with torch.no_grad():
        shapes = open_sizes(model.config, inputs)
        program = torch.onnx.export(model, (), kwargs=inputs, dynamic_shapes=shapes, dynamo=True, verbose=False)
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for size in SIZES:
        inputs = inputs_of(model.config, *size, masked)
        [logits, *_] = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        assert_same_logits(torch.from_numpy(logits), model, inputs, 1e-4)
