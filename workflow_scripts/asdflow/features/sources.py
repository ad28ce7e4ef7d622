"""Which feature files belong to which data set, told from where the workflow writes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def features_by_dataset(datasets: Iterable[str], paths: Iterable[str | Path]) -> dict[str, list[Path]]:
    """Group `<results>/<dataset>/features/<front_end>/<machine>.h5` by data set, in the order of `datasets`."""
    files: dict[str, list[Path]] = {name: [] for name in datasets}
    for path in map(Path, paths):
        files[path.parents[2].name].append(path)
    return files
