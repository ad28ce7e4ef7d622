"""Objectives of fine-tuning: each takes the embeddings of one or more views of a batch and its targets, and gives a loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CONTRASTIVE = ("supervised_contrastive", "nt_xent", "vector_quantised")
"""Objectives that compare two views of a clip."""


@dataclass
class Targets:
    """What is known about the clips of a batch: tensors [B], and [V B] for what mixup did to each of the V views."""

    label: Tensor  # int64, class
    machine: Tensor  # int64
    attributed: Tensor  # bool: whether the class comes from true attributes
    partner: Tensor | None = None  # int64 [V B], class of the clip mixed in
    share: Tensor | None = None  # float [V B], 1: nothing of the partner


class ArcFace(nn.Module):
    """ArcFace (Deng et al. 2019), with one centre per class, or several: sub-centre ArcFace (Deng et al. 2020).

    Cross entropy over scale * cos(angle to the class centre), where `margin` (radians) is added to the true class's
    angle. A mixed clip's loss is the mean over its two classes weighted by their shares.
    """

    def __init__(
        self, width: int, classes: int, scale: float, margin: float, centres: int, seed: int
    ) -> None:
        super().__init__()
        from pytorch_metric_learning.losses import ArcFaceLoss, SubCenterArcFaceLoss
        from pytorch_metric_learning.reducers import DoNothingReducer

        kind = SubCenterArcFaceLoss if centres > 1 else ArcFaceLoss
        several = {"sub_centers": centres} if centres > 1 else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.loss = kind(
                num_classes=classes, embedding_size=width, margin=math.degrees(margin), scale=scale,
                reducer=DoNothingReducer(), **several,
            )  # fmt: skip

    def forward(self, views: Tensor, targets: Targets) -> Tensor:
        """views [V, B, d] -> mean loss."""
        repeat = len(views)
        flat = views.flatten(0, 1).float()
        loss = self._per_clip(flat, targets.label.repeat(repeat))
        if targets.partner is not None and targets.share is not None:
            loss = targets.share * loss + (1 - targets.share) * self._per_clip(flat, targets.partner)
        return loss.mean()

    def _per_clip(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        losses: Tensor = self.loss(embeddings, labels)["loss"]["losses"]
        return losses


class SubclusterAdaCos(nn.Module):
    """Sub-cluster AdaCos (Wilkinghoff 2021): several centres per class and a scale that follows the training.

    The probability of a class is the sum over its sub-clusters of the softmax of scale * cosine. The scale starts at
    sqrt(2) log(centres in all - 1); in every step it becomes the log of the batch's mean sum of exp(scale * cosine),
    divided by cos(min(pi / 4, median angle to the nearest own sub-cluster)). Centres that stay random
    (trainable: false) are the same author's later choice.
    """

    scale: Tensor

    def __init__(self, width: int, classes: int, centres: int, trainable: bool, seed: int) -> None:
        super().__init__()
        weight = torch.empty(classes * centres, width)
        nn.init.xavier_uniform_(weight, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight, requires_grad=trainable)
        self.classes, self.centres = classes, centres
        start = math.sqrt(2) * math.log(max(classes * centres - 1, 2))
        self.register_buffer("scale", torch.tensor(start))

    def forward(self, views: Tensor, targets: Targets) -> Tensor:
        """views [V, B, d] -> mean loss; in training mode the scale is updated first."""
        repeat = len(views)
        unit = nn.functional.normalize(views.flatten(0, 1).float(), dim=1)
        cosine = unit @ nn.functional.normalize(self.weight, dim=1).T  # [V B, classes * centres]
        label = targets.label.repeat(repeat)
        if self.training:
            self._follow(cosine.detach(), label)
        log_share = (self.scale * cosine).log_softmax(1)
        log_class = log_share.view(-1, self.classes, self.centres).logsumexp(2)  # [V B, classes]
        loss = -log_class.gather(1, label.unsqueeze(1)).squeeze(1)
        if targets.partner is not None and targets.share is not None:
            other = -log_class.gather(1, targets.partner.unsqueeze(1)).squeeze(1)
            loss = targets.share * loss + (1 - targets.share) * other
        return loss.mean()

    def _follow(self, cosine: Tensor, label: Tensor) -> None:
        own = cosine.view(-1, self.classes, self.centres)[
            torch.arange(len(label), device=label.device), label
        ]
        angle = own.max(1).values.clamp(-1 + 1e-6, 1 - 1e-6).acos().median()
        log_sum = (self.scale * cosine).logsumexp(1).logsumexp(0) - math.log(len(cosine))
        self.scale.copy_(log_sum / angle.clamp(max=math.pi / 4).cos())


class SupervisedContrastive(nn.Module):
    """Supervised contrastive loss (Khosla et al. 2020) over all views of the batch, positives by class."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        from pytorch_metric_learning.losses import SupConLoss

        self.loss = SupConLoss(temperature=temperature)

    def forward(self, views: Tensor, targets: Targets) -> Tensor:
        """views [V, B, d] -> mean loss."""
        loss: Tensor = self.loss(views.flatten(0, 1).float(), targets.label.repeat(len(views)))
        return loss


