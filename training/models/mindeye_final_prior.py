"""MindEye's diffusion-prior network of the final CLIP embedding, a single token.

It is the prior that DALLE2-pytorch 1.14.2 trains from text to image, with the brain in the place of
the text embedding (Scotti et al. 2023, arXiv:2305.18274, appendix and code; Ramesh et al. 2022,
arXiv:2204.06125, section 2.2). Its causal sequence is [text tokens | brain | time | noised image |
query], and the output at the query is the estimate. There is no text: all text tokens are the
learned ones that stand for nothing. What comes out of them depends on no input and, the attention
being causal, on nothing that follows; so they pass through the network as one row for the whole
batch, and each embedding as the four tokens after them. With dropout in training each row has its
own, as published.

Layers and positions are those of `MindEyePrior`. Shapes: ``B`` embeddings, ``D`` width, ``P`` text
tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .mindeye_prior import (
    CosineLayer,
    DistanceBias,
    GainNorm,
    Places,
    by_largest,
    step_features,
    time_mlp,
)

_N_OWN = 4  # brain, time, noised image, query


class MindEyeFinalPrior(nn.Module):
    """Estimate the clean final embedding from a noised one and the brain's.

    Parameters
    ----------
    dim : int
        768 in MindEye. Must be even.
    depth, n_heads, head_dim : int
    n_text : int
        Learned text tokens before the brain; 256 in MindEye.
    n_steps : int or None
        Diffusion steps, of which each has a learned time token; None: time tokens from sines, as
        in `MindEyePrior`.
    dropout : float in [0, 1)
    inner_norm : bool
        See `CosineLayer`.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        n_heads: int,
        head_dim: int,
        n_text: int,
        n_steps: int | None,
        dropout: float,
        inner_norm: bool,
    ) -> None:
        super().__init__()
        self.dim, self.head_dim, self.dropout = dim, head_dim, dropout
        self.time_in = time_mlp(dim) if n_steps is None else nn.Embedding(n_steps, dim)
        self.text = nn.Parameter(torch.randn(1, n_text, dim))
        self.query = nn.Parameter(torch.randn(dim))
        self.null_brain = nn.Parameter(torch.randn(1, 1, dim))
        self.null_image = nn.Parameter(torch.randn(1, dim))
        self.bias = DistanceBias(n_heads)
        self.layers = nn.ModuleList(
            CosineLayer(dim, n_heads, head_dim, dropout=dropout, inner_norm=inner_norm)
            for _ in range(depth)
        )
        self.norm = GainNorm(dim)
        self.image_out = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        noised: Tensor,
        step: Tensor,
        brain: Tensor,
        *,
        drop_brain: Tensor | None = None,
        drop_image: Tensor | None = None,
    ) -> Tensor:
        """Return the estimate of the clean embedding.

        Parameters
        ----------
        noised : Tensor of shape (B, 1, D), scaled units
        step : LongTensor of shape (B,)
        brain : Tensor of shape (B, 1, D)
            The trunk's token, not scaled.
        drop_brain, drop_image : bool Tensor of shape (B,), optional
            As in `MindEyePrior`.

        Returns
        -------
        clean : Tensor of shape (B, 1, D), scaled units
        """
        if drop_brain is not None:
            brain = torch.where(drop_brain[:, None, None], self.null_brain.to(brain), brain)
        if drop_image is not None:
            noised = torch.where(drop_image[:, None, None], self.null_image.to(noised), noised)
        is_table = isinstance(self.time_in, nn.Embedding)
        time = self.time_in(step if is_table else step_features(step, self.dim))[:, None]
        query = self.query.expand(len(noised), 1, -1)
        own = torch.cat((brain, time.to(noised), noised, query.to(noised)), dim=1)
        rows = len(noised) if self.training and self.dropout else 1
        text = self.text.expand(rows, -1, -1)
        n_text = text.shape[1]
        places = self.bias.places(n_text + _N_OWN, self.head_dim, is_causal=True)
        places_of_text = _of_beginning(places, n_text)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, CosineLayer)  # which ModuleList does not say
            past = layer.attention.remember(text, places_of_text)
            own = layer(own, places, 1 if number == last else _N_OWN, past)
            if number < last:
                text = layer(text, places_of_text, n_text)
        clean: Tensor = self.image_out(self.norm(by_largest(own)))
        return clean


def _of_beginning(places: Places, n: int) -> Places:
    """Return the tables of the first ``n`` positions, which see nothing after them."""
    return Places(places.cosine[:n], places.sine[:n], places.bias[:, :n, : n + 1])
