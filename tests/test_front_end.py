"""Front ends: equal to Kaldi's on genuine recordings, whatever the batch, and normalised as the encoders expect."""

import math

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from asdflow.errors import InputError
from asdflow.features.front_end import (
    FRONT_ENDS,
    KALDI_FLOOR,
    PaddedFrontEnd,
    Scratch,
    build_front_end,
    mel_matrix,
    window_values,
)

from tests.conftest import SHARED, needs_shared

LOG_MELS = {"eat_logmel": ("hanning", True, 1.0), "beats_logmel": ("povey", False, 32768.0)}


def kaldi(name, waveform):
    """The reference: torchaudio's log-mel of one clip [samples], as the published code of EAT and BEATs calls it."""
    window, subtract_mean, scale = LOG_MELS[name]
    clip = (waveform - waveform.mean() if subtract_mean else waveform) * scale
    return torchaudio.compliance.kaldi.fbank(
        clip[None], htk_compat=True, window_type=window, num_mel_bins=128, dither=0.0, use_energy=False
    )


def raw(name, waveform):
    """Our log-mel [batch, frames, bins] with the normalisation taken back."""
    config = FRONT_ENDS[name]
    return build_front_end(name)(waveform) * (2 * config.std) + config.mean


def noise(samples, seed=0, batch=1):
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@needs_shared
@pytest.mark.parametrize("name", LOG_MELS)
def test_log_mel_equals_kaldis_on_genuine_clips(name):
    paths = sorted((SHARED / "realdata").rglob("*.flac"))[::20]
    assert len(paths) >= 10
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32")
        waveform = torch.from_numpy(samples)
        assert rate == 16000
        torch.testing.assert_close(
            raw(name, waveform[None])[0], kaldi(name, waveform), rtol=0, atol=1e-3, msg=str(path)
        )


@pytest.mark.parametrize("name", LOG_MELS)
@pytest.mark.parametrize("samples", [400, 559, 560, 16_000, 33_333])
def test_log_mel_equals_kaldis_for_any_length(name, samples):
    waveform = noise(samples)
    expected = kaldi(name, waveform[0])
    assert len(expected) == FRONT_ENDS[name].n_frames(samples)
    torch.testing.assert_close(raw(name, waveform)[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", LOG_MELS)
def test_digital_silence_and_a_constant_give_kaldis_floor(name):
    clips = torch.stack([torch.zeros(4000), torch.full((4000,), 0.25)])
    torch.testing.assert_close(
        raw(name, clips), torch.full((2, 23, 128), math.log(KALDI_FLOOR)), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_clip_has_the_same_frames_alone_and_in_a_batch(name):
    batch = noise(20_000, batch=3)
    front_end = build_front_end(name)
    together = front_end(batch)
    assert together.shape == (3, FRONT_ENDS[name].n_frames(20_000), FRONT_ENDS[name].bins)
    assert together.dtype == torch.float32
    for row, clip in enumerate(batch):
        assert torch.equal(together[row], front_end(clip[None])[0])


def test_the_work_done_for_the_batch_at_once_gives_the_same_as_clip_by_clip():
    front_end = build_front_end("beats_logmel")
    batch = noise(8000, batch=4)
    at_once = front_end._log_energies(batch, Scratch())
    torch.testing.assert_close(at_once, front_end(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_memory_used_before_leaves_no_trace(name):
    front_end, scratch = build_front_end(name), Scratch()
    clips = [noise(samples, seed=samples) for samples in (20_000, 3000, 48_000, 20_000)]
    for clip in clips:
        assert torch.equal(front_end(clip, scratch), front_end(clip))


def test_mixed_precision_around_it_does_not_change_the_log_mel():
    expected = build_front_end("eat_logmel")(noise(4000))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(build_front_end("eat_logmel")(noise(4000)), expected)


def test_stft_is_the_log_power_of_hann_windowed_frames():
    config = FRONT_ENDS["stft"]
    waveform = noise(config.window_length + 3 * config.hop)
    frames = waveform[0].double().numpy()
    expected = []
    for start in range(0, len(frames) - config.window_length + 1, config.hop):
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.window_length) / (config.window_length - 1))
        power = np.abs(np.fft.rfft(frames[start : start + config.window_length] * window)) ** 2
        expected.append(np.log(np.maximum(power, config.floor)))
    found = build_front_end("stft")(waveform)[0] * (2 * config.std) + config.mean
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-3)


def test_a_pure_tone_peaks_in_the_bin_of_its_frequency():
    tone = 0.5 * torch.sin(2 * math.pi * 1000.0 * torch.arange(16_000) / 16_000)
    stft = build_front_end("stft")(tone[None])[0].mean(0)
    assert stft.argmax().item() == round(1000 * FRONT_ENDS["stft"].n_fft / 16_000)
    mel = raw("eat_logmel", tone[None])[0].mean(0).argmax().item()
    centres = mel_matrix(FRONT_ENDS["eat_logmel"]).argmax(0) * 16_000 / 512
    assert abs(centres[mel].item() - 1000.0) < 50


def test_mel_filters_are_torchaudios_to_the_last_bit():
    reference, _ = torchaudio.compliance.kaldi.get_mel_banks(128, 512, 16000.0, 20.0, 0.0, 100.0, -500.0, 1.0)
    matrix = mel_matrix(FRONT_ENDS["eat_logmel"])
    assert torch.equal(matrix[:-1].T, reference)
    assert not matrix[-1].any()
    assert (matrix == 0).float().mean() > 0.98


def test_poveys_window_is_hann_to_the_power_of_085():
    hann, povey = (window_values(FRONT_ENDS[name]) for name in LOG_MELS)
    torch.testing.assert_close(povey, hann.pow(0.85))
    assert hann[0] == 0 and hann[199] > 0.99


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("eat_logmel", -4.268, 4.569), ("beats_logmel", 15.41663, 6.55582)]
)
def test_normalisation_is_the_published_one(name, mean, std):
    waveform = noise(4000)
    expected = (kaldi(name, waveform[0]) - mean) / (2 * std)
    torch.testing.assert_close(build_front_end(name)(waveform)[0], expected, rtol=0, atol=1e-5)


