"""MaMMUT trains exactly in micro-batches and processes, resumes to the bit, and is a model that also writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import DistributedType
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from grafalign.encoders import FrozenClip
from grafalign.encoders.captioning import CaptionOptions
from grafalign.encoders.mammut import marked_tokenizer
from grafalign.encoders.text_tower import TEXT_WEIGHTS
from grafalign.errors import DamagedError, InputError, StaleError
from grafalign.exchange import publish
from grafalign.models import load_model
from grafalign.training import TrainSettings, load_satellite, train
from grafalign.training.accelerator import make_accelerator
from grafalign.training.data import PairSteps, Share
from grafalign.training.gather_data import TrainingData, gather_data
from grafalign.training.loop import fit
from grafalign.training.mammut import MammutTask
from grafalign.training.task import viewed
from grafalign.training.token_steps import TokenSteps
from grafalign.training.trainer import refuse_sharding
from tests.caption_world import COLOURS, captioned_set
from tests.caption_world import settings as caption_settings
from tests.training_world import kill_at_steps, run_processes
from tests.two_passes import contrast, gradients


@pytest.fixture(scope='module')
def web(tmp_path_factory: pytest.TempPathFactory, clip: FrozenClip) -> Path:
    """A set of 24 pictures with 12 distinct texts, two an image, and its bank."""
    return captioned_set(tmp_path_factory.mktemp('web'), clip)


def settings(clip: FrozenClip, web: Path, out: Path = Path('no/run'), **changes: object) -> TrainSettings:
    """A short training of a MaMMUT."""
    ours: dict[str, object] = {'data': web, 'text_tower': 'decoder', 'photo_to_tile': 1.0, 'learn_tau': True}
    return caption_settings(clip, out, **(ours | changes))


def steps_of(
    data: TrainingData, clip: FrozenClip, wanted: TrainSettings, task: MammutTask, micro_batch: int | None
) -> TokenSteps:
    """The steps of a training in one process."""
    pairs = PairSteps(data.sources, wanted, Share(), micro_batch, 4, size_px=data.sensor.size_px)
    return TokenSteps(pairs, data.texts(), marked_tokenizer(clip, task.text), captions=True)


def start(clip: FrozenClip, data: TrainingData, wanted: TrainSettings, dropout: float) -> MammutTask:
    """A task in double precision whose towers drop a share of what they say."""
    torch.manual_seed(0)
    task = MammutTask.start(clip, data.sensor, wanted).double()
    if dropout:
        task.text.ln_final = nn.Sequential(task.text.ln_final, nn.Dropout(dropout))
        task.encoder.visual.ln_post = nn.Sequential(task.encoder.visual.ln_post, nn.Dropout(dropout))
    return task.train()


def naive(task: MammutTask, batches: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Tensor]]:
    """The same from one graph over all images, texts and captions."""
    task.zero_grad()
    images, texts, captions, tokens = [], [], torch.zeros((), dtype=torch.float64), 0
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        count, words = batch['own'].tolist()
        found = task.encoder(viewed(task.preprocess, batch, task.settings.augment))
        images.append(found.image[:count])
        texts.append(task.text(batch['tokens'])[:words])
        seen = task.text.look(task.encoder.visual.ln_post(found.tokens))
        captions = captions + task.text.caption_loss(batch['captions'], seen, batch['captions_of'])
        tokens += int((batch['captions'][:, 1:] >= 0).sum())
    v, t = torch.cat(images), torch.cat(texts)
    loss = contrast(task, v, t, *batches[0]['whole']) + task.settings.caption_weight * captions / tokens
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('form', ['softmax', 'focal'])
@pytest.mark.parametrize(('micro_batch', 'dropout', 'weight'), [(10, 0.3, 1.0), (4, 0.0, 2.0), (3, 0.3, 0.5)])
def test_micro_batches_have_the_gradient_of_the_whole_batch(
    form: str, micro_batch: int, dropout: float, weight: float, web: Path, clip: FrozenClip
) -> None:
    """Encoder, decoder, temperature and bias; captions count by tokens of the whole batch, in double precision."""
    wanted = settings(clip, web, form=form, tau=0.3, caption_weight=weight, bias=-2.0)
    data = gather_data(wanted, clip)
    task = start(clip, data, wanted, dropout)
    steps = steps_of(data, clip, wanted, task, micro_batch)
    batches = [steps[n] for n in range(steps.micro_batches)]
    if dropout:
        task.encoder.tower.token_norm = lambda: task.encoder.visual.ln_post  # type: ignore[method-assign]
    loss, found = gradients(task, batches)
    expected_loss, expected = naive(task, batches)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-11, atol=1e-12)
    assert set(found) == set(expected)
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-11 * largest, msg=name)


def test_every_caption_of_a_step_is_written_once_from_its_own_image(web: Path, clip: FrozenClip) -> None:
    """Whatever the micro-batches, and as many as there are pairs."""
    wanted = settings(clip, web)
    data = gather_data(wanted, clip)
    task = start(clip, data, wanted, 0)
    tokenizer = marked_tokenizer(clip, task.text)
    for micro_batch in (10, 3):
        steps = steps_of(data, clip, wanted, task, micro_batch)
        written = set()
        for number in range(steps.micro_batches):
            batch = steps[number]
            images = number * micro_batch + batch['captions_of']
            for row, image in zip(batch['captions'].tolist(), images.tolist(), strict=True):
                written.add((image, tokenizer.decode(row)))
        texts = data.texts().take(batch['candidates'].numpy())
        assert written == {(i, texts[j]) for i, j in batch['whole'].T.tolist()}


def test_the_loop_takes_the_steps_of_the_whole_batch_whatever_the_micro_batch(web: Path, clip: FrozenClip) -> None:
    """With what is kept of the last micro-batch between the passes, and dropout that is drawn once."""
    ends = []
    for micro_batch in (None, 3):
        wanted = settings(clip, web, caption_weight=2.0, micro_batch=micro_batch or 10)
        data = gather_data(wanted, clip)
        task = start(clip, data, wanted, 0)
        steps = steps_of(data, clip, wanted, task, micro_batch)
        log = fit(task, steps, 6, 1e-4, wanted, make_accelerator('no'))
        ends.append((log, {k: v.clone() for k, v in task.state_dict().items()}))
    (first, weights), (second, others) = ends
    assert [e['loss'] for e in first] == pytest.approx([e['loss'] for e in second], rel=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(('processes', 'micro_batch'), [(2, 2), (4, 2)])
def test_processes_give_what_one_gives(
    processes: int, micro_batch: int, web: Path, clip: FrozenClip, tmp_path: Path
) -> None:
    """Losses and what both towers say agree to the rounding of single precision."""
    alone = settings(clip, web, tmp_path / 'alone', micro_batch=10)
    together = settings(clip, web, tmp_path / 'together', micro_batch=micro_batch)
    run_processes(alone, tmp_path / 'alone.yaml')
    run_processes(together, tmp_path / 'together.yaml', processes)
    models = [load_satellite(tmp_path / run) for run in ('together', 'alone')]
    ours, theirs = [m.clip.encode_text([f'a {colour}' for colour in COLOURS]) for m in models]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    logs = [
        [json.loads(line) for line in (tmp_path / run / 'log.jsonl').read_text().splitlines()]
        for run in ('together', 'alone')
    ]
    for key in ('loss', 'contrastive_loss', 'tau'):
        assert [e[key] for e in logs[0]] == pytest.approx([e[key] for e in logs[1]], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(('processes', 'kills'), [(1, 10), (2, 10)])
def test_killed_trainings_end_with_the_same_bits(
    processes: int, kills: int, web: Path, clip: FrozenClip, tmp_path: Path
) -> None:
    """A training goes on where its checkpoint was: encoder, decoder, temperature, moments."""
    changes: dict[str, object] = {'steps': 40, 'checkpoint_every': 2, 'micro_batch': 3, 'ema': 0.9}
    run_processes(settings(clip, web, tmp_path / 'whole', **changes), tmp_path / 'whole.yaml', processes)
    killed = settings(clip, web, tmp_path / 'killed', **changes)
    kill_at_steps(killed, tmp_path / 'killed.yaml', processes, kills)
    run_processes(killed, tmp_path / 'killed.yaml', processes)
    for name in ('model.safetensors', TEXT_WEIGHTS):
        whole, other = (load_file(tmp_path / run / name) for run in ('whole', 'killed'))
        assert all(torch.equal(other[key], value) for key, value in whole.items())


@pytest.fixture(scope='module')
def run(web: Path, clip: FrozenClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run long enough to learn by heart what 24 pictures show."""
    out = tmp_path_factory.mktemp('mammut') / 'run'
    train(settings(clip, web, out, steps=80, lr=3e-3, batch_tiles=19, log_every=40, validate_every=80))
    return out


