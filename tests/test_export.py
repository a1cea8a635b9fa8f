"""An exported model is the model: open_clip and transformers make of its files what the encoder makes."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

from grafalign.encoders import ClipSettings, FrozenClip, PhotoBank, SatelliteEncoder, load_clip
from grafalign.errors import GrafalignError
from grafalign.exchange.export import export
from grafalign.exchange.exportable import Exportable
from grafalign.exchange.marker import MARKER
from grafalign.exchange.model_card import CardContent
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from grafalign.training import TrainSettings, load_satellite, train
from grafalign.training.provenance import describe_data
from tests.commands import Command, contents, finish, refused, start
from tests.hub_server import hub
from tests.small_clips import TOWERS

FORMATS = ('open_clip', 'transformers')
TEXTS: list[str] = json.loads((Path(__file__).parent / 'fixtures' / 'texts.json').read_text())


def tuned(clip: FrozenClip, **changes: Any) -> Exportable:
    """An encoder whose every weight has moved away from CLIP's, as after a training."""
    torch.manual_seed(0)
    encoder = SatelliteEncoder(clip, **changes).eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    bands = {3: ('red', 'green', 'blue'), 5: ('red', 'green', 'blue', 'nir', 'swir')}[encoder.bands]
    mean, std = ((*v, *[0.4] * (len(bands) - 3)) for v in (clip.mean, clip.std))
    return Exportable(encoder, clip, bands, mean, std, (0.0, 0.3))


def other(clip: FrozenClip, folder: Path, **changes: Any) -> FrozenClip:
    """A CLIP of another architecture with random weights, in a folder of open_clip's layout."""
    config = json.loads((Path(clip.settings.model) / 'open_clip_config.json').read_text())
    for name, value in changes.items():
        part = config['model_cfg']
        *path, last = name.split('__')
        for key in path:
            part = part[key]
        part[last] = value
    folder.mkdir()
    (folder / 'open_clip_config.json').write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f'local-dir:{folder}')
    save_file(model.state_dict(), folder / 'open_clip_model.safetensors')
    return load_clip(ClipSettings(model=str(folder)))


def variant(name: str, clip: FrozenClip, folder: Path) -> Exportable:
    """The kinds of model that both formats can express."""
    if name == 'quick_gelu':
        return tuned(other(clip, folder, quick_gelu=True))
    if name == 'custom_text':
        return tuned(other(clip, folder, custom_text=True))
    return tuned(clip, **{'plain': {}, 'large': {'size_px': 96}, 'padded': {'size_px': 32, 'fit': 'pad'}}[name])


def stored_tiles(thing: Exportable) -> torch.Tensor:
    """Reflectance, in part outside the value range."""
    size = thing.encoder.size_px
    return 0.4 * torch.rand(2, len(thing.bands), size, size, generator=torch.Generator().manual_seed(3)) - 0.05


