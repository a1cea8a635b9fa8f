"""Memory and time of the loss with its gradient at 4,096 tiles with ten photos each, beside dense products."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional

from experiments.performance.training.measuring import SEED, TAU, Spent, fresh, header, peak_beyond, timed, write_result
from grafalign.training.near import Neighbours
from grafalign.training.objective import Candidates, Masks, Pairs, contrastive_loss, sigmoid_loss

DEPTH = 512
ALIKE = 0.7
"""Photos come in a thousand kinds, with cosines of about 0.8 within a kind: one in a thousand candidates is masked."""
WITHIN_M = 500.0
"""Tiles come in a thousand towns of 4 x 4 km."""
SLAB = 4096
"""Rows of anchors for which dense logits are made at a time."""
MASKS = ('none', 'listed', 'closer_than', 'within')
LOSS_SIZES = {'tiles': 4096, 'photos': 10, 'bank': 65536}
QUICK_LOSS_SIZES = {'tiles': 64, 'photos': 10, 'bank': 1024}


class Problem(NamedTuple):
    """Anchors against photos as a batch has them, and what a mask needs."""

    z: Tensor
    candidates: Any
    pairs: Any
    masks: Mapping[str, Any]
    """`Masks` by name."""
    places: Tensor
    """Of the candidates in metres, [K, 3], for the mask `within`: whom it names is part of what is measured."""


def loss_problem(tiles: int, photos: int, bank: int, level: str) -> Problem:
    """A batch of `tiles` with `photos` each, held against all of these and `bank` more, out of twice as many."""
    make = torch.Generator().manual_seed(SEED)
    own = tiles * photos
    total = 2 * (own + bank)
    kinds = functional.normalize(torch.randn(1000, DEPTH, generator=make), dim=1)
    rows = torch.randperm(total, generator=make)[: own + bank]
    kind = torch.randint(0, 1000, (total,), generator=make)
    embeddings = torch.empty(total, DEPTH, dtype=torch.float16)
    for part in torch.arange(total).split(1 << 15):
        noise = torch.randn(len(part), DEPTH, generator=make) / DEPTH**0.5
        embeddings[part] = functional.normalize(kinds[kind[part]] + 0.5 * noise, dim=1).half()
    tile = torch.arange(tiles).repeat_interleave(photos)
    towns = 6.37e6 * functional.normalize(torch.randn(1000, 3, generator=make), dim=1)
    within_town = 4000 * torch.rand(tiles + bank, 3, generator=make)
    which = torch.cat([tile, torch.arange(tiles, tiles + bank)])  # places of a tile's photos are 200 m apart or less
    places = (towns[torch.arange(tiles + bank) % 1000] + within_town)[which] + 100 * torch.rand(len(which), 3)
    anchors = embeddings[rows[:own]].float()
    row, weight = torch.arange(own), torch.full((own,), 1 / own)
    beside = torch.stack([row.repeat_interleave(photos), (tile * photos)[:, None].add(torch.arange(photos)).flatten()])
    if level == 'image':
        anchors = anchors.view(tiles, photos, DEPTH).mean(1)
        row, beside = tile, torch.stack([tile, torch.arange(own)])
    noise = torch.randn(anchors.shape, generator=make) / DEPTH**0.5
    masks = {
        'none': Masks(),
        'listed': Masks(listed=(beside[0], beside[1])),
        'closer_than': Masks(closer_than=ALIKE),
        'within': Masks(),
    }
    z = (functional.normalize(anchors + noise, dim=1) / TAU).requires_grad_()
    return Problem(z, Candidates(embeddings, rows), Pairs(row, torch.arange(own), weight), masks, places)


def loss_case(
    data: Path, level: str, form: str, mask: str, turns: int, references: int, sizes: dict[str, int], dense: bool
) -> dict[str, Any]:
    """One kind of loss: its memory, then its time in turns with one dense product and with two; then the dense loss.

    A turn is ours once and the products `references` times, on a slab of rows and scaled to all of them.
    """
    bias = torch.tensor(-10.0, requires_grad=True)
    value = {}

    def ours(problem: Problem) -> None:
        z, candidates, pairs, masks, places = problem
        z.grad, named = None, masks[mask]
        if mask == 'within':
            neighbours = Neighbours(np.arange(len(places)), places.numpy().astype(np.float64))
            pair, near = torch.from_numpy(neighbours.of(pairs.candidate.numpy(), WITHIN_M))
            named = Masks(listed=(pairs.row[pair], near))
        if form == 'sigmoid':
            loss = sigmoid_loss(z, bias, candidates, pairs, named)
        else:
            loss = contrastive_loss(z, candidates, pairs, named)
        loss.backward()
        value['loss'] = float(loss.detach())

    ours(loss_problem(64, sizes['photos'], 4096, level))  # libraries and threads are up
    problem = loss_problem(**sizes, level=level)
    rows, count = len(problem.z), len(problem.candidates)
    first, extra_mb = peak_beyond(lambda: ours(problem))
    spent, found = {'ours': [first], 'one': [], 'two': []}, {}
    gathered = problem.candidates.take(slice(None), problem.z)
    slab = problem.z.detach()[:SLAB]
    logits, gradient = torch.zeros(len(slab), count), torch.zeros_like(slab)
    for turn in range(turns):
        if turn:
            spent['ours'].append(timed(lambda: ours(problem)))
        for _ in range(references):
            spent['one'].append(timed(lambda: torch.mm(slab, gathered.T, out=logits)))
            spent['two'].append(timed(lambda: torch.mm(torch.mm(slab, gathered.T, out=logits), gathered, out=gradient)))
    alone = alone_on_one_thread(problem, ours, slab, gathered, logits, gradient) if level == 'image' else None
    slabs = rows / len(slab)
    scaled = {k: [Spent(*(round(s * slabs, 4) for s in v)) for v in spent[k]] for k in ('one', 'two')}
    if dense:
        del logits, gradient
        found['dense'] = _dense_loss(problem, gathered)
    return {
        'rows': rows,
        'candidates': count,
        'pairs': len(problem.pairs.row),
        'extra_mb': extra_mb,
        'products': _products(mask, rows, len(problem.pairs.row)),
        'spent': {'ours': spent['ours'], **scaled},
        'one_thread_cpu_s': alone,
        'loss': value['loss'],
        **found,
    }


def alone_on_one_thread(
    problem: Problem, ours: Callable[[Problem], None], z: Tensor, gathered: Tensor, logits: Tensor, gradient: Tensor
) -> dict[str, float]:
    """Processor time of one thread, once: others can slow it down but not add to it, as they do where threads wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {
        'one': timed(lambda: torch.mm(z, gathered.T, out=logits)).cpu_s,
        'ours': timed(lambda: ours(problem)).cpu_s,
        'two': timed(lambda: torch.mm(torch.mm(z, gathered.T, out=logits), gathered, out=gradient)).cpu_s,
    }
    torch.set_num_threads(threads)
    return found


