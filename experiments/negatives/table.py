"""Table and plot of the negatives study, from its result files: `python -m experiments.negatives.table`."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from experiments.negatives.run import MASKS, NEGATIVES, TAUS
from experiments.study import chosen, load_results, mean_over_worlds, paired_difference

HERE = Path(__file__).parent
METRICS = {'accuracy': 'zero-shot accuracy', 'miou': 'segmentation mIoU'}
COLOURS = {(0.07, 'off'): '#9a9a9a', (0.07, 'on'): '#444444', (0.2, 'off'): '#7cc4bf', (0.2, 'on'): '#0f5e59'}


def main() -> None:
    """Write `results/table.md` and `results/negatives.png`."""
    outcomes = load_results(HERE / 'results')
    bank = [o for o in outcomes if o['values']['batch'] == 32]
    large = [o for o in outcomes if o['values']['batch'] != 32]
    worlds = sorted({o['world'] for o in outcomes})
    lines = [
        '# Negatives: accuracy and mIoU',
        '',
        'Made by `table.py` from the result files beside it. Means over worlds '
        f'{", ".join(map(str, worlds))} with 95 % intervals; below them the gain over the fewest negatives '
        'on the same tiles and chips. Time is the median of a step of 32 tiles, memory the peak of the process.',
        '',
    ]
    for tau in TAUS:
        for masks in MASKS:
            lines += [
                f'## tau {tau}, masks {masks}',
                '',
                '| negatives | accuracy | mIoU | step | memory |',
                '|---|---|---|---|---|',
            ]
            first = chosen(bank, tau=tau, masks=masks, negatives=NEGATIVES[0])
            for negatives in NEGATIVES:
                mine = chosen(bank, tau=tau, masks=masks, negatives=negatives)
                if mine:
                    lines.append(_row(str(negatives), mine, first, 1))
            mine = chosen(large, tau=tau, masks=masks)
            if mine:
                batch = mine[0]['values']['batch']
                lines.append(_row(f'{batch - 1}, batch of {batch} tiles', mine, first, batch // 32))
            lines.append('')
    first_outcome = outcomes[0]
    versions = ', '.join(f'{k} {v}' for k, v in first_outcome['versions'].items())
    lines += [f'{len(outcomes)} trainings; {first_outcome["machine"]}; {versions}. `{first_outcome["command"]}`', '']
    (HERE / 'results' / 'table.md').write_text('\n'.join(lines))
    _plot(bank, large)


def _row(label: str, mine: list[dict[str, Any]], first: list[dict[str, Any]], portions: int) -> str:
    row = []
    for metric in METRICS:
        text = '{:.3f} ({:.3f} to {:.3f})'.format(*mean_over_worlds(mine, metric))
        if mine is not first and len(first) == len(mine) and label != str(NEGATIVES[0]):
            text += '<br>{:+.3f} ({:+.3f} to {:+.3f})'.format(*paired_difference(mine, first, metric))
        row.append(text)
    step = mean(o['step_ms'] for o in mine) / portions
    memory = mean(o['peak_memory_mb'] for o in mine)
    return f'| {label} | {" | ".join(row)} | {step:.0f} ms | {memory:.0f} MB |'


def _plot(bank: list[dict[str, Any]], large: list[dict[str, Any]]) -> None:
    """One panel a metric: negatives across, a line for each temperature and mask, a star for the large batch."""
    figure, axes = plt.subplots(1, len(METRICS), figsize=(11, 4.2))
    places = {n: (24_000 if n == 'all' else n) for n in NEGATIVES}
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for (tau, masks), colour in COLOURS.items():
            found = [(places[n], chosen(bank, tau=tau, masks=masks, negatives=n)) for n in NEGATIVES]
            found = [(x, mine) for x, mine in found if mine]
            if not found:
                continue
            value, low, high = zip(*(mean_over_worlds(mine, metric) for _, mine in found), strict=True)
            across = [x for x, _ in found]
            axis.plot(across, value, 'o-', color=colour, label=f'tau {tau}, masks {masks}')
            axis.fill_between(across, low, high, color=colour, alpha=0.12, linewidth=0)
            star = chosen(large, tau=tau, masks=masks)
            if star:
                height, down, up = mean_over_worlds(star, metric)
                at = star[0]['values']['batch'] - 1
                axis.errorbar(at * 1.12, height, [[height - down], [up - height]], fmt='*', color=colour, markersize=11)
        axis.set(xscale='log', xlabel='negatives of each anchor', title=title)
        axis.set_xticks(list(places.values()), [str(n) for n in places])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8, title='star: a batch of 512 tiles', title_fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / 'results' / 'negatives.png', dpi=150)


if __name__ == '__main__':
    main()
