"""Nearest references by chunked matrix products: bounded memory for any number of references, CPU or CUDA."""

from __future__ import annotations

from collections.abc import Iterator

import torch

CHUNK_VALUES = 1 << 22
"""Distances held at once (32 MiB)."""
REFERENCE_CHUNK = 1 << 14


def unit_rows(vectors: torch.Tensor) -> torch.Tensor:
    """Scale each row of [n, d] to length one (a row of zeros stays)."""
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)


def distances(queries: torch.Tensor, references: torch.Tensor, metric: str) -> torch.Tensor:
    """Distances float64 [m, n] by one matrix product: cosine (1 - cos) or euclidean.

    In double precision: clips of one machine are so alike that 1 - cos, computed in float32, would keep three digits.
    """
    queries, references = queries.double(), references.double()
    if metric == "cosine":
        return (1.0 - unit_rows(queries) @ unit_rows(references).T).clamp_(min=0.0)
    squares = queries.square().sum(1)[:, None] + references.square().sum(1)[None, :]
    return (squares - 2.0 * queries @ references.T).clamp_(min=0.0).sqrt_()


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(count)."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def query_chunk(references: int) -> int:
    """How many queries to compare at once, so that the distances stay below CHUNK_VALUES."""
    return max(1, CHUNK_VALUES // min(max(references, 1), REFERENCE_CHUNK))


def smallest(best: torch.Tensor, index: torch.Tensor, block: torch.Tensor, offset: int) -> None:
    """Merge a block of values [m, b] of references offset, offset+1, ... into the k smallest so far, in place."""
    k = best.shape[1]
    columns = torch.arange(offset, offset + block.shape[1], device=block.device).expand_as(block)
    if block.shape[1] > k:
        block, taken = block.topk(k, dim=1, largest=False)
        columns = columns.gather(1, taken)
    values = torch.cat([best, block], dim=1)
    order = values.argsort(dim=1, stable=True)[:, :k]
    best.copy_(values.gather(1, order))
    index.copy_(torch.cat([index, columns], dim=1).gather(1, order))


def nearest(
    queries: torch.Tensor,
    references: torch.Tensor,
    k: int,
    metric: str,
    divisor: torch.Tensor | None = None,
    leave_out_self: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k smallest distances of each query and the references they belong to.

    Parameters
    ----------
    queries, references : float32 [m, d], [n, d]; k <= n (k <= n - 1 with `leave_out_self`).
    divisor : [n], each reference's distances are divided by it (local density); None leaves them.
    leave_out_self : query i is reference i and does not find itself.

    Returns
    -------
    (distances float64 [m, k] ascending, reference numbers int64 [m, k]).
    """
    best = torch.full((len(queries), k), torch.inf, dtype=torch.float64, device=queries.device)
    index = torch.zeros((len(queries), k), dtype=torch.int64, device=queries.device)
    for rows in chunks(len(queries), query_chunk(len(references))):
        for columns in chunks(len(references), REFERENCE_CHUNK):
            block = distances(queries[rows], references[columns], metric)
            if divisor is not None:
                block /= divisor[columns]
            if leave_out_self:
                leave_out(block, rows, columns)
            smallest(best[rows], index[rows], block, columns.start)
    return best, index


def leave_out(block: torch.Tensor, rows: slice, columns: slice) -> None:
    """Set the distances of query i to reference i, where the block holds them, to infinity."""
    start, stop = max(rows.start, columns.start), min(rows.stop, columns.stop)
    both = torch.arange(start, max(start, stop), device=block.device)
    block[both - rows.start, both - columns.start] = torch.inf


def leave_one_out_density(
    references: torch.Tensor, neighbours: int, k: int, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k smallest density-normalised distances of each reference with itself left out everywhere.

    Reference i is left out as a neighbour of itself **and** where it counts among the nearest of another reference r:
    there r's mean distance takes the next reference instead. Equals, for each i, fitting without i and scoring i.
    """
    best = torch.full((len(references), k), torch.inf, dtype=torch.float64, device=references.device)
    index = torch.zeros((len(references), k), dtype=torch.int64, device=references.device)
    near, number = nearest(references, references, neighbours + 1, metric, leave_out_self=True)
    total, following, number = near[:, :neighbours].sum(1), near[:, neighbours], number[:, :neighbours]
    floor = density_floor(total / neighbours)
    for rows in chunks(len(references), query_chunk(len(references))):
        for columns in chunks(len(references), REFERENCE_CHUNK):
            block = distances(references[rows], references[columns], metric)
            sums = total[columns].repeat(len(block), 1)
            inside = (number[columns] >= rows.start) & (number[columns] < rows.stop)
            column, place = inside.nonzero(as_tuple=True)
            row = number[columns][column, place] - rows.start
            sums[row, column] += following[columns][column] - near[columns][column, place]
            block /= (sums / neighbours).clamp(min=floor)
            leave_out(block, rows, columns)
            smallest(best[rows], index[rows], block, columns.start)
    return best, index


def density_floor(density: torch.Tensor) -> float:
    """Least mean distance that is divided by: a thousandth of the median, so that doubled clips do not give infinity (ours)."""
    return max(float(density.median()) * 1e-3, 1e-9)
