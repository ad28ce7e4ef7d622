"""Every DCASE year goes from the server to a catalogue with the truth about each clip; labels join totally or not at all."""

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from asdflow.data.archives import plan_archives, planned_machines
from asdflow.data.catalogue import build_catalogue
from asdflow.data.download import download_archive
from asdflow.data.evaluation_labels import LABEL_COLUMNS, apply_labels, read_evaluation_labels
from asdflow.data.labels import fetch_labels
from asdflow.data.transfer import DownloadSettings
from asdflow.data.unpack import unpack_machine
from asdflow.errors import InputError

from tests import official_layout
from tests.conftest import REPOSITORY, SHARED, needs_shared
from tests.official_layout import OfficialSet
from tests.zenodo_server import Fault, ZenodoServer, serving


def settings_for(server: ZenodoServer) -> DownloadSettings:
    return DownloadSettings(
        server.address, server.address, parallel=2, timeout_s=5, attempts=3, backoff_s=0.01
    )


def make_catalogue(
    made: OfficialSet, entry: dict, data_dir: Path, settings: DownloadSettings
) -> pd.DataFrame:
    """What the rules download, unpack, fetch_labels and catalogue do, one after the other."""
    for archive in plan_archives(made.dataset, entry):
        download_archive(archive, data_dir, settings, entry["offline"])
    for machine in planned_machines(made.dataset, entry):
        unpack_machine(made.dataset, machine, entry, data_dir, settings)
    labels, _ = fetch_labels(made.dataset, entry, data_dir, settings)
    clips, _ = build_catalogue(data_dir / made.dataset, {"machines": planned_machines(made.dataset, entry)})
    return apply_labels(clips, read_evaluation_labels(labels), partial=entry["partial"])


def seen(clips: pd.DataFrame) -> dict[str, dict]:
    """The catalogue by clip id, in the words of official_layout's truth."""
    columns = [
        "machine",
        "section",
        "domain",
        "split",
        "condition",
        "attributes",
        "attribute_label",
        "supplement",
        "channels",
    ]
    rows = clips.set_index("clip_id")[columns].astype(object)
    return {
        str(clip_id): dict(row) for clip_id, row in rows.where(rows.notna(), None).to_dict("index").items()
    }


@pytest.mark.parametrize("year", official_layout.YEARS)
def test_every_year_goes_from_server_to_a_catalogue_with_the_truth_about_every_clip(
    year: int, tmp_path: Path
) -> None:
    made = official_layout.build(year)
    with serving(ZenodoServer()) as server:
        made.put_on(server)
        clips = make_catalogue(made, made.entry, tmp_path, settings_for(server))
    truth = official_layout.truth_table(made)
    assert seen(clips) == truth
    kinds = {(row["split"], row["condition"]) for row in truth.values()}
    assert {("train", "normal"), ("test", "normal"), ("test", "anomaly")} <= kinds
    hidden = pd.read_csv(tmp_path / made.dataset / "hidden_attributes.csv")
    assert dict(zip(hidden["clip_id"], hidden["attribute_label"], strict=True)) == made.hidden
    assert set(hidden["clip_id"]) <= set(clips["clip_id"])
    assert not list((tmp_path / "archives").rglob("*.zip")), "keep_archives is false"


