"""Query vectors: what clients ask with, whatever its form, as vectors of an index's space."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from functools import partial
from io import BytesIO

import numpy as np

from index_builder.embeddings.npy_header import read_npy_header

from ..images.decoding import decode_picture
from ..searching.mixes import mix
from .problems import Problem
from .questions import ImageQuery, MixQuery, Query, Single, TextQuery, TrialQuery
from .served import QueryEncoder, ServedIndex
from .service import Service, check_vectors, wrong_width


async def vectors_of(service: Service, served: ServedIndex, queries: Sequence[Query]) -> np.ndarray:
    """Return a vector a query, (n, width), float32, each with a direction.

    Words are encoded together, and so are pictures.

    Raises
    ------
    Problem
        404 for an unknown run or image, 409 for a kind that the index doesn't take, 422 for what
        can't be decoded or is of another width.
    SpaceMismatchError
        If a run predicts into another space than the index's.
    QueryError
        If the parts of a mixture cancel out.
    """
    parts = [part for query in queries for part in _parts(query)]
    vectors: dict[int, np.ndarray] = {}
    texts: dict[int, str] = {}
    pictures: dict[int, str] = {}
    for i, part in enumerate(parts):
        if isinstance(part, TextQuery):
            texts[i] = part.text
        elif isinstance(part, ImageQuery):
            pictures[i] = part.image
        elif isinstance(part, TrialQuery):
            vectors[i] = _predicted(service, served, part)
        else:
            with np.errstate(over="ignore"):  # what overflows becomes infinite, an error later
                vectors[i] = np.array(part.vector, np.float32)
    if texts:
        encoded = await _encode_texts(service, served, list(texts.values()))
        vectors.update(zip(texts, encoded, strict=True))
    if pictures:
        encoded = await _encode_images(service, served, list(pictures.values()))
        vectors.update(zip(pictures, encoded, strict=True))
    width = served.engine.space.width
    for number, vector in sorted(vectors.items()):
        if vector.shape != (width,):
            raise wrong_width(served, vector.shape[0], f"vector {number} has")
    ordered = (vectors[i] for i in range(len(parts)))
    answers = []
    for query in queries:
        if isinstance(query, MixQuery):
            weighted = [(part.weight, next(ordered)[None]) for part in query.mix]
            answers.append(mix(weighted)[0])
        else:
            answers.append(next(ordered))
    return check_vectors(served, np.stack(answers))


def decode_npy(content: str) -> np.ndarray:
    """Return the array of an npy file in base64, after its size was compared with its header.

    Raises
    ------
    Problem
        422 if it is anything but (n, width) numbers, float16 or float32.
    """
    raw = decode_base64(content, "vectors_npy")
    handle = BytesIO(raw)
    try:
        shape, is_fortran, dtype = read_npy_header(handle)
    except (ValueError, OverflowError) as error:
        raise Problem(422, "bad_npy", "vectors_npy isn't an npy file of numbers.") from error
    if len(shape) != 2 or dtype.kind != "f" or dtype.itemsize > 4 or is_fortran:
        raise Problem(
            422,
            "bad_npy",
            f"vectors_npy has shape {shape} and dtype {dtype}, expected (n, width), float16 or "
            f"float32, in C order.",
        )
    start = handle.tell()
    if shape[0] * shape[1] * dtype.itemsize != len(raw) - start:
        raise Problem(
            422,
            "bad_npy",
            f"vectors_npy has {len(raw) - start} bytes of numbers, and its header says {shape} of "
            f"{dtype}.",
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape)


def decode_base64(content: str, where: str) -> bytes:
    """Return the bytes of base64 (RFC 4648, section 4).

    Raises
    ------
    Problem
        422 if it is something else.
    """
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(422, "bad_base64", f"{where} isn't base64: {error}.") from error


def _parts(query: Query) -> Sequence[Single]:
    return query.mix if isinstance(query, MixQuery) else (query,)


def _predicted(service: Service, served: ServedIndex, query: TrialQuery) -> np.ndarray:
    run = service.run(query.run)
    served.engine.space.require_comparable(
        run.space, mine=f"index {served.name}", theirs=f"run {run.name}"
    )
    vector = run.vector(query.image_id)
    if vector is None:
        raise Problem(
            404,
            "unknown_image",
            f"run {run.name} has no image {query.image_id} in its {run.split} split.",
        )
    return vector


async def _encode_texts(service: Service, served: ServedIndex, texts: list[str]) -> np.ndarray:
    if served.encoder is None or not served.encoder.takes_text:
        raise Problem(409, "takes_no_text", f"index {served.name} takes no words.")
    return await service.encode(served.encoder.encode_texts, texts)


async def _encode_images(service: Service, served: ServedIndex, encoded: list[str]) -> np.ndarray:
    if served.encoder is None:
        raise Problem(409, "takes_no_image", f"index {served.name} takes no pictures.")
    contents = [decode_base64(each, "the picture") for each in encoded]
    encode = partial(_encode_image, served.encoder)
    # One after the other: of what a small file can grow to, one stands in memory at a time.
    return np.concatenate([await service.encode(encode, content) for content in contents])


def _encode_image(encoder: QueryEncoder, content: bytes) -> np.ndarray:
    return encoder.encode_images([decode_picture(content, where="the picture")])
