"""A trained run, or a published GRAFT checkpoint, as files that other tools load; joins training, encoders and Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from grafalign.config import read_yaml
from grafalign.encoders import ClipSettings, load_clip
from grafalign.errors import DamagedError, InputError
from grafalign.exchange.export import check_format, check_out, export
from grafalign.exchange.exportable import Exportable
from grafalign.exchange.graft_checkpoint import load_graft
from grafalign.exchange.hub import check_hub, push
from grafalign.exchange.model_card import CardContent, results_of
from grafalign.report import Report
from grafalign.training import load_satellite
from grafalign.training.provenance import CaptionsMarker, DataMarker, without_paths


def publish(
    run: Path,
    out: Path,
    kind: str = 'open_clip',
    clip: ClipSettings | None = None,
    results: Path | None = None,
    hub: str | None = None,
    private: bool = False,
    licence: str | None = None,
) -> dict[str, Any]:
    """Export a run, and upload it where a repository is given.

    Args:
        run: folder of a finished run, or a checkpoint file of GRAFT's published layout.
        out: folder to write; an earlier export in it is replaced.
        kind: `open_clip` or `transformers`.
        clip: the CLIP whose text tower goes with it; needed for a checkpoint, and for a run whose CLIP has moved.
        results: report.json of an evaluation of this run, for the model card.
        hub: `NAMESPACE/NAME` on the Hugging Face Hub.
        private: make a new repository there private.
        licence: licence of the weights for the card's header, an identifier of the Hub.

    Returns:
        `format`, `out`, `files`, `bytes`, and `url` after an upload.

    Raises:
        GrafalignError: the run is unfinished or damaged, the format cannot express it, `out` holds something else, or
            the Hub cannot be used.
    """
    form = check_format(kind)
    check_out(out)
    token = check_hub(hub) if hub is not None else ''
    exportable, card = _graft(run, clip, results) if run.is_file() else _run(run, clip, results)
    name = hub.rpartition('/')[2] if hub is not None else card.name
    marker = export(exportable, replace(card, name=name, hub=hub, licence=licence), out, form)
    summary = {
        'format': form,
        'out': str(out),
        'files': len(marker.files) + 1,
        'bytes': sum(p.stat().st_size for p in out.iterdir()),
    }
    return summary if hub is None else summary | {'url': push(out, hub, token, private)}


def _run(run: Path, clip: ClipSettings | None, results: Path | None) -> tuple[Exportable, CardContent]:
    model = load_satellite(run, None if clip is None else load_clip(clip))
    # as short as they can be written: 0.48145467, not what float64 makes of it
    mean, std = (
        tuple(float(str(v)) for v in model.preprocess.get_buffer(n).flatten().numpy()) for n in ('mean', 'std')
    )
    marker = model.marker
    exportable = Exportable(
        model.encoder, model.clip, model.sensor.bands, mean, std, model.sensor.value_range, marker.level
    )
    report = None if results is None else Report.read(results)
    return exportable, CardContent(
        name=run.resolve().name,
        run=marker,
        settings=without_paths(_settings(run / 'config.yaml')),
        data=DataMarker.read(run / 'data.json') if (run / 'data.json').is_file() else None,
        captions=CaptionsMarker.read(run / 'captions.json') if (run / 'captions.json').is_file() else None,
        results=() if report is None else results_of(report, marker.digest, str(results)),
        sets=None if report is None else report.sets,
    )


def _graft(path: Path, clip: ClipSettings | None, results: Path | None) -> tuple[Exportable, CardContent]:
    if clip is None:
        raise InputError(
            f'{path} holds no text tower; give the CLIP it was trained towards, for the published ones '
            '--model ViT-B-16-quickgelu --pretrained openai.'
        )
    if results is not None:
        raise InputError(f'--results {results} is about runs, and {path} is none; leave it out.')
    frozen = load_clip(clip)
    encoder = load_graft(path, frozen)
    exportable = Exportable(encoder, frozen, ('red', 'green', 'blue'), frozen.mean, frozen.std, None)
    origin = f"The weights are those of `{path.name}`, a checkpoint of GRAFT's published layout; not trained here."
    return exportable, CardContent(name=path.stem, origin=origin)


def _settings(path: Path) -> dict[str, Any]:
    """The run's settings as they were given; nothing where there are none."""
    if not path.is_file():
        return {}
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise DamagedError(f'{path} is damaged ({" ".join(str(error).split())[:200]}); train again.') from None
    return content if isinstance(content, dict) else {}
