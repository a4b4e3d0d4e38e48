"""Push and pull for real, against a Hub on the loopback interface (`hub_server`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer

TESTS = Path(__file__).parent


def run_client(server, home, script, *arguments, token=TOKEN):
    """{step: what it said}."""
    environment = os.environ | {
        "HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*",
    }  # fmt: skip
    process = subprocess.run(
        [sys.executable, str(TESTS / script), *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    lines = [json.loads(line[7:]) for line in process.stdout.splitlines() if line.startswith("ANSWER ")]
    assert process.returncode == 0, process.stderr[-4000:]
    return lines


def steps(lines):
    return {line["step"]: line for line in lines}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """(server, what the client said in each step). One shard breaks off after 1,000 bytes when it is first pulled."""
    with HubServer() as server:
        server.cut_once[".safetensors"] = 1000
        yield server, steps(run_client(server, tmp_path_factory.mktemp("home"), "hub_client.py"))


def test_code_weights_tokenizer_and_card_arrive(hub):
    server, _ = hub
    files = server.files("tester/strict")
    assert {
        "config.json",
        "modeling_reformer.py",
        "configuration_reformer.py",
        "tokenizer.json",
        "README.md",
    } <= files.keys()
    shards = [path for path in files if path.endswith(".safetensors")]
    assert len(shards) > 1 and "model.safetensors.index.json" in files
    assert all(files[path].lfs for path in shards) and not files["config.json"].lfs
    assert b"# Strict" in files["README.md"].content
    assert server.repositories["tester/strict"].private


@pytest.mark.parametrize(("revision", "pushed_as"), [("main", "logits"), ("v1", "logits"), ("other", "other")])
def test_what_is_pulled_by_name_computes_the_same(hub, revision, pushed_as):
    _, said = hub
    assert said[revision]["logits"] == said["pushed"][pushed_as]
    assert said["main"]["logits"] != said["other"]["logits"]


def test_trainer_pushes_checkpoints_and_result(hub):
    server, said = hub
    files = server.files("tester/trained")
    assert {"model.safetensors", "config.json", "training_args.bin", "README.md", "tokenizer.json"} <= files.keys()
    assert any(path.startswith("last-checkpoint/") for path in files)
    assert said["pulled trained"]["logits"] == said["trained"]["logits"]
    assert said["pulled trained"]["type"] == "ReformerModelWithLMHead"


def test_an_image_processor_is_pushed_with_checkpoint_and_result_and_pulled_by_name(hub):
    server, said = hub
    files = server.files("tester/images")
    assert {"preprocessor_config.json", "last-checkpoint/preprocessor_config.json", "model.safetensors"} <= files.keys()
    assert said["image processor"] == {
        "step": "image processor", "type": "ReformerImageProcessor", "ids": [2] * 45,
    }  # fmt: skip
    assert said["pulled with images"]["logits"] == said["trained on images"]["logits"]


def test_tokenizer_and_pipeline_by_name(hub):
    _, said = hub
    assert said["tokenizer"]["ids"] == [0xC3 + 2, 0xA9 + 2]
    assert said["pipeline"]["text"].startswith("ab")


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub):
    server, _ = hub
    assert [range_ for _, path, range_ in server.requests if range_] == ["bytes=1000-"]
    assert server.cut_once == {}


def test_wrong_and_missing_tokens_are_refused(hub):
    _, said = hub
    assert "401" in said["refused"]["error"]
    assert "tester/strict" in said["anonymous"]["error"]


def test_a_process_without_the_package_pulls_code_and_weights(hub, tmp_path):
    server, said = hub
    job = ["tester/strict", "AutoModelForCausalLM", True, 15, 0]
    [answer] = run_client(server, tmp_path, "without_package.py", json.dumps([job]))
    assert answer["output"] == said["pushed"]["logits"]
