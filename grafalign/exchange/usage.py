"""The Python lines of a model card: from stored numbers to embeddings, with open_clip or transformers alone.

They are kept short and are run by the tests as they stand, with `stored` (tiles [B, C, H, W]) given.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from grafalign.exchange.exportable import PATCH_HEAD, Exportable

_TEXTS = "['a photo of a forest', 'a photo of a harbour']"


def open_clip_code(exportable: Exportable, hub: str | None) -> str:
    """Load the folder with open_clip, embed tiles and words."""
    return f"""\
import open_clip
import torch
from safetensors.torch import load_file
from torch.nn.functional import layer_norm, linear, normalize

folder = '.'  # {_where(hub)}
model, _, preprocess = open_clip.create_model_and_transforms(f'local-dir:{{folder}}')
tokenizer = open_clip.get_tokenizer(f'local-dir:{{folder}}')
model.eval()

{_to_input(exportable)}

with torch.no_grad():
    tiles = normalize(model.encode_image(to_input(stored)), dim=-1)
    words = normalize(model.encode_text(tokenizer({_TEXTS})), dim=-1)
    scores = (model.logit_scale.exp() * tiles @ words.T).softmax(-1)  # [B, words]
"""


def open_clip_by_name(exportable: Exportable, builtin: dict[str, Any]) -> str:
    """The call that loads the same weights by the name of an architecture that open_clip has built in.

    Args:
        exportable: what is exported.
        builtin: open_clip's own configuration of that name.
    """
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.transformer import QuickGELU

    options = [f"'{exportable.clip.settings.model}'", "pretrained=f'{folder}/open_clip_model.safetensors'"]
    if builtin['vision_cfg'].get('image_size', 224) != exportable.image_px:
        options.append(f'force_image_size={exportable.image_px}')
    quick = any(isinstance(m, QuickGELU) for m in exportable.clip.model.modules())
    if quick and not builtin.get('quick_gelu', False):
        options.append('force_quick_gelu=True')
    usual = (*OPENAI_DATASET_MEAN, *OPENAI_DATASET_STD)
    if any(abs(a - b) > 1e-6 for a, b in zip((*exportable.mean, *exportable.std), usual, strict=True)):
        options.append(f'image_mean={exportable.mean}, image_std={exportable.std}')  # a file alone does not bring them
    known = exportable.preprocessing
    if known.get('interpolation', 'bicubic') != 'bicubic' or known.get('resize_mode', 'shortest') != 'shortest':
        options.append(f"image_interpolation='{known['interpolation']}', image_resize_mode='{known['resize_mode']}'")
    inner = ',\n    '.join(options)
    return f'model, _, preprocess = open_clip.create_model_and_transforms(\n    {inner},\n)\n'


def open_clip_patches(exportable: Exportable) -> str:
    """Patch embeddings with open_clip, after the lines of `open_clip_code`."""
    return f"""\
head = load_file(f'{{folder}}/{PATCH_HEAD}')
with torch.no_grad():
    found = model.visual.forward_intermediates(
        to_input(stored), indices=1, normalize_intermediates=False, output_fmt='NLC'
    )
    tokens = found['image_intermediates'][-1]  # [B, N, W], after the last block
    {_head(exportable)}
"""


def transformers_code(exportable: Exportable, hub: str | None) -> str:
    """Load the folder with transformers, embed tiles and words."""
    return f"""\
import torch
from safetensors.torch import load_file
from torch.nn.functional import layer_norm, linear, normalize
from transformers import CLIPModel, CLIPProcessor

folder = '.'  # {_where(hub)}
model = CLIPModel.from_pretrained(folder).eval()
processor = CLIPProcessor.from_pretrained(folder)

{_to_input(exportable)}

texts = {_TEXTS}
words = processor(text=texts, padding='max_length', truncation=True, return_tensors='pt')
with torch.no_grad():
    found = model(pixel_values=to_input(stored), **words)
    tiles, words = found.image_embeds, found.text_embeds  # unit length
    scores = found.logits_per_image.softmax(-1)  # [B, words]
"""


def transformers_patches(exportable: Exportable) -> str:
    """Patch embeddings with transformers, after the lines of `transformers_code`."""
    return f"""\
head = load_file(f'{{folder}}/{PATCH_HEAD}')
with torch.no_grad():
    tokens = model.vision_model(pixel_values=to_input(stored)).last_hidden_state[:, 1:]  # [B, N, W], last block
    {_head(exportable)}
"""


def _where(hub: str | None) -> str:
    name = hub or 'NAMESPACE/NAME'
    return f"the folder of this page, or huggingface_hub.snapshot_download('{name}')"


def _to_input(exportable: Exportable) -> str:
    low, high = exportable.value_range or (0.0, 255.0)
    says = 'physical values that become 0 and 1'
    if exportable.value_range is None:
        says += ': 8-bit NAIP; 0.0, 3000.0 for the numbers of Sentinel-2'
    encoder = exportable.encoder
    pad = ''
    if encoder.canvas_px != encoder.size_px:
        first, last = encoder.start_px, encoder.canvas_px - encoder.start_px - encoder.size_px
        pad = (
            f'    unit = torch.nn.functional.pad(unit, ({first}, {last}, {first}, {last}))'
            f'  # zero padding to {encoder.canvas_px} px\n'
        )
    shape = f'{len(exportable.bands)}, {encoder.size_px}, {encoder.size_px}'
    return f'''\
low, high = {low}, {high}  # {says}
mean = torch.tensor({list(exportable.mean)}).view(-1, 1, 1)
std = torch.tensor({list(exportable.std)}).view(-1, 1, 1)


def to_input(stored, scale=1.0, offset=0.0):
    """Stored numbers [B, {shape}], bands {', '.join(exportable.bands)}, to the input."""
    physical = torch.as_tensor(stored).float() * torch.as_tensor(scale) + torch.as_tensor(offset)
    unit = ((physical - low) / (high - low)).clamp(0, 1)
{pad}    return (unit - mean) / std
'''


def _head(exportable: Exportable) -> str:
    """From `tokens` to `patches`; of a padded tile only its own patches."""
    norm, encoder = exportable.encoder.patch_norm, exportable.encoder
    lines = []
    if isinstance(norm, nn.LayerNorm):
        weights = ', '.join(
            f"head['patch_norm.{n}']" if getattr(norm, n) is not None else 'None' for n in ('weight', 'bias')
        )
        lines.append(f'tokens = layer_norm(tokens, tokens.shape[-1:], {weights}, {norm.eps})')
    grid = encoder.canvas_px // encoder.patch_px
    lines.append("patches = normalize(linear(tokens, head['patch_proj.weight']), dim=-1)")
    lines.append(f'patches = patches.unflatten(1, ({grid}, {grid}))  # [B, rows, columns, D]')
    if encoder.canvas_px != encoder.size_px:
        first = encoder.start_px // encoder.patch_px
        cut = f'{first}:{first + encoder.side}'
        lines.append(f'patches = patches[:, {cut}, {cut}]  # without the padding')
    return '\n    '.join(lines)
