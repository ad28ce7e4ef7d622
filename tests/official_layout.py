"""Small archives and label lists in the official layout of every DCASE year, with the truth about every clip.

Names, folders, archives, record numbers and list formats are the published ones (configs/datasets/); the audio is generated, or genuine
where a folder of genuine clips is given. What a clip is said to be is written down here when its name is made, not read from the name.
"""

import copy
import csv
import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from tests.conftest import REPOSITORY
from tests.zenodo_server import ZenodoServer

YEARS = range(2020, 2027)
SAMPLES = 1920
# machine -> key-value pairs of a source and of a target clip; all other machines get DEFAULT
DEFAULT = ({"vel": "8", "loc": "B"}, {"vel": "12", "loc": "F"})
ATTRIBUTES = {
    "fan": ({"m-n": "W"}, {"m-n": "Y"}),
    "valve": ({"pat": "00"}, {"pat": "03"}),
    "ToyCar": ({"car": "C2", "spd": "31V", "mic": "1"}, {"car": "A1", "spd": "40V", "mic": "2"}),
    "Vacuum": ({"car": "B2", "spd": "Mb", "mic": "1"}, {"car": "C2", "spd": "H", "mic": "2"}),
    "CoffeeGrinder": (
        {"mic": "imp34dt05", "mic_pos": "A", "grind": "100", "bkg": "A"},
        {"mic": "imp23absu", "mic_pos": "B", "grind": "0", "bkg": "F"},
    ),
    "RoboticArm": ({"weight": "15", "Bckg": "F"}, {"weight": "35", "Bckg": "E"}),
    "BrushlessMotor": ({"spd": "1000", "Bckg": "A"}, {"spd": "1100", "Bckg": "B"}),
}
# 2021 writes the attributes of some machines without keys: text in the name, what it means
ATTRIBUTES_2021 = {
    "ToyCar": ("A1Spd28VMic1", {"car": "A1", "spd": "28V", "mic": "1"}),
    "ToyTrain": ("B2Spd7Mic2", {"car": "B2", "spd": "7", "mic": "2"}),
    "fan": ("strength_1_ambient", {"strength": "1", "noise": "ambient"}),
}
RUN_TOGETHER = ("RoboticArm", "BrushlessMotor")


@dataclass
class OfficialSet:
    """One year: the data set's entry (pins of the lists replaced), archives by record, lists by address path, truth by clip id."""

    year: int
    entry: dict[str, Any]
    records: dict[int, dict[str, bytes]] = field(default_factory=dict)
    lists: dict[str, bytes] = field(default_factory=dict)
    truth: dict[str, dict[str, Any]] = field(default_factory=dict)
    hidden: dict[str, str] = field(default_factory=dict)
    official_names: dict[tuple[str, str], tuple[str, dict[str, Any]]] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        return f"dcase{self.year}"

    def put_on(self, server: ZenodoServer) -> None:
        for record, files in self.records.items():
            server.records.setdefault(record, {}).update(files)
        server.files.update(self.lists)


def build(
    year: int, genuine: Path | None = None, machines: list[str] | None = None, samples: int = SAMPLES
) -> OfficialSet:
    """Build one year with all its machines or those given; `genuine` is a folder of genuine clips `<machine>/<folder>/<name>.flac`."""
    entry = yaml.safe_load((REPOSITORY / "configs" / "datasets" / f"dcase{year}.yaml").read_text())
    entry["split"] = "both"
    entry["machines"] = machines
    made = OfficialSet(year, entry)
    for kind, part in entry["archives"].items():
        for machine, (name,) in part["files"].items():
            if machines is None or machine in machines:
                clips = _clips(made, kind, machine, samples, genuine)
                made.records.setdefault(part["zenodo_record"], {})[name] = zip_of(
                    _with_litter(machine, clips)
                )
    _publish_labels(made)
    _publish_hidden(made)
    return made


