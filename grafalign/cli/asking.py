"""The command that answers questions about a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grafalign.cli.app import Json, app, show
from grafalign.cli.maps import AnyGsd, Bands, Clip, ValueRange, field_of, field_options, holds_field, temporary_field
from grafalign.errors import InputError


@app.command()
def ask(
    scene: Annotated[str, typer.Argument(help='Field, or a scene or tile as `grafalign field` takes it.')],
    question: Annotated[str, typer.Argument(help='In English, or a program: its JSON, or a .json file.')],
    out: Annotated[Path, typer.Option(help='Folder for answer.json, evidence.parquet and answer.html.')],
    words: Annotated[
        list[str] | None,
        typer.Option(
            help="Classes that the question's words are among: words, classes.yaml, or words.npz. By default pixels "
            'are compared with common words for land.'
        ),
    ] = None,
    min_area: Annotated[float, typer.Option(help='Smallest object, in square metres.', min=0)] = 0.0,
    conventions: Annotated[
        str, typer.Option(help='What small, square and next to mean: plain, or rsvqa (in units of EPSG:3857).')
    ] = 'plain',
    endpoint: Annotated[
        str | None,
        typer.Option(
            help='OpenAI-compatible endpoint that turns questions into programs where the templates do not; only the '
            'question goes there. Its key is read from GRAFALIGN_ENDPOINT_KEY.'
        ),
    ] = None,
    endpoint_model: Annotated[str | None, typer.Option(help='Name of the model there.')] = None,
    model: Annotated[str | None, typer.Option(help="The model; a field's own by default.")] = None,
    keep_field: Annotated[
        Path | None, typer.Option('--field', help='Keep the field of the scene in this folder.')
    ] = None,
    bands: Bands = None,
    value_range: ValueRange = None,
    any_gsd: AnyGsd = False,
    clip: Clip = None,
    as_json: Json = False,
) -> None:
    """Answer a question about a scene, with the polygons, numbers and thresholds that the answer rests on.

    Example: grafalign ask runs/field "How many quarries are next to a forest?" --out runs/answer

    Example: grafalign ask runs/field program.json --words classes.yaml --min-area 500 --out runs/answer
    """
    import shutil

    from grafalign import console
    from grafalign.errors import naming_full_disk
    from grafalign.fields import open_field
    from grafalign.maps import load_words
    from grafalign.models import load_model
    from grafalign.questions import ask as answer_question
    from grafalign.questions import conventions_of, program_of
    from grafalign.questions.endpoint import Endpoint
    from grafalign.questions.language import find_words
    from grafalign.questions.look import class_numbers

    meaning = conventions_of(conventions)
    if (endpoint is None) != (endpoint_model is None):
        raise InputError('--endpoint and --endpoint-model go together; give both, or none of them.')
    server = Endpoint(endpoint, endpoint_model) if endpoint is not None and endpoint_model is not None else None
    program = program_of(question, None if server is None else server.translate)
    content = None if words is None else load_words(words)
    if content is not None:
        class_numbers(find_words(program), content.names)  # before minutes of encoding
    options = field_options(None, None, None, bands, value_range, 'float16', 32, any_gsd)
    folder = field_of(scene, keep_field or temporary_field(out, scene, model, options), model, clip, options)
    field = open_field(folder)
    loaded = load_model(model or field.marker.model, clip)
    field.check_model(loaded.digest, loaded.name)
    with naming_full_disk(out):
        given = answer_question(field, loaded, question, program, out, meaning, content=content, min_area_m2=min_area)
    if not holds_field(scene) and keep_field is None:
        shutil.rmtree(folder)
    steps = [(step.text, meaning.spelled(step.value, step.unit)) for step in given.steps]
    if as_json:
        listed = [{'step': text, 'result': result} for text, result in steps]
        show({'answer': given.text, 'value': given.value, 'unit': given.unit, 'steps': listed}, str(out), as_json)
        return
    console.table(str(out / 'answer.html'), ('step', 'result'), [*steps, ('answer', given.text)])


@app.command('evaluate-questions')
def evaluate_questions(
    folder: Annotated[Path, typer.Argument(help='RSVQA LR, HR or xBEN, as it is published.')],
    model: Annotated[str, typer.Option(help='Run, export, open_clip NAME:TAG or NAME:FILE, GRAFT .ckpt.')],
    out: Annotated[Path, typer.Option(help='Folder for results.json, answers.csv and the fields of the pictures.')],
    split: Annotated[str, typer.Option(help='train, val or test; of HR test_phili, too.')] = 'test',
    words: Annotated[list[str] | None, typer.Option(help='Classes that all words of the questions are among.')] = None,
    min_area: Annotated[float, typer.Option(help='Smallest object, in square metres.', min=0)] = 0.0,
    sample: Annotated[int | None, typer.Option(help='Only so many questions, drawn by chance.', min=2)] = None,
    seed: Annotated[int, typer.Option(help='Of the sample, and of which picture stands for which.', min=0)] = 0,
    bands: Bands = None,
    value_range: ValueRange = None,
    any_gsd: AnyGsd = False,
    clip: Clip = None,
    as_json: Json = False,
) -> None:
    """Answer RSVQA by programs, beside the commonest answers and those about other pictures.

    Example: grafalign evaluate-questions data/RSVQA_LR --model runs/patch --out runs/rsvqa --sample 1000
    """
    import shlex
    import sys
    from dataclasses import asdict

    from grafalign import console
    from grafalign.errors import naming_full_disk
    from grafalign.maps import load_words
    from grafalign.models import load_model
    from grafalign.questions.evaluate_set import evaluate_questions as run
    from grafalign.questions.rsvqa import load_questions

    questions = load_questions(folder, split)
    train = questions
    if split != 'train':
        try:
            train = load_questions(folder, 'train')
        except InputError as error:
            console.log(f'{error} The commonest answers are those of {split} itself.')
    content = None if words is None else load_words(words)
    loaded = load_model(model, clip)
    with naming_full_disk(out):
        found = run(
            questions,
            train,
            loaded,
            model,
            out,
            options=field_options(None, None, None, bands, value_range, 'float16', 32, any_gsd),
            content=content,
            min_area_m2=min_area,
            sample=sample,
            seed=seed,
            command=shlex.join(['grafalign', *sys.argv[1:]]),
        )
    if as_json:
        show(asdict(found), str(out), as_json)
        return
    rows = [
        (name, f'{count:,}', *(f'{of.by_type[name]:.3f}' for of in (found.programs, found.shuffled, found.blind)))
        for name, count in found.questions.items()
    ]
    total = f'{sum(found.questions.values()):,}'
    for name, key in (('AA', 'aa'), ('OA', 'oa'), ('OA without counts and areas', 'non_numeric')):
        values = [asdict(of)[key] for of in (found.programs, found.shuffled, found.blind)]
        rows.append((name, total, *('' if value is None else f'{value:.3f}' for value in values)))
    console.table(f'{folder} ({split})', ('type', 'questions', 'programs', 'shuffled', 'blind'), rows)
    if found.not_understood:
        console.log(f'{found.not_understood:,} questions fit no template, and count as wrong')
