"""Which catalogue and which feature files belong to which data set, told from where the stages write them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def sources_from(clips: Iterable[str | Path], features: Iterable[str | Path]) -> dict[str, tuple[Path, list[Path]]]:
    """Group `<dataset>/clips.parquet` and `<dataset>/features/<front_end>/<machine>.h5` by data set, in the order of `clips`."""
    sources: dict[str, tuple[Path, list[Path]]] = {Path(path).parent.name: (Path(path), []) for path in clips}
    for path in map(Path, features):
        sources[path.parents[2].name][1].append(path)
    return sources
