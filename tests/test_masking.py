"""Masks: inverse blocks, exactly as many patches for every mask, the same for the same seed; and what schedules do."""

import numpy as np
import pytest
import torch
from asdflow.training.masking import inverse_block_masks, kept_patches, step_seed
from asdflow.training.schedule import annealed_decay, cosine_with_warmup
from hypothesis import given, settings
from hypothesis import strategies as st


def draw(n=64, grid=(64, 8), ratio=0.8, block=5, seed=0):
    return inverse_block_masks(n, grid, ratio, block, torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    times=st.integers(1, 70),
    frequencies=st.integers(1, 8),
    ratio=st.floats(0.05, 0.95),
    block=st.integers(1, 7),
)
def test_every_mask_parts_the_patches_into_kept_and_hidden(times, frequencies, ratio, block):
    patches = times * frequencies
    if patches < 2:
        return
    masks = draw(3, (times, frequencies), ratio, block)
    assert masks.kept.shape == (3, kept_patches(patches, ratio))
    both = torch.cat([masks.kept, masks.hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(patches).expand(3, -1))
    for part in masks:
        assert (part.diff(dim=1) > 0).all()


def test_ten_seconds_at_ratio_eighty_percent_keep_102_of_512_patches():
    assert draw().kept.shape == (64, 102)


def seen_grid(masks, grid) -> np.ndarray:
    seen = torch.zeros(len(masks.kept), grid[0] * grid[1]).scatter_(1, masks.kept, 1.0)
    return seen.view(-1, *grid).numpy()


def test_kept_patches_come_in_blocks():
    blocks = neighbours_in_common(seen_grid(draw(block=5), (64, 8)))
    single = neighbours_in_common(seen_grid(draw(block=1), (64, 8)))
    assert blocks > 0.75 and single < 0.35


def neighbours_in_common(seen: np.ndarray) -> float:
    """How often the next patch in time of a kept patch is kept too."""
    return float((seen[:, 1:] * seen[:, :-1]).sum() / seen[:, :-1].sum())


def test_one_block_is_a_square_around_its_centre():
    masks = inverse_block_masks(200, (20, 8), 1 - 25 / 160, 5, torch.Generator().manual_seed(1))
    whole = 0
    for seen in seen_grid(masks, (20, 8)):
        rows, columns = np.nonzero(seen)
        whole += int(np.ptp(rows) == 4 and np.ptp(columns) == 4)
    assert whole > 40  # a centre two patches from every border happens 64 times in 160


def test_all_patches_are_seen_about_equally_often():
    often = seen_grid(draw(4000), (64, 8)).mean(axis=0)
    assert often.min() > 0.07 and often.max() < 0.35 and abs(often.mean() - 102 / 512) < 1e-6


def test_masks_depend_on_the_seed_alone():
    assert torch.equal(draw(seed=5).kept, draw(seed=5).kept)
    assert not torch.equal(draw(seed=5).kept, draw(seed=6).kept)
    assert len({tuple(kept.tolist()) for kept in draw(64).kept}) == 64


def test_seeds_of_different_updates_and_purposes_differ():
    seeds = {
        step_seed(seed, step, what) for seed in range(3) for step in range(50) for what in ("masks", "noise")
    }
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)


def test_the_learning_rate_rises_then_falls_to_nothing():
    rates = [cosine_with_warmup(step, 100, 10, 2.0) for step in range(100)]
    assert np.allclose(rates[:10], np.linspace(0.2, 2.0, 10)) and rates[10] == pytest.approx(2.0)
    assert (np.diff(rates[10:]) < 0).all() and 0 < rates[-1] < 0.01
    assert rates[55] == pytest.approx(1.0)


def test_without_warmup_the_first_rate_is_the_peak():
    assert cosine_with_warmup(0, 10, 0, 1.0) == 1.0


def test_the_teachers_decay_rises_linearly_and_stays():
    decays = [annealed_decay(update, 0.9998, 0.99999, 100_000) for update in (0, 50_000, 100_000, 400_000)]
    assert decays == pytest.approx([0.9998, 0.999895, 0.99999, 0.99999], abs=1e-12)
