"""What the tests share: where the genuine recordings and golden values are, and one thread per test process."""

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared (genuine recordings, golden values) is not here")

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
