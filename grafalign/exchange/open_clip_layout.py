"""The layout of open_clip: a whole CLIP whose visual tower is the satellite encoder's.

    open_clip_config.json         architecture, with the input size of the encoder, and preprocessing
    open_clip_model.safetensors   all weights, in open_clip's names
    tokenizer files               where the CLIP has a Hugging Face tokenizer; open_clip brings the usual one itself

What was written is loaded by open_clip and compared before anybody else can: the architecture has to be guessed from a
name, and a wrong guess (another activation, say) would load without a word.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from grafalign.encoders.clip import ClipSettings
from grafalign.errors import InputError
from grafalign.exchange.exportable import Exportable, save_weights

CONFIG = 'open_clip_config.json'
WEIGHTS = 'open_clip_model.safetensors'
_PROBE = 'A photo of a harbour, seen from above!'


def write_open_clip(exportable: Exportable, folder: Path) -> None:
    """Write the layout into a folder and check that open_clip makes the same embeddings of it.

    Raises:
        GrafalignError: open_clip cannot build this tower from a file; the sentence says why and what else to do.
    """
    _refuse(exportable)
    config = {'model_cfg': architecture(exportable), 'preprocess_cfg': exportable.preprocessing}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
    text = {k: v for k, v in exportable.clip.model.state_dict().items() if not k.startswith('visual.')}
    save_weights(text | {f'visual.{k}': v for k, v in exportable.visual.state_dict().items()}, folder / WEIGHTS)
    tokenizer: Any = exportable.clip.tokenizer
    if hasattr(tokenizer, 'save_pretrained'):
        tokenizer.save_pretrained(str(folder))
    _check(exportable, folder)


def builtin_config(settings: ClipSettings) -> dict[str, Any] | None:
    """open_clip's own configuration of a built-in name; None for folders and hub names."""
    import open_clip

    if Path(settings.model).is_dir() or ':' in settings.model:
        return None
    found: dict[str, Any] | None = open_clip.get_model_config(settings.model)
    return found


def refuse_bands(exportable: Exportable, remedy: str) -> None:
    """Check that an encoder takes three bands, as open_clip builds no other tower.

    Raises:
        GrafalignError: it takes others.
    """
    if len(exportable.bands) != 3:
        raise InputError(
            f'open_clip builds towers for 3 bands only and this encoder takes {len(exportable.bands)} '
            f'({", ".join(exportable.bands)}); {remedy}.'
        )


def _refuse(exportable: Exportable) -> None:
    """Towers that open_clip can run but not build: it has no key for them."""
    from open_clip.timm_model import TimmModel

    model, encoder = exportable.clip.settings.model, exportable.encoder
    refuse_bands(exportable, 'use --format transformers')
    if isinstance(exportable.visual, TimmModel) and exportable.image_px != exportable.clip.image_px:
        raise InputError(
            f'open_clip builds {model} for {exportable.clip.image_px} px only and this encoder takes {encoder.size_px} '
            f'px; train on tiles of {exportable.clip.image_px} px, or on smaller ones that are padded.'
        )


def architecture(exportable: Exportable) -> dict[str, Any]:
    """open_clip's configuration of the CLIP, as it was loaded, with the input size of the encoder."""
    import open_clip
    from open_clip.transformer import QuickGELU

    name = exportable.clip.settings.model
    if (Path(name) / CONFIG).is_file():
        name = f'local-dir:{Path(name).resolve()}'
    config: dict[str, Any] = open_clip.get_model_config(name)
    vision, text = config['vision_cfg'], config['text_cfg']
    vision['image_size'] = exportable.image_px
    # the name does not tell: a pretrained tag may have switched it
    config['quick_gelu'] = any(isinstance(m, QuickGELU) for m in exportable.clip.model.modules())
    if 'timm_model_name' in vision:
        vision['timm_model_pretrained'] = False
    if 'hf_model_name' in text:
        text['hf_model_pretrained'] = False
    return config


def _check(exportable: Exportable, folder: Path) -> None:
    import open_clip

    name = f'local-dir:{folder}'
    try:
        with _quiet():
            model, _, _ = open_clip.create_model_and_transforms(name)
            tokens = open_clip.get_tokenizer(name)([_PROBE])
    except Exception as error:  # open_clip and the packages under it raise types of their own
        reason = ' '.join(str(error).split())[:200]
        raise InputError(
            f'open_clip cannot rebuild {exportable.clip.settings.model} from a folder ({reason}); '
            'train with another CLIP, such as ViT-B-16.'
        ) from None
    model.eval()
    probe = torch.rand(2, 3, exportable.image_px, exportable.image_px, generator=torch.Generator().manual_seed(0))
    device = exportable.clip.device
    training = exportable.visual.training
    with torch.no_grad():
        ours, theirs = exportable.visual.eval()(probe.to(device)), model.visual(probe)
        words, their_words = exportable.clip.encode_text([_PROBE]), model.encode_text(tokens, normalize=True)
    exportable.visual.train(training)
    unit = torch.nn.functional.normalize
    apart = [(unit(_first(a)) - unit(_first(b))).abs().max() for a, b in ((ours, theirs), (words, their_words))]
    if not max(apart) < 1e-4:
        raise InputError(
            f'What open_clip loads is not the model that was exported (embeddings differ by {max(apart):.1e}); '
            f'the CLIP {exportable.clip.settings.model} is not what its configuration says, so train with another one.'
        )


def _first(out: Any) -> torch.Tensor:
    """The embedding of a tower that also returns tokens."""
    found: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return found.cpu()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
