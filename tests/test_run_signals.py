"""Signals to a run of the command: what the shell ignores, a lost terminal, notice from a queue, a second Ctrl-C."""

import os
import pty
import select
import signal
import sys

import pytest
from runs import results_of, signal_at, train, write_recipe

from hf_reformer.training.checkpoints import latest_whole_checkpoint
from hf_reformer.training.trainer import RecipeTrainer


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


@pytest.fixture(autouse=True)
def _ordinary_interrupts():
    """Python's own handler of Ctrl-C, also where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_the_step_and_the_run_goes_on_from_it(number, recipe, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_at(patch, 2, number)
        assert train(recipe, tmp_path / "run") == 128 + number
    assert "stopped after step 3 of 6, saved; the same command with --resume continues" in capsys.readouterr().out
    assert latest_whole_checkpoint(tmp_path / "run").name == "checkpoint-3"
    assert signal.getsignal(number) == before
    assert train(recipe, tmp_path / "run", more=["--resume"]) == 0


def test_what_was_started_to_ignore_ctrl_c_ignores_it(recipe, tmp_path, monkeypatch):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal_at(monkeypatch, 2, signal.SIGINT)
    assert train(recipe, tmp_path / "run") == 0
    assert results_of(tmp_path / "run")["steps"] == 6


def test_a_second_ctrl_c_stops_at_once_and_keeps_what_was_saved(recipe, tmp_path, monkeypatch, capfd):
    signal_at(monkeypatch, 5, signal.SIGINT, times=2)
    assert train(recipe, tmp_path / "run") == 130
    assert "Ctrl-C once more stops at once" in capfd.readouterr().err
    assert latest_whole_checkpoint(tmp_path / "run").name == "checkpoint-4"


def test_a_second_ctrl_c_during_an_evaluation_stops_at_once(recipe, tmp_path, monkeypatch, capfd):
    original, count = RecipeTrainer.prediction_step, []

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 4:
            count.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RecipeTrainer, "prediction_step", interrupted)
    assert train(recipe, tmp_path / "run", "training.per_device_eval_batch_size=1") == 130
    assert len(count) == 2
    assert "stopping after this step, and saving" in capfd.readouterr().err


def test_a_run_whose_terminal_is_lost_is_saved(recipe, tmp_path):
    """The other end of the terminal is closed in the midst of a step: from then on each line written to it is an error."""
    (tmp_path / "lost").write_text(
        "import os, signal, sys, time\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "import pytest\n"
        "from runs import train\n"
        "from hf_reformer.training.trainer import RecipeTrainer\n"
        "original = RecipeTrainer.training_step\n"
        "def waiting(self, *args, **kwargs):\n"
        "    if self.state.global_step == 2:\n"
        f"        open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        f"        while not os.path.exists({str(tmp_path / 'gone')!r}): time.sleep(0.05)\n"
        "        time.sleep(0.2)\n"
        "    return original(self, *args, **kwargs)\n"
        "RecipeTrainer.training_step = waiting\n"
        f"code = train({str(recipe)!r}, {str(tmp_path / 'run')!r}, 'training.disable_tqdm=false')\n"
        f"open({str(tmp_path / 'code')!r}, 'w').write(str(code))\n"
    )
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, str(tmp_path / "lost")])
    said = b""
    while not (tmp_path / "ready").exists():
        if select.select([terminal], [], [], 0.1)[0]:
            said += os.read(terminal, 1 << 16)
    os.close(terminal)
    (tmp_path / "gone").touch()
    os.waitpid(process, 0)
    assert (tmp_path / "code").exists(), said.decode(errors="replace")[-2000:]
    assert (tmp_path / "code").read_text() == str(128 + signal.SIGHUP)
    assert latest_whole_checkpoint(tmp_path / "run").name == "checkpoint-3"
