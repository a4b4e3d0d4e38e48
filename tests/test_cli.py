"""The command line itself: quick help, errors in one line, exit codes, pipes, threads."""

import argparse
import errno
import json
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors import SafetensorError

from hf_reformer import __version__, cli
from hf_reformer.cli import terminal, threads

COMMANDS = ["quickstart", "train", "evaluate", "predict", "generate", "demo", "convert", "push", "serve"]


class Command:
    """A stand-in for a command's module."""

    def __init__(self, run):
        self.run = run

    def register(self, subparsers):
        subparsers.add_parser("stand-in").set_defaults(run=self.run)


@pytest.fixture
def stand_in(monkeypatch):
    """Exit code of a command that does what is given."""

    def call(run, *options):
        monkeypatch.setattr(cli, "COMMANDS", (Command(run),))
        return cli.main(["stand-in", *options])

    return call


def fail(error):
    def run(arguments):
        raise error

    return run


def shell(command, **environment):
    """Runs our program in bash, with PROGRAM in its place."""
    command = command.replace("PROGRAM", f"{sys.executable} -m hf_reformer_cli")
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=os.environ | environment
    )


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"hf-reformer {__version__}\n"


def test_every_command_is_in_the_help_with_what_it_does(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    lines = capsys.readouterr().out.split("COMMAND\n")[1].splitlines()
    named = [line.split()[0] for line in lines if line.startswith("    ") and line[4] != " "]
    assert named == COMMANDS
    assert "train a recipe" in " ".join(lines)


QUICK = [
    ["--help"],
    ["--version"],
    ["train", "--help"],
    ["generate", "--no-such-option"],
    ["train", "text", "--minutes", "x"],
    [],
]


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_help_and_wrong_options_import_no_model(arguments):
    code = (
        "import sys, hf_reformer_cli\n"
        "try: hf_reformer_cli.main(sys.argv[1:])\n"
        "except SystemExit as stop: print('CODE', stop.code)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'pydantic', 'yaml'} & {*sys.modules}\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    helpful = arguments[-1:] in (["--help"], ["--version"])
    assert done.stdout.splitlines()[-2:] == [f"CODE {0 if helpful else 2}", "HEAVY []"]
    assert helpful or (done.stderr.count("\n") == 1 and done.stderr.startswith("hf-reformer"))


def test_the_package_is_whole_once_a_command_runs(tmp_path):
    code = (
        "import sys, hf_reformer_cli\n"
        "print(hf_reformer_cli.main(['generate', sys.argv[1], '--prompt', 'a']))\n"
        "import hf_reformer, transformers\n"
        "print(transformers.AutoModel._model_mapping[hf_reformer.ReformerConfig].__module__, hf_reformer.cli.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "hf_reformer.model.modeling_reformer", "hf_reformer.cli"], done.stderr


def test_help_of_train_lists_the_recipes_and_the_keys_of_data(capsys):
    from hf_reformer.training.settings import FORMATS, recipe_names

    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in (*recipe_names(), *(name for settings in FORMATS.values() for name in settings.__dataclass_fields__)):
        assert f" {word}" in text


def test_a_missing_command_is_an_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "COMMAND" in capsys.readouterr().err


def test_a_value_error_is_one_line_on_stderr_and_exit_code_2(stand_in, capsys):
    assert stand_in(fail(ValueError("first\n  second"))) == 2
    assert capsys.readouterr().err == "hf-reformer stand-in: first second\n"


EXPECTED = [
    (OSError(errno.EACCES, "Permission denied", "/proc/x"), 1, "Permission denied: /proc/x"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "file/x"), 1, "Not a directory: file/x"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
    (ConnectionError("the Hub\nis away"), 1, "the Hub is away"),
    (MemoryError(), 1, "MemoryError"),
    (torch.OutOfMemoryError("out of memory"), 1, "out of memory"),
    (zipfile.BadZipFile("File is not a zip file"), 2, "File is not a zip file"),
    (SafetensorError("header too small"), 2, "header too small"),
    (EOFError("ended before the end"), 2, "ended before the end"),
]


@pytest.mark.parametrize(("error", "code", "line"), EXPECTED, ids=lambda value: type(value).__name__)
def test_what_can_be_expected_to_fail_is_one_line(error, code, line, stand_in, capsys):
    assert stand_in(fail(error)) == code
    assert capsys.readouterr().err == f"hf-reformer stand-in: {line}\n"


def test_images_that_are_none_are_a_wrong_input(stand_in, capsys):
    error = pytest.importorskip("PIL").UnidentifiedImageError("cannot identify image file 'a.png'")
    assert stand_in(fail(error)) == 2
    assert capsys.readouterr().err == "hf-reformer stand-in: cannot identify image file 'a.png'\n"


def test_debug_shows_where_an_expected_error_came_from(stand_in):
    with pytest.raises(ValueError, match="wrong"):
        stand_in(fail(ValueError("wrong")), "--debug")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("label"), TypeError("None"), StopIteration()])
def test_programming_errors_are_not_hidden(error, stand_in):
    with pytest.raises(type(error)):
        stand_in(fail(error))


def test_an_interrupt_is_exit_code_130(stand_in, capsys):
    assert stand_in(fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "hf-reformer stand-in: interrupted\n"


def test_a_command_returns_its_exit_code(stand_in):
    assert stand_in(lambda arguments: 7) == 7


def test_the_module_runs_as_a_program():
    done = shell("PROGRAM --version".replace("hf_reformer_cli", "hf_reformer.cli"))
    assert (done.returncode, done.stdout) == (0, f"hf-reformer {__version__}\n")


SPEAKER = (
    "import importlib.util, sys\n"
    "spec = importlib.util.find_spec('hf_reformer')\n"
    "sys.modules['hf_reformer'] = importlib.util.module_from_spec(spec)  # as hf_reformer_cli does: no torch for this\n"
    "from hf_reformer import cli\n"
    "class Command:\n"
    "    def register(subparsers): subparsers.add_parser(sys.argv[1]).set_defaults(run=Command.run)\n"
    "    def run(arguments):\n"
    "        for line in range(100000): print(line, 'ü')\n"
    "        sys.stderr.write('done')\n"
    "        return 5\n"
    "cli.COMMANDS = (Command,)\n"
    "sys.exit(cli.main([sys.argv[1]]))\n"
)


@pytest.mark.parametrize(("command", "code", "stderr"), [("train", 5, "done"), ("convert", 0, "")])
def test_a_run_goes_on_without_a_reader_and_other_commands_end(command, code, stderr, tmp_path):
    (tmp_path / "speaker.py").write_text(SPEAKER)
    done = shell(f"{sys.executable} {tmp_path}/speaker.py {command} | head -1")
    assert (done.returncode, done.stdout, done.stderr) == (code, "0 ü\n", stderr)


def test_what_the_terminal_cannot_show_is_a_question_mark(tmp_path):
    (tmp_path / "speaker.py").write_text(SPEAKER.replace("100000", "1"))
    done = shell(f"{sys.executable} {tmp_path}/speaker.py convert", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (5, "0 ?\n", "done")


def test_commands_are_named_as_they_can_be_typed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [".venv/bin/hf-reformer", "train"])
    assert terminal.as_typed("generate", "a b") == ".venv/bin/hf-reformer generate 'a b'"
    program = tmp_path / "hf-reformer"
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "train"])
    assert terminal.as_typed("train") == "hf-reformer train"
    monkeypatch.setattr(sys, "argv", ["/site/hf_reformer/cli/__main__.py", "train"])
    assert terminal.as_typed("train") == f"{os.path.basename(sys.executable)} -m hf_reformer.cli train"


