"""Many pictures through a model: decoded ahead by threads, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from grafalign import console, engine
from grafalign.encoders.cores import on_cores
from grafalign.errors import GrafalignError
from grafalign.models.model import Model, Vectors
from grafalign.models.pixels import Fit, band_places, to_input

BATCH = 64
_AHEAD = 3
"""Batches that are decoded while one is embedded."""


def embed_pictures(
    model: Model,
    read: Callable[[int], np.ndarray],
    rows: Sequence[int],
    bands: tuple[str, ...],
    value_range: tuple[float, float],
    fit: Fit = 'resize',
    *,
    label: str = 'embedding',
    workers: int | None = None,
    name: Callable[[int], str] | None = None,
    reject: Callable[[int, str], None] | None = None,
) -> Iterator[tuple[list[int], Vectors]]:
    """Embed pictures in order; yields rows and their unit embeddings [b, D]. Arguments as of `model_inputs`."""
    batches = model_inputs(
        model, read, rows, bands, value_range, fit, label=label, workers=workers, name=name, reject=reject
    )

    def embed(batch: tuple[list[int], torch.Tensor]) -> tuple[list[int], Vectors]:
        return batch[0], model.embed_images(batch[1])

    yield from on_cores(embed, batches, model.device)


def model_inputs(
    model: Model,
    read: Callable[[int], np.ndarray],
    rows: Sequence[int],
    bands: tuple[str, ...],
    value_range: tuple[float, float],
    fit: Fit = 'resize',
    *,
    label: str,
    workers: int | None = None,
    name: Callable[[int], str] | None = None,
    reject: Callable[[int, str], None] | None = None,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Pictures in order as a model's input; yields rows and inputs [b, C, S, S].

    Args:
        model: the model.
        read: pixels [C, H, W] of one picture, in physical values.
        rows: which.
        bands: names of the C bands.
        value_range: physical values that become 0 and 1.
        fit: see `pixels.py`.
        label: of the progress bar.
        workers: threads that decode.
        name: what to call the picture of a row in errors.
        reject: told the row and the reason of a picture that cannot be read, which is then left out.

    Raises:
        GrafalignError: a band is missing, or a picture cannot be read and there is no `reject`.
    """
    places = band_places(model.preprocessing, bands)

    def prepare(row: int) -> torch.Tensor:
        picture = read(row)
        try:
            return to_input(picture[places], model.preprocessing, fit, value_range)
        except GrafalignError as error:
            raise type(error)(f'{name(row)}: {error}' if name else str(error)) from None

    batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    pool = ThreadPoolExecutor(workers or engine.default_workers(), thread_name_prefix='pictures')
    ahead: dict[int, list[Future[torch.Tensor]]] = {}
    try:
        with console.progress(label, len(rows)) as bar:
            for number, batch in enumerate(batches):
                for later in range(number, min(number + _AHEAD, len(batches))):
                    if later not in ahead:
                        ahead[later] = [pool.submit(prepare, row) for row in batches[later]]
                rows_read, inputs = [], []
                for row, future in zip(batch, ahead.pop(number), strict=True):
                    try:
                        inputs.append(future.result())
                        rows_read.append(row)
                    except GrafalignError as error:
                        if reject is None:
                            raise
                        reject(row, str(error))
                if inputs:
                    yield rows_read, torch.stack(inputs)
                bar.advance(len(batch), rejected=len(batch) - len(rows_read))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
