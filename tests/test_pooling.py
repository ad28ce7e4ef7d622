"""Pooling: each kind computes what its name says, over patches without the CLS token."""

import pytest
import torch
from asdflow.models.pooling import build_pooling

TOKENS = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0))
KINDS = ["mean", "cls", "deviation", "mean_deviation", "max", "generalised_mean", "attentive_statistics"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_cls", [True, False])
def test_the_announced_width_is_the_real_one(kind, has_cls):
    if kind == "cls" and not has_cls:
        with pytest.raises(ValueError, match="CLS"):
            build_pooling({"kind": kind}, 5, has_cls)
        return
    pooling = build_pooling({"kind": kind}, 5, has_cls)
    assert pooling(TOKENS).shape == (3, pooling.output_width)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "cls"])
def test_the_cls_token_does_not_touch_pooled_patches(kind):
    pooling = build_pooling({"kind": kind}, 5, True)
    other = TOKENS.clone()
    other[:, 0] += 7
    torch.testing.assert_close(pooling(other), pooling(TOKENS), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "cls"])
def test_the_order_of_patches_does_not_matter(kind):
    pooling = build_pooling({"kind": kind}, 5, False)
    torch.testing.assert_close(pooling(TOKENS.flip(1)), pooling(TOKENS))


def test_cls_and_mean_are_what_they_say():
    torch.testing.assert_close(build_pooling({"kind": "cls"}, 5, True)(TOKENS), TOKENS[:, 0])
    torch.testing.assert_close(build_pooling({"kind": "mean"}, 5, True)(TOKENS), TOKENS[:, 1:].mean(1))


def test_mean_deviation_is_mean_and_population_deviation():
    pooled = build_pooling({"kind": "mean_deviation"}, 5, False)(TOKENS)
    torch.testing.assert_close(pooled[:, :5], TOKENS.mean(1))
    torch.testing.assert_close(pooled[:, 5:], TOKENS.std(1, unbiased=False), rtol=1e-4, atol=1e-4)


def test_deviation_does_not_see_what_is_added_to_every_patch():
    deviation = build_pooling({"kind": "deviation"}, 5, False)
    torch.testing.assert_close(deviation(TOKENS + 3.0), deviation(TOKENS), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        deviation(TOKENS), build_pooling({"kind": "mean_deviation"}, 5, False)(TOKENS)[:, 5:]
    )


def test_a_power_of_one_is_the_mean_and_a_large_one_the_extreme():
    torch.testing.assert_close(
        build_pooling({"kind": "generalised_mean", "power": 1.0}, 5, False)(TOKENS), TOKENS.mean(1)
    )
    wide = build_pooling({"kind": "generalised_mean", "power": 101.0}, 5, False)(TOKENS.double())
    extreme = TOKENS.double().gather(1, TOKENS.abs().argmax(1, keepdim=True)).squeeze(1)
    assert (wide.sign() == extreme.sign()).all()
    torch.testing.assert_close(wide, extreme, rtol=0.05, atol=0.05)


def test_a_short_event_moves_deviation_more_than_the_mean():
    quiet = torch.zeros(1, 200, 5)
    click = quiet.clone()
    click[:, 50:52] = 1.0
    mean = build_pooling({"kind": "mean"}, 5, False)
    spread = build_pooling({"kind": "mean_deviation"}, 5, False)
    assert (spread(click) - spread(quiet)).norm() > 5 * (mean(click) - mean(quiet)).norm()


def test_even_attention_gives_plain_statistics():
    pooling = build_pooling({"kind": "attentive_statistics", "hidden": 4}, 5, False)
    torch.nn.init.zeros_(pooling.get_parameter("attention.2.weight"))
    plain = build_pooling({"kind": "mean_deviation"}, 5, False)
    torch.testing.assert_close(pooling(TOKENS), plain(TOKENS))


def test_constant_patches_have_a_finite_slope():
    for kind in ("deviation", "mean_deviation", "generalised_mean", "attentive_statistics"):
        tokens = torch.zeros(2, 4, 5, requires_grad=True)
        build_pooling({"kind": kind}, 5, False)(tokens).sum().backward()
        assert tokens.grad is not None and torch.isfinite(tokens.grad).all()


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="median"):
        build_pooling({"kind": "median"}, 5, False)


def test_max_is_the_largest_value_of_each_channel():
    torch.testing.assert_close(build_pooling({"kind": "max"}, 5, True)(TOKENS), TOKENS[:, 1:].max(1).values)
