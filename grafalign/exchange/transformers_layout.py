"""The layout of Hugging Face transformers: `CLIPModel`, `CLIPProcessor` and tokenizer, written without transformers.

    config.json, model.safetensors              the model, in transformers' names
    preprocessor_config.json                    the image processor
    tokenizer.json, tokenizer_config.json, ...  see `clip_tokenizer.py`

`CLIPModel` is OpenAI's CLIP and no more. What it cannot express (SigLIP and other timm towers, pooling by mean or
attention, text towers of other kinds) is refused here with the reason, and open_clip's layout is the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from grafalign.errors import InputError
from grafalign.exchange.clip_tokenizer import is_plain, write_tokenizer
from grafalign.exchange.exportable import Exportable, save_weights

_RESAMPLE = {'nearest': 0, 'bilinear': 2, 'bicubic': 3}  # Pillow's numbers


def write_transformers(exportable: Exportable, folder: Path) -> None:
    """Write the layout into a folder.

    Raises:
        GrafalignError: `CLIPModel` cannot express the model.
    """
    reason = _unfit(exportable)
    if reason is not None:
        raise InputError(
            f"transformers' CLIPModel cannot express {exportable.clip.settings.model} ({reason}); use "
            '--format open_clip.'
        )
    model: Any = exportable.clip.model
    text = getattr(model, 'text', model)
    (folder / 'config.json').write_text(json.dumps(_config(exportable, text), indent=2) + '\n', encoding='utf-8')
    weights = {'logit_scale': model.logit_scale.reshape(())}
    weights |= dict(_text_weights(text)) | dict(vision_weights(exportable.visual))
    save_weights(weights, folder / 'model.safetensors')
    processor = json.dumps(_image_processor(exportable), indent=2) + '\n'
    (folder / 'preprocessor_config.json').write_text(processor, encoding='utf-8')
    write_tokenizer(exportable.clip.tokenizer, int(text.context_length), folder)


def _unfit(exportable: Exportable) -> str | None:
    """Why `CLIPModel` cannot express it, or None."""
    from open_clip.model import CLIP
    from open_clip.transformer import TextTransformer, VisionTransformer

    model: Any = exportable.clip.model
    visual, text = exportable.visual, getattr(model, 'text', model)
    pool = getattr(text, 'pool_type', None) or getattr(text, 'text_pool_type', None)
    projection = getattr(text, 'text_projection', None)
    found = {
        f'its image tower is {type(visual).__name__}': not isinstance(visual, VisionTransformer),
        f'its text tower is {type(text).__name__}': not isinstance(text, CLIP | TextTransformer),
        'its tokenizer is not the usual one': not is_plain(exportable.clip.tokenizer),
        'it has a logit bias': getattr(model, 'logit_bias', None) is not None,
    }
    if not any(found.values()):
        found = {
            'its image embedding is pooled from the patches': visual.pool_type != 'tok' or visual.attn_pool is not None,
            'it has no image projection': visual.proj is None,
            'it has no norm before the blocks': not isinstance(visual.ln_pre, nn.LayerNorm),
            f'its text embedding is pooled by {pool}': pool != 'argmax',
            'its text tower has a class token': getattr(text, 'cls_emb', None) is not None,
            'its text tower is not causal': text.attn_mask is None,
            'its text projection is not a matrix': not isinstance(projection, nn.Parameter),
            'its blocks are of another kind': not (_plain(visual) and _plain(text)),
        }
    return next((reason for reason, true in found.items() if true), None)


def _plain(tower: Any) -> bool:
    """Whether all blocks are CLIP's, with one activation that transformers knows and one epsilon."""
    from open_clip.transformer import ResidualAttentionBlock

    blocks = list(tower.transformer.resblocks)
    norms = [m for m in tower.modules() if isinstance(m, nn.LayerNorm)]
    return (
        all(type(b) is ResidualAttentionBlock for b in blocks)
        and all(isinstance(b.ls_1, nn.Identity) and isinstance(b.ls_2, nn.Identity) for b in blocks)
        and all(b.attn.in_proj_bias is not None and b.attn.in_proj_weight is not None for b in blocks)
        and {_activation(b) for b in blocks} in ({'gelu'}, {'quick_gelu'}, {'gelu_pytorch_tanh'})
        and len({m.eps for m in norms}) == 1
    )


def _activation(block: Any) -> str | None:
    """A block's activation by the name that transformers has for it, or None."""
    from open_clip.transformer import QuickGELU

    gelu = block.mlp.gelu
    if isinstance(gelu, QuickGELU):
        return 'quick_gelu'
    if isinstance(gelu, nn.GELU):
        return 'gelu' if gelu.approximate == 'none' else 'gelu_pytorch_tanh'
    return None


