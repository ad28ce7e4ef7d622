"""The catalogue of a data set: one row a clip, every recording looked at, every problem listed before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from asdflow.data import audio, naming
from asdflow.data.listing import AUDIO_SUFFIXES
from asdflow.errors import InputError
from asdflow.tables import REMEDY, read_columns, write_parquet

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("path", pa.string()),
        ("machine", pa.string()),
        ("section", pa.string()),
        ("domain", pa.string()),
        ("split", pa.string()),
        ("condition", pa.string()),
        ("attributes", pa.string()),
        ("attribute_label", pa.string()),
        ("n_samples", pa.int64()),
        ("sample_rate", pa.int64()),
        ("channels", pa.int64()),
        ("supplement", pa.string()),
    ]
)
OTHER_AUDIO = (
    ".mp3",
    ".ogg",
    ".opus",
    ".m4a",
    ".aac",
    ".aif",
    ".aiff",
    ".wma",
    ".w64",
    ".caf",
    ".au",
    ".raw",
)
_BATCH = 256

_REMEDIES = {
    "folder": "Give the folder that holds one folder per machine, each with train/ and test/.",
    "machine": "Give every machine clips in train/ and test/, or leave it out by naming the wanted ones in machines.",
    "name": f"Rename the clips; the known forms are: {naming.KNOWN_FORMS}.",
    "attributes": "Mend the attributes file (file_name,d1p,d1v,d2p,d2v,...) or the names.",
    "audio": "Replace or remove the files; audio.resample and audio.channel say what is done with other sample rates "
    "and several channels.",
    "duplicate": "Keep one file of each clip.",
    "suffix": "Convert the recordings to WAV or FLAC.",
    "rules": "Set rules_of: 2020, or name the clips as 2021 and later years do.",
}


@dataclass
class _Findings:
    """What building a catalogue has gathered for the user: problems by kind, and notices."""

    problems: list[tuple[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def problem(self, kind: str, text: str) -> None:
        self.problems.append((kind, text))

    def raise_if_any(self, root: Path) -> None:
        if not self.problems:
            return
        kinds = dict.fromkeys(kind for kind, _ in self.problems)
        n = len(self.problems)
        raise InputError(
            f"The data set in {root} cannot be used: {n} problem{'s' * (n > 1)}.",
            [text for _, text in self.problems],
            " ".join(_REMEDIES[kind] for kind in kinds),
        )


@dataclass(frozen=True)
class _Clip:
    """A clip whose name has been understood, before its audio is looked at."""

    path: Path
    machine: str
    clip_id: str
    name: naming.ClipName


def build_catalogue(
    root: Path, settings: Mapping[str, Any], workers: int = 1
) -> tuple[pd.DataFrame, list[str]]:
    """Catalogue a data set in DCASE layout, `<root>/<machine>/{train,test,...}/<clip>.{wav,flac}`.

    Parameters
    ----------
    root : folder of the machines; paths in the catalogue begin with it.
    settings : the data set's entry. Read here: `machines` (names, or null for all), `audio` (see
        `asdflow.data.audio`), `rules_of` (year), `auxiliary` (the clips only serve as extra training material: all normal clips count as
        split `train`, others are left out, no machine needs a train folder).
    workers : threads that look at recordings.

    Returns the catalogue (columns of `SCHEMA`, sorted by machine, split, path) and notices for the log. Raises
    `InputError` with every problem of all machines: names, attributes files, audio, missing clips, duplicates.
    """
    root = Path(root)
    findings = _Findings()
    audio_settings = settings.get("audio") or {}
    tables = [SCHEMA.empty_table()]
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for folder in _machine_folders(root, settings.get("machines"), findings):
            clips = _machine_clips(folder, findings)
            if settings.get("auxiliary", False):
                clips = _as_training_material(folder.name, clips, findings)
            else:
                _check_machine(folder, clips, int(settings.get("rules_of", 2020)), findings)
            _find_duplicate_ids(clips, findings)
            tables.append(_inspect(clips, audio_settings, pool, findings))
    findings.raise_if_any(root)
    catalogue: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return catalogue, findings.notices + _audio_notices(catalogue, audio_settings)


def _machine_folders(root: Path, machines: Sequence[str] | None, findings: _Findings) -> list[Path]:
    """Return the folders of the wanted machines, sorted by name; note what is missing."""
    if not root.is_dir():
        findings.problem("folder", f"{root}: there is no such folder")
        return []
    present = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if any(entry.name in naming.FOLDERS for entry in present):
        findings.problem(
            "folder", f"{root}: holds train/ or test/ itself, so it is a machine; give its parent folder"
        )
        return []
    if not present:
        findings.problem("folder", f"{root}: holds no machine")
        return []
    if machines is None:
        return present
    names = {entry.name for entry in present}
    for machine in machines:
        if machine not in names:
            there = ", ".join(sorted(names))
            findings.problem("machine", f"{root / machine}: there is no such machine (there: {there})")
    return [entry for entry in present if entry.name in machines]


def _machine_clips(folder: Path, findings: _Findings) -> list[_Clip]:
    """Read the names of one machine's clips; note names and files that do not fit."""
    before = len(findings.problems)
    attributes = _machine_attributes(folder, findings)
    found = [_read_clip(path, attributes, findings) for path in _clip_paths(folder, findings)]
    clips = [clip for clip in found if clip is not None]
    if not clips and len(findings.problems) == before:
        findings.problem("machine", f"{folder}: holds no clips")
    return clips


