"""A server that is busy, slow, broken or away: what is said, and how the page goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.retrieval.serving.page.conftest import Server, Visits

HITS = ".results[data-pane='0'] button.hit"


def failing(status: int, code: str, message: str) -> Callable[[Any], None]:
    def prepare(page: Any) -> None:
        error = {"error": {"code": code, "message": message}}
        page.route("**/api/search", lambda route: route.fulfill(status=status, json=error), times=1)

    return prepare


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (400, "That can't be searched for"),
        (404, "That can't be searched for"),
        (413, "That is too large"),
        (422, "That can't be searched for"),
        (500, "The server failed"),
        (503, "The server is busy"),
        (504, "That took too long"),
    ],
)
def test_errors_are_told_in_the_server_s_words_and_can_be_tried_again(
    visits: Visits, trial: int, status: int, title: str, expect: Any
) -> None:
    visits.may_fail = True
    page = visits(f"#q=trial:{trial}", prepare=failing(status, "a_code", "A <b>reason</b>."))
    problem = page.locator(".problem")
    expect(problem.locator("h3")).to_have_text(title)
    expect(problem.locator("p")).to_have_text("A <b>reason</b>.")
    expect(page.locator("#live")).to_have_text("A <b>reason</b>.")
    problem.get_by_role("button", name="Try again").click()
    expect(page.locator(HITS)).to_have_count(16)
    expect(problem).to_have_count(0)


def test_an_answer_that_is_not_json_is_told(visits: Visits, trial: int, expect: Any) -> None:
    visits.may_fail = True

    def prepare(page: Any) -> None:
        page.route("**/api/search", lambda route: route.fulfill(status=502, body="<html>"))

    page = visits(f"#q=trial:{trial}", prepare=prepare)
    expect(page.locator(".problem p")).to_contain_text("502")


def test_no_answer_in_time_is_told(visits: Visits, trial: int, expect: Any) -> None:
    visits.may_fail = True

    def prepare(page: Any) -> None:
        # The page waits a minute; here its clock runs fast.
        page.add_init_script(
            """const wait = AbortSignal.timeout;
            AbortSignal.timeout = (ms) => wait.call(AbortSignal, ms / 100);"""
        )
        page.route("**/api/search", lambda route: None, times=1)

    page = visits(f"#q=trial:{trial}", prepare=prepare)
    expect(page.locator(".problem h3")).to_have_text("That took too long")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(HITS)).to_have_count(16)


def test_hits_of_shards_that_did_not_answer_are_said_to_be_missing(
    visits: Visits, trial: int, expect: Any
) -> None:
    def prepare(page: Any) -> None:
        def answer(route: Any) -> None:
            content = route.fetch().json()
            route.fulfill(json={**content, "shards_missing": [1, 4]})

        page.route("**/api/search", answer)

    page = visits(f"#q=trial:{trial}", prepare=prepare)
    expect(page.locator(".notice >> nth=0")).to_have_text(
        "2 shards did not answer in time (1, 4): better hits may be missing."
    )


def test_only_the_last_query_is_shown(visits: Visits, server: Server, expect: Any) -> None:
    first, second = [one["image_id"] for one in server.get("/api/runs/first/trials?limit=2")]
    held: list[Any] = []
    page = visits(
        prepare=lambda page: page.route("**/api/search", lambda route: held.append(route), times=1)
    )
    page.locator(f".trial[data-image='{first}']").click()
    expect(page.locator(".skeletons")).to_have_count(1)
    page.locator(f".trial[data-image='{second}']").click()
    expect(page.locator(f"{HITS} .score")).to_have_count(16)
    answer = server.search({"index": "drawn", "queries": [{"run": "first", "image_id": second}]})
    expect(page.locator(f"{HITS} img").first).to_have_attribute(
        "src", f"{answer['results'][0]['hits'][0]['picture']}?size=384"
    )


def test_a_server_that_comes_back_is_asked_again(
    serve: Callable[..., Server], browser: Any, trial: int, expect: Any
) -> None:
    server = serve()
    visits = Visits(browser, server, may_fail=True)
    page = visits(f"#q=trial:{trial}")
    expect(page.locator(HITS)).to_have_count(16)
    server.stop()
    page.keyboard.press("n")
    expect(page.locator(".problem h3")).to_have_text("The server is away")
    server.start()
    expect(page.locator(HITS)).to_have_count(16, timeout=60_000)
    expect(page.locator(".problem")).to_have_count(0)
    visits.close()
    assert visits.problems == []


def test_a_page_whose_server_is_away_from_the_start_waits_for_it(
    visits: Visits, trial: int, expect: Any
) -> None:
    visits.may_fail = True

    def prepare(page: Any) -> None:
        page.route("**/api/indexes", lambda route: route.abort(), times=1)

    page = visits(f"#q=trial:{trial}", prepare=prepare)
    expect(page.locator(".problem h3")).to_have_text("The server is away")
    expect(page.locator(HITS)).to_have_count(16)
