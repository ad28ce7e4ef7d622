"""Recordings are read as mono float32 at 16 kHz, and unusable ones are found without decoding them whole."""

import numpy as np
import pytest
import soundfile
from asdflow.data.audio import AudioInfo, inspect_audio, read_audio, read_blocks
from asdflow.errors import InputError

RATE = 16000


def tone(seconds=1.0, rate=RATE, hertz=440.0, channels=1):
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * hertz * time)
    return wave if channels == 1 else np.stack([wave * (c + 1) / channels for c in range(channels)], axis=1)


@pytest.fixture
def write(tmp_path):
    def write_file(samples, rate=RATE, name="clip.wav", **options):
        soundfile.write(tmp_path / name, samples, rate, **options)
        return tmp_path / name

    return write_file


@pytest.mark.parametrize(
    ("name", "subtype", "error"),
    [
        ("a.wav", "PCM_U8", 2**-7),
        ("a.wav", "PCM_16", 2**-15),
        ("a.wav", "PCM_24", 2**-23),
        ("a.wav", "PCM_32", 2**-24),
        ("a.wav", "FLOAT", 2**-24),
        ("a.wav", "DOUBLE", 2**-24),
        ("a.flac", "PCM_16", 2**-15),
        ("a.flac", "PCM_24", 2**-23),
    ],
)
def test_every_sample_format_is_read_to_its_own_precision(write, name, subtype, error):
    path = write(tone(), name=name, subtype=subtype)
    assert inspect_audio(path, {}) == AudioInfo(RATE, RATE, 1)
    samples = read_audio(path, {})
    assert samples.dtype == np.float32 and samples.shape == (RATE,)
    assert np.abs(samples - tone()).max() <= error


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000, 96000])
def test_other_sample_rates_keep_pitch_length_and_level(write, rate):
    path = write(tone(2.0, rate), rate, subtype="FLOAT")
    samples = read_audio(path, {})
    assert abs(len(samples) - 2 * RATE) <= 1
    inner = slice(RATE // 4, len(samples) - RATE // 4)
    assert np.abs(samples[inner] - tone(2.0)[: len(samples)][inner]).max() < 2e-3


def test_resampling_removes_what_the_lower_rate_cannot_hold(write):
    samples = read_audio(write(tone(1.0, 48000, hertz=12000.0), 48000, subtype="FLOAT"), {})
    assert np.abs(samples[1000:-1000]).max() < 1e-3


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("mean", 0.75), ("first", 0.5), ("last", 1.0), ("near", 0.5), ("far", 1.0), (0, 0.5), (1, 1.0)],
)
def test_the_channel_policy_chooses_what_is_heard(write, policy, expected):
    path = write(tone(channels=2), subtype="FLOAT")
    samples = read_audio(path, {"channel": policy})
    np.testing.assert_allclose(samples, expected * tone(), atol=1e-6)


