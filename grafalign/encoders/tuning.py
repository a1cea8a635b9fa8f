"""How much of the encoder is trained: all of it, its upper blocks, or low-rank adapters; and memory for time.

Adapters are peft's LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022) on every linear
layer of the blocks and of timm's attention pools. open_clip's blocks hold torch's MultiheadAttention, whose packed
weights peft adapts by adding the adapter to them before every call and subtracting it after: dropout is ignored,
torch.compile cannot follow, and the frozen weights drift by what rounding leaves. So here such an attention is taken
apart into two plain linear layers while adapters train, and put together again by `merge`.
"""

from __future__ import annotations

from typing import Any, cast

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from grafalign.config import Settings
from grafalign.encoders.satellite import SatelliteEncoder
from grafalign.errors import InputError, MachineError


class LoraSettings(Settings):
    """Low-rank adapters: a layer's weight W becomes W + alpha / rank * B A, with B of `rank` columns, zero at first."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    """The adapters' strength is alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are dropped in training."""


class TuneSettings(Settings):
    """What of the satellite encoder is trained; all of it by default."""

    freeze_blocks: int = Field(default=0, ge=0)
    """The lowest blocks that keep CLIP's weights, with patch and position embeddings below them; 0 freezes nothing.
    Filters of bands that CLIP does not know are then not trained either."""
    lora: LoraSettings | None = None
    """Train adapters, the patch head and the final projection, and nothing else: for small GPUs. Filters of bands that
    CLIP does not know stay as they start."""
    grad_checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping what it needs: more time, far less memory."""


def tune(encoder: SatelliteEncoder, settings: TuneSettings) -> None:
    """Set up a fresh encoder for training, in place.

    Raises:
        GrafalignError: there are fewer blocks than are to be frozen, or peft cannot be loaded.
    """
    visual, tower = encoder.visual, encoder.tower
    blocks = tower.blocks()
    frozen = settings.freeze_blocks
    if frozen > len(blocks):
        raise InputError(
            f'tune.freeze_blocks is {frozen}, but {encoder.model} has {len(blocks)} blocks; give at most {len(blocks)}.'
        )
    if settings.lora is not None:
        _adapt(encoder, blocks[frozen:], settings.lora)
    elif frozen:
        above = {id(p) for block in blocks[frozen:] for p in block.parameters()} | {id(p) for p in encoder.image_head}
        for parameter in visual.parameters():
            parameter.requires_grad_(id(parameter) in above)
    encoder.grad_checkpointing = settings.grad_checkpointing


def merge(encoder: SatelliteEncoder) -> None:
    """Fold adapters into the weights they adapt, in place; the state dict is then that of a plain encoder.

    Without adapters nothing happens. Weights that were frozen stay so.
    """
    visual = encoder.visual
    if not hasattr(visual, 'peft_config'):
        return
    from peft.tuners.lora import LoraLayer

    for name, module in list(visual.named_modules()):
        if isinstance(module, LoraLayer):
            layer: Any = module
            layer.merge(safe_merge=True)
            _replace(visual, name, layer.get_base_layer())
    del visual.peft_config
    for name, module in list(visual.named_modules()):
        if isinstance(module, _Attention):
            _replace(visual, name, module.packed())


def trainable(encoder: SatelliteEncoder) -> int:
    """How many parameters are trained."""
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


def _adapt(encoder: SatelliteEncoder, blocks: list[nn.Module], settings: LoraSettings) -> None:
    """Put adapters on all linear layers of blocks and of a timm attention pool, and freeze what they adapt."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MachineError(
            f'tune.lora needs peft, which cannot be loaded ({error}); to install it: pip install "grafalign[lora]".'
        ) from None
    visual = encoder.visual
    for block in blocks:
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.MultiheadAttention):
                _replace(block, name, _Attention(module))
            if hasattr(module, 'qkv_bias_separate'):  # else EVA reads the weight of its layer and misses the adapter
                module.qkv_bias_separate = True
    pool = getattr(getattr(visual, 'trunk', None), 'attn_pool', None)
    adapted = {id(m) for part in [*blocks, *([pool] if pool is not None else [])] for m in part.modules()}
    names = [n for n, m in visual.named_modules() if isinstance(m, nn.Linear) and id(m) in adapted]
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names, bias='none'
    )
    inject_adapter_in_model(config, visual)
    for parameter in encoder.tower.projection():
        parameter.requires_grad_(True)


class _Attention(nn.Module):
    """Self-attention of a batch-first nn.MultiheadAttention with its packed weights as two linear layers.

    Shares the weights of the attention it is made from.
    """

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.dropout = packed.num_heads, packed.dropout
        self.qkv = _linear(packed.in_proj_weight, packed.in_proj_bias)
        self.proj = _linear(packed.out_proj.weight, packed.out_proj.bias)
        self.train(packed.training)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend from tokens [B, n, W] to themselves; key and value are taken to be the query, as in open_clip."""
        q, k, v = self.qkv(query).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        return self.proj(found.transpose(1, 2).flatten(2)), None

    def packed(self) -> nn.MultiheadAttention:
        """The attention as open_clip made it, with these weights."""
        width = self.proj.in_features
        out = nn.MultiheadAttention(width, self.heads, self.dropout, batch_first=True, device='meta')
        qkv, proj = cast(Any, self.qkv), cast(Any, self.proj)
        out.register_parameter('in_proj_weight', qkv.weight)
        out.register_parameter('in_proj_bias', qkv.bias)
        out.out_proj.register_parameter('weight', proj.weight)
        out.out_proj.register_parameter('bias', proj.bias)
        return out.train(self.training)


def _linear(weight: Any, bias: Any) -> nn.Linear:
    """A linear layer around parameters that exist."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device='meta')
    layer.register_parameter('weight', weight)
    layer.register_parameter('bias', bias)
    return layer


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another, by its dotted name."""
    parent, _, last = name.rpartition('.')
    setattr(root.get_submodule(parent), last, module)
