"""Clip names of every year are understood, and what is not understood is refused in words."""

import re
from pathlib import Path

import pytest
from asdflow.data.naming import (
    FOLDERS,
    ClipName,
    UnknownNameError,
    attribute_label,
    attribute_text,
    parse_attributes,
    parse_clip_name,
    read_attributes_csv,
    with_csv_attributes,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import SHARED, needs_shared

CAR = {"car": "C2", "spd": "31V", "mic": "1"}

OFFICIAL = [
    # folder, stem, section, domain, split, condition, attributes
    ("train", "normal_id_01_00000000", "id_01", None, "train", "normal", {}),
    ("test", "anomaly_id_06_00000013", "id_06", None, "test", "anomaly", {}),
    ("test", "id_05_00000514", "id_05", None, "test", None, {}),
    (
        "train",
        "section_00_source_train_normal_0183_strength_1_ambient",
        *("00", "source", "train", "normal", {"strength": "1", "noise": "ambient"}),
    ),
    (
        "train",
        "section_00_source_train_normal_0000_0_g_25_mm_2000_mV_none",
        *("00", "source", "train", "normal", {"g": "0", "mm": "25", "mV": "2000", "noise": "none"}),
    ),
    (
        "train",
        "section_02_target_train_normal_0002_C2Spd28VMic1",
        *("02", "target", "train", "normal", {"car": "C2", "spd": "28V", "mic": "1"}),
    ),
    (
        "train",
        "section_03_source_train_normal_0004_serial_no_030_water",
        *("03", "source", "train", "normal", {"serial_no": "030", "content": "water"}),
    ),
    (
        "train",
        "section_00_source_train_normal_0000_pattern_00_no_pump",
        *("00", "source", "train", "normal", {"pattern": "00", "background": "no_pump"}),
    ),
    ("source_test", "section_00_source_test_anomaly_0090", "00", "source", "test", "anomaly", {}),
    ("target_test", "section_05_target_test_0162", "05", "target", "test", None, {}),
    (
        "test",
        "section_04_target_test_normal_0021_pat_06_panel_bs-c",
        *("04", "target", "test", "normal", {"pat": "06", "panel": "bs-c"}),
    ),
    (
        "train",
        "section_05_target_train_normal_0001_v1pat_04_v2pat_05",
        *("05", "target", "train", "normal", {"v1pat": "04", "v2pat": "05"}),
    ),
    ("test", "section_00_source_test_anomaly_0022_m-n_W", "00", "source", "test", "anomaly", {"m-n": "W"}),
    (
        "train",
        "section_00_source_train_normal_0362_car_C2_spd_31V_mic_1",
        *("00", "source", "train", "normal", CAR),
    ),
    (
        "test",
        "section_00_source_test_normal_0026_volt_1.5_wt_150",
        *("00", "source", "test", "normal", {"volt": "1.5", "wt": "150"}),
    ),
    ("test", "section_00_0000", "00", None, "test", None, {}),
    ("train", "section_00_target_train_normal_0009_noAttribute", "00", "target", "train", "normal", {}),
    ("train", "section_00_target_train_normal_0009_", "00", "target", "train", "normal", {}),
    (
        "train",
        "section_00_source_train_normal_0007_weight15_BckgF",
        *("00", "source", "train", "normal", {"weight": "15", "Bckg": "F"}),
    ),
    (
        "test",
        "section_00_source_test_anomaly_0003_pro_A_wt_30_damage2",
        *("00", "source", "test", "anomaly", {"pro": "A", "wt": "30", "damage": "2"}),
    ),
    (
        "test",
        "section_00_target_test_normal_0031_mic_imp34dt05_mic_pos_A_grind_100_bkg_D",
        *("00", "target", "test", "normal"),
        {"mic": "imp34dt05", "mic_pos": "A", "grind": "100", "bkg": "D"},
    ),
]


@pytest.mark.parametrize(
    ("folder", "stem", "section", "domain", "split", "condition", "attributes"),
    OFFICIAL,
    ids=[row[1] for row in OFFICIAL],
)
def test_official_names_say_what_they_say(folder, stem, section, domain, split, condition, attributes):
    name = parse_clip_name(folder, stem)
    assert (name.section, name.domain, name.split, name.condition) == (section, domain, split, condition)
    assert list(name.attributes.items()) == list(attributes.items())
    assert name.supplement is None


@pytest.mark.parametrize(
    ("stem", "supplement", "domain", "label"),
    [
        ("section_00_source_supplemental_machine_0000", "clean", "source", None),
        ("section_00_source_supplemental_normal_0017_vel_8_loc_B", "clean", "source", "vel=8,loc=B"),
        ("section_00_machine_source_0000_noAttribute", "clean", "source", None),
        ("section_00_noise_supplemental_normal_0099", "noise", None, None),
        ("section_00_source_supplemental_noise_0003", "noise", "source", None),
    ],
)
def test_supplemental_clips_are_clean_machine_or_noise(stem, supplement, domain, label):
    name = parse_clip_name("supplemental", stem)
    assert (name.split, name.supplement, name.domain) == ("supplemental", supplement, domain)
    assert name.attribute_label == label
    assert name.condition == ("normal" if supplement == "clean" else None), "noise is not a healthy machine"


@pytest.mark.parametrize(
    ("folder", "stem", "said"),
    [
        ("train", "recording 12", "no known form"),
        ("train", "section_00_source_test_normal_0000", "name says test, the folder says train"),
        ("source_test", "section_00_target_test_normal_0000", "name says target, the folder says source"),
        ("train", "section_00_source_train_anomaly_0000_pat_00", "training clips are normal"),
        ("train", "anomaly_id_01_00000000", "training clips are normal"),
        ("train", "id_01_00000000", "no condition"),
        ("train", "section_00_0000", "training clip"),
        ("supplemental", "section_00_source_test_normal_0000", "supplemental"),
        ("raw", "section_00_0000", "raw/"),
    ],
)
def test_unknown_or_contradictory_names_are_refused_with_the_reason(folder, stem, said):
    with pytest.raises(UnknownNameError, match=re.escape(said)):
        parse_clip_name(folder, stem)


KEYS = st.from_regex(r"[a-z][a-z0-9]{0,4}(-[a-z])?", fullmatch=True)
VALUES = st.from_regex(r"[A-Za-z0-9.+-]{1,5}", fullmatch=True)


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
def test_any_run_of_keys_and_values_is_read_back_in_order(attributes):
    text = attribute_text(attributes)
    name = parse_clip_name("test", f"section_03_target_test_anomaly_0123_{text}")
    assert (name.section, name.domain, name.condition) == ("03", "target", "anomaly")
    assert list(name.attributes.items()) == list(attributes.items())


@given(st.sampled_from([*FOLDERS, "raw"]), st.text(max_size=60))
def test_any_text_is_either_understood_or_refused(folder, stem):
    try:
        name = parse_clip_name(folder, stem)
    except UnknownNameError as error:
        assert str(error)
    else:
        assert name.split == FOLDERS[folder]


@given(st.from_regex(r"[A-Za-z0-9_.-]{1,30}", fullmatch=True))
def test_no_attribute_text_is_lost_by_parsing(text):
    attributes, content = parse_attributes(text), text.strip("_")
    if content in ("", "noAttribute"):
        assert attributes == {}
    else:
        assert attributes == {"description": content} or attribute_text(attributes) == content


def test_different_attributes_have_different_labels_and_hidden_ones_none():
    assert attribute_label(CAR) == "car=C2,spd=31V,mic=1"
    assert attribute_label({"car": "C2", "spd": "31V", "mic": "2"}) != attribute_label(CAR)
    assert attribute_label({}) is None
    assert attribute_text({}) == "noAttribute"


def write_csv(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "attributes_00.csv"
    path.write_text(text)
    return path


def test_attribute_tables_are_read_with_or_without_folders_and_suffixes(tmp_path):
    table = read_attributes_csv(
        write_csv(
            tmp_path,
            "file_name,d1p,d1v,d2p,d2v\n"
            "bearing/train/section_00_source_train_normal_0000_vel_6.wav,vel,6,,\n"
            "section_00_source_train_normal_0001_vel_6_loc_A,vel,6,loc,A\n"
            "section_00_source_train_normal_0002_noAttribute.wav,noAttribute,,,\n",
        )
    )
    assert table == {
        "train/section_00_source_train_normal_0000_vel_6": {"vel": "6"},
        "section_00_source_train_normal_0001_vel_6_loc_A": {"vel": "6", "loc": "A"},
        "section_00_source_train_normal_0002_noAttribute": {},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,d1p,d1v\nx.wav,vel,6\n", "first column is not file_name"),
        ("file_name,d1p,d1v\nx.wav,vel,\n", "line 2 has half an attribute"),
        ("file_name,d1p,d1v\nx.wav,vel,6\nx.wav,vel,7\n", "a second time"),
        ("", "first column is not file_name"),
    ],
)
def test_a_broken_attribute_table_is_refused_with_the_line(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        read_attributes_csv(write_csv(tmp_path, text))


def test_a_table_without_attribute_columns_says_nothing(tmp_path):
    assert read_attributes_csv(write_csv(tmp_path, "file_name\nx.wav\n")) == {}


def named(text: str) -> ClipName:
    return parse_clip_name("train", f"section_00_source_train_normal_0000_{text}")


def test_the_table_is_the_truth_where_the_name_agrees_or_says_nothing():
    assert with_csv_attributes(named("spd_7_5V"), {"spd": "7_5V"}).attributes == {"spd": "7_5V"}
    assert with_csv_attributes(named("weight15_BckgF"), {"weight": "15", "Bckg": "F"}).attribute_label
    assert list(with_csv_attributes(named("loc_A_vel_6"), {"vel": "6", "loc": "A"}).attributes) == [
        "vel",
        "loc",
    ]
    evaluation = parse_clip_name("test", "section_00_0000")
    assert with_csv_attributes(evaluation, CAR).attributes == CAR


@pytest.mark.parametrize(("text", "recorded"), [("vel_6", {"vel": "7"}), ("noAttribute", CAR), ("vel_6", {})])
def test_a_name_that_contradicts_the_table_is_an_error_naming_both(text, recorded):
    with pytest.raises(UnknownNameError) as caught:
        with_csv_attributes(named(text), recorded)
    for side in (named(text).attributes, recorded):
        assert (attribute_label(side) or "noAttribute") in str(caught.value)


@needs_shared
@pytest.mark.shared
def test_all_genuine_clips_parse_with_their_true_attributes():
    clips = sorted((SHARED / "realdata").rglob("*.flac"))
    assert len(clips) == 28 + 170 + 202
    tables = {
        path.parent: read_attributes_csv(path) for path in (SHARED / "realdata").rglob("attributes_00.csv")
    }
    checked = 0
    for path in clips:
        name = parse_clip_name(path.parent.name, path.stem)
        if table := tables.get(path.parent.parent):
            assert name.attributes == table[f"{path.parent.name}/{path.stem}"]
            checked += 1
        else:
            assert name.section.startswith("id_") and name.attributes == {}
    assert checked == 28 + 202
