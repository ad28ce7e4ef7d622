"""Augmentation: each part equals its formula and leaves alone what it must not touch."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from asdflow.features.front_end import FRONT_ENDS
from asdflow.training.augmentation import (
    Augmentation,
    add_noise,
    change_high_frequencies,
    log_mixup_exp,
    mask_bands,
    mixup,
    random_resize_crop,
    show_each,
)

FRONT_END = FRONT_ENDS["eat_logmel"]
B, T, F = 4, 24, FRONT_END.bins
OFF: dict[str, dict[str, Any]] = {
    "mixup": {"probability": 0, "alpha": 0.2},
    "log_mixup_exp": {"probability": 0, "strength": 0.3, "memory": 6},
    "random_resize_crop": {"probability": 0, "frequency_scale": [0.6, 1.5], "time_scale": [0.6, 1.5]},
    "segments": {"count": 1},
    "specaugment": {
        "probability": 0,
        "time_masks": 2,
        "time_width": 8,
        "frequency_masks": 2,
        "frequency_width": 16,
    },
    "noise": {"probability": 0, "snr": [0, 20]},
    "high_frequency": {"probability": 0, "cutoff": [0.25, 1.0], "kind": "any", "gain": 12},
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clips(seed=0):
    return torch.randn(B, T, F, generator=generator(seed))


def augmentation(**changes):
    settings = copy.deepcopy(OFF)
    for name, values in changes.items():
        settings[name].update(values)
    return Augmentation(settings, FRONT_END, T)


def test_with_every_part_off_nothing_changes():
    x = clips()
    assert torch.equal(augmentation()(x, generator()).log_mel, x)


def test_log_mixup_exp_equals_its_formula():
    x, other, share = clips(1), clips(2), torch.tensor([0.0, 0.1, 0.2, 0.4])
    expected = (
        (1 - share).view(-1, 1, 1) * x.double().exp() + share.view(-1, 1, 1) * other.double().exp()
    ).log()
    torch.testing.assert_close(log_mixup_exp(x, other, share), expected.float())


def test_log_mixup_exp_mixes_raw_energies_of_remembered_clips():
    part = augmentation(log_mixup_exp={"probability": 1.0, "strength": 0.4})
    first, second = clips(1).half().float(), clips(2)
    assert torch.equal(part(first, generator()).log_mel, first)
    mixed = part(second, generator(3)).log_mel
    raw = lambda x: (x * 2 * FRONT_END.std + FRONT_END.mean).double().exp()  # noqa: E731
    for row in range(B):
        fits = []
        for other in first:
            share = ((raw(mixed[row]) - raw(second[row])) / (raw(other) - raw(second[row]))).flatten()
            fits.append(((share - share.median()).abs().median(), share.median()))
        spread, share = min(fits)
        assert spread < 1e-2 and 0 <= share < 0.4


def test_the_memory_is_first_in_first_out():
    part = augmentation(log_mixup_exp={"probability": 1.0, "memory": 6})
    batches = [torch.full((B, T, F), float(number)) for number in range(3)]
    for batch in batches:
        part(batch, generator())
    assert sorted(part.memory[:, 0, 0].tolist()) == [1, 1, 2, 2, 2, 2]
    assert part.filled.tolist()[0] == 6


def test_a_resize_crop_of_the_whole_picture_is_the_picture():
    x, one = clips(), torch.ones(B)
    same = random_resize_crop(x, one, one, torch.rand(B, 2), FRONT_END.pad_value)
    torch.testing.assert_close(same, x, rtol=1e-4, atol=1e-4)


def test_a_resize_crop_zooms_into_the_window_it_names():
    ramp = torch.arange(T, dtype=torch.float32).view(1, T, 1).expand(1, T, F)
    half, offset = torch.tensor([0.5]), torch.tensor([[0.0, 0.0]])
    early = random_resize_crop(ramp, torch.ones(1), half, offset, 0.0)[0, :, 0]
    late = random_resize_crop(ramp, torch.ones(1), half, 1 - offset, 0.0)[0, :, 0]
    assert early[1:].max() <= T / 2 and late[:-1].min() >= T / 2 - 1
    assert (early[2:-1].diff() - 0.5).abs().max() < 1e-3


def test_a_resize_crop_larger_than_the_picture_shows_padding_around_it():
    x = torch.ones(1, T, F)
    shown = random_resize_crop(x, torch.tensor([1.5]), torch.ones(1), torch.tensor([[0.5, 0.5]]), -3.0)
    assert shown[0, T // 2, F // 2] == 1 and shown[0, T // 2, 0] == -3 and shown[0, T // 2, -1] == -3


def test_mixup_is_linear_and_tells_partner_and_share():
    x = clips()
    mixed = augmentation(mixup={"probability": 1.0})(x, generator(1))
    assert mixed.partner is not None and mixed.share is not None
    assert ((mixed.share >= 0.5) & (mixed.share <= 1)).all()
    torch.testing.assert_close(mixed.log_mel, mixup(x, mixed.partner, mixed.share))
    row, share = 1, mixed.share[1]
    torch.testing.assert_close(mixed.log_mel[row], share * x[row] + (1 - share) * x[mixed.partner[row]])


def test_mixup_shares_follow_the_beta_distribution():
    part = augmentation(mixup={"probability": 1.0, "alpha": 0.4})
    shares = torch.cat([part(torch.zeros(200, 1, F), generator(seed)).share for seed in range(5)])
    draws = np.random.default_rng(0).beta(0.4, 0.4, 100_000)
    assert shares.mean().item() == pytest.approx(np.maximum(draws, 1 - draws).mean(), abs=0.02)


def test_specaugment_masks_bands_of_bounded_width_and_nothing_else():
    x = clips().abs() + 1
    masked = augmentation(specaugment={"probability": 1.0})(x, generator(2)).log_mel
    changed = masked != x
    assert (masked[changed] == 0).all()
    for clip in changed:
        frames, bins = clip.all(1), clip.all(0)
        assert frames.sum() <= 2 * 8 and bins.sum() <= 2 * 16
        assert torch.equal(clip, frames.unsqueeze(1) | bins.unsqueeze(0))


def test_bands_are_masked_where_they_are_said_to_be():
    masked = mask_bands(torch.ones(1, 6, 5), 2, torch.tensor([[1]]), torch.tensor([[2]]), -1.0)
    assert masked[0, 0].tolist() == [1, -1, -1, 1, 1]


def test_noise_is_added_at_the_ratio_asked_for():
    signal, noise, snr = clips(1).double(), 3 + clips(2).double(), torch.tensor([0.0, 5.0, 10.0, 20.0])
    added = add_noise(signal, noise, snr).exp() - signal.exp()
    ratio = 10 * (signal.exp().mean((1, 2)) / added.mean((1, 2))).log10()
    torch.testing.assert_close(ratio.float(), snr, rtol=1e-4, atol=1e-4)


def test_noise_without_noise_clips_changes_nothing():
    x = clips()
    part = augmentation(noise={"probability": 1.0})
    assert torch.equal(part(x, generator(), None).log_mel, x)
    assert not torch.equal(part(x, generator(), clips(5)).log_mel, x)


@pytest.mark.parametrize("kind", ["any", "gain", "noise", "mask"])
def test_the_high_frequency_change_leaves_bins_below_the_cutoff_untouched(kind):
    x = clips()
    part = augmentation(high_frequency={"probability": 1.0, "cutoff": [0.5, 0.75], "kind": kind})
    changed = part(x, generator(1)).log_mel
    assert torch.equal(changed[:, :, : F // 2], x[:, :, : F // 2])
    assert (changed[:, :, math.ceil(0.75 * F) :] != x[:, :, math.ceil(0.75 * F) :]).any(1).all()


def test_the_high_frequency_kinds_do_what_they_say():
    x, cutoff, none = clips(), torch.full((B,), 100.0), torch.zeros(B)
    quiet, no = torch.zeros_like(x), torch.zeros(B, dtype=torch.bool)
    gained = change_high_frequencies(x, cutoff, none + 2.5, quiet, no, -1.0)
    torch.testing.assert_close(gained[:, :, 100:], x[:, :, 100:] + 2.5)
    masked = change_high_frequencies(x, cutoff, none, quiet, ~no, -1.0)
    assert (masked[:, :, 100:] == -1).all() and torch.equal(masked[:, :, :100], x[:, :, :100])


def test_a_gain_in_decibel_is_one_on_the_energies():
    part = augmentation(
        high_frequency={"probability": 1.0, "cutoff": [0.0, 1e-9], "kind": "gain", "gain": 10}
    )
    gain = part(torch.zeros(500, 1, F), generator()).log_mel[:, 0, -1] * 2 * FRONT_END.std / math.log(10) * 10
    assert gain.abs().max() <= 10 and gain.max() > 9 and gain.min() < -9


def test_a_probability_is_the_share_of_clips_changed():
    part = augmentation(high_frequency={"probability": 0.3})
    x = torch.randn(1000, 1, F, generator=generator())
    share = (part(x, generator(1)).log_mel != x).flatten(1).any(1).float().mean().item()
    assert share == pytest.approx(0.3, abs=0.05)


def test_the_same_generator_gives_the_same_batch():
    every = {name: {"probability": 1.0} for name in OFF if name not in ("segments",)}
    one, two = (augmentation(**every) for _ in range(2))
    for part in (one, two):
        part(clips(9), generator(9), clips(8))
    assert torch.equal(
        one(clips(), generator(4), clips(8)).log_mel, two(clips(), generator(4), clips(8)).log_mel
    )


def test_every_augmentation_can_be_shown_alone():
    one, other = clips(1)[0].half().numpy(), clips(2)[0].half().numpy()
    shown = show_each(OFF, one, other, FRONT_END, seed=3)
    assert list(shown) == ["original", *(name for name in OFF if name != "segments")]
    assert all(picture.shape == one.shape and np.isfinite(picture).all() for picture in shown.values())
    assert [name for name, picture in shown.items() if np.array_equal(picture, shown["original"])] == [
        "original"
    ]
