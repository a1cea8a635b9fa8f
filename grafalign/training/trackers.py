"""Trackers (TensorBoard, MLflow, Weights & Biases ...) through Accelerate: one run a training, and never its end.

A tracker is a convenience: `RUN/log.jsonl` has everything. One that cannot start or fails later is told in one sentence
and left out. A training that is resumed goes on in the run it began: its id is kept in `RUN/trackers.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from grafalign import console
from grafalign.files import write_atomically

PROJECT = 'grafalign'
_URI = 'MLFLOW_TRACKING_URI'
_OURS: set[str] = set()
"""Where runs of this process were logged because nobody said where."""
_IDS = 'trackers.json'


def start_trackers(accelerator: Accelerator, names: tuple[str, ...], out: Path, settings: Mapping[str, Any]) -> None:
    """Start the trackers of a run, each under the run's name, with its settings and, where it can, in its folder.

    Args:
        accelerator: keeps them.
        names: which.
        out: the run's folder.
        settings: of the run; nested ones as OUTER.INNER.
    """
    started: list[Any] = []
    flat, kinds = _flat(settings), list(accelerator.log_with)
    for name in names:
        accelerator.log_with = [kind for kind in kinds if str(getattr(kind, 'value', kind)) == name]
        for known in _known_ids(out, name):
            try:
                accelerator.init_trackers(PROJECT, config=flat, init_kwargs=_options(name, out, known))
            except Exception as error:  # every tracker has errors of its own
                if known is None:
                    console.log(f'trackers: {name} cannot start ({_short(error)}); the training goes on without it')
                continue
            started += accelerator.trackers
            if accelerator.is_main_process:
                _keep_id(out, name, accelerator.trackers)
            break
    accelerator.log_with, accelerator.trackers = kinds, started


def log_to_trackers(accelerator: Accelerator, values: Mapping[str, float], step: int) -> None:
    """Pass measurements on; names without `@`, which not every tracker takes."""
    plain = {name.replace('@', '_at_'): value for name, value in values.items()}
    for tracker in list(accelerator.trackers):
        try:
            tracker.log(plain, step=step)
        except Exception as error:
            accelerator.trackers.remove(tracker)
            console.log(f'trackers: {tracker.name} failed ({_short(error)}); the training goes on without it')


def end_trackers(accelerator: Accelerator) -> None:
    """Finish all runs."""
    for tracker in accelerator.trackers:
        try:
            tracker.finish()
        except Exception as error:
            console.log(f'trackers: {tracker.name} could not be closed ({_short(error)})')
    accelerator.trackers = []
    accelerator.end_training()


def _options(name: str, out: Path, known: str | None) -> dict[str, dict[str, Any]]:
    """What is told to a tracker besides the project: the run's name, folder and id."""
    if name == 'wandb':
        mine: dict[str, Any] = {'name': out.name, 'dir': str(out), 'resume': 'allow'}
        return {name: mine if known is None else {**mine, 'id': known}}
    if name == 'mlflow':
        options = {'run_name': out.name, 'run_id': known}
        if os.environ.get(_URI, '') in ('', *_OURS):
            os.environ[_URI] = f'sqlite:///{(out / "mlflow.db").resolve()}'
            _OURS.add(os.environ[_URI])
            options['logging_dir'] = str((out / 'mlruns').resolve())
        return {name: options}
    return {}


def _known_ids(out: Path, name: str) -> list[str | None]:
    """The run that an earlier start began, and then a new one: the first may have been deleted."""
    try:
        known = json.loads((out / _IDS).read_text()).get(name)
    except (OSError, ValueError, AttributeError):
        known = None
    return [str(known), None] if known else [None]


def _keep_id(out: Path, name: str, trackers: list[Any]) -> None:
    for tracker in trackers:
        run = getattr(tracker, 'tracker', None)
        found = getattr(getattr(run, 'info', None), 'run_id', None) if name == 'mlflow' else getattr(run, 'id', None)
        if name in ('mlflow', 'wandb') and isinstance(found, str):
            try:
                kept = json.loads((out / _IDS).read_text())
            except (OSError, ValueError):
                kept = {}
            write_atomically(out / _IDS, json.dumps({**kept, name: found}).encode())


def _flat(settings: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f'{prefix}{key}.')
        else:
            found[f'{prefix}{key}'] = value if isinstance(value, int | float | str | bool) else str(value)
    return found


def _short(error: Exception) -> str:
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200].rpartition(' ')[0] + ' ...'
