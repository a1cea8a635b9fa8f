"""CLIP and SigLIP in the layout of Hugging Face transformers, from a local folder; needs the extra `transformers`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grafalign.encoders import SatelliteEncoder
from grafalign.errors import InputError, MachineError
from grafalign.exchange.marker import ExportInput, ExportMarker
from grafalign.files import file_digest
from grafalign.models.model import Model
from grafalign.models.open_clip_model import RGB
from grafalign.models.pixels import Preprocessing

_KINDS = ('clip', 'siglip')  # SigLIP 2 of fixed size calls itself siglip
_FILTERS = {0: 'nearest', 2: 'bilinear', 3: 'bicubic'}  # Pillow's numbers


def from_folder(folder: Path, name: str, device: torch.device) -> Model:
    """A CLIP, SigLIP or SigLIP 2 (of fixed size) that transformers saved.

    Texts are padded to the model's length and, for SigLIP, in lower case, as it was trained; CLIP does not mind.

    Raises:
        GrafalignError: transformers is not installed, or the folder cannot be loaded.
    """
    try:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
    except ImportError:
        raise MachineError(f'{folder} is of transformers; install grafalign[transformers].') from None
    kind = _model_type(folder)
    try:
        model, loading = AutoModel.from_pretrained(str(folder), local_files_only=True, output_loading_info=True)
        lacking = [*loading['missing_keys'], *(m[0] for m in loading['mismatched_keys'])]
        lacking = [str(k) for k in lacking if not str(k).endswith('position_ids')]
        if lacking:  # transformers would leave them random, and say so in its log alone
            raise ValueError(f'its weights lack {lacking[0]}')
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        loader: Any = AutoImageProcessor
        processor: Any = loader.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers and the packages under it raise types of their own
        reason = ' '.join(str(error).split())[:250]
        raise InputError(f'{folder} cannot be loaded by transformers ({reason}); save the model again.') from None
    model = model.to(device).eval().requires_grad_(False)
    vision, text = model.config.vision_config, model.config.text_config
    export = ExportMarker.of(folder)
    given = None if export is None else export.input
    if given is not None and given.level == 'patch':
        raise InputError(
            f'{folder} was trained at level patch, which transformers cannot embed an image with; export it with '
            '--format open_clip.'
        )
    if processor.image_mean is None or processor.image_std is None:
        raise InputError(f'{folder / "preprocessor_config.json"} has no mean or deviation; save the model again.')
    bands = given.bands if given is not None else RGB if vision.num_channels == 3 else ()
    if len(bands) != vision.num_channels:
        raise InputError(
            f'{folder} takes {vision.num_channels} bands and does not say which; export it again with grafalign.'
        )
    preprocessing = Preprocessing(
        bands,
        int(vision.image_size) if given is None else given.size_px,
        tuple(processor.image_mean),
        tuple(processor.image_std),
        _FILTERS.get(int(processor.resample), 'bicubic'),
    )
    margin = (0, 0) if given is None else _margin(given)

    def images(inputs: Tensor) -> Tensor:
        if any(margin):
            inputs = _zero_padded(inputs, margin, preprocessing)
        return _tensor(model.get_image_features(pixel_values=inputs))

    def texts(words: Sequence[str]) -> Tensor:
        tokens = tokenizer(
            [w.lower() for w in words] if kind == 'siglip' else list(words),
            padding='max_length',
            max_length=text.max_position_embeddings,
            truncation=True,
            return_tensors='pt',
        ).to(device)
        read = ['input_ids'] if kind == 'siglip' else ['input_ids', 'attention_mask']  # SigLIP looks at the padding too
        tokens = {name: tokens[name] for name in read}
        return _tensor(model.get_text_features(**tokens))

    def no_patches() -> SatelliteEncoder:
        raise InputError(
            f'{folder} is of transformers, whose patch embeddings are not read here; export it with --format open_clip.'
        )

    files = [p for p in sorted(folder.iterdir()) if p.suffix in ('.safetensors', '.bin', '.json', '.txt', '.model')]
    digest = hashlib.blake2b(' '.join(file_digest(p) for p in files).encode(), digest_size=16).hexdigest()
    return Model(
        name=name,
        kind='transformers',
        digest=digest,
        preprocessing=preprocessing,
        images=images,
        texts=texts,
        device=device,
        dense=no_patches,
        metadata={'folder': folder.name, 'model_type': kind},
    )


def _model_type(folder: Path) -> str:
    try:
        kind = json.loads((folder / 'config.json').read_text(encoding='utf-8')).get('model_type')
    except (OSError, ValueError, AttributeError):
        raise InputError(f'{folder / "config.json"} is damaged; save the model again.') from None
    if kind not in _KINDS:
        raise InputError(f'{folder} is a {kind}, and only {", ".join(_KINDS)} of transformers can be used here.')
    return str(kind)


def _tensor(found: Any) -> Tensor:
    """Features, which transformers 5 hands out inside an output."""
    return found if isinstance(found, Tensor) else found.pooler_output


def _margin(given: ExportInput) -> tuple[int, int]:
    """Zero padding before and after a tile that is smaller than the encoder's input, in pixels."""
    return given.start_px, given.canvas_px - given.start_px - given.size_px


def _zero_padded(inputs: Tensor, margin: tuple[int, int], preprocessing: Preprocessing) -> Tensor:
    mean, std = (
        torch.tensor(v, device=inputs.device).view(1, -1, 1, 1) for v in (preprocessing.mean, preprocessing.std)
    )
    return torch.nn.functional.pad(inputs * std + mean, margin * 2) / std - mean / std