def _products(mask: str, rows: int, pairs: int) -> float:
    """Dense products [rows, D] x [D, candidates] that it takes: logits, gradient, and photos on photos."""
    return 2 + (pairs / rows if mask == 'closer_than' else 0)


def _dense_loss(problem: Problem, gathered: Tensor) -> dict[str, Any]:
    """The softmax loss as autograd does it, every logit held at once; or why not."""
    z, pairs = problem.z.detach().clone().requires_grad_(), problem.pairs
    wanted, free = 4 * 3 * len(z) * len(gathered), psutil.virtual_memory().available
    if wanted > 0.7 * free:
        return {'skipped': f'needs {wanted / 1e9:.0f} GB, {free / 1e9:.0f} GB are free'}
    value = {}

    def work() -> None:
        logits = z @ gathered.T
        logs = logits.logsumexp(1)[pairs.row] - logits[pairs.row, pairs.candidate]
        loss = (pairs.weight * logs).sum()
        loss.backward()
        value['loss'] = float(loss.detach())

    spent, extra_mb = peak_beyond(work)
    return {'spent': spent, 'extra_mb': extra_mb, 'loss': value['loss']}


def measure_loss(args: argparse.Namespace) -> dict[str, Any]:
    """Each mask at image level, then the sigmoid form and the patch level; the file is written after every case."""
    sizes = QUICK_LOSS_SIZES if args.quick else LOSS_SIZES
    turns = {'image': 2, 'patch': 1}
    references = {'image': 1, 'patch': 2}  # a turn of patches takes minutes, their slab seconds
    settings = {
        **sizes,
        'depth': DEPTH,
        'tau': TAU,
        'bank_dtype': 'float16',
        'closer_than': ALIKE,
        'within_m': WITHIN_M,
        'slab_rows': SLAB,
        'turns': turns,
        'references': references,
    }
    kept, file = [], args.results / 'training_loss.json'
    if args.resume and file.is_file():
        kept = json.loads(file.read_text())['cases']
    result = {'settings': settings, 'cases': kept}
    metadata, done = header(args, 'loss'), {(c['level'], c['form'], c['mask']) for c in kept}
    cases = [('image', 'softmax', mask) for mask in MASKS] + [
        ('image', 'sigmoid', 'none'),
        ('patch', 'softmax', 'none'),
    ]
    for level, form, mask in cases:
        if (level, form, mask) in done:
            continue
        how = {'turns': turns[level], 'references': references[level], 'dense': (form, mask) == ('softmax', 'none')}
        result['cases'].append(fresh(args, 'loss', level=level, form=form, mask=mask, sizes=sizes, **how))
        write_result(args, 'loss', metadata | result)
    return result