def zip_of(files: dict[str, bytes]) -> bytes:
    """A zip with these files, the same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def wav(seed: str, channels: int = 1, samples: int = SAMPLES) -> bytes:
    """16-bit noise at 16 kHz, its own for every seed."""
    generator = np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
    return _as_wav(generator.integers(-3000, 3000, (samples, channels), dtype=np.int16))


def _as_wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _with_litter(machine: str, clips: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{machine}/": b"", **clips, f"{machine}/.DS_Store": b"x", f"__MACOSX/{machine}/._clip.wav": b"x"}


def _clips(
    made: OfficialSet, kind: str, machine: str, samples: int, genuine: Path | None
) -> dict[str, bytes]:
    """Files of one archive; notes the truth of each clip."""
    development = kind == "development"
    names: list[tuple[str, str, dict[str, Any]]] = []
    if kind != "evaluation":
        names += _training_names(made, machine, development)
    if development:
        names += _labelled_test_names(made, machine)
    if kind == "evaluation":
        names += _unlabelled_test_names(made, machine)
    channels = 2 if made.year == 2026 else 1
    files = {}
    table = []
    for folder, stem, truth in names:
        files[f"{machine}/{folder}/{stem}.wav"] = wav(
            f"{made.year}/{machine}/{folder}/{stem}", channels, samples
        )
        made.truth[f"{machine}/{folder}/{stem}"] = {"machine": machine, "channels": channels, **truth}
        if truth.get("attributes") and folder != "supplemental":
            table.append((f"{machine}/{folder}/{stem}.wav", truth["attributes"]))
    if genuine is not None and development:
        files |= _genuine_clips(made, machine, genuine)
    if made.year >= 2022 and kind != "evaluation" and table:
        files[f"{machine}/attributes_{'00' if development or made.year > 2022 else '03'}.csv"] = (
            _attribute_table(table)
        )
    return files


def _attribute_table(rows: list[tuple[str, dict[str, str]]]) -> bytes:
    width = max(len(attributes) for _, attributes in rows)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["file_name", *(f"d{number}{kind}" for number in range(1, width + 1) for kind in "pv")])
    for name, attributes in rows:
        cells = [cell for pair in attributes.items() for cell in pair]
        writer.writerow([name, *cells, *[""] * (2 * width - len(cells))])
    return buffer.getvalue().encode()


def _genuine_clips(made: OfficialSet, machine: str, genuine: Path) -> dict[str, bytes]:
    """Genuine FLAC clips as the WAV files they were; their truth is what the folder's attribute table and README say."""
    files = {}
    for path in sorted(genuine.glob(f"{machine}/*/*.flac")):
        samples, _ = soundfile.read(path, dtype="int16")
        name = f"{machine}/{path.parent.name}/{path.stem}"
        files[f"{name}.wav"] = _as_wav(samples)
        made.truth[name] = {"machine": machine, "split": path.parent.name, "n_samples": len(samples)}
    return files


# ------------------------------------------------------------------ names and what they mean


def is_hidden(made: OfficialSet, machine: str) -> bool:
    pins = (made.entry["hidden_attributes"] or {"files": {}})["files"].values()
    return machine in {pin["machine"] for pin in pins}


def _told(made: OfficialSet, machine: str, domain: str) -> tuple[str, dict[str, str]]:
    """The attribute part of a name and what it means."""
    if made.year == 2021:
        return ATTRIBUTES_2021.get(machine, ("vel_8_loc_B", {"vel": "8", "loc": "B"}))
    attributes = ATTRIBUTES.get(machine, DEFAULT)[domain == "target"]
    separator = "" if machine in RUN_TOGETHER else "_"
    return "_".join(f"{key}{separator}{value}" for key, value in attributes.items()), attributes


def _seen(made: OfficialSet, machine: str, domain: str) -> tuple[str, dict[str, str]]:
    """The same, as published: `noAttribute` where hidden, nothing in 2026's Emu machines."""
    if is_hidden(made, machine):
        return "noAttribute", {}
    if made.year == 2026 and machine.endswith("Emu"):
        return "", {}
    return _told(made, machine, domain)


def _truth(
    section: str, domain: str | None, split: str, condition: str | None, attributes: dict[str, str]
) -> dict[str, Any]:
    label = ",".join(f"{key}={value}" for key, value in attributes.items()) or None
    return {
        "section": section,
        "domain": domain,
        "split": split,
        "condition": condition,
        "attributes": attributes,
        "attribute_label": label,
        "supplement": None,
    }


