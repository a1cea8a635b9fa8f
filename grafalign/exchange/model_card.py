"""The model card: README.md of an export, for people who have nothing but these files.

Everything in it is a fact of the run, of its data or of an evaluation; what is not known is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from grafalign import __version__
from grafalign.errors import StaleError
from grafalign.escapes import fenced, markdown
from grafalign.estimate import Estimate
from grafalign.exchange.exportable import Exportable
from grafalign.report import LabelledSets, Report
from grafalign.training.provenance import CaptionsMarker, DataMarker
from grafalign.training.run_marker import RunMarker


@dataclass(frozen=True)
class Result:
    """One number of an evaluation, with its 95 % bootstrap interval."""

    task: str
    metric: str
    model: str
    value: float
    low: float
    high: float
    ours: bool
    """Whether it is the exported model's; others are there to compare with."""


@dataclass(frozen=True)
class CardContent:
    """What the card tells beyond the model itself."""

    name: str
    run: RunMarker | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Training settings, without paths."""
    data: DataMarker | None = None
    captions: CaptionsMarker | None = None
    results: tuple[Result, ...] = ()
    sets: LabelledSets | None = None
    """What the results were measured on."""
    origin: str | None = None
    """Where the weights come from, if they were not trained here."""
    licence: str | None = None
    """Licence of the weights, an identifier of the Hub; none is claimed if None."""
    hub: str | None = None
    """`NAMESPACE/NAME` on the Hub."""


def results_of(report: Report, digest: str, name: str) -> tuple[Result, ...]:
    """The numbers in a report.json, those of the run with this digest marked.

    Args:
        report: content of report.json.
        digest: the run's digest, from its model.json.
        name: what to call the report in errors.

    Raises:
        GrafalignError: this run is not in it.
    """
    mine = {n for n, run in report.runs.items() if run.digest == digest}
    found = []
    for task in ('classification', 'segmentation', 'retrieval'):
        for model, scores in getattr(report, task).items():
            for metric, score in scores:
                if isinstance(score, Estimate):
                    ours = model.removesuffix('_with_prior') in mine
                    found.append(Result(task, metric, model, score.value, score.low, score.high, ours))
    if not any(r.ours for r in found):
        raise StaleError(
            f'{name} says nothing about this run (it is about {", ".join(report.runs) or "none"}); '
            'give the report of an evaluation of this run.'
        )
    return tuple(found)


def write_card(exportable: Exportable, card: CardContent, library: str, code: list[tuple[str, str]]) -> str:
    """The text of README.md.

    Args:
        exportable: what is exported.
        card: what is known about it.
        library: `open_clip` or `transformers`.
        code: headings and Python lines.
    """
    head = yaml.safe_dump(_header(exportable, card, library), sort_keys=False, allow_unicode=True, width=120)
    sections = [
        f'---\n{head}---\n\n# {card.name}',
        _what(exportable, card),
        _pixels(exportable),
        '\n\n'.join(f'## {title}\n\n```python\n{lines}```' for title, lines in code),
        _data(card),
        _training(card),
        _results(card),
        _limits(exportable, card),
    ]
    return '\n\n'.join(sections) + '\n'


def _header(exportable: Exportable, card: CardContent, library: str) -> dict[str, Any]:
    """What the Hub reads; `grafalign:` is ours."""
    data, run = card.data, card.run
    ours = {
        'version': __version__,
        'clip': _clip_name(exportable),
        'level': run.level if run else None,
        'bands': list(exportable.bands),
        'value_range': list(exportable.value_range) if exportable.value_range else None,
        'size_px': exportable.encoder.size_px,
        'sensor': data.sensor.name if data else None,
        'recipe_digest': data.recipe_digest if data else None,
        'store_digest': data.store_digest if data else run.store_digest if run else None,
        'photo_licences': data.licences if data else None,
    }
    head: dict[str, Any] = {'library_name': library, 'pipeline_tag': 'zero-shot-image-classification'}
    head['tags'] = ['grafalign', 'clip', 'remote-sensing', 'satellite-imagery']
    if card.licence:
        head['license'] = card.licence
    mine = [r for r in card.results if r.ours]
    if mine:
        head['model-index'] = [{'name': card.name, 'results': [_index_entry(r) for r in mine]}]
    head['grafalign'] = {k: v for k, v in ours.items() if v is not None}
    return head


def _index_entry(result: Result) -> dict[str, Any]:
    """The Hub's schema has no place for an interval, so it stands in the name."""
    name = f'{result.metric} of {result.model} (95 % interval {result.low:.3f} to {result.high:.3f})'
    return {
        'task': {'type': 'zero-shot-image-classification', 'name': result.task},
        'dataset': {'type': 'held-out-blocks', 'name': 'held-out blocks of land'},
        'metrics': [{'type': result.metric, 'name': name, 'value': round(float(result.value), 4)}],
    }


