"""From a workflow's configuration to what its report reads, and the record of the run beside the page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import yaml

from asdflow.files import write_text
from asdflow.provenance import run_record
from asdflow.report.inputs import DatasetFiles, ReportInputs, dataset_files
from asdflow.report.rule_graph import draw, rule_edges


def workflow_inputs(settings: Mapping[str, Any], results: Path, root: Path, folder: Path) -> ReportInputs:
    """Write configuration.yaml, provenance.json and rulegraph.svg into `folder` and name everything the report reads.

    Parameters
    ----------
    settings : `configuration` (resolved), `unadapted` (system -> encoder before pre-training) and `folders` (system -> where
        what it shares with others lies).
    results : the run's results folder.
    root : the checkout.
    folder : where the page will lie.
    """
    configuration = settings["configuration"]
    copy = folder / "configuration.yaml"
    write_text(copy, yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True))
    command = f"snakemake --cores all --configfile {copy}"
    record = run_record(configuration, results / "benchmarks", root, command)
    record["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    record["checksums"] = {name: recordings_digests(results / name) for name in configuration["datasets"]}
    write_text(folder / "provenance.json", json.dumps(record, indent=1))
    edges = rule_edges(root, [copy])
    if edges:
        write_text(folder / "rulegraph.svg", draw(edges))
    return ReportInputs(
        datasets=tuple(_dataset(name, settings, results) for name in configuration["run"]["datasets"]),
        encoder_histories={
            name: results / "encoders" / name / "history.parquet"
            for name, entry in configuration["encoders"].items()
            if entry["pretraining"]
        },
        provenance=folder / "provenance.json",
        rule_graph=folder / "rulegraph.svg" if edges else None,
        ablations=configuration["ablations"],
        baseline=configuration["run"]["baseline"],
        featured=configuration["run"]["systems"][0],
    )


def recordings_digests(dataset: Path) -> dict[str, str]:
    """Machine -> SHA-256 over the sorted content hashes of its clips, from the first front end that was cached."""
    folders = sorted((dataset / "features").glob("*"))
    digests = {}
    for path in sorted(folders[0].glob("*.h5")) if folders else []:
        with h5py.File(path, "r") as file:
            hashes = sorted(file["content_hash"].asstr()[:])
        digests[path.stem] = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return digests


def _dataset(name: str, settings: Mapping[str, Any], results: Path) -> DatasetFiles:
    configuration = settings["configuration"]
    run, entry = configuration["run"], configuration["datasets"][name]
    systems = {system: configuration["systems"][system] for system in run["systems"]}
    return dataset_files(
        results,
        name,
        {system: run["seeds"] for system in (*systems, *configuration["ensembles"])},
        encoders={system: part["encoder"] for system, part in systems.items()},
        unadapted=settings["unadapted"],
        folders=settings["folders"],
        rules_of=entry["rules_of"],
        published_set=_published_set(entry),
        synthetic=entry["source"] == "synthetic",
    )


def _published_set(entry: Mapping[str, Any]) -> str | None:
    """The challenge set that a data set is, such as `2025 evaluation`; None for anything else."""
    if entry["source"] != "dcase" or entry["partial"] or entry["machines"] or entry["split"] == "both":
        return None
    return f"{entry['rules_of']} {entry['split']}"
