"""Back ends, decision thresholds, official metrics, submissions, detection; the public door is `official_score`."""

from typing import Any

__all__ = ["official_score"]


def __getattr__(name: str) -> Any:
    """Import `official_score` when it is first asked for, so that importing the package costs nothing."""
    if name == "official_score":
        from asdflow.detection.official import official_score

        return official_score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
