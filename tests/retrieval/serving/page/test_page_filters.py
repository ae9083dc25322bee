"""Filters and effort: what is asked of the server, and what it says, beside the fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.retrieval.serving.page.conftest import Server, Visits

HITS = ".results[data-pane='0'] button.hit"


def field(page: Any, name: str) -> Any:
    return page.locator(f".settings[data-pane='0'] [name='{name}']")


def test_a_predicate_that_fails_is_told_under_its_field(
    visits: Visits, server: Server, trial: int, expect: Any
) -> None:
    visits.may_fail = True
    page = visits(f"#q=trial:{trial}&index=written")
    expect(page.locator(HITS)).to_have_count(16)
    field(page, "where").fill("nowhere > 3")
    field(page, "where").press("Enter")
    error = page.locator(".where-error >> nth=0")
    expect(error).to_contain_text("nowhere")
    expect(error).to_contain_text("width")  # the message names the columns there are
    expect(field(page, "where")).to_have_attribute("aria-invalid", "true")
    expect(field(page, "where")).to_have_attribute("aria-describedby", "where-error-A")
    expect(page.locator(HITS)).to_have_count(16)  # those of before stay, and are marked as such
    expect(page.locator(".results[data-stale]")).to_have_count(1)
    field(page, "where").fill("width >= 2000")
    field(page, "where").press("Enter")
    expect(error).to_be_empty()
    expect(page.locator(".results[data-stale]")).to_have_count(0)
    answer = server.search(
        {
            "index": "written",
            "queries": [{"run": "first", "image_id": trial}],
            "where": "width >= 2000",
        }
    )
    hits = answer["results"][0]["hits"]
    assert all(hit["metadata"]["width"] >= 2000 for hit in hits)
    expect(page.locator(HITS)).to_have_count(len(hits))
    expect(page.locator(f"{HITS} .score").first).to_have_text(f"{hits[0]['score']:.3f}")


def test_a_bad_predicate_of_a_link_is_told_too(visits: Visits, trial: int, expect: Any) -> None:
    visits.may_fail = True
    page = visits(f"#q=trial:{trial}&index=written&where=width+>")
    expect(page.locator(".where-error >> nth=0")).to_contain_text("where")
    expect(page.locator(".problem h3")).to_have_text("This filter can't be used")


def test_no_row_that_passes_is_said(visits: Visits, trial: int, expect: Any) -> None:
    page = visits(f"#q=trial:{trial}&index=written&where=width+<+0")
    expect(page.locator(".problem h3")).to_have_text("Nothing passes these filters")
    expect(page.locator("#live")).to_have_text("no hits.")


def asked_by(page: Any, act: Any) -> dict[str, Any]:
    with page.expect_request("**/api/search") as asked:
        act()
    return json.loads(asked.value.post_data)


def test_switches_and_numbers_are_asked_for(
    visits: Visits, server: Server, trial: int, expect: Any
) -> None:
    page = visits(f"#q=trial:{trial}&index=written")
    expect(page.locator(HITS)).to_have_count(16)
    page.locator(".more summary >> nth=0").click()
    body = asked_by(page, lambda: field(page, "is_safe").uncheck())
    assert body["unsafe_from"] is None
    body = asked_by(page, lambda: field(page, "is_clean").check())
    assert body["watermarked_from"] == 0.8
    body = asked_by(page, lambda: field(page, "is_distinct").check())
    assert body["duplicate_from"] == 0.94
    for name, value in (("duplicate_from", 0.5), ("aesthetic_weight", -0.25), ("k", 7)):

        def change(name: str = name, value: float = value) -> None:
            field(page, name).fill(str(value))
            field(page, name).press("Enter")

        body = asked_by(page, change)
        assert body[name] == value
    answer = server.search(body)
    expect(page.locator(HITS)).to_have_count(len(answer["results"][0]["hits"]))
    counts = [hit["n_duplicates"] for hit in answer["results"][0]["hits"]]
    assert page.locator(f"{HITS} .alike").all_inner_texts() == [f"+{n}" for n in counts if n]
    expect(page.locator(".active >> nth=0")).to_have_text("4 on")
    body = asked_by(page, lambda: page.locator(".reset >> nth=0").click())
    assert (body["unsafe_from"], body["watermarked_from"], body["k"]) == (0.5, None, 16)
    expect(page.locator(".active >> nth=0")).to_have_text("")


def test_what_is_being_typed_is_not_overwritten(visits: Visits, trial: int, expect: Any) -> None:
    page = visits(f"#q=trial:{trial}&q=-0.5*trial:{trial}&k=4")
    expect(page.locator(HITS)).to_have_count(4)
    with page.expect_response("**/api/search"):  # asked for a moment after the slider moved
        page.locator(".mixture input[type='range']").nth(1).fill("-0.25")
        field(page, "k").fill("6")
    expect(field(page, "k")).to_have_value("6")
    field(page, "k").press("Enter")
    expect(page.locator(HITS)).to_have_count(6)


@pytest.mark.parametrize(("name", "value"), [("k", "0"), ("k", ""), ("unsafe_from", "1.5")])
def test_a_number_out_of_range_is_marked_and_not_asked_for(
    visits: Visits, trial: int, name: str, value: str, expect: Any
) -> None:
    page = visits(f"#q=trial:{trial}&index=written")
    expect(page.locator(HITS)).to_have_count(16)
    page.locator(".more summary >> nth=0").click()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    field(page, name).fill(value)
    field(page, name).press("Tab")
    expect(field(page, name)).to_have_attribute("aria-invalid", "true")
    assert not [url for url in asked if url.endswith("/api/search")]


def test_what_an_index_has_not_is_switched_off_and_says_why(visits: Visits, expect: Any) -> None:
    page = visits("#index=drawn")
    expect(field(page, "is_safe")).to_be_disabled()
    expect(page.locator(".lacks >> nth=0")).to_have_text("no punsafe")
    expect(field(page, "breadth")).to_be_enabled()
    field(page, "index").select_option("written")
    expect(field(page, "is_safe")).to_be_enabled()
    expect(page.locator(".settings[data-pane='0'] .lacks")).to_have_count(0)
    expect(field(page, "breadth")).to_be_disabled()  # a flat index compares every row


def test_effort_is_asked_for_and_told(visits: Visits, trial: int, expect: Any) -> None:
    page = visits(f"#q=trial:{trial}&index=drawn&breadth=1&n_candidates=20")
    expect(page.locator(".summary >> nth=0")).to_contain_text("n_probe 1 · 20 candidates")


def test_facts_of_the_index_are_a_click_away(visits: Visits, server: Server, expect: Any) -> None:
    page = visits()
    page.locator(".about button >> nth=0").click()
    facts = page.locator("#index-facts")
    index = server.get("/api/indexes")[0]
    for text in (index["fingerprint"], index["certificate"], "image_id, image_path, caption"):
        expect(facts).to_contain_text(text)
    page.keyboard.press("Escape")
    expect(facts).to_be_hidden()