def _clip_name(exportable: Exportable) -> str:
    model, tag = exportable.clip.settings.model, exportable.clip.settings.pretrained
    where = [part.replace('\\', '/').rstrip('/').rpartition('/')[2] for part in (model, tag or '')]
    return f'{where[0]} ({where[1]})' if where[1] else where[0]


def _what(exportable: Exportable, card: CardContent) -> str:
    level = card.run.level if card.run else None
    trained = {
        'image': 'The **image embedding** was trained; the patch head is as CLIP started it.',
        'both': 'Both the **image embedding** and the **patch embeddings** were trained.',
        'patch': 'The **patch embeddings** were trained; the image embedding comes along untrained: do not rely on it.',
    }.get(str(level), 'Whether its image embedding or its patch embeddings were trained, its files do not say.')
    how = (
        'Photos taken on the ground were matched to the satellite tiles that contain them, and the encoder learned to '
        'land where CLIP puts the photos (GRAFT: Mall et al., ICLR 2024).'
    )
    if card.captions is not None:
        captions = 'It learned to land where CLIP puts the captions of an image.'
        how = captions if card.data is None else f'{how} From images with captions i{captions[1:]}'
    tower = 'It takes the place of the image tower; the text tower is unchanged CLIP, so any words can be asked for.'
    if card.run is not None and card.run.text_tower == 'trained':
        how = 'Images and their captions were brought together, both towers being trained.'
        tower = "Both towers are its own, started from CLIP's: words that no caption holds may have lost their meaning."
    if card.run is not None and card.run.text_tower == 'decoder':
        how = (
            'Images and their captions were brought together by one text decoder, which embeds texts'
            f'{" and writes captions" if card.run.writes_captions else ""} (MaMMUT: Kuo et al. 2023).'
        )
        tower = 'Words that no caption holds mean little to it.'
    return (
        f'A satellite encoder in the space of the CLIP {_clip_name(exportable)}, '
        f'trained {"on captions" if card.captions is not None else "without a single caption"}. {how} '
        f'{tower} {trained}' + (f'\n\n{card.origin}' if card.origin else '')
    )


def _pixels(exportable: Exportable) -> str:
    encoder = exportable.encoder
    low, high = exportable.value_range or ('see below', 'see below')
    rows = [
        f'| {i + 1} | {band} | {low} | {high} | {mean:.5g} | {std:.5g} |'
        for i, (band, mean, std) in enumerate(zip(exportable.bands, exportable.mean, exportable.std, strict=True))
    ]
    words = (
        f'The input is tiles of {encoder.size_px} x {encoder.size_px} px. One fixed rule makes it, **the same for '
        'every tile; never stretch a tile by its own minimum and maximum**: physical value = stored number x scale + '
        'offset; then the value range becomes 0..1, clipped; then mean and standard deviation.'
    )
    if exportable.value_range is None:
        words += (
            ' The checkpoint does not say which values it takes. GRAFT trained on 8-bit NAIP, 0 to 255, and on '
            'Sentinel-2 reflectance of 0 to 0.3 (numbers of 0 to 3000 where no offset applies), bands B04, B03, B02.'
        )
    if encoder.canvas_px != encoder.size_px:
        first = encoder.start_px
        words += (
            f' The tile is zero-padded to {encoder.canvas_px} px, its corner at row {first}, column {first}; '
            'it is padded, never enlarged.'
        )
    picture = (
        'A PNG or JPEG may be given instead only if it was made by this rule (0..1 times 255, rounded): the '
        'preprocessing of these files does no more than divide by 255 and apply mean and standard deviation.'
        if len(exportable.bands) == 3
        else 'No picture format holds these bands: give arrays, as below.'
    )
    head = '| | band | becomes 0 | becomes 1 | mean | standard deviation |\n|---|---|---|---|---|---|\n'
    return f'## Pixels\n\n{words}\n\n{head}' + '\n'.join(rows) + f'\n\n{picture}'


def _data(card: CardContent) -> str:
    parts = [*([_photos(card.data)] if card.data else []), *([_captions(card.captions)] if card.captions else [])]
    return '\n\n'.join(['## Data', *(parts or ['These files do not say what the model was trained on.'])])


def _captions(captions: CaptionsMarker) -> str:
    """What is told of caption sets."""
    head = '| set | images | captions | distinct | kinds | writers | licences |\n|---|---|---|---|---|---|---|'
    rows = [
        f'| {markdown(s.name)} | {s.images:,} | {s.captions:,} | {s.distinct_captions:,} | {_counts(s.kinds)} | '
        f'{_counts(s.writers)} | {_counts(s.licences)} |'
        for s in captions.sets
    ]
    return 'Captioned images, of which `train` was learned from:\n\n' + '\n'.join([head, *rows])


