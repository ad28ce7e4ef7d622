"""Anomalous sound detection for machines: from folders of recordings to detectors and an honest comparison."""

__version__ = "0.1.0"
