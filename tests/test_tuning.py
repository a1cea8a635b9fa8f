"""Frozen blocks, low-rank adapters and gradient checkpointing train what they say, and no more."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grafalign.config import parse_settings
from grafalign.encoders import LoraSettings, SatelliteEncoder, TuneSettings, merge, trainable, tune
from grafalign.errors import GrafalignError
from tests.small_clips import TOWERS, small_clip

every_tower = pytest.mark.parametrize('tower', TOWERS)
LORA = TuneSettings(lora=LoraSettings(rank=4, alpha=8))
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def tuned(tower: str, settings: TuneSettings) -> SatelliteEncoder:
    """A fresh encoder set up for training."""
    encoder = SatelliteEncoder(small_clip(tower))
    tune(encoder, settings)
    return encoder.train()


def moved(encoder: SatelliteEncoder) -> SatelliteEncoder:
    """The encoder with all that trains moved a little, as after some steps."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return encoder


def gradients(encoder: SatelliteEncoder) -> dict[str, Tensor]:
    """Gradients of a loss that weighs all numbers of both embeddings differently."""
    encoder.zero_grad()
    loss = torch.zeros(())
    for embedding in encoder(IMAGES)[:2]:
        loss = loss + (embedding * torch.linspace(-1, 1, embedding.numel()).view(embedding.shape)).sum()
    loss.backward()
    return {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


@every_tower
def test_everything_trains_by_default(tower: str) -> None:
    """Without settings every parameter gets a gradient, so that none is unused."""
    encoder = tuned(tower, TuneSettings())
    found = gradients(encoder)
    assert set(found) == {n for n, _ in encoder.named_parameters()}
    assert trainable(encoder) == sum(p.numel() for p in encoder.parameters())


@every_tower
@pytest.mark.parametrize('settings', [TuneSettings(), LORA], ids=['all', 'LoRA'])
def test_heads_are_what_only_one_embedding_needs(tower: str, settings: TuneSettings) -> None:
    """A loss on patches reaches all that trains but the image head, a loss on images all but the patch head."""
    encoder = moved(tuned(tower, settings))
    trains = {n for n, p in encoder.named_parameters() if p.requires_grad}
    for level, head in enumerate((encoder.patch_head, encoder.image_head)):
        encoder.zero_grad()
        encoder(IMAGES)[level][..., :7].sum().backward()
        idle = {n for n, p in encoder.named_parameters() if any(p is own for own in head)} & trains
        assert idle and {n for n, p in encoder.named_parameters() if p.grad is not None} == trains - idle


@every_tower
def test_frozen_blocks_get_no_gradient_and_change_none(tower: str) -> None:
    """Embeddings and the lowest blocks are left out, and all others have the gradient of a full training."""
    encoder = tuned(tower, TuneSettings(freeze_blocks=2))
    found, full = gradients(encoder), gradients(tuned(tower, TuneSettings()))
    blocks = encoder.tower.blocks()
    frozen = {id(p) for b in blocks[:2] for p in b.parameters()}
    above = {id(p) for p in blocks[2].parameters()} | {id(p) for p in [*encoder.image_head, *encoder.patch_head]}
    assert frozen and above
    for name, parameter in encoder.named_parameters():
        assert (name in found) == (id(parameter) in above), name
        if name in found:
            torch.testing.assert_close(found[name], full[name])
    assert trainable(encoder) == sum(g.numel() for g in found.values())


def test_a_tower_with_fewer_blocks_is_named() -> None:
    """All blocks may be frozen, but not more; the sentence gives the number."""
    tune(SatelliteEncoder(small_clip('SigLIP')), TuneSettings(freeze_blocks=3))
    with pytest.raises(GrafalignError, match=r'freeze_blocks is 4, but .* has 3 blocks; give at most 3'):
        tune(SatelliteEncoder(small_clip('SigLIP')), TuneSettings(freeze_blocks=4))


@every_tower
def test_adapters_start_as_nothing(tower: str) -> None:
    """Before training, an encoder with adapters gives what it gives without."""
    expected, found = SatelliteEncoder(small_clip(tower))(IMAGES), tuned(tower, LORA)(IMAGES)
    torch.testing.assert_close(found.image, expected.image, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.patches, expected.patches, atol=1e-5, rtol=0)


@every_tower
def test_adapters_heads_and_final_projection_train_and_nothing_else(tower: str) -> None:
    """Every adapter gets a gradient that is not zero; of CLIP's own weights only the final projection does."""
    encoder = moved(tuned(tower, LORA))
    found = gradients(encoder)
    adapters = {n for n, _ in encoder.named_parameters() if 'lora_' in n}
    projection = {id(p) for p in encoder.tower.projection()}
    expected = adapters | {n for n, p in encoder.named_parameters() if n.startswith('patch_') or id(p) in projection}
    assert set(found) == expected == {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert all(found[name].abs().max() > 0 for name in adapters)
    blocks = len(encoder.tower.blocks())
    assert len({n.rsplit('.lora_')[0] for n in adapters}) >= 4 * blocks - (blocks if tower == 'normed attention' else 0)


@every_tower
def test_merging_changes_no_embedding_and_leaves_a_plain_encoder(tower: str) -> None:
    """Embeddings before and after merging agree, and the state loads strictly into a fresh encoder that gives them."""
    encoder = moved(tuned(tower, LORA)).eval()
    with torch.no_grad():
        before = encoder(IMAGES)
        merge(encoder)
        after = encoder(IMAGES)
        fresh = SatelliteEncoder(small_clip(tower)).eval()
        names = list(fresh.state_dict())
        assert [type(m) for m in fresh.modules()] == [type(m) for m in encoder.modules()]
        away = (before.image - fresh(IMAGES).image).abs().max()
        fresh.load_state_dict(encoder.state_dict(), strict=True)
        loaded = fresh(IMAGES)
    assert list(encoder.state_dict()) == names and away > 1e-3
    for found in (after, loaded):
        torch.testing.assert_close(found.image, before.image, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.patches, before.patches, atol=1e-5, rtol=0)


def test_merging_without_adapters_changes_nothing() -> None:
    """A plain encoder stays as it is, whatever is frozen; merging twice is merging once."""
    encoder = tuned('class token', TuneSettings(freeze_blocks=1))
    before = {n: v.clone() for n, v in encoder.state_dict().items()}
    merge(encoder)
    assert all(torch.equal(v, before[n]) for n, v in encoder.state_dict().items())
    adapted = moved(tuned('class token', LORA))
    merge(adapted)
    once = {n: v.clone() for n, v in adapted.state_dict().items()}
    merge(adapted)
    assert all(torch.equal(v, once[n]) for n, v in adapted.state_dict().items())


@pytest.mark.parametrize('tower', ['class token', 'SigLIP', 'EVA'])
def test_frozen_blocks_carry_no_adapters(tower: str) -> None:
    """With adapters too, the lowest blocks are left out."""
    encoder = tuned(tower, TuneSettings(freeze_blocks=2, lora=LoraSettings(rank=2)))
    blocks = encoder.tower.blocks()
    has = [any('lora_' in n for n, _ in b.named_parameters()) for b in blocks]
    assert has == [False, False, True]
    merge(encoder)
    SatelliteEncoder(small_clip(tower)).load_state_dict(encoder.state_dict())


@pytest.mark.parametrize('tower', ['class token', 'SigLIP'])
def test_adapters_are_few(tower: str) -> None:
    """An adapter of rank r on a layer of m inputs and n outputs has r (m + n) numbers, on all layers of a block."""
    encoder = tuned(tower, TuneSettings(lora=LoraSettings(rank=2)))
    width, hidden = 64, 256
    block = 2 * ((width + 3 * width) + 2 * width + 2 * (width + hidden))
    pool = 2 * (2 * width + (width + 2 * width) + 2 * width + 2 * (width + hidden)) if tower == 'SigLIP' else 0
    head = sum(p.numel() for p in encoder.patch_head) + sum(p.numel() for p in encoder.tower.projection())
    assert trainable(encoder) == 3 * block + pool + head


@pytest.mark.parametrize('tower', ['class token', 'SigLIP'])
def test_dropout_of_adapters_is_for_training_alone(tower: str) -> None:
    """In training two passes differ, in evaluation they agree."""
    encoder = moved(tuned(tower, TuneSettings(lora=LoraSettings(rank=4, dropout=0.5))))
    assert not torch.equal(encoder(IMAGES).image, encoder(IMAGES).image)
    encoder.eval()
    assert torch.equal(encoder(IMAGES).image, encoder(IMAGES).image)


@every_tower
@pytest.mark.parametrize(
    'settings', [TuneSettings(), TuneSettings(freeze_blocks=1), LORA], ids=['all', 'upper', 'LoRA']
)
def test_checkpointing_gives_the_same_gradient(tower: str, settings: TuneSettings) -> None:
    """Blocks that are computed again give the gradient of blocks that were kept, whatever trains."""
    torch.manual_seed(0)
    kept = moved(tuned(tower, settings))
    torch.manual_seed(0)
    again = moved(tuned(tower, settings.model_copy(update={'grad_checkpointing': True})))
    expected, found = gradients(kept), gradients(again)
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize('tower', ['class token', 'SigLIP', 'EVA'])
def test_checkpointing_keeps_less(tower: str) -> None:
    """What autograd keeps for the backward pass is less than half."""
    sizes = []
    for settings in (TuneSettings(), TuneSettings(grad_checkpointing=True)):
        encoder, kept = tuned(tower, settings), {}

        def pack(value: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            out = encoder(IMAGES)
        sizes.append(sum(size for place, size in kept.items() if place not in weights))
        del out
    assert sizes[1] < sizes[0] / 2


@pytest.mark.parametrize(
    'tower', ['class token', *(pytest.param(tower, marks=pytest.mark.slow) for tower in ('SigLIP', 'EVA'))]
)
@pytest.mark.parametrize('saving', [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_tuned_encoder_compiles_whole(tower: str, saving: bool) -> None:
    """torch.compile finds one graph with adapters and checkpointing, and gives the same gradients."""
    encoder = moved(tuned(tower, LORA.model_copy(update={'grad_checkpointing': saving})))
    expected = gradients(encoder)
    torch._dynamo.reset()
    compiled: Any = torch.compile(encoder, backend='aot_eager', fullgraph=True)
    encoder.zero_grad()
    loss = torch.zeros(())
    for embedding in compiled(IMAGES)[:2]:
        loss = loss + (embedding * torch.linspace(-1, 1, embedding.numel()).view(embedding.shape)).sum()
    loss.backward()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert isinstance(parameter.grad, Tensor)
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4)


def test_tuning_leaves_clip_alone() -> None:
    """The frozen CLIP has no adapters and the weights it had."""
    clip = small_clip('class token')
    before = {n: v.clone() for n, v in clip.model.state_dict().items()}
    encoder = moved(tuned('class token', LORA))
    merge(encoder)
    assert all(torch.equal(v, before[n]) for n, v in clip.model.state_dict().items())
    assert any(isinstance(m, nn.MultiheadAttention) for m in clip.model.visual.modules())


def test_without_peft_the_remedy_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters on a machine without peft end in the command that installs it; the rest works."""
    monkeypatch.setitem(sys.modules, 'peft', None)  # as Python treats a package that is not there
    merge(tuned('class token', TuneSettings(freeze_blocks=1)))
    with pytest.raises(GrafalignError, match=r'needs peft.*: pip install "grafalign\[lora\]"\.$'):
        tuned('class token', LORA)


@pytest.mark.parametrize('content', [{'freeze_blocks': -1}, {'lora': {'rank': 0}}, {'lora': {'r': 4}}, {'blocks': 1}])
def test_settings_that_make_no_sense_are_refused(content: dict[str, Any]) -> None:
    """Negative blocks, adapters of no rank and unknown keys are named."""
    key = next(iter(content))
    with pytest.raises(GrafalignError, match=f'f.yaml.*{key}'):
        parse_settings(content, TuneSettings, 'f.yaml')
