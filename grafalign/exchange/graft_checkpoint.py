"""GRAFT's published checkpoints as a satellite encoder.

They are PyTorch Lightning checkpoints: a pickle with a `state_dict` of

    satellite_image_backbone.*   transformers' CLIPVisionModelWithProjection
    projector.0.*, projector.1.weight   LayerNorm and bias-free Linear, on the patch tokens of the last block
    logit_scale                  not needed here

and, beside it, omegaconf containers and what Lightning keeps. The layout is what the loaders of two public users show
(xzhacc/CrossSO, `src/crossso/models.py`; elenagsierra/text-sat-hab-mmocc, `mmocc/graft_utils.py`).

Nothing of the pickle runs when it is read, and neither omegaconf nor Lightning has to be installed: `safe_pickle.py`.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from grafalign import console
from grafalign.encoders.clip import FrozenClip
from grafalign.encoders.satellite import SatelliteEncoder
from grafalign.errors import GrafalignError, InputError
from grafalign.exchange.safe_pickle import load_without_code
from grafalign.exchange.transformers_layout import vision_weights

_BACKBONE = 'satellite_image_backbone.'


def load_graft(path: Path, clip: FrozenClip) -> SatelliteEncoder:
    """Load a checkpoint of GRAFT's published layout.

    Args:
        path: the `.ckpt`, or the same state dict as safetensors.
        clip: the CLIP it was trained towards: openai's ViT-B/16 for the published ones, in open_clip
            `ViT-B-16-quickgelu` with the tag `openai`.

    Raises:
        GrafalignError: the file is missing or damaged, holds code, has another layout, or belongs to another CLIP.
    """
    path = Path(path)
    state = _read(path)
    _right_activation(clip)
    encoder = SatelliteEncoder(clip, 3, _grid(path, state) * clip_patch(clip))
    places = _places(encoder)
    _check(path, clip, state, places)
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(state[name])
    towers: tuple[Any, Any] = clip.model.visual, encoder.visual
    before, after = (t.conv1.weight.detach().flatten().float().cpu() for t in towers)
    if functional.cosine_similarity(before, after, dim=0) < 0.1:
        console.log(
            f'{path} shows no trace of {clip.settings.model} ({clip.settings.pretrained}): if it was trained from '
            'another CLIP, that one has to be given, or words will mean nothing to it.'
        )
    return encoder.eval()


def clip_patch(clip: FrozenClip) -> int:
    """Side of a patch of CLIP's vision transformer.

    Raises:
        GrafalignError: its image tower is not OpenAI's kind.
    """
    from open_clip.transformer import VisionTransformer

    visual: Any = clip.model.visual
    plain = isinstance(visual, VisionTransformer) and isinstance(visual.ln_pre, nn.LayerNorm)
    if not plain or visual.proj is None or visual.attn_pool is not None:
        raise InputError(
            f'{clip.settings.model} has no vision transformer of the kind that GRAFT starts from; '
            'give --model ViT-B-16-quickgelu --pretrained openai.'
        )
    return int(visual.patch_size[0])


def _places(encoder: SatelliteEncoder) -> dict[str, Tensor]:
    """Every tensor of the checkpoint and where it goes: views of the encoder's weights."""
    places = {f'{_BACKBONE}{k}': v for k, v in vision_weights(encoder.visual)}
    norm: Any = encoder.patch_norm
    places |= {'projector.0.weight': norm.weight, 'projector.0.bias': norm.bias}
    places['projector.1.weight'] = encoder.patch_proj.weight
    return {k: v.detach() for k, v in places.items()}


def _grid(path: Path, state: dict[str, Tensor]) -> int:
    """Patches along a side of the checkpoint's images."""
    name = f'{_BACKBONE}vision_model.embeddings.position_embedding.weight'
    if name not in state:
        raise _other_layout(path, f'it has no {name}')
    return max(1, round((len(state[name]) - 1) ** 0.5))


def _check(path: Path, clip: FrozenClip, state: dict[str, Tensor], places: dict[str, Tensor]) -> None:
    """Say how the checkpoint differs from what CLIP's tower and the patch head take."""
    for name, place in places.items():
        if name in state and state[name].shape != place.shape:
            raise _misfit(path, clip, f'{name} is {list(state[name].shape)} against {list(place.shape)}')
    depths = [sum('layer_norm1.weight' in name for name in names) for names in (state, places)]
    if depths[0] != depths[1] and depths[0]:
        raise _misfit(path, clip, f'{depths[0]} blocks against {depths[1]}')
    missing = [name for name in places if name not in state]
    if missing:
        more = f' and {len(missing) - 3} more' if len(missing) > 3 else ''
        raise _other_layout(path, f'missing: {", ".join(missing[:3])}{more}')
    ours = (name for name in state if name.startswith((_BACKBONE, 'projector.', 'patch_mlp.')))
    strange = next((name for name in ours if name not in places and not name.endswith('position_ids')), None)
    if strange is not None:
        raise _other_layout(path, f'it has {strange}, which the published ones have not')


def _misfit(path: Path, clip: FrozenClip, why: str) -> GrafalignError:
    return InputError(
        f'{path} does not fit {clip.settings.model} ({why}); give the CLIP it was trained from, for the published ones '
        '--model ViT-B-16-quickgelu --pretrained openai.'
    )


def _other_layout(path: Path, why: str) -> GrafalignError:
    return InputError(
        f"{path} is no checkpoint of GRAFT's published layout ({why}); give one whose state_dict holds "
        f'{_BACKBONE}* and projector.*.'
    )


def _right_activation(clip: FrozenClip) -> None:
    """The published checkpoints continue weights that know QuickGELU; with GELU they load and answer wrongly."""
    import open_clip
    from open_clip.transformer import QuickGELU

    name, tag = clip.settings.model, clip.settings.pretrained
    known = open_clip.get_pretrained_cfg(name, tag) if tag and name in open_clip.list_models() else {}
    if known.get('quick_gelu') and not any(isinstance(m, QuickGELU) for m in clip.model.modules()):
        raise InputError(
            f'{name} is built without the QuickGELU that its weights {tag} were trained with; '
            f'give --model {name}-quickgelu.'
        )


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict, whatever the file."""
    if not path.is_file():
        raise InputError(f"There is no file {path}; give a run folder, or a checkpoint of GRAFT's layout.")
    try:
        content: Any = load_file(path) if path.suffix == '.safetensors' else load_without_code(path)
    except GrafalignError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, AttributeError, pickle.UnpicklingError, SafetensorError) as e:
        reason = ' '.join(str(e).split())[:200]
        raise InputError(f'{path} is damaged or no checkpoint ({reason}); download it again.') from None
    state = content.get('state_dict', content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise _other_layout(path, 'it has no state_dict of tensors')
    return {str(k): v for k, v in state.items()}
