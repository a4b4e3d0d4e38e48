"""The code travels with a checkpoint: a process without the package loads it, and a strict model never loads as another.

What happens where the package is neither imported nor trusted is written in the README ("Without this package").
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import build, tiny_config
from transformers import AutoModelForCausalLM

import hf_reformer
from hf_reformer.model import (
    configuration_reformer,
    encoder_decoder,
    heads,
    image_processing_reformer,
    modeling_reformer,
    tokenization_reformer,
)

SCRIPT = Path(__file__).parent / "without_package.py"
PACKAGE = Path(hf_reformer.__file__).parent / "model"
PUBLISHED, STRICT = ["local", "lsh"], ["strict_local", "strict_lsh"]


def modules_that_travel():
    """The files of configuration, models, tokenizer and image processor, and every sibling that they reach."""
    roots = (
        configuration_reformer,
        modeling_reformer,
        encoder_decoder,
        heads,
        tokenization_reformer,
        image_processing_reformer,
    )
    pending = [Path(module.__file__) for module in roots]
    found = {}
    while pending:
        path = pending.pop()
        if path not in found:
            found[path] = ast.parse(path.read_text())
            for node in ast.walk(found[path]):
                if isinstance(node, ast.ImportFrom) and node.level:
                    pending += [PACKAGE / f"{node.module}.py"] if node.module else []
    return found


def test_modules_that_travel_import_each_other_in_the_one_way_that_travels():
    wrong = []
    for path, tree in modules_that_travel().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                ours = [name.name for name in node.names if name.name.split(".")[0] in ("hf_reformer", "conversion")]
            elif isinstance(node, ast.ImportFrom) and node.level:
                flat = node.level == 1 and node.module is not None and "." not in node.module
                ours = [] if flat else [ast.unparse(node)]
            elif isinstance(node, ast.ImportFrom):
                ours = [node.module] if node.module.split(".")[0] in ("hf_reformer", "conversion") else []
            else:
                continue
            wrong += [f"{path.name}:{node.lineno} {name}" for name in ours]
    assert wrong == []


ENCODERS = {
    "AutoModelForMaskedLM": hf_reformer.ReformerForMaskedLM,
    "AutoModelForSequenceClassification": hf_reformer.ReformerForSequenceClassification,
    "AutoModelForSeq2SeqLM": hf_reformer.ReformerForConditionalGeneration,
}
ALL = {"AutoModelForCausalLM": hf_reformer.ReformerModelWithLMHead, **ENCODERS}


@pytest.fixture(scope="module")
def registered():
    """`register_for_auto_class` on the configuration and the classes, undone afterwards."""
    hf_reformer.ReformerConfig.register_for_auto_class()
    hf_reformer.ReformerImageProcessor.register_for_auto_class()
    for name, cls in ALL.items():
        cls.register_for_auto_class(name)
    yield
    for cls in (hf_reformer.ReformerConfig, hf_reformer.ReformerImageProcessor, *ALL.values()):
        cls._auto_class = None


def answers_without_package(jobs, home):
    """One process for all of them: starting it is what takes the time."""
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    process = subprocess.run(
        [sys.executable, str(SCRIPT), json.dumps(jobs)], capture_output=True, text=True, env=environment
    )
    lines = [json.loads(line[7:]) for line in process.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(lines) == len(jobs), process.stderr[-3000:]
    return lines


LENGTH, NEW_TOKENS = 15, 4


@pytest.fixture(scope="module")
def loaded(registered, tmp_path_factory):
    """{kind: (folder, model, answer without trust, answer with trust)}; without trust first, so that nothing is cached."""
    folder = tmp_path_factory.mktemp("carried")
    models = {}
    for kind, layers in {"published": PUBLISHED, "strict": STRICT}.items():
        models[kind] = build(tiny_config(layers, use_cache=True, hash_seed=5), dtype=torch.float32)
        models[kind].save_pretrained(folder / kind)
    jobs = [
        (str(folder / kind), "AutoModelForCausalLM", trust, LENGTH, NEW_TOKENS * trust)
        for trust in (False, True)
        for kind in models
    ]
    hf_reformer.ReformerImageProcessor(do_resize=False, token_offset=2).save_pretrained(folder / "images")
    jobs.append((str(folder / "images"), "AutoImageProcessor", True, 7, 0))
    *answers, images = answers_without_package(jobs, folder / "home")
    return {"images": images} | {
        kind: (folder / kind, model, answers[i], answers[2 + i]) for i, (kind, model) in enumerate(models.items())
    }


def expected(model):
    """Output and generated tokens in this process."""
    tokens = torch.arange(LENGTH)[None] % model.config.vocab_size
    with torch.no_grad():
        output = model(tokens, **({"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}))[
            0
        ].flatten()
    if not model.can_generate():
        return output, None
    mask = torch.ones_like(tokens)
    return output, model.generate(tokens, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist()


@pytest.mark.parametrize("kind", ["published", "strict"])
def test_a_process_without_the_package_computes_and_generates_the_same(kind, loaded):
    folder, model, _, result = loaded[kind]
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModelForCausalLM"}
    output, generated = expected(model)
    assert result["class"].startswith("transformers_modules.")
    assert torch.equal(torch.tensor(result["output"]), output)
    assert result["generated"] == generated


def test_a_strict_checkpoint_fails_loudly_without_package_and_trust(loaded):
    assert "strict_l" in loaded["strict"][2]["error"]


def test_a_published_checkpoint_loads_as_transformers_own_without_package_and_trust(loaded):
    """Same numbers, but for the bias of the head, which transformers 5.23 leaves out."""
    _, model, result, _ = loaded["published"]
    assert result["class"].startswith("transformers.models.reformer.")
    with torch.no_grad():
        difference = expected(model)[0].view(LENGTH, -1) - torch.tensor(result["output"]).view(LENGTH, -1)
        assert float((difference - model.lm_head.bias).abs().max()) < 1e-5


def test_where_the_package_is_imported_its_code_wins(loaded):
    for trust in (None, False, True):
        model = AutoModelForCausalLM.from_pretrained(loaded["strict"][0], trust_remote_code=trust)
        assert type(model) is hf_reformer.ReformerModelWithLMHead


def test_the_code_of_the_image_processor_travels_too(loaded):
    assert loaded["images"]["class"].startswith("transformers_modules.")
    assert loaded["images"]["output"] == list(range(2, 107))


@pytest.mark.slow
def test_other_heads_travel_too(registered, tmp_path):
    models = {
        name: build(
            tiny_config(STRICT, is_decoder=False, is_encoder_decoder="Seq2Seq" in name), cls, dtype=torch.float32
        )
        for name, cls in ENCODERS.items()
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    jobs = [(str(tmp_path / name), name, True, LENGTH, 0) for name in models]
    for model, result in zip(models.values(), answers_without_package(jobs, tmp_path / "home"), strict=True):
        assert torch.equal(torch.tensor(result["output"]), expected(model)[0])
