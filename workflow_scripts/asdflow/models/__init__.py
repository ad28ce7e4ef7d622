"""Encoders; `load_encoder` is the door for people outside, imported when first asked for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asdflow.models.loading import load_encoder

__all__ = ["load_encoder"]


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first used, so that the package itself stays light."""
    if name == "load_encoder":
        from asdflow.models.loading import load_encoder

        return load_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
