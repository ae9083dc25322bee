from __future__ import annotations

import numpy as np
import torch

from training.encoders.augmentation import augmented_view


def views(pixels: torch.Tensor, n: int) -> list[torch.Tensor]:
    return [augmented_view(pixels, np.random.default_rng(seed)) for seed in range(n)]


def test_views_are_pictures_of_the_same_size_drawn_by_their_seed() -> None:
    pixels = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    first, second = views(pixels, 2)
    for view in views(pixels, 40):
        assert view.shape == (3, 40, 40)
        assert view.min() >= 0 and view.max() <= 1
    torch.testing.assert_close(views(pixels, 1)[0], first)
    assert not torch.allclose(first, second)


def test_a_fifth_of_the_views_is_grey_and_of_a_grey_picture_all() -> None:
    colored = torch.tensor([0.8, 0.3, 0.1])[:, None, None].expand(3, 8, 8)
    spread = torch.stack([(v.amax(dim=0) - v.amin(dim=0)).max() for v in views(colored, 400)])
    assert 0.14 < (spread < 1e-6).float().mean() < 0.26
    for view in views(torch.full((3, 8, 8), 0.3), 40):
        torch.testing.assert_close(view[0], view[1], atol=1e-3, rtol=0)


def test_a_crop_keeps_half_of_the_area_at_least() -> None:
    row = torch.linspace(0, 1, 64)
    across, down = row.expand(3, 64, 64), row[:, None].expand(3, 64, 64)
    n_checked = 0
    for seed in range(300):
        # Of a ramp, the range of the view is the extent of the crop, where colors stay as they are.
        rng = np.random.default_rng(seed)
        if rng.random() < 0.8 or rng.random() < 0.2 or rng.random() < 0.2 or rng.random() < 0.1:
            continue
        width, height = (
            (view.max() - view.min()).item()
            for view in (
                augmented_view(ramp, np.random.default_rng(seed)) for ramp in (across, down)
            )
        )
        assert 0.45 < width * height <= 1
        assert 0.7 < width / height < 1.45
        n_checked += 1
    assert n_checked > 20
