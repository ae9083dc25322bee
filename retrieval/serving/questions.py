"""Questions: what our own API takes, as OpenAPI tells it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from ..searching.request import DUPLICATE_FROM, UNSAFE_FROM, WATERMARKED_FROM, SearchRequest

_MOST_ROW = 2**63 - 1
_MOST_TEXT = 10_000
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _whole(value: Any) -> Any:
    """Return 3.0 as 3: JSON has one kind of number, and JSON Schema calls both integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Vector = Annotated[
    list[float],
    Field(
        min_length=1, description="A number for each of the index's width; of any norm but zero."
    ),
]
Text = Annotated[
    str, Field(min_length=1, max_length=_MOST_TEXT, description="Words; where `takes.text`.")
]
ImageBase64 = Annotated[
    str,
    Field(
        min_length=1,
        description="A PNG, JPEG, WebP, GIF, BMP or TIFF in base64; where `takes.image`.",
    ),
]
RunName = Annotated[str, Field(min_length=1, description="A run of `/api/runs`.")]
ImageId = Annotated[
    Whole, Field(ge=0, le=_MOST_ROW, description="The image that its subject saw, by its number.")
]
Weight = Annotated[
    float,
    Field(
        ge=-1e6,
        le=1e6,
        description="Of this part, whose norm is 1 before; a negative one leads away from it.",
    ),
]
Row = Annotated[Whole, Field(ge=0, le=_MOST_ROW, description="Row of the gallery, counted from 0.")]


class VectorQuery(BaseModel):
    """A vector of the index's space."""

    model_config = ConfigDict(**_STRICT, json_schema_extra={"examples": [{"vector": [0.1, -0.2]}]})
    vector: Vector


class TextQuery(BaseModel):
    """Words, encoded by the server."""

    model_config = ConfigDict(**_STRICT, json_schema_extra={"examples": [{"text": "a zebra"}]})
    text: Text


class ImageQuery(BaseModel):
    """A picture, encoded by the server."""

    model_config = ConfigDict(
        **_STRICT, json_schema_extra={"examples": [{"image": "iVBORw0KGgo="}]}
    )
    image: ImageBase64


class TrialQuery(BaseModel):
    """What a brain says it saw while an image was shown."""

    model_config = ConfigDict(
        **_STRICT, json_schema_extra={"examples": [{"run": "run01", "image_id": 12}]}
    )
    run: RunName
    image_id: ImageId


class VectorPart(VectorQuery):
    """A vector, weighted."""

    weight: Weight


class TextPart(TextQuery):
    """Words, weighted."""

    weight: Weight


class ImagePart(ImageQuery):
    """A picture, weighted."""

    weight: Weight


class TrialPart(TrialQuery):
    """A trial, weighted."""

    weight: Weight


def _kind(value: Any) -> str | None:
    for kind in ("mix", "vector", "text", "image", "run"):
        if (kind in value) if isinstance(value, dict) else hasattr(value, kind):
            return kind
    return None


_BY_KIND = Discriminator(
    _kind,
    custom_error_type="no_kind",
    custom_error_message="one of vector, text, image, run with image_id, or mix, is expected",
)

Part = Annotated[
    Annotated[VectorPart, Tag("vector")]
    | Annotated[TextPart, Tag("text")]
    | Annotated[ImagePart, Tag("image")]
    | Annotated[TrialPart, Tag("run")],
    _BY_KIND,
]


class MixQuery(BaseModel):
    """The weighted sum of several, each of norm 1."""

    model_config = ConfigDict(
        **_STRICT,
        json_schema_extra={
            "examples": [
                {
                    "mix": [
                        {"weight": 1.0, "run": "run01", "image_id": 12},
                        {"weight": -0.3, "text": "a drawing"},
                    ]
                }
            ]
        },
    )
    mix: Annotated[list[Part], Field(min_length=1, max_length=16)]


Query = Annotated[
    Annotated[VectorQuery, Tag("vector")]
    | Annotated[TextQuery, Tag("text")]
    | Annotated[ImageQuery, Tag("image")]
    | Annotated[TrialQuery, Tag("run")]
    | Annotated[MixQuery, Tag("mix")],
    _BY_KIND,
]

Single = VectorQuery | TextQuery | ImageQuery | TrialQuery

IndexName = Annotated[
    str | None,
    Field(description="A name of `/api/indexes`; may be left out where there is one index."),
]
Probability = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(gt=0, le=1)]


class Asked(BaseModel):
    """What is asked of a search beside the queries."""

    model_config = _STRICT

    k: Annotated[Whole, Field(ge=1, description="Hits a query.")] = 16
    where: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=_MOST_TEXT,
            description="An SQL predicate over the metadata columns, such as `width >= 512`; only "
            "rows for which it is true are found.",
        ),
    ] = None
    unsafe_from: Annotated[
        Probability | None,
        Field(
            description="Rows whose `punsafe` is not below this are never found; null: they are."
        ),
    ] = UNSAFE_FROM
    watermarked_from: Annotated[
        Probability | None,
        Field(
            description=f"The same for `pwatermark`; LAION's own threshold is {WATERMARKED_FROM}."
        ),
    ] = None
    duplicate_from: Annotated[
        Cosine | None,
        Field(
            description="A hit whose vector has at least this cosine with a better hit's is left "
            f"out and counted as its duplicate; {DUPLICATE_FROM} is clip-retrieval's. null: all "
            "are kept."
        ),
    ] = None
    aesthetic_weight: Annotated[
        float,
        Field(
            ge=-1e6,
            le=1e6,
            description="Hits are ordered by score + weight * aesthetic / 10; scores stay cosines.",
        ),
    ] = 0.0
    breadth: Annotated[
        Whole | None,
        Field(
            ge=1,
            le=_MOST_ROW,
            description="Lists read or nodes in view; null: as certified. Not for a flat index.",
        ),
    ] = None
    n_candidates: Annotated[
        Whole | None,
        Field(
            ge=1,
            le=_MOST_ROW,
            description="Rows that are ranked exactly; null: as certified. Not for a flat index.",
        ),
    ] = None
    columns: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None,
        Field(max_length=1000, description="Metadata columns of the hits; null: all."),
    ] = None

    def request(self) -> SearchRequest:
        """Return the request of the engine."""
        return SearchRequest(
            self.k,
            breadth=self.breadth,
            n_candidates=self.n_candidates,
            where=self.where,
            unsafe_from=self.unsafe_from,
            watermarked_from=self.watermarked_from,
            duplicate_from=self.duplicate_from,
            aesthetic_weight=self.aesthetic_weight,
        )


class SearchBody(Asked):
    """Queries, in one of two forms, and what is asked of the search."""

    model_config = ConfigDict(
        **_STRICT,
        json_schema_extra={
            "examples": [{"queries": [{"text": "a zebra"}], "k": 8, "where": "width >= 512"}],
            "oneOf": [{"required": ["queries"]}, {"required": ["vectors_npy"]}],
        },
    )

    index: IndexName = None
    queries: Annotated[
        list[Query], Field(min_length=1, description="Each is answered on its own.")
    ] = []  # pydantic copies it
    vectors_npy: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Instead of `queries`: an npy file in base64, of shape (n, width), float16 "
            "or float32.",
        ),
    ] = None
