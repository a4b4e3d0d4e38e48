"""Files and folders that appear whole or not at all."""

import stat

import pytest

from hf_reformer.files import replacing_file, replacing_folder


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
