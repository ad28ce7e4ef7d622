"""Asking a server for bytes and not giving up too early: retries, Retry-After, stalls, progress."""

from __future__ import annotations

import contextlib
import email.utils
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import requests

from asdflow import __version__
from asdflow.errors import InputError

log = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_TIMEOUT_S = 20.0
LONGEST_PAUSE_S = 300.0
LONGEST_RETRY_AFTER_S = 3600.0
TEMPORARY_STATUS = frozenset({408, 425, 429, *range(500, 600)})


@dataclass(frozen=True)
class DownloadSettings:
    """The `download` section of the configuration.

    zenodo, labels : base addresses of the archives and of the label sources.
    parallel : archives fetched at once, over all processes that share a data folder.
    timeout_s : longest silence of a server in seconds before a transfer counts as stalled.
    attempts : tries in a row without progress before giving up.
    backoff_s : first pause between tries in seconds; doubled each time, at most 300; a server's Retry-After wins.
    """

    zenodo: str = "https://zenodo.org"
    labels: str = "https://raw.githubusercontent.com"
    parallel: int = 3
    timeout_s: float = 60.0
    attempts: int = 8
    backoff_s: float = 2.0

    @classmethod
    def of(cls, section: Mapping[str, Any] | None) -> DownloadSettings:
        """Settings from a (validated) configuration section; what it lacks keeps its default."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in (section or {}).items() if key in known})


class InterruptedTransferError(Exception):
    """A try that failed but may be repeated; `wait` is what the server asked for, `progressed` whether the try got further."""

    def __init__(self, reason: str, wait: float | None = None, progressed: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.progressed = progressed


def with_retries(action: Callable[[], T], settings: DownloadSettings, what: str, remedy: str = "") -> T:
    """Return what `action` returns, repeating it while it raises InterruptedTransferError.

    Pauses grow exponentially from `settings.backoff_s`, unless the server names its own. After `settings.attempts` tries in a row
    without progress InputError says what was asked for and why the last try failed.
    """
    failures = 0
    while True:
        try:
            return action()
        except InterruptedTransferError as problem:
            failures = 1 if problem.progressed else failures + 1
            if failures >= settings.attempts:
                raise InputError(
                    f"{what} could not be fetched: gave up after {failures} tries without progress",
                    [str(problem)],
                    remedy or "check the connection and run the same command again",
                ) from problem
            pause = min(settings.backoff_s * 2 ** (failures - 1), LONGEST_PAUSE_S)
            if problem.wait is not None:
                pause = problem.wait
            log.warning("%s: %s; trying again in %.1f s", what, problem, pause)
            time.sleep(pause)


def open_session() -> requests.Session:
    """A session that says who is asking and wants the bytes as they are stored."""
    session = requests.Session()
    session.headers.update({"User-Agent": f"asdflow/{__version__}", "Accept-Encoding": "identity"})
    return session


def ask(
    session: requests.Session, url: str, settings: DownloadSettings, headers: Mapping[str, str] | None = None
) -> requests.Response:
    """Open a streamed GET of `url`.

    Raises InterruptedTransferError where another try may help (no connection, silence, 408, 425, 429, 5xx) and InputError where it
    will not (any other status from 400 on, except 416, which the caller handles).
    """
    try:
        response = session.get(
            url,
            stream=True,
            timeout=(min(CONNECT_TIMEOUT_S, settings.timeout_s), settings.timeout_s),
            headers=headers,
        )
    except (
        requests.exceptions.InvalidURL,
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
    ) as problem:
        raise InputError(
            f"'{url}' is not an address", [str(problem)], "mend the base address in `download`"
        ) from problem
    except requests.RequestException as problem:
        raise InterruptedTransferError(f"{url}: {_plainly(problem)}") from problem
    if response.status_code in TEMPORARY_STATUS:
        wait = _asked_to_wait(response)
        response.close()
        raise InterruptedTransferError(
            f"{url}: the server answered {response.status_code} {response.reason}", wait
        )
    if response.status_code >= 400 and response.status_code != 416:
        response.close()
        raise InputError(
            f"{url}: the server answered {response.status_code} {response.reason}",
            remedy="check the record and file names in the data set's configuration, or fetch by hand and set `offline`",
        )
    return response


def read_small(session: requests.Session, url: str, settings: DownloadSettings, limit: int) -> bytes:
    """The whole body of a small resource; more than `limit` bytes is an InputError, a broken body InterruptedTransferError."""
    with ask(session, url, settings) as response:
        body = bytearray()
        for block in blocks(response, url):
            body += block
            if len(body) > limit:
                raise InputError(
                    f"{url}: more than {limit} bytes, far larger than expected", remedy="check the address"
                )
        expected = response.headers.get("Content-Length")
        if expected is not None and len(body) != int(expected):
            raise InterruptedTransferError(f"{url}: the body ended after {len(body)} of {expected} bytes")
    return bytes(body)


def blocks(response: requests.Response, url: str, size: int = 1 << 16) -> Any:
    """The body in blocks of at most `size` bytes; a stall, reset or truncated body raises InterruptedTransferError."""
    try:
        yield from response.iter_content(size)
    except requests.RequestException as problem:
        raise InterruptedTransferError(f"{url}: {_plainly(problem)}") from problem


class Progress:
    """Logs, every few seconds and at the end, how far a transfer is, its rate and the time left."""

    def __init__(self, name: str, total: int, done: int = 0, every_s: float = 10.0) -> None:
        self.name, self.total, self.done, self.every_s = name, total, done, every_s
        self._first = done
        self._start = self._last = time.monotonic()

    def add(self, count: int) -> None:
        """Count `count` more bytes."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= self.every_s or self.done >= self.total:
            self._last = now
            log.info("%s", self.line(now - self._start))

    def line(self, elapsed: float) -> str:
        """The progress line after `elapsed` seconds of this transfer."""
        rate = (self.done - self._first) / max(elapsed, 1e-6)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        share = 100 * self.done / self.total if self.total else 100.0
        return (
            f"{self.name}: {self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB ({share:.0f} %), "
            f"{rate / 1e6:.1f} MB/s, {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )


def _asked_to_wait(response: requests.Response) -> float | None:
    """Seconds that the server asks for: Retry-After (RFC 9110 section 10.2.3, seconds or a date) or, as Zenodo tells on a 429, the end of
    the rate limit's window (X-RateLimit-Reset, Unix time); None where it says nothing readable."""
    after = response.headers.get("Retry-After")
    reset = response.headers.get("X-RateLimit-Reset") if response.status_code == 429 else None
    for text, read in ((after, float), (after, _seconds_until_date), (reset, _seconds_until_time)):
        with contextlib.suppress(ValueError):
            if text is not None:
                return min(max(read(text), 0.0), LONGEST_RETRY_AFTER_S)
    return None


def _seconds_until_date(text: str) -> float:
    return email.utils.parsedate_to_datetime(text).timestamp() - time.time()


def _seconds_until_time(text: str) -> float:
    return float(text) - time.time()


def _plainly(problem: requests.RequestException) -> str:
    if isinstance(problem, requests.Timeout) or "timed out" in str(problem):
        return "the transfer stalled (no byte within the time limit)"
    if isinstance(problem, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off before the end"
    return str(problem)
