"""Augmentation moves photo positions with the pixels."""

from __future__ import annotations

import torch

from grafalign.training.augment import move, symmetry

SIZE = 12


def test_positions_follow_a_marked_pixel() -> None:
    """The position of a marked pixel's centre, moved, is the centre of the marked pixel of the moved image."""
    for which in range(8):
        for row in range(SIZE):
            col = (5 * row + 2) % SIZE
            image = torch.zeros(1, 1, SIZE, SIZE)
            image[0, 0, row, col] = 1
            out = symmetry(image, torch.tensor([which]))
            r, c = move(torch.tensor([row + 0.5]), torch.tensor([col + 0.5]), torch.tensor([which]), SIZE)
            assert out[0, 0, int(r), int(c)] == 1, which
            assert (r % 1, c % 1) == (0.5, 0.5)


def test_the_eight_symmetries_differ() -> None:
    """No two of the eight codes give the same image, and code 0 changes nothing."""
    image = torch.arange(SIZE * SIZE, dtype=torch.float32).view(1, 1, SIZE, SIZE)
    views = {tuple(symmetry(image, torch.tensor([k])).flatten().tolist()) for k in range(8)}
    assert len(views) == 8
    assert torch.equal(symmetry(image, torch.tensor([0])), image)


def test_each_image_gets_its_own_symmetry() -> None:
    """A batch transformed together equals its images transformed one by one."""
    images = torch.rand(8, 3, SIZE, SIZE)
    codes = torch.arange(8)
    together = symmetry(images, codes)
    alone = torch.cat([symmetry(images[i : i + 1], codes[i : i + 1]) for i in range(8)])
    assert torch.equal(together, alone)
