"""On PYTHONPATH of a Snakemake under test: counts the lines of its job scripts, or has a job kill the whole process group.

ASDFLOW_COUNTS names a folder: every job script leaves a file `<script>-<process id>` there with its number of lines.
ASDFLOW_KILL is `<script>:<line>`: a job of that script kills Snakemake and all its jobs just before that line, or, where it has
less to do because an earlier run did most of it, as the last thing it does.
"""

import atexit
import os
import signal
import sys
from pathlib import Path


def _kill() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)


_command = Path(sys.orig_argv[-1])
if _command.parent.name == "scripts" and (os.environ.keys() & {"ASDFLOW_COUNTS", "ASDFLOW_KILL"}):
    from line_counter import LineCounter  # type: ignore[import-not-found]

    _script = _command.name.split(".", 1)[1].removesuffix(".py")
    _wanted, _, _line = os.environ.get("ASDFLOW_KILL", ":0").partition(":")
    _counter = LineCounter(int(_line) if _wanted == _script else 0, _kill)
    _counter.start()
    if _wanted == _script:
        atexit.register(_kill)
    if "ASDFLOW_COUNTS" in os.environ:
        _file = Path(os.environ["ASDFLOW_COUNTS"]) / f"{_script}-{os.getpid()}"
        atexit.register(lambda: _file.write_text(str(_counter.lines)))
