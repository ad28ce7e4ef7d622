"""Synthetic recordings: official names and layout, same seed same bytes, attributes and faults that can be heard."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import yaml
from asdflow.data import naming, synthetic
from asdflow.data.catalogue import build_catalogue
from asdflow.data.machinery.acting import PATTERNS
from asdflow.data.machinery.rotating import Bearing, Fan, Gearbox
from asdflow.data.machinery.signals import SAMPLE_RATE, crossings, impulses, rotation
from asdflow.errors import InputError

from tests.conftest import REPOSITORY

DEMO = yaml.safe_load((REPOSITORY / "configs/datasets/demo.yaml").read_text(encoding="utf-8"))
TINY_COUNTS = {
    "train_source": 4,
    "train_target": 2,
    "test": 2,
    "supplemental_clean": 1,
    "supplemental_noise": 1,
}
TINY = {**DEMO, "clip_seconds": 1.0, "counts": TINY_COUNTS}
AUDIO = {"sample_rate": SAMPLE_RATE, "resample": True, "channel": "mean"}
MACHINES = sorted(synthetic.MACHINES)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(folder: Path, settings: dict, seed: int = 1, workers: int = 1) -> dict[str, bytes]:
    synthetic.synthesize(folder / "recordings", folder / "hidden.csv", settings, seed, workers)
    return contents(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make(folder, TINY)
    return folder


def clip_of(
    machine: str, fault: str | None = None, content: str = "mixture", **attributes: str
) -> synthetic.Clip:
    """A clip of six seconds to be mixed; the attributes are those of the first combination unless given."""
    chosen = {**synthetic.MACHINES[machine].source[0], **attributes}
    condition = "anomaly" if fault else "normal"
    return synthetic.Clip(
        machine, "test", "source", condition, 0, content, tuple(chosen.items()), fault, "a_clip"
    )


def mix(machine: str, fault: str | None = None, level: float = 3.0, seed: int = 1, **attributes: str):
    settings = {
        "clip_seconds": 6.0,
        "machines": {machine: {"snr_db": 0.0, "fault_db": [level, level], "hide_attributes": False}},
    }
    return synthetic.mix(clip_of(machine, fault, **attributes), settings, seed)


def spectrum(signal) -> tuple[np.ndarray, np.ndarray]:
    return scipy.signal.welch(signal, SAMPLE_RATE, nperseg=2**15)


def peak_hertz(signal, low: float, high: float) -> float:
    f, power = spectrum(signal)
    inside = (f >= low) & (f <= high)
    return float(f[inside][np.argmax(power[inside])])


def envelope_prominence(signal, hertz: float, low: float = 1_000, high: float = 6_000) -> float:
    """Strongest line of the envelope spectrum within 2 % of `hertz`, over the median of the octave around it."""
    bands = scipy.signal.butter(4, [low, high], "bandpass", fs=SAMPLE_RATE, output="sos")
    envelope = np.abs(scipy.signal.hilbert(scipy.signal.sosfiltfilt(bands, signal)))
    f, power = spectrum(envelope - envelope.mean())
    line = power[np.abs(f / hertz - 1) < 0.02].max()
    return float(line / np.median(power[(f > hertz / 1.4) & (f < hertz * 1.4)]))


# ------------------------------------------------------------------------------------------------- names and layout


def test_every_folder_holds_the_stated_number_of_clips(tiny):
    for machine in MACHINES:
        folder = tiny / "recordings" / machine
        count = {
            split: len(list((folder / split).glob("*.wav"))) for split in ("train", "test", "supplemental")
        }
        assert count == {"train": 6, "test": 8, "supplemental": 2}
        assert {path.name for path in folder.iterdir()} == {
            "train",
            "test",
            "supplemental",
            "attributes_00.csv",
        }


def test_the_number_of_clips_is_returned(tmp_path):
    settings = {**TINY, "machines": {"fan": TINY["machines"]["fan"]}}
    assert synthetic.synthesize(tmp_path / "r", tmp_path / "h.csv", settings, 1, 1) == 16
    assert len(list((tmp_path / "r").rglob("*.wav"))) == 16


def test_clips_are_16_bit_mono_at_16_khz_of_the_stated_length_and_never_clipped(tiny):
    for path in (tiny / "recordings").rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (16_000, 1, "PCM_16", 16_000)
        samples, _ = soundfile.read(path)
        assert 0.003 < np.sqrt(np.mean(samples**2)) < 0.1
        assert np.abs(samples).max() < 0.99


def test_the_reader_of_official_data_reads_every_name(tiny):
    planned = {clip.clip_id: clip for clip in synthetic.plan_clips(TINY)}
    catalogue, _ = build_catalogue(tiny / "recordings", {**TINY, "audio": AUDIO})
    assert set(catalogue["clip_id"]) == set(planned)
    for row in catalogue.astype(object).where(catalogue.notna(), None).to_dict("records"):
        clip = planned[row["clip_id"]]
        hidden = TINY["machines"][clip.machine]["hide_attributes"]
        label = naming.attribute_label(dict(clip.attributes))
        assert (row["machine"], row["split"]) == (clip.machine, clip.split)
        assert row["supplement"] == {"mixture": None, "machine": "clean", "background": "noise"}[clip.content]
        assert row["attribute_label"] == (None if hidden else label)
        if clip.content != "background":
            assert row["domain"] == clip.domain
            assert row["condition"] == ("anomaly" if clip.fault else "normal")


def test_names_are_spelled_as_the_challenge_spells_them(tiny):
    names = {path.name for path in (tiny / "recordings/gearbox").rglob("*.wav")}
    assert "section_00_source_train_normal_0000_volt_1.5_wt_0.wav" in names
    assert "section_00_target_test_anomaly_0001_volt_3.0_wt_30.wav" in names
    hidden = {path.name for path in (tiny / "recordings/bearing").rglob("*.wav")}
    assert "section_00_target_test_normal_0001_noAttribute.wav" in hidden


def test_training_clips_are_all_normal_and_half_of_the_test_clips_are_not(tiny):
    clips = list(synthetic.plan_clips(TINY))
    assert all(clip.fault is None for clip in clips if clip.split != "test")
    assert not any("anomaly" in path.name for path in (tiny / "recordings").glob("*/train/*"))
    tested = [clip for clip in clips if clip.split == "test"]
    assert sum(clip.fault is not None for clip in tested) * 2 == len(tested)
    assert all((clip.fault is not None) == (clip.condition == "anomaly") for clip in tested)


def test_the_demo_has_every_fault_under_every_attribute_combination():
    clips = [clip for clip in synthetic.plan_clips(DEMO) if clip.condition == "anomaly"]
    for name, machine in synthetic.MACHINES.items():
        for domain, choices in (("source", machine.source), ("target", machine.target)):
            met = {
                (clip.fault, clip.attributes)
                for clip in clips
                if (clip.machine, clip.domain) == (name, domain)
            }
            assert len(met) == len(machine.faults) * len(choices)


@pytest.mark.parametrize("name", MACHINES)
def test_every_target_combination_has_a_value_never_met_in_the_source_domain(name):
    machine = synthetic.MACHINES[name]
    seen = {pair for attributes in machine.source for pair in attributes.items()}
    assert all(set(attributes.items()) - seen for attributes in machine.target)
    assert 2 <= len(machine.source[0]) <= 3


# --------------------------------------------------------------------------------------------------- hidden attributes


def test_the_truth_is_complete_for_the_machines_that_hide_it_and_silent_on_the_others(tiny):
    with (tiny / "hidden.csv").open(newline="") as handle:
        truth = {row["clip_id"]: row["attribute_label"] for row in csv.DictReader(handle)}
    clips = [clip for clip in synthetic.plan_clips(TINY) if clip.attributes]
    hiding = {name for name, options in DEMO["machines"].items() if options["hide_attributes"]}
    assert len(hiding) >= 2
    expected = {c.clip_id: naming.attribute_label(dict(c.attributes)) for c in clips if c.machine in hiding}
    assert truth == expected


def test_a_hiding_machine_shows_nothing_of_its_attributes(tiny):
    for machine in ("bearing", "slider"):
        folder = tiny / "recordings" / machine
        lines = (folder / "attributes_00.csv").read_text().splitlines()
        assert lines[0] == "file_name" and len(lines) == 1 + 6 + 8 + 1
        assert all(line.endswith((".wav", "file_name")) and "," not in line for line in lines)
        for path in [*folder.glob("train/*.wav"), *folder.glob("test/*.wav")]:
            assert path.stem.endswith("_noAttribute")


# ---------------------------------------------------------------------------------------------- seeds and independence


def test_same_seed_same_bytes_however_many_workers(tiny, tmp_path):
    assert make(tmp_path, TINY, workers=2) == contents(tiny)


def test_another_seed_changes_every_recording_and_no_name(tiny, tmp_path):
    before, after = contents(tiny), make(tmp_path, TINY, seed=2)
    assert set(before) == set(after)
    assert all((before[name] != after[name]) == name.endswith(".wav") for name in before)


def test_a_clip_depends_on_neither_other_machines_nor_the_counts(tiny, tmp_path):
    alone = {
        **TINY,
        "counts": {**TINY_COUNTS, "train_source": 6, "test": 1},
        "machines": {"valve": TINY["machines"]["valve"]},
    }
    before, after = contents(tiny), make(tmp_path, alone)
    common = {name for name in set(before) & set(after) if name.endswith(".wav")}
    assert len(common) == 4 + 2 + 4 + 2
    assert all(before[name] == after[name] for name in common)


def test_no_two_clips_are_alike(tiny):
    recordings = [path.read_bytes() for path in (tiny / "recordings").rglob("*.wav")]
    assert len(set(recordings)) == len(recordings)


# ------------------------------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize("name", MACHINES)
def test_the_machine_stands_above_the_background_as_stated(name):
    machine = synthetic.MACHINES[name]
    settings = {**DEMO, "clip_seconds": 2.0}
    errors = []
    for clip in [clip for clip in synthetic.plan_clips(settings) if clip.machine == name][:24]:
        parts = synthetic.mix(clip, settings, seed=3)
        ratio = 10 * np.log10(np.mean(parts.healthy**2) / np.mean(parts.background**2))
        errors.append(ratio - DEMO["machines"][name]["snr_db"] - machine.level_db(dict(clip.attributes)))
    assert abs(np.mean(errors)) < 0.6  # four standard errors of the 0.7 dB that clips scatter by
    assert 0.3 < np.std(errors) < 1.3


@pytest.mark.parametrize(
    ("name", "fault"),
    [(m.name, f) for m in synthetic.MACHINES.values() for f in m.faults if f not in m.shape_faults],
)
def test_a_fault_stands_at_its_stated_level_in_its_own_bands(name, fault):
    parts = mix(name, fault, level=-4.0)
    wanted = -4.0 + synthetic.MACHINES[name].reserve_db.get(fault, 0.0)
    assert synthetic.level_in_band(parts.fault, parts.healthy + parts.background) == pytest.approx(
        wanted, abs=0.05
    )


def test_faults_are_graded_over_the_whole_stated_range():
    low, high = DEMO["machines"]["gearbox"]["fault_db"]
    clips = [
        c for c in synthetic.plan_clips(DEMO) if c.machine == "gearbox" and c.fault and c.domain == "source"
    ]
    levels = []
    for clip in clips:
        parts = synthetic.mix(clip, {**DEMO, "clip_seconds": 2.0}, seed=DEMO["seed"])
        levels.append(synthetic.level_in_band(parts.fault, parts.healthy + parts.background))
    assert low - 0.1 <= min(levels) < low + 3 and high - 3 < max(levels) <= high + 0.1
    assert len({round(level, 3) for level in levels}) == len(levels)


def test_supplemental_clips_hold_the_machine_alone_or_the_factory_alone():
    clips = {
        c.content: c for c in synthetic.plan_clips(TINY) if c.machine == "fan" and c.split == "supplemental"
    }
    clean, noise = synthetic.mix(clips["machine"], TINY, 1), synthetic.mix(clips["background"], TINY, 1)
    assert clean.healthy.any() and not clean.background.any() and not clean.fault.any()
    assert noise.background.any() and not noise.healthy.any() and not noise.fault.any()


# ----------------------------------------------------------------------------------------------- attributes are heard


@pytest.mark.parametrize("voltage", ["24V", "28V", "36V"])
def test_the_fans_blade_pass_tone_follows_its_speed(voltage):
    expected = Fan.blades * Fan().shaft_hertz({"spd": voltage})
    assert peak_hertz(mix("fan", spd=voltage).samples, 125, 260) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("voltage", ["1.5", "2.5"])
def test_the_gears_mesh_tone_follows_the_voltage(voltage):
    expected = Gearbox.teeth[0] * Gearbox().shaft_hertz({"volt": voltage})
    assert peak_hertz(mix("gearbox", volt=voltage, wt="50").healthy, 280, 600) == pytest.approx(
        expected, rel=0.04
    )


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("fan", {"mic": "1"}, {"mic": "2"}),
        ("bearing", {"loc": "A"}, {"loc": "C"}),
        ("pump", {"mic": "1"}, {"mic": "2"}),
    ],
)
def test_microphones_colour_the_same_machine_differently(name, first, second):
    levels = []
    for attributes in (first, second):
        powers = synthetic.band_powers(mix(name, **attributes).healthy)
        levels.append(10 * np.log10(powers / powers.sum()))
    assert np.abs(levels[0] - levels[1]).max() > 5


@pytest.mark.parametrize(
    ("name", "attribute", "low", "high"),
    [("fan", "op", "40", "80"), ("gearbox", "wt", "0", "130"), ("valve", "prs", "3", "5")],
)
def test_a_clips_spectrum_tells_its_load(name, attribute, low, high):
    def shapes(value: str) -> np.ndarray:
        clips = [mix(name, seed=seed, **{attribute: value}).healthy for seed in range(6)]  # type: ignore[arg-type]
        powers = np.array([synthetic.band_powers(clip) for clip in clips])
        return 10 * np.log10(powers / powers.sum(axis=1, keepdims=True))

    first, second = shapes(low), shapes(high)
    for own, other in ((first, second), (second, first)):
        for left_out in range(len(own)):
            distance = np.linalg.norm(own[left_out] - np.delete(own, left_out, axis=0).mean(axis=0))
            assert distance < np.linalg.norm(own[left_out] - other.mean(axis=0))


@pytest.mark.parametrize("pattern", ["00", "02"])
def test_the_valve_repeats_with_the_period_of_its_pattern(pattern):
    healthy = mix("valve", pat=pattern).healthy
    envelope = scipy.signal.resample_poly(np.abs(healthy), 1, 160)  # 100 values a second
    envelope = envelope - envelope.mean()
    correlation = scipy.signal.correlate(envelope, envelope)[len(envelope) - 1 :]
    lag = 60 + int(np.argmax(correlation[60:180]))
    assert lag / 100 == pytest.approx(PATTERNS[pattern][0], abs=0.03)


def test_a_faster_carriage_turns_round_more_often():
    def pauses(velocity: str) -> int:
        loudness = scipy.signal.resample_poly(mix("slider", vel=velocity, ac="0.30").healthy ** 2, 1, 800)
        quiet = loudness < 0.15 * np.median(loudness)
        return int(np.sum(np.diff(quiet.astype(int)) == 1))

    assert pauses("300") < pauses("700")


# --------------------------------------------------------------------------------------------------- faults are heard


@pytest.mark.parametrize(
    ("fault", "ratio"),
    [("outer_race", Bearing.outer_race), ("inner_race", Bearing.inner_race), ("ball", 2 * Bearing.ball_spin)],
)
def test_a_bearing_defect_rings_at_its_kinematic_frequency(fault, ratio):
    hertz = 18 * ratio
    faulty = mix("bearing", fault, level=3.0, vel="18", loc="A").samples
    sound = mix("bearing", vel="18", loc="A").samples
    assert envelope_prominence(faulty, hertz) > 10
    assert envelope_prominence(faulty, hertz) > 2 * envelope_prominence(sound, hertz)


def test_a_broken_tooth_strikes_once_a_revolution():
    faulty, sound = (mix("gearbox", fault, volt="2.0", wt="50").samples for fault in ("tooth_break", None))
    assert envelope_prominence(faulty, 20.0, 1_500, 5_000) > 5 * envelope_prominence(
        sound, 20.0, 1_500, 5_000
    )


def test_imbalance_modulates_the_fan_once_a_revolution():
    hertz = Fan().shaft_hertz({"spd": "28V"})
    parts = mix("fan", "imbalance", spd="28V")
    faulty, sound = parts.healthy + parts.fault, parts.healthy
    assert envelope_prominence(faulty, hertz, 300, 4_000) > 3 * envelope_prominence(sound, hertz, 300, 4_000)


def test_a_leaking_valve_hisses_while_it_is_closed():
    parts = mix("valve", "leak", pat="00", prs="5")
    frames = parts.healthy.reshape(-1, 800), parts.fault.reshape(-1, 800)
    air, hiss = (np.mean(frame**2, axis=1) for frame in frames)
    is_open = air > 0.3 * air.mean()
    assert np.median(hiss[~is_open]) > 20 * np.median(hiss[is_open])


def test_a_timing_fault_moves_strokes_without_adding_loudness():
    parts = mix("valve", "timing", pat="01", prs="5")
    change = np.mean((parts.healthy + parts.fault) ** 2) / np.mean(parts.healthy**2)
    assert 0.7 < change < 1.4
    assert np.mean(parts.fault**2) > 0.05 * np.mean(parts.healthy**2)


@pytest.mark.parametrize("name", MACHINES)
def test_a_fault_leaves_the_healthy_machine_and_the_factory_as_they_were(name):
    clip = clip_of(name, synthetic.MACHINES[name].faults[0])
    settings = {**DEMO, "clip_seconds": 3.0}
    faulty, sound = (synthetic.mix(c, settings, 1) for c in (clip, replace(clip, fault=None)))
    np.testing.assert_array_equal(faulty.healthy, sound.healthy)
    np.testing.assert_array_equal(faulty.background, sound.background)
    assert faulty.fault.any() and not sound.fault.any()


# ----------------------------------------------------------------------------------------------------- building blocks


def test_impulses_between_two_samples_keep_their_strength_and_place():
    train = impulses(np.array([10.25, 40.0, -5.0, 1e6]) / SAMPLE_RATE, np.array([2.0, 1.0, 1.0, 1.0]), 100)
    assert (
        train[10] == pytest.approx(1.5)
        and train[11] == pytest.approx(0.5)
        and train[40] == pytest.approx(1.0)
    )
    assert train.sum() == pytest.approx(3.0)


def test_slip_scatters_single_blows_but_not_their_mean_rate():
    rng = np.random.default_rng(0)
    angle = rotation(20.0, 4 * SAMPLE_RATE, rng, wander=0.0)
    times = crossings(angle, 3.585, rng, jitter=0.01)
    intervals = np.diff(times)
    assert np.mean(intervals) == pytest.approx(1 / (20 * 3.585), rel=0.001)
    assert np.std(intervals) * 20 * 3.585 == pytest.approx(0.01 * np.sqrt(2), rel=0.2)


# --------------------------------------------------------------------------------------------------------- wrong input


def test_all_wrong_settings_are_named_at_once(tmp_path):
    fan = {**DEMO["machines"]["fan"], "fault_db": [3.0, -9.0]}
    with pytest.raises(InputError) as error:
        make(tmp_path, {**TINY, "machines": {"fan": fan, "turbine": DEMO["machines"]["pump"]}})
    assert "turbine" in str(error.value) and "fan.fault_db" in str(error.value) and "pump" in str(error.value)
    assert not list(tmp_path.iterdir())