def inputs(thing: Exportable, stored: torch.Tensor) -> torch.Tensor:
    """The pixel rule, written out once more."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (thing.mean, thing.std))
    return ((stored / 0.3).clamp(0, 1) - mean) / std


def run_card(folder: Path, stored: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run all Python of a model card inside its folder."""
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {'stored': stored.numpy()}
    for lines in re.findall(r'```python\n(.*?)```', (folder / 'README.md').read_text(), re.DOTALL):
        exec(lines, scope)
    return scope


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('name', ['plain', 'large', 'padded', 'quick_gelu', 'custom_text'])
def test_the_cards_own_lines_give_our_embeddings(
    name: str, kind: Any, clip: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python of the model card, run as it stands, gives the encoder's embeddings of tiles, patches and words."""
    thing = variant(name, clip, tmp_path / 'clip')
    export(thing, CardContent('a'), tmp_path / 'out', kind)
    stored = stored_tiles(thing)
    found = run_card(tmp_path / 'out', stored, monkeypatch)
    with torch.no_grad():
        ours = thing.encoder(inputs(thing, stored))
    torch.testing.assert_close(found['tiles'], ours.image, atol=1e-5, rtol=0)
    torch.testing.assert_close(found['patches'], ours.patches, atol=1e-5, rtol=0)
    words = thing.clip.encode_text(['a photo of a forest', 'a photo of a harbour'])
    torch.testing.assert_close(found['words'], words, atol=1e-5, rtol=0)
    torch.testing.assert_close(found['scores'].sum(-1), torch.ones(2))


@pytest.mark.parametrize('name', ['plain', 'quick_gelu'])
def test_activations_are_told_apart(name: str, clip: FrozenClip, tmp_path: Path) -> None:
    """Both formats name the activation of the weights, in both towers."""
    thing = variant(name, clip, tmp_path / 'clip')
    for kind in FORMATS:
        export(thing, CardContent('a'), tmp_path / kind, kind)  # type: ignore[arg-type]
    theirs = json.loads((tmp_path / 'transformers' / 'config.json').read_text())
    ours = json.loads((tmp_path / 'open_clip' / 'open_clip_config.json').read_text())
    quick = name == 'quick_gelu'
    assert ours['model_cfg'].get('quick_gelu', False) == quick
    for tower in ('text_config', 'vision_config'):
        assert theirs[tower]['hidden_act'] == ('quick_gelu' if quick else 'gelu')


@pytest.mark.parametrize('size_px', [64, 96])
def test_the_weights_load_by_the_name_of_the_architecture(
    size_px: int, builtin: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`create_model_and_transforms(NAME, pretrained=FILE)`, as the card writes it, is the same model."""
    thing = tuned(builtin, size_px=size_px)
    thing = Exportable(thing.encoder, builtin, thing.bands, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), (0.0, 0.3))
    export(thing, CardContent('a'), tmp_path / 'out', 'open_clip')
    found = run_card(tmp_path / 'out', stored_tiles(thing), monkeypatch)
    by_name = (tmp_path / 'out' / 'README.md').read_text().split("create_model_and_transforms(\n    'ViT-tiny-16'")
    assert len(by_name) == 2 and ('force_image_size=96' in by_name[1]) == (size_px == 96)
    images = torch.randn(2, 3, size_px, size_px)
    with torch.no_grad():
        ours = thing.encoder(images).image
        model = found['model'].eval()
        torch.testing.assert_close(model.encode_image(images, normalize=True), ours, atol=1e-5, rtol=0)
    picture = Image.fromarray(np.full((size_px, size_px, 3), 255, np.uint8))
    torch.testing.assert_close(found['preprocess'](picture)[:, 0, 0], torch.tensor([2.5, 3.0, 7.0]))


def test_both_libraries_see_a_picture_alike(clip: FrozenClip, tmp_path: Path) -> None:
    """A picture that the sensor's rule made becomes the same input in open_clip, in transformers and by the rule."""
    thing = tuned(clip)
    for kind in FORMATS:
        export(thing, CardContent('a'), tmp_path / kind, kind)  # type: ignore[arg-type]
    numbers = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(numbers)
    rule = inputs(thing, torch.from_numpy(numbers).permute(2, 0, 1).float() / 255 * 0.3)
    _, _, preprocess = open_clip.create_model_and_transforms(f'local-dir:{tmp_path / "open_clip"}')
    torch.testing.assert_close(preprocess(picture), rule, atol=1e-5, rtol=0)
    processor = CLIPProcessor.from_pretrained(tmp_path / 'transformers')
    found = processor(images=picture, return_tensors='pt')['pixel_values'][0]
    torch.testing.assert_close(found, rule, atol=1e-5, rtol=0)


def test_transformers_gives_the_tokens_of_open_clip(clip: FrozenClip, tmp_path: Path) -> None:
    """Ids and text embeddings are equal for texts of all kinds; what stands behind the end does not count."""
    export(tuned(clip), CardContent('a'), tmp_path / 'out', 'transformers')
    how = {'padding': 'max_length', 'truncation': True, 'return_tensors': 'pt'}
    expected = clip.tokenizer(TEXTS)
    processor = CLIPProcessor.from_pretrained(tmp_path / 'out')
    processor.save_pretrained(tmp_path / 'again')
    folders = [tmp_path / 'out', tmp_path / 'again']
    for tokenizer in (processor.tokenizer, *map(AutoTokenizer.from_pretrained, folders)):
        found = tokenizer(TEXTS, **how)
        ids = found['input_ids'] * found['attention_mask']
        for text, theirs, ours in zip(TEXTS, ids.tolist(), expected.tolist(), strict=True):
            assert theirs == ours, text
    assert tokenizer.decode(expected[TEXTS.index('wow!!! ?!')], skip_special_tokens=True).strip(' !') == 'wow !!! ?'
    model = CLIPModel.from_pretrained(tmp_path / 'out').eval()
    with torch.no_grad():
        vectors = model.text_projection(model.text_model(**found).pooler_output)
    torch.testing.assert_close(functional.normalize(vectors, dim=-1), clip.encode_text(TEXTS), atol=1e-5, rtol=0)


def test_more_bands_than_three_go_to_transformers_only(
    clip: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five bands are refused by the format that cannot express them, and are exact in the other."""
    thing = tuned(clip, bands=5)
    with pytest.raises(GrafalignError, match=r'3 bands only.*nir, swir.*--format transformers'):
        export(thing, CardContent('a'), tmp_path / 'out', 'open_clip')
    assert not list(tmp_path.iterdir())
    export(thing, CardContent('a'), tmp_path / 'out', 'transformers')
    stored = stored_tiles(thing)
    found = run_card(tmp_path / 'out', stored, monkeypatch)
    with torch.no_grad():
        ours = thing.encoder(inputs(thing, stored))
    torch.testing.assert_close(found['tiles'], ours.image, atol=1e-5, rtol=0)
    torch.testing.assert_close(found['patches'], ours.patches, atol=1e-5, rtol=0)


@pytest.mark.parametrize('tower', [n for n in TOWERS if n != 'class token'])
def test_every_other_tower_goes_to_open_clip_only(
    tower: str, clip: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Towers with other pools, blocks or makers are exact in open_clip's layout, and the other one names it."""
    depth = 64 if TOWERS[tower].get('timm_proj') == 'none' else 48
    vision = {'image_size': 64, **TOWERS[tower]}
    thing = tuned(other(clip, tmp_path / 'clip', embed_dim=depth, vision_cfg=vision))
    export(thing, CardContent('a'), tmp_path / 'out', 'open_clip')
    stored = stored_tiles(thing)
    found = run_card(tmp_path / 'out', stored, monkeypatch)
    with torch.no_grad():
        ours = thing.encoder(inputs(thing, stored))
    torch.testing.assert_close(found['tiles'], ours.image, atol=1e-5, rtol=0)
    torch.testing.assert_close(found['patches'], ours.patches, atol=1e-5, rtol=0)
    with pytest.raises(GrafalignError, match=r'cannot express .*--format open_clip'):
        export(thing, CardContent('a'), tmp_path / 'two', 'transformers')


def test_a_timm_tower_of_another_size_is_refused(clip: FrozenClip, tmp_path: Path) -> None:
    """What open_clip cannot build from a file names the sizes, and padding as a way out, which works."""
    siglip = other(clip, tmp_path / 'clip', embed_dim=64, vision_cfg={'image_size': 64, **TOWERS['SigLIP']})
    with pytest.raises(GrafalignError, match=r'for 64 px only and this encoder takes 96 px.*padded'):
        export(tuned(siglip, size_px=96), CardContent('a'), tmp_path / 'out', 'open_clip')
    export(tuned(siglip, size_px=32, fit='pad'), CardContent('a'), tmp_path / 'out', 'open_clip')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'vision_cfg__pool_type': 'avg'}, 'pooled from the patches'),
        ({'vision_cfg__ls_init_value': 0.1}, 'blocks are of another kind'),
        ({'custom_text': True, 'text_cfg__pool_type': 'last'}, 'pooled by last'),
        ({'custom_text': True, 'text_cfg__no_causal_mask': True}, 'not causal'),
        ({'init_logit_bias': -10}, 'logit bias'),
    ],
)
def test_what_clipmodel_cannot_express_names_the_other_format(
    changes: dict[str, Any], words: str, clip: FrozenClip, tmp_path: Path
) -> None:
    """Each such trait is refused with its name, and open_clip's layout takes it."""
    thing = tuned(other(clip, tmp_path / 'clip', **changes))
    with pytest.raises(GrafalignError, match=f'cannot express .*{words}.*--format open_clip'):
        export(thing, CardContent('a'), tmp_path / 'out', 'transformers')
    assert not (tmp_path / 'out').exists() and not list(tmp_path.glob('.*'))
    export(thing, CardContent('a'), tmp_path / 'out', 'open_clip')