class NTXent(nn.Module):
    """Normalised temperature-scaled cross entropy (SimCLR, Chen et al. 2020): two views of a clip against the batch."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        from pytorch_metric_learning.losses import NTXentLoss

        self.loss = NTXentLoss(temperature=temperature)

    def forward(self, views: Tensor, targets: Targets) -> Tensor:
        """views [V, B, d], V >= 2 -> mean loss."""
        clip = torch.arange(views.shape[1], device=views.device).repeat(len(views))
        loss: Tensor = self.loss(views.flatten(0, 1).float(), clip)
        return loss


class Codebook(nn.Module):
    """The codes of one machine's clips: the start is the best of ten k-means on the first clips seen, then a moving average.

    Codes that fewer than one clip in twenty batches finds are restarted at a clip of the batch. Draws come from torch's
    global generator: call it inside a seeded fork.
    """

    pending: Tensor
    held: Tensor

    def __init__(self, width: int, codes: int, decay: float) -> None:
        super().__init__()
        self.codes = codes
        from vector_quantize_pytorch import VectorQuantize

        self.book = VectorQuantize(
            dim=width, codebook_size=codes, decay=decay, use_cosine_sim=True, kmeans_init=True, kmeans_iters=20,
            threshold_ema_dead_code=0.05, commitment_weight=0.0, rotation_trick=False,
        )  # fmt: skip
        self.register_buffer("pending", torch.zeros(8 * codes, width))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))

    @property
    def ready(self) -> bool:
        """Whether enough clips were seen for codes to exist."""
        return int(self.held) == len(self.pending)

    @property
    def vectors(self) -> Tensor:
        """The codes at unit length [codes, width]."""
        return nn.functional.normalize(self.book.codebook, dim=-1)

    @torch.no_grad()
    def forward(self, unit: Tensor) -> Tensor:
        """Unit embeddings [n, width] -> number of the nearest code [n]; in training mode the codes follow."""
        code: Tensor = self.book(unit)[1]
        return code

    @torch.no_grad()
    def collect(self, unit: Tensor) -> None:
        """Take in clips until there are enough of them for the first codes."""
        held = int(self.held)
        taken = unit[: len(self.pending) - held]
        self.pending[held : held + len(taken)] = taken
        self.held += len(taken)
        if self.ready:
            self._start()

    def _start(self) -> None:
        starts = []
        for _ in range(10):
            candidate = copy.deepcopy(self.book).train()
            candidate(self.pending)
            fit = (self.pending @ nn.functional.normalize(candidate.codebook, dim=-1).T).max(1).values.mean()
            starts.append((float(fit), candidate.state_dict()))
        self.book.load_state_dict(max(starts, key=lambda start: start[0])[1])


class VectorQuantised(nn.Module):
    """Clustering of clips without attributes by vector quantisation, trained with a dual-level contrastive loss.

    One codebook per machine without attributes, on unit-length embeddings. Instance level: two views of a clip against
    the batch (NT-Xent). Cluster level: each view must find, among its machine's codes, the code of the clip's other
    view. Named in arXiv 2508.12230; the form is our reading.
    """

    def __init__(self, width: int, machines: list[int], settings: Mapping[str, Any], seed: int) -> None:
        super().__init__()
        self.temperature = settings["temperature"]
        self.instance_weight, self.cluster_weight = settings["instance_weight"], settings["cluster_weight"]
        self.instance = NTXent(self.temperature)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            books = {str(m): Codebook(width, settings["codes"], settings["decay"]) for m in machines}
        self.books = nn.ModuleDict(books)

    def forward(self, views: Tensor, targets: Targets) -> Tensor:
        """views [V, B, d], V >= 2 (the first two are compared) -> loss over the clips without attributes."""
        unit = nn.functional.normalize(views[:2].float(), dim=2)
        chosen = ~targets.attributed
        loss = views.sum() * 0.0
        if chosen.sum() > 1 and self.instance_weight:
            loss = loss + self.instance_weight * self.instance(unit[:, chosen], targets)
        parts = []
        for machine, book in self.books.items():
            rows = chosen & (targets.machine == int(machine))
            assert isinstance(book, Codebook)
            if self.training and not book.ready:
                book.collect(unit[:, rows].flatten(0, 1))
            if rows.any() and book.ready:
                parts.append(self._cluster_level(unit[:, rows], book))
        if parts:
            loss = loss + self.cluster_weight * torch.cat(parts).mean()
        return loss

    def _cluster_level(self, unit: Tensor, book: Codebook) -> Tensor:
        """Unit views [2, n, d] of one machine -> loss per view and clip [2 n]."""
        flat = unit.flatten(0, 1)
        code = book(flat)
        swapped = code.view(2, -1).flip(0).flatten()
        return nn.functional.cross_entropy(
            flat @ book.vectors.T / self.temperature, swapped, reduction="none"
        )


class Objective(nn.Module):
    """The weighted sum of a recipe's objectives."""

    def __init__(self, parts: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.weights = dict(weights)

    def forward(self, views: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """views [V, B, d] -> (loss, loss of every part before weighting)."""
        losses = {name: part(views, targets) for name, part in self.parts.items()}
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        return total, {name: loss.detach() for name, loss in losses.items()}


def build_objective(
    settings: Mapping[str, Any], width: int, classes: int, unattributed: list[int], seed: int
) -> Objective:
    """The objective of a recipe: every part of `settings` whose weight is above zero.

    Parameters
    ----------
    width : of the embeddings. classes : number of classes. unattributed : numbers of the machines whose attributes are
    hidden (codebooks of vector_quantised). seed : of class centres and codebooks.
    """
    parts: dict[str, nn.Module] = {}
    for number, (name, part) in enumerate((n, p) for n, p in settings.items() if p["weight"] > 0):
        own_seed = seed + 1000 * number
        if name in ("arcface", "subcentre_arcface"):
            centres = part.get("centres", 1)
            parts[name] = ArcFace(width, classes, part["scale"], part["margin"], centres, own_seed)
        elif name == "subcluster_adacos":
            parts[name] = SubclusterAdaCos(width, classes, part["centres"], part["trainable"], own_seed)
        elif name == "supervised_contrastive":
            parts[name] = SupervisedContrastive(part["temperature"])
        elif name == "nt_xent":
            parts[name] = NTXent(part["temperature"])
        elif name == "vector_quantised":
            parts[name] = VectorQuantised(width, unattributed, part, own_seed)
        else:
            raise ValueError(f"unknown objective {name!r}")
    return Objective(parts, {name: settings[name]["weight"] for name in parts})


def views_needed(settings: Mapping[str, Any]) -> int:
    """How many views of each clip the objective compares: two for contrastive parts, else one."""
    return 2 if any(settings[name]["weight"] > 0 for name in CONTRASTIVE if name in settings) else 1