@needs_shared
def test_eats_input_equals_the_reference_from_the_waveform():
    golden = np.load(SHARED / "golden/eat/expected.npz")
    waveform = torch.from_numpy(golden["waveform"]).float() / 32768
    found = PaddedFrontEnd(FRONT_ENDS["eat_logmel"], pad_multiple=64)(waveform)
    half_a_step = torch.from_numpy(np.spacing(np.abs(golden["fbank"])).astype(np.float32))
    assert found.shape == (2, 1024, 128)
    assert ((found - torch.from_numpy(golden["fbank"]).float()).abs() <= half_a_step + 1e-4).all()


@pytest.mark.parametrize(("multiple", "expected"), [(1, 98), (16, 112), (64, 128), (98, 98)])
def test_padding_fills_up_with_the_log_energy_zero(multiple, expected):
    config = FRONT_ENDS["eat_logmel"]
    padded = PaddedFrontEnd(config, multiple)(noise(16_000))
    assert padded.shape == (1, expected, 128)
    assert torch.equal(padded[:, :98], build_front_end("eat_logmel")(noise(16_000)))
    torch.testing.assert_close(padded[:, 98:], torch.full((1, expected - 98, 128), 4.268 / (2 * 4.569)))


def test_clips_shorter_than_a_window_are_refused_by_name():
    with pytest.raises(InputError, match="399 samples"):
        build_front_end("eat_logmel")(noise(399))


def test_unknown_front_ends_are_refused_with_the_known_ones():
    with pytest.raises(InputError) as caught:
        build_front_end("mfcc")
    assert "eat_logmel" in str(caught.value)


def test_a_front_end_has_nothing_to_store():
    assert build_front_end("eat_logmel").state_dict() == {}


def test_the_spectrum_before_the_frames_is_that_of_the_whole_clip():
    front_end, config = build_front_end("stft_spectrum"), FRONT_ENDS["stft_spectrum"]
    time = torch.arange(4 * 16_000) / 16_000
    two_tones = 0.1 * torch.sin(2 * math.pi * 1000 * time) + 0.1 * torch.sin(2 * math.pi * 1005 * time)
    rows = front_end(two_tones[None])[0]
    assert rows.shape == (config.n_frames(len(two_tones)), 513)
    assert torch.equal(rows[16:], build_front_end("stft")(two_tones[None])[0])
    energy = rows[:16].flatten()
    hertz = (torch.arange(len(energy)) + 0.5) * 8000 / len(energy)
    first, between, second = (energy[(hertz - tone).abs() < 1].max() for tone in (1000, 1002.5, 1005))
    assert min(first, second) > energy[(hertz - 1002.5).abs() > 5].max()
    assert between < min(first, second) - 0.25  # the bins of a frame are 15.6 Hz apart


@pytest.mark.parametrize("seconds", [0.5, 3, 12])
def test_a_noise_has_the_same_level_in_the_spectrum_as_in_the_frames_whatever_the_length(seconds):
    config = FRONT_ENDS["stft_spectrum"]
    noise = 0.03 * torch.randn(1, int(16_000 * seconds), generator=torch.Generator().manual_seed(1))
    energy = (build_front_end("stft_spectrum")(noise)[0] * (2 * config.std) + config.mean).exp()
    assert abs(energy[:16].mean().log() - energy[16:].mean().log()) < 0.1
