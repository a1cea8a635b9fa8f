"""Outlines by SAM: prompts, choice and painting against their definition, and maps with small SAMs of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml

from grafalign.fields import Field
from grafalign.maps.sam import Prompt, Sam, margin_of, prompt_of, refined, standing_out
from grafalign.models import Model
from tests.commands import Command, refused
from tests.scenes import patchwork, write_scene
from tests.test_fields import made

transformers = pytest.importorskip('transformers', reason="SAM needs `pip install 'grafalign[transformers]'`")
SIDE = 128
NAMES = ('forest', 'water', 'a town')


def small_sam() -> Any:
    """SAM with random weights and an input of 128 px."""
    vision = transformers.SamVisionConfig(
        hidden_size=32, output_channels=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=16,
        window_size=4, global_attn_indexes=[1], num_pos_feats=16, mlp_dim=64, initializer_range=0.02,
    )  # fmt: skip
    prompts = transformers.SamPromptEncoderConfig(hidden_size=32, image_size=SIDE, patch_size=16, mask_input_channels=4)
    decoder = transformers.SamMaskDecoderConfig(
        hidden_size=32, mlp_dim=64, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=32
    )
    torch.manual_seed(0)
    return transformers.SamModel(
        transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )


def small_sam2() -> Any:
    """SAM 2, the same."""
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=16, num_attention_heads=1, image_size=[SIDE, SIDE], blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128], num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 8, 4], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[128, 64, 32, 16], fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )  # fmt: skip
    prompts = transformers.Sam2PromptEncoderConfig(
        hidden_size=32, image_size=SIDE, patch_size=16, mask_input_channels=4
    )
    decoder = transformers.Sam2MaskDecoderConfig(
        hidden_size=32, mlp_dim=64, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=32
    )
    torch.manual_seed(0)
    return transformers.Sam2Model(
        transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )


def small_sam3() -> Any:
    """SAM 3's tracker, the same; its patches have 14 px."""
    backbone = transformers.Sam3ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=112, patch_size=14,
        window_size=4, global_attn_indexes=[1], pretrain_image_size=112,
    )  # fmt: skip
    vision = transformers.Sam3VisionConfig(
        backbone_config=backbone, fpn_hidden_size=32, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]
    )
    prompts = transformers.Sam3TrackerPromptEncoderConfig(
        hidden_size=32, image_size=112, patch_size=14, mask_input_channels=4
    )
    decoder = transformers.Sam3TrackerMaskDecoderConfig(
        hidden_size=32, mlp_dim=64, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=32
    )
    torch.manual_seed(0)
    return transformers.Sam3TrackerModel(
        transformers.Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each of them."""
    out = tmp_path_factory.mktemp('sam')
    small_sam().save_pretrained(out / 'sam')
    small_sam2().save_pretrained(out / 'sam2')
    small_sam3().save_pretrained(out / 'sam3')
    return out


def heat_of(height: int, width: int, at: tuple[int, int], wide: float) -> np.ndarray:
    """A hill of heat."""
    rows, columns = np.indices((height, width))
    return np.exp(-((rows - at[0]) ** 2 + (columns - at[1]) ** 2) / (2 * wide**2)).astype(np.float32)


class Offering(Sam):
    """Offers given masks for whatever it is asked, and keeps what it was asked."""

    offered: list[np.ndarray]
    asked: list[Prompt]
    embedded: list[np.ndarray]

    def __init__(self, masks: list[np.ndarray]) -> None:
        super().__init__(None, SIDE, SIDE)
        for name, value in (('offered', masks), ('asked', []), ('embedded', [])):
            object.__setattr__(self, name, value)

    def embed(self, image: np.ndarray) -> Any:
        self.embedded.append(image)
        return torch.zeros(1, 1, 1, 1)

    def masks(self, embeddings: Any, prompts: Any, side: int) -> torch.Tensor:
        self.asked.extend(prompts)
        found = np.zeros((len(prompts), len(self.offered), side, side), np.float32)
        for number, mask in enumerate(self.offered):
            found[:, number, : mask.shape[0], : mask.shape[1]] = np.where(mask, 1, -1)
        return torch.from_numpy(found)


def square(top: int, left: int, side: int, shape: tuple[int, int] = (100, 120)) -> np.ndarray:
    """A mask."""
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def scene_of_one_thing() -> tuple[np.ndarray, np.ndarray]:
    """Colours, and scores of ground and of a thing whose heat is a hill around (50, 60)."""
    bands = np.full((3, 100, 120), 0.4, np.float32)
    planes = np.stack([np.full((100, 120), 0.5, np.float32), heat_of(100, 120, (50, 60), 12)])
    return bands, planes


def test_the_mask_over_which_the_heat_stands_out_most_is_taken() -> None:
    """Whatever its place among those that are offered; its pixels become the thing, the rest of the blob does not."""
    bands, planes = scene_of_one_thing()
    present = np.ones((100, 120), bool)
    good, wide, beside = square(42, 52, 16), square(30, 40, 40), square(10, 90, 16)
    margin = margin_of(planes, 1)
    assert standing_out(good, margin) > standing_out(wide, margin)
    for offered in ([good, wide, beside], [beside, wide, good]):
        sam = Offering(offered)
        out = refined(sam, bands, planes, present, np.array([3, 8]), {8})
        np.testing.assert_array_equal(out.argmax(0) == 1, good)
        assert len(sam.embedded) == 1 and len(sam.asked) == 1


def test_a_blob_stays_where_no_mask_is_of_it_and_classes_that_are_no_things_are_not_asked_for() -> None:
    """Another thing that stands out is not it; ground is ground."""
    bands, planes = scene_of_one_thing()
    present = np.ones((100, 120), bool)
    for offered, things in (([square(10, 90, 16)], {8}), ([square(42, 52, 16)], set())):
        out = refined(Offering(offered), bands, planes, present, np.array([3, 8]), things)
        np.testing.assert_array_equal(out, planes)
    missing = present.copy()
    missing[:, 60:] = False
    out = refined(Offering([square(42, 52, 16)]), bands, planes, missing, np.array([3, 8]), {8})
    np.testing.assert_array_equal(out[:, ~missing], planes[:, ~missing])


def test_prompts_say_where_a_thing_is_and_is_not() -> None:
    """Points lie on its peaks, others on rivals beside it, the box around it, and the mask prompt is its heat."""
    _, planes = scene_of_one_thing()
    planes[0, 50, 80:90] = 0.9  # a rival beside it
    labels = planes.argmax(0)
    blob = labels == 1
    rows, columns = np.nonzero(blob)
    prompt: Prompt = prompt_of(blob, margin_of(planes, 1), labels, SIDE)
    assert prompt.labels[0] == 1 and prompt.points[0].tolist() == [60.5, 50.5]
    assert prompt.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    for (column, row), label in zip(prompt.points.astype(int), prompt.labels, strict=True):
        if label >= 0:
            assert blob[row, column] == (label == 1)
    rivals = [point for point, label in zip(prompt.points.tolist(), prompt.labels, strict=True) if label == 0]
    assert any(r == 50.5 and 80 <= c < 90 for c, r in rivals)
    assert prompt.heat.shape == (SIDE, SIDE) and prompt.heat[50, 60] > 0 > prompt.heat[5, 5]


def test_of_two_things_that_claim_a_pixel_the_one_that_stands_out_more_has_it() -> None:
    """Order of the blobs does not matter."""
    bands = np.full((3, 100, 120), 0.4, np.float32)
    ground = np.full((100, 120), 0.3, np.float32)
    one, other = heat_of(100, 120, (50, 40), 9), 0.9 * heat_of(100, 120, (50, 72), 9)
    both = np.zeros((100, 120), bool)
    both[36:64, 28:84] = True
    for order in ((one, other), (other, one)):
        planes = np.stack([ground, *order])
        sam = Offering([both])
        out = refined(sam, bands, planes, np.ones((100, 120), bool), np.array([0, 1, 2]), {1, 2})
        falls = [standing_out(both, margin_of(planes, k)) for k in (1, 2)]
        assert (out.argmax(0)[both] == 1 + int(falls[1] > falls[0])).all() and len(sam.asked) == 2


@pytest.mark.parametrize('kind', ['sam', 'sam2', 'sam3'])
def test_every_kind_answers_to_points_boxes_and_masks(folder: Path, kind: str) -> None:
    """Masks come in the pixels of the image, one set a thing, and depend on the prompts."""
    sam = Sam.load(str(folder / kind))
    assert (sam.size, sam.prompt) == ((112, 32) if kind == 'sam3' else (SIDE, 32))
    image = patchwork(200, 200).astype(np.float32) / 255
    with torch.no_grad():
        embeddings = sam.embed(image)
        _, planes = scene_of_one_thing()
        prompt = prompt_of(planes.argmax(0) == 1, margin_of(planes, 1), planes.argmax(0), 200)
        other = Prompt(prompt.points + 40, prompt.labels, (100, 100, 140, 150), prompt.heat[::-1].copy())
        masks = sam.masks(embeddings, [prompt, other, prompt], 200)
    assert masks.shape == (3, 3, 200, 200) and bool(masks.isfinite().all())
    np.testing.assert_allclose(masks[0], masks[2], atol=1e-4 * float(masks.abs().max()))
    assert float((masks[0] - masks[1]).abs().max()) > 0.05 * float(masks.abs().max())


@pytest.fixture(scope='module')
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of several tiles, a corner of which is missing."""
    pixels = patchwork(520, 420)
    pixels[:, :120, :90] = 0
    return write_scene(tmp_path_factory.mktemp('scene') / 's.tif', pixels, nodata=0)


@pytest.fixture(scope='module')
def field(scene: Path, model: Model) -> Field:
    """Its field."""
    return made(scene, scene.parent / 'field', model)


def classes_file(folder: Path, things: tuple[str, ...] = ('forest',)) -> Path:
    """Classes, some of which are things."""
    path = folder / 'classes.yaml'
    path.write_text(yaml.safe_dump({'classes': [{'name': n, 'thing': n in things} for n in NAMES]}))
    return path


@pytest.mark.parametrize('kind', ['sam', 'sam2', 'sam3'])
def test_a_map_is_refined_tile_by_tile(
    scene: Path, field: Field, folder: Path, command: Command, tmp_path: Path, kind: str
) -> None:
    """The command works with a local folder, on several tiles, and what is missing stays so."""
    arguments = ('map', field.path, '--words', classes_file(tmp_path), '--out')
    assert command(*arguments, tmp_path / 'none.tif')[0] == 0
    code, err = command(*arguments, tmp_path / 'sam.tif', '--refine', 'sam', '--sam', folder / kind, '--scene', scene)
    assert code == 0, err
    with rasterio.open(tmp_path / 'none.tif') as plain, rasterio.open(tmp_path / 'sam.tif') as outlined:
        one, other = plain.read(1), outlined.read(1)
    assert ((one == 255) == (other == 255)).all()
    assert set(np.unique(other)) <= {0, 1, 2, 255}


def test_what_cannot_be_refined_is_one_sentence(
    scene: Path, field: Field, folder: Path, command: Command, tmp_path: Path
) -> None:
    """A folder of another kind, none, a broken one, no thing, and half of the options."""
    arguments = ('map', field.path, '--words', classes_file(tmp_path), '--out', tmp_path / 'm.tif', '--scene', scene)
    by_sam = (*arguments, '--refine', 'sam', '--sam')
    clip = transformers.CLIPConfig()
    clip.save_pretrained(tmp_path / 'clip')
    refused(command(*by_sam, tmp_path / 'clip'), 'of the kind clip', 'SAM 2')
    refused(command(*by_sam, tmp_path / 'no'), tmp_path / 'no', 'folder')
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'config.json').write_text((folder / 'sam' / 'config.json').read_text())
    refused(command(*by_sam, tmp_path / 'broken'), tmp_path / 'broken', 'cannot be loaded')
    (tmp_path / 'broken' / 'config.json').write_text('{')
    refused(command(*by_sam, tmp_path / 'broken'), tmp_path / 'broken')
    refused(command(*arguments, '--refine', 'sam'), '--sam FOLDER')
    refused(command(*arguments, '--refine', 'guided', '--sam', folder / 'sam'), '--refine sam')
    classes_file(tmp_path, ())
    refused(command(*by_sam, folder / 'sam'), 'thing: true')
    assert not (tmp_path / 'm.tif').exists()
