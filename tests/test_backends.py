"""Back ends: each against its formula written out, and what holds for all of them."""

from typing import Any

import numpy as np
import pytest
import torch
from asdflow.detection import neighbours as neighbours_module
from asdflow.detection.backends import KNN, BackEnd, Mahalanobis, build_backend
from asdflow.detection.neighbours import nearest
from asdflow.errors import InputError

SETTINGS: list[dict[str, Any]] = [
    {"name": "knn"},
    {"name": "knn", "metric": "euclidean", "normalisation": "none", "neighbours": 3},
    {"name": "knn", "metric": "euclidean", "per_domain": False, "standardise": True},
    {"name": "knn", "smote": {"ratio": 0.5, "neighbours": 3}},
    {"name": "kmeans", "centres": 4},
    {"name": "kmeans", "centres": 5, "metric": "euclidean"},
    {"name": "mahalanobis"},
    {"name": "mahalanobis", "shrinkage": 0.3, "per_domain": False},
    {"name": "value"},
]


def clips(
    settings: dict[str, Any], n: int = 40, target: int = 8, seed: int = 0
) -> tuple[torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, 2 if settings.get("name") == "value" else 6, generator=generator).abs() + 0.1
    vectors[-target:] += 1.0
    return vectors, ["source"] * (n - target) + ["target"] * target


def fitted(settings: dict[str, Any], seed: int = 0) -> tuple[BackEnd, torch.Tensor]:
    vectors, domains = clips(settings)
    backend = build_backend(settings, seed)
    backend.fit(vectors, domains)
    return backend, vectors


def distance(a: torch.Tensor, b: torch.Tensor, metric: str) -> float:
    a, b = a.double(), b.double()
    return float(1 - a @ b / (a.norm() * b.norm())) if metric == "cosine" else float((a - b).norm())


def local_density_by_loops(
    query: torch.Tensor, references: torch.Tensor, k: int, metric: str, without: int | None = None
) -> float:
    """min over r of d(x, r) / mean of d(r, its k nearest references), written as two loops."""
    kept = [r for r in range(len(references)) if r != without]
    ratios = []
    for r in kept:
        others = sorted(distance(references[r], references[o], metric) for o in kept if o != r)
        ratios.append(distance(query, references[r], metric) / (sum(others[:k]) / k))
    return min(ratios)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_local_density_equals_a_direct_double_loop_per_domain(metric: str) -> None:
    vectors, domains = clips({})
    backend = KNN({"metric": metric, "density_neighbours": 3})
    backend.fit(vectors, domains)
    queries = clips({}, n=5, target=2, seed=1)[0]
    expected = [
        min(
            local_density_by_loops(q, vectors[:32], 3, metric),
            local_density_by_loops(q, vectors[32:], 3, metric),
        )
        for q in queries
    ]
    assert backend.score(queries).anomaly_score.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_leave_one_out_with_local_density_equals_fitting_without_the_clip(metric: str) -> None:
    vectors, domains = clips({})
    backend = KNN({"metric": metric, "density_neighbours": 3})
    backend.fit(vectors, domains)
    expected = [
        min(
            local_density_by_loops(x, vectors[:32], 3, metric, without=i if i < 32 else None),
            local_density_by_loops(x, vectors[32:], 3, metric, without=i - 32 if i >= 32 else None),
        )
        for i, x in enumerate(vectors)
    ]
    assert backend.leave_one_out().anomaly_score.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [s for s in SETTINGS if s["name"] == "knn" and not s.get("standardise")],
    ids=lambda s: "-".join(f"{v}" for v in s.values()),
)
def test_leave_one_out_of_a_memory_equals_refitting_without_each_clip(settings: dict[str, Any]) -> None:
    vectors, domains = clips(settings)
    backend, _ = fitted(settings)
    for i in (0, 7, 31, 32, 39):
        kept = [j for j in range(len(vectors)) if j != i]
        smaller = build_backend(settings)
        smaller.fit(vectors[kept], [domains[j] for j in kept])
        alone = smaller.score(vectors[i : i + 1]).anomaly_score.item()
        if settings.get("smote") and i < 32:
            continue  # a source clip left out also changes how many target references SMOTE draws
        assert backend.leave_one_out().anomaly_score[i].item() == pytest.approx(alone, rel=1e-4)


