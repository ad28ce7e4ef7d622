"""Objectives: each loss equals its formula written out by hand, and vector quantisation finds clusters."""

import math

import pytest
import torch
from asdflow.training.objectives import (
    ArcFace,
    SubclusterAdaCos,
    Targets,
    VectorQuantised,
    build_objective,
    views_needed,
)
from sklearn.metrics import adjusted_rand_score

WIDTH, CLASSES, BATCH = 6, 4, 5
VQ = {
    "weight": 1,
    "codes": 4,
    "decay": 0.9,
    "temperature": 0.1,
    "instance_weight": 1.0,
    "cluster_weight": 1.0,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_targets(label=None, **others):
    label = torch.tensor([0, 1, 2, 3, 1]) if label is None else label
    return Targets(label, torch.zeros_like(label), torch.ones(len(label), dtype=torch.bool), **others)


VIEWS = torch.randn(1, BATCH, WIDTH, generator=generator())


def arcface_by_hand(embeddings, centres, labels, scale, margin):
    """Mean cross entropy with cos(angle + margin) for the true class; centres [classes, sub-centres, width]."""
    total = 0.0
    for x, y in zip(embeddings.tolist(), labels.tolist(), strict=True):
        cosines = []
        for group in centres.tolist():
            each = [
                sum(a * b for a, b in zip(x, c, strict=True)) / math.hypot(*x) / math.hypot(*c) for c in group
            ]
            cosines.append(max(each))
        angle = math.acos(cosines[y])
        cosines[y] = (
            math.cos(angle + margin) if angle <= math.pi - margin else cosines[y] - margin * math.sin(margin)
        )
        total -= scale * cosines[y] - math.log(sum(math.exp(scale * c) for c in cosines))
    return total / len(labels)


@pytest.mark.parametrize("centres", [1, 3])
def test_arcface_equals_the_formula(centres):
    loss = ArcFace(WIDTH, CLASSES, scale=8.0, margin=0.4, centres=centres, seed=1)
    weights = loss.loss.W.detach().T.reshape(CLASSES, centres, WIDTH)
    targets = make_targets()
    expected = arcface_by_hand(VIEWS[0], weights, targets.label, 8.0, 0.4)
    assert loss(VIEWS, targets).item() == pytest.approx(expected, rel=1e-5)


def test_a_mixed_clip_weighs_its_two_classes():
    loss = ArcFace(WIDTH, CLASSES, scale=8.0, margin=0.4, centres=1, seed=1)
    partner, share = torch.tensor([3, 3, 3, 3, 3]), torch.tensor([1.0, 0.5, 0.9, 0.2, 0.7])
    own = [loss(VIEWS[:, [i]], make_targets(make_targets().label[[i]])).item() for i in range(BATCH)]
    other = [loss(VIEWS[:, [i]], make_targets(partner[[i]])).item() for i in range(BATCH)]
    expected = sum(s * a + (1 - s) * b for s, a, b in zip(share.tolist(), own, other, strict=True)) / BATCH
    assert loss(VIEWS, make_targets(partner=partner, share=share)).item() == pytest.approx(expected, rel=1e-5)


def test_adacos_starts_with_its_scale_and_sums_over_subclusters():
    loss = SubclusterAdaCos(WIDTH, CLASSES, centres=3, trainable=True, seed=0).eval()
    assert loss.scale.item() == pytest.approx(math.sqrt(2) * math.log(3 * CLASSES - 1))
    unit = torch.nn.functional.normalize(VIEWS[0], dim=1)
    cosine = unit @ torch.nn.functional.normalize(loss.weight.detach(), dim=1).T
    powers = (loss.scale * cosine).exp()
    label = make_targets().label
    expected = 0.0
    for i in range(BATCH):
        own = powers[i, 3 * label[i] : 3 * label[i] + 3].sum()
        expected -= (own / powers[i].sum()).log().item() / BATCH
    assert loss(VIEWS, make_targets()).item() == pytest.approx(expected, rel=1e-5)


def test_adacos_follows_the_batch_as_published():
    loss = SubclusterAdaCos(WIDTH, CLASSES, centres=2, trainable=True, seed=0).train()
    before = loss.scale.item()
    unit = torch.nn.functional.normalize(VIEWS[0], dim=1)
    cosine = unit @ torch.nn.functional.normalize(loss.weight.detach(), dim=1).T
    mean_sum = (before * cosine).exp().sum(1).mean().item()
    label = make_targets().label.tolist()
    angles = sorted(math.acos(cosine[i, 2 * y : 2 * y + 2].max().item()) for i, y in enumerate(label))
    loss(VIEWS, make_targets())
    expected = math.log(mean_sum) / math.cos(min(math.pi / 4, angles[len(angles) // 2]))
    assert loss.scale.item() == pytest.approx(expected, rel=1e-5)


def test_random_centres_stay_where_they_are_when_asked():
    assert not SubclusterAdaCos(WIDTH, CLASSES, 2, trainable=False, seed=0).weight.requires_grad


def test_supervised_contrastive_equals_the_formula():
    settings = {"supervised_contrastive": {"weight": 2.0, "temperature": 0.5}}
    views = torch.randn(2, 4, WIDTH, generator=generator(3))
    label = torch.tensor([0, 1, 0, 2])
    unit = torch.nn.functional.normalize(views.flatten(0, 1), dim=1)
    logits, everyone = unit @ unit.T / 0.5, label.repeat(2)
    total = 0.0
    for i in range(8):
        others = [j for j in range(8) if j != i]
        positives = [j for j in others if everyone[j] == everyone[i]]
        log_sum = torch.logsumexp(logits[i, others], 0)
        total -= sum((logits[i, j] - log_sum).item() for j in positives) / len(positives) / 8
    loss, parts = build_objective(settings, WIDTH, 3, [], 0)(views, make_targets(label))
    assert parts["supervised_contrastive"].item() == pytest.approx(total, rel=1e-4)
    assert loss.item() == pytest.approx(2 * total, rel=1e-4)


def test_nt_xent_equals_the_formula_and_ignores_labels():
    settings = {"nt_xent": {"weight": 1.0, "temperature": 0.5}}
    views = torch.randn(2, 4, WIDTH, generator=generator(4))
    unit = torch.nn.functional.normalize(views.flatten(0, 1), dim=1)
    logits = (unit @ unit.T / 0.5).fill_diagonal_(-math.inf)
    partner = torch.arange(8).roll(4)
    expected = torch.nn.functional.cross_entropy(logits, partner).item()
    objective = build_objective(settings, WIDTH, 3, [], 0)
    for label in (torch.tensor([0, 1, 0, 2]), torch.tensor([0, 0, 0, 0])):
        assert objective(views, make_targets(label))[0].item() == pytest.approx(expected, rel=1e-4)


def clouds(n, seed, directions=4):
    """Unit vectors around some directions, and the truth."""
    truth = torch.randint(0, directions, (n,), generator=generator(seed))
    noise = 0.05 * torch.randn(n, WIDTH, generator=generator(seed + 1))
    return torch.nn.functional.normalize(torch.eye(WIDTH)[truth] + noise, dim=1), truth


def unknown(n):
    """Targets of n clips of machine 0 without attributes."""
    return Targets(
        torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64), torch.zeros(n).bool()
    )


def train_codes(objective, steps, directions=4):
    for step in range(steps):
        clips, _ = clouds(32, 2 * step, directions)
        with torch.random.fork_rng():
            torch.manual_seed(step)
            objective(torch.stack([clips, clips]), unknown(32))


def test_vector_quantisation_finds_separated_clusters_and_does_not_collapse():
    objective = VectorQuantised(WIDTH, [0], VQ, seed=0).train()
    train_codes(objective, steps=40)
    clips, truth = clouds(200, 999)
    code = objective.eval().books["0"](clips)
    assert len(set(code.tolist())) == 4
    assert adjusted_rand_score(truth, code) > 0.95


def test_codes_that_no_clip_finds_any_more_are_restarted():
    objective = VectorQuantised(WIDTH, [0], VQ, seed=0).train()
    train_codes(objective, steps=5)
    clips, _ = clouds(200, 999, directions=2)
    assert len(set(objective.eval().books["0"](clips).tolist())) == 2
    train_codes(objective.train(), steps=80, directions=2)
    assert len(set(objective.eval().books["0"](clips).tolist())) == 4


def test_the_dual_level_loss_falls_when_views_agree():
    objective = VectorQuantised(WIDTH, [0], {**VQ, "instance_weight": 0.0}, seed=0).train()
    train_codes(objective, steps=3)
    objective.eval()
    clips, _ = clouds(32, 0)
    agree = objective(torch.stack([clips, clips]), unknown(32))
    differ = objective(torch.stack([clips, clips.flip(0)]), unknown(32))
    assert agree < 0.1 < differ


def test_the_cluster_level_equals_its_formula():
    objective = VectorQuantised(
        WIDTH, [0], {**VQ, "instance_weight": 0.0, "cluster_weight": 3.0}, seed=0
    ).train()
    train_codes(objective, steps=3)
    objective.eval()
    one, two = clouds(8, 0)[0], clouds(8, 50)[0]
    codes = objective.books["0"].vectors
    total = 0.0
    for x, y in zip(torch.cat([one, two]), torch.cat([two, one]), strict=True):
        total -= (codes @ x / 0.1).log_softmax(0)[(codes @ y).argmax()].item() / 16
    assert objective(torch.stack([one, two]), unknown(8)).item() == pytest.approx(3 * total, rel=1e-4)


def test_clips_with_attributes_are_none_of_vector_quantisations_business():
    objective = VectorQuantised(WIDTH, [0], VQ, seed=0).train()
    views = torch.randn(2, BATCH, WIDTH, generator=generator(), requires_grad=True)
    loss = objective(views, make_targets())
    loss.backward()
    assert loss.item() == 0 and views.grad is not None and views.grad.abs().sum() == 0


def test_parts_of_weight_zero_do_not_exist():
    settings = {
        "arcface": {"weight": 1, "scale": 30, "margin": 0.3},
        "nt_xent": {"weight": 0, "temperature": 0.1},
    }
    assert list(build_objective(settings, WIDTH, CLASSES, [], 0).parts) == ["arcface"]
    assert views_needed(settings) == 1
    assert views_needed({"nt_xent": {"weight": 1}}) == 2


def test_the_same_seed_gives_the_same_centres_and_leaves_the_global_state_alone():
    settings = {"arcface": {"weight": 1, "scale": 30, "margin": 0.3}, "vector_quantised": VQ}
    state = torch.random.get_rng_state()
    first, second = (build_objective(settings, WIDTH, CLASSES, [0], 5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(state, torch.random.get_rng_state())