def test_an_architecture_that_is_not_the_models_is_noticed(clip: FrozenClip, tmp_path: Path) -> None:
    """Where open_clip would build another model from the files, nothing is written."""
    folder = Path(shutil.copytree(TINY_CLIP_DIR, tmp_path / 'clip'))
    frozen = load_clip(ClipSettings(model=str(folder)))
    config = json.loads((folder / 'open_clip_config.json').read_text())
    config['model_cfg']['vision_cfg']['head_width'] = 64
    (folder / 'open_clip_config.json').write_text(json.dumps(config))
    with pytest.raises(GrafalignError, match='not the model that was exported'):
        export(tuned(frozen), CardContent('a'), tmp_path / 'out', 'open_clip')
    assert not (tmp_path / 'out').exists()


@pytest.fixture(scope='module')
def finished(store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp('runs') / 'naip_image'
    values = {'store': store.path, 'out': out, 'clip': clip.settings, 'steps': 2, 'batch_tiles': 8, 'lr': 1e-3}
    train(TrainSettings.model_validate(values))
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / 'run'))


@pytest.fixture
def report(finished: Path, tmp_path: Path) -> Path:
    """A report.json about that run, in the form that `grafalign evaluate` writes."""
    metadata = json.loads((finished / 'model.json').read_text())

    def number(value: float) -> dict[str, float]:
        return {'value': value, 'low': value - 0.03, 'high': value + 0.03}

    content = {
        'pairs': {'photos': 480},
        'classification': {'frozen_clip': {'accuracy': number(0.1)}, 'mine': {'accuracy': number(0.66)}},
        'retrieval': {'mine': {'map_at_20': number(0.5)}},
        'sets': {'test_tiles': 900, 'classes': ['forest', 'marina']},
        'runs': {'mine': metadata},
    }
    path = tmp_path / 'report.json'
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize('kind', FORMATS)
def test_the_command_exports_a_run(kind: str, run: Path, clip: FrozenClip, tmp_path: Path, command: Command) -> None:
    """The files give the run's own embeddings, and a second export takes the place of the first."""
    for _ in range(2):
        code, err = command('export', run, tmp_path / 'out', '--format', kind)
        assert code == 0, err
    thing = load_satellite(run, clip)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    if kind == 'open_clip':
        model, _, _ = open_clip.create_model_and_transforms(f'local-dir:{tmp_path / "out"}')
        found = model.eval().encode_image(images, normalize=True)
    else:
        theirs = CLIPModel.from_pretrained(tmp_path / 'out').eval()
        found = functional.normalize(theirs.visual_projection(theirs.vision_model(images).pooler_output), dim=-1)
    torch.testing.assert_close(found.detach(), thing.embed_images(images), atol=1e-5, rtol=0)
    held = json.loads((tmp_path / 'out' / MARKER).read_text())
    assert {p.name for p in (tmp_path / 'out').iterdir()} == {MARKER, *held['files']} and held['format'] == kind
    assert {p.name for p in tmp_path.iterdir()} == {'run', 'out'}