def _config(exportable: Exportable, text: Any) -> dict[str, Any]:
    visual, tokenizer = exportable.visual, exportable.clip.tokenizer
    depth = int(visual.proj.shape[1])
    scale = exportable.clip.model.get_parameter('logit_scale')
    return {
        'architectures': ['CLIPModel'],
        'model_type': 'clip',
        'projection_dim': depth,
        'logit_scale_init_value': round(float(scale), 4),
        'vision_config': {
            'model_type': 'clip_vision_model',
            **_blocks(visual),
            'image_size': exportable.image_px,
            'patch_size': exportable.encoder.patch_px,
            'num_channels': len(exportable.bands),
            'projection_dim': depth,
        },
        'text_config': {
            'model_type': 'clip_text_model',
            **_blocks(text),
            'vocab_size': len(text.token_embedding.weight),
            'max_position_embeddings': len(text.positional_embedding),
            'projection_dim': depth,
            'bos_token_id': getattr(tokenizer, 'sot_token_id', None),
            'eos_token_id': getattr(tokenizer, 'eot_token_id', None),
            'pad_token_id': getattr(tokenizer, 'eot_token_id', None),
        },
    }


def _blocks(tower: Any) -> dict[str, Any]:
    blocks = tower.transformer.resblocks
    first = blocks[0]
    return {
        'hidden_size': first.mlp.c_fc.in_features,
        'intermediate_size': first.mlp.c_fc.out_features,
        'num_hidden_layers': len(blocks),
        'num_attention_heads': first.attn.num_heads,
        'hidden_act': _activation(first),
        'layer_norm_eps': first.ln_1.eps,
    }


def _image_processor(exportable: Exportable) -> dict[str, Any]:
    """Pictures of 0..255, which the sensor's rule has made, to the model's input; tiles of its size are not resized."""
    side, known = exportable.image_px, exportable.preprocessing
    shortest = known.get('resize_mode', 'shortest') == 'shortest'
    return {
        'image_processor_type': 'CLIPImageProcessor',
        'processor_class': 'CLIPProcessor',
        'do_resize': True,
        'size': {'shortest_edge': side} if shortest else {'height': side, 'width': side},
        'resample': _RESAMPLE.get(known.get('interpolation', 'bicubic'), 3),
        'do_center_crop': shortest,
        'crop_size': {'height': side, 'width': side},
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': list(exportable.mean),
        'image_std': list(exportable.std),
        'do_convert_rgb': len(exportable.bands) == 3,
    }


def vision_weights(visual: Any) -> Iterator[tuple[str, Tensor]]:
    """Weights of open_clip's VisionTransformer under the names of `CLIPModel`."""
    yield 'vision_model.embeddings.class_embedding', visual.class_embedding
    yield 'vision_model.embeddings.patch_embedding.weight', visual.conv1.weight
    yield 'vision_model.embeddings.position_embedding.weight', visual.positional_embedding
    for ours, theirs in (('ln_pre', 'pre_layrnorm'), ('ln_post', 'post_layernorm')):
        yield from _pair(getattr(visual, ours), f'vision_model.{theirs}')
    yield from _block_weights(visual, 'vision_model')
    yield 'visual_projection.weight', visual.proj.T


def _text_weights(text: Any) -> Iterator[tuple[str, Tensor]]:
    yield 'text_model.embeddings.token_embedding.weight', text.token_embedding.weight
    yield 'text_model.embeddings.position_embedding.weight', text.positional_embedding
    yield from _pair(text.ln_final, 'text_model.final_layer_norm')
    yield from _block_weights(text, 'text_model')
    yield 'text_projection.weight', text.text_projection.T


def _block_weights(tower: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for i, block in enumerate(tower.transformer.resblocks):
        name = f'{prefix}.encoder.layers.{i}'
        weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
        for part, weight, bias in zip('qkv', weights, biases, strict=True):
            yield f'{name}.self_attn.{part}_proj.weight', weight
            yield f'{name}.self_attn.{part}_proj.bias', bias
        yield from _pair(block.attn.out_proj, f'{name}.self_attn.out_proj')
        yield from _pair(block.ln_1, f'{name}.layer_norm1')
        yield from _pair(block.ln_2, f'{name}.layer_norm2')
        yield from _pair(block.mlp.c_fc, f'{name}.mlp.fc1')
        yield from _pair(block.mlp.c_proj, f'{name}.mlp.fc2')


def _pair(module: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    yield f'{name}.weight', module.weight
    yield f'{name}.bias', module.bias