def test_a_run_embeds_and_writes(run: Path, web: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """Losses fall, validation sees captions, texts have vectors of their own, and captions are those of the set."""
    log = [json.loads(line) for line in (run / 'log.jsonl').read_text().splitlines()]
    assert log[-1]['caption_loss'] < log[0]['caption_loss'] and log[-1]['contrastive_loss'] < log[0]['contrastive_loss']
    assert {'cider', 'distinct_captions', 'image_text@1'} <= set(log[-1])
    model = load_model(str(run))
    assert abs(np.asarray(model.embed_texts(['a red field'])) @ clip.encode_text(['a red field']).numpy().T) < 0.999
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    known = {word for colour in COLOURS for word in f'a {colour} seen from above'.split()}
    for options in (CaptionOptions(), CaptionOptions(beam=4), CaptionOptions(nucleus=0.9)):
        written = model.write_captions(pixels, options)
        assert len(written) == 3 and all(text for text in written)
        if options.nucleus is None:
            assert {word for text in written for word in text.split()} <= known


def test_captions_are_written_on_a_command_line(
    run: Path, web: Path, tmp_path: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a folder of pictures, as a table that `captions import` reads; a beam of 0 is one sentence."""
    pictures = web.parent / 'pictures'
    code, _ = command('captions', 'describe', run, pictures, tmp_path / 'described.jsonl', '--beam', 2, '--json')
    rows = [json.loads(line) for line in (tmp_path / 'described.jsonl').read_text().splitlines()]
    assert code == 0 and len(rows) == 24 and all(row['captions'] and row['image'] for row in rows)
    code, _ = command('captions', 'import', tmp_path / 'described.jsonl', tmp_path / 'set', '--images', pictures)
    assert code == 0
    code, error = command('captions', 'describe', run, pictures, tmp_path / 'none.jsonl', '--beam', 0)
    assert code != 0 and 'beam of 0' in error and not (tmp_path / 'none.jsonl').exists()
    code, error = command('captions', 'describe', clip_folder(), pictures, tmp_path / 'none.jsonl')
    assert code != 0 and 'writes no captions' in error


def clip_folder() -> str:
    """A model that only embeds."""
    from grafalign.sandbox import TINY_CLIP_DIR

    return str(TINY_CLIP_DIR)


def test_an_export_has_open_clips_names(run: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """Those that open_clip 4 gives a `mammut`, of the same shapes; its folder is refused here with a sentence."""
    publish(run, tmp_path / 'export')
    config = json.loads((tmp_path / 'export' / 'open_clip_config.json').read_text())['model_cfg']
    weights = load_file(tmp_path / 'export' / 'open_clip_model.safetensors')
    decoder = config['multimodal_cfg']
    width, layers = decoder['width'], decoder['layers']
    assert config['vision_cfg']['output_tokens'] and 'text_cfg' not in config
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert shapes['map_viz2txt_kv'] == (config['vision_cfg']['width'], width)
    assert shapes['text.lm_head'] == (width, decoder['vocab_size'])
    assert shapes['text.text_projection'] == (width, config['embed_dim'])
    assert shapes['text.positional_embedding'] == (decoder['context_length'], width)
    plain = {'text.token_embedding.weight', 'text.ln_final.weight', 'text.ln_final.bias', 'logit_scale'}
    parts = ('ln_1.weight', 'attn.in_proj_weight', 'attn.out_proj.bias', 'ln_2.bias', 'mlp.c_fc.weight')
    for number in range(layers):
        plain |= {f'text.resblocks.{number}.{part}' for part in parts}
    for number in range(-(-layers // decoder['cross_attn_ratio'])):
        plain |= {f'text.cross_attn.{number}.{part}' for part in (*parts, 'ln_1_kv.weight')}
    assert plain <= set(weights)
    assert all(k.startswith(('visual.', 'text.', 'map_viz2txt_kv', 'logit_scale')) for k in weights)
    assert 'open_clip 4' in (tmp_path / 'export' / 'README.md').read_text()
    with pytest.raises(InputError, match='is a MaMMUT'):
        load_model(str(tmp_path / 'export'))
    with pytest.raises(InputError, match='--format open_clip'):
        publish(run, tmp_path / 'other', 'transformers')


def test_an_exports_weights_compute_what_the_run_does(run: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """By a reference that knows nothing of ours: torch's attention, pads where CLIP's tokenizer puts them."""
    publish(run, tmp_path / 'export')
    w = load_file(tmp_path / 'export' / 'open_clip_model.safetensors')
    decoder = json.loads((tmp_path / 'export' / 'open_clip_config.json').read_text())['model_cfg']['multimodal_cfg']
    tokens = clip.tokenizer(['a red field seen from above', 'a blue lake'])
    x = w['text.token_embedding.weight'][tokens] + w['text.positional_embedding'][: tokens.shape[1]]
    for number in range(decoder['layers']):
        part = {
            k.removeprefix(f'text.resblocks.{number}.'): v for k, v in w.items() if f'text.resblocks.{number}.' in k
        }
        normed = functional.layer_norm(x, x.shape[-1:], part['ln_1.weight'], part['ln_1.bias'])
        attention = nn.MultiheadAttention(decoder['width'], decoder['heads'], batch_first=True)
        attention.load_state_dict({k.removeprefix('attn.'): v for k, v in part.items() if k.startswith('attn.')})
        x = x + attention(normed, normed, normed, key_padding_mask=tokens == decoder['pad_id'])[0]
        normed = functional.layer_norm(x, x.shape[-1:], part['ln_2.weight'], part['ln_2.bias'])
        inner = functional.gelu(functional.linear(normed, part['mlp.c_fc.weight'], part['mlp.c_fc.bias']))
        x = x + functional.linear(inner, part['mlp.c_proj.weight'], part['mlp.c_proj.bias'])
    x = functional.layer_norm(x, x.shape[-1:], w['text.ln_final.weight'], w['text.ln_final.bias'])
    real = (tokens != decoder['pad_id'])[..., None]
    vectors = functional.normalize((x * real).sum(1) / real.sum(1) @ w['text.text_projection'], dim=-1)
    ours = load_model(str(run)).embed_texts(['a red field seen from above', 'a blue lake'])
    np.testing.assert_allclose(np.asarray(ours), vectors.detach().numpy(), atol=1e-5)


def test_missing_weights_and_another_tokenizer_are_one_sentence(
    web: Path, clip: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without its decoder is damaged; with a tokenizer that gives other ids it is not what was trained."""
    train(settings(clip, web, tmp_path / 'run'))
    kept = (tmp_path / 'run' / TEXT_WEIGHTS).read_bytes()
    (tmp_path / 'run' / TEXT_WEIGHTS).unlink()
    with pytest.raises(DamagedError, match='train again'):
        load_satellite(tmp_path / 'run')
    (tmp_path / 'run' / TEXT_WEIGHTS).write_bytes(kept)
    marker = json.loads((tmp_path / 'run' / 'model.json').read_text())
    (tmp_path / 'run' / 'model.json').write_text(json.dumps(marker | {'tokenizer': 'anothers'}))
    with pytest.raises(StaleError, match='another tokenizer'):
        load_satellite(tmp_path / 'run')


@pytest.mark.parametrize('tower', ['trained', 'decoder'])
def test_sharding_is_refused(tower: str, web: Path, clip: FrozenClip) -> None:
    """FSDP is for frozen texts; the sentence says what to launch instead."""
    with pytest.raises(InputError, match='launch it with DDP'):
        refuse_sharding(settings(clip, web, text_tower=tower), DistributedType.FSDP)
    refuse_sharding(settings(clip, web, text_tower=tower), DistributedType.MULTI_CPU)
    refuse_sharding(caption_settings(clip, Path('no/run'), data=web), DistributedType.FSDP)


def test_a_run_that_only_compares_writes_nothing(web: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """With a caption weight of 0 there is a decoder that embeds, and a sentence for who wants captions."""
    train(settings(clip, web, tmp_path / 'run', caption_weight=0))
    model = load_model(str(tmp_path / 'run'))
    assert model.embed_texts(['a lake']).shape == (1, 96)
    with pytest.raises(InputError, match='writes no captions'):
        model.write_captions(torch.zeros(1, 3, 64, 64), CaptionOptions())


def test_a_resumed_run_with_another_mixture_is_refused(web: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """Its batches would not be those that the checkpoint was made with; the sentence says to give another folder."""
    data = [{'set': web, 'weight': 1.0}, {'set': web, 'weight': 2.0}]
    train(settings(clip, web, tmp_path / 'run', data=data, steps=3, checkpoint_every=1))
    other = [{'set': web, 'weight': 1.0}, {'set': web, 'weight': 3.0}]
    for name in ('model.json', None):
        if name is not None:
            with pytest.raises(StaleError, match='another `out`'):
                train(settings(clip, web, tmp_path / 'run', data=other, steps=3, checkpoint_every=1))
            (tmp_path / 'run' / name).unlink()
    with pytest.raises(StaleError, match=r'other settings|another'):
        train(settings(clip, web, tmp_path / 'run', data=other, steps=3, checkpoint_every=1))


def test_captions_longer_than_the_context_train(web: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """They are cut where the context ends, and do not teach to end there."""
    from grafalign.captions import CaptionSet
    from grafalign.captions.import_set import ImportOptions, import_captions
    from grafalign.encoders import embed_texts
    from tests.caption_world import picture

    (tmp_path / 'pictures').mkdir()
    lines = []
    for number in range(6):
        (tmp_path / 'pictures' / f'{number}.png').write_bytes(picture(number))
        lines.append(json.dumps({'image': f'{number}.png', 'captions': ['a field beside a lake ' * 20 + str(number)]}))
    (tmp_path / 'pictures' / 'captions.jsonl').write_text('\n'.join(lines))
    import_captions(tmp_path / 'pictures' / 'captions.jsonl', tmp_path / 'set', ImportOptions(kind='human'))
    bank = embed_texts(CaptionSet(tmp_path / 'set'), clip)
    assert bank.marker.cut == 6
    train(settings(clip, tmp_path / 'set', tmp_path / 'run', batch_tiles=6))
    log = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()]
    assert np.isfinite([e['loss'] for e in log]).all()


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'text_tower': 'frozen', 'caption_weight': 2.0}, 'set `text_tower: decoder`'),
        ({'text_tower': 'trained', 'decoder': {'layers': 1}}, 'set `text_tower: decoder`'),
        ({'negatives': {'bank': 5}}, 'leave `negatives` and `masks` out'),
        ({'data': [{'store': 'pairs'}]}, 'give caption sets only'),
        ({'decoder': {'layers': 0}}, 'greater than or equal to 1'),
        ({'caption_weight': -1}, 'greater than or equal to 0'),
    ],
)
def test_settings_that_do_not_go_together_are_one_sentence(
    changes: dict[str, object], sentence: str, web: Path, clip: FrozenClip
) -> None:
    """What a text decoder cannot do is said before anything is loaded."""
    with pytest.raises(ValueError, match=sentence):
        settings(clip, web, **changes)