@pytest.mark.parametrize(
    ("others", "number", "busy"), [(0.0, 4, False), (0.4, 4, False), (0.9, 3, True), (2.6, 1, True), (4.0, 1, True)]
)
def test_as_many_threads_as_cores_that_others_leave_free(others, number, busy):
    spare = threads.Spare(cores=4, others=others)
    assert (spare.threads, spare.busy) == (number, busy)
    assert f"{others:.1f} of 4 cores" in spare.note and f"{number} thread" in spare.note


@pytest.mark.skipif(threads.busy_seconds() is None, reason="the system does not say how busy it is")
def test_own_work_does_not_count_as_that_of_others(monkeypatch):
    monkeypatch.setattr(threads, "busy_seconds", iter([100.0, 103.0]).__next__)
    monkeypatch.setattr(threads.time, "monotonic", iter([0.0, 2.0, 2.0]).__next__)
    monkeypatch.setattr(threads.time, "process_time", iter([5.0, 6.0]).__next__)
    with threads.spare_cores() as spare:
        pass
    assert spare.others == pytest.approx(min(spare.cores, (3.0 - 1.0) / 2.0))


def test_the_named_number_of_threads_computes(stand_in):
    before = torch.get_num_threads()
    try:
        assert stand_in(lambda arguments: torch.get_num_threads(), "--threads", "3") == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5"])
def test_a_number_of_threads_that_is_none_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        threads.count(text)


def test_a_setting_of_the_environment_keeps_its_threads():
    code = (
        "import hf_reformer_cli, hf_reformer.cli.threads as threads; threads.use = lambda number: print(number); "
        "hf_reformer_cli.main(['evaluate', '/'])"
    )
    without = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for environment, chosen in ((without | {"OMP_NUM_THREADS": "3"}, False), (without, True)):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert bool(done.stdout) == chosen, done.stderr


@pytest.fixture
def evaluated(monkeypatch):
    """What `evaluate_model` is called with; it says something on standard output, as callbacks do."""
    calls = []

    def evaluate_model(*arguments, **keywords):
        calls.append((arguments, keywords))
        print("{'eval_loss': 1}")
        return {"loss": 1.5, "name": "ü"}

    monkeypatch.setattr("hf_reformer.training.evaluate.evaluate_model", evaluate_model)
    return calls


