"""A machine's folder appears whole or not at all, and holds nothing that an archive has no business to write."""

import hashlib
import io
import json
import stat
import struct
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from asdflow.data import unpack
from asdflow.data.archives import Archive, plan_archives
from asdflow.data.download import download_archive
from asdflow.data.transfer import DownloadSettings
from asdflow.data.unpack import unpack_archives, unpack_machine
from asdflow.errors import InputError

from tests.killing import killed_at, lines_of, moments
from tests.official_layout import wav, zip_of
from tests.zenodo_server import Fault, ZenodoServer, serving

CLIP = "fan/train/section_00_source_train_normal_0000_m-n_W.wav"


def archive_at(path: Path, *entries: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    """A zip with these entries; those given as ZipInfo as they are, however hostile."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in [(CLIP, wav("harmless")), *entries]:
            archive.writestr(entry, content)
    return path


def refusal_of(archive: Path, target: Path) -> str:
    """The message with which the archive is refused; nothing may be left of the attempt."""
    before = sorted(target.parent.rglob("*"))
    with pytest.raises(InputError) as caught:
        unpack_archives([archive], "fan", target)
    assert sorted(target.parent.rglob("*")) == before, "nothing was written"
    return str(caught.value)


# ------------------------------------------------------------------ hostile archives


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/cron.d/fan/train/x.wav", "an absolute path"),
        ("C:/fan/train/x.wav", "an absolute path"),
        ("fan/train/../../../../x.wav", "the path leads upwards"),
        ("../fan/train/x.wav", "the path leads upwards"),
        ("fan\\train\\x.wav", "a backslash"),
        ("fan/train/deeper/x.wav", "a recording that is not at fan/<folder>/<file>"),
        ("valve/train/x.wav", "a recording that is not at fan/<folder>/<file>"),
    ],
)
def test_an_entry_that_leads_elsewhere_is_refused_by_name(name: str, reason: str, tmp_path: Path) -> None:
    told = refusal_of(archive_at(tmp_path / "evil.zip", (name, b"x")), tmp_path / "fan")
    assert "evil.zip" in told and repr(name) in told and reason in told


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        (stat.S_IFLNK, "a symbolic link"),
        (stat.S_IFIFO, "not an ordinary file"),
        (stat.S_IFCHR, "not an ordinary file"),
    ],
)
def test_links_and_devices_are_refused_by_name(mode: int, reason: str, tmp_path: Path) -> None:
    info = zipfile.ZipInfo("fan/train/link.wav")
    info.create_system = 3
    info.external_attr = (mode | 0o777) << 16
    told = refusal_of(archive_at(tmp_path / "evil.zip", (info, b"/etc/passwd")), tmp_path / "fan")
    assert "evil.zip" in told and "'fan/train/link.wav'" in told and reason in told


def test_a_nul_in_a_name_is_refused(tmp_path: Path) -> None:
    path = archive_at(tmp_path / "evil.zip", ("fan/train/x.wav_innocent.wav", b"x"))
    path.write_bytes(path.read_bytes().replace(b"x.wav_innocent.wav", b"x.wav\0innocent.wav"))
    assert "NUL" in refusal_of(path, tmp_path / "fan")


def test_a_hundred_gigabytes_of_zeros_are_refused_by_name_and_unread(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("fan/train/zeros.wav")
    path = archive_at(tmp_path / "bomb.zip", (info, bytes(1 << 20)))
    declare_size(path, "fan/train/zeros.wav", 100 * 10**9)
    told = refusal_of(path, tmp_path / "fan")
    assert "bomb.zip" in told and "'fan/train/zeros.wav'" in told and "100000000000 bytes" in told


def test_many_entries_of_zeros_are_refused_by_their_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "SMALL_ARCHIVE", 1 << 20)
    bombs = [(f"fan/train/zeros_{number}.wav", bytes(1 << 20)) for number in range(8)]
    told = refusal_of(archive_at(tmp_path / "bomb.zip", *bombs), tmp_path / "fan")
    assert "bomb.zip: 9 entries of" in told


def test_an_entry_that_holds_more_than_it_declares_is_refused_by_name(tmp_path: Path) -> None:
    path = archive_at(tmp_path / "liar.zip", ("fan/train/zeros.wav", bytes(4 << 20)))
    declare_size(path, "fan/train/zeros.wav", 1000)
    with pytest.raises(InputError, match="damaged or hostile") as caught:
        unpack_archives([path], "fan", tmp_path / "fan")
    assert "'fan/train/zeros.wav'" in str(caught.value) and str(path) in str(caught.value)
    written = sum(file.stat().st_size for file in (tmp_path / "fan").rglob("*.wav"))
    assert written <= 1000 + len(wav("harmless")), "never more than declared"


def declare_size(path: Path, name: str, size: int) -> None:
    """Forge the uncompressed size of an entry in the central directory (zip64 where it must be)."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    at = content.index(name.encode(), directory) - 46
    assert content[at : at + 4] == b"PK\x01\x02"
    header = bytearray(content[at : at + 46])
    extra = b"" if size < 2**32 else struct.pack("<HHQ", 1, 8, size)
    struct.pack_into("<I", header, 24, min(size, 2**32 - 1))
    struct.pack_into("<H", header, 30, len(extra))
    name_end = at + 46 + len(name)
    content = content[:at] + bytes(header) + content[at + 46 : name_end] + extra + content[name_end:]
    end = bytearray(content[-22:])
    struct.pack_into("<I", end, 12, struct.unpack_from("<I", end, 12)[0] + len(extra))
    path.write_bytes(content[:-22] + bytes(end))


def test_a_damaged_entry_is_named_and_an_encrypted_one_refused(tmp_path: Path) -> None:
    content = wav("to be damaged")
    path = archive_at(tmp_path / "a.zip", (zipfile.ZipInfo("fan/train/stored.wav"), content))
    path.write_bytes(path.read_bytes().replace(content[100:120], content[120:140], 1))
    with pytest.raises(InputError) as caught:
        unpack_archives([path], "fan", tmp_path / "fan")
    assert "'fan/train/stored.wav'" in str(caught.value) and "CRC" in str(caught.value)
    path = archive_at(tmp_path / "b.zip", ("fan/train/secret.wav", b"x"))
    forged = bytearray(path.read_bytes())
    forged[forged.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(forged))
    assert "encrypted" in refusal_of(path, tmp_path / "fan_b")


def test_all_refusals_of_all_archives_come_in_one_message(tmp_path: Path) -> None:
    archives = [
        archive_at(tmp_path / "a.zip", ("/x.wav", b"x"), ("fan/../y.wav", b"x")),
        archive_at(tmp_path / "b.zip", (CLIP.replace("0000", "0001"), b"x"), ("/z.wav", b"x")),
    ]
    (tmp_path / "c.zip").write_bytes(b"no zip at all")
    with pytest.raises(InputError) as caught:
        unpack_archives([*archives, tmp_path / "c.zip"], "fan", tmp_path / "fan")
    named = [problem.split(":")[0] for problem in caught.value.problems]
    assert named == [
        "a.zip, entry '/x.wav'",
        "a.zip, entry 'fan/../y.wav'",
        "b.zip, entry '/z.wav'",
        str(tmp_path / "c.zip"),
    ]


# ------------------------------------------------------------------ what is unpacked


def test_recordings_and_attribute_tables_are_unpacked_and_litter_is_not(tmp_path: Path) -> None:
    entries: dict[str, bytes] = {
        "data/fan/train/a.wav": b"A",
        "data/fan/test/b.FLAC": b"B",
        "data/fan/attributes_00.csv": b"file_name\n",
        "data/fan/readme.md": b"x",
        "data/fan/.DS_Store": b"x",
        "__MACOSX/data/fan/train/._a.wav": b"x",
        "data/fan/train/": b"",
    }
    (tmp_path / "a.zip").write_bytes(zip_of(entries))
    files = unpack_archives([tmp_path / "a.zip"], "fan", tmp_path / "fan")
    assert files == {"attributes_00.csv": 10, "test/b.FLAC": 1, "train/a.wav": 1}
    found = {
        str(path.relative_to(tmp_path / "fan")) for path in (tmp_path / "fan").rglob("*") if path.is_file()
    }
    assert found == files.keys()


def test_the_same_clip_in_two_archives_must_be_the_same_and_attribute_tables_are_both_kept(
    tmp_path: Path,
) -> None:
    def archive(name: str, clip: bytes, table: bytes) -> Path:
        (tmp_path / name).write_bytes(zip_of({"fan/train/a.wav": clip, "fan/attributes_00.csv": table}))
        return tmp_path / name

    first, second = archive("dev.zip", b"A", b"1"), archive("eval.zip", b"A", b"2")
    files = unpack_archives([first, second], "fan", tmp_path / "fan")
    assert sorted(files) == ["attributes_00.csv", "attributes_00_eval.csv", "train/a.wav"]
    other = archive("other.zip", b"B", b"1")
    with pytest.raises(InputError) as caught:
        unpack_archives([first, other], "fan", tmp_path / "fan2")
    assert caught.value.problems == ["'train/a.wav' lies in dev.zip and, different, in other.zip"]


def test_a_disk_that_is_too_small_is_noticed_before_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, unpack.DISK_RESERVE))
    assert "Not enough free disk" in refusal_of(archive_at(tmp_path / "a.zip"), tmp_path / "fan")


