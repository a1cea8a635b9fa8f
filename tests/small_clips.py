"""Small CLIPs of every kind of image tower, with random weights, saved as open_clip saves them and loaded as users do.

Towers see 64 px in patches of 16; widths and embeddings differ, so that a wrong matrix does not fit.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from grafalign.encoders import ClipSettings, FrozenClip, load_clip

_NOWHERE = {'url': ''}
_SIZES = {'img_size': 64, 'patch_size': 16, 'embed_dim': 64, 'depth': 3, 'num_heads': 4}
_OPEN_CLIP = {'image_size': 64, 'layers': 3, 'width': 64, 'head_width': 16, 'patch_size': 16}


@register_model
def small_vit(pretrained: bool = False, **kwargs: Any) -> Any:
    """As timm's CLIP towers: class token, norm before the blocks."""
    return build_model_with_cfg(
        VisionTransformer, 'small_vit', pretrained, pretrained_cfg=_NOWHERE, pre_norm=True, **_SIZES | _ours(kwargs)
    )


@register_model
def small_siglip(pretrained: bool = False, **kwargs: Any) -> Any:
    """As timm's SigLIP towers: no class token, an attention pool, no projection."""
    sizes = {'class_token': False, 'global_pool': 'map'} | _SIZES
    return build_model_with_cfg(
        VisionTransformer, 'small_siglip', pretrained, pretrained_cfg=_NOWHERE, **sizes | _ours(kwargs)
    )


@register_model
def small_eva(pretrained: bool = False, **kwargs: Any) -> Any:
    """As timm's EVA-02 and PE towers: rotary positions beside learned ones, bias apart from the packed weights."""
    sizes = {'use_rot_pos_emb': True, 'ref_feat_shape': (4, 4), 'swiglu_mlp': True} | _SIZES
    return build_model_with_cfg(Eva, 'small_eva', pretrained, pretrained_cfg=_NOWHERE, **sizes | _ours(kwargs))


def _ours(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if k in ('num_classes', 'global_pool', 'patch_drop_rate')}


TOWERS: dict[str, dict[str, Any]] = {
    'class token': _OPEN_CLIP,
    'mean': _OPEN_CLIP | {'pool_type': 'avg', 'final_ln_after_pool': True},
    'CoCa': _OPEN_CLIP | {'attentional_pool': True, 'attn_pooler_queries': 4, 'attn_pooler_heads': 4},
    'normed attention': _OPEN_CLIP | {'qk_norm': True, 'scale_attn': True, 'patch_dropout': 0.5},
    'timm class token': {'timm_model_name': 'small_vit', 'timm_pool': 'token', 'timm_proj': None},
    'timm mean': {'timm_model_name': 'small_vit', 'timm_pool': 'avg', 'timm_proj': None},
    'timm linear': {'timm_model_name': 'small_vit', 'timm_pool': 'token', 'timm_proj': 'linear', 'patch_dropout': 0.5},
    'timm MLP': {'timm_model_name': 'small_vit', 'timm_pool': 'token', 'timm_proj': 'mlp'},
    'SigLIP': {'timm_model_name': 'small_siglip', 'timm_pool': 'map', 'timm_proj': 'none'},
    'SigLIP projected': {'timm_model_name': 'small_siglip', 'timm_pool': 'map', 'timm_proj': None},
    'EVA': {'timm_model_name': 'small_eva', 'timm_pool': 'token', 'timm_proj': None, 'patch_dropout': 0.5},
}
WITHOUT_DROPOUT = ('EVA',)


@functools.cache
def small_clip(tower: str) -> FrozenClip:
    """A CLIP with one of `TOWERS`; the same every time."""
    return make_clip(TOWERS[tower])


def make_clip(vision: dict[str, Any]) -> FrozenClip:
    """A CLIP with the image tower of these settings of open_clip."""
    with tempfile.TemporaryDirectory() as folder:
        return _save_and_load(Path(folder), vision)


def _save_and_load(folder: Path, vision: dict[str, Any]) -> FrozenClip:
    import open_clip

    width = 64 if vision.get('timm_proj') == 'none' else 48
    text = {'context_length': 16, 'vocab_size': 49408, 'width': 16, 'heads': 2, 'layers': 1}
    model = {'embed_dim': width, 'vision_cfg': {'image_size': 64} | vision, 'text_cfg': text}
    config = {'model_cfg': model | ({'custom_text': True} if 'timm_model_name' in vision else {}), 'preprocess_cfg': {}}
    (folder / 'open_clip_config.json').write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = open_clip.create_model(f'local-dir:{folder}', load_weights=False)
        weights = made.state_dict()
        for name, value in weights.items():
            if value.is_floating_point():  # not the counters of batch norms
                weights[name] = value + 0.1 * torch.randn_like(value)  # no bias stays zero
    save_file(weights, str(folder / 'open_clip_model.safetensors'))
    return load_clip(ClipSettings(model=str(folder)))
