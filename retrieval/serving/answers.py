"""Answers: what our own API gives, as OpenAPI tells it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from index_builder.embeddings.space import Layer

from .questions import Row


class Hit(BaseModel):
    """A row that was found."""

    rank: Annotated[int, Field(ge=0, description="From 0, the best first.", examples=[0])]
    row: Row
    score: Annotated[
        float, Field(description="Cosine with the stored vector, in [-1, 1].", examples=[0.81])
    ]
    n_duplicates: Annotated[
        int, Field(ge=0, description="Rows that were left out as near-duplicates of this one.")
    ]
    metadata: Annotated[dict[str, Any], Field(description="The columns that were asked for.")]
    picture: Annotated[
        str | None,
        Field(description="Where its picture is served; null where there is none."),
    ]


class Result(BaseModel):
    """What was found for a query."""

    hits: Annotated[list[Hit], Field(description="At most k, the best first.")]
    confidence: Annotated[
        float | None,
        Field(
            description="Probability that the first hit is the seen image; null where nothing was "
            "fitted that says so."
        ),
    ]


class SearchAnswer(BaseModel):
    """Hits of all queries."""

    index: Annotated[str, Field(description="Its name.")]
    fingerprint: Annotated[str, Field(description="Of the index: 64 hexadecimal digits.")]
    k: Annotated[int, Field(ge=1)]
    effort: Annotated[
        dict[str, int],
        Field(
            description="`n_probe` or `ef_search`, and `n_candidates`; empty for a flat index.",
            examples=[{"n_probe": 32, "n_candidates": 200}],
        ),
    ]
    seconds: Annotated[
        float, Field(ge=0, description="That the search took, with the queries it went with.")
    ]
    shards_missing: Annotated[
        list[str],
        Field(description="Shards that didn't answer in time; empty: none is missing."),
    ]
    results: Annotated[list[Result], Field(description="One a query, in order.")]


class Space(BaseModel):
    """What vectors of an index mean."""

    model: Annotated[str, Field(examples=["ViT-L-14/openai"])]
    layer: Layer
    tokens: Annotated[int, Field(ge=1)]
    dim: Annotated[int, Field(ge=1)]
    unit_norm: bool


class Takes(BaseModel):
    """What a query of an index may be, beside a vector."""

    text: Annotated[bool, Field(description="Words.")]
    image: Annotated[bool, Field(description="A picture.")]
    trial: Annotated[bool, Field(description="A trial of one of the runs.")]


class IndexFacts(BaseModel):
    """An index that is served."""

    name: Annotated[str, Field(examples=["demo"])]
    fingerprint: Annotated[str, Field(description="64 hexadecimal digits.")]
    n_rows: Annotated[int, Field(ge=0, description="Rows that were taken down counted.")]
    space: Space
    design: Annotated[str, Field(examples=["ivf-rabitq"])]
    columns: Annotated[list[str], Field(description="Metadata columns.")]
    certificate: Annotated[
        str, Field(description="What was measured of the index when it was built, in a sentence.")
    ]
    has_pictures: Annotated[bool, Field(description="Whether the server holds pictures of rows.")]
    takes: Takes


class IndexHealth(BaseModel):
    """An index, briefly."""

    name: str
    fingerprint: str
    n_rows: int


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"]
    version: Annotated[str, Field(description="Of voxseek.")]
    indexes: list[IndexHealth]


class RowMetadata(BaseModel):
    """A row and what is known of it."""

    row: Row
    metadata: dict[str, Any]


class RunFacts(BaseModel):
    """A run whose brain may be asked."""

    name: Annotated[str, Field(examples=["run01"])]
    subject: Annotated[str, Field(examples=["subj01"])]
    n_images: Annotated[int, Field(ge=0, description="Images of the split, each a query.")]
    split: Annotated[str, Field(examples=["test"])]


class Trial(BaseModel):
    """An image that a subject saw."""

    image_id: Annotated[int, Field(ge=0)]
    n_trials: Annotated[int, Field(ge=1, description="Presentations that are averaged.")]
    caption: Annotated[str | None, Field(description="null where there is none.")]


class ErrorFacts(BaseModel):
    """What went wrong."""

    code: Annotated[str, Field(description="For programs.", examples=["unknown_index"])]
    message: Annotated[str, Field(description="For people.")]


class ErrorAnswer(BaseModel):
    """Every answer that isn't 200."""

    error: ErrorFacts