def _photos(data: DataMarker) -> str:
    """What is told of a pair store."""
    rows = [f'| {n} | {c.tiles:,} | {c.photos:,} | {c.pairs:,} |' for n, c in data.splits.items()]
    splits = '\n'.join(rows)
    place = 'not known'
    if data.bounds is not None:
        west, south, east, north = data.bounds
        place = f'longitude {west:.3f} to {east:.3f}, latitude {south:.3f} to {north:.3f} degrees'
    apart = 'as the pairs came, or whole places' if data.imported else 'blocks of land'
    made = ('of pairs from elsewhere, read so', data.imported) if data.imported else ('by this recipe', data.recipe)
    lines = [
        f'Trained on `train`; splits are {apart}.',
        f'| split | tiles | photos | pairs |\n|---|---|---|---|\n{splits}',
        f'- Sensor: {markdown(data.sensor.name)}, {data.sensor.gsd_m} m a pixel, bands '
        f'{markdown(", ".join(data.sensor.bands))}.',
        f'- Place: {place}.',
        f'- Photos taken: {_period(data.photos_taken)}; scenes: {_period(data.scenes_taken)}.',
        f'- Sources of the photos: {_counts(data.sources)}.',
        f'- Licences of the photos: {_counts(data.licences)}. No photo is in these files.',
        f'Pair store {data.store_digest}, made {made[0]}:\n\n{fenced(_yaml(made[1]), "yaml")}',
    ]
    return '\n\n'.join(lines[:2]) + '\n\n' + '\n'.join(lines[2:7]) + '\n\n' + lines[7]


def _period(period: tuple[str, str] | None) -> str:
    return f'{period[0]} to {period[1]}' if period else 'not known'


def _counts(counts: Mapping[str, int]) -> str:
    return ', '.join(f'{markdown(name)} ({count:,})' for name, count in counts.items()) or 'not known'


def _yaml(content: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(_given(content), sort_keys=False, allow_unicode=True, width=100)
    return text


def _given(value: Any) -> Any:
    """Settings without those that say nothing."""
    if isinstance(value, Mapping):
        return {k: _given(v) for k, v in value.items() if v is not None and v != {} and v != []}
    return value


def _training(card: CardContent) -> str:
    run = card.run
    if not run:
        return '## Training\n\nThese files do not say how the model was trained.'
    versions = ', '.join(f'{n} {v}' for n, v in run.versions.items())
    summary = f'steps {run.steps}, level {run.level}, temperature {run.tau:.4g}, seed {run.seed}'
    text = f'## Training\n\n{summary}; {versions}.'
    return text + (f' Settings:\n\n{fenced(_yaml(card.settings), "yaml")}' if card.settings else '')


def _results(card: CardContent) -> str:
    if not card.results:
        return '## Results\n\nNo evaluation was given with this export: measure it on your own data first.'
    rows = [
        f'| {r.task} | {r.metric} | {"**" * r.ours}{markdown(r.model)}{"**" * r.ours} | {r.value:.3f} | '
        f'{r.low:.3f} to {r.high:.3f} |'
        for r in card.results
    ]
    head = '| task | metric | model | value | 95 % interval |\n|---|---|---|---|---|\n'
    sets = card.sets
    about = [f'{len(sets.classes)} classes, {sets.test_tiles:,} test tiles'] if sets else []
    about += [f'{sets.chips} chips of {sets.chip_px} px'] if sets and sets.chips else []
    return (
        '## Results\n\nZero-shot, on blocks of land that no training saw'
        + (f' ({", ".join(about)})' if about else '')
        + ', with bootstrap intervals; bold is this model.\n\n'
        + head
        + '\n'.join(rows)
    )


def _knows(card: CardContent) -> str:
    """Where what it learned from ends."""
    if card.captions is not None and card.data is None:
        return '- It knows what its captions say, gaps and errors and all: what nobody wrote it was not told.'
    return (
        '- It knows what photos show: not what nobody photographs on the ground, nor what cannot be seen from above.\n'
        '- Photos come from where people take them: cities, sights and rich countries; elsewhere it is less reliable.'
    )


def _limits(exportable: Exportable, card: CardContent) -> str:
    sensor = markdown(card.data.sensor.name) if card.data else 'the sensor it was trained on'
    return f"""\
## Intended use and limits

For zero-shot classification, retrieval and, with the patch head, coarse segmentation of tiles of {sensor}: research and
mapping where a person looks at what comes out.

{_knows(card)}
- Another sensor, another size of pixel, another season or another value range is outside what it was trained for.
- A patch is {exportable.encoder.patch_px} px wide, and geotags are off by metres to tens of metres: do not trust edges.
- It inherits the biases of CLIP, and scores are no probabilities. It is not made for decisions about people, for
  surveillance or for targeting."""
