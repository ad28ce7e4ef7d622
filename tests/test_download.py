"""Whatever goes wrong on the way, a download ends with the published bytes or with a clear error."""

import email.utils
import errno
import hashlib
import json
import logging
import random
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from asdflow.data import download, transfer
from asdflow.data.archives import Archive, record_path
from asdflow.data.download import archive_file, download_archive
from asdflow.data.transfer import DownloadSettings, Progress
from asdflow.errors import InputError

from tests.killing import killed_at, lines_of, moments
from tests.zenodo_server import Fault, ZenodoServer, api_answer, serving

ARCHIVE = Archive("dcase2023", "fan", "development", 7882613, "dev_fan.zip")
FILE = "/records/7882613/files/dev_fan.zip"
API = "/api/records/7882613"
CONTENT = random.Random(1).randbytes(400_000)
OTHER = random.Random(2).randbytes(380_000)


@pytest.fixture
def server() -> Iterator[ZenodoServer]:
    zenodo = ZenodoServer()
    zenodo.records[7882613] = {"dev_fan.zip": CONTENT, "dev_valve.zip": OTHER}
    with serving(zenodo):
        yield zenodo


@pytest.fixture
def settings(server: ZenodoServer) -> DownloadSettings:
    return DownloadSettings(server.address, server.address, timeout_s=5, attempts=4, backoff_s=0.01)


def place(data_dir: Path, suffix: str = "") -> Path:
    return data_dir / "archives" / "dcase2023" / f"dev_fan.zip{suffix}"


def assert_complete(data_dir: Path, content: bytes = CONTENT) -> None:
    """The archive, its record, and nothing half-done besides."""
    assert place(data_dir).read_bytes() == content
    record = json.loads(place(data_dir, ".json").read_text())
    assert record["md5"] == hashlib.md5(content).hexdigest() and record["size"] == len(content)
    assert (
        record["licence"] == "cc-by-4.0"
        and record["path"] == str(place(data_dir))
        and record["url"].endswith(FILE)
    )
    assert not list(data_dir.rglob("*.part*"))


