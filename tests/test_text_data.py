"""Text as bytes: which files are found, how they are split, which windows are drawn."""

import random

import pytest
import torch

from hf_reformer.training.text_data import (
    as_bytes_tensor,
    draw_windows,
    find_files,
    gzip_bits_per_byte,
    split_by_file,
    standard_library_files,
    xz_bits_per_byte,
)


def write(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text)
    return sorted(folder.glob("*.txt"))


def test_the_standard_library_is_found_without_tests_and_installed_packages():
    files = standard_library_files()
    assert any(file.name == "argparse.py" for file in files)
    assert all(file.suffix == ".py" for file in files)
    assert not {"site-packages", "test", "tests"} & {part for file in files for part in file.parts[-3:-1]}
    assert files == standard_library_files()


def test_folders_give_their_text_files_and_files_are_taken_as_they_are(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / ".hidden").write_text("no")
    (inner / "picture").write_bytes(b"\x89PNG\0\0")
    (inner / "b").write_text("yes")
    (tmp_path / "a").write_text("yes")
    assert find_files([tmp_path, tmp_path / "a"]) == [tmp_path / "a", inner / "b"]
    assert find_files([inner / "picture"]) == [inner / "picture"]


def test_paths_without_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere.*does not exist; allowed are files and folders"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="holds no text file"):
        find_files([tmp_path])


def test_the_split_is_by_file_and_depends_on_the_seed_alone(tmp_path):
    texts = {f"f{i}": bytes([65 + i]) * 101 for i in range(17)}
    files = write(tmp_path, **texts)
    split = split_by_file(files, seed=3, held_out_bytes=205)
    assert split == split_by_file(files, seed=3, held_out_bytes=205)
    assert split != split_by_file(files, seed=4, held_out_bytes=205)
    assert not set(split.training) & set(split.held_out)
    assert sorted(split.training + split.held_out) == sorted(b"".join(texts.values()))
    assert (len(split.held_out), split.held_out_files, split.training_files) == (303, 3, 14)


def test_no_more_than_about_a_quarter_is_held_out(tmp_path):
    split = split_by_file(write(tmp_path, **{f"f{i}": b"x" * 97 for i in range(12)}), seed=0, held_out_bytes=10**6)
    assert (split.held_out_files, split.training_files) == (3, 9)


def test_of_a_single_file_the_end_is_held_out(tmp_path):
    split = split_by_file(write(tmp_path, only=b"abcdefgh", empty=b""), seed=0, held_out_bytes=100)
    assert (split.training, split.held_out) == (b"abcdef", b"gh")


def test_empty_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data has 0 bytes in 1 files"):
        split_by_file(write(tmp_path, empty=b""), seed=0, held_out_bytes=100)


def test_windows_are_a_function_of_seed_and_step_and_reach_both_ends():
    text = as_bytes_tensor(bytes(range(13)))
    state = torch.get_rng_state()
    windows = draw_windows(text, length=11, count=50, seed=5, step=7)
    assert torch.equal(windows, draw_windows(text, length=11, count=50, seed=5, step=7))
    assert not torch.equal(windows, draw_windows(text, length=11, count=50, seed=5, step=8))
    assert not torch.equal(windows, draw_windows(text, length=11, count=50, seed=6, step=7))
    assert {tuple(window) for window in windows.tolist()} == {tuple(range(i, i + 11)) for i in range(3)}
    assert torch.equal(state, torch.get_rng_state())


def test_compressors_need_little_for_repetition_and_all_bits_for_noise():
    noise = random.Random(0).randbytes(50_000)
    for bits_per_byte in (gzip_bits_per_byte, xz_bits_per_byte):
        assert 8.0 < bits_per_byte(noise) < 8.1
        assert bits_per_byte(b"ab" * 25_000) < 0.05
    assert xz_bits_per_byte(noise * 2) < 4.1 < gzip_bits_per_byte(noise * 2)  # gzip looks 32,768 bytes back
