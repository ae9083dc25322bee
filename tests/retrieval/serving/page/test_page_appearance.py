"""Narrow and wide screens, light and dark, no jumps, still where motion isn't wanted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.retrieval.serving.page.conftest import Visits

# Every text with its own color against the background that lies under it (WCAG 2.2, 1.4.3).
CONTRAST = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = numbers(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] > 0.99) return color;
    }
    return [255, 255, 255];
  };
  const isShown = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const poor = [];
  for (const e of document.querySelectorAll("body *")) {
    const hasText = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!hasText || !isShown(e) || e.closest(":disabled, .spoken, label:has(:disabled)")) continue;
    const [a, b] = [light(numbers(getComputedStyle(e).color)), light(under(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${e.className || e.tagName} ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("width", [360, 390, 768, 1440])
@pytest.mark.parametrize("link", ["", "&compare=1&b.index=written", "&index=written&k=3"])
def test_nothing_is_wider_than_the_screen(
    visits: Visits, trial: int, width: int, link: str, expect: Any
) -> None:
    page = visits(f"#q=trial:{trial}{link}", width=width, height=740)
    expect(page.locator(".results[data-pane='0'] button.hit").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => [...document.querySelectorAll("body *")]
          .filter((e) => e.checkVisibility() && !e.closest(".spoken, .skip"))
          .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
          .map((e) => e.outerHTML.slice(0, 100))"""
    )
    assert outside == []


def test_details_and_filters_fit_a_narrow_screen(visits: Visits, trial: int, expect: Any) -> None:
    page = visits(f"#q=trial:{trial}&index=written", width=360, height=640)
    page.locator(".filters > summary >> nth=0").click()
    page.locator(".more summary >> nth=0").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("button.hit").first.click()
    box = page.locator("#details").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 360
    assert page.locator("#details").evaluate("e => e.scrollWidth <= e.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("link", ["", "&compare=1&b.index=written", "&index=written"])
def test_text_has_contrast(visits: Visits, trial: int, scheme: str, link: str, expect: Any) -> None:
    page = visits(f"#q=trial:{trial}{link}", color_scheme=scheme)
    expect(page.locator(".results[data-pane='0'] button.hit")).to_have_count(16)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(253, 252, 250)", "dark": "rgb(21, 23, 26)"}[scheme]
    expect(page.locator("[aria-busy='true']")).to_have_count(0)
    assert page.evaluate(CONTRAST) == []


def test_the_page_does_not_jump_from_one_trial_to_the_next(
    visits: Visits, trial: int, expect: Any
) -> None:
    page = visits(f"#q=trial:{trial}", height=900)
    hits = page.locator(".results[data-pane='0'] button.hit")
    expect(hits).to_have_count(16)
    expect(page.locator(".trial").first).to_be_visible()
    page.evaluate(
        """() => {
          window.shift = 0;
          window.moved = [];
          new PerformanceObserver((list) => {
            for (const entry of list.getEntries()) {
              window.shift += entry.value;
              for (const { node } of entry.sources) window.moved.push(node?.outerHTML.slice(0, 80));
            }
          }).observe({ type: "layout-shift" });
        }"""
    )
    before = hits.nth(9).bounding_box()
    for _ in range(3):
        with page.expect_response("**/api/search"):
            page.keyboard.press("n")
        expect(page.locator("[aria-busy='true']")).to_have_count(0)
    assert hits.nth(9).bounding_box() == before
    assert page.evaluate("[window.shift, ...window.moved]") == [0]


def test_skeletons_take_the_place_of_hits(visits: Visits, trial: int, expect: Any) -> None:
    held: list[Any] = []
    page = visits(
        prepare=lambda page: page.route("**/api/search", lambda route: held.append(route))
    )
    page.locator(f".trial[data-image='{trial}']").click()
    expect(page.locator(".skeletons li")).to_have_count(16)
    expect(page.locator(".results[data-pane='0']")).to_have_attribute("aria-busy", "true")
    boxes = page.locator(".skeletons li").evaluate_all(
        "all => all.map((item) => JSON.stringify(item.getBoundingClientRect()))"
    )
    held[0].continue_()
    expect(page.locator(".results[data-pane='0'] button.hit .score")).to_have_count(16)
    assert boxes == page.locator(".results[data-pane='0'] .hits li").evaluate_all(
        "all => all.map((item) => JSON.stringify(item.getBoundingClientRect()))"
    )


def test_nothing_moves_where_motion_is_not_wanted(visits: Visits, trial: int, expect: Any) -> None:
    held: list[Any] = []
    page = visits(
        f"#q=trial:{trial}",
        reduced_motion="reduce",
        prepare=lambda page: page.route("**/api/search", lambda route: held.append(route)),
    )
    expect(page.locator(".skeletons li")).to_have_count(16)
    assert page.evaluate("document.getAnimations().length") == 0
    held[0].continue_()
    expect(page.locator(".results[data-pane='0'] button.hit .score")).to_have_count(16)