@pytest.fixture
def model(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    return tmp_path / "run"


def test_evaluate_writes_json_only_and_finds_the_model_of_a_run(evaluated, model, tmp_path, capsys):
    output = tmp_path / "new" / "results.json"
    output.parent.mkdir()
    names = ["a\u00a0b", "back\\slash", "both'\".txt"]
    arguments = [
        "evaluate", model, "--data", *names, "--batch-size", 3, "--device", "cpu", "--quiet", "--output", output,
        "--revision", "v1", "--predictions", tmp_path / "p.jsonl", "--set", "model.num_hashes=2",
    ]  # fmt: skip
    assert cli.main([*map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"loss": 1.5, "name": "ü"} == json.loads(output.read_text())
    assert "eval_loss" in captured.err
    more = {"batch_size": 3, "device": "cpu", "quiet": True, "revision": "v1", "predictions": str(tmp_path / "p.jsonl")}
    assert evaluated == [((str(model / "model"), None, names, ["model.num_hashes=2"], False), more)]


def test_a_file_that_cannot_be_written_is_found_before_the_work(evaluated, model, tmp_path, capsys):
    assert cli.main(["evaluate", str(model), "--output", "/proc/no/such"]) == 1
    assert cli.main(["evaluate", str(model), "--predictions", str(tmp_path)]) == 2
    assert evaluated == []
    assert capsys.readouterr().err.count("\n") == 2


@pytest.fixture
def trained(monkeypatch):
    """What `train_recipe` is called with."""
    calls = []

    def train_recipe(*arguments, **keywords):
        calls.append((arguments, keywords))
        return 0

    monkeypatch.setattr("hf_reformer.training.run.train_recipe", train_recipe)
    return calls


def test_the_data_of_train_takes_the_place_of_all_other_sources(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a\u00a0b", "back\\slash"]
    assert cli.main(["train", "text", "--output", "o", "--data", *names, "--set", "data.evaluation_files=[c]"]) == 0
    (name, output, changes, smoke, resume, command), more = trained[0]
    assert (name, str(output), smoke, resume, more) == ("text", "o", False, False, {})
    files = [str(tmp_path / name) for name in names]
    empty = [("data", key, None) for key in ("evaluation_files", "dataset", "generated")]
    assert changes == [("data", "files", files), *empty, "data.evaluation_files=[c]"]
    assert command == "hf-reformer train text --data 'a\u00a0b' 'back\\slash' --set 'data.evaluation_files=[c]'"


def test_options_of_train_reach_the_run(trained, capsys):
    options = [
        "--minutes",
        "1.5",
        "--device",
        "cpu",
        "--batch-size",
        "3",
        "--push-to-hub",
        "me/it",
        "--with-code",
        "--quiet",
    ]
    assert cli.main(["train", "text", *options]) == 0
    assert trained[0][1] == {
        "minutes": 1.5, "device": "cpu", "batch_size": 3, "push_to_hub": "me/it", "with_code": True, "quiet": True,
    }  # fmt: skip
    assert capsys.readouterr().out == ""


def test_resume_alone_continues_what_is_in_the_output(trained, capsys):
    assert cli.main(["train", "--resume", "--output", "there"]) == 0
    assert (trained[0][0][0], str(trained[0][0][1]), trained[0][0][4]) == (None, "there", True)
    assert cli.main(["train", "--resume"]) == cli.main(["train", "--output", "there"]) == 2
    assert capsys.readouterr().err.count("RECIPE is missing") == 2


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_minutes_that_are_none_are_refused(minutes, trained, capsys):
    assert cli.main(["train", "text", f"--minutes={minutes}"]) == 2
    assert f"--minutes is {float(minutes)}" in capsys.readouterr().err
    assert trained == []


@pytest.mark.parametrize(
    ("architecture", "code", "words"),
    [("ReformerModelWithLMHead", 0, "generate {} --prompt Once"), ("ReformerForSequenceClassification", 0, "evaluate {}"),
     ("ReformerModelWithLMHead", 130, "train --resume --output {}")],
)  # fmt: skip
def test_the_next_command_is_named(architecture, code, words, monkeypatch, model, capsys):
    (model / "model" / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    monkeypatch.setattr("hf_reformer.training.run.train_recipe", lambda *_, **__: code)
    assert cli.main(["train", "text", "--output", str(model)]) == code
    assert capsys.readouterr().out.endswith(f" {words.format(model)}\n")


def test_a_length_of_no_positions_is_no_conversion(tmp_path, capsys):
    assert cli.main(["convert", str(tmp_path), "--output", str(tmp_path / "o"), "--max-length", "0"]) == 2
    assert "--max-length is 0, but must be at least 1" in capsys.readouterr().err
