"""Clip names and folders of DCASE Task 2, 2020 to 2026: section, domain, split, condition, attributes.

The forms are those of the published data sets. What a name does not say is None, never guessed; a name in no
known form raises `UnknownNameError`, whose text says what is wrong with it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

FOLDERS = {
    "train": "train",
    "test": "test",
    "source_test": "test",
    "target_test": "test",
    "supplemental": "supplemental",
}
KNOWN_FORMS = (
    "<machine>/train/section_00_source_train_normal_0000_<attributes>.wav, "
    "<machine>/test/section_00_{source,target}_test_{normal,anomaly}_0000_<attributes>.wav, "
    "<machine>/test/section_00_0000.wav (not labelled), "
    "<machine>/{source_test,target_test}/section_00_source_test_{normal,anomaly}_0000.wav (2021), "
    "<machine>/{train,test}/{normal,anomaly}_id_00_00000000.wav and test/id_00_00000000.wav (2020), "
    "<machine>/supplemental/section_00_source_supplemental_machine_0000.wav or "
    "section_00_noise_supplemental_normal_0000.wav (2025)"
)
HIDDEN = "noAttribute"
DESCRIPTION = "description"

_FORM_2020 = re.compile(r"(?:(?P<condition>normal|anomaly)_)?(?P<section>id_\d{2})_\d{4,}")
_FORM_SECTION = re.compile(
    r"section_(?P<section>\d{2})_(?P<domain>source|target)_(?P<split>train|test)_"
    r"(?:(?P<condition>normal|anomaly)_)?\d{4,}(?:_(?P<attributes>.*))?"
)
_FORM_UNLABELLED = re.compile(r"section_(?P<section>\d{2})_\d{4,}(?:_(?P<attributes>.*))?")
_FORM_SUPPLEMENTAL = re.compile(
    r"section_(?P<section>\d{2})"
    r"(?P<words>(?:_(?:source|target|supplemental|machine|clean|noise|train|normal))+)"
    r"_\d{4,}(?:_(?P<attributes>.*))?"
)
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
# Spellings of the official sets that are not runs of key_value: 2021's training clips, RoboticArm and BrushlessMotor
# of 2024, the gearbox anomalies of 2024, CoffeeGrinder of 2025. Keys that a name does not spell are ours.
_SPECIAL_FORMS = tuple(
    re.compile(form)
    for form in (
        r"(?P<car>[A-Z]\d+)Spd(?P<spd>\d+V?)Mic(?P<mic>\d+)",
        r"strength_(?P<strength>[^_]+)_(?P<noise>[^_]+)",
        r"serial_no_(?P<serial_no>[^_]+)_(?P<content>[^_]+)",
        r"pattern_(?P<pattern>[^_]+)_(?P<background>[a-z]+(?:_[a-z]+)*)",
        r"(?P<g>[\d.]+)_g_(?P<mm>[\d.]+)_mm_(?P<mV>[\d.]+)_mV_(?P<noise>[^_]+)",
        r"weight(?P<weight>\d+)_Bckg(?P<Bckg>[A-Z])",
        r"spd(?P<spd>\d+)_Bckg(?P<Bckg>[A-Z])",
        r"pro_(?P<pro>[^_]+)_wt_(?P<wt>[^_]+)_damage(?P<damage>\d+)",
        r"mic_(?P<mic>[^_]+)_mic_pos_(?P<mic_pos>[^_]+)_grind_(?P<grind>[^_]+)_bkg_(?P<bkg>[^_]+)",
    )
)


class UnknownNameError(ValueError):
    """A clip's name or folder is in no form of DCASE 2020 to 2026; the text says why."""


@dataclass(frozen=True)
class ClipName:
    """What a clip's folder and name say; None where they do not say it.

    `section` is `00` (2021 and later) or `id_00` (2020); `attributes` keep the order of the name;
    `attribute_text` is their spelling in the name, None where this form of name never carries any.
    """

    section: str
    domain: str | None
    split: str
    condition: str | None
    attributes: dict[str, str] = field(default_factory=dict)
    attribute_text: str | None = None
    supplement: str | None = None

    @property
    def attribute_label(self) -> str | None:
        """Canonical text of the attributes, None where hidden or none are given."""
        return attribute_label(self.attributes)


def attribute_label(attributes: Mapping[str, str]) -> str | None:
    """Canonical text of attributes, `car=C2,spd=31V,mic=1` in their recorded order; None for an empty mapping."""
    return ",".join(f"{key}={value}" for key, value in attributes.items()) or None


def attribute_text(attributes: Mapping[str, str]) -> str:
    """Attributes as official clip names spell them: `car_C2_spd_31V_mic_1`, `noAttribute` for an empty mapping."""
    return "_".join(f"{key}_{value}" for key, value in attributes.items()) or HIDDEN


def parse_attributes(text: str) -> dict[str, str]:
    """Key-value pairs of the attribute part of a clip name, in order; empty where hidden or absent.

    `vel_8_loc_B` is {vel: 8, loc: B}, `weight15_BckgF` is {weight: 15, Bckg: F}; any text that is neither a run of
    keys and values nor in one of the known special spellings stays whole under the key `description`.
    """
    text = text.strip("_")
    if text in ("", HIDDEN):
        return {}
    for form in _SPECIAL_FORMS:
        if match := form.fullmatch(text):
            return match.groupdict()
    tokens = text.split("_")
    keys, values = tokens[0::2], tokens[1::2]
    is_run = len(keys) == len(values) and len(set(keys)) == len(keys) and all(values)
    if is_run and all(_KEY.fullmatch(key) for key in keys):
        return dict(zip(keys, values, strict=True))
    return {DESCRIPTION: text}


