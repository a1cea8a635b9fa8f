"""Any model from a few words on a command line.

    runs/image                          a finished run of ours
    exports/image                       an export of ours, or any folder saved by open_clip or transformers
    ViT-B-32:openai                     open_clip's names and tags
    ViT-B-32:RemoteCLIP-ViT-B-32.pt     an architecture of open_clip and a checkpoint file
    hf-hub:NAMESPACE/NAME               open_clip weights on the Hugging Face Hub
    graft_sentinel.ckpt                 a checkpoint of GRAFT's layout; --clip says which CLIP it belongs to

Each may be given a name for tables: `mine=runs/image`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from grafalign.encoders import ClipSettings, best_device
from grafalign.errors import DamagedError, InputError, MachineError
from grafalign.models.model import Model

EMBEDDINGS = ('.npz', '.parquet')
GRAFT_CLIP = 'ViT-B-16-quickgelu:openai'
_CHECKPOINTS = ('.ckpt', '.pt', '.pth', '.bin', '.safetensors')


def split_name(spec: str) -> tuple[str | None, str]:
    """A model's own name, if it was given one, and what says where it is."""
    name, equals, where = spec.partition('=')
    if not equals or '/' in name or ':' in name or not name.strip():
        return None, spec
    return name.strip(), where


def clip_settings(spec: str) -> ClipSettings:
    """`MODEL:PRETRAINED`, a folder, or a hub name, as settings of a CLIP."""
    if spec.startswith(('hf-hub:', 'local-dir:')) or Path(spec).is_dir():
        return ClipSettings(model=spec.removeprefix('local-dir:'))
    model, _, tag = spec.partition(':')
    return ClipSettings(model=model, pretrained=tag or None)


def is_embeddings(spec: str) -> bool:
    """Whether a model is given by embeddings that somebody else made."""
    return split_name(spec)[1].lower().endswith(EMBEDDINGS)


def load_model(spec: str, clip: str | None = None, device: str | torch.device | None = None) -> Model:
    """Load a model for zero-shot use.

    Args:
        spec: see the head of this file.
        clip: the CLIP that a GRAFT checkpoint belongs to, or a run whose CLIP has moved.
        device: a GPU where there is one by default.

    Raises:
        GrafalignError: nothing of that name can be loaded; the sentence says what to give.
    """
    from grafalign.models import open_clip_model, satellite_model, transformers_model

    name, where = split_name(spec)
    target = _device(device)
    path = Path(where)
    if path.is_dir():
        name = name or path.resolve().name
        if (path / 'model.json').is_file() and (path / 'model.safetensors').is_file():
            return satellite_model.from_run(path, name, None if clip is None else clip_settings(clip), target)
        if (path / 'open_clip_config.json').is_file():
            return open_clip_model.from_settings(ClipSettings(model=where), name, target)
        if (path / 'config.json').is_file():
            return transformers_model.from_folder(path, name, target)
        if (path / 'config.yaml').is_file():
            raise DamagedError(f'{path} is not a finished run (no model.json); run `grafalign train` to the end.')
        raise InputError(
            f'{path} holds no model; give a finished run, an export, or a folder saved by open_clip or transformers.'
        )
    if path.suffix.lower() in EMBEDDINGS:
        raise InputError(f'{path} holds embeddings and no weights; it cannot embed anything new, give a model.')
    if path.suffix.lower() in _CHECKPOINTS and ':' not in where:
        if path.suffix.lower() == '.ckpt':
            settings = clip_settings(clip or GRAFT_CLIP)
            return satellite_model.from_graft(path, name or path.stem, settings, target)
        raise InputError(
            f'{path} is weights alone; say which architecture of open_clip they belong to, such as ViT-B-32:{path}.'
        )
    return open_clip_model.from_settings(clip_settings(where), name or short_name(where), target)


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return best_device()
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = ' '.join(str(error).split())[:120]
        raise MachineError(f'There is no device {name} here ({reason}); give cpu, or leave it out.') from None
    return found


def short_name(where: str) -> str:
    """A name for tables: of a folder or file its own, else the architecture and the tag or the checkpoint's name."""
    path = Path(where)
    if path.is_dir():
        return path.resolve().name
    if path.suffix.lower() in _CHECKPOINTS and ':' not in where:
        return path.stem
    model, _, tag = where.removeprefix('hf-hub:').partition(':')
    model = model.rpartition('/')[2]
    return f'{model} {Path(tag).stem if Path(tag).suffix in _CHECKPOINTS else tag}'.strip()
