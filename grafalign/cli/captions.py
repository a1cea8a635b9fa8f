"""Commands for captions: import them, show and pack what is there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from grafalign.cli.app import Json, Processes, Workers, app, show
from grafalign.errors import InputError

captions_app = typer.Typer(
    help='Caption sets: which texts go with which images.',
    no_args_is_help=True,
    context_settings={'help_option_names': ['-h', '--help']},
)
app.add_typer(captions_app, name='captions')

ModelSpec = Annotated[
    str, typer.Option('--model', help='Run, export, open_clip NAME:TAG or NAME:FILE, transformers folder.')
]
SetFolder = Annotated[Path, typer.Argument(help='Folder of a caption set.')]


def named_columns(given: list[str] | None) -> dict[str, str]:
    """`OURS=THEIRS` pairs of a command line.

    Raises:
        GrafalignError: one has no equals sign.
    """
    pairs = [text.partition('=') for text in given or ()]
    wrong = next((''.join(p) for p in pairs if not p[1] or not p[2]), None)
    if wrong is not None:
        raise InputError(f'--column {wrong} names no column; write OURS=THEIRS, such as text=TEXT.')
    return {ours: theirs for ours, _, theirs in pairs}


@captions_app.command('import')
def import_(
    source: Annotated[
        Path,
        typer.Argument(help='Folder of .tar shards, a table (.parquet, .jsonl, .csv), a caption JSON, a pair store.'),
    ],
    out: Annotated[Path, typer.Argument(help='Folder of the caption set.')],
    form: Annotated[str, typer.Option(help='auto, shards, table, captions or tiles.')] = 'auto',
    images: Annotated[
        Path | None, typer.Option(help="Folder of a table's images; that of the table by default.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help='Name a column: text=TEXT, url=URL, file=PATH, licence=LICENSE ...')
    ] = None,
    kind: Annotated[str | None, typer.Option(help='Who wrote the captions: alt, template, model or human.')] = None,
    licence: Annotated[str | None, typer.Option(help='Licence of images whose source names none.')] = None,
    split: Annotated[str, typer.Option(help='Split of images whose source names none: train, val or test.')] = 'train',
    val: Annotated[
        float, typer.Option(help='Share of the images without a split that go to val.', min=0, max=0.5)
    ] = 0.0,
    uncaptioned: Annotated[bool, typer.Option('--uncaptioned', help='Keep images that have no caption yet.')] = False,
    min_px: Annotated[int, typer.Option(help='Images with a shorter side are refused.', min=1)] = 16,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Make a caption set; images stay where they are.

    Example: grafalign captions import laion/shards sets/web

    Example: grafalign captions import dataset_rsicd.json sets/rsicd --images RSICD_images
    """
    from grafalign.captions.caption_set import KINDS, SPLITS
    from grafalign.captions.import_set import ImportOptions, import_captions

    forms = ('auto', 'shards', 'table', 'captions', 'tiles')
    if form not in forms:
        raise InputError(f'--form {form} is not known; give one of {", ".join(forms)}.')
    if kind is not None and kind not in KINDS:
        raise InputError(f'--kind {kind} is not known; give one of {", ".join(KINDS)}.')
    if split not in SPLITS:
        raise InputError(f'--split {split} is not known; give one of {", ".join(SPLITS)}.')
    options = ImportOptions(form, images, named_columns(column), kind, licence, split, val, uncaptioned, min_px)  # type: ignore[arg-type]
    done = import_captions(source, out, options, workers)
    show(
        {
            'images': done.images,
            'captions': done.captions,
            'distinct captions': done.distinct_captions,
            'rejected': done.rejected,
            'splits': done.splits,
            'reasons': done.reasons,
        },
        str(out),
        as_json,
    )