def test_bands_keep_their_order_and_their_rule(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path, command: Command, monkeypatch
) -> None:
    """For a run on blue, green, red, the card's rule makes of stored tiles what the run's own rule makes."""
    values = {'store': store.path, 'out': tmp_path / 'run', 'clip': clip.settings, 'steps': 1, 'batch_tiles': 8}
    train(TrainSettings.model_validate({**values, 'bands': ['blue', 'green', 'red']}))
    code, err = command('export', tmp_path / 'run', tmp_path / 'out')
    assert code == 0, err
    pixels = np.stack([store.read_tile(i)[::-1] for i in range(3)]).astype(np.float32)
    scale, offset = (v[:3, ::-1].copy() for v in store.radiometry)
    found = run_card(tmp_path / 'out', torch.from_numpy(pixels), monkeypatch)
    model = load_satellite(tmp_path / 'run', clip)
    ours = model.preprocess(*map(torch.from_numpy, (pixels, scale, offset)))
    theirs = found['to_input'](pixels, scale[:, :, None, None], offset[:, :, None, None])
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    with torch.no_grad():
        vectors = found['model'].encode_image(theirs, normalize=True)
    torch.testing.assert_close(vectors, model.embed_images(ours), atol=1e-5, rtol=0)
    assert '| 1 | blue | 0.0 | 0.3 | 0.40821 |' in (tmp_path / 'out' / 'README.md').read_text()


