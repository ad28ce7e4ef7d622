"""The catalogue lists every clip once, in full, or every problem of all machines at once."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
from asdflow.data.catalogue import SCHEMA, build_catalogue, read_catalogue, write_catalogue
from asdflow.data.counts import check_counts, expected_blocks
from asdflow.data.duplicates import find_duplicates
from asdflow.errors import InputError
from asdflow.tables import DIGEST

from tests.conftest import SHARED, needs_shared

RATE = 16000
DCASE_2025 = (
    "train/section_00_source_train_normal_0000_vel_6_loc_A",
    "train/section_00_target_train_normal_0000_vel_8_loc_B",
    "test/section_00_source_test_normal_0000_vel_6_loc_A",
    "test/section_00_target_test_anomaly_0000_vel_8_loc_B",
    "supplemental/section_00_source_supplemental_machine_0000",
    "supplemental/section_00_noise_supplemental_normal_0000",
)


def write_clip(path: Path, rate: int = RATE, channels: int = 1, value: float = 0.1, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.full((rate // 5, channels), value)
    soundfile.write(path, samples, rate, **options)
    return path


def write_machine(root: Path, machine: str, stems=DCASE_2025, suffix: str = ".wav") -> Path:
    for stem in stems:
        write_clip(root / machine / f"{stem}{suffix}")
    return root / machine


def problems_of(root: Path, **settings) -> list[str]:
    with pytest.raises(InputError) as caught:
        build_catalogue(root, settings)
    assert caught.value.remedy
    return caught.value.problems


def test_every_column_says_what_the_name_and_the_file_say(tmp_path):
    write_machine(tmp_path, "bearing")
    clips, notices = build_catalogue(tmp_path, {})
    assert list(clips.columns) == SCHEMA.names
    assert notices == []
    row = clips.set_index("clip_id").loc["bearing/train/section_00_target_train_normal_0000_vel_8_loc_B"]
    assert (row["machine"], row["section"], row["domain"]) == ("bearing", "00", "target")
    assert (row["split"], row["condition"], row["attribute_label"]) == ("train", "normal", "vel=8,loc=B")
    assert json.loads(str(row["attributes"])) == {"vel": "8", "loc": "B"}
    assert (row["n_samples"], row["sample_rate"], row["channels"]) == (RATE // 5, RATE, 1)
    assert Path(row["path"]).is_file() and pd.isna(row["supplement"])
    supplements = clips[clips["split"] == "supplemental"].set_index("path")["supplement"]
    assert {Path(path).stem.split("_")[2]: kind for path, kind in supplements.items()} == {
        "source": "clean",
        "noise": "noise",
    }


def test_rows_are_sorted_and_the_file_is_the_same_bytes_whatever_the_number_of_workers(tmp_path):
    for machine in ("valve", "bearing", "ToyCar"):
        write_machine(tmp_path / "data", machine)
        write_clip(tmp_path / "data" / machine / "source_test/section_00_source_test_normal_0001.wav")
    files = []
    for workers in (1, 4):
        clips, _ = build_catalogue(tmp_path / "data", {}, workers=workers)
        order = list(zip(clips["machine"], clips["split"], clips["path"], strict=True))
        assert order == sorted(order) and len(order) == 3 * (len(DCASE_2025) + 1)
        write_catalogue(clips, tmp_path / f"{workers}.parquet")
        files.append((tmp_path / f"{workers}.parquet").read_bytes())
    assert files[0] == files[1]
    pd.testing.assert_frame_equal(read_catalogue(tmp_path / "1.parquet"), clips)
    schema = pq.read_schema(tmp_path / "1.parquet")
    assert schema.equals(SCHEMA) and schema.metadata.keys() == {DIGEST}, (
        "no version of a library in the bytes"
    )


def test_a_table_of_another_kind_is_not_read_as_a_catalogue(tmp_path):
    pd.DataFrame({"clip_id": ["a"], "colour": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError) as caught:
        read_catalogue(tmp_path / "other.parquet")
    text = str(caught.value)
    assert "column path is missing" in text and "column colour is not known" in text
    (tmp_path / "text.parquet").write_text("no table")
    for name in ("text.parquet", "absent.parquet"):
        with pytest.raises(InputError, match="cannot be read"):
            read_catalogue(tmp_path / name)


YEARS = {
    2020: (
        "train/normal_id_01_00000000",
        "test/normal_id_01_00000000",
        "test/anomaly_id_01_00000000",
        "test/id_05_00000000",
    ),
    2021: (
        "train/section_00_source_train_normal_0000_strength_1_ambient",
        "source_test/section_00_source_test_normal_0000",
        "target_test/section_00_target_test_anomaly_0000",
        "target_test/section_03_target_test_0000",
    ),
    2022: (
        "train/section_03_source_train_normal_0000_m-n_W",
        "test/section_03_0000",
        "test/section_00_target_test_anomaly_0000_m-n_Y",
    ),
    2024: (
        "train/section_00_source_train_normal_0000_noAttribute",
        "test/section_00_source_test_normal_0000_noAttribute",
        "test/section_00_0000",
    ),
    2025: DCASE_2025,
    2026: (
        "train/section_00_source_train_normal_0000_",
        "test/section_00_target_test_anomaly_0000_",
        "test/section_00_0000",
        "supplemental/section_00_noise_supplemental_normal_0000",
    ),
}


@pytest.mark.parametrize("year", YEARS)
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_the_layout_of_every_year_is_catalogued_whole(tmp_path, year, suffix):
    write_machine(tmp_path, "fan", YEARS[year], suffix)
    clips, _ = build_catalogue(tmp_path, {"rules_of": year})
    assert set(clips["clip_id"]) == {f"fan/{stem}" for stem in YEARS[year]}
    folders = [Path(path).parent.name for path in clips["path"]]
    assert [folder.removeprefix("source_").removeprefix("target_") for folder in folders] == list(
        clips["split"]
    )
    unlabelled = clips["condition"].isna() & clips["supplement"].isna()
    assert sum(unlabelled) == sum("normal" not in stem and "anomaly" not in stem for stem in YEARS[year][:4])
    if year == 2020:
        assert clips["domain"].isna().all() and set(clips["section"]) == {"id_01", "id_05"}
    if year == 2021:
        assert (clips["domain"] == "target").sum() == 2


def test_the_attributes_file_fills_names_without_attributes_and_must_not_contradict(tmp_path):
    folder = write_machine(
        tmp_path, "fan", ("train/section_00_source_train_normal_0000_m-n_W", "test/section_00_0000")
    )
    table = folder / "attributes_00.csv"
    table.write_text(
        "file_name,d1p,d1v\nfan/train/section_00_source_train_normal_0000_m-n_W.wav,m-n,W\n"
        "fan/test/section_00_0000.wav,m-n,Y\n"
    )
    clips, _ = build_catalogue(tmp_path, {})
    assert sorted(clips["attribute_label"]) == ["m-n=W", "m-n=Y"]
    table.write_text(table.read_text().replace("m-n,W", "m-n,Z"))
    (problem,) = problems_of(tmp_path)
    assert "section_00_source_train_normal_0000_m-n_W.wav" in problem
    assert "m-n=W" in problem and "m-n=Z" in problem
    table.write_text("clip,attribute\n")
    (problem,) = problems_of(tmp_path)
    assert str(table) in problem and "file_name" in problem


def test_only_the_machines_that_are_asked_for_are_looked_at(tmp_path):
    write_machine(tmp_path, "fan")
    write_machine(tmp_path, "valve", ("train/what is this",))
    clips, _ = build_catalogue(tmp_path, {"machines": ["fan"]})
    assert set(clips["machine"]) == {"fan"}
    problems = problems_of(tmp_path, machines=["fan", "pump", "drill"])
    assert len(problems) == 2
    assert all("there is no such machine (there: fan, valve)" in problem for problem in problems)


def test_all_wrong_inputs_of_all_machines_are_listed_together(tmp_path):
    root = tmp_path / "recordings"
    good = write_machine(root, "good")
    stem = "section_00_source_train_normal_{:04d}_vel_6_loc_A.wav"
    train = good / "train"
    (train / stem.format(1)).touch()
    truncated = write_clip(train / stem.format(2))
    truncated.write_bytes(truncated.read_bytes()[:3000])
    cut_flac = train / stem.format(3).replace(".wav", ".flac")
    soundfile.write(cut_flac, np.random.default_rng(0).normal(0, 0.1, RATE), RATE)
    cut_flac.write_bytes(cut_flac.read_bytes()[:-30])
    (train / stem.format(4)).write_text("this is not sound")
    write_clip(train / stem.format(5), value=float("nan"), subtype="FLOAT")
    write_clip(train / stem.format(6), rate=44100)
    write_clip(train / stem.format(7), channels=2)
    write_clip(train / "monday morning.wav")
    write_clip(train / stem.format(0).replace(".wav", ".flac"))
    (train / "section_00_source_train_normal_0009.mp3").write_bytes(b"x")
    (root / "empty").mkdir()
    write_machine(root, "untrained", ("test/section_00_0000",))
    write_machine(root, "loose", ("section_00_0000",))
    write_machine(root, "odd", ("train_r2/section_00_0000", "train_r2/section_00_0001"))

    found = "\n".join(problems_of(root, audio={"resample": False, "channel": "refuse"}))
    expected = {
        stem.format(1): "is empty (0 bytes)",
        stem.format(2): "is truncated",
        cut_flac.name: "is truncated",
        stem.format(4): "cannot be read as audio",
        stem.format(5): "not a finite number",
        stem.format(6): "44100 Hz, 16000 Hz is wanted",
        stem.format(7): "has 2 channels",
        "monday morning.wav": "no known form",
        stem.format(0): "is the same clip as",
        "section_00_source_train_normal_0009.mp3": ".mp3 is not read",
        "empty": "holds no clips",
        "untrained": "holds no training clips",
        "loose": "1 recordings lie beside train/",
        "train_r2": "2 recordings in a folder that is none of",
    }
    for name, said in expected.items():
        assert any(name in line and said in line for line in found.splitlines()), f"{name}: {said}\n{found}"
    assert len(found.splitlines()) == len(expected)


def test_remedies_name_the_known_forms_and_the_settings_that_help(tmp_path):
    write_machine(tmp_path, "fan", ("train/unknown name",))
    with pytest.raises(InputError) as caught:
        build_catalogue(tmp_path, {})
    assert "section_00_source_train_normal_0000" in caught.value.remedy
    assert "audio.resample" not in caught.value.remedy, "only remedies of problems that were found"


def test_missing_and_misplaced_folders_are_said(tmp_path):
    assert "there is no such folder" in problems_of(tmp_path / "absent")[0]
    assert "holds no machine" in problems_of(tmp_path)[0]
    machine = write_machine(tmp_path, "fan")
    assert "give its parent folder" in problems_of(machine)[0]


def test_resampling_and_averaging_are_noticed(tmp_path):
    write_machine(tmp_path, "fan")
    write_clip(tmp_path / "fan/train/section_00_source_train_normal_0001_vel_6_loc_A.wav", rate=44100)
    write_clip(tmp_path / "fan/train/section_00_source_train_normal_0002_vel_6_loc_A.wav", channels=2)
    (tmp_path / "fan/train/notes.txt").write_text("monday")
    (tmp_path / "fan/train/.DS_Store").write_text("")
    clips, notices = build_catalogue(tmp_path, {})
    assert len(clips) == len(DCASE_2025) + 2
    text = "\n".join(notices)
    assert "1 clips of 44100 Hz are resampled to 16000 Hz" in text
    assert "the 2 channels of 1 clips are averaged" in text
    assert "1 files are not recordings and were ignored" in text
    assert "(near)" in "\n".join(build_catalogue(tmp_path, {"audio": {"channel": "near"}})[1])


def test_names_without_domains_do_not_go_with_rules_that_need_them(tmp_path):
    write_machine(tmp_path, "fan", YEARS[2020])
    assert len(build_catalogue(tmp_path, {"rules_of": 2020})[0]) == len(YEARS[2020])
    (problem,) = problems_of(tmp_path, rules_of=2025)
    assert "4 names of 2020, which say no domain, under the rules of 2025" in problem


def test_a_machine_without_test_clips_is_noticed(tmp_path):
    write_machine(tmp_path, "fan", DCASE_2025[:2])
    (notice,) = build_catalogue(tmp_path, {})[1]
    assert "fan: holds no test clips" in notice


def test_auxiliary_sets_teach_with_every_normal_clip_and_nothing_else(tmp_path):
    write_machine(tmp_path, "fan", YEARS[2020])
    write_machine(tmp_path, "pump", ("test/normal_id_00_00000000", "test/anomaly_id_00_00000000"))
    clips, notices = build_catalogue(tmp_path, {"auxiliary": True})
    assert sorted(clips["clip_id"]) == [
        "fan/test/normal_id_01_00000000",
        "fan/train/normal_id_01_00000000",
        "pump/test/normal_id_00_00000000",
    ]
    assert set(clips["split"]) == {"train"} and set(clips["condition"]) == {"normal"}
    assert "fan: 2 clips not known to be normal were left out" in notices


def official(machine: str, sections: tuple[str, ...], counts: dict) -> pd.DataFrame:
    """Catalogue rows with the given counts, spread over the sections, at least one clip each."""
    rows = [
        (machine, sections[i % len(sections)], split, domain, condition or "normal")
        for (split, domain, condition), count in counts.items()
        for i in range(count)
    ]
    return pd.DataFrame(rows, columns=["machine", "section", "split", "domain", "condition"])


@pytest.mark.parametrize("year", [2020, 2021, 2022, 2023, 2024, 2025])
def test_a_complete_official_set_has_the_published_counts_and_one_clip_less_is_an_error(year):
    blocks = [block for block in expected_blocks(year) if block.counts]
    complete = pd.concat([official(b.machine, b.sections, b.counts) for b in blocks], ignore_index=True)
    assert check_counts(complete, year) == []
    with pytest.raises(InputError) as caught:
        check_counts(complete.drop(index=[3, len(complete) - 1]), year)
    first, last = caught.value.problems
    assert blocks[0].machine in first and blocks[-1].machine in last
    assert "published" in first and "partial: true" in caught.value.remedy


def test_the_published_sums_of_the_years_agree_with_the_blocks():
    def tests(year, machine=None):
        return sum(
            count
            for block in expected_blocks(year)
            for (split, _, _), count in block.counts.items()
            if split == "test" and machine in (None, block.machine)
        )

    trained = {
        (year, domain): {b.counts["train", domain, None] // len(b.sections) for b in expected_blocks(year)}
        for year in (2022, 2023, 2024, 2025)
        for domain in ("source", "target")
    }
    assert all(counts == ({990} if domain == "source" else {10}) for (_, domain), counts in trained.items())
    assert {b.counts["supplemental", None, None] for b in expected_blocks(2025)} == {100}
    assert tests(2021) == 8635 and tests(2021, "gearbox") == 1428 and tests(2021, "slider") == 1207
    assert tests(2020, "ToyConveyor") == 600 + 1065
    assert tests(2022) == 7 * 2 * 600
    assert {tests(2023), tests(2024), tests(2025)} == {14 * 200, 16 * 200, 15 * 200}
    assert len({block.machine for block in expected_blocks(2025)}) == 15


def test_counts_of_unlabelled_clips_are_compared_in_sum():
    (block,) = (block for block in expected_blocks(2023) if block.machine == "grinder")
    clips = official(block.machine, block.sections, block.counts)
    clips.loc[clips["split"] == "test", ["domain", "condition"]] = None
    assert check_counts(clips, 2023) == []
    clips.loc[clips.index[-1], ["domain", "condition"]] = "source", "normal"
    assert check_counts(clips, 2023) == [], "labels of a few clips tell nothing about the others"
    with pytest.raises(InputError, match="complete official set") as caught:
        check_counts(clips.iloc[:-1], 2023)
    assert caught.value.problems == ["grinder: 199 test clips in section 00, 200 are published"]


def test_missing_sections_and_foreign_machines_are_no_official_set():
    (block,) = (b for b in expected_blocks(2022) if b.machine == "fan" and "00" in b.sections)
    clips = official(block.machine, block.sections, block.counts)
    with pytest.raises(InputError) as caught:
        check_counts(clips[clips["section"] != "02"], 2022)
    assert "fan: section 02 has no clips" in caught.value.problems
    with pytest.raises(InputError, match="complete") as caught:
        check_counts(clips.assign(machine="drill"), 2022)
    assert "drill is not a machine of 2022" in caught.value.problems[0]


def test_a_year_without_published_counts_is_only_noticed():
    (notice,) = check_counts(official("ToyCar", ("00",), {("train", "source", None): 3}), 2026)
    assert "2026" in notice


def test_duplicates_are_found_across_data_sets_and_splits_and_one_of_each_is_marked_to_keep():
    index = pd.DataFrame(
        [
            ("dcase2022", "fan/train/a", "11"),
            ("dcase2022", "fan/test/b", "22"),
            ("dcase2023", "fan/train/c", "11"),
            ("dcase2023", "fan/test/d", "33"),
            ("dcase2024", "fan/test/e", "22"),
            ("dcase2025", "fan/test/f", "11"),
        ],
        columns=["dataset", "clip_id", "content_hash"],
    )
    found = find_duplicates(index)
    assert [list(group["clip_id"]) for _, group in found.groupby("group")] == [
        ["fan/train/a", "fan/train/c", "fan/test/f"],
        ["fan/test/b", "fan/test/e"],
    ]
    assert list(found.loc[found["first"], "clip_id"]) == ["fan/train/a", "fan/test/b"]
    assert find_duplicates(index.iloc[1:2]).empty


@needs_shared
@pytest.mark.shared
def test_the_genuine_valve_set_is_the_resplit_one(tmp_path):
    clips, notices = build_catalogue(SHARED / "realdata/dcase2023_valve", {"rules_of": 2023})
    assert notices == []
    counts = clips.groupby(["split", "domain", "condition"]).size().to_dict()
    assert counts == {
        ("train", "source", "normal"): 32,
        ("train", "target", "normal"): 10,
        ("test", "source", "normal"): 20,
        ("test", "target", "normal"): 40,
        ("test", "source", "anomaly"): 50,
        ("test", "target", "anomaly"): 50,
    }
    assert set(clips.loc[clips["domain"] == "source", "attribute_label"]) == {"pat=00", "pat=01"}
    assert set(clips.loc[clips["domain"] == "target", "attribute_label"]) == {"pat=02", "pat=03"}
    assert set(clips["n_samples"]) == {10 * RATE}
    with pytest.raises(InputError, match="not the complete official set"):
        check_counts(clips, 2023)


@needs_shared
@pytest.mark.shared
def test_the_genuine_samples_are_catalogued_alike_as_flac_and_as_wav(tmp_path):
    for source in (SHARED / "realdata/dcase2023_samples").rglob("*.*"):
        target = tmp_path / source.relative_to(SHARED / "realdata/dcase2023_samples")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".flac":
            samples, rate = soundfile.read(source, dtype="int16")
            soundfile.write(target.with_suffix(".wav"), samples, rate)
        else:
            target.write_bytes(source.read_bytes())
    flac, _ = build_catalogue(SHARED / "realdata/dcase2023_samples", {})
    wav, _ = build_catalogue(tmp_path, {})
    pd.testing.assert_frame_equal(flac.drop(columns="path"), wav.drop(columns="path"))
    assert len(flac) == 28 and flac["machine"].nunique() == 7
    assert flac["attribute_label"].notna().all()
    assert set(flac.loc[flac["machine"] == "ToyCar", "n_samples"]) == {12 * RATE}


@needs_shared
@pytest.mark.shared
def test_the_genuine_samples_of_2020_serve_as_training_material():
    clips, _ = build_catalogue(SHARED / "realdata/dcase2020_samples", {"auxiliary": True})
    assert len(clips) == 125 and clips["machine"].nunique() == 6
    with pytest.raises(InputError) as caught:
        build_catalogue(SHARED / "realdata/dcase2020_samples", {})
    assert len(caught.value.problems) == 5, "only the slider has training clips"
