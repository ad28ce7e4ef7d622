"""Counts the lines of the package that a process executes, and ends it at a chosen one."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = str(Path(__file__).resolve().parents[2] / "workflow_scripts" / "asdflow")


class LineCounter:
    """Counts lines in every thread; just before the one numbered `stop_at` (from 1, 0: none) it calls `stop`."""

    def __init__(self, stop_at: int, stop: Callable[[], object]) -> None:
        self.lines, self.stop_at, self.stop = 0, stop_at, stop

    def start(self) -> None:
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._count if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _count(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.stop_at:
                self.stop()
        return self._count
