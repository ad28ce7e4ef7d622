"""The feature cache: what is written comes back, bytes are reproducible, and no damage goes unnoticed."""

import pickle
import time

import h5py
import numpy as np
import pytest
import torch
from asdflow.errors import InputError
from asdflow.features.embeddings import embeddings_writer, read_embeddings, write_embeddings
from asdflow.features.front_end import FRONT_ENDS
from asdflow.features.store import FeatureStore, FeatureWriter, collate, padded_length, write_features

EAT = FRONT_ENDS["eat_logmel"]
LENGTHS = [5, 9, 3, 20]


def make_frames(lengths=LENGTHS, bins=128, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, bins)).astype(np.float16) for n in lengths]


def ids(prefix, frames=LENGTHS):
    return [f"{prefix}/train/clip_{k}_ä" for k in range(len(frames))]


@pytest.fixture
def fan(tmp_path):
    path = tmp_path / "fan.h5"
    write_features(path, ids("fan"), make_frames(), [f"{k:064x}" for k in range(4)], EAT)
    return path


def test_frames_come_back_as_they_were_written(fan, tmp_path):
    pump = tmp_path / "pump.h5"
    write_features(pump, ids("pump"), make_frames(seed=1), ["0" * 64] * 4, EAT)
    store = FeatureStore({"here": [fan], "there": [pump]})
    assert len(store) == 8
    assert (store.bins, store.front_end) == (128, "eat_logmel")
    assert store.index.columns.tolist() == ["dataset", "machine", "clip_id", "n_frames", "content_hash"]
    assert store.index["dataset"].tolist() == ["here"] * 4 + ["there"] * 4
    assert store.index["machine"].tolist() == ["fan"] * 4 + ["pump"] * 4
    assert store.index["clip_id"].tolist() == ids("fan") + ids("pump")
    assert store.index["content_hash"].iloc[3] == f"{3:064x}"
    for item, expected in enumerate(make_frames() + make_frames(seed=1)):
        frames = store.frames(item)
        assert frames.dtype == np.float16
        assert np.array_equal(frames, expected)


def test_frames_are_a_view_of_the_file_that_cannot_be_written(fan):
    frames = FeatureStore({"a": [fan]}).frames(1)
    assert not frames.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        frames[0, 0] = 1


def test_frames_stay_valid_when_their_pages_are_let_go(fan, monkeypatch):
    monkeypatch.setattr("asdflow.features.store.RESIDENT_BYTES", 1000)
    store = FeatureStore({"a": [fan]})
    views = [store.frames(k) for k in (0, 1, 2, 3, 0)]
    assert all(np.array_equal(view, make_frames()[k]) for view, k in zip(views, (0, 1, 2, 3, 0), strict=True))


def test_frames_lie_contiguous_and_unfiltered(fan):
    with h5py.File(fan) as file:
        assert file["frames"].chunks is None and file["frames"].compression is None
        assert np.array_equal(file["frames"][5:14], make_frames()[1])
        assert file.attrs["format"] == "asdflow-features"


def test_a_pickled_store_opens_its_files_again(fan):
    store = FeatureStore({"a": [fan]})
    store.frames(0)
    sent = pickle.dumps(store)
    assert len(sent) < 20_000
    assert np.array_equal(pickle.loads(sent).frames(3), make_frames()[3])


def test_the_same_content_gives_the_same_bytes_in_any_order_of_writing(fan, tmp_path):
    time.sleep(1.1)  # time stamps in the file would differ by now
    writer = FeatureWriter(tmp_path / "again.h5", ids("fan"), LENGTHS, EAT)
    for row in (2, 0, 3, 1):
        writer.write(row, make_frames()[row], f"{row:064x}")
    writer.finish()
    assert (tmp_path / "again.h5").read_bytes() == fan.read_bytes()


def test_frames_of_a_wrong_shape_are_not_written(tmp_path):
    writer = FeatureWriter(tmp_path / "x.h5", ["a"], [5], EAT)
    with pytest.raises(ValueError, match="float16"):
        writer.write(0, np.zeros((6, 128), np.float16), "0" * 64)


def test_any_flipped_byte_is_found_or_harmless(fan):
    """Flip bytes all over the file: opening or reading says so by name, or everything reads as it was."""
    whole = fan.read_bytes()
    expected = FeatureStore({"a": [fan]})
    frames = [expected.frames(k).copy() for k in range(4)]
    with h5py.File(fan) as file:
        start = file["frames"].id.get_offset()
    found = set()
    for position in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        fan.write_bytes(damaged)
        try:
            store = FeatureStore({"a": [fan]})
            read = [store.frames(k) for k in range(4)]
        except InputError as error:
            assert "fan.h5" in str(error)
            found.add(position)
            continue
        assert store.index.equals(expected.index), position
        assert all(np.array_equal(a, b) for a, b in zip(read, frames, strict=True)), position
    in_frames = {position for position in range(0, len(whole), 97) if start <= position < start + 37 * 256}
    assert len(in_frames) > 90 and in_frames < found


def test_verify_lists_every_damaged_clip(fan):
    with h5py.File(fan) as file:
        start = file["frames"].id.get_offset()
    content = bytearray(fan.read_bytes())
    for row in (0, 14):  # the first frames of clips 0 and 2
        content[start + row * 256 + 8] ^= 1
    fan.write_bytes(content)
    with pytest.raises(InputError) as caught:
        FeatureStore({"a": [fan]}, check=False).verify()
    assert [problem.split("clip_")[1] for problem in caught.value.problems] == ["0_ä", "2_ä"]