def test_an_archive_arrives_with_a_record_of_address_size_and_md5(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    assert download_archive(ARCHIVE, tmp_path, settings) == record_path(tmp_path, ARCHIVE)
    assert_complete(tmp_path)


def test_a_verified_archive_is_not_fetched_again_and_a_damaged_one_is(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    download_archive(ARCHIVE, tmp_path, settings)
    download_archive(ARCHIVE, tmp_path, settings)
    assert len(server.requests_for(FILE)) == 1
    place(tmp_path, ".json").unlink()
    download_archive(ARCHIVE, tmp_path, settings)
    place(tmp_path, ".part.json").write_text(
        "{}"
    )  # as a run leaves it that is killed just before it writes the record
    place(tmp_path, ".json").unlink()
    download_archive(ARCHIVE, tmp_path, settings)
    assert_complete(tmp_path)
    assert len(server.requests_for(FILE)) == 1, "without a record the archive is verified, not fetched"
    place(tmp_path).write_bytes(CONTENT[:-1] + b"?")
    assert archive_file(ARCHIVE, tmp_path, settings, None).read_bytes() == CONTENT
    assert len(server.requests_for(FILE)) == 2


# ------------------------------------------------------------------ faults of the server

PASSING = {
    "truncated body": [Fault("truncate", after=150_000)],
    "truncated twice": [Fault("truncate", after=150_000), Fault("truncate", after=100_000)],
    "nothing at all": [Fault("truncate", after=0)],
    "connection reset": [Fault("reset", after=150_000)],
    "stall": [Fault("stall", after=150_000, seconds=4.0)],
    "500": [Fault("status", status=500)],
    "502 then reset": [Fault("status", status=502), Fault("reset", after=40_000)],
    "429": [Fault("status", status=429)],
    "wrong byte": [Fault("wrong")],
    "wrong byte twice": [Fault("wrong"), Fault("wrong")],
    "range ignored": [Fault("truncate", after=150_000), Fault("no_range")],
}


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_ends_with_the_published_bytes(
    name: str, server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    server.faults[FILE] = list(PASSING[name])
    download_archive(ARCHIVE, tmp_path, replace(settings, timeout_s=1.0) if name == "stall" else settings)
    assert server.faults[FILE] == [], "the fault took place"
    assert_complete(tmp_path)


@pytest.mark.parametrize("kind", ["truncate", "reset", "stall"])
def test_an_interrupted_transfer_goes_on_where_it_stopped(
    kind: str, server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    server.faults[FILE] = [Fault(kind, after=200_000, seconds=4.0)]
    download_archive(ARCHIVE, tmp_path, replace(settings, timeout_s=1.0))
    first, second = server.requests_for(FILE)
    assert first is None and second is not None
    assert 100_000 < int(second.removeprefix("bytes=").removesuffix("-")) <= 200_000
    assert_complete(tmp_path)


def test_a_server_that_ignores_the_range_costs_no_third_fetch(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    server.faults[FILE] = [Fault("truncate", after=200_000), Fault("no_range")]
    download_archive(ARCHIVE, tmp_path, settings)
    assert len(server.requests_for(FILE)) == 2
    assert_complete(tmp_path)


def test_a_transfer_given_up_goes_on_in_the_next_run(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    server.faults[FILE] = [Fault("truncate", after=200_000)]
    with pytest.raises(InputError, match="gave up after 1 tries") as caught:
        download_archive(ARCHIVE, tmp_path, replace(settings, attempts=1))
    assert "goes on where it stopped" in caught.value.remedy
    assert not place(tmp_path).exists() and not place(tmp_path, ".json").exists()
    download_archive(ARCHIVE, tmp_path, settings)
    assert server.requests_for(FILE)[1] == "bytes=196608-", (
        "only the last, unfinished block of 64 KiB is fetched again"
    )
    assert_complete(tmp_path)


def test_lasting_wrong_bytes_are_deleted_and_the_message_names_address_expected_and_found(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    server.faults[FILE] = [Fault("wrong")] * 10
    with pytest.raises(InputError) as caught:
        download_archive(ARCHIVE, tmp_path, settings)
    told = str(caught.value)
    wrong = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    assert server.address + FILE in told
    assert f"expected {hashlib.md5(CONTENT).hexdigest()}" in told
    assert f"found {hashlib.md5(wrong).hexdigest()}" in told
    assert len(server.requests_for(FILE)) == download.WHOLE_FETCHES
    assert not list(tmp_path.rglob("*.zip")) and not list(tmp_path.rglob("*.part*"))


def test_a_file_that_changes_between_two_tries_is_never_mixed(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    server.faults[FILE] = [Fault("truncate", after=200_000)]
    server.faults[API] = [Fault("no_range"), Fault("status", status=500)]  # the first answer is in order
    with pytest.raises(InputError):
        download_archive(ARCHIVE, tmp_path, replace(settings, attempts=2))
    server.records[7882613]["dev_fan.zip"] = OTHER
    server.faults.clear()
    download_archive(ARCHIVE, tmp_path, settings)
    assert server.requests_for(FILE)[-1] is None, "what was there of the old file is not continued"
    assert_complete(tmp_path, OTHER)


def test_a_file_that_changes_under_the_range_request_is_never_mixed(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    server.faults[FILE] = [Fault("truncate", after=200_000), Fault("change", content=OTHER)]
    download_archive(ARCHIVE, tmp_path, settings)
    assert_complete(tmp_path, OTHER)


def test_a_part_begun_for_another_md5_or_of_unknown_origin_is_not_continued(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    place(tmp_path).parent.mkdir(parents=True)
    place(tmp_path, ".part").write_bytes(b"x" * 1000)
    download_archive(ARCHIVE, tmp_path, settings)
    assert server.requests_for(FILE) == [None]
    assert_complete(tmp_path)


def test_a_damaged_part_costs_another_fetch_and_no_more(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    place(tmp_path).parent.mkdir(parents=True)
    place(tmp_path, ".part").write_bytes(b"x" * 1000)
    note = {"md5": hashlib.md5(CONTENT).hexdigest(), "size": len(CONTENT)}
    place(tmp_path, ".part.json").write_text(json.dumps(note))
    download_archive(ARCHIVE, tmp_path, settings)
    assert server.requests_for(FILE) == ["bytes=1000-", None]
    assert_complete(tmp_path)


# ------------------------------------------------------------------ patience and politeness


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries, recorded instead of waited."""
    recorded: list[float] = []
    monkeypatch.setattr(transfer, "time", _Clock(recorded))
    return recorded


class _Clock:
    """The time module with a sleep that only takes notes."""

    def __init__(self, recorded: list[float]) -> None:
        self.sleep = recorded.append
        self.monotonic = time.monotonic
        self.time = time.time


def test_pauses_double_and_retry_after_wins(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path, pauses: list[float]
) -> None:
    later = email.utils.formatdate(time.time() + 90, usegmt=True)
    server.faults[API] = [
        Fault("status", status=500),
        Fault("status", status=503),
        Fault("status", status=429, headers=(("Retry-After", "17"),)),
        Fault("status", status=503, headers=(("Retry-After", later),)),
        Fault("status", status=429, headers=(("Retry-After", "soon"),)),
        Fault("status", status=429, headers=(("X-RateLimit-Reset", str(int(time.time()) + 40)),)),
    ]
    download_archive(ARCHIVE, tmp_path, replace(settings, attempts=7, backoff_s=2))
    assert [pauses[0], pauses[1], pauses[2], pauses[4]] == [2, 4, 17, 32]
    assert pauses[3] == pytest.approx(90, abs=3) and pauses[5] == pytest.approx(40, abs=3)
    assert_complete(tmp_path)


def test_giving_up_says_what_was_asked_how_often_and_why(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path, pauses: list[float]
) -> None:
    server.faults[API] = [Fault("status", status=503)] * 99
    with pytest.raises(
        InputError, match=r"Archive dev_fan\.zip could not be fetched: gave up after 4 tries"
    ) as caught:
        download_archive(ARCHIVE, tmp_path, settings)
    assert caught.value.problems == [f"{server.address}{API}: the server answered 503 Service Unavailable"]
    assert len(server.requests_for(API)) == 4 and len(pauses) == 3


def test_tries_that_get_further_do_not_count_towards_giving_up(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PROGRESS_WORTH_COUNTING", 100_000)
    server.faults[FILE] = [Fault("truncate", after=140_000)] * 2
    download_archive(ARCHIVE, tmp_path, replace(settings, attempts=2))
    assert len(server.requests_for(FILE)) == 3
    assert_complete(tmp_path)


def test_a_refusal_that_will_last_is_not_asked_again(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    server.faults[FILE] = [Fault("status", status=403)] * 5
    with pytest.raises(InputError, match="403 Forbidden"):
        download_archive(ARCHIVE, tmp_path, settings)
    assert len(server.requests_for(FILE)) == 1


def test_an_archive_that_the_record_does_not_list_is_named_with_those_it_lists(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"does not list 'dev_fan_r2\.zip'") as caught:
        download_archive(replace(ARCHIVE, name="dev_fan_r2.zip"), tmp_path, settings)
    assert caught.value.problems == ["it lists: dev_fan.zip", "it lists: dev_valve.zip"]
    assert "archives.development.files.fan" in caught.value.remedy


def test_no_connection_at_all_is_said_in_one_message(tmp_path: Path) -> None:
    nowhere = DownloadSettings("http://127.0.0.1:9", attempts=2, backoff_s=0)
    with pytest.raises(InputError, match="gave up after 2 tries") as caught:
        download_archive(ARCHIVE, tmp_path, nowhere)
    assert "http://127.0.0.1:9/api/records/7882613" in caught.value.problems[0]


def test_at_most_the_polite_number_of_archives_is_fetched_at_once(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    server.meeting = threading.Barrier(2)
    names = [f"dev_{number}.zip" for number in range(6)]
    server.records[7882613] = dict.fromkeys(names, CONTENT)
    jobs = [
        threading.Thread(
            target=download_archive,
            args=(replace(ARCHIVE, name=name), tmp_path, replace(settings, parallel=2)),
        )
        for name in names
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert server.most_running == 2
    assert sorted(path.name for path in tmp_path.rglob("*.zip")) == names


def test_two_jobs_for_one_archive_fetch_it_once(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    server.pause = 0.005
    jobs = [threading.Thread(target=download_archive, args=(ARCHIVE, tmp_path, settings)) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(server.requests_for(FILE)) == 1
    assert_complete(tmp_path)


def test_a_file_system_without_locks_is_no_obstacle(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(handle: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    download_archive(ARCHIVE, tmp_path, settings)
    assert_complete(tmp_path)


# ------------------------------------------------------------------ disk, progress, offline


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    free = download.DISK_RESERVE + len(CONTENT) - 1
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(free, 0, free))
    with pytest.raises(InputError, match="Not enough free disk") as caught:
        download_archive(ARCHIVE, tmp_path, settings)
    assert "data_dir" in caught.value.remedy and server.requests_for(FILE) == []
    free += 1
    download_archive(ARCHIVE, tmp_path, settings)
    assert_complete(tmp_path)


def test_progress_tells_share_rate_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("dev_fan.zip", total=1_200_000_000, done=200_000_000, every_s=0)
    with caplog.at_level(logging.INFO):
        progress.add(100_000_000)
    assert caplog.messages[0].startswith("dev_fan.zip: 300.0 of 1200.0 MB (25 %), ")
    assert progress.line(elapsed=10.0).endswith("10.0 MB/s, 1 min 30 s left")
    assert Progress("a", 10**11).line(5.0).endswith("0.0 MB/s, unknown time left")


def test_an_offline_archive_is_verified_against_a_saved_answer_of_the_api(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "dev_fan.zip").write_bytes(CONTENT)
    (given / "7882613.json").write_bytes(api_answer({"dev_fan.zip": CONTENT}))
    nowhere = DownloadSettings("http://127.0.0.1:9", attempts=1)
    record = json.loads(download_archive(ARCHIVE, tmp_path / "data", nowhere, offline=given).read_text())
    assert record["path"] == str(given / "dev_fan.zip") and record["md5"] == hashlib.md5(CONTENT).hexdigest()
    (given / "dev_fan.zip").write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(InputError, match="is not the published file") as caught:
        download_archive(ARCHIVE, tmp_path / "data", nowhere, offline=given)
    assert hashlib.md5(CONTENT).hexdigest() in str(caught.value)
    assert (given / "dev_fan.zip").exists(), "a file given by hand is never deleted"


def test_an_offline_archive_is_verified_against_the_api_where_it_can_be_reached(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    (tmp_path / "dev_fan.zip").write_bytes(CONTENT)
    download_archive(ARCHIVE, tmp_path / "data", settings, offline=tmp_path)
    assert server.requests_for(FILE) == [] and len(server.requests_for(API)) == 1


def test_an_offline_archive_without_anything_to_verify_it_is_refused_with_the_way_out(tmp_path: Path) -> None:
    nowhere = DownloadSettings("http://127.0.0.1:9", attempts=1)
    with pytest.raises(InputError, match="is not in the offline folder"):
        download_archive(ARCHIVE, tmp_path / "data", nowhere, offline=tmp_path)
    (tmp_path / "dev_fan.zip").write_bytes(CONTENT)
    with pytest.raises(InputError) as caught:
        download_archive(ARCHIVE, tmp_path / "data", nowhere, offline=tmp_path)
    assert str(tmp_path / "7882613.json") in caught.value.remedy


# ------------------------------------------------------------------ kill -9


def test_kill_9_at_any_moment_then_again_gives_the_published_bytes(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    lines = lines_of(lambda: download_archive(ARCHIVE, tmp_path / "whole", settings))
    for moment in moments(3, 12, lines):
        for line in (moment, 30 + moment % 20):  # and once more soon after the second start
            killed_at(line, lambda: download_archive(ARCHIVE, tmp_path / str(moment), settings))  # noqa: B023
            if place(tmp_path / str(moment)).exists():
                assert place(tmp_path / str(moment)).read_bytes() == CONTENT
        download_archive(ARCHIVE, tmp_path / str(moment), settings)
        assert_complete(tmp_path / str(moment))
    assert any(wanted is not None for wanted in server.requests_for(FILE)), (
        "some run went on where another was killed"
    )
