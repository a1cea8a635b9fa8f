"""Image towers of CLIP models: how each kind is taken apart into patch tokens, blocks and head.

Kinds: open_clip's own vision transformer, with a class token, the mean of the patches or an attention pool (CoCa); and
timm's transformers inside open_clip's `TimmModel`: class token or mean, SigLIP's attention pool, EVA, hybrids.

A tower is a view of `visual`, the module that open_clip made, and no module itself: the encoder owns `visual`, so that
its state dict is open_clip's. In the shapes W is the width of tokens, D of embeddings, N the number of patches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from grafalign.errors import InputError


class Tower(ABC):
    """What the satellite encoder and its tuning need to know of one kind of image tower."""

    patch_px: int
    """Side of a patch."""
    drops = True
    """Whether some patches can be left out."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual

    @abstractmethod
    def run(self, images: Tensor, keep: Tensor | None, saving: bool) -> tuple[Tensor, Tensor]:
        """Embed images.

        Args:
            images: normalised, [B, C, H, W].
            keep: indices [B, n] of the patches that go through the blocks, in reading order of the grid; all if None.
            saving: recompute blocks in the backward pass instead of keeping what they need (gradient checkpointing).

        Returns:
            CLIP's image embedding [B, D], not normalised, and the patch tokens of the last block [B, n, W].
        """

    @abstractmethod
    def resize(self, size_px: int) -> None:
        """Resample the position embeddings for images of another size, in place."""

    @abstractmethod
    def first_conv(self) -> nn.Conv2d:
        """The convolution that sees the bands."""

    @abstractmethod
    def token_norm(self) -> nn.Module:
        """The tower's own norm of the patch tokens of the last block."""

    @abstractmethod
    def patch_start(self) -> Tensor:
        """The bias-free projection [D, W] of normed patch tokens that the patch head starts from."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks, lowest first."""

    @abstractmethod
    def projection(self) -> list[nn.Parameter]:
        """The linear layers that end in CLIP's space."""

    @abstractmethod
    def head(self) -> list[nn.Parameter]:
        """What only the image embedding goes through: norm, pooling and projection."""


class OpenClipTower(Tower):
    """open_clip's VisionTransformer: one class token, then N patches."""

    def __init__(self, visual: Any) -> None:
        super().__init__(visual)
        self.patch_px = int(visual.patch_size[0])

    def run(self, images: Tensor, keep: Tensor | None, saving: bool) -> tuple[Tensor, Tensor]:
        """See `Tower`."""
        tokens = _through(self.visual.transformer.resblocks, _select(self.visual._embeds(images), keep, 1), saving)
        pooled, _ = self.visual._pool(tokens)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj, tokens[:, 1:]

    def resize(self, size_px: int) -> None:
        """See `Tower`."""
        side = size_px // self.patch_px
        self.visual.positional_embedding = nn.Parameter(_resample(self.visual.positional_embedding.detach(), side))
        self.visual.grid_size = (side, side)
        self.visual.image_size = (size_px, size_px)

    def first_conv(self) -> nn.Conv2d:
        """See `Tower`."""
        return self.visual.conv1

    def token_norm(self) -> nn.Module:
        """CLIP's own final norm; before an attention pool its norm of keys."""
        return self.visual.ln_post if self.visual.attn_pool is None else self.visual.attn_pool.ln_k

    def patch_start(self) -> Tensor:
        """CLIP's own final projection; before an attention pool its value path."""
        if self.visual.attn_pool is None:
            width = len(self.visual.ln_post.weight)
            return torch.eye(width) if self.visual.proj is None else self.visual.proj.T
        attention = self.visual.attn_pool.attn
        value = attention.in_proj_weight.chunk(3)[2] if attention._qkv_same_embed_dim else attention.v_proj_weight
        path = attention.out_proj.weight @ value
        # ln_post follows: per token it is linear but for a length that is normalised away in the end
        path = self.visual.ln_post.weight[:, None] * (path - path.mean(0))
        return path if self.visual.proj is None else self.visual.proj.T @ path

    def blocks(self) -> list[nn.Module]:
        """See `Tower`."""
        return list(self.visual.transformer.resblocks)

    def projection(self) -> list[nn.Parameter]:
        """See `Tower`."""
        return _parameters([self.visual.proj])

    def head(self) -> list[nn.Parameter]:
        """See `Tower`."""
        return _parameters([self.visual.ln_post, self.visual.attn_pool, self.visual.proj])


