"""Back ends: what turns embeddings into anomaly scores. One interface: fit, score, leave_one_out, tensors, restore."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from asdflow.detection.neighbours import (
    chunks,
    density_floor,
    distances,
    leave_one_out_density,
    nearest,
    query_chunk,
    unit_rows,
)
from asdflow.errors import InputError

log = logging.getLogger(__name__)

Names = np.ndarray[Any, np.dtype[np.str_]]
LEAST_CLIPS = 3
"""Fewest training clips that can be scored with one left out and its neighbour still having a neighbour."""


GIVEN_SCORES = ("mse", "mahalanobis")
"""What the two values of an autoencoder's embedding are."""


class Scores(NamedTuple):
    """Anomaly scores float64 [m] and the number of the training clip each is nearest to, int64 [m]."""

    anomaly_score: torch.Tensor
    nearest: torch.Tensor


class BackEnd(ABC):
    """Fitted on the normal training embeddings of one machine; higher scores are more anomalous.

    Parameters
    ----------
    settings : the back end's keys (DEFAULTS of the class fill what is absent). Raises InputError for unknown keys.
    seed : for what is drawn at random (k-means starts, SMOTE).
    device : where the arithmetic runs.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, settings: Mapping[str, Any], seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        given = {key: value for key, value in settings.items() if key != "name"}
        if unknown := sorted(set(given) - set(self.DEFAULTS)):
            raise InputError(
                f"back end {settings.get('name', type(self).__name__)}: unknown settings",
                unknown,
                f"it has: {', '.join(self.DEFAULTS) or 'no settings'}",
            )
        self.settings = {**self.DEFAULTS, **given}
        self.seed, self.device = seed, torch.device(device)
        self.state: dict[str, torch.Tensor] = {}

    def fit(self, embeddings: torch.Tensor, domains: Sequence[str]) -> None:
        """Fit on float32 [n, d]; `domains` names the domain of each clip (empty text: not stated).

        Raises InputError for fewer than 3 clips.
        """
        if len(embeddings) < LEAST_CLIPS:
            raise InputError(
                f"{len(embeddings)} normal training clip(s) are too few for a back end",
                remedy=f"give at least {LEAST_CLIPS} normal training clips",
            )
        embeddings = embeddings.to(self.device, torch.float32)
        if self.settings.get("standardise"):
            self.state["centre"] = embeddings.mean(0)
            self.state["spread"] = embeddings.std(0).clamp(min=1e-6)
        self.state["bank"] = self._prepare(embeddings)
        self.state["part"] = memory_parts(domains, bool(self.settings.get("per_domain"))).to(self.device)
        self._fit(np.asarray(domains, dtype=str))

    def score(self, embeddings: torch.Tensor) -> Scores:
        """Score float32 [m, d]."""
        scores, near = self._score(self._prepare(embeddings.to(self.device, torch.float32)))
        return Scores(scores.double().cpu(), near.cpu())

    def leave_one_out(self) -> Scores:
        """Score each training clip as if it had not been fitted, in the order of `fit`."""
        scores, near = self._leave_one_out()
        return Scores(scores.double().cpu(), near.cpu())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that was fitted, for a safetensors file."""
        return {name: value.detach().cpu().contiguous() for name, value in self.state.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave; afterwards `score` gives the same scores."""
        self.state = {name: value.to(self.device) for name, value in tensors.items()}

    @property
    def metric(self) -> str:
        """The distance in which embeddings are compared."""
        return str(self.settings.get("metric", "euclidean"))

    def _prepare(self, embeddings: torch.Tensor) -> torch.Tensor:
        if "centre" in self.state:
            embeddings = (embeddings - self.state["centre"]) / self.state["spread"]
        return unit_rows(embeddings) if self.metric == "cosine" else embeddings

    def _nearest_clip(self, queries: torch.Tensor, leave_out_self: bool = False) -> torch.Tensor:
        return nearest(queries, self.state["bank"], 1, self.metric, leave_out_self=leave_out_self)[1][:, 0]

    @abstractmethod
    def _fit(self, domains: Names) -> None: ...

    @abstractmethod
    def _score(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    @abstractmethod
    def _leave_one_out(self) -> tuple[torch.Tensor, torch.Tensor]: ...


def memory_parts(domains: Sequence[str], per_domain: bool) -> torch.Tensor:
    """Number of the memory each clip belongs to, int64 [n]: one for all, or one per domain in the order of their names.

    A domain of fewer than 3 clips joins the largest: it has no density of its own (ours).
    """
    names, part, counts = np.unique(np.asarray(domains, dtype=str), return_inverse=True, return_counts=True)
    if not per_domain:
        return torch.zeros(len(domains), dtype=torch.int64)
    largest = int(counts.argmax())
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        if count < LEAST_CLIPS and number != largest:
            log.info("domain %r has %d training clip(s): they join domain %r", name, count, names[largest])
            part[part == number] = largest
    return torch.from_numpy(np.unique(part, return_inverse=True)[1]).to(torch.int64)


class Memory(NamedTuple):
    """The references of one domain: unit or plain rows [n, d], the training clip each stands for [n], and its divisor [n]."""

    references: torch.Tensor
    origin: torch.Tensor
    divisor: torch.Tensor


class KNN(BackEnd):
    """Mean distance to the nearest training clips, the smallest over the domains' memories.

    With `normalisation: local_density` each distance to a reference is divided by that reference's mean distance to its
    own `density_neighbours` nearest references in the same memory, so that the sparse target domain (10 clips) and the
    dense source domain give comparable scores.

    Sources: one cosine neighbour is what the winner of 2025 took [predecessor]; local-density normalisation comes from
    the literature on domain generalisation (Wilkinghoff et al., 2025). The default of 4 neighbours is ours: less than half
    of the 10 target clips, so that both domains can use the same number. `smote: {ratio, neighbours}` adds synthetic
    references to the target memory only, up to `ratio` times the number of other clips (Chawla et al., 2002).
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "neighbours": 1,
        "metric": "cosine",
        "per_domain": True,
        "normalisation": "local_density",
        "density_neighbours": 4,
        "smote": None,
        "standardise": False,
    }

    def _fit(self, domains: Names) -> None:
        if self.settings["smote"] and not self.settings["per_domain"]:
            raise InputError(
                "back end knn: smote needs per_domain: true", remedy="set per_domain, or smote: null"
            )
        memories = [self._memory(rows, self._wanted(rows, domains)) for rows in self._parts()]
        self.state["references"] = torch.cat([memory.references for memory in memories])
        self.state["origin"] = torch.cat([memory.origin for memory in memories])
        self.state["divisor"] = torch.cat([memory.divisor for memory in memories])
        self.state["size"] = torch.tensor([len(memory.origin) for memory in memories])

    def _parts(self) -> list[torch.Tensor]:
        """Numbers of the training clips in each memory."""
        part = self.state["part"]
        return [(part == number).nonzero()[:, 0] for number in range(int(part.max()) + 1)]

    def _wanted(self, rows: torch.Tensor, domains: Names) -> int:
        """How many references the memory of `rows` is to have: more than clips only for the target domain with SMOTE."""
        smote = self.settings["smote"]
        if not smote or not (domains[rows.cpu().numpy()] == "target").all():
            return len(rows)
        return max(len(rows), round(smote["ratio"] * (len(domains) - len(rows))))

    def _memory(self, rows: torch.Tensor, wanted: int) -> Memory:
        """Memory of the training clips `rows`, filled up to `wanted` references by SMOTE."""
        clips = self.state["bank"][rows]
        references, origin = clips, rows
        if wanted > len(rows):
            synthetic = self._synthetic(clips, wanted - len(rows))
            references = torch.cat([clips, synthetic])
            origin = torch.cat([rows, rows[nearest(synthetic, clips, 1, self.metric)[1][:, 0]]])
        return Memory(references, origin, self._density(references))

    def _synthetic(self, clips: torch.Tensor, count: int) -> torch.Tensor:
        """`count` points between neighbouring clips [count, d]."""
        from imblearn.over_sampling import SMOTE  # slow to import, and `detect` never needs it

        values = clips.cpu().numpy()
        other = np.zeros((1, values.shape[1]), dtype=values.dtype)  # the sampler asks for a second class
        neighbours = min(self.settings["smote"].get("neighbours", 5), len(values) - 1)
        sampler = SMOTE(
            sampling_strategy={1: len(values) + count}, k_neighbors=neighbours, random_state=self.seed
        )
        made, _ = sampler.fit_resample(
            np.concatenate([other, values]), np.r_[0, np.ones(len(values), dtype=np.int64)]
        )
        points = torch.from_numpy(made[1 + len(values) :]).to(clips)
        return unit_rows(points) if self.metric == "cosine" else points

    def _density(self, references: torch.Tensor) -> torch.Tensor:
        """What distances to each reference are divided by [n]."""
        if self.settings["normalisation"] == "none":
            return torch.ones(len(references), dtype=torch.float64, device=self.device)
        near = nearest(
            references, references, self._neighbours(references), self.metric, leave_out_self=True
        )[0]
        density = near.mean(1)
        return density.clamp(min=density_floor(density))

    def _neighbours(self, references: torch.Tensor) -> int:
        """Neighbours of a reference that make its density: two fewer than references at most, so that one can be left out."""
        return max(1, min(int(self.settings["density_neighbours"]), len(references) - 2))

    def _memories(self) -> list[Memory]:
        sizes = self.state["size"].tolist()
        parts = [self.state[name].split(sizes) for name in ("references", "origin", "divisor")]
        return [Memory(*part) for part in zip(*parts, strict=True)]

    def _against(self, queries: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, torch.Tensor]:
        """Score and nearest training clip of each query against one memory."""
        k = min(int(self.settings["neighbours"]), len(memory.origin))
        best, index = nearest(queries, memory.references, k, self.metric, memory.divisor)
        return best.mean(1), memory.origin[index[:, 0]]

    def _score(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return smallest_of([self._against(queries, memory) for memory in self._memories()])

    def _leave_one_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        bank = self.state["bank"]
        parts, memories = self._parts(), self._memories()
        found = [self._against(bank, memory) for memory in memories]
        for rows, memory, (scores, near) in zip(parts, memories, found, strict=True):
            scores[rows], near[rows] = self._without(rows, memory)
        return smallest_of(found)

    def _without(self, rows: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, torch.Tensor]:
        """Each clip of a memory against that memory without it; synthetic references are drawn anew without it."""
        if len(memory.origin) > len(rows):
            return self._without_smote(rows, len(memory.origin))
        k = min(int(self.settings["neighbours"]), len(rows) - 1)
        if self.settings["normalisation"] == "local_density":
            neighbours = self._neighbours(memory.references)
            best, index = leave_one_out_density(memory.references, neighbours, k, self.metric)
        else:
            best, index = nearest(memory.references, memory.references, k, self.metric, leave_out_self=True)
        return best.mean(1), rows[index[:, 0]]

    def _without_smote(self, rows: torch.Tensor, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for row in rows.tolist():
            memory = self._memory(rows[rows != row], wanted)
            found.append(self._against(self.state["bank"][row : row + 1], memory))
        return torch.cat([scores for scores, _ in found]), torch.cat([near for _, near in found])


def smallest_of(found: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """For each query the smallest score over several memories, and the clip that goes with it."""
    scores = torch.stack([score for score, _ in found])
    best, which = scores.min(0)
    return best, torch.stack([near for _, near in found]).gather(0, which[None])[0]


class KMeans(BackEnd):
    """Distance to the nearest of the k-means centres of the training clips, per domain.

    A domain with no more clips than `centres` keeps all its clips, so that 10 target clips stay what they are. A clip left
    out moves the centre it belongs to (assignments held); a centre of that clip alone goes.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "centres": 16,
        "metric": "cosine",
        "per_domain": True,
        "standardise": False,
    }

    def _fit(self, domains: Names) -> None:
        bank, part = self.state["bank"], self.state["part"]
        member = torch.zeros_like(part)
        means: list[torch.Tensor] = []
        for number in range(int(part.max()) + 1):
            rows = (part == number).nonzero()[:, 0]
            groups = self._assign(bank[rows])
            for group in range(int(groups.max()) + 1):
                member[rows[groups == group]] = len(means)
                means.append(bank[rows[groups == group]].mean(0))
        self.state["means"], self.state["member"] = torch.stack(means), member
        self.state["count"] = torch.bincount(member)

    def _assign(self, clips: torch.Tensor) -> torch.Tensor:
        if len(clips) <= self.settings["centres"]:
            return torch.arange(len(clips), device=self.device)
        from sklearn.cluster import KMeans as ScikitKMeans

        fitted = ScikitKMeans(self.settings["centres"], n_init=4, random_state=self.seed).fit(
            clips.cpu().numpy()
        )
        dense = np.unique(fitted.labels_, return_inverse=True)[1]
        return torch.from_numpy(dense).to(self.device, torch.int64)

    def _score(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        best, _ = nearest(queries, self.state["means"], 1, self.metric)
        return best[:, 0], self._nearest_clip(queries)

    def _leave_one_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        bank, member = self.state["bank"], self.state["member"]
        count = self.state["count"][member][:, None]
        moved = (count * self.state["means"][member] - bank) / (count - 1).clamp(min=1)
        scores = []
        for rows in chunks(len(bank), query_chunk(len(self.state["means"]))):
            block = distances(bank[rows], self.state["means"], self.metric)
            own = torch.stack(
                [
                    distances(x[None], c[None], self.metric)[0, 0]
                    for x, c in zip(bank[rows], moved[rows], strict=True)
                ]
            )
            own = torch.where(count[rows, 0] > 1, own, torch.inf)
            block[torch.arange(len(block), device=self.device), member[rows]] = own
            scores.append(block.min(1).values)
        return torch.cat(scores), self._nearest_clip(bank, leave_out_self=True)


class Mahalanobis(BackEnd):
    """Mahalanobis distance to the mean of the training clips, per domain, the smallest over domains.

    The covariance is shrunk towards a multiple of the identity: `shrinkage: ledoit_wolf` (Ledoit and Wolf, 2004) or a
    fixed share in (0, 1]; without it, 10 target clips have no invertible covariance. Leaving a clip out is exact at fixed
    shrinkage and scale (Sherman-Morrison).
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "shrinkage": "ledoit_wolf",
        "per_domain": True,
        "standardise": False,
    }

    def _fit(self, domains: Names) -> None:
        from sklearn.covariance import ledoit_wolf_shrinkage

        bank, part = self.state["bank"], self.state["part"]
        means, precisions, shares = [], [], []
        for number in range(int(part.max()) + 1):
            clips = bank[part == number].double()
            share = self.settings["shrinkage"]
            if share == "ledoit_wolf":
                share = max(float(ledoit_wolf_shrinkage(clips.cpu().numpy())), 1e-6)
            means.append(clips.mean(0))
            precisions.append(torch.linalg.inv(shrunk_covariance(clips, share, len(clips))))
            shares.append(share)
        self.state["mean"], self.state["precision"] = (
            torch.stack(means).float(),
            torch.stack(precisions).float(),
        )
        self.state["shrinkage"] = torch.tensor(shares, dtype=torch.float64)

    def _against(self, queries: torch.Tensor, number: int) -> torch.Tensor:
        difference = queries.double() - self.state["mean"][number].double()
        return (
            ((difference @ self.state["precision"][number].double()) * difference)
            .sum(1)
            .clamp(min=0.0)
            .sqrt()
        )

    def _score(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.stack([self._against(queries, number) for number in range(len(self.state["mean"]))])
        return scores.min(0).values, self._nearest_clip(queries)

    def _leave_one_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        bank, part = self.state["bank"], self.state["part"]
        scores = torch.stack([self._against(bank, number) for number in range(len(self.state["mean"]))])
        for number, share in enumerate(self.state["shrinkage"].tolist()):
            scores[number, part == number] = left_out_mahalanobis(bank[part == number].double(), share)
        return scores.min(0).values, self._nearest_clip(bank, leave_out_self=True)


def shrunk_covariance(clips: torch.Tensor, share: float, divisor: int) -> torch.Tensor:
    """(1 - share) S / divisor + share * m I of clips [n, d], S the scatter about the mean, m its mean eigenvalue over n."""
    centred = clips - clips.mean(0)
    scatter = centred.T @ centred
    scale = (scatter.trace() / (len(clips) * clips.shape[1])).clamp(min=1e-12)
    identity = torch.eye(clips.shape[1], dtype=clips.dtype, device=clips.device)
    return (1 - share) * scatter / divisor + share * scale * identity


def left_out_mahalanobis(clips: torch.Tensor, share: float) -> torch.Tensor:
    """Distance of each clip [n, d] to mean and covariance of the others, shrinkage target held: [n]."""
    n = len(clips)
    centred = clips - clips.mean(0)
    precision = torch.linalg.inv(shrunk_covariance(clips, share, n - 1))
    h = ((centred @ precision) * centred).sum(1)
    factor = n / (n - 1)
    beta = (1 - share) * factor / (n - 1)
    return (factor**2 * h / (1 - beta * h).clamp(min=1e-12)).clamp(min=0.0).sqrt()


class Value(BackEnd):
    """A number of the embedding is the anomaly score itself: the autoencoders of the official baseline give two [n, 2].

    `score` says which: mse or mahalanobis. Training clips are not left out: the network has seen them, and the threshold
    is the official baseline's.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {"score": "mse"}

    def _prepare(self, embeddings: torch.Tensor) -> torch.Tensor:
        if embeddings.shape[1] != len(GIVEN_SCORES):
            raise InputError(
                f"back end value: the embeddings have {embeddings.shape[1]} values, not {len(GIVEN_SCORES)} scores",
                remedy="choose another back end; value is for systems that give scores",
            )
        column = GIVEN_SCORES.index(self.settings["score"])
        return embeddings[:, column : column + 1]

    def _fit(self, domains: Names) -> None:
        """Nothing to fit: the scores are given."""

    def _score(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return queries[:, 0], self._nearest_clip(queries)

    def _leave_one_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        bank = self.state["bank"]
        return bank[:, 0], self._nearest_clip(bank, leave_out_self=True)


BACK_ENDS: dict[str, type[BackEnd]] = {
    "knn": KNN,
    "kmeans": KMeans,
    "mahalanobis": Mahalanobis,
    "value": Value,
}


def build_backend(settings: Mapping[str, Any], seed: int = 0, device: torch.device | str = "cpu") -> BackEnd:
    """Build the back end `settings["name"]`; raises InputError for an unknown name or setting."""
    name = settings.get("name", "knn")
    if name not in BACK_ENDS:
        raise InputError(f"back end {name!r} is unknown", remedy=f"choose one of: {', '.join(BACK_ENDS)}")
    return BACK_ENDS[name](settings, seed, device)