# ------------------------------------------------------------------ a machine as a whole

ENTRY = {
    "split": "both",
    "machines": None,
    "offline": None,
    "keep_archives": True,
    "archives": {
        "development": {"zenodo_record": 1, "files": {"fan": ["dev_fan.zip"]}},
        "additional_training": {"zenodo_record": 2, "files": {"fan": ["eval_data_fan_train.zip"]}},
    },
}


@pytest.fixture
def server() -> Iterator[ZenodoServer]:
    zenodo = ZenodoServer()
    for record, name, section in ((1, "dev_fan.zip", "00"), (2, "eval_data_fan_train.zip", "03")):
        clips = {
            f"fan/train/section_{section}_source_train_normal_{n:04d}_m-n_W.wav": wav(f"{n}")
            for n in range(60)
        }
        zenodo.records[record] = {name: zip_of(clips)}
    with serving(zenodo):
        yield zenodo


@pytest.fixture
def settings(server: ZenodoServer) -> DownloadSettings:
    return DownloadSettings(server.address, server.address, timeout_s=5, attempts=3, backoff_s=0.01)


def fetch_and_unpack(data_dir: Path, entry: dict, settings: DownloadSettings) -> None:
    for archive in plan_archives("dcase2022", entry):
        download_archive(archive, data_dir, settings, entry["offline"])
    unpack_machine("dcase2022", "fan", entry, data_dir, settings)


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, empty lock files aside, and the digest of its bytes."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_both_archives_of_a_machine_end_in_one_folder_with_a_table_of_contents(
    settings: DownloadSettings, tmp_path: Path
) -> None:
    fetch_and_unpack(tmp_path, ENTRY, settings)
    contents = json.loads((tmp_path / "dcase2022" / "fan.unpacked.json").read_text())
    assert [source["archive"] for source in contents["archives"]] == [
        "dev_fan.zip",
        "eval_data_fan_train.zip",
    ]
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "dcase2022" / "fan" / "train").iterdir()}
    assert contents["files"] == {f"train/{name}": sizes[name] for name in sorted(sizes)} and len(sizes) == 120


