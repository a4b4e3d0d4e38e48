"""Files and folders that appear whole or not at all."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hf_reformer.files import check_place, replacing_file, replacing_folder


def test_a_file_is_replaced_at_the_end_only(tmp_path):
    path = tmp_path / "new" / "file"
    for text in ("one", "two"):
        with replacing_file(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "folder"
    for name in ("one", "two"):
        with replacing_folder(path) as temporary:
            (temporary / name).touch()
        assert [file.name for file in path.iterdir()] == [name]
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "ordinary").mkdir()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_everything_is_as_before(tmp_path, error):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(error), replacing_file(file) as temporary:
        temporary.write_text("half")
        raise error
    with pytest.raises(error), replacing_folder(folder) as temporary:
        (temporary / "half").touch()
        raise error
    assert file.read_text() == "old"
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "file",
        "folder",
        "folder/old",
    ]


@pytest.fixture
def calls(monkeypatch):
    """(function, path as it is named then) of every flush and rename, in their order."""
    seen, real = [], {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def spy(name, path_of):
        def replacement(*arguments):
            seen.append((name, Path(path_of(arguments[0])).name))
            return real[name](*arguments)

        monkeypatch.setattr(os, name, replacement)

    spy("fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    spy("rename", os.fspath)
    spy("replace", os.fspath)
    return seen


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc")
def test_a_file_is_on_the_disk_before_it_gets_its_name_and_so_is_the_name(tmp_path, calls):
    with replacing_file(tmp_path / "file") as temporary:
        temporary.write_text("text")
    assert calls == [("fsync", temporary.name), ("replace", temporary.name), ("fsync", tmp_path.name)]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc")
def test_a_folder_is_on_the_disk_before_it_gets_its_name_and_so_is_the_name(tmp_path, calls):
    with replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").touch()
    flushed = [("fsync", "inner"), ("fsync", "file"), ("fsync", temporary.name)]
    assert sorted(calls[:3]) == sorted(flushed)
    assert calls[3:] == [("rename", temporary.name), ("fsync", tmp_path.name)]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_no_file_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "file").touch()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_whose_successor_cannot_take_its_place_stays(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    rename = os.rename

    def refuse(source, target):
        if str(source).endswith(".tmp"):
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="no"), replacing_folder(path):
        pass
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")] == ["folder", "folder/old"]


KILLED = """
import os, signal, sys
from hf_reformer import files
where, when = sys.argv[1:]
rename = os.rename
def die(source, target):
    if str(source).endswith(".tmp"):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
if when == "between":
    os.rename = die
with files.replacing_folder(where) as folder:
    (folder / "new").touch()
    if when == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed(tmp_path):
    """The folder that is replaced, and a function that has a process killed while it replaces it."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    files = Path(sys.modules["hf_reformer.files"].__file__)
    package = tmp_path.parent / f"{tmp_path.name}-package" / "hf_reformer"  # the module alone, without PyTorch
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(files, package)

    def kill(when):
        done = subprocess.run([sys.executable, "-c", KILLED, path, when], env={"PYTHONPATH": str(package.parent)})
        assert done.returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 2

    return path, kill


@pytest.mark.parametrize("when", ["writing", "between"])
def test_what_a_killed_process_left_goes_when_the_place_is_written_again(killed, when):
    path, kill = killed
    kill(when)
    with replacing_folder(path) as temporary:
        (temporary / "newer").touch()
        assert [file.name for file in path.iterdir()] == ["old"]  # put back, where only the first rename was done
    assert list(path.parent.iterdir()) == [path]
    assert [file.name for file in path.iterdir()] == ["newer"]


def test_a_file_that_a_dead_process_left_goes(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with replacing_file(tmp_path / "file") as temporary:
        temporary.touch()
        left = temporary.with_name(temporary.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
        left.touch()
    with replacing_file(tmp_path / "file") as temporary:
        temporary.touch()
        assert not left.exists()


def test_what_living_processes_write_and_other_names_stay(tmp_path):
    with replacing_file(tmp_path / "file") as first:
        first.write_text("first")
        other = tmp_path / f".file.of.another{first.name.removeprefix('.file')}"
        other.touch()
        with replacing_file(tmp_path / "file") as second:
            second.write_text("second")
        assert first.exists() and other.exists()
    assert (tmp_path / "file").read_text() == "first"


def test_permissions_never_follow_from_a_umask_that_other_threads_see_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask is set, for all threads"))
    with replacing_folder(tmp_path / "folder"):
        pass
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) & 0o700 == 0o700


def test_threads_may_write_one_place_at_once(tmp_path):
    errors = []

    def write(text):
        try:
            for _ in range(20):
                with replacing_file(tmp_path / "file") as temporary:
                    temporary.write_text(text * 1000)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[text]) for text in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set((tmp_path / "file").read_text())) == 1


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").touch()
    (tmp_path / "link").symlink_to("elsewhere")
    with replacing_folder(tmp_path / "link") as temporary:
        (temporary / "new").touch()
    assert [file.name for file in (tmp_path / "link").iterdir()] == ["new"]
    assert (tmp_path / "elsewhere" / "mine").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link"]


@pytest.mark.parametrize("place", ["file/x", "file/x/y", "x" * 300, "x" * 300 + "/y"])
def test_a_place_that_cannot_be_written_is_known_before(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        check_place(tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_to_ask_for_a_place_makes_nothing(tmp_path):
    check_place(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