def _training_names(
    made: OfficialSet, machine: str, development: bool
) -> list[tuple[str, str, dict[str, Any]]]:
    if made.year == 2020:
        section = "id_00" if development else "id_05"
        return [
            ("train", f"normal_{section}_{number:08d}", _truth(section, None, "train", "normal", {}))
            for number in range(2)
        ]
    section = "00" if development or made.year > 2022 else "03"
    names = []
    for number, domain in enumerate(("source", "source", "target")):
        text, attributes = _seen(made, machine, domain)
        stem = f"section_{section}_{domain}_train_normal_{number:04d}_{text}"
        names.append(("train", stem, _truth(section, domain, "train", "normal", attributes)))
        if is_hidden(made, machine):
            made.hidden[f"{machine}/train/{stem}"] = _told_label(made, machine, domain)
    return names + (_supplemental_names(section) if made.year >= 2025 else [])


def _supplemental_names(section: str) -> list[tuple[str, str, dict[str, Any]]]:
    clean = {**_truth(section, "source", "supplemental", "normal", {}), "supplement": "clean"}
    noise = {**_truth(section, None, "supplemental", None, {}), "supplement": "noise"}
    return [
        ("supplemental", f"section_{section}_source_supplemental_machine_0000", clean),
        ("supplemental", f"section_{section}_noise_supplemental_normal_0000", noise),
    ]


def _told_label(made: OfficialSet, machine: str, domain: str) -> str:
    return ",".join(f"{key}={value}" for key, value in _told(made, machine, domain)[1].items())


def _labelled_test_names(made: OfficialSet, machine: str) -> list[tuple[str, str, dict[str, Any]]]:
    names = []
    for condition in ("normal", "anomaly"):
        if made.year == 2020:
            names.append(
                ("test", f"{condition}_id_00_00000000", _truth("id_00", None, "test", condition, {}))
            )
            continue
        for domain in ("source", "target"):
            text, attributes = _seen(made, machine, domain)
            folder, ending = ("test", f"_{text}") if made.year > 2021 else (f"{domain}_test", "")
            stem = f"section_00_{domain}_test_{condition}_0000{ending}"
            truth = _truth("00", domain, "test", condition, attributes if made.year > 2021 else {})
            names.append((folder, stem, truth))
            if is_hidden(made, machine):
                made.hidden[f"{machine}/{folder}/{stem}"] = _told_label(made, machine, domain)
    return names


