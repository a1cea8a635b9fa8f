"""Table and plot of the placement study, from its result files: `python -m experiments.placement.table`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from experiments.study import chosen, load_results, mean_over_worlds, paired_difference

HERE = Path(__file__).parent
COLOURS = {'point': '#444444', 'gaussian': '#1b7f79', 'view_cone': '#d1495b'}


def main() -> None:
    """Write `results/table.md` and `results/placement.png`."""
    outcomes = load_results(HERE / 'results')
    pairings = [p for p in ('kept', 'free') if chosen(outcomes, pairing=p)]
    lines = ['# Placement: segmentation mIoU', '', 'Made by `table.py` from the result files beside it.', '']
    size = (5.4 * len(pairings), 4)
    figure, axes = plt.subplots(1, len(pairings), figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis, pairing in zip(axes[0], pairings, strict=True):
        here = chosen(outcomes, pairing=pairing)
        noises = sorted({o['values']['noise'] for o in here})
        kinds = [k for k in COLOURS if any(o['values']['placement'] == k for o in here)]
        worlds = sorted({o['world'] for o in here})
        lines += [
            f'## Pairs {pairing}',
            '',
            f'Means over worlds {", ".join(map(str, worlds))} with 95 % intervals; below them the gain over `point` '
            'on the same chips.',
            '',
            f'| noise, 68 % radius | {" | ".join(kinds)} | mass inside |',
            f'|---|{"---|" * (len(kinds) + 1)}',
        ]
        for noise in noises:
            row = []
            for kind in kinds:
                mine = chosen(here, noise=noise, placement=kind)
                value, low, high = mean_over_worlds(mine, 'miou')
                text = f'{value:.3f} ({low:.3f} to {high:.3f})'
                base = chosen(here, noise=noise, placement='point')
                if kind != 'point' and len(base) == len(mine):
                    text += '<br>{:+.3f} ({:+.3f} to {:+.3f})'.format(*paired_difference(mine, base))
                row.append(text)
            spread = chosen(here, noise=noise, placement='gaussian')
            inside = [o['noted'].get('mass_inside', 1.0) for o in spread]
            lines.append(f'| {noise} m | {" | ".join(row)} | {sum(inside) / max(1, len(inside)):.2f} |')
        lines.append('')
        for kind in kinds:
            points = [mean_over_worlds(chosen(here, noise=n, placement=kind), 'miou') for n in noises]
            mean, low, high = zip(*points, strict=True)
            axis.plot(noises, mean, 'o-', color=COLOURS[kind], label=kind)
            axis.fill_between(noises, low, high, color=COLOURS[kind], alpha=0.15, linewidth=0)
        axis.set(title=f'pairs {pairing}', xlabel='geotag noise, 68 % radius (m)')
        axis.grid(alpha=0.25)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0][0].set_ylabel('segmentation mIoU')
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(HERE / 'results' / 'placement.png', dpi=150)
    first = outcomes[0]
    versions = ', '.join(f'{k} {v}' for k, v in first['versions'].items())
    lines += [f'{len(outcomes)} trainings; {first["machine"]}; {versions}. `{first["command"]}`', '']
    (HERE / 'results' / 'table.md').write_text('\n'.join(lines))


if __name__ == '__main__':
    main()
