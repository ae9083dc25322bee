from __future__ import annotations

import torch

from training.models.projector import Projector


def test_starts_as_the_identity_and_can_leave_it() -> None:
    torch.manual_seed(0)
    projector = Projector(4, 8)
    tokens = torch.randn(2, 3, 4)
    torch.testing.assert_close(projector(tokens), tokens)
    with torch.no_grad():
        projector.correct[-1].weight.normal_()
    assert not torch.allclose(projector(tokens), tokens)


def test_works_token_by_token() -> None:
    torch.manual_seed(0)
    projector = Projector(4, 8)
    torch.nn.init.normal_(projector.correct[-1].weight)
    tokens = torch.randn(2, 3, 4)
    torch.testing.assert_close(projector(tokens)[:, 1], projector(tokens[:, 1:2])[:, 0])
