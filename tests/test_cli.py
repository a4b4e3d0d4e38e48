"""The command line itself: versions, errors in one line, exit codes."""

import subprocess
import sys

import pytest

from hf_reformer import __version__, cli


class Command:
    """A stand-in for a command's module."""

    def __init__(self, run):
        self.run = run

    def register(self, subparsers):
        subparsers.add_parser("stand-in").set_defaults(run=self.run)


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"hf-reformer {__version__}\n"


def test_every_command_is_in_the_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    assert "quickstart" in capsys.readouterr().out


def test_a_missing_command_is_an_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "COMMAND" in capsys.readouterr().err


def test_a_value_error_is_one_line_on_stderr_and_exit_code_2(monkeypatch, capsys):
    def run(arguments):
        raise ValueError("first\n  second")

    monkeypatch.setattr(cli, "COMMANDS", (Command(run),))
    assert cli.main(["stand-in"]) == 2
    assert capsys.readouterr().err == "hf-reformer stand-in: first second\n"


def test_an_interrupt_is_exit_code_130(monkeypatch, capsys):
    def run(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "COMMANDS", (Command(run),))
    assert cli.main(["stand-in"]) == 130


def test_other_errors_are_not_hidden(monkeypatch):
    def run(arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "COMMANDS", (Command(run),))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["stand-in"])


def test_a_command_returns_its_exit_code(monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", (Command(lambda arguments: 7),))
    assert cli.main(["stand-in"]) == 7


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "hf_reformer.cli", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"hf-reformer {__version__}\n")
