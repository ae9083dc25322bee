from __future__ import annotations

import pytest

from index_builder.errors import SizeError
from index_builder.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("1", 1),
        ("344400", 344_400),
        ("7B", 7),
        ("1KiB", 1024),
        ("1kB", 1000),
        ("32GiB", 32 << 30),
        ("32 GB", 32 * 10**9),
        ("0.5TiB", 1 << 39),
        ("2pib", 2 << 50),
    ],
)
def test_parse_size(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1e9", "1,5GiB", "12 34", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SizeError, match="is not a size; write a number and a unit"):
        parse_size(text)


def test_an_ambiguous_unit_is_refused() -> None:
    with pytest.raises(SizeError, match=r"has the unit 'G'; expected B, KiB"):
        parse_size("32G")


def test_nothing_is_refused() -> None:
    with pytest.raises(SizeError, match="less than one byte"):
        parse_size("0GiB")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10 * 1024, "10.0 KiB"),
        (344_400, "336 KiB"),
        (1023 * 1024, "1.00 MiB"),
        (5 << 50, "5.00 PiB"),
        (5000 << 50, "5000 PiB"),
    ],
)
def test_format_size(n_bytes: int, text: str) -> None:
    assert format_size(n_bytes) == text


@pytest.mark.parametrize("n_bytes", [1, 1000, 1024, 12_345_678, 3 << 40])
def test_format_then_parse_stays_within_half_a_percent(n_bytes: int) -> None:
    assert parse_size(format_size(n_bytes)) == pytest.approx(n_bytes, rel=0.006)