def _unlabelled_test_names(made: OfficialSet, machine: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Evaluation clips; the order of conditions and domains is shuffled so that a name gives nothing away."""
    names = []
    generator = np.random.default_rng([made.year, len(machine)])
    kinds = [(domain, condition) for domain in ("source", "target") for condition in ("normal", "anomaly")]
    for number, which in enumerate(generator.permutation(len(kinds))):
        domain, condition = kinds[which]
        if made.year == 2020:
            stem, official = f"id_05_{number:08d}", f"{condition}_id_05_{number + 70:08d}"
            truth = _truth("id_05", None, "test", condition, {})
            folder = "test"
        elif made.year == 2021:
            folder, stem = f"{domain}_test", f"section_03_{domain}_test_{number:04d}"
            official = f"section_03_{domain}_test_{condition}_{number:04d}"
            truth = _truth("03", domain, "test", condition, {})
        else:
            section = "03" if made.year == 2022 else "00"
            text, attributes = _told(made, machine, domain)
            folder, stem = "test", f"section_{section}_{number:04d}"
            official = f"section_{section}_{domain}_test_{condition}_{number + 40:04d}_{text}"
            known = not is_hidden(made, machine) and not (
                made.year == 2022 and machine in ("ToyCar", "ToyTrain")
            )
            truth = _truth(section, domain, "test", condition, attributes if known else {})
            if is_hidden(made, machine):
                made.hidden[f"{machine}/test/{stem}"] = _told_label(made, machine, domain)
        if made.entry["evaluation_labels"] is None:
            truth |= {"domain": None, "condition": None, "attributes": {}, "attribute_label": None}
        made.official_names[machine, f"{stem}.wav"] = (f"{official}.wav", truth)
        names.append((folder, stem, truth))
    return names


# ------------------------------------------------------------------ label lists


def _publish(made: OfficialSet, key: str, contents: dict[str, bytes]) -> None:
    """Serve lists under the pinned addresses and pin what is served."""
    source = copy.deepcopy(made.entry[key])
    source["files"] = {path: pin for path, pin in source["files"].items() if path in contents}
    for path, content in contents.items():
        source["files"][path]["sha256"] = hashlib.sha256(content).hexdigest()
        made.lists[f"{source['repository']}/{source['commit']}/{path}"] = content
    made.entry[key] = source


def _publish_labels(made: OfficialSet) -> None:
    source = made.entry["evaluation_labels"]
    if source is None:
        return
    if source["format"] == "names":
        (path,) = source["files"]
        _publish(made, "evaluation_labels", {path: _name_list(made)})
        return
    contents = {}
    for path in source["files"]:
        folder, _, name = path.partition("/")
        rows = [
            (key, value)
            for key, value in made.official_names.items()
            if f"_{key[0]}_section_{key[1][8:10]}_" in name
        ]
        if folder == "ground_truth_attributes":
            machine = path.split("/")[1]
            rows = [
                (key, value)
                for key, value in made.official_names.items()
                if key[0] == machine and f"_{key[1][8:10]}." in name
            ]
            lines = ["file_name,d1p,d1v,file_name_with_full_attributes"]
            lines += [f"{machine}/test/{key[1]},,,{machine}/test/{official}" for key, (official, _) in rows]
        elif folder == "ground_truth_data":
            lines = [f"{key[1]},{int(truth['condition'] == 'anomaly')}" for key, (_, truth) in rows]
        else:
            lines = [f"{key[1]},{int(truth['domain'] == 'target')}" for key, (_, truth) in rows]
        if rows:
            contents[path] = "".join(f"{line}\n" for line in lines).encode()
    _publish(made, "evaluation_labels", contents)


def _name_list(made: OfficialSet) -> bytes:
    """Lines of machines, each followed by `<file name>,<telling name>`; 2020 with a third column, 2021 and later with CRLF."""
    lines: list[str] = []
    machine = None
    for (owner, file_name), (official, truth) in made.official_names.items():
        if owner != machine:
            machine = owner
            lines.append(machine)
        shown = official.replace("_test_", "_") if machine == "RoboticArm" else official
        if made.year == 2024 and is_hidden(made, machine) and machine != "BrushlessMotor":
            shown = "_".join(official.split("_")[:6]) + "_noAttribute.wav"
        label = [str(int(truth["condition"] == "anomaly"))] if made.year == 2020 else []
        lines.append(",".join([file_name, shown, *label]))
    return "".join(line + ("\n" if made.year == 2020 else "\r\n") for line in lines).encode()


def _publish_hidden(made: OfficialSet) -> None:
    source = made.entry["hidden_attributes"]
    if source is None:
        return
    contents = {}
    for path, pin in source["files"].items():
        machine, split = pin["machine"], "train" if "_train_" in path else "test"
        ids = [key for key in made.hidden if key.startswith(f"{machine}/{split}/")]
        rows = [(_revealed_name(made, key), _listed_name(made, key)) for key in ids]
        if rows:
            lines = ["source_file_name,target_file_name", *(f"{told},{listed}" for told, listed in rows)]
            contents[path] = "".join(f"{line}\r\n" for line in lines).encode()
    _publish(made, "hidden_attributes", contents)


def _revealed_name(made: OfficialSet, clip_id: str) -> str:
    machine, _, stem = clip_id.split("/")
    official, _ = made.official_names.get((machine, f"{stem}.wav"), (None, None))
    if official is not None:
        return official
    domain = "target" if "_target_" in stem else "source"
    damage = "_damage1" if "_anomaly_" in stem and machine == "gearbox" else ""
    return stem.replace("noAttribute", _told(made, machine, domain)[0]) + f"{damage}.wav"


def _listed_name(made: OfficialSet, clip_id: str) -> str:
    machine, _, stem = clip_id.split("/")
    official, _ = made.official_names.get((machine, f"{stem}.wav"), (None, None))
    if official is None or made.year == 2025:
        return f"{stem}.wav"
    return "_".join(official.split("_")[:6]) + "_noAttribute.wav"


def truth_table(made: OfficialSet) -> dict[str, dict[str, Any]]:
    """The truth of generated clips as the catalogue spells it (attributes as JSON)."""
    spelled = {}
    for clip_id, truth in made.truth.items():
        if "attributes" in truth:
            spelled[clip_id] = {**truth, "attributes": json.dumps(truth["attributes"], ensure_ascii=False)}
    return spelled