@captions_app.command('fit-filter')
def fit_filter_(
    labels: Annotated[Path, typer.Argument(help='Labelled kinds of images (YAML); see docs/captions.md.')],
    out: Annotated[Path, typer.Argument(help='Folder of the filter.')],
    model: ModelSpec,
    rate: Annotated[float, typer.Option(help='Largest share of any kind of negatives that may be accepted.')] = 0.01,
    prior: Annotated[float, typer.Option(help='Share of remote sensing among what will come.')] = 0.001,
    words: Annotated[bool, typer.Option('--words', help='Judge by prompts; labels only calibrate them.')] = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Fit a filter that tells remote sensing from other images, and say per kind what it lets through.

    Example: grafalign captions fit-filter kinds.yaml filter --model ViT-B-16:openai --rate 0.005
    """
    from grafalign import console
    from grafalign.config import load_settings
    from grafalign.curation import FilterLabels, fit_filter
    from grafalign.curation.page import rates_table
    from grafalign.models import load_model

    settings = load_settings(labels, FilterLabels)
    found = fit_filter(settings, load_model(model), out, rate, prior, by_words=words, workers=workers)
    if as_json:
        print(found.marker.model_dump_json())
        return
    for name, question in found.marker.questions.items():
        head, rows = rates_table(question)
        console.table(f'{name}: recall {question.recall:.3f}, precision {question.precision:.3f}', head, rows)
    console.log(f'{out / "page.html"} shows curves and mistakes')


@captions_app.command('filter')
def filter_(
    captions: SetFolder,
    out: Annotated[Path, typer.Argument(help='Folder of the filtered set.')],
    web_filter: Annotated[Path, typer.Option('--filter', help='Filter of `captions fit-filter`.')],
    model: ModelSpec,
    keywords: Annotated[
        str | None, typer.Option(help='Look only at images with a keyword: shipped, or a YAML list. For recall only.')
    ] = None,
    workers: Workers = None,
    processes: Processes = None,
    as_json: Json = False,
) -> None:
    """Keep the images of a set that are remote sensing; images stay where they are.

    Example: grafalign captions filter sets/web sets/rs --filter filter --model ViT-B-16:openai
    """
    from grafalign.captions import CaptionSet
    from grafalign.config import read_yaml
    from grafalign.curation import filter_set, load_filter
    from grafalign.curation.apply import features_to_filter, shipped_keywords
    from grafalign.launch import launch
    from grafalign.models import load_model
    from grafalign.processes import this_team

    listed = None
    if keywords is not None:
        try:
            listed = shipped_keywords() if keywords == 'shipped' else read_yaml(Path(keywords))
        except (OSError, ValueError) as error:
            raise InputError(f'{keywords} cannot be read ({error}); give a YAML list of words, or shipped.') from None
        if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
            raise InputError(f'{keywords} holds no list of words; write one a line: - aerial.')
    launch(processes)
    pictures, loaded, team = CaptionSet(captions), load_model(model), this_team()
    web = load_filter(web_filter, loaded)
    if team.count > 1:
        features_to_filter(pictures, loaded, listed, workers, team=team)
        if not team.first:
            return
    done = filter_set(pictures, out, loaded, web, keywords=listed, workers=workers)
    show({name.replace('_', ' '): value for name, value in asdict(done).items()}, str(out), as_json)


@captions_app.command('leaks')
def leaks_(
    captions: SetFolder,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help='NAME=SPEC of a set that tests are made on: a caption set, or as `evaluate --data` takes it.'
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help='Write the set without copies and leaks here.')] = None,
    model: Annotated[str | None, typer.Option(help='Also compare embeddings of this model.')] = None,
    closer_than: Annotated[float, typer.Option(help='Cosine of near copies.', min=0, max=1)] = 0.97,
    workers: Workers = None,
    processes: Processes = None,
    as_json: Json = False,
) -> None:
    """Find copies inside a caption set and in sets that tests are made on, turned and mirrored ones too.

    Example: grafalign captions leaks sets/web --against rsicd=rsicd:data/RSICD@test --out sets/clean
    """
    from grafalign.captions import CaptionSet
    from grafalign.curation import find_copies
    from grafalign.curation.copies import embed_sets
    from grafalign.launch import launch
    from grafalign.models import load_model
    from grafalign.processes import this_team

    loaded, pictures = None, CaptionSet(captions)
    if model is not None:
        launch(processes)
        loaded, team = load_model(model), this_team()
        if team.count > 1:
            embed_sets(pictures, against or (), loaded, workers, team)
            if not team.first:
                return
    done = find_copies(pictures, against or (), out, loaded, closer_than, workers)
    summary: dict[str, Any] = {'images': done.images, 'copies inside': done.inside}
    summary |= {'also in': done.leaks} if done.leaks else {}
    show(summary if done.kept is None else summary | {'kept': done.kept}, str(out or captions), as_json)


@captions_app.command('hold-out')
def hold_out_(
    captions: SetFolder,
    out: Annotated[Path, typer.Argument(help='Folder of the set without them.')],
    kinds: Annotated[Path, typer.Argument(help='Kinds and their synonyms (YAML); see docs/captions.md.')],
    landmarks: Annotated[
        Path | None, typer.Option(help='Folder of `captions landmarks`: images with such a landmark leave, too.')
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help='Table of image_id and kind, to count what stays behind unnoticed.')
    ] = None,
    as_json: Json = False,
) -> None:
    """Leave kinds of things out of a set: every image that has one by its landmarks or its captions.

    Example: grafalign captions hold-out sets/tiles sets/unseen kinds.yaml --landmarks landmarks
    """
    from grafalign.captions import CaptionSet
    from grafalign.config import load_settings
    from grafalign.curation.hold_out import HoldOutSettings, hold_out

    done = hold_out(CaptionSet(captions), out, load_settings(kinds, HoldOutSettings), landmarks, truth)
    counts = {name.replace('_', ' '): value for name, value in asdict(done).items() if value is not None}
    show(counts, str(out), as_json)


@captions_app.command('landmarks')
def landmarks_(
    captions: SetFolder,
    out: Annotated[Path, typer.Argument(help='Folder of the landmarks.')],
    osm: Annotated[list[Path] | None, typer.Option(help='OpenStreetMap extract (.osm.pbf).')] = None,
    overture: Annotated[list[Path] | None, typer.Option(help='Parquet of Overture Maps, or a folder of it.')] = None,
    own: Annotated[list[Path] | None, typer.Option(help='Own objects: GeoParquet, GeoJSON or GeoPackage.')] = None,
    keep_younger: Annotated[
        bool, typer.Option('--keep-younger', help='Keep what was put on the map after the scene was taken.')
    ] = False,
    as_json: Json = False,
) -> None:
    """Find what a map knows on the images of a set: kind, size, position, and whether it can be seen.

    Example: grafalign captions landmarks sets/tiles landmarks --osm region.osm.pbf
    """
    from grafalign.captions import CaptionSet
    from grafalign.captions.landmarks.find import Maps, find_landmarks

    maps = Maps(tuple(osm or ()), tuple(overture or ()), tuple(own or ()))
    done = find_landmarks(CaptionSet(captions), maps, out, keep_younger=keep_younger)
    counts = {'images with landmarks': done.with_landmarks, 'landmarks': done.landmarks, 'visible': done.visible}
    reasons = {'not visible': done.reasons, 'unread': done.unread, 'licences': done.licences}
    show({**counts, **reasons}, str(out), as_json)


@captions_app.command('write')
def write_(
    captions: SetFolder,
    landmarks: Annotated[Path, typer.Argument(help='Folder of `captions landmarks`.')],
    out: Annotated[Path, typer.Argument(help='Folder of the captioned set.')],
    per_image: Annotated[int, typer.Option(help='Captions of an image, by templates.', min=1, max=20)] = 1,
    names: Annotated[bool, typer.Option('--names', help='Say names, which nobody can see from above.')] = False,
    positions: Annotated[
        bool, typer.Option('--positions', help='Say where things lie; train without augment.symmetry then.')
    ] = False,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help='OpenAI-compatible endpoint of a vision-language model that writes instead of templates. Pictures and '
            'landmarks go there. Its key is read from GRAFALIGN_ENDPOINT_KEY.'
        ),
    ] = None,
    endpoint_model: Annotated[str | None, typer.Option(help="The model's name there.")] = None,
    most_records: Annotated[int, typer.Option(help='Landmarks that go with a picture.', min=1, max=100)] = 12,
    abreast: Annotated[int, typer.Option(help='Requests at a time.', min=1, max=256)] = 4,
    explained: Annotated[
        bool, typer.Option('--explain', help='Ask for twenty captions, and tell what all will cost.')
    ] = False,
    prices: Annotated[
        tuple[float, float] | None, typer.Option(help='Prices of a million tokens sent and of a million written.')
    ] = None,
    as_json: Json = False,
) -> None:
    """Write captions for the images of a set from their landmarks, by templates or by a model.

    Example: grafalign captions write sets/tiles landmarks sets/captioned --per-image 3

    Example: grafalign captions write sets/tiles landmarks out --endpoint http://localhost:8000 --endpoint-model qwen
    """
    from grafalign.captions import CaptionSet
    from grafalign.captions.writing.ask import explain
    from grafalign.captions.writing.endpoint import EndpointOptions
    from grafalign.captions.writing.write import TemplateOptions, write_captions
    from grafalign.web.chat import Chat

    if (endpoint is None) != (endpoint_model is None):
        raise InputError('--endpoint and --endpoint-model go together; give both, or neither for templates.')
    if endpoint is None and explained:
        raise InputError('--explain tells what an endpoint will cost; templates cost nothing.')
    chat = None if endpoint is None or endpoint_model is None else Chat(endpoint, endpoint_model)
    asking = EndpointOptions(most_records, names, abreast)
    images = CaptionSet(captions)
    if explained and chat is not None:
        cost = asdict(explain(images, landmarks, out, chat, asking, prices))
        show({name.replace('_', ' '): value for name, value in cost.items() if value is not None}, str(out), as_json)
        return
    done = write_captions(images, landmarks, out, TemplateOptions(per_image, names, positions), chat, asking)
    summary: dict[str, Any] = {
        'images': done.marker.images,
        'captions': done.marker.captions,
        'distinct captions': done.marker.distinct_captions,
        'kinds of captions': done.marker.kinds,
        'rejected': done.marker.reasons,
    }
    if chat is not None:
        summary |= {'retried': done.retried, 'by template after two tries': done.fell_back}
        summary |= {'tokens sent': done.prompt_tokens, 'tokens written': done.answer_tokens}
    for name, found in (('first answers', done.first), ('kept', done.faithful), ('shuffled', done.shuffled)):
        if found is not None:
            summary |= {name: asdict(found)}
    show(summary, str(out), as_json)


@captions_app.command('describe')
def describe_(
    model: Annotated[str, typer.Argument(help='Run that was trained with text_tower: decoder.')],
    source: Annotated[str, typer.Argument(help='Folder of pictures, or pair store.')],
    out: Annotated[Path, typer.Argument(help='Table of captions (.jsonl), which `captions import` reads.')],
    beam: Annotated[int, typer.Option(help='Captions that are followed at a time; 1 is greedy.')] = 1,
    nucleus: Annotated[
        float | None, typer.Option(help='Draw each token from the likeliest ones that have this share.')
    ] = None,
    most_tokens: Annotated[int | None, typer.Option(help='Longest caption, in tokens.')] = None,
    seed: Annotated[int, typer.Option(help='Of what is drawn.')] = 0,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Write a caption for each picture with a model that learned to write.

    Example: grafalign captions describe runs/mammut tiles captions.jsonl --beam 4
    """
    from grafalign.encoders.captioning import CaptionOptions
    from grafalign.models import load_model
    from grafalign.search.describe import describe

    options = CaptionOptions(beam, nucleus, most_tokens, seed)
    done = describe(load_model(model), source, out, options, workers)
    show(asdict(done), str(out), as_json)


@captions_app.command('pack')
def pack_(
    captions: SetFolder,
    out: Annotated[Path, typer.Argument(help='Folder of the shards.')],
    per_shard: Annotated[int, typer.Option(help='Images in a shard.', min=1, max=99_999)] = 10_000,
    split: Annotated[str | None, typer.Option(help='Images of this split only.')] = None,
    as_json: Json = False,
) -> None:
    """Copy a caption set into WebDataset shards with a Parquet table beside each.

    Example: grafalign captions pack sets/web shards --split train
    """
    from grafalign.captions import CaptionSet
    from grafalign.captions.pack import pack

    show(asdict(pack(CaptionSet(captions), out, per_shard, split)), str(out), as_json)