class TimmTower(Tower):
    """A transformer of timm in open_clip's adapter: `trunk` gives prefix tokens and N patches, `head` projects."""

    def __init__(self, visual: Any) -> None:
        from timm.models.vision_transformer import VisionTransformer

        super().__init__(visual)
        trunk = visual.trunk
        self.patch_px = int(trunk.patch_embed.feat_ratio())
        # others (EVA's rotary, relative positions) place tokens inside their blocks by the whole grid
        self.drops = isinstance(trunk, VisionTransformer) and all(
            getattr(type(trunk), step) is getattr(VisionTransformer, step)
            for step in ('forward_features', '_pos_embed')
        )

    def run(self, images: Tensor, keep: Tensor | None, saving: bool) -> tuple[Tensor, Tensor]:
        """See `Tower`."""
        trunk = self.visual.trunk
        if self.drops:
            embedded = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(images)))
            tokens = _through(trunk.blocks, _select(embedded, keep, trunk.num_prefix_tokens), saving)
            final, patches = trunk.norm(tokens), tokens[:, trunk.num_prefix_tokens :]
        else:
            trunk.set_grad_checkpointing(saving)
            final, (patches,) = trunk.forward_intermediates(images, indices=1, norm=False, output_fmt='NLC')
        return self.visual.head(trunk.forward_head(final)), patches

    def resize(self, size_px: int) -> None:
        """See `Tower`."""
        self.visual.trunk.set_input_size((size_px, size_px))
        self.visual.image_size = (size_px, size_px)

    def first_conv(self) -> nn.Conv2d:
        """See `Tower`."""
        return next(m for m in self.visual.trunk.patch_embed.modules() if isinstance(m, nn.Conv2d))

    def token_norm(self) -> nn.Module:
        """See `Tower`."""
        trunk = self.visual.trunk
        norm: nn.Module = getattr(trunk, 'fc_norm', trunk.norm) if isinstance(trunk.norm, nn.Identity) else trunk.norm
        return norm

    def patch_start(self) -> Tensor:
        """CLIP's own final linear layers.

        An attention pool counts by its value and output projections, as MaskCLIP takes dense features from CLIP's
        (Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022): what it would make of a patch if it attended to
        that patch alone. What is not linear (the pool's MLP, the activation of an MLP projection) and biases are left
        out; training has to make up for it.
        """
        trunk = self.visual.trunk
        path = torch.eye(trunk.num_features)
        pool: Any = getattr(trunk, 'attn_pool', None)
        if hasattr(pool, 'kv'):
            path = pool.kv.weight.chunk(2)[1]
            path = pool.proj.weight @ path if isinstance(pool.proj, nn.Linear) else path
        for module in (trunk.head, *self.visual.head.modules()):
            if isinstance(module, nn.Linear):
                path = module.weight @ path.to(module.weight)
        return path

    def blocks(self) -> list[nn.Module]:
        """See `Tower`."""
        return list(self.visual.trunk.blocks)

    def projection(self) -> list[nn.Parameter]:
        """See `Tower`."""
        return _parameters([self.visual.trunk.head, self.visual.head])

    def head(self) -> list[nn.Parameter]:
        """See `Tower`."""
        trunk = self.visual.trunk
        pool = getattr(trunk, 'attn_pool', None)
        return _parameters([trunk.norm, getattr(trunk, 'fc_norm', None), pool, trunk.head, self.visual.head])


def tower_of(visual: Any, model: str) -> Tower:
    """The kind of an image tower; patch dropout of its own is switched off, as the encoder is told what to keep.

    Args:
        visual: image tower of a CLIP model of open_clip.
        model: its name, for errors.

    Raises:
        GrafalignError: it gives no patch tokens (a convolutional network, windows that merge), or no single vector.
    """
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import PatchDropout as OpenClipDropout
    from open_clip.transformer import VisionTransformer
    from timm.layers import PatchDropout, PatchDropoutWithIndices

    tower: Tower | None = None
    if isinstance(visual, VisionTransformer):
        if visual.pool_type in ('tok', 'avg') and visual.patch_size[0] == visual.patch_size[1]:
            tower = OpenClipTower(visual)
    elif isinstance(visual, TimmModel):
        trunk = visual.trunk
        parts = ('patch_embed', 'blocks', 'num_prefix_tokens', 'forward_intermediates', 'set_input_size')
        if all(hasattr(trunk, part) for part in parts) and hasattr(trunk.patch_embed, 'feat_ratio'):
            tower = TimmTower(visual)
    if tower is None:
        raise InputError(
            f'{model} has no plain vision transformer as image tower; use a ViT such as ViT-B-16 or ViT-B-16-SigLIP.'
        )
    for module in visual.modules():
        if isinstance(module, OpenClipDropout | PatchDropout | PatchDropoutWithIndices):
            module.prob = 0.0
    return tower


def _through(blocks: Iterable[nn.Module], tokens: Tensor, saving: bool) -> Tensor:
    """Tokens [B, n, W] after all blocks."""
    for block in blocks:
        tokens = checkpoint(block, tokens, use_reentrant=False) if saving else block(tokens)
    return tokens


def _select(tokens: Tensor, keep: Tensor | None, prefix: int) -> Tensor:
    """The prefix tokens and the kept ones of the N that follow."""
    if keep is None:
        return tokens
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    return torch.cat([tokens[:, :prefix], tokens[rows, keep + prefix]], dim=1)


def _resample(positions: Tensor, side: int) -> Tensor:
    """Position embeddings [1 + g * g, W] of the class token and a grid, for a grid of another size."""
    old = round((len(positions) - 1) ** 0.5)
    grid = rearrange(positions[1:], '(h w) d -> 1 d h w', h=old)
    grid = functional.interpolate(grid, (side, side), mode='bicubic', antialias=True, align_corners=False)
    return torch.cat([positions[:1], rearrange(grid, '1 d h w -> (h w) d')])


def _parameters(parts: Iterable[nn.Module | nn.Parameter | None]) -> list[nn.Parameter]:
    """All parameters of modules, parameters and absent parts."""
    found: list[nn.Parameter] = []
    for part in parts:
        found += [part] if isinstance(part, nn.Parameter) else [] if part is None else list(part.parameters())
    return found
