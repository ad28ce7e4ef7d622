"""Anomalous sound detection for machines: from folders of recordings to detectors and an honest comparison."""

import os

__version__ = "0.1.0"

# Threads that wait for work must not spin: on a machine that runs several jobs at once, spinning makes two threads slower
# than one. OpenMP reads this when torch is loaded, so it stands in the module that is always imported first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