def _check_machine(folder: Path, clips: list[_Clip], rules_of: int, findings: _Findings) -> None:
    """Note what a machine lacks to be trained on and judged by the rules of its year."""
    if not clips:
        return
    splits = {clip.name.split for clip in clips}
    if "train" not in splits:
        findings.problem("machine", f"{folder}: holds no training clips")
    if "test" not in splits:
        findings.notices.append(f"{folder}: holds no test clips, so nothing of this machine is scored")
    without_domain = sum(clip.name.section.startswith("id_") for clip in clips)
    if rules_of > 2020 and without_domain:
        form = f"{without_domain} names of 2020, which say no domain, under the rules of {rules_of}"
        findings.problem("rules", f"{folder}: {form}")


def _read_clip(path: Path, attributes: Mapping[str, dict[str, str]], findings: _Findings) -> _Clip | None:
    """Read one clip's name, with the attributes that the machine's table records for it."""
    machine, folder = path.parent.parent.name, path.parent.name
    try:
        path.name.encode("utf-8")
        name = naming.parse_clip_name(folder, path.stem)
    except UnicodeEncodeError:
        findings.problem("name", f"{path.parent / ascii(path.name)}: the name is not UTF-8")
        return None
    except naming.UnknownNameError as error:
        findings.problem("name", f"{path}: {error}")
        return None
    recorded = attributes.get(f"{folder}/{path.stem}", attributes.get(path.stem))
    if recorded is not None:
        try:
            name = naming.with_csv_attributes(name, recorded)
        except naming.UnknownNameError as error:
            findings.problem("attributes", f"{path}: {error}")
    return _Clip(path, machine, f"{machine}/{folder}/{path.stem}", name)


