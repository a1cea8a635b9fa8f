"""The result of one model on one set in one task: a JSON file whose form is checked, and its arrays beside it.

    MODEL__SET-SPLIT__TASK__KEY.json    a `Result`
    MODEL__SET-SPLIT__TASK__KEY.npz     what paired tests need of every image (`statistics.py`), guesses, confusions

KEY is a digest of model, set, task and protocol: the same question has the same file, and one that was answered is not
asked again. Tables and comparisons are made of these files and of nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import zipfile
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from grafalign.artefacts import Marker
from grafalign.benchmarks.statistics import Statistic, statistics_from
from grafalign.errors import DamagedError, InputError
from grafalign.estimate import Estimate
from grafalign.files import write_atomically
from grafalign.retrieval import FAISS_VERSION

SCHEMA_VERSION: Literal[2] = 2
_QUESTION = 1
"""Raised when the same question comes to be answered otherwise, so that old results are no answers to it."""
Task = Literal['classification', 'class_retrieval', 'image_text', 'image_image', 'photo_tile', 'segmentation']


class _Strict(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True)


class ModelMetadata(_Strict):
    """Which model."""

    name: str
    kind: str
    """run, export, open_clip, transformers, graft or embeddings."""
    digest: str
    """Of its weights, or of the file of embeddings."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Where it came from, as far as it matters: architecture, tag, activation."""


class SetMetadata(_Strict):
    """Which images and which truth."""

    name: str
    split: str
    images: int
    classes: list[str]
    digest: str
    """Of names, order and truth, wherever the files lie: results with equal digests may be compared in pairs."""
    state: str = ''
    """Of the files that were read: changes when one of them does."""
    partial: bool = False
    """Whether images of the published set were missing: such a figure is not the set's."""
    notes: list[str] = Field(default_factory=list)
    """Images that were left out, and other departures from the published set."""


class Protocol(_Strict):
    """How the question was put."""

    templates: list[str] = Field(default_factory=list)
    pixels: dict[str, Any] = Field(default_factory=dict)
    """fit, size_px, interpolation, bands, value_range, mean, std; see models/pixels.py."""
    transductive: bool = False
    """Whether statistics of the test images were used: such a figure is not comparable with others."""
    duplicates: str | None = None
    """Rule for captions that occur several times: `own` or `shared`."""
    stride_px: int | None = None
    """Of segmentation's windows."""


class Result(Marker):
    """What one model scored on one set in one task, as its JSON file says it."""

    model_config = ConfigDict(extra='forbid', frozen=True, use_attribute_docstrings=True)
    VERSION_KEY: ClassVar[str] = 'schema_version'
    NEWEST: ClassVar[int] = SCHEMA_VERSION
    REMEDY: ClassVar[str] = 'evaluate again'

    schema_version: Literal[1, 2]
    key: str
    model: ModelMetadata
    data: SetMetadata
    task: Task
    protocol: Protocol
    metrics: dict[str, Estimate]
    main: str
    """The metric that tables show first."""
    per_class: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """Metric to class to value."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Counts and values without intervals: single prompts, duplicates, pairs."""
    unit: str
    """What was drawn for the intervals: images, or blocks of land."""
    draws: int
    seed: int
    versions: dict[str, str]
    machine: str
    command: str

    @model_validator(mode='before')
    @classmethod
    def _of_version_1(cls, content: Any) -> Any:
        """In files of version 1 `model.metadata` is called `facts`."""
        model = content.get('model') if isinstance(content, dict) else None
        if isinstance(model, dict) and 'facts' in model:
            renamed = {'metadata' if key == 'facts' else key: value for key, value in model.items()}
            return {**content, 'model': renamed}
        return content

    @model_validator(mode='after')
    def _main_is_there(self) -> Result:
        if self.main not in self.metrics:
            raise ValueError(f'main is {self.main}, which is not among the metrics')
        return self


def result_key(model: str, data: str, task: str, protocol: Mapping[str, Any]) -> str:
    """Digest of the question: of a model's, a set's, a task and all settings that change the answer."""
    question = json.dumps([_QUESTION, model, data, task, protocol], sort_keys=True)
    return hashlib.blake2b(question.encode(), digest_size=8).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the software that makes numbers."""
    names = ('grafalign', 'torch', 'open_clip_torch', 'numpy', 'pillow')
    return {**{n: version(n) for n in names}, 'faiss': FAISS_VERSION, 'python': platform.python_version()}


def file_stem(result: Result) -> str:
    """Name of its files without ending."""
    parts = (result.model.name, f'{result.data.name}-{result.data.split}', result.task, result.key)
    return '__'.join(re.sub(r'[^\w.+-]+', '-', part).strip('-') for part in parts)


def write_result(
    result: Result,
    folder: Path,
    statistics: Mapping[str, Statistic],
    arrays: Mapping[str, npt.NDArray[Any]],
    groups: npt.NDArray[np.int64],
) -> Path:
    """Write both files, the JSON last; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {'groups': groups, **{f'array/{k}': v for k, v in arrays.items()}}
    for name, statistic in statistics.items():
        content |= {f'statistic/{k}': v for k, v in statistic.arrays(name).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    stem = file_stem(result)
    write_atomically(folder / f'{stem}.npz', buffer.getvalue())
    path = folder / f'{stem}.json'
    result.write(path)
    return path


def read_result(path: Path) -> Result:
    """Read and check a result file.

    Raises:
        GrafalignError: it is missing, damaged, or not of this form; the sentence names the key.
    """
    if not path.is_file():
        raise InputError(f'There is no result {path}; make it with `grafalign evaluate`.')
    return Result.read(path)


def read_results(folder: Path) -> list[tuple[Path, Result]]:
    """All results below a folder, by name.

    Raises:
        GrafalignError: there is none, or one is damaged.
    """
    if not folder.is_dir():
        raise InputError(f'There is no folder {folder}; give the one that `grafalign evaluate` wrote to.')
    paths = sorted(p for p in folder.rglob('*__*__*__*.json') if not p.name.startswith('.'))
    if not paths:
        raise InputError(f'{folder} holds no results; make some with `grafalign evaluate`.')
    return [(path, read_result(path)) for path in paths]


class Arrays:
    """What lies beside a result file.

    Raises:
        GrafalignError: it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        beside = path.with_suffix('.npz')
        try:
            with np.load(beside) as file:
                content = dict(file)
            self.groups: npt.NDArray[np.int64] = content['groups']
            self.statistics = statistics_from(
                {k.removeprefix('statistic/'): v for k, v in content.items() if k.startswith('statistic/')}
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DamagedError(f'{beside} is missing or damaged ({error}); evaluate again.') from None
        self.arrays = {k.removeprefix('array/'): v for k, v in content.items() if k.startswith('array/')}