def parse_clip_name(folder: str, stem: str) -> ClipName:
    """Read a clip's folder name (`train`, `test`, `source_test`, ...) and its file name without suffix.

    Raises `UnknownNameError` when the folder or name is in no known form or the two contradict each other.
    """
    if folder not in FOLDERS:
        raise UnknownNameError(f"the folder {folder}/ is none of {', '.join(FOLDERS)}")
    if folder == "supplemental":
        return _parse_supplemental(stem)
    name = _parse_2020(folder, stem) or _parse_section(folder, stem) or _parse_unlabelled(folder, stem)
    if name is None:
        raise UnknownNameError("the name is in no known form")
    if name.split == "train" and name.condition == "anomaly":
        raise UnknownNameError("the name says anomaly, but training clips are normal")
    return name


def _parse_2020(folder: str, stem: str) -> ClipName | None:
    match = _FORM_2020.fullmatch(stem)
    if match is None:
        return None
    split = FOLDERS[folder]
    if split == "train" and match["condition"] is None:
        raise UnknownNameError("a training clip of 2020 is called normal_id_..., this name has no condition")
    return ClipName(match["section"], None, split, match["condition"])


def _parse_section(folder: str, stem: str) -> ClipName | None:
    match = _FORM_SECTION.fullmatch(stem)
    if match is None:
        return None
    domain, split = match["domain"], match["split"]
    if split != FOLDERS[folder]:
        raise UnknownNameError(f"the name says {split}, the folder says {FOLDERS[folder]}")
    if folder.endswith("_test") and not folder.startswith(domain):
        raise UnknownNameError(f"the name says {domain}, the folder says {folder.removesuffix('_test')}")
    if split == "train" and match["condition"] is None:
        raise UnknownNameError("a training clip is called ..._train_normal_..., this name has no condition")
    text = match["attributes"]
    return ClipName(match["section"], domain, split, match["condition"], parse_attributes(text or ""), text)


def _parse_unlabelled(folder: str, stem: str) -> ClipName | None:
    match = _FORM_UNLABELLED.fullmatch(stem)
    if match is None:
        return None
    if FOLDERS[folder] != "test":
        raise UnknownNameError("a training clip's name says domain and condition, this one does not")
    domain = folder.removesuffix("_test") if folder.endswith("_test") else None
    text = match["attributes"]
    return ClipName(match["section"], domain, "test", None, parse_attributes(text or ""), text)


def _parse_supplemental(stem: str) -> ClipName:
    """2025 and 2026: 100 clips of the clean machine or of noise alone; the name says `noise` for the latter."""
    match = _FORM_SUPPLEMENTAL.fullmatch(stem)
    if match is None:
        raise UnknownNameError("the name is in no known form of a supplemental clip")
    words = match["words"].split("_")
    domain = next((word for word in ("source", "target") if word in words), None)
    supplement = "noise" if "noise" in words else "clean"
    text = match["attributes"]
    attributes = parse_attributes(text or "") if supplement == "clean" else {}
    condition = "normal" if supplement == "clean" else None
    return ClipName(match["section"], domain, "supplemental", condition, attributes, text, supplement)


def read_attributes_csv(path: Path) -> dict[str, dict[str, str]]:
    """Read an official `attributes_NN.csv`: clip key -> attributes in the order of the columns.

    The key is `<folder>/<stem>` where the file says the folder, else the stem. Columns: file_name, d1p, d1v, d2p,
    d2v, ...; empty pairs and `noAttribute` are hidden. Raises ValueError for other columns, a half pair or a clip
    listed twice with different attributes. A table without any pair of columns says nothing about attributes: empty.
    """
    table: dict[str, dict[str, str]] = {}
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.reader(handle)
        header = next(reader, [])
        if not header or header[0].strip() != "file_name":
            raise ValueError("the first column is not file_name")
        if len(header) == 1:
            return {}
        for row in reader:
            if not row or not row[0].strip():
                continue
            key = _csv_key(row[0].strip())
            attributes = _csv_attributes(row[1:], reader.line_num)
            if table.setdefault(key, attributes) != attributes:
                raise ValueError(f"line {reader.line_num} gives {key} a second time, with other attributes")
    return table


def _csv_key(file_name: str) -> str:
    parts = file_name.replace("\\", "/").split("/")
    stem = re.sub(r"\.(wav|flac)$", "", parts[-1], flags=re.IGNORECASE)
    return f"{parts[-2]}/{stem}" if len(parts) > 1 else stem


def _csv_attributes(cells: list[str], line: int) -> dict[str, str]:
    cells = [cell.strip() for cell in cells]
    attributes: dict[str, str] = {}
    for position in range(0, len(cells), 2):
        key, value = cells[position], "".join(cells[position + 1 : position + 2])
        if key in ("", HIDDEN) and value in ("", HIDDEN):
            continue
        if not key or not value:
            raise ValueError(f"line {line} has half an attribute: key '{key}', value '{value}'")
        attributes[key] = value
    return attributes


def with_csv_attributes(name: ClipName, recorded: Mapping[str, str]) -> ClipName:
    """Take the attributes of `attributes_NN.csv` for a clip: they are the truth, the name must not contradict them.

    Raises `UnknownNameError` naming both when the name spells other attributes. A name without attributes (test
    clips of an evaluation set) contradicts nothing.
    """
    text = name.attribute_text
    agrees = (
        text is None
        or dict(recorded) == name.attributes
        or text.replace("_", "") == attribute_text(recorded).replace("_", "")
    )
    if not agrees:
        said = attribute_label(name.attributes) or HIDDEN
        listed = attribute_label(recorded) or HIDDEN
        raise UnknownNameError(f"the name says {said}, the attributes file says {listed}")
    return replace(name, attributes=dict(recorded))
