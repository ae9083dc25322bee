"""EmbeddingSpace: what must agree before two sets of embeddings may be compared."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from .errors import EmbeddingError, SpaceMismatchError

Layer = Literal["final", "hidden", "patches"]
_WRITTEN = re.compile(r"(.+):(\w+):(\d+)x(\d+)(?::(unit|any))?")


@dataclass(frozen=True)
class EmbeddingSpace:
    """The space in which embeddings live; it travels with every folder, run and index.

    Parameters
    ----------
    model : str
        The image encoder, for example ``"ViT-L-14/openai"``.
    layer : {"final", "hidden", "patches"}
        ``final``: the pooled and projected output; ``hidden``: all tokens of the last layer;
        ``patches``: those of the picture's patches alone, in the width of the layer.
    tokens : int
        Tokens an image, 1 for ``final``.
    dim : int
        Width of one token.
    unit_norm : bool
        Whether each embedding was divided by its Euclidean norm (over all its tokens).
    """

    model: str
    layer: Layer
    tokens: int
    dim: int
    unit_norm: bool

    def __post_init__(self) -> None:
        if not self.model:
            raise EmbeddingError("the model of an embedding space is empty; name the encoder.")
        if self.layer not in get_args(Layer):
            raise EmbeddingError(f"layer is {self.layer!r}, expected one of {get_args(Layer)}.")
        if self.tokens < 1 or self.dim < 1:
            raise EmbeddingError(
                f"tokens is {self.tokens} and dim is {self.dim}; both must be at least 1."
            )

    @property
    def width(self) -> int:
        """Numbers an embedding: ``tokens * dim``."""
        return self.tokens * self.dim

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one embedding: ``(dim,)``, or ``(tokens, dim)`` where there are several."""
        return (self.dim,) if self.tokens == 1 else (self.tokens, self.dim)

    def __str__(self) -> str:
        norm = "unit norm" if self.unit_norm else "any norm"
        return f"{self.model}:{self.layer} ({self.tokens} x {self.dim}, {norm})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serialisable dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> EmbeddingSpace:
        """Rebuild a space from `to_dict`.

        Raises
        ------
        EmbeddingError
            If a field is missing, unknown, or out of range.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise EmbeddingError(
                f"an embedding space needs exactly model, layer, tokens, dim and unit_norm; "
                f"found {sorted(fields)}."
            ) from error

    @classmethod
    def parse(cls, text: str) -> EmbeddingSpace:
        """Read a space from ``MODEL:LAYER:TOKENSxDIM[:unit|any]``, as the command line takes it.

        The norm is ``unit`` unless ``any`` is said.

        Raises
        ------
        EmbeddingError
            If the text is not of this form.
        """
        match = _WRITTEN.fullmatch(text)
        if match is None:
            raise EmbeddingError(
                f"{text!r} names no embedding space; expected MODEL:LAYER:TOKENSxDIM[:unit|any], "
                f"for example ViT-L-14/openai:final:1x768."
            )
        model, layer, tokens, dim, norm = match.groups()
        return cls(model, layer, int(tokens), int(dim), norm != "any")  # type: ignore[arg-type] # checked in __post_init__

    def require_comparable(self, other: EmbeddingSpace, *, mine: str, theirs: str) -> None:
        """Raise unless cosines between the two spaces mean something.

        Norms may differ, for a cosine ignores them; model, layer, tokens and dim may not.

        Parameters
        ----------
        other : EmbeddingSpace
        mine, theirs : str
            What holds each space, for the message: usually a path.

        Raises
        ------
        SpaceMismatchError
        """
        if (self.model, self.layer, self.tokens, self.dim) != (
            other.model,
            other.layer,
            other.tokens,
            other.dim,
        ):
            raise SpaceMismatchError(
                f"embedding spaces differ.\n"
                f"  {mine}: {self}\n"
                f"  {theirs}: {other}\n"
                f"Embed one side again with the other's model and layer (voxseek embed), "
                f"or train on targets of that space."
            )