def test_leave_one_out_of_mahalanobis_equals_mean_and_covariance_without_the_clip() -> None:
    vectors, _ = clips({})
    share = 0.2
    backend = Mahalanobis({"shrinkage": share, "per_domain": False})
    backend.fit(vectors, [""] * len(vectors))
    x = vectors.double().numpy()
    scale = np.trace(np.cov(x.T, bias=True)) / x.shape[1]
    for i in (0, 13, 39):
        rest = np.delete(x, i, axis=0)
        covariance = (1 - share) * np.cov(rest.T, bias=True) + share * scale * np.eye(x.shape[1])
        d = x[i] - rest.mean(0)
        expected = np.sqrt(d @ np.linalg.inv(covariance) @ d)
        assert backend.leave_one_out().anomaly_score[i].item() == pytest.approx(expected, rel=1e-4)


def test_mahalanobis_is_its_formula_and_takes_the_nearer_domain() -> None:
    vectors, domains = clips({})
    backend = Mahalanobis({"shrinkage": 0.2})
    backend.fit(vectors, domains)
    query = np.full(6, 0.7)
    distances = []
    for part in (vectors[:32], vectors[32:]):
        x = part.double().numpy()
        covariance = np.cov(x.T, bias=True)
        covariance = 0.8 * covariance + 0.2 * np.trace(covariance) / 6 * np.eye(6)
        d = query - x.mean(0)
        distances.append(np.sqrt(d @ np.linalg.inv(covariance) @ d))
    scored = backend.score(torch.from_numpy(query).float()[None]).anomaly_score.item()
    assert scored == pytest.approx(min(distances), rel=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(f"{v}" for v in s.values()))
def test_every_back_end_keeps_its_scores_through_its_tensors(settings: dict[str, Any]) -> None:
    backend, vectors = fitted(settings)
    queries = vectors.flip(0) * 1.1
    copy = build_backend(settings)
    copy.restore(backend.tensors())
    before, after = backend.score(queries), copy.score(queries)
    assert torch.equal(before.anomaly_score, after.anomaly_score)
    assert torch.equal(before.nearest, after.nearest)
    assert torch.isfinite(before.anomaly_score).all()


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(f"{v}" for v in s.values()))
def test_every_back_end_ranks_a_far_clip_above_the_training_clips(settings: dict[str, Any]) -> None:
    backend, vectors = fitted(settings)
    far = (
        torch.full((1, vectors.shape[1]), -9.0)
        if settings["name"] != "value"
        else torch.tensor([[99.0, 99.0]])
    )
    far[:, ::2] *= -1 if settings["name"] != "value" else 1
    assert backend.score(far).anomaly_score.item() > backend.leave_one_out().anomaly_score.median().item()


@pytest.mark.parametrize("settings", SETTINGS[:6], ids=lambda s: "-".join(f"{v}" for v in s.values()))
def test_a_training_clip_does_not_find_itself(settings: dict[str, Any]) -> None:
    backend, vectors = fitted(settings)
    own = torch.arange(len(vectors))
    left_out = backend.leave_one_out()
    assert (left_out.nearest != own).all()
    if settings["name"] == "knn":
        assert (left_out.anomaly_score > backend.score(vectors).anomaly_score - 1e-6).all()
        assert (backend.score(vectors).nearest == own).float().mean() > 0.9


