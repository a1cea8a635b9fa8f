"""A suite: which sets, which tasks, and by which rules; from a YAML file or by the name of one that ships.

sets:
  - eurosat:data/EuroSAT_RGB@test
  - rsicd:data/RSICD
  - masks:data/my_scenes
templates: graft          # a set of prompts, a file, or a prompt; see zeroshot/templates.yaml
fit: resize
duplicates: own
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from grafalign.benchmarks.results import Task
from grafalign.config import Settings, apply_change, load_settings, parse_settings
from grafalign.datasets.open import split_spec
from grafalign.errors import InputError


class Suite(Settings):
    """What `grafalign evaluate` measures: data sets, tasks, prompts and protocol."""

    sets: list[str] = []
    """`NAME:PATH` or `NAME:PATH@SPLIT`; `pairs:STORE@SPLIT` for photos and tiles. `{root}` stands for --root."""
    tasks: list[Task] | None = None
    """All that a set has truth for by default; image_image only if it is asked for."""
    templates: str = 'graft'
    fit: Literal['resize', 'pad'] = 'resize'
    duplicates: Literal['own', 'shared'] = 'own'
    transductive: bool = False
    classes: dict[str, list[str]] = {}
    """Words for the classes of a set, in its order; by its name, for one's own by that of the folder or file."""
    bands: list[str] | None = None
    """Names of the bands of one's own pictures."""
    value_range: tuple[float, float] | None = None
    """Values of one's own pictures that become black and white."""
    stride_px: Annotated[int, Field(ge=1)] | None = None
    partial: bool = False
    """Accept sets that are not whole; their results are marked."""
    draws: Annotated[int, Field(ge=100)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0


def shipped_suites() -> dict[str, dict[str, object]]:
    """Suites by name."""
    text = (files('grafalign.benchmarks') / 'suites.yaml').read_text(encoding='utf-8')
    found: dict[str, dict[str, object]] = yaml.safe_load(text)
    return found


def load_suite(
    name: str | None, sets: Iterable[str] = (), root: Path | None = None, changes: Iterable[str] = ()
) -> tuple[Suite, list[str]]:
    """A suite by name or file, or made of sets alone.

    Args:
        name: of a shipped suite, or a YAML file; None for sets alone.
        sets: sets instead of the suite's own.
        root: folder below which a shipped suite looks for its sets.
        changes: `key=value` settings that override.

    Returns:
        The suite with the sets that are there, and the sets of a shipped suite that are not.

    Raises:
        GrafalignError: there is no such suite, or none of its sets is there.
    """
    chosen = list(sets)
    shipped = shipped_suites()
    if name is not None and name not in shipped:
        if not Path(name).is_file():
            raise InputError(
                f'There is no suite {name!r}; give one of {", ".join(shipped)} with --root, or the path of a YAML file.'
            )
        extra = [f'sets=[{", ".join(repr(s) for s in chosen)}]'] if chosen else []
        suite = load_settings(Path(name), Suite, [*extra, *changes])
        if root is None and any('{root}' in spec for spec in suite.sets):
            raise InputError(f'{name} says {{root}}; give --root, the folder that stands for it.')
        return suite.model_copy(update={'sets': [s.replace('{root}', str(root)) for s in suite.sets]}), []
    content: dict[str, object] = dict(shipped[name]) if name is not None else {}
    missing: list[str] = []
    if chosen:
        content['sets'] = chosen
    elif name is not None:
        if root is None:
            raise InputError(f'The suite {name} needs --root, the folder below which its data sets lie.')
        found: list[str] = []
        for spec in content['sets']:  # type: ignore[attr-defined]
            here = str(spec).replace('{root}', str(root))
            (found if Path(split_spec(here)[1]).exists() else missing).append(here)
        if not found:
            looked = ', '.join(split_spec(s)[1] for s in missing[:4])
            raise InputError(f'None of the sets of {name} is below {root} (looked for {looked} ...); get one first.')
        content['sets'] = found
    for change in changes:
        apply_change(content, change)
    made = parse_settings(content, Suite, name or '--data')
    return made, missing
