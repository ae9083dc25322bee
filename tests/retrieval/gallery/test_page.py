from __future__ import annotations

import base64
import hashlib
import re
import weakref
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from retrieval.gallery.page import GalleryHit, GalleryQuery, write_gallery

HOSTILE = """</title></script><script>alert("x")</script>'"><img src=x onerror=alert(1)>&amp;"""


class Page(HTMLParser):
    """Collects the tags of a page, and the text under each kind of tag."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open, data.strip()))

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for index, path in enumerate(paths):
        Image.new("RGB", (16, 12), (40 * index, 90, 200)).save(path)
    return paths


def make_query(
    pictures: list[Path], seen: int, rank: int | None, *, n_hits: int = 3, **changes: object
) -> GalleryQuery:
    others = [index for index in range(len(pictures)) if index != seen][:n_hits]
    if rank is not None:
        others[rank - 1] = seen
    hits = tuple(
        GalleryHit(index, 0.9 - 0.1 * place, pictures[index], f"picture {index}", index == seen)
        for place, index in enumerate(others)
    )
    fields: dict[str, object] = {
        "label": f"subj01, image {seen}",
        "seen_image": pictures[seen],
        "seen_caption": f"picture {seen}",
        "n_trials": 3,
        "hits": hits,
    }
    return GalleryQuery(**{**fields, **changes})


def test_page_shows_each_trial_with_its_outcome(tmp_path: Path, pictures: list[Path]) -> None:
    queries = [
        make_query(pictures, 0, 1),
        make_query(pictures, 1, 3, n_trials=1),
        make_query(pictures, 2, None),
    ]
    file = tmp_path / "gallery.html"
    summary = write_gallery(file, queries, title="A title", facts=[("subject", "subj01")])
    assert (summary.n_queries, summary.n_first, summary.n_found, summary.n_missed) == (3, 1, 2, 1)
    assert summary.n_at_rank == (1, 0, 1)
    page = Page(file.read_text())
    trials = page.with_class("trial")
    assert [trial["data-outcome"] for trial in trials] == ["first", "found", "missed"]
    assert [trial["data-rank"] for trial in trials] == ["1", "3", ""]
    assert [float(trial["data-score"]) for trial in trials] == [0.9, 0.9, 0.9]
    texts = [text for _, text in page.texts]
    for expected in (
        "Found at rank 1",
        "Found at rank 3",
        "Not found in the top 3",
        "3 trials averaged",
        "1 trial",
        "0.800",
        "subj01",
    ):
        assert expected in texts
    assert len(page.with_class("is-seen")) == len(page.with_class("mark")) == 2
    assert page.texts[0] == ("title", "A title")


def test_page_needs_nothing_from_outside(tmp_path: Path, pictures: list[Path]) -> None:
    file = tmp_path / "gallery.html"
    write_gallery(file, [make_query(pictures, 0, 1)], title="t", footer="made by a test")
    html = file.read_text()
    page = Page(html)
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attrs.get(name) or "#").startswith(("#", "data:"))
    assert "url(" not in html and "@import" not in html and "http://" not in html
    policy = next(m["content"] for m in page.of("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; img-src data:;")
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_picture_is_embedded_once_and_named(tmp_path: Path, pictures: list[Path]) -> None:
    file = tmp_path / "gallery.html"
    write_gallery(file, [make_query(pictures, seen, 2) for seen in range(5)], title="t")
    page = Page(file.read_text())
    symbols = [symbol["id"] for symbol in page.of("symbol")]
    assert len(symbols) == len(set(symbols)) == 5
    used = [use["href"].removeprefix("#") for use in page.of("use")]
    assert len(used) == 5 * 4
    assert set(used) == set(symbols)
    shown = [attrs for attrs in page.with_class("picture") if attrs.get("role") == "img"]
    assert len(shown) == 20
    assert all(re.match(r"(Seen image|Rank \d): picture \d$", a["aria-label"]) for a in shown)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_hostile_text_stays_text(tmp_path: Path, pictures: list[Path]) -> None:
    plain, hostile = tmp_path / "plain.html", tmp_path / "hostile.html"
    for file, text in ((plain, "harmless"), (hostile, HOSTILE)):
        query = make_query(
            pictures,
            0,
            None,
            label=text,
            seen_caption=text,
            hits=(GalleryHit(1, 0.5, pictures[1], text, False),),
        )
        write_gallery(file, [query], title=text, facts=[(text, text)], footer=text)
    expected, found = Page(plain.read_text()), Page(hostile.read_text())
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in expected.tags]
    assert [sorted(attrs) for _, attrs in found.tags] == [sorted(a) for _, a in expected.tags]
    assert [text.replace(HOSTILE, "harmless") for _, text in found.texts] == [
        text for _, text in expected.texts
    ]
    assert sum(HOSTILE in text for _, text in found.texts) == 8


def test_a_picture_that_is_missing_is_said_to_be(tmp_path: Path, pictures: list[Path]) -> None:
    hits = (
        GalleryHit(7, 0.9, tmp_path / "gone.png", "gone", True),
        GalleryHit(8, 0.8, None, "no file", False),
    )
    query = make_query(pictures, 0, None, hits=hits, seen_image=tmp_path / "gone.png")
    file = tmp_path / "gallery.html"
    summary = write_gallery(file, [query], title="t")
    assert summary.n_unavailable == 1
    page = Page(file.read_text())
    assert len(page.with_class("unavailable")) == 3
    texts = [text for _, text in page.texts]
    assert texts.count("image not available") == 3
    assert "1 image file could not be read; their tiles say so." in texts


def test_a_seen_image_outside_the_gallery_is_not_missed(
    tmp_path: Path, pictures: list[Path]
) -> None:
    file = tmp_path / "gallery.html"
    summary = write_gallery(
        file, [make_query(pictures, 0, None, is_in_gallery=False)] * 2, title="t"
    )
    assert (summary.n_queries, summary.n_answerable, summary.n_missed) == (2, 0, 0)
    page = Page(file.read_text())
    texts = [text for _, text in page.texts]
    assert texts.count("No right answer in this gallery") == 2
    assert any(text.startswith("2 of 2 queries have no right answer") for text in texts)
    assert [button["data-filter"] for button in page.of("button")] == ["all"]
    assert not page.with_class("counts")


def test_no_queries_and_no_hits_are_said_plainly(tmp_path: Path, pictures: list[Path]) -> None:
    file = tmp_path / "gallery.html"
    summary = write_gallery(file, [], title="t")
    assert (summary.n_queries, summary.n_hits, summary.n_at_rank) == (0, 0, ())
    assert "There are no queries." in file.read_text()
    write_gallery(file, [make_query(pictures, 0, None, hits=())], title="t")
    html = file.read_text()
    assert "Nothing was found for this query." in html
    assert "Not found in the top" not in html


def test_one_hit_a_query_has_one_count(tmp_path: Path, pictures: list[Path]) -> None:
    file = tmp_path / "gallery.html"
    write_gallery(file, [make_query(pictures, 0, 1, n_hits=1)], title="t")
    page = Page(file.read_text())
    assert [button["data-filter"] for button in page.of("button")] == ["all", "first", "missed"]
    assert not page.with_class("ranks")


def test_negative_and_large_scores_stay_inside_their_bar(
    tmp_path: Path, pictures: list[Path]
) -> None:
    hits = tuple(
        GalleryHit(row, score, None, "", False) for row, score in enumerate((1.0000001, -0.25))
    )
    file = tmp_path / "gallery.html"
    write_gallery(file, [make_query(pictures, 0, None, hits=hits)], title="t")
    page = Page(file.read_text())
    assert [bar["style"] for bar in page.with_class("bar")] == ["--share:1.0000", "--share:0.0000"]
    assert "−0.250" in [text for _, text in page.texts]


def test_queries_are_not_kept(tmp_path: Path, pictures: list[Path]) -> None:
    alive: list[weakref.ref[GalleryQuery]] = []
    n_most = 0

    def stream() -> Iterator[GalleryQuery]:
        nonlocal n_most
        for index in range(50):
            query = make_query(pictures, index % 6, 1)
            alive.append(weakref.ref(query))
            n_most = max(n_most, sum(reference() is not None for reference in alive))
            yield query
            del query

    write_gallery(tmp_path / "gallery.html", stream(), title="t")
    assert n_most <= 2


def test_a_failure_leaves_the_old_page(tmp_path: Path, pictures: list[Path]) -> None:
    file = tmp_path / "page" / "gallery.html"
    write_gallery(file, [make_query(pictures, 0, 1)], title="old")
    before = file.read_bytes()

    def broken() -> Iterator[GalleryQuery]:
        yield make_query(pictures, 0, 1)
        raise RuntimeError("search failed")

    with pytest.raises(RuntimeError, match="search failed"):
        write_gallery(file, broken(), title="new")
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["gallery.html"]


def test_same_input_same_bytes(tmp_path: Path, pictures: list[Path]) -> None:
    for name in ("a.html", "b.html"):
        write_gallery(tmp_path / name, [make_query(pictures, 0, 2)], title="t")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_an_unknown_number_of_trials_is_left_out(tmp_path: Path, pictures: list[Path]) -> None:
    file = tmp_path / "gallery.html"
    for n_trials, shown in ((2, True), (None, False)):
        write_gallery(file, [make_query(pictures, 0, 1, n_trials=n_trials)], title="t")
        assert bool(Page(file.read_text()).with_class("trials")) == shown


def test_text_of_any_language_survives(tmp_path: Path, pictures: list[Path]) -> None:
    file = tmp_path / "gallery.html"
    caption = "猫 и кошка 🐈 \u2028 naïve"
    write_gallery(file, [make_query(pictures, 0, 1, seen_caption=caption)], title="t")
    assert ("span", caption) in Page(file.read_bytes().decode("utf-8")).texts


def test_missing_hits_are_refused() -> None:
    with pytest.raises(ValueError, match="row is -1, expected 0 or more; leave out missing hits"):
        GalleryHit(-1, float("nan"), None, "", False)
    with pytest.raises(ValueError, match="the score of row 3 is nan, expected a number"):
        GalleryHit(3, float("nan"), None, "", False)
