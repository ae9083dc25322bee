"""The whole page by keyboard, and what assistive technology is told."""

from __future__ import annotations

from typing import Any

from tests.retrieval.serving.page.conftest import Server, Visits

HITS = ".results[data-pane='0'] button.hit"


def test_from_the_trials_to_a_hit_and_its_details_and_back(
    visits: Visits, server: Server, expect: Any
) -> None:
    trials = [one["image_id"] for one in server.get("/api/runs/first/trials?limit=3")]
    page = visits()
    expect(page.locator(".trial").first).to_be_visible()
    page.keyboard.press("/")  # words are not taken here: the search of trials is the query
    expect(page.locator("#find")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".trial").first).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(HITS)).to_have_count(16)
    expect(page.locator(f".trial[data-image='{trials[1]}']")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")
    expect(page.locator(HITS).first).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    columns = page.locator(HITS).evaluate_all(
        """all => all.filter((hit) => hit.getBoundingClientRect().top
             === all[0].getBoundingClientRect().top).length"""
    )
    expect(page.locator(HITS).nth(1 + columns)).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator(HITS).nth(15)).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    details = page.locator("#details")
    expect(details.locator("h2")).to_have_text("Rank 1")
    expect(details.locator("h2")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(details.locator("h2")).to_have_text("Rank 2")
    expect(details.locator("dd").nth(1)).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(details).to_be_hidden()
    expect(page.locator(HITS).nth(1)).to_be_focused()  # the hit that was shown last


def test_n_and_p_step_through_the_trials(visits: Visits, server: Server, expect: Any) -> None:
    trials = [str(one["image_id"]) for one in server.get("/api/runs/first/trials?limit=3")]
    page = visits(f"#q=trial:{trials[1]}")
    chosen = page.locator(".trial[aria-selected='true']")
    expect(chosen).to_have_attribute("data-image", trials[1])
    page.keyboard.press("n")
    expect(chosen).to_have_attribute("data-image", trials[2])
    page.keyboard.press("p")
    page.keyboard.press("p")
    expect(chosen).to_have_attribute("data-image", trials[0])


def test_the_strip_turns_its_pages(visits: Visits, server: Server, expect: Any) -> None:
    trials = [str(one["image_id"]) for one in server.get("/api/runs/first/trials?limit=1000")]
    page = visits()
    expect(page.locator(".trial").first).to_be_visible()
    n_shown = page.locator(".trial").count()
    assert 1 < n_shown < len(trials)
    right = page.locator(".trial").last.evaluate("e => e.getBoundingClientRect().right")
    assert right <= page.locator("#strip").evaluate("e => e.getBoundingClientRect().right") + 0.5
    page.locator(".trial").first.focus()
    page.keyboard.press("PageDown")
    expect(page.locator(".trial").first).to_have_attribute("data-image", trials[n_shown])
    expect(page.locator(".trial").first).to_be_focused()
    page.keyboard.press("ArrowLeft")  # over the edge, to the last of the page before
    expect(page.locator(".trial").last).to_have_attribute("data-image", trials[n_shown - 1])
    expect(page.locator(".trial").last).to_be_focused()
    expect(page.locator("#earlier")).to_be_disabled()


def test_a_chosen_trial_on_a_later_page_is_brought_into_view(
    visits: Visits, server: Server, expect: Any
) -> None:
    last = server.get("/api/runs/first/trials?limit=1000")[-1]["image_id"]
    page = visits(f"#q=trial:{last}")
    expect(page.locator(".trial[aria-selected='true']")).to_have_attribute("data-image", str(last))
    expect(page.locator("#later")).to_be_disabled()


def test_keys_are_shown_and_can_be_switched_off(visits: Visits, expect: Any) -> None:
    page = visits()
    expect(page.locator("#intro h2")).to_be_visible()
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.locator("#single-keys").uncheck()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()
    page.keyboard.press("c")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_hidden()
    expect(page.locator("#compare")).to_have_attribute("aria-pressed", "false")
    page.reload()
    page.locator("#help").click()
    expect(page.locator("#single-keys")).not_to_be_checked()


def test_letters_typed_into_fields_are_no_commands(visits: Visits, expect: Any) -> None:
    page = visits()
    page.locator("[name='where'] >> nth=0").fill("")
    page.locator("[name='where'] >> nth=0").press_sequentially("c?/n")
    expect(page.locator("[name='where'] >> nth=0")).to_have_value("c?/n")
    expect(page.locator("#compare")).to_have_attribute("aria-pressed", "false")


def test_every_control_has_a_name(visits: Visits, trial: int, expect: Any) -> None:
    page = visits(f"#q=trial:{trial}&compare=1&q=-0.5*trial:{trial}")
    expect(page.locator(".results[data-pane='1'] button.hit")).to_have_count(16)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll(
            "button, input:not([hidden]), select, summary, a, [role='listbox'], [role='option']")]
          .filter((e) => !e.getAttribute("aria-label") && !e.textContent.trim()
                         && ![...(e.labels ?? [])].some((label) => label.textContent.trim()))
          .map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert unnamed == []


def test_a_hit_says_its_rank_caption_and_score(
    visits: Visits, server: Server, trial: int, expect: Any
) -> None:
    page = visits(f"#q=trial:{trial}")
    answer = server.search({"index": "drawn", "queries": [{"run": "first", "image_id": trial}]})
    for place, hit in enumerate(answer["results"][0]["hits"][:3]):
        seen = ", the seen picture" if hit["metadata"]["image_id"] == trial else ""
        score = f"{hit['score']:.3f}".replace("-", "−")
        expect(page.locator(HITS).nth(place)).to_have_attribute(
            "aria-label", f"Rank {place + 1}{seen}, {hit['metadata']['caption']}, score {score}"
        )