def test_a_complete_machine_is_left_alone_and_an_incomplete_one_made_anew(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    fetch_and_unpack(tmp_path, ENTRY, settings)
    folder = tmp_path / "dcase2022" / "fan"
    born = folder.stat().st_ino
    (tmp_path / "dcase2022" / "fan.unpacked.json").unlink()
    fetch_and_unpack(tmp_path, ENTRY, settings)
    assert folder.stat().st_ino == born and (tmp_path / "dcase2022" / "fan.unpacked.json").exists()
    next((folder / "train").iterdir()).write_bytes(b"cut")
    fetch_and_unpack(tmp_path, ENTRY, settings)
    assert folder.stat().st_ino != born and set(tree(folder / "train").values()) <= {
        hashlib.sha256(wav(f"{number}")).hexdigest() for number in range(60)
    }


def test_archives_that_are_not_kept_go_and_are_neither_fetched_again_nor_missed(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    entry = ENTRY | {"keep_archives": False}
    fetch_and_unpack(tmp_path, entry, settings)
    assert not list(tmp_path.rglob("*.zip")) and len(server.requests_for("/files/")) == 2
    for record in (tmp_path / "archives").rglob("*.json"):
        record.unlink()
    fetch_and_unpack(tmp_path, entry, settings)
    assert len(server.requests_for("/files/")) == 2, "what was unpacked from the published file is complete"
    next((tmp_path / "dcase2022" / "fan" / "train").iterdir()).unlink()
    fetch_and_unpack(tmp_path, entry, settings)
    assert len(server.requests_for("/files/")) == 4, "a folder with a gap is made anew"
    assert not list(tmp_path.rglob("*.zip"))


def test_a_part_chosen_first_and_more_later_gives_the_same_as_all_at_once(
    settings: DownloadSettings, tmp_path: Path
) -> None:
    entry = ENTRY | {"keep_archives": False}
    fetch_and_unpack(tmp_path / "steps", entry | {"split": "development"}, settings)
    fetch_and_unpack(tmp_path / "steps", entry, settings)
    fetch_and_unpack(tmp_path / "once", entry, settings)
    assert tree(tmp_path / "steps" / "dcase2022") == tree(tmp_path / "once" / "dcase2022")


def test_archives_given_offline_are_unpacked_from_where_they_are_and_never_deleted(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for record in server.records.values():
        for name, content in record.items():
            (given / name).write_bytes(content)
    entry = ENTRY | {"keep_archives": False, "offline": str(given)}
    fetch_and_unpack(tmp_path / "data", entry, settings)
    assert len(list((tmp_path / "data" / "dcase2022" / "fan" / "train").iterdir())) == 120
    assert len(list(given.iterdir())) == 2 and server.requests_for("/files/") == []
    fetch_and_unpack(tmp_path / "data", entry | {"offline": None}, settings)
    assert len(list(given.iterdir())) == 2


def test_a_corrupt_archive_never_becomes_a_folder(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    archive = Archive("dcase2022", "fan", "development", 1, "dev_fan.zip")
    content = bytearray(server.records[1]["dev_fan.zip"])
    content[200] ^= 1  # corrupt at its source: the md5 of the record fits, the CRC of the entry does not
    server.records[1]["dev_fan.zip"] = bytes(content)
    download_archive(archive, tmp_path, settings)
    with pytest.raises(InputError, match="damaged or hostile"):
        unpack_machine("dcase2022", "fan", ENTRY | {"split": "development"}, tmp_path, settings)
    left = [path.name for path in (tmp_path / "dcase2022").iterdir() if not path.name.endswith(".lock")]
    assert left == []


# ------------------------------------------------------------------ kill -9


@pytest.mark.parametrize("keep", [True, False])
def test_kill_9_at_any_moment_then_again_gives_what_an_undisturbed_run_gives(
    keep: bool, settings: DownloadSettings, tmp_path: Path
) -> None:
    entry = ENTRY | {"keep_archives": keep}
    lines = lines_of(lambda: fetch_and_unpack(tmp_path / "data", entry, settings))
    undisturbed = tree(tmp_path / "data")
    for moment in moments(5 + keep, 12, lines):
        (tmp_path / "data").rename(tmp_path / f"before_{moment}")
        for line in (moment, 30 + moment % 20):  # and once more soon after the second start
            killed_at(line, lambda: fetch_and_unpack(tmp_path / "data", entry, settings))
            assert_nothing_half_done(tmp_path / "data", undisturbed)
        fetch_and_unpack(tmp_path / "data", entry, settings)
        assert tree(tmp_path / "data") == undisturbed


def assert_nothing_half_done(data_dir: Path, undisturbed: dict[str, str]) -> None:
    """What carries a final name has its final bytes; a folder that is there is complete."""
    found = tree(data_dir)
    for name, digest in found.items():
        parts = Path(name).parts
        if not any(part.startswith(".") for part in parts) and ".part" not in parts[-1]:
            assert undisturbed.get(name, digest) == digest, name
    if (data_dir / "dcase2022" / "fan").exists():
        whole = {name for name in undisturbed if name.startswith("dcase2022/fan/")}
        assert whole <= found.keys()


def test_what_a_killed_run_left_is_removed_by_the_next(settings: DownloadSettings, tmp_path: Path) -> None:
    folder = tmp_path / "dcase2022"
    for name in (".fan.unpacking", ".fan.old"):
        (folder / name / "train").mkdir(parents=True)
        (folder / name / "train" / "half.wav").write_bytes(b"x")
    fetch_and_unpack(tmp_path, ENTRY, settings)
    assert sorted(path.name for path in folder.iterdir()) == [".fan.lock", "fan", "fan.unpacked.json"]


def test_an_interrupted_fetch_never_reaches_unpacking(
    server: ZenodoServer, settings: DownloadSettings, tmp_path: Path
) -> None:
    server.faults["dev_fan.zip"] = [Fault("truncate", after=1000)] * 9
    with pytest.raises(InputError, match="could not be fetched"):
        unpack_machine("dcase2022", "fan", ENTRY, tmp_path, settings)
    assert not (tmp_path / "dcase2022" / "fan").exists()
    assert zipfile.is_zipfile(io.BytesIO(server.records[1]["dev_fan.zip"])), "the published file was sound"
