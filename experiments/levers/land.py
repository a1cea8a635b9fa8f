"""Self-training on land that nobody photographs: a finished run names tiles of random places, and these teach another.

The teacher scores every tile for the words of a list, less each word's mean over the tiles; of the tiles of each word
the surest half keeps it, so that an easy word does not fill the set (Zou et al., ECCV 2018). They become a caption set,
one half of the student's batches, and photos the other. `shuffled` gives every tile the word of another: the same
steps and words, without what the teacher saw.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from experiments.captions.places import tiles_to_caption
from experiments.levers.worth import tile_vectors
from experiments.study import CLIP
from grafalign.captions import CaptionSet
from grafalign.captions.sources.tiles import read_tiles
from grafalign.captions.write_set import SetWriter
from grafalign.encoders import embed_texts, load_clip
from grafalign.training import SatelliteModel
from grafalign.training.word_list import SHIPPED, read_words
from grafalign.zeroshot import class_vectors

SHARE = 0.5


def named_land(world: Path, seed: int, teacher: SatelliteModel, out: Path, shuffled: bool) -> Path:
    """A caption set of the random places that a teacher is sure of; one that is there stays."""
    if (out / 'bank' / 'bank.json').is_file():
        return out
    store, _ = tiles_to_caption(world, seed)
    names = read_words(SHIPPED)
    scores = tile_vectors(teacher, store, np.arange(len(store.tiles))) @ class_vectors(teacher.clip, names).T
    word, kept = surest_words(scores - scores.mean(0), SHARE)
    if shuffled:
        word[kept] = np.random.default_rng((seed, 71)).permutation(word[kept])
    tiles = list(read_tiles(store))
    with SetWriter(out) as writer:
        for row in np.flatnonzero(kept).tolist():
            image = writer.add_image(image_id=tiles[row].image_id, **tiles[row].metadata)
            text = f'a photo of {names[word[row]]}.'
            writer.add_caption(image=image, image_id=tiles[row].image_id, text=text, kind='model', writer='teacher')
        writer.finish({'words': len(names), 'share': SHARE, 'seed': seed}, None, (str(store.path), store.digest))
    embed_texts(CaptionSet(out), load_clip(CLIP))
    return out


def surest_words(scores: npt.NDArray[np.float32], share: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The best word of every tile, and whether it is among the surest of that word, both [N].

    Worked example: of scores (0.9, 0), (0.5, 0), (0, 0.1) and a share of 0.5 the first and the last tile are kept.
    """
    word = scores.argmax(1)
    kept = np.zeros(len(scores), dtype=bool)
    for number in np.unique(word):
        mine = np.flatnonzero(word == number)
        kept[mine[np.argsort(-scores[mine, number])[: max(1, round(share * len(mine)))]]] = True
    return word, kept
