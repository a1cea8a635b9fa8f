"""The command line: parse, call one function, show the result.

Results for programs go to standard output with `--json`; everything for people goes to standard error. Heavy imports
wait inside the commands, so that `--help` answers at once.
"""

from grafalign.cli import asking, benchmarks, captions, exploring, maps, pairing, search, training, tuning
from grafalign.cli.app import app, main

__all__ = [
    'app',
    'asking',
    'benchmarks',
    'captions',
    'exploring',
    'main',
    'maps',
    'pairing',
    'search',
    'training',
    'tuning',
]
