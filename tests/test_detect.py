"""Detection on new recordings: the workflow's own scores, any recording scored or refused by name, bounded memory."""

import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from asdflow.cli import app
from asdflow.data.audio import AudioInfo, read_audio
from asdflow.detection.detect import Options, detect, exit_code, find_recordings, score_recording
from asdflow.detection.drift import Reference, describe, warnings
from asdflow.detection.system import System, export_detector
from asdflow.detection.windows import Lengths, inspect_recording, windows
from asdflow.errors import InputError
from asdflow.files import read_json, write_json
from PIL import Image
from typer.testing import CliRunner

from tests.trained_system import AUDIO, RATE, SECONDS, TrainedSystem, machine_sound


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return TrainedSystem(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def system(trained):
    return System(trained.model, "fan", None)


def command(*arguments):
    return CliRunner().invoke(app, ["detect", *map(str, arguments)])


def write(path, samples, rate=RATE, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def test_a_copied_model_in_another_place_gives_the_workflows_scores_when_the_original_is_gone(
    tmp_path, monkeypatch
):
    made = TrainedSystem(tmp_path / "here")
    expected = made.scores
    shutil.copytree(made.model, tmp_path / "elsewhere" / "model")
    shutil.copytree(made.recordings / "fan" / "test", tmp_path / "elsewhere" / "new")
    shutil.rmtree(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "elsewhere")
    detect(Path("model"), [Path("new")], "fan", output=Path("out.csv"))
    found = pd.read_csv("out.csv")
    assert len(found) == 16
    ids = [f"fan/test/{Path(name).stem}" for name in found["recording"]]
    assert found["anomaly_score"].to_numpy() == pytest.approx(
        expected.loc[ids, "anomaly_score"].to_numpy(), abs=1e-5
    )
    assert found["decision"].tolist() == expected.loc[ids, "decision"].tolist()


def test_the_model_folder_holds_everything_and_no_pickle(trained):
    names = {str(path.relative_to(trained.model)) for path in trained.model.rglob("*") if path.is_file()}
    assert names == {
        "system.json", "model/model.json", "model/model.safetensors", "encoder/config.json", "encoder/encoder.safetensors",
        "detector/detector.json", "detector/memory.safetensors",
    }  # fmt: skip
    described = json.loads((trained.model / "system.json").read_text())
    assert described["versions"]["torch"] and described["configuration"] == {"system": "test"}
    assert described["front_end"]["name"] == "eat_logmel"


def test_the_command_explains_each_decision_and_its_exit_code_tells_the_outcome(trained, tmp_path):
    decided = trained.scores["decision"].filter(like="fan/")
    normal, anomaly = (
        trained.recordings / f"{decided[decided == wanted].filter(like=kind).index[0]}.wav"
        for wanted, kind in ((0, "normal"), (1, "anomaly"))
    )
    result = command(trained.model, normal, "--machine", "fan", "--output", tmp_path / "a.parquet")
    assert result.exit_code == 0, result.output
    result = command(trained.model, normal, anomaly, "--machine", "fan", "--output", tmp_path / "b.csv")
    assert result.exit_code == 1
    table = pd.read_csv(tmp_path / "b.csv")
    row = table[table["decision"] == 1].to_dict("records")[0]
    assert row["recording"] == str(anomaly) and row["anomaly_score"] > row["threshold"]
    assert row["expected_false_alarm_rate"] < 0.05
    assert row["nearest_clip"].startswith("fan/train/section_00_") and "vel" in json.loads(
        row["nearest_attributes"]
    )
    assert (row["worst_start_s"], row["worst_end_s"]) == (0.0, SECONDS)
    result = command(trained.model, normal, anomaly, tmp_path / "none.wav", "--machine", "fan")
    assert result.exit_code == 2


def test_wrong_arguments_end_with_code_2_and_the_remedy(trained, tmp_path):
    clip = next((trained.recordings / "fan" / "test").iterdir())
    for arguments, words in [
        ((trained.model, clip, "--machine", "pump"), "fan, valve"),
        ((trained.model, clip), "which machine"),
        ((trained.run, clip, "--machine", "fan"), "no system.json"),
        ((trained.model, tmp_path, "--machine", "fan"), "no WAV or FLAC file"),
        ((trained.model, clip, "--machine", "fan", "--output", tmp_path / "x.txt"), ".csv or .parquet"),
        ((trained.model, "--machine", "fan"), "no recordings were given"),
        ((trained.model, clip, "--machine", "fan", "--watch", tmp_path), "--output is missing"),
    ]:
        result = command(*arguments)
        assert result.exit_code == 2 and words in result.stderr, (arguments, result.output)
        assert "Traceback" not in result.stderr


FORMATS = {
    "8_bit": ("PCM_U8", RATE, 1, ".wav"),
    "24_bit": ("PCM_24", RATE, 1, ".wav"),
    "float": ("FLOAT", RATE, 1, ".wav"),
    "44_1_khz": ("PCM_16", 44_100, 1, ".wav"),
    "8_khz": ("PCM_16", 8_000, 1, ".wav"),
    "stereo_flac": ("PCM_16", RATE, 2, ".flac"),
    "6_channels": ("PCM_16", 48_000, 6, ".wav"),
}


def bad_recordings(folder):
    """Recordings that must be refused, and the words that say why."""
    whole = write(folder / "whole.wav", machine_sound("fan", 5)).read_bytes()
    (folder / "whole.wav").unlink()
    (folder / "empty.wav").write_bytes(b"")
    (folder / "no_samples.wav").write_bytes(whole[:40] + b"\0\0\0\0")
    (folder / "truncated.wav").write_bytes(whole[:20_000])
    (folder / "text.wav").write_text("not a recording")
    write(folder / "too_short.wav", machine_sound("fan", 6, seconds=0.4))
    broken = machine_sound("fan", 7)
    broken[100] = np.nan
    write(folder / "not_a_number.wav", broken, subtype="FLOAT")
    return {
        "empty.wav": "is empty",
        "no_samples.wav": "",
        "truncated.wav": "truncated",
        "text.wav": "cannot be read as audio",
        "too_short.wav": "too short",
        "not_a_number.wav": "not a finite number",
    }


def test_every_recording_is_scored_or_refused_by_name_and_the_rest_of_the_batch_goes_on(trained, tmp_path):
    for name, (subtype, rate, channels, suffix) in FORMATS.items():
        sound = machine_sound("fan", 3, rate=rate)
        write(tmp_path / f"{name}{suffix}", np.tile(sound[:, None], (1, channels)), rate, subtype)
    write(tmp_path / "silent.wav", np.zeros(round(SECONDS * RATE)))
    write(tmp_path / "clipped.wav", np.clip(60 * machine_sound("fan", 4), -1, 1))
    refused = bad_recordings(tmp_path)
    rows = {
        Path(row.recording).name: row
        for row in detect(trained.model, [tmp_path], "fan", options=Options(workers=2))
    }
    assert len(rows) == len(FORMATS) + 2 + len(refused)
    for name, words in refused.items():
        assert rows[name].problem and words in rows[name].problem, rows[name]
        assert rows[name].anomaly_score is None and rows[name].decision is None
    scored = {name: row for name, row in rows.items() if name not in refused}
    assert all(row.anomaly_score is not None and np.isfinite(row.anomaly_score) for row in scored.values())
    plain = score_recording(
        System(trained.model, "fan", None),
        write(tmp_path / "x" / "plain.wav", machine_sound("fan", 3)),
        Options(),
    )
    for name in ("24_bit.wav", "float.wav", "stereo_flac.flac"):
        assert rows[name].anomaly_score == pytest.approx(plain.row.anomaly_score, rel=0.05)
    assert "silent" in rows["silent.wav"].notes and "clipped" in rows["clipped.wav"].notes
    assert (
        "6 channels" in rows["6_channels.wav"].notes
        and "resampled from 48000 Hz" in rows["6_channels.wav"].notes
    )
    assert exit_code(list(rows.values())) == 2


def test_a_long_recording_shows_where_its_fault_is(trained, system, tmp_path):
    sound = machine_sound("fan", 9, seconds=31.0)
    sound[round(20.0 * RATE) : round(21.5 * RATE)] += machine_sound("fan", 9, 1.5, anomalous=True)
    path = write(tmp_path / "long.flac", sound)
    result = command(
        trained.model,
        path,
        "--machine",
        "fan",
        "--windows",
        tmp_path / "windows.csv",
        "--output",
        tmp_path / "out.csv",
    )
    assert result.exit_code == 1, result.output
    row = pd.read_csv(tmp_path / "out.csv").iloc[0]
    assert row["worst_start_s"] <= 20.75 <= row["worst_end_s"]
    over_time = pd.read_csv(tmp_path / "windows.csv")
    assert over_time["start_s"].tolist() == [*np.arange(0.0, 29.0), 29.0]
    assert row["anomaly_score"] == pytest.approx(over_time["anomaly_score"].max())
    assert row["threshold"] > system.unit.threshold.threshold


def test_a_longer_recording_needs_a_higher_score_so_that_its_false_alarm_rate_stays(system, tmp_path):
    short = score_recording(system, write(tmp_path / "s.wav", machine_sound("fan", 11)), Options()).row
    long = score_recording(
        system, write(tmp_path / "l.wav", machine_sound("fan", 11, seconds=20.0)), Options()
    ).row
    assert long.threshold is not None and long.expected_false_alarm_rate is not None
    assert short.threshold == system.unit.threshold.threshold
    single = float(system.unit.threshold.false_alarms_at([long.threshold])[0])
    assert 1 - (1 - single) ** 10 == pytest.approx(0.05, rel=1e-6)
    assert (long.decision == 1) == (long.expected_false_alarm_rate < 0.05)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_windows_hold_the_very_samples_of_the_recording_and_cover_its_end(tmp_path, rate):
    path = write(tmp_path / "a.wav", np.random.default_rng(0).normal(size=7 * rate + 123) * 0.1, rate)
    info = AudioInfo(7 * rate + 123, rate, 1)
    whole = read_audio(path, AUDIO)
    found = list(windows(path, info, AUDIO, Lengths(32_000, 32_000), 16_000))
    for window in found:
        assert len(window.samples) == 32_000
        assert np.array_equal(window.samples, whole[window.start : window.start + 32_000])
    starts = [window.start for window in found]
    assert starts[:-1] == [16_000 * k for k in range(len(starts) - 1)]
    assert starts[-1] + 32_000 == len(whole) and starts[-1] - starts[-2] <= 16_000


def test_recordings_between_half_and_a_whole_training_clip_are_one_window(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(20_000))
    assert [
        len(w.samples)
        for w in windows(path, AudioInfo(20_000, RATE, 1), AUDIO, Lengths(32_000, 32_000), 16_000)
    ] == [20_000]
    assert "too short" in str(inspect_recording(path, AUDIO, Lengths(64_000, 64_000)))


def peak_memory(system, path):
    """Windows scored, and MiB by which scoring a recording raised the peak memory of a process of its own (forked)."""

    def measure(pipe):
        def peak():
            status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
            return int(status["VmHWM"].split()[0]) / 1024

        before = peak()
        row = score_recording(system, path, Options(hop=20.0)).row
        pipe.send((row.windows, peak() - before))

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(there,))
    process.start()
    assert here.poll(60)
    process.join()
    return here.recv()


def test_the_memory_that_a_long_recording_takes_does_not_grow_with_its_length(system, tmp_path):
    taken = {}
    for minutes in (2, 40):
        path = tmp_path / f"{minutes}.wav"
        minute = machine_sound("fan", 1, seconds=60.0)
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
            for _ in range(minutes):
                file.write(minute)
        counted, taken[minutes] = peak_memory(system, path)
        assert counted == minutes * 3 + 1
    assert taken[2] > 0
    assert taken[40] < taken[2] + 30  # MiB; the samples alone would be 150 MiB as float32


def test_pictures_are_drawn_on_request(trained, tmp_path):
    write(tmp_path / "a" / "x.wav", machine_sound("fan", 1, seconds=9.0))
    write(tmp_path / "b" / "x.wav", machine_sound("fan", 2))
    command(trained.model, tmp_path / "a", tmp_path / "b", "--machine", "fan", "--plot", tmp_path / "plots")
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["x.png", "x_2.png"]
    with Image.open(tmp_path / "plots" / "x.png") as picture:
        pixels = np.asarray(picture.convert("L"), dtype=float)
    spectrogram = pixels[60:310, 100:1050]
    hum = spectrogram[-18:-8].mean()  # 120 Hz is near the bottom
    assert hum > spectrogram[:100].mean() + 40


def test_recordings_are_found_once_in_order(tmp_path):
    for name in ("b.wav", "a.FLAC", "sub/c.wav", ".hidden.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_recordings([tmp_path / "b.wav", tmp_path])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["b.wav", "a.FLAC", "sub/c.wav"]


def test_a_front_end_with_other_parameters_is_refused(trained, tmp_path):
    shutil.copytree(trained.model, tmp_path / "model")
    path = tmp_path / "model" / "system.json"
    described = read_json(path, "")
    described["front_end"]["hop"] = 200
    write_json(path, described)
    with pytest.raises(InputError) as caught:
        System(tmp_path / "model", "fan", None)
    assert "hop: 200 there, 160 here" in str(caught.value)


def test_export_names_the_missing_part(trained, tmp_path):
    with pytest.raises(InputError) as caught:
        export_detector(
            trained.run / "clips.parquet", tmp_path, None, trained.run / "detector", tmp_path / "out", AUDIO
        )
    assert "model.safetensors: missing" in str(caught.value)


def sounds(change, count=5):
    return [describe(change(machine_sound("fan", 100 + k)).astype(np.float32)) for k in range(count)]


def low_pass(sound):
    spectrum = np.fft.rfft(sound)
    spectrum[round(3_500 * SECONDS) :] = 0
    return np.fft.irfft(spectrum, len(sound))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: x * 0.1, "level: 20 dB quieter"),
        (lambda x: x * 6, "level: 16 dB louder"),
        (low_pass, "bandwidth"),
        (lambda x: np.clip(x * 40, -1, 1), "clipping"),
        (lambda x: x * (np.arange(len(x)) > len(x) / 2), "silence"),
        (lambda x: np.diff(x, 2, prepend=[0, 0]), "spectrum"),
    ],
)
def test_drift_names_what_differs_from_the_training_clips(change, word):
    reference = Reference.of(sounds(lambda x: x, 12), [1] * 12)
    assert any(text.startswith(word) for text in warnings(sounds(change), reference)), warnings(
        sounds(change), reference
    )
    assert warnings(sounds(lambda x: x), reference) == []
    assert Reference.from_dict(json.loads(json.dumps(reference.to_dict()))) == reference


def test_anomalies_are_no_drift():
    reference = Reference.of(sounds(lambda x: x, 12), [1] * 12)
    faulty = [describe(machine_sound("fan", k, anomalous=k < 2).astype(np.float32)) for k in range(6)]
    assert warnings(faulty, reference) == []


def test_the_command_warns_of_a_quiet_microphone_and_names_the_better_channel(trained, tmp_path):
    sound = machine_sound("fan", 50)
    hiss = 0.3 * np.random.default_rng(0).normal(size=len(sound))
    for number in range(3):
        write(tmp_path / f"{number}.wav", np.stack([hiss, sound], axis=1))
    result = command(trained.model, tmp_path, "--machine", "fan", "--output", tmp_path / "out.csv")
    assert "Warning, the recordings as a whole differ" in result.stderr
    assert (
        pd.read_csv(tmp_path / "out.csv")["notes"].str.contains("channel 1 .counted from 0. resembles").all()
    )