def test_smote_adds_to_the_target_domain_only() -> None:
    vectors, domains = clips({})
    plain, enlarged = KNN({}), KNN({"smote": {"ratio": 0.75, "neighbours": 3}})
    plain.fit(vectors, domains)
    enlarged.fit(vectors, domains)
    assert plain.tensors()["size"].tolist() == [32, 8]
    assert enlarged.tensors()["size"].tolist() == [32, 24]
    references = enlarged.tensors()["references"]
    assert torch.equal(references[:40], plain.tensors()["references"])
    assert set(enlarged.tensors()["origin"][40:].tolist()) <= set(range(32, 40))
    target = references[32:40]
    nearest_target = nearest(references[40:], target, 1, "cosine")[0]
    nearest_source = nearest(references[40:], references[:32], 1, "cosine")[0]
    assert nearest_target.mean() < nearest_source.mean()


def test_smote_without_a_target_domain_adds_nothing() -> None:
    vectors, _ = clips({})
    backend = KNN({"smote": {"ratio": 0.75, "neighbours": 3}})
    backend.fit(vectors, [""] * len(vectors))
    assert backend.tensors()["size"].tolist() == [40]


def test_kmeans_keeps_a_small_domain_as_it_is() -> None:
    vectors, domains = clips({})
    backend = build_backend({"name": "kmeans", "centres": 8, "metric": "euclidean"})
    backend.fit(vectors, domains)
    assert len(backend.tensors()["means"]) == 16
    assert backend.score(vectors[32:]).anomaly_score.tolist() == pytest.approx([0.0] * 8, abs=2e-3)


def test_a_domain_of_two_clips_joins_the_largest() -> None:
    vectors, _ = clips({})
    backend = KNN({})
    backend.fit(vectors, ["source"] * 38 + ["target"] * 2)
    assert backend.tensors()["size"].tolist() == [40]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, vectors = fitted({"name": "knn", "neighbours": 2})
    monkeypatch.setattr(neighbours_module, "CHUNK_VALUES", 20)
    monkeypatch.setattr(neighbours_module, "REFERENCE_CHUNK", 7)
    chunked, _ = fitted({"name": "knn", "neighbours": 2})
    queries = vectors.flip(0) * 1.1
    assert chunked.score(queries).anomaly_score.tolist() == pytest.approx(
        whole.score(queries).anomaly_score.tolist(), rel=1e-4
    )
    assert torch.equal(chunked.score(queries).nearest, whole.score(queries).nearest)
    left_out = whole.leave_one_out().anomaly_score.tolist()
    assert chunked.leave_one_out().anomaly_score.tolist() == pytest.approx(left_out, rel=1e-4)


def test_doubled_training_clips_give_finite_scores() -> None:
    vectors, domains = clips({})
    vectors[:6] = vectors[0]
    backend = KNN({"density_neighbours": 3})
    backend.fit(vectors, domains)
    assert torch.isfinite(backend.score(vectors * 1.5 + 0.1).anomaly_score).all()
    assert torch.isfinite(backend.leave_one_out().anomaly_score).all()


def test_two_training_clips_are_refused() -> None:
    with pytest.raises(InputError, match="2 normal training clip"):
        build_backend({"name": "knn"}).fit(torch.ones(2, 3), ["source"] * 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"name": "nearest"}, "nearest"), ({"name": "knn", "neighbors": 2}, "neighbors")],
)
def test_wrong_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        build_backend(settings)
    assert words in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(f"{v}" for v in s.values()))
def test_cuda_gives_the_scores_of_the_cpu(settings: dict[str, Any]) -> None:
    backend, vectors = fitted(settings)
    cuda = build_backend(settings, 0, "cuda")
    cuda.fit(vectors, clips(settings)[1])
    queries = vectors.flip(0) * 1.1
    assert cuda.score(queries).anomaly_score.tolist() == pytest.approx(
        backend.score(queries).anomaly_score.tolist(), rel=1e-5
    )
    left_out = backend.leave_one_out().anomaly_score.tolist()
    assert cuda.leave_one_out().anomaly_score.tolist() == pytest.approx(left_out, rel=1e-5)
