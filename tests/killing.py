"""kill -9 at a chosen moment: a forked copy of the test process runs an action and dies at a chosen line of the package.

A moment is the n-th line of asdflow that the action executes, so a kill comes at the same place on a fast and on a loaded machine.
"""

import itertools
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable

from tests.killing_site.line_counter import LineCounter

Action = Callable[[], object]


def lines_of(action: Action) -> int:
    """How many lines of the package `action` executes, in a process of its own that comes to its end."""
    reader, writer = os.pipe()
    status = _forked(action, stop_at=0, tell=writer)
    os.close(writer)
    with os.fdopen(reader) as told:
        assert status == 0, f"the undisturbed run failed ({status})"
        return int(told.read())


def killed_at(line: int, action: Action) -> None:
    """Run `action` in a process of its own that is killed (SIGKILL) just before the package's `line`-th line."""
    status = _forked(action, stop_at=line)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (
        f"the run ended by itself before line {line} (status {status})"
    )


def moments(seed: int, count: int, lines: int) -> list[int]:
    """`count` seeded moments, one at random in each of as many equal parts of a run of `lines` lines."""
    draw = random.Random(seed)
    edges = [1 + part * lines // count for part in range(count + 1)]
    return [draw.randrange(first, max(first + 1, end)) for first, end in itertools.pairwise(edges)]


def _forked(action: Action, stop_at: int, tell: int | None = None) -> int:
    """Exit status (as waitpid gives it) of a forked child that runs `action`."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        counter = LineCounter(stop_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
        counter.start()
        action()
        sys.settrace(None)
        if tell is not None:
            os.write(tell, str(counter.lines).encode())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
