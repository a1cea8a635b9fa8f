"""The layout of open_clip 4's `mammut` models: image tower, text decoder and the map between them, by their names.

    open_clip_config.json         `vision_cfg` of the CLIP that gives tokens, and `multimodal_cfg` of the decoder
    open_clip_model.safetensors   `visual.*`, `text.*`, `map_viz2txt_kv`, `logit_scale`

open_clip 3 has no such model, so what is written cannot be loaded and compared here: what open_clip's would compute
otherwise is refused, and tests compare the weights under their names with a reference of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from grafalign.encoders.mammut import Mammut
from grafalign.errors import InputError
from grafalign.exchange.clip_tokenizer import is_plain
from grafalign.exchange.exportable import Exportable, save_weights
from grafalign.exchange.open_clip_layout import CONFIG, WEIGHTS, architecture, refuse_bands

_KEEP = 'keep the run, which grafalign uses as it is'


def write_mammut(exportable: Exportable, folder: Path) -> None:
    """Write the layout into a folder.

    Raises:
        GrafalignError: open_clip's `mammut` would compute something else; the sentence says what.
    """
    refuse_bands(exportable, _KEEP)
    model: Any = exportable.clip.model
    decoder = model.text
    reason = _unfit(exportable, decoder)
    if reason is not None:
        raise InputError(f"open_clip's mammut cannot express this model ({reason}); {_KEEP}.")
    config = architecture(exportable)
    config.pop('text_cfg')
    config['vision_cfg']['output_tokens'] = True
    first = decoder.resblocks[0]
    config['multimodal_cfg'] = {
        'context_length': decoder.context_length,
        'vocab_size': decoder.token_embedding.num_embeddings,
        'width': first.mlp.c_fc.in_features,
        'heads': decoder.heads,
        'layers': len(decoder.resblocks),
        'mlp_ratio': first.mlp.c_fc.out_features / first.mlp.c_fc.in_features,
        'cross_attn_ratio': decoder.cross_every,
        'proj_type': 'linear',
        'pad_id': 0,
        'bos_id': exportable.clip.tokenizer.begin,  # type: ignore[attr-defined]
        'eos_id': exportable.clip.tokenizer.end,  # type: ignore[attr-defined]
    }
    content = {'model_cfg': config, 'preprocess_cfg': exportable.preprocessing}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    text = decoder.state_dict()
    weights = {'logit_scale': model.logit_scale, 'map_viz2txt_kv': text.pop('map_viz2txt_kv')}
    weights |= {f'text.{k}': v for k, v in text.items()}
    save_weights(weights | {f'visual.{k}': v for k, v in exportable.visual.state_dict().items()}, folder / WEIGHTS)


def is_mammut(exportable: Exportable) -> bool:
    """Whether a text decoder took the place of the text tower."""
    return isinstance(exportable.clip.model, Mammut)


def _unfit(exportable: Exportable, decoder: Any) -> str | None:
    """What open_clip's own `mammut` would compute otherwise, or None."""
    from open_clip.transformer import VisionTransformer

    visual, blocks = exportable.visual, [*decoder.resblocks, *decoder.cross_attn]
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
        return 'its image tower is not a plain vision transformer of open_clip'
    if visual.final_ln_after_pool:
        return 'its image tower norms the pooled vector and not the tokens'
    if not is_plain(exportable.clip.tokenizer.plain):  # type: ignore[attr-defined]
        return 'its tokenizer is not the usual one, whose pads mean nothing'
    activations = {type(b.mlp.gelu) for b in (*blocks, *visual.transformer.resblocks)}
    if len(activations) > 1:
        return 'its towers have different activations'
    if any(not isinstance(b.ls_1, nn.Identity) for b in blocks):
        return 'its layers are scaled'
    return None