def test_checking_can_be_left_to_verify(fan):
    with h5py.File(fan) as file:
        start = file["frames"].id.get_offset()
    content = bytearray(fan.read_bytes())
    content[start] ^= 1
    fan.write_bytes(content)
    assert FeatureStore({"a": [fan]}, check=False).frames(0).shape == (5, 128)
    with pytest.raises(InputError, match=r"fan\.h5 is damaged"):
        FeatureStore({"a": [fan]}).frames(0)


@pytest.mark.parametrize("size", [0, 100, 3000, -1])
def test_a_cut_off_file_is_refused_by_name(fan, size):
    content = fan.read_bytes()
    fan.write_bytes(content[:size])
    with pytest.raises(InputError, match=r"fan\.h5 cannot be read as a feature file"):
        FeatureStore({"a": [fan]})


def test_a_file_that_was_never_finished_is_refused(tmp_path):
    path = tmp_path / "fan.h5"
    FeatureWriter(path, ["a"], [5], EAT).write(0, make_frames([5])[0], "0" * 64)
    with pytest.raises(InputError, match=r"fan\.h5"):
        FeatureStore({"a": [path]})


def test_foreign_and_missing_files_are_refused_by_name(tmp_path):
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["frames"] = np.zeros((3, 128), np.float16)
    with pytest.raises(InputError, match=r"foreign\.h5") as caught:
        FeatureStore({"a": [foreign]})
    assert "not a feature file" in str(caught.value)
    with pytest.raises(InputError, match=r"none\.h5"):
        FeatureStore({"a": [tmp_path / "none.h5"]})
    with pytest.raises(InputError, match="no feature files"):
        FeatureStore({"a": []})


def test_features_of_different_front_ends_are_not_mixed(fan, tmp_path):
    other = tmp_path / "pump.h5"
    write_features(other, ["p"], make_frames([4]), ["0" * 64], FRONT_ENDS["beats_logmel"])
    with pytest.raises(InputError) as caught:
        FeatureStore({"a": [fan, other]})
    assert "beats_logmel" in str(caught.value) and "eat_logmel" in str(caught.value)


def test_collate_pads_at_the_end_to_the_next_multiple():
    frames = make_frames([5, 20])
    batch = collate(frames, pad_multiple=16, pad_value=0.5)
    assert batch.shape == (2, 32, 128) and batch.dtype == torch.float32
    assert np.array_equal(batch[0, :5].numpy(), frames[0].astype(np.float32))
    assert (batch[0, 5:] == 0.5).all() and (batch[1, 20:] == 0.5).all()
    assert collate(frames[1:], pad_multiple=1, pad_value=0.5).shape == (1, 20, 128)


def test_padded_length_is_the_least_multiple_that_holds_the_clip():
    assert [padded_length(n, 16) for n in (1, 16, 17, 998)] == [16, 16, 32, 1008]
    assert padded_length(np.array([998, 1024, 1025]), 64).tolist() == [1024, 1024, 1088]


def test_embeddings_come_back_as_they_were_written(tmp_path):
    matrix = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    write_embeddings(tmp_path / "e.h5", ["a", "ö/x", "c"], matrix)
    names, found = read_embeddings(tmp_path / "e.h5")
    assert names == ["a", "ö/x", "c"] and found.dtype == np.float32
    assert np.array_equal(found, matrix)


def test_embeddings_may_be_written_in_any_order(tmp_path):
    with embeddings_writer(tmp_path / "e.h5", ["a", "b", "c"], 2) as write:
        write([2, 0], [[3, 3], [1, 1]])
        assert not (tmp_path / "e.h5").exists()
        write([1], [[2, 2]])
    assert read_embeddings(tmp_path / "e.h5")[1].tolist() == [[1, 1], [2, 2], [3, 3]]


def test_the_same_embeddings_give_the_same_bytes(tmp_path):
    for name in ("one.h5", "two.h5"):
        write_embeddings(tmp_path / name, ["a", "b"], np.eye(2))
        time.sleep(1.1 if name == "one.h5" else 0)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_any_flipped_byte_of_embeddings_is_found_or_harmless(tmp_path):
    path = tmp_path / "e.h5"
    matrix = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    write_embeddings(path, ids("fan", range(20)), matrix)
    whole, found = path.read_bytes(), 0
    for position in range(0, len(whole), 23):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            names, read = read_embeddings(path)
        except InputError as error:
            assert "e.h5" in str(error)
            found += 1
            continue
        assert names == ids("fan", range(20)) and np.array_equal(read, matrix), position
    assert found >= matrix.nbytes // 23


def test_foreign_and_damaged_embeddings_are_refused_by_name(fan, tmp_path):
    with pytest.raises(InputError, match=r"fan\.h5 is not a file of embeddings"):
        read_embeddings(fan)
    (tmp_path / "broken.h5").write_bytes(fan.read_bytes()[:200])
    with pytest.raises(InputError, match=r"broken\.h5"):
        read_embeddings(tmp_path / "broken.h5")
    with pytest.raises(ValueError, match="do not fit"):
        write_embeddings(tmp_path / "e.h5", ["a"], np.eye(2))
