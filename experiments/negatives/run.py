"""Does a small machine with negatives from the bank match a large batch?

    python -m experiments.study
    python -m experiments.negatives.run
    python -m experiments.negatives.table

Every cell sees the same number of tiles, 32 of them at a time, each with one photo, and is trained at both levels at
once. What varies:

`negatives`  photos that each anchor is held against besides its own: 31 of the batch, then more from the bank, at last
             all.
`masks`      `off`, or `on`: photos of the same tile, and photos whose embeddings are as alike as two of one class, are
             no negatives.
`tau`        0.07, as in GRAFT, and 0.2.
`batch`      32 tiles, or 512 in micro-batches of 32 with the batch's own photos as negatives: what the bank is to
             replace.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.study import Cell, run_cells

HERE = Path(__file__).parent
NEGATIVES = (31, 127, 511, 4095, 'all')
TAUS = (0.07, 0.2)
TILES = 24_000
"""Twelve passes over a world's training tiles."""
ALIKE = 0.6
"""Cosine above which two photos count as alike: in world 7, which appears in no result, that is every second pair of
one class and one in a hundred pairs of two classes."""
MASKS = {'off': {}, 'on': {'same_tile': True, 'closer_than': ALIKE}}


def cell(seed: int, negatives: int | str, masks: str, tau: float, batch: int) -> Cell:
    """One training."""
    train = {
        'level': 'both',
        'tau': tau,
        'steps': TILES // batch,
        'batch_tiles': batch,
        'micro_batch': 32,
        'photos_per_tile': 1,
        'lr': 0.001 if batch == 32 else 0.002,
        'log_every': 50 if batch == 32 else 5,
        'masks': MASKS[masks],
    }
    own = batch - 1
    if negatives != own:
        train['negatives'] = {'bank': negatives if negatives == 'all' else int(negatives) - own}
    return Cell(seed, {'negatives': negatives, 'masks': masks, 'tau': tau, 'batch': batch}, train)


def main() -> None:
    """Run all cells, world by world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--worlds', type=Path, default=Path('runs/worlds'))
    parser.add_argument('--runs', type=Path, default=Path('runs/negatives'))
    parser.add_argument('--results', type=Path, default=HERE / 'results')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--abreast', type=int, default=2, help='cells at a time')
    args = parser.parse_args()
    sizes = [(negatives, 32) for negatives in NEGATIVES] + [(511, 512)]
    kinds = [(masks, tau) for masks in MASKS for tau in TAUS]
    cells = [cell(seed, number, *kind, batch) for seed in args.seeds for number, batch in sizes for kind in kinds]
    run_cells(cells, args.worlds, args.results, args.runs, abreast=args.abreast)


if __name__ == '__main__':
    main()