@pytest.mark.parametrize("policy", ["mean", "first", "last", "near", "refuse", 0])
def test_a_single_channel_satisfies_every_policy_that_it_can(write, policy):
    path = write(tone(), subtype="FLOAT")
    assert inspect_audio(path, {"channel": policy}) == AudioInfo(RATE, RATE, 1)
    np.testing.assert_allclose(read_audio(path, {"channel": policy}), tone(), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "channels", "rate", "said"),
    [
        ({"channel": "refuse"}, 2, RATE, "has 2 channels and audio.channel is refuse"),
        ({"channel": "far"}, 1, RATE, "has 1 channel, audio.channel wants far"),
        ({"channel": 2}, 2, RATE, "has 2 channels, audio.channel wants 2"),
        ({"resample": False}, 1, 44100, "44100 Hz, 16000 Hz is wanted"),
    ],
)
def test_refused_channels_and_rates_are_said_when_looking_and_when_reading(
    write, settings, channels, rate, said
):
    path = write(tone(1.0, rate, channels=channels), rate)
    assert said in str(inspect_audio(path, settings))
    with pytest.raises(InputError) as caught:
        read_audio(path, settings)
    assert said in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["clip.wav", "clip.flac"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_found_wherever_it_ends(write, name, kept):
    rng = np.random.default_rng(0)
    path = write(rng.normal(0, 0.1, 3 * RATE), name=name)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    problem = inspect_audio(path, {})
    assert isinstance(problem, str) and "truncated" in problem


def test_a_wav_file_cut_inside_its_header_is_found(write):
    path = write(tone())
    content = path.read_bytes()
    for length in range(1, 44):
        path.write_bytes(content[:length])
        assert isinstance(inspect_audio(path, {}), str), f"{length} bytes"


def test_long_wav_files_declare_their_length_elsewhere_and_are_checked_too(write):
    path = write(tone(), format="RF64")
    assert inspect_audio(path, {}) == AudioInfo(RATE, RATE, 1)
    path.write_bytes(path.read_bytes()[:-2])
    assert "32000 bytes of samples are declared, 31998 are there" in str(inspect_audio(path, {}))


def test_a_wav_file_of_a_streaming_encoder_is_as_long_as_it_is(write):
    path = write(tone())
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    path.write_bytes(content)
    assert inspect_audio(path, {}) == AudioInfo(RATE, RATE, 1)
    assert len(read_audio(path, {})) == RATE


def test_a_flac_file_without_a_declared_length_is_refused_in_words(write):
    path = write(tone(), name="clip.flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert "declares no length" in str(inspect_audio(path, {}))


def test_a_flac_file_damaged_in_the_middle_cannot_be_read_silently(write):
    path = write(np.random.default_rng(0).normal(0, 0.1, RATE), name="clip.flac")
    content = bytearray(path.read_bytes())
    content[9000:9050] = b"\xaa" * 50
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_audio(path, {})
    assert str(path) in caught.value.problems[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes"),
        (b"not a recording at all" * 50, "cannot be read as audio"),
        (b"\0" * 4096, "cannot be read as audio"),
        (b"RIFF\x24\x10\0\0WAVE" + b"\0" * 4096, "cannot be read as audio"),
        (b"ID3\x04\0\0\0\0" + bytes(range(256)) * 8, "cannot be read as audio"),
    ],
)
def test_what_is_not_audio_is_said_to_be_so(tmp_path, content, said):
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    problem = inspect_audio(path, {})
    assert isinstance(problem, str) and said in problem


def test_a_missing_file_is_a_problem_and_not_a_crash(tmp_path):
    assert "cannot be opened" in str(inspect_audio(tmp_path / "absent.wav", {}))
    with pytest.raises(InputError, match="cannot be read"):
        read_audio(tmp_path / "absent.wav", {})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("position", [0, 70000, 79999])
def test_values_that_are_not_finite_numbers_are_found_anywhere(write, value, subtype, position):
    samples = tone(5.0)
    samples[position] = value
    problem = inspect_audio(write(samples, subtype=subtype), {})
    assert isinstance(problem, str) and f"at sample {position}" in problem


def test_clips_too_short_to_hold_a_sound_are_refused(write):
    assert "0.050 s long, shorter than 0.1 s" in str(inspect_audio(write(tone(0.05)), {}))
    assert "shorter than" in str(inspect_audio(write(np.zeros(0)), {}))
    assert "shorter than 2 s" in str(inspect_audio(write(tone(1.0)), {"minimum_seconds": 2}))


@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), (RATE, 2), (44100, 1), (8000, 2)])
@pytest.mark.parametrize("block_samples", [1, 999, 16000, 10**7])
def test_streaming_gives_the_samples_of_reading_in_blocks_of_the_wanted_size(
    write, rate, channels, block_samples
):
    seconds = 0.2 if block_samples == 1 else 3.1
    path = write(tone(seconds, rate, channels=channels), rate)
    blocks = list(read_blocks(path, {}, block_samples))
    assert all(len(block) == block_samples for block in blocks[:-1])
    assert 1 <= len(blocks[-1]) <= block_samples
    np.testing.assert_array_equal(np.concatenate(blocks), read_audio(path, {}))


def test_a_recording_longer_than_one_reading_step_is_resampled_without_seams(write):
    path = write(tone(60.0, 22050, hertz=100.0), 22050)
    samples = read_audio(path, {})
    assert abs(len(samples) - 60 * RATE) <= 1
    second_difference = np.abs(np.diff(samples[1000:-1000], 2)).max()
    assert second_difference < 2 * 0.5 * (2 * np.pi * 100 / RATE) ** 2


def test_a_streamed_recording_is_never_held_whole(write):
    """Ten minutes in blocks of a second: the reader holds its reading step, not the recording."""
    import tracemalloc

    path = write(np.zeros(600 * RATE, dtype=np.int16))
    tracemalloc.start()
    total = sum(len(block) for block in read_blocks(path, {}, RATE))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 600 * RATE
    assert peak < 0.6 * total * 4
