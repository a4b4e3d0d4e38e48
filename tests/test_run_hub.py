"""A run that pushes its model, and models of the Hub as start and in `evaluate`, at the revision that is named."""

import pytest
from hub_server import HubServer
from runs import results_of
from test_hub import run_client, steps


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """(server, folder of the runs, what was said)."""
    folder = tmp_path_factory.mktemp("pushed")
    with HubServer() as server:
        yield server, folder, steps(run_client(server, folder / "home", "recipe_hub_client.py", str(folder)))


def test_the_finished_model_is_pushed_with_its_card_and_nothing_of_the_run(pushed):
    server, folder, _ = pushed
    files = server.files("tester/run")
    assert {"config.json", "model.safetensors", "README.md", "recipe.yaml", "run.json"} <= files.keys()
    assert files["model.safetensors"].content == (folder / "4" / "model" / "model.safetensors").read_bytes()
    assert f"{results_of(folder / '4')['after']['loss']:.4f}".encode() in files["README.md"].content
    assert not [name for name in files if name.startswith(("checkpoint", "samples", ".lock", "training_args"))]


def test_evaluate_measures_the_revision_that_is_named(pushed):
    _, folder, said = pushed
    for count in (2, 4):
        assert said[f"v{count}"]["loss"] == pytest.approx(results_of(folder / str(count))["after"]["loss"], rel=1e-5)


def test_a_training_starts_from_the_revision_that_is_named(pushed):
    _, folder, _ = pushed
    before = results_of(folder / "more")["before"]["loss"]
    assert before == pytest.approx(results_of(folder / "2")["after"]["loss"], rel=1e-5)
