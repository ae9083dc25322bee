from __future__ import annotations

from dataclasses import replace

import pytest

from index_builder.embeddings.errors import EmbeddingError, SpaceMismatchError
from index_builder.embeddings.space import EmbeddingSpace

FINAL = EmbeddingSpace("ViT-L-14/openai", "final", 1, 768, True)
HIDDEN = EmbeddingSpace("ViT-L-14/openai", "hidden", 257, 768, False)


def test_shapes() -> None:
    assert (FINAL.width, FINAL.row_shape) == (768, (768,))
    assert (HIDDEN.width, HIDDEN.row_shape) == (257 * 768, (257, 768))


@pytest.mark.parametrize("space", [FINAL, HIDDEN])
def test_round_trip(space: EmbeddingSpace) -> None:
    assert EmbeddingSpace.from_dict(space.to_dict()) == space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ViT-L-14/openai:final:1x768", FINAL),
        ("ViT-L-14/openai:final:1x768:unit", FINAL),
        ("ViT-L-14/openai:hidden:257x768:any", HIDDEN),
        ("hf-hub:apple/DFN:final:1x512", EmbeddingSpace("hf-hub:apple/DFN", "final", 1, 512, True)),
    ],
)
def test_as_the_command_line_writes_it(text: str, expected: EmbeddingSpace) -> None:
    assert EmbeddingSpace.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "ViT-L-14", "m:final:768", "m:final:1x768:l2", "m:final:1x-2"]
)
def test_what_names_no_space(text: str) -> None:
    with pytest.raises(EmbeddingError, match="names no embedding space; expected MODEL:LAYER"):
        EmbeddingSpace.parse(text)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "", "model of an embedding space is empty"),
        ("layer", "last", r"layer is 'last', expected one of \('final', 'hidden', 'patches'\)"),
        ("tokens", 0, "tokens is 0 and dim is 768; both must be at least 1"),
        ("dim", -1, "tokens is 1 and dim is -1"),
    ],
)
def test_impossible_fields(field: str, value: object, message: str) -> None:
    with pytest.raises(EmbeddingError, match=message):
        EmbeddingSpace.from_dict({**FINAL.to_dict(), field: value})


def test_missing_and_unknown_fields() -> None:
    with pytest.raises(
        EmbeddingError, match="needs exactly model, layer, tokens, dim and unit_norm"
    ):
        EmbeddingSpace.from_dict({"model": "m"})
    with pytest.raises(EmbeddingError, match=r"found \['dim', 'extra'"):
        EmbeddingSpace.from_dict({**FINAL.to_dict(), "extra": 1})


def test_norms_alone_may_differ() -> None:
    FINAL.require_comparable(replace(FINAL, unit_norm=False), mine="a", theirs="b")
    for other in (replace(FINAL, model="ViT-B-32/openai"), replace(FINAL, dim=512), HIDDEN):
        with pytest.raises(
            SpaceMismatchError, match=r"run: ViT-L-14/openai:final \(1 x 768.*\n  index"
        ):
            FINAL.require_comparable(other, mine="run", theirs="index")
