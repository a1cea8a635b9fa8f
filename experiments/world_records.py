"""What experiments on sandbox worlds have in common: a record of each world, and one table of all records."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from grafalign.console import log

Record = dict[str, Any]


def measure_worlds(
    module: str,
    doc: str,
    results: Path,
    measure: Callable[[Path, int], Record],
    table: Callable[[list[Record]], str],
    packages: Sequence[str],
) -> None:
    """The command line of such an experiment: measure worlds, keep their records, write `table.md`.

    Args:
        module: its name, for the command in the records.
        doc: its docstring, for `--help`.
        results: folder of the records and the table.
        measure: a world's folder and seed to what was measured.
        table: all records to the page.
        packages: whose versions are recorded, beside those of grafalign, torch and numpy.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='folder of the worlds')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--table', action='store_true', help='only write the table')
    arguments = parser.parse_args()
    results.mkdir(exist_ok=True)
    if not arguments.table:
        if arguments.data is None:
            parser.error('give --data, the folder of the worlds')
        for seed in arguments.seeds:
            record: Record = {
                'command': f'python -m {module} --data FOLDER --seeds {seed}',
                'seed': seed,
                'versions': {name: version(name) for name in ('grafalign', 'torch', 'numpy', *packages)},
            }
            record |= measure(arguments.data / f'world{seed}', seed)
            (results / f'world{seed}.json').write_text(json.dumps(record, indent=1) + '\n')
            log(f'world {seed}: done')
    records = [json.loads(path.read_text()) for path in sorted(results.glob('world*.json'))]
    (results / 'table.md').write_text(table(records))
