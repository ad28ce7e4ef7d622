"""Which device a stage runs on, and the one log line that says so."""

from __future__ import annotations

import logging

import torch

from asdflow.errors import InputError

log = logging.getLogger(__name__)


def pick_device(wanted: str = "auto") -> torch.device:
    """Return the device for `wanted` ("auto", "cpu" or "cuda"; "auto" takes CUDA where there is one).

    Raises InputError when "cuda" is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise InputError(
            "device: cuda was asked for, but PyTorch sees no CUDA device",
            remedy="set device: auto or cpu, or check the driver with nvidia-smi",
        )
    device = torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and available) else "cpu")
    if device.type == "cuda":
        log.info("Running on the GPU: %s", torch.cuda.get_device_name(device))
    else:
        log.info(
            "Running on the CPU (%d threads)%s",
            torch.get_num_threads(),
            "" if available else ": PyTorch sees no CUDA device",
        )
    return device