def _clip_paths(folder: Path, findings: _Findings) -> list[Path]:
    """Return the WAV and FLAC files in a machine's known folders, sorted; note recordings that lie anywhere else."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    if loose := sum(entry.is_file() and _is_recording(entry) for entry in entries):
        findings.problem("folder", f"{folder}: {loose} recordings lie beside train/ and test/, not in them")
    paths: list[Path] = []
    for subfolder in (entry for entry in entries if entry.is_dir()):
        if subfolder.name in naming.FOLDERS:
            paths += _recordings(subfolder, findings)
        elif count := sum(1 for path in subfolder.rglob("*") if _is_recording(path)):
            known = ", ".join(naming.FOLDERS)
            findings.problem("folder", f"{subfolder}: {count} recordings in a folder that is none of {known}")
    return paths


def _recordings(folder: Path, findings: _Findings) -> list[Path]:
    """Return the WAV and FLAC files of a folder, sorted; note other formats and folders, ignore other files."""
    paths: list[Path] = []
    ignored = 0
    for entry in sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".")):
        suffix = entry.suffix.lower()
        if entry.is_dir():
            findings.problem("folder", f"{entry}: a folder where clips are expected")
        elif suffix in AUDIO_SUFFIXES:
            paths.append(entry)
        elif suffix in OTHER_AUDIO:
            findings.problem("suffix", f"{entry}: {suffix} is not read")
        else:
            ignored += 1
    if ignored:
        findings.notices.append(f"{folder}: {ignored} files are not recordings and were ignored")
    return paths


def _is_recording(path: Path) -> bool:
    return path.suffix.lower() in (*AUDIO_SUFFIXES, *OTHER_AUDIO)


def _machine_attributes(folder: Path, findings: _Findings) -> dict[str, dict[str, str]]:
    """Read all attributes_NN.csv of a machine into one table."""
    table: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("attributes_*.csv")):
        try:
            table.update(naming.read_attributes_csv(path))
        except (ValueError, OSError) as error:
            findings.problem("attributes", f"{path}: {error}")
    return table


def _as_training_material(machine: str, clips: list[_Clip], findings: _Findings) -> list[_Clip]:
    """Keep what an auxiliary data set may teach: normal clips, from whatever folder, and noise."""
    kept = [clip for clip in clips if clip.name.condition == "normal" or clip.name.split == "supplemental"]
    if len(kept) < len(clips):
        findings.notices.append(
            f"{machine}: {len(clips) - len(kept)} clips not known to be normal were left out"
        )
    return [clip if clip.name.split == "supplemental" else _for_training(clip) for clip in kept]


def _for_training(clip: _Clip) -> _Clip:
    return replace(clip, name=replace(clip.name, split="train"))


def _find_duplicate_ids(clips: Iterable[_Clip], findings: _Findings) -> None:
    first: dict[str, Path] = {}
    for clip in clips:
        known = first.setdefault(clip.clip_id, clip.path)
        if known is not clip.path:
            findings.problem("duplicate", f"{clip.path}: is the same clip as {known.name}")


def _inspect(
    clips: Sequence[_Clip], settings: Mapping[str, Any], pool: ThreadPoolExecutor, findings: _Findings
) -> pa.Table:
    """Look at the recordings of one machine, in batches; the catalogue's rows of those in order, sorted."""

    def inspect(batch: Sequence[_Clip]) -> list[audio.AudioInfo | str]:
        return [audio.inspect_audio(clip.path, settings) for clip in batch]

    batches = [clips[start : start + _BATCH] for start in range(0, len(clips), _BATCH)]
    rows = []
    for clip, info in zip(clips, chain.from_iterable(pool.map(inspect, batches)), strict=True):
        if isinstance(info, str):
            findings.problem("audio", f"{clip.path}: {info}")
        else:
            rows.append(_row(clip, info))
    rows.sort(key=lambda row: (row["split"], row["path"]))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _row(clip: _Clip, info: audio.AudioInfo) -> dict[str, Any]:
    name = clip.name
    return {
        "clip_id": clip.clip_id,
        "path": str(clip.path),
        "machine": clip.machine,
        "section": name.section,
        "domain": name.domain,
        "split": name.split,
        "condition": name.condition,
        "attributes": json.dumps(name.attributes, ensure_ascii=False),
        "attribute_label": name.attribute_label,
        **info._asdict(),
        "supplement": name.supplement,
    }


def _audio_notices(frame: pd.DataFrame, settings: Mapping[str, Any]) -> list[str]:
    """Say what reading will do to the recordings: resampling, and which channel is taken."""
    notices = []
    wanted = int(settings.get("sample_rate", 16000))
    for rate, count in frame["sample_rate"].value_counts().sort_index().items():
        if rate != wanted:
            notices.append(f"{count} clips of {rate} Hz are resampled to {wanted} Hz")
    policy = settings.get("channel", "mean")
    taken = "are averaged" if policy == "mean" else f"are reduced to one ({policy})"
    for channels, count in frame["channels"].value_counts().sort_index().items():
        if channels != 1:
            notices.append(f"the {channels} channels of {count} clips {taken}")
    return notices


def write_catalogue(catalogue: pd.DataFrame, path: Path) -> None:
    """Write a catalogue as Parquet, atomically; the same rows give the same bytes."""
    write_parquet(catalogue, path, SCHEMA)


def read_catalogue(path: Path) -> pd.DataFrame:
    """Read a catalogue; raises `InputError` when it is missing, unreadable or has other columns than `SCHEMA`."""
    table = read_columns(path)
    if not table.schema.equals(SCHEMA):
        expected = {field.name: str(field.type) for field in SCHEMA}
        found = {field.name: str(field.type) for field in table.schema}
        different = [f"{path}: column {c} is missing" for c in expected if c not in found]
        different += [f"{path}: column {c} is not known" for c in found if c not in expected]
        different += [
            f"{path}: column {c} is {found[c]}, not {expected[c]}"
            for c in expected
            if found.get(c, expected[c]) != expected[c]
        ]
        raise InputError(
            "This is not a catalogue of this version.", different or [f"{path}: column order"], REMEDY
        )
    frame: pd.DataFrame = table.to_pandas()
    return frame