def test_the_card_says_what_is_known(run: Path, report: Path, store: PairStore, tmp_path: Path, command) -> None:
    """Header and text hold data, licences, recipe, the rule of the pixels and the numbers with their intervals."""
    code, err = command('export', run, tmp_path / 'out', '--results', report, '--licence', 'apache-2.0')
    assert code == 0, err
    card = ModelCard.load(tmp_path / 'out' / 'README.md')
    assert card.data.license == 'apache-2.0' and card.data.library_name == 'open_clip'
    (accuracy, retrieval) = card.data.eval_results
    assert accuracy.metric_value == 0.66 and '0.630 to 0.690' in accuracy.metric_name
    assert retrieval.metric_type == 'map_at_20'
    data = describe_data(store)
    assert card.data.grafalign['photo_licences'] == data.licences  # type: ignore[attr-defined]
    assert card.data.grafalign['store_digest'] == store.digest  # type: ignore[attr-defined]
    for words in (
        '| 1 | red | 0.0 | 0.3 |',
        'never stretch a tile by its own minimum',
        '| classification | accuracy | **mine** | 0.660 | 0.630 to 0.690 |',
        '| classification | accuracy | frozen_clip | 0.100 |',
        f'| train | {data.splits["train"].tiles} |',
        'collections:',
        'Intended use and limits',
    ):
        assert words in card.text, words
    for path in (tmp_path / 'out').iterdir():
        if path.suffix != '.safetensors':
            text = path.read_text()
            assert str(tmp_path) not in text and str(store.path.parent) not in text and str(Path.home()) not in text


def test_a_card_without_results_says_so(run: Path, tmp_path: Path, command: Command) -> None:
    """Without a report the card claims no number, and no licence that nobody gave."""
    code, err = command('export', run, tmp_path / 'out')
    assert code == 0, err
    text = (tmp_path / 'out' / 'README.md').read_text()
    head = yaml.safe_load(text.split('---')[1])
    assert 'No evaluation was given' in text and 'model-index' not in head and 'license' not in head


def test_a_report_of_another_run_is_refused(run: Path, report: Path, tmp_path: Path, command: Command) -> None:
    """Numbers of other runs, files that are no report and missing files are named, and nothing is written."""
    content = json.loads(report.read_text())
    content['runs']['mine']['digest'] = 'other'
    for text, words in ((json.dumps(content), 'says nothing about'), ('[]', 'is damaged'), ('{', 'is damaged')):
        report.write_text(text)
        refused(command('export', run, tmp_path / 'out', '--results', report), report, words)
    missing = tmp_path / 'none.json'
    refused(command('export', run, tmp_path / 'out', '--results', missing), missing, 'No such file')
    assert not (tmp_path / 'out').exists()


def test_a_run_that_cannot_be_exported_is_named(run: Path, tmp_path: Path, command: Command) -> None:
    """Unfinished, damaged or missing runs are one sentence each, and nothing is written."""
    out = tmp_path / 'out'
    weights, metadata = run / 'model.safetensors', run / 'model.json'
    whole, told = weights.read_bytes(), metadata.read_text()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(command('export', run, out), weights, 'train again')
    weights.write_bytes(whole)
    for text in ('{', '{}', '[]'):
        metadata.write_text(text)
        refused(command('export', run, out), metadata, 'train again')
    metadata.write_text(told)
    (run / 'config.yaml').write_text('a: [')
    refused(command('export', run, out), run / 'config.yaml', 'train again')
    metadata.unlink()
    refused(command('export', run, out), run, 'not a finished run')
    refused(command('export', tmp_path / 'none', out), 'none', 'not a finished run')
    assert not out.exists()


def test_nothing_of_others_is_overwritten(run: Path, tmp_path: Path, command: Command) -> None:
    """A folder that holds something else, or an export with something added, is refused and stays as it was."""
    out = tmp_path / 'out'
    assert command('export', run, out)[0] == 0
    (out / 'notes.txt').write_text('mine')
    before = contents(out)
    refused(command('export', run, out), out, 'notes.txt')
    assert contents(out) == before
    before = contents(run)
    refused(command('export', run, run), run, 'not empty')
    assert contents(run) == before
    (tmp_path / 'file').write_text('x')
    refused(command('export', run, tmp_path / 'file'), 'is a file')
    refused(command('export', run, tmp_path / 'new', '--format', 'onnx'), "'onnx'", 'open_clip or transformers')
    refused(command('export', run, tmp_path / 'new', '--pretrained', 'openai'), 'openai', '--model')
    assert not (tmp_path / 'new').exists()


