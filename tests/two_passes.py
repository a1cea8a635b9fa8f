"""Steps of towers that are both trained: as two passes make them, and their comparison pair by pair."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from grafalign.training.two_towers import TwoTowerTask


def gradients(task: TwoTowerTask, batches: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a step in one process, in two passes without anything kept between them."""
    task.zero_grad()
    loss = torch.zeros((), dtype=torch.float64)
    if len(batches) > 1:
        with torch.no_grad():
            vectors = []
            for number, batch in enumerate(batches):
                torch.manual_seed(number)
                vectors.append(task({**batch, 'vectors_only': torch.ones(())}))
        batches = task.prepare(batches, vectors)
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        part = task(batch)
        part.backward()
        loss += part.detach()
    return loss, {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}


def contrast(task: TwoTowerTask, images: Tensor, texts: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The loss of a whole batch from its vectors [B, D] and [K, D] and its pairs, as the formulas say it."""
    z = images @ texts.T * task.log_scale.exp()
    loss = torch.zeros((), dtype=torch.float64)
    if task.settings.form == 'softmax':
        distinct = len(column.unique())
        for i, j in zip(row.tolist(), column.tolist(), strict=True):
            loss = loss - functional.log_softmax(z[i], 0)[j] / (len(images) * int((row == i).sum()))
            back = functional.log_softmax(z[:, j], 0)[i] / (distinct * int((column == j).sum()))
            loss = loss - task.settings.photo_to_tile * back
        return loss
    sign = torch.full_like(z, -1)
    sign[row, column] = 1
    p = torch.sigmoid(sign * (z + task.bias))
    gamma = task.settings.gamma if task.settings.form == 'focal' else 0
    return -((1 - p) ** gamma * torch.log(p)).sum() / len(images)
