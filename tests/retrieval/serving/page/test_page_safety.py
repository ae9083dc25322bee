"""Strangers' words stay words, nothing comes from elsewhere, and a token is kept to itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.retrieval.serving.page.conftest import Server, Visits
from tests.retrieval.serving.page.world import MARKUP

TOKEN = "a-token-of-the-tests"


def test_markup_in_captions_stays_text(visits: Visits, trial: int, expect: Any) -> None:
    for index in ("drawn", "written"):
        page = visits(f"#q=trial:{trial}&index={index}&where=image_id+=+7&unsafe_from=off")
        hit = page.locator("button.hit")
        expect(hit).to_have_count(1)
        expect(hit).to_contain_text(MARKUP)
        hit.click()
        expect(page.locator(".details-caption")).to_have_text(MARKUP)
        page.keyboard.press("Escape")
        page.keyboard.press("c")
        expect(page.locator(".results[data-pane='1'] button.hit").first).to_be_visible()
        assert page.evaluate("document.querySelectorAll('b, [onerror]').length") == 0
        assert page.title() != "1"


def test_markup_in_a_link_stays_text(visits: Visits, expect: Any) -> None:
    visits.may_fail = True  # the index takes no words
    page = visits("#q=text:<img src=x onerror=alert(1)>&index=<b>&run=<i>&k=x&where=<script>")
    expect(page.locator("blockquote")).to_have_text("<img src=x onerror=alert(1)>")
    expect(page.locator("[name='index'] >> nth=0")).to_have_value("drawn")
    assert page.evaluate("document.querySelectorAll('main b, main i, [onerror]').length") == 0


def test_only_web_addresses_become_links(visits: Visits, trial: int, expect: Any) -> None:
    page = visits(f"#q=trial:{trial}&index=written&where=image_id+IN+(9,10)&unsafe_from=off")
    expect(page.locator("button.hit")).to_have_count(2)
    for place in range(2):
        page.locator("button.hit").nth(place).click()
        number = page.locator("#details dt:text-is('image_id') + dd").inner_text()
        links = page.locator("#details a")
        if number == "9":
            expect(links).to_have_count(0)
            expect(page.locator("#details")).to_contain_text("javascript:document.title=1")
        else:
            expect(links).to_have_attribute("href", "https://pictures.example/10.jpg")
            expect(links).to_have_attribute("rel", "noopener noreferrer")
        page.keyboard.press("Escape")


def test_hits_without_pictures_are_cards_of_words(visits: Visits, trial: int, expect: Any) -> None:
    page = visits(f"#q=trial:{trial}&index=written&where=image_id+=+10")
    card = page.locator("button.hit .words")
    expect(card).to_contain_text("picture 10, even")
    expect(card).to_contain_text("pictures.example")
    expect(page.locator("button.hit img")).to_have_count(0)


def test_the_page_is_sent_with_a_policy_that_it_keeps(visits: Visits, server: Server) -> None:
    page = visits()
    answer = page.request.get(server.address)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy


def test_a_picture_that_is_gone_is_said_to_be(visits: Visits, trial: int, expect: Any) -> None:
    visits.may_fail = True
    page = visits(
        f"#q=trial:{trial}",
        prepare=lambda page: page.route("**/api/pictures/**", lambda route: route.abort()),
    )
    expect(page.locator("button.hit .missing").first).to_have_text("picture not available")


def test_a_token_is_asked_for_once_and_kept_for_the_tab(
    serve: Callable[..., Server], browser: Any, trial: int, expect: Any
) -> None:
    guarded = serve(VOXSEEK_TOKEN=TOKEN)
    visits = Visits(browser, guarded, may_fail=True)
    page = visits(f"#q=trial:{trial}")
    dialog = page.locator("#token")
    expect(dialog).to_be_visible()
    page.locator("#token-value").fill("another")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("refused")
    page.locator("#token-value").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("button.hit")).to_have_count(16)
    expect(page.locator("button.hit img").first).to_have_js_property("naturalWidth", 48)
    expect(page.locator(".lead img")).to_have_js_property("naturalWidth", 48)
    assert page.locator("button.hit img").first.get_attribute("src").startswith("blob:")
    assert TOKEN not in page.url
    page.reload()
    expect(page.locator("button.hit")).to_have_count(16)
    expect(dialog).to_be_hidden()
    page.locator("#export summary").click()
    page.locator("[data-export='curl']").click()
    command = page.evaluate("navigator.clipboard.readText()")
    assert "$VOXSEEK_TOKEN" in command and TOKEN not in command
    visits.close()
    assert visits.problems == []


def test_without_a_token_the_page_says_so(
    serve: Callable[..., Server], browser: Any, expect: Any
) -> None:
    visits = Visits(browser, serve(VOXSEEK_TOKEN=TOKEN), may_fail=True)
    page = visits()
    expect(page.locator("#token")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".problem h3")).to_have_text("A token is needed")
    visits.close()
    assert visits.problems == []
