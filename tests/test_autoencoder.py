"""The official baseline: its windows, its two scores by their formulas, and that training lowers the loss."""

import numpy as np
import pytest
import torch
import torchaudio
from asdflow.errors import InputError
from asdflow.features.front_end import FRONT_ENDS, build_front_end
from asdflow.training.autoencoder import (
    Autoencoder,
    AutoencoderModel,
    official_log_mel,
    residual_covariance,
    windows,
)

STFT = FRONT_ENDS["stft"]


@pytest.fixture(scope="module")
def network():
    network = Autoencoder(seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    for name in ("source", "target"):
        root = torch.randn(128, 128, generator=generator) / 10
        getattr(network, name).copy_(root @ root.T + torch.eye(128))
    return network


X = torch.randn(30, 640, generator=torch.Generator().manual_seed(0))


def test_the_layers_are_the_official_ones():
    sizes = [layer.weight.shape for layer in Autoencoder(0).layers if isinstance(layer, torch.nn.Linear)]
    expected = [(128, 640), *[(128, 128)] * 3, (8, 128), (128, 8), *[(128, 128)] * 3, (640, 128)]
    assert [tuple(size) for size in sizes] == expected


def test_windows_are_five_frames_side_by_side():
    log_mel = torch.arange(9 * 128.0).view(9, 128)
    made = windows(log_mel)
    assert made.shape == (5, 640)
    assert torch.equal(made[2], log_mel[2:7].flatten())


def test_the_log_mel_is_ten_log_ten_of_mel_power():
    waveform = torch.randn(1, 16000, generator=torch.Generator().manual_seed(2)) * 0.1
    cached = build_front_end("stft")(waveform)[0].half().numpy()
    window = torch.hann_window(1024, periodic=False)
    power = torch.fft.rfft(waveform[0].unfold(0, 1024, 512) * window).abs() ** 2
    mel = torchaudio.functional.melscale_fbanks(
        513, 0.0, 8000.0, 128, 16000, norm="slaney", mel_scale="slaney"
    )
    torch.testing.assert_close(official_log_mel(cached), 10 * (power @ mel).log10(), rtol=0, atol=0.1)


def test_the_mse_score_is_the_mean_squared_residual(network):
    with torch.no_grad():
        assert network.mse(X) == pytest.approx(((X - network(X)) ** 2).mean().item(), rel=1e-6)


def test_the_mahalanobis_score_equals_the_explicit_formula(network):
    """The baseline averages delta inv(cov) delta' over all pairs of rows; that is the mean residual's own form."""
    with torch.no_grad():
        delta = (X - network(X)).view(-1, 128).double()
        pairs = [
            (delta @ inverse.double() @ delta.T).mean().item() for inverse in (network.source, network.target)
        ]
        assert network.mahalanobis(X) == pytest.approx(min(pairs), rel=1e-4)


def test_a_covariance_is_centred_per_batch_and_divided_by_windows():
    batches = [X[:12], X[12:30]]
    expected = np.zeros((128, 128))
    for batch in batches:
        rows = batch.numpy().reshape(-1, 128).astype(np.float64)
        expected += np.cov(rows, rowvar=False) * (len(rows) - 1)
    np.testing.assert_allclose(residual_covariance(batches).numpy(), expected / 29, rtol=1e-3, atol=1e-4)


def test_clips_that_are_too_short_and_unknown_machines_are_refused():
    model = AutoencoderModel(["fan"], torch.device("cpu"), 0)
    clip = np.zeros((8, STFT.bins), np.float16)
    assert model.embed([clip], ["fan"]).shape == (1, 2)
    with pytest.raises(InputError) as caught:
        model.embed([clip], ["valve"])
    assert caught.value.problems == ["valve"]
    with pytest.raises(InputError, match="shorter"):
        model.embed([clip[:4]], ["fan"])
