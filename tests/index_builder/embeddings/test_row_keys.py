"""The hash of LAION, beside MurmurHash3 written out from its definition."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embeddings.errors import EmbeddingError, MissingExtraError
from index_builder.embeddings.row_keys import columns_of_key, key_values, laion_hashes

MASK = (1 << 64) - 1


def rotate(x: int, r: int) -> int:
    return ((x << r) | (x >> (64 - r))) & MASK


def finish(k: int) -> int:
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        k = ((k ^ (k >> 33)) * factor) & MASK
    return k ^ (k >> 33)


def murmur(data: bytes) -> int:
    """First half of MurmurHash3_x64_128 with seed 0, as a signed number."""
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F

    def mix(k: int, first: int, r: int, second: int) -> int:
        return (rotate((k * first) & MASK, r) * second) & MASK

    h1 = h2 = 0
    n_whole = len(data) // 16 * 16
    for start in range(0, n_whole, 16):
        k1, k2 = (int.from_bytes(data[start + i : start + i + 8], "little") for i in (0, 8))
        h1 = (rotate(h1 ^ mix(k1, c1, 31, c2), 27) + h2) & MASK
        h1 = (h1 * 5 + 0x52DCE729) & MASK
        h2 = (rotate(h2 ^ mix(k2, c2, 33, c1), 31) + h1) & MASK
        h2 = (h2 * 5 + 0x38495AB5) & MASK
    tail = data[n_whole:].ljust(16, b"\0")
    h1 ^= mix(int.from_bytes(tail[:8], "little"), c1, 31, c2)
    h2 ^= mix(int.from_bytes(tail[8:], "little"), c2, 33, c1)
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & MASK
    h2 = (h2 + h1) & MASK
    h1 = (finish(h1) + finish(h2)) & MASK
    return h1 - (1 << 64) if h1 >> 63 else h1


def test_the_hash_is_murmur_of_url_and_caption() -> None:
    urls = [f"https://example.org/{'x' * i}.jpg" for i in range(40)]
    captions = [f"Übergroß 猫 {'y' * (i % 17)}" for i in range(40)]
    expected = [murmur((u + c).encode()) for u, c in zip(urls, captions, strict=True)]
    found = laion_hashes(pa.array(urls), pa.chunked_array([captions[:9], captions[9:]]))
    assert found.dtype == np.int64
    assert found.tolist() == expected
    assert min(expected) < 0 < max(expected)


def test_a_null_counts_as_empty() -> None:
    urls, captions = pa.array(["foo", None, None]), pa.array([None, "foo", None], pa.large_string())
    # mmh3's own documentation has this number for "foo".
    assert laion_hashes(urls, captions).tolist() == [-2129773440516405919] * 2 + [murmur(b"")]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmh3", None)
    with pytest.raises(MissingExtraError, match=r"mmh3 is not installed.*voxseek\[laion\]"):
        laion_hashes(pa.array(["a"]), pa.array(["b"]))


def test_a_hash_that_is_stored_is_not_computed() -> None:
    assert columns_of_key(("url", "caption", "hash"), "hash", "here") == ("hash",)
    assert columns_of_key(("url", "caption"), "hash", "here") == ("url", "caption")
    table = pa.table({"hash": [3, None], "url": ["a", "b"], "caption": ["c", "d"]})
    assert key_values(table, "hash", "here").to_pylist() == [3, None]
    computed = key_values(table.drop_columns("hash"), "hash", "here")
    assert computed.to_pylist() == [murmur(b"ac"), murmur(b"bd")]


def test_columns_that_do_not_suffice() -> None:
    with pytest.raises(EmbeddingError, match=r"no column hash, or of url and caption .*has url\."):
        columns_of_key(("url",), "hash", "here")
    with pytest.raises(EmbeddingError, match=r"no column key; it has none at all"):
        columns_of_key((), "key", "here")


@pytest.mark.parametrize(
    ("by", "values", "message"),
    [
        ("hash", pa.array([1.0, None]), "column hash of double, expected int64.*lost its last"),
        ("hash", pa.array([1], pa.uint64()), "column hash of uint64, expected int64"),
        ("key", pa.array([12]), "column key of int64, expected strings: zeros before"),
    ],
)
def test_columns_that_lost_what_they_were(by: str, values: pa.Array, message: str) -> None:
    with pytest.raises(EmbeddingError, match=message):
        key_values(pa.table({by: values}), by, "here")  # type: ignore[arg-type]