@needs_shared
@pytest.mark.parametrize(
    ("year", "folder", "count"), [(2020, "dcase2020_samples", 24), (2023, "dcase2023_samples", 28)]
)
def test_genuine_clips_go_through_the_same_way_unchanged(
    year: int, folder: str, count: int, tmp_path: Path
) -> None:
    genuine = tmp_path / "genuine"
    for path in sorted((SHARED / "realdata" / folder).glob("*/*/*.flac")):
        place = genuine / path.relative_to(SHARED / "realdata" / folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if len(list(genuine.rglob("*.flac"))) < count and len(list(place.parent.iterdir())) < 4:
            place.symlink_to(path)
    made = official_layout.build(year, genuine)
    with serving(ZenodoServer()) as server:
        made.put_on(server)
        clips = make_catalogue(made, made.entry, tmp_path, settings_for(server)).set_index("clip_id")
    genuine_ids = [clip_id for clip_id, truth in made.truth.items() if "n_samples" in truth]
    assert len(genuine_ids) == count
    for clip_id in genuine_ids:
        assert clips.loc[clip_id, "n_samples"] == made.truth[clip_id]["n_samples"]
        assert clips.loc[clip_id, "condition"] == ("anomaly" if "anomaly" in clip_id else "normal")
    for clip_id, attributes in genuine_attributes(SHARED / "realdata" / folder).items():
        assert json.loads(str(clips.loc[clip_id, "attributes"])) == attributes
    assert seen(clips.reset_index()).keys() == made.truth.keys()


def genuine_attributes(folder: Path) -> dict[str, dict[str, str]]:
    """Clip id -> attributes as the official tables beside the genuine clips record them."""
    recorded = {}
    for path in folder.glob("*/attributes_00.csv"):
        for line in path.read_text().splitlines()[1:]:
            name, *cells = line.split(",")
            recorded[name.removesuffix(".wav")] = dict(zip(cells[::2], cells[1::2], strict=True))
    return recorded


@pytest.mark.parametrize(
    ("split", "kinds"),
    [
        ("development", {"development"}),
        ("evaluation", {"additional_training", "evaluation"}),
        ("both", {"development", "additional_training", "evaluation"}),
    ],
)
def test_split_and_machines_choose_the_archives(split: str, kinds: set[str]) -> None:
    entry = configured(2021) | {"split": split, "machines": ["fan", "ToyCar"]}
    archives = plan_archives("dcase2021", entry)
    assert {archive.kind for archive in archives} == kinds
    assert (
        {archive.machine for archive in archives}
        == {"fan", "ToyCar"}
        == set(planned_machines("dcase2021", entry))
    )
    assert len(archives) == 2 * len(kinds)


def test_a_machine_outside_the_split_is_named_with_the_known_ones() -> None:
    entry = configured(2023) | {"split": "evaluation", "machines": ["bandsaw", "fan"]}
    with pytest.raises(InputError) as caught:
        plan_archives("dcase2023", entry)
    assert (
        "machine 'fan'" in str(caught.value)
        and "bandsaw" in caught.value.remedy
        and "'bandsaw'" not in caught.value.problems
    )


def configured(year: int) -> dict:
    return yaml.safe_load((REPOSITORY / "configs" / "datasets" / f"dcase{year}.yaml").read_text())


@needs_shared
def test_configured_archives_and_pins_are_the_published_ones() -> None:
    published = yaml.safe_load((SHARED / "datasets.yaml").read_text())
    for year in official_layout.YEARS:
        entry = configured(year)
        for kind, part in published["archives"][year].items():
            assert entry["archives"][kind] == part, (year, kind)
        source = published["evaluation_labels"].get(year)
        if source is None:
            assert entry["evaluation_labels"] is None
            continue
        pins = {path: pin["sha256"] for path, pin in entry["evaluation_labels"]["files"].items()}
        wanted = {source["path"]: source["sha256"]} if "path" in source else evaluator_pins(source)
        assert wanted.items() <= pins.items(), year
        assert (entry["evaluation_labels"]["repository"], entry["evaluation_labels"]["commit"]) == (
            source["repository"],
            source["commit"],
        )
    for year in (2024, 2025):
        pins = {path: pin["sha256"] for path, pin in configured(year)["hidden_attributes"]["files"].items()}
        wanted = {path: pin["sha256"] for path, pin in published["hidden_attributes"]["files"][year].items()}
        assert pins == wanted


def evaluator_pins(source: dict) -> dict[str, str]:
    folders = ("ground_truth_data", "ground_truth_domain")
    return {f"{folder}/{name}": pin["sha256"] for folder in folders for name, pin in source[folder].items()}


def test_only_the_sound_source_of_2022_is_configured() -> None:
    entry = configured(2022)
    assert entry["evaluation_labels"]["repository"] == "Kota-Dohi/dcase2022_evaluator"
    attributes = {
        path.split("/")[1]
        for path in entry["evaluation_labels"]["files"]
        if path.startswith("ground_truth_attributes")
    }
    assert attributes == {"bearing", "fan", "gearbox", "slider", "valve"}, (
        "ToyCar and ToyTrain are wrong there"
    )


# ------------------------------------------------------------------ the join


def catalogue_of(*rows: tuple) -> pd.DataFrame:
    columns = ["path", "machine", "section", "domain", "split", "condition", "attributes", "attribute_label"]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def labels_of(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=LABEL_COLUMNS, dtype=object)


CLIPS = (
    (
        "d/fan/train/section_00_source_train_normal_0000.wav",
        "fan",
        "00",
        "source",
        "train",
        "normal",
        "{}",
        None,
    ),
    ("d/fan/test/section_00_0000.wav", "fan", "00", None, "test", None, "{}", None),
    ("d/fan/test/section_00_0001.flac", "fan", "00", None, "test", None, "{}", None),
)
LABELS = (
    ("fan", "section_00_0001.wav", "00", "target", "anomaly", '{"vel": "8"}', "vel=8"),
    ("fan", "section_00_0000.wav", "00", "source", "normal", "{}", None),
)


def test_labels_go_to_their_clips_whatever_the_order_and_the_suffix() -> None:
    joined = apply_labels(catalogue_of(*CLIPS), labels_of(*LABELS))
    assert joined["condition"].tolist() == ["normal", "normal", "anomaly"]
    assert joined["domain"].tolist() == ["source", "source", "target"]
    assert json.loads(joined["attributes"][2]) == {"vel": "8"} and joined["attribute_label"][2] == "vel=8"


def test_the_join_lists_every_clip_without_label_and_every_label_without_clip() -> None:
    stray = catalogue_of(
        *CLIPS, ("d/fan/test/section_00_0007.wav", "fan", "00", None, "test", None, "{}", None)
    )
    missing = labels_of(*LABELS, ("fan", "section_00_0008.wav", "00", "source", "normal", "{}", None))
    with pytest.raises(InputError) as caught:
        apply_labels(stray, missing)
    assert caught.value.problems == [
        "clip without label: d/fan/test/section_00_0007.wav",
        "label without clip: fan/section_00_0008",
    ]
    with pytest.raises(InputError) as caught:
        apply_labels(stray, missing, partial=True)
    assert caught.value.problems == ["clip without label: d/fan/test/section_00_0007.wav"]
    assert len(apply_labels(catalogue_of(*CLIPS), missing, partial=True)) == 3


def test_a_label_of_another_section_than_the_clip_is_refused() -> None:
    wrong = labels_of(LABELS[0], ("fan", "section_00_0000.wav", "05", "source", "normal", "{}", None))
    with pytest.raises(InputError, match="evaluation labels") as caught:
        apply_labels(catalogue_of(*CLIPS), wrong)
    assert caught.value.problems == [
        "d/fan/test/section_00_0000.wav: the name says section 00, the label says 05"
    ]


def test_where_nothing_is_published_the_clips_stay_usable_without_labels() -> None:
    clips = catalogue_of(*CLIPS)
    assert apply_labels(clips, labels_of()).equals(clips)


# ------------------------------------------------------------------ fetching lists


@pytest.fixture(scope="module")
def bandsaw() -> OfficialSet:
    return official_layout.build(2023, machines=["bandsaw"])


def test_a_wrong_list_is_fetched_again_and_a_lasting_one_named_with_both_digests(
    bandsaw: OfficialSet, tmp_path: Path
) -> None:
    with serving(ZenodoServer()) as server:
        bandsaw.put_on(server)
        server.faults["eval_data_list"] = [
            Fault("status", status=503),
            Fault("wrong"),
            Fault("truncate", after=40),
        ]
        path, _ = fetch_labels(
            bandsaw.dataset, bandsaw.entry, tmp_path / "a", replace(settings_for(server), attempts=9)
        )
        assert len(read_evaluation_labels(path)) == 4
        server.faults["eval_data_list"] = [Fault("wrong")] * 3
        with pytest.raises(InputError) as caught:
            fetch_labels(bandsaw.dataset, bandsaw.entry, tmp_path / "b", settings_for(server))
    (content,) = bandsaw.lists.values()
    told = str(caught.value)
    assert hashlib.sha256(content).hexdigest() in told and "found" in told and server.address in told
    assert not (tmp_path / "b" / bandsaw.dataset / "evaluation_labels.csv").exists()


def test_lists_in_an_offline_folder_are_verified_and_all_that_are_missing_are_named(tmp_path: Path) -> None:
    made = official_layout.build(2022, machines=["fan"])
    entry = made.entry | {"offline": str(tmp_path / "given")}
    nowhere = DownloadSettings("http://127.0.0.1:9", "http://127.0.0.1:9", attempts=1)
    with pytest.raises(InputError) as caught:
        fetch_labels(made.dataset, entry, tmp_path, nowhere)
    assert len(caught.value.problems) == len(made.lists) == 3
    for address, content in made.lists.items():
        place = tmp_path / "given" / "/".join(address.split("/")[3:])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    path, _ = fetch_labels(made.dataset, entry, tmp_path, nowhere)
    assert read_evaluation_labels(path)["attribute_label"].isin(["m-n=W", "m-n=Y"]).all()


def served(made: OfficialSet, change: tuple[bytes, bytes]) -> OfficialSet:
    """The set with one change in its label list and the pin moved along: a list that is wrong at its source."""
    changed = copy.deepcopy(made)
    ((address, content),) = changed.lists.items()
    assert change[0] in content
    changed.lists[address] = content.replace(*change, 1)
    (pin,) = changed.entry["evaluation_labels"]["files"].values()
    pin["sha256"] = hashlib.sha256(changed.lists[address]).hexdigest()
    return changed


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ((b"section_00_0001.wav", b"section_00_0000.wav"), "section_00_0000.wav is listed twice"),
        ((b"_test_", b"_toast_"), "no known form"),
        ((b"bandsaw", b"bandage"), "no label of machine 'bandsaw'"),
    ],
)
def test_a_list_that_cannot_be_understood_is_refused(
    bandsaw: OfficialSet, tmp_path: Path, change: tuple[bytes, bytes], told: str
) -> None:
    made = served(bandsaw, change)
    with serving(ZenodoServer()) as server:
        made.put_on(server)
        with pytest.raises(InputError) as caught:
            fetch_labels(made.dataset, made.entry, tmp_path, settings_for(server))
    assert told in str(caught.value)


def test_names_that_contradict_the_conditions_of_2022_are_refused(tmp_path: Path) -> None:
    made = official_layout.build(2022, machines=["fan"])
    for address, content in made.lists.items():
        if "ground_truth_domain" in address:
            made.lists[address] = content.replace(b",0", b",2").replace(b",1", b",0").replace(b",2", b",1")
            path = "/".join(address.split("/")[3:])
            made.entry["evaluation_labels"]["files"][path]["sha256"] = hashlib.sha256(
                made.lists[address]
            ).hexdigest()
    with serving(ZenodoServer()) as server:
        made.put_on(server)
        with pytest.raises(InputError) as caught:
            fetch_labels(made.dataset, made.entry, tmp_path, settings_for(server))
    assert len(caught.value.problems) == 4 and all("labelled" in problem for problem in caught.value.problems)