@pytest.mark.slow
def test_a_full_disk_leaves_the_earlier_export(run: Path, tmp_path: Path, command: Command) -> None:
    """Where the weights cannot be written the sentence names the file, and the export that was there is whole."""
    out = tmp_path / 'out'
    assert command('export', run, out)[0] == 0
    before = contents(out)
    limited = ('bash', '-c', 'ulimit -f 2000; exec "$@"', 'bash')  # KiB a file
    refused(finish(start('export', run, out, before=limited)), 'again')
    assert contents(out) == before and {p.name for p in tmp_path.iterdir()} == {'run', 'out'}


def test_a_killed_exports_remains_are_cleared(run: Path, tmp_path: Path, command: Command) -> None:
    """What a killed export left beside the folder is removed, and what it had moved away comes back."""
    out, work = tmp_path / 'out', tmp_path / '.out.part'
    assert command('export', run, out)[0] == 0
    before = contents(out)
    (work / 'new').mkdir(parents=True)
    (work / 'new' / 'half').write_text('half')
    out.rename(work / 'old')
    (run / 'model.json').rename(run / 'model.away')
    refused(command('export', run, out), 'not a finished run')
    (run / 'model.away').rename(run / 'model.json')
    code, err = command('export', run, out)
    assert code == 0, err
    assert contents(out) == before and {p.name for p in tmp_path.iterdir()} == {'run', 'out'}


def hub_environment(monkeypatch: pytest.MonkeyPatch, home: Path, address: str, token: str | None) -> None:
    """Point the Hub's client of the processes started from here to a server and a token."""
    for name in [n for n in os.environ if n.startswith(('HF_', 'HUGGING'))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('HF_HOME', str(home))
    monkeypatch.setenv('HF_ENDPOINT', address)
    if token is not None:
        monkeypatch.setenv('HF_TOKEN', token)


@pytest.mark.slow
def test_an_export_is_uploaded_as_it_is(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--push-to-hub` makes the repository with the user's token and sends every file of the folder."""
    with hub() as server:
        hub_environment(monkeypatch, tmp_path / 'home', server.address, 'hf_secret')
        code, err = finish(start('export', run, tmp_path / 'out', '--push-to-hub', 'me/naip', '--private'))
        assert code == 0, err
        ((authorization, asked),) = server.created
        assert authorization == 'Bearer hf_secret' and (asked['organization'], asked['name']) == ('me', 'naip')
        assert asked.get('visibility') == 'private' or asked.get('private') is True
        assert server.files == contents(tmp_path / 'out')
        card = (tmp_path / 'out' / 'README.md').read_text()
        assert "snapshot_download('me/naip')" in card and '# naip' in card and 'hf_secret' not in card


@pytest.mark.slow
def test_a_hub_that_refuses_is_one_sentence(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that may not write, and a network that is not there, leave the folder and say so."""
    with hub() as server:
        server.status = 403
        hub_environment(monkeypatch, tmp_path / 'home', server.address, 'hf_secret')
        refused(finish(start('export', run, tmp_path / 'out', '--push-to-hub', 'me/naip')), 'me/naip', 'is written')
    refused(finish(start('export', run, tmp_path / 'out', '--push-to-hub', 'me/naip')), 'me/naip', 'network')
    assert (tmp_path / 'out' / MARKER).exists()


def test_an_upload_that_cannot_begin_stops_before_the_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """No token, or a name that is none, is said at once, with nothing written."""
    hub_environment(monkeypatch, tmp_path / 'home', 'http://127.0.0.1:9', None)
    refused(finish(start('export', run, tmp_path / 'out', '--push-to-hub', 'me/naip')), 'hf auth login', 'HF_TOKEN')
    monkeypatch.setenv('HF_TOKEN', 'hf_secret')
    for name in ('naip', 'a/b/c', 'me/na ip', 'me/..'):
        refused(command('export', run, tmp_path / 'out', '--push-to-hub', name), 'NAMESPACE/NAME')
    assert not (tmp_path / 'out').exists()
