"""`python -m benchmarks.heart_rate`: labels of a made pulse train, rows, and what padding may not change."""

import json
import random

import numpy as np
import pytest
import torch

from benchmarks import heart_rate as bench
from benchmarks.heart_rate import Batches, Reader, Row, heart_rate, r_peaks, rows_within


def train_of(beats, seconds, noise=0.05):
    """(samples,) of an ECG as one draws it: a narrow R peak and a wide, lower T wave behind it at each beat, on a drifting line."""
    times = np.arange(seconds * 1000) / 1000
    signal = 0.8 * np.sin(times / 3) + noise * np.random.default_rng(0).standard_normal(len(times))
    for beat in beats:
        signal += np.exp(-(((times - beat) / 0.015) ** 2)) + 0.25 * np.exp(-(((times - beat - 0.25) / 0.06) ** 2))
    return signal


BEATS = np.cumsum([0.5, *np.linspace(1.0, 0.6, 50)])  # from 60 to 100 beats per minute


def test_r_peaks_lie_where_the_beats_are():
    found = r_peaks(train_of(BEATS, 42)) / 1000
    assert len(found) == len(BEATS)
    assert np.abs(found - BEATS).max() < 0.01


def test_of_two_peaks_within_the_refractory_time_the_higher_one_stays():
    signal = train_of(BEATS, 42) + 0.8 * train_of(BEATS + 0.12, 42, noise=0) - 0.8 * train_of([], 42, noise=0)
    found = r_peaks(signal) / 1000
    assert len(found) == len(BEATS)
    assert np.abs(found - BEATS).max() < 0.01


def test_the_label_is_beats_over_the_time_between_the_first_and_the_last():
    peaks = np.array([500, 1500, 2250, 3000, 9000])
    assert heart_rate(peaks, 0, 9000) == 60 * 3 / 2.5
    assert heart_rate(peaks, 501, 3001) == 60 * 2 / 1.5
    with pytest.raises(ValueError, match="samples 0 to 1500 have 1 R peaks; allowed are at least 2"):
        heart_rate(peaks, 0, 1500)


def test_rows_stay_within_and_have_the_frames_asked_for():
    rows = rows_within(1_000, 200_000, 300, random.Random(0), change=1.25)
    assert min(row.first for row in rows) >= 1_000
    assert max(row.last for row in rows) <= 200_000
    assert {bench.SHORTEST <= row.frames <= bench.LONGEST for row in rows} == {True}
    speeds = np.array([row.speed for row in rows])
    assert 0.8 <= speeds.min() < 0.85
    assert 1.2 < speeds.max() <= 1.25
    assert all(row.speed == 1 for row in rows_within(0, 200_000, 20, random.Random(0)))


def long_train():
    beats = np.arange(0.5, 130, 0.75)  # 80 beats per minute
    return Batches(train_of(beats, 130), 100_000)


def test_a_row_that_is_read_faster_has_a_higher_rate_and_its_pulses_closer_together():
    data = long_train()
    plain, fast = Row(0, 40_000, 10_000), Row(0, 50_000, 10_000)
    batch = data.batch([plain, fast])
    assert batch["frames"].shape == (2, 10_000, 4)
    rates = batch["labels"] * bench.SPREAD + data.mean
    assert rates.tolist() == pytest.approx([80, 100], abs=0.1)
    spaces = [np.diff(r_peaks(frames.flatten().double().numpy())).mean() for frames in batch["frames"]]
    assert spaces == pytest.approx([750, 600], abs=2)
    assert torch.equal(data.frames(plain).flatten(), data.samples[:40_000])


def test_padding_does_not_change_the_answer():
    data = long_train()
    torch.manual_seed(0)
    model = Reader(16, ["strict_local", "strict_lsh"]).eval()
    rows = [Row(0, 20_000, 5_000), Row(10_000, 70_000, 15_000)]
    with torch.no_grad():
        together = model(**data.batch(rows)).logits
        alone = torch.cat([model(**data.batch([row])).logits for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)
    assert abs(float(alone[0] - alone[1])) > 1e-4


def test_the_embedding_is_trained_too():
    data = long_train()
    model = Reader(16, ["strict_local", "strict_lsh"])
    model(**data.batch([Row(0, 20_000, 5_000)])).loss.backward()
    assert model.embedding.weight.grad.abs().sum() > 0


def test_a_short_run_writes_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "HELD_OUT", 70)
    monkeypatch.setattr(bench, "SHORTEST", 512)
    monkeypatch.setattr(bench, "LONGEST", 1024)
    beats = np.cumsum([0.5, *np.linspace(1.0, 0.6, 180)])
    np.save(tmp_path / "ecg.npy", train_of(beats, 145))
    output = tmp_path / "result.json"
    bench.main([str(tmp_path / "ecg.npy"), "--minutes", "0.02", "--width", "8", "--output", str(output)])
    found = json.loads(output.read_text())
    assert found["training"]["steps"] >= 1
    assert abs(found["peaks"] - len(beats)) <= 1
    assert found["held_out"]["lowest"] > found["training_rows"]["highest"]  # the end is the fast part
    assert found["held_out"]["mean"] > found["held_out"]["best_constant"] > 0


@pytest.mark.parametrize(
    ("array", "part"),
    [(np.zeros((2, 3)), r"shape \(2, 3\)"), (np.zeros(10), "at least 600,000 samples"), (None, "cannot be read")],
)
def test_a_file_that_is_no_recording_is_one_line(array, part, tmp_path):
    path = tmp_path / "ecg.npy"
    path.write_bytes(b"no array") if array is None else np.save(path, array)
    with pytest.raises(SystemExit, match=part) as error:
        bench.main([str(path)])
    assert "\n" not in error.value.code
