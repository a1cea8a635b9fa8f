"""A CLIP in open_clip's form whose frozen text tower is a bag of word vectors, for machines that reach no hub.

    pip install wordllama
    python -m experiments.captions.aid.word_clip OUT TRAIN_SET

The text tower is open_clip's transformer with one block of known weights: queries and keys are zero, so that the last
token's attention is the mean of all tokens before it; values are the tokens' own vectors; the MLP is zero. A token's
vector is the mean of WordLlama's vectors of its letters (static vectors, 256 numbers each). The projection centres
sentences and whitens them to 128 dimensions, fitted on the training captions, as raw means of words are all alike. The
image tower is a vision transformer without any training.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from grafalign.captions import CaptionSet

WIDTH, DEPTH, CONTEXT = 256, 128, 48
CONFIG: dict[str, Any] = {
    'embed_dim': DEPTH,
    'vision_cfg': {'image_size': 72, 'layers': 6, 'width': 192, 'head_width': 32, 'patch_size': 9},
    'text_cfg': {'context_length': CONTEXT, 'vocab_size': 49408, 'width': WIDTH, 'heads': 4, 'layers': 1},
}
PREPROCESS = {
    'mean': [0.48145466, 0.4578275, 0.40821073],
    'std': [0.26862954, 0.26130258, 0.27577711],
    'interpolation': 'bicubic',
    'resize_mode': 'shortest',
}


def token_vectors() -> npt.NDArray[np.float32]:
    """A vector for each token of CLIP's byte pair encoding, [49408, 256]; zero for the marks of begin and end."""
    from open_clip.tokenizer import SimpleTokenizer
    from tokenizers import Tokenizer

    package = importlib.util.find_spec('wordllama')  # its files are wanted, not its code
    if package is None or package.origin is None:
        raise SystemExit('Install wordllama, for its word vectors.')
    folder = Path(package.origin).parent
    vectors = load_file(folder / 'weights' / 'l2_supercat_256.safetensors')['embedding.weight'].float().numpy()
    letters = Tokenizer.from_file(str(folder / 'tokenizers' / 'l2_supercat_tokenizer_config.json'))
    letters.no_padding()
    found = np.zeros((49408, WIDTH), dtype=np.float32)
    clip = SimpleTokenizer()
    for number in range(49406):
        word = clip.decode([number]).strip()
        ids = letters.encode(word, add_special_tokens=False).ids if word else []
        if ids:
            found[number] = vectors[ids].mean(0)
    return found


def make_word_clip(out: Path, captions: list[str], seed: int = 0) -> None:
    """Write the folder.

    Args:
        out: folder to write.
        captions: sentences that the projection is fitted on.
        seed: of the image tower's first weights.
    """
    import open_clip

    torch.manual_seed(seed)
    model = open_clip.model.CLIP(**CONFIG).eval()
    vectors = token_vectors()
    block = model.transformer.resblocks[0]
    with torch.no_grad():
        model.token_embedding.weight.copy_(torch.from_numpy(vectors / vectors.std()))
        model.positional_embedding.zero_()
        block.attn.in_proj_weight.zero_()
        block.attn.in_proj_weight[2 * WIDTH :].copy_(torch.eye(WIDTH))
        block.attn.in_proj_bias.zero_()
        block.attn.out_proj.weight.copy_(torch.eye(WIDTH))
        block.attn.out_proj.bias.zero_()
        block.mlp.c_proj.weight.zero_()
        block.mlp.c_proj.bias.zero_()
        model.text_projection.data = torch.eye(WIDTH)
        tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
        distinct = sorted(set(captions))
        parts = [model.encode_text(tokenizer(distinct[i : i + 512])) for i in range(0, len(distinct), 512)]
        pooled = torch.cat(parts).double()
        mean = pooled.mean(0)
        values, axes = torch.linalg.eigh(torch.cov((pooled - mean).T))
        white = axes[:, -DEPTH:] / (values[-DEPTH:] + values[-DEPTH:].mean() * 0.1).sqrt()
        model.ln_final.bias.copy_(-mean)
        model.text_projection.data = white.float()
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, out / 'open_clip_model.safetensors')
    content = {'model_cfg': CONFIG, 'preprocess_cfg': PREPROCESS}
    (out / 'open_clip_config.json').write_text(json.dumps(content, indent=2))


def main() -> None:
    """Make one from the captions of a set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('captions', type=Path, help='caption set whose texts the projection is fitted on')
    args = parser.parse_args()
    make_word_clip(args.out, CaptionSet(args.captions).captions['text'].cast('string').to_pylist())


if __name__ == '__main__':
    main()
