"""Two sides: the same query of two runs, two indexes or two settings, and what they share."""

from __future__ import annotations

from typing import Any

from tests.retrieval.serving.page.conftest import Server, Visits


def rows_of(server: Server, **body: Any) -> list[int]:
    return [hit["row"] for hit in server.search(body)["results"][0]["hits"]]


def pairs(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    return [(place, b.index(row)) for place, row in enumerate(a) if row in b]


def test_two_runs_side_by_side(visits: Visits, server: Server, trial: int, expect: Any) -> None:
    page = visits(f"#q=trial:{trial}")
    expect(page.locator(".results[data-pane='0'] button.hit")).to_have_count(16)
    page.keyboard.press("c")
    expect(page.locator(".results[data-pane='1'] button.hit")).to_have_count(16)
    expect(page.locator("#compare")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".settings[data-pane='1'] [name='run']")).to_have_value("second")
    first, second = (
        rows_of(server, index="drawn", queries=[{"run": run, "image_id": trial}])
        for run in ("first", "second")
    )
    shared = pairs(first, second)
    same = sum(left == right for left, right in shared)
    hits = f"{len(shared)} hit{'' if len(shared) == 1 else 's'}"
    expect(page.locator(".agreement")).to_have_text(
        f"{hits} shared (by row), {same} of them at the same rank."
    )
    expect(page.locator("#links path")).to_have_count(len(shared))
    drawn = page.locator("#links path").evaluate_all(
        "all => all.map((line) => line.getAttribute('d'))"
    )
    assert drawn == [f"M0 {a + 0.5} C50 {a + 0.5} 50 {b + 0.5} 100 {b + 0.5}" for a, b in shared]
    expect(page.locator(".verdict")).to_have_count(2)
    expect(page).to_have_url(
        f"{server.address}/#q=trial%3A{trial}&compare=1&index=drawn&run=first"
        "&b.index=drawn&b.run=second"
    )
    page.keyboard.press("c")
    expect(page.locator(".results[data-pane='1']")).to_be_hidden()
    expect(page.locator(".results[data-pane='0'] .hits.rows")).to_have_count(0)


def test_shared_hits_light_up_together(
    visits: Visits, server: Server, trial: int, expect: Any
) -> None:
    page = visits(f"#q=trial:{trial}&compare=1&run=first&b.run=first&b.k=8")
    expect(page.locator("#links path")).to_have_count(8)
    page.locator(".results[data-pane='0'] button.hit").nth(2).focus()
    lit = page.locator(".is-lit")
    expect(lit).to_have_count(3)  # the hit, the line and the same hit on the other side
    expect(page.locator(".results[data-pane='1'] li.is-lit")).to_have_attribute("data-rank", "3")
    label = page.locator(".results[data-pane='0'] button.hit").nth(2).get_attribute("aria-label")
    assert label is not None and label.endswith("rank 3 on the other side")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".results[data-pane='1'] button.hit").nth(2)).to_be_focused()


def test_lines_end_at_the_middle_of_their_hits(visits: Visits, trial: int, expect: Any) -> None:
    page = visits(f"#q=trial:{trial}&compare=1&run=first&b.run=second")
    expect(page.locator(".results[data-pane='1'] button.hit")).to_have_count(16)
    gaps = page.evaluate(
        """() => {
          const box = document.querySelector("#links svg").getBoundingClientRect();
          return [0, 1].flatMap((side) =>
            [...document.querySelectorAll(`[data-pane='${side}'] .hits li`)].map((item, place) => {
              const { top, height } = item.getBoundingClientRect();
              return Math.abs(top + height / 2 - (box.top + (place + 0.5) * (box.height / 16)));
            }));
        }"""
    )
    assert len(gaps) == 32 and max(gaps) < 1.5  # pixels


def test_two_indexes_are_linked_by_what_both_record(
    visits: Visits, server: Server, trial: int, expect: Any
) -> None:
    page = visits(
        f"#q=trial:{trial}&compare=1&index=drawn&b.index=written&b.unsafe_from=off&k=10&b.k=10"
    )
    expect(page.locator(".results[data-pane='1'] button.hit")).to_have_count(10)
    query = [{"run": "first", "image_id": trial}]
    shared = pairs(
        rows_of(server, index="drawn", queries=query, k=10),
        rows_of(server, index="written", queries=query, k=10, unsafe_from=None),
    )
    expect(page.locator(".agreement")).to_contain_text(f"{len(shared)} hits shared (by image_id)")


def test_sides_have_their_own_settings_and_errors(visits: Visits, trial: int, expect: Any) -> None:
    visits.may_fail = True
    page = visits(f"#q=trial:{trial}&compare=1&index=written&b.index=written&b.k=3")
    expect(page.locator(".results[data-pane='0'] button.hit")).to_have_count(16)
    expect(page.locator(".results[data-pane='1'] button.hit")).to_have_count(3)
    page.locator(".settings[data-pane='1'] .filters > summary").click()
    page.locator(".settings[data-pane='1'] [name='where']").fill("nowhere = 1")
    page.locator(".settings[data-pane='1'] [name='where']").press("Enter")
    expect(page.locator(".settings[data-pane='1'] .where-error")).to_contain_text("nowhere")
    expect(page.locator(".settings[data-pane='0'] .where-error")).to_be_empty()


def test_what_one_side_does_not_know_is_told_on_that_side(
    visits: Visits, trial: int, expect: Any
) -> None:
    visits.may_fail = True

    def prepare(page: Any) -> None:
        def refuse(route: Any) -> None:
            if '"run":"second"' in route.request.post_data:
                error = {"code": "unknown_image", "message": "run second has no such image."}
                route.fulfill(status=404, json={"error": error})
            else:
                route.continue_()

        page.route("**/api/search", refuse)

    page = visits(f"#q=trial:{trial}&compare=1&run=first&b.run=second", prepare=prepare)
    expect(page.locator(".results[data-pane='0'] button.hit")).to_have_count(16)
    expect(page.locator(".results[data-pane='1'] .problem")).to_contain_text("has no such image")
