"""Every way to ask, and what is shown of the answer: the same that the API says."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.retrieval.serving.page.conftest import Server, Visits
from tests.retrieval.serving.page.world import N_PICTURES, N_TEST, World, caption

PLAIN = {
    "index": "drawn",
    "k": 16,
    "unsafe_from": 0.5,
}


def rows_shown(page: Any, side: int = 0) -> list[int]:
    """Return the image numbers of the hits, by the addresses of their pictures."""
    images = page.locator(f".results[data-pane='{side}'] button.hit img")
    addresses = images.evaluate_all("all => all.map((image) => image.getAttribute('src'))")
    return [int(address.split("?")[0].rsplit("/", 1)[1]) for address in addresses]


def rows_of(answer: dict[str, Any]) -> list[int]:
    return [hit["row"] for hit in answer["results"][0]["hits"]]


def test_the_page_begins_with_the_trials_and_says_what_it_takes(
    visits: Visits, expect: Any
) -> None:
    page = visits()
    expect(page.locator("#intro h2")).to_have_text("Which picture was seen?")
    expect(page.locator("#text")).to_be_disabled()  # an encoder of pixels knows no words
    expect(page.locator("#text")).to_have_attribute(
        "placeholder", "Drop a picture here, or pick a trial"
    )
    expect(page.locator("#place")).to_contain_text(f"of {N_TEST}")
    expect(page.locator(".about >> nth=0")).to_contain_text(f"{N_PICTURES} pictures · pixels-12x12")
    page.locator("#intro button").click()
    expect(page.locator(".results[data-pane='0'] button.hit")).to_have_count(16)
    expect(page.locator("#intro")).to_be_hidden()


def test_a_trial_shows_the_seen_picture_beside_what_was_found(
    visits: Visits, server: Server, trial: int, expect: Any
) -> None:
    page = visits()
    page.locator(f".trial[data-image='{trial}']").click()
    hits = page.locator(".results[data-pane='0'] button.hit")
    expect(hits).to_have_count(16)
    answer = server.search({**PLAIN, "queries": [{"run": "first", "image_id": trial}]})
    found = answer["results"][0]["hits"]
    assert rows_shown(page) == rows_of(answer)
    expect(page.locator(".lead")).to_contain_text("Seen")
    expect(page.locator(".lead")).to_contain_text("3 trials averaged")
    expect(page.locator(".seen-caption")).to_have_text(caption(trial))
    expect(page.locator(".lead img")).to_have_js_property("naturalWidth", 48)
    assert hits.locator(".score").all_inner_texts() == [
        f"{hit['score']:.3f}".replace("-", "−") for hit in found
    ]
    assert hits.locator(".rank").all_inner_texts() == [str(hit["rank"] + 1) for hit in found]
    share = hits.locator(".meter").first.evaluate("e => e.style.getPropertyValue('--share')")
    assert float(share) == pytest.approx(max(0, found[0]["score"]), abs=1e-6)
    ranks = [hit["rank"] + 1 for hit in found if hit["metadata"]["image_id"] == trial]
    expected = f"Found at rank {ranks[0]}" if ranks else "Not in the top 16"
    expect(page.locator(".verdict")).to_have_text(expected)
    expect(page.locator(".is-seen")).to_have_count(len(ranks))
    expect(page.locator(".trial[aria-selected='true']")).to_have_attribute("data-image", str(trial))
    expect(page.locator("#live")).to_contain_text("16 hits. Rank 1")


def test_a_seen_picture_that_is_not_among_the_hits_is_said_to_be_missed(
    visits: Visits, trial: int, expect: Any
) -> None:
    page = visits(f"#q=trial:{trial}&where=image_id+<>+{trial}")
    expect(page.locator(".verdict")).to_have_text("Not in the top 16")
    expect(page.locator(".is-seen")).to_have_count(0)


def test_a_confidence_is_shown_with_a_sentence(visits: Visits, trial: int, expect: Any) -> None:
    page = visits()

    def answer(route: Any) -> None:
        content = route.fetch().json()
        content["results"][0]["confidence"] = 0.731
        route.fulfill(json=content)

    page.route("**/api/search", answer)
    page.locator(f".trial[data-image='{trial}']").click()
    expect(page.locator(".confidence-value")).to_have_text("Confidence 73 %")
    expect(page.locator(".confidence p")).to_have_text(
        "Of 100 queries as clear as this one, about 73 have the right picture first."
    )


def test_a_chosen_picture_is_searched_for(
    visits: Visits, server: Server, world: World, expect: Any
) -> None:
    page = visits()
    path = world.pictures / "005.png"
    with page.expect_file_chooser() as chooser:
        page.locator("#choose").click()
    chooser.value.set_files(path)
    expect(page.locator(".results[data-pane='0'] button.hit")).to_have_count(16)
    content = base64.b64encode(path.read_bytes()).decode()
    answer = server.search({**PLAIN, "queries": [{"image": content}]})
    assert rows_shown(page) == rows_of(answer)
    assert rows_shown(page)[0] == 5
    expect(page.locator(".seen-caption")).to_have_text("005.png")
    expect(page.locator(".lead img")).to_have_js_property("naturalWidth", 48)
    expect(page.locator(".verdict")).to_have_count(0)  # nobody saw anything


def give(page: Any, kind: str, path: Path, media_type: str = "image/png") -> None:
    """Drop or paste a file on the page, as a browser does."""
    content = base64.b64encode(path.read_bytes()).decode()
    page.evaluate(
        """([kind, content, name, type]) => {
          const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], name, { type }));
          const about = { bubbles: true, cancelable: true };
          const event = kind === "paste"
            ? new ClipboardEvent("paste", { ...about, clipboardData: data })
            : new DragEvent(kind, { ...about, dataTransfer: data });
          document.body.dispatchEvent(event);
        }""",
        [kind, content, path.name, media_type],
    )


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_dropped_or_pasted_picture_is_searched_for(
    visits: Visits, world: World, kind: str, expect: Any
) -> None:
    page = visits()
    expect(page.locator(".trial").first).to_be_visible()
    if kind == "drop":
        give(page, "dragover", world.pictures / "009.png")
        expect(page.locator("#drop")).to_be_visible()
    give(page, kind, world.pictures / "009.png")
    expect(page.locator("#drop")).to_be_hidden()
    expect(page.locator(".results[data-pane='0'] button.hit")).to_have_count(16)
    assert rows_shown(page)[0] == 9


def test_what_is_no_picture_is_said_to_be_none(visits: Visits, tmp_path: Path, expect: Any) -> None:
    page = visits()
    expect(page.locator(".trial").first).to_be_visible()
    (tmp_path / "note.txt").write_text("words")
    give(page, "drop", tmp_path / "note.txt", "text/plain")
    expect(page.locator("#toast")).to_contain_text("not a picture")
    (tmp_path / "broken.png").write_text("words")
    give(page, "drop", tmp_path / "broken.png")
    expect(page.locator("#toast")).to_contain_text("broken.png is not a picture")


def test_a_large_picture_is_sent_smaller(visits: Visits, tmp_path: Path, expect: Any) -> None:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(256, size=(1100, 1600, 3), dtype=np.uint8)
    path = tmp_path / "large.png"
    Image.fromarray(noise).save(path)
    assert path.stat().st_size > 4 << 20
    page = visits()
    expect(page.locator(".trial").first).to_be_visible()
    with page.expect_request("**/api/search") as asked:
        page.locator("#file").set_input_files(path)
    content = base64.b64decode(json.loads(asked.value.post_data)["queries"][0]["image"])
    (tmp_path / "sent.jpg").write_bytes(content)
    with Image.open(tmp_path / "sent.jpg") as sent:
        assert sent.size == (1024, 704)
    expect(page.locator(".results[data-pane='0'] button.hit")).to_have_count(16)


def test_text_is_sent_as_typed_where_the_index_takes_it(
    visits: Visits, server: Server, expect: Any
) -> None:
    """The encoder of pixels takes none, so that words are turned into a vector on the way."""
    vector = [float(i == 3) for i in range(144)]
    asked = []

    def take_text(route: Any) -> None:
        indexes = route.fetch().json()
        for index in indexes:
            index["takes"]["text"] = True
        route.fulfill(json=indexes)

    def encode(route: Any) -> None:
        body = json.loads(route.request.post_data)
        asked.append(body["queries"])
        body["queries"] = [{"vector": vector}]
        route.continue_(post_data=json.dumps(body))

    def prepare(page: Any) -> None:
        page.route("**/api/indexes", take_text)
        page.route("**/api/search", encode)

    page = visits(prepare=prepare)
    expect(page.locator("#text")).to_be_enabled()
    page.keyboard.press("/")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("a “zebra” & <b>snow</b>")
    page.keyboard.press("Enter")
    expect(page.locator(".results[data-pane='0'] button.hit")).to_have_count(16)
    assert asked == [[{"text": "a “zebra” & <b>snow</b>"}]]
    assert rows_shown(page) == rows_of(server.search({**PLAIN, "queries": [{"vector": vector}]}))
    expect(page.locator("blockquote")).to_have_text("a “zebra” & <b>snow</b>")


def test_a_mixture_has_weights_of_both_signs(visits: Visits, server: Server, expect: Any) -> None:
    first, second = [one["image_id"] for one in server.get("/api/runs/first/trials?limit=2")]
    page = visits()
    page.locator(f".trial[data-image='{first}']").click()
    page.locator("#mix").click()
    expect(page.locator("#mix")).to_have_attribute("aria-pressed", "true")
    page.locator(f".trial[data-image='{second}']").click()
    sliders = page.locator(".mixture input[type='range']")
    expect(sliders).to_have_count(2)
    with page.expect_request("**/api/search") as asked:
        sliders.nth(1).fill("-0.4")
    mix = [
        {"weight": 1, "run": "first", "image_id": first},
        {"weight": -0.4, "run": "first", "image_id": second},
    ]
    assert json.loads(asked.value.post_data)["queries"] == [{"mix": mix}]
    expect(page.locator(".mixture output").nth(1)).to_have_text("−0.40")
    expect(page).to_have_url(
        f"{server.address}/#q=trial%3A{first}&q=-0.4*trial%3A{second}&index=drawn&run=first"
    )
    answer = server.search({**PLAIN, "queries": [{"mix": mix}]})
    expect(page.locator(".results[data-pane='0'] button.hit img").first).to_have_attribute(
        "src", f"{answer['results'][0]['hits'][0]['picture']}?size=384"
    )
    page.locator(".mixture button").nth(1).click()
    expect(page.locator(".mixture")).to_be_hidden()
    expect(page).to_have_url(f"{server.address}/#q=trial%3A{first}&index=drawn&run=first")


def test_a_link_brings_back_the_query_and_the_settings(
    visits: Visits, server: Server, trial: int, expect: Any
) -> None:
    link = f"#q=trial:{trial}&index=written&run=second&k=5&where=width+<+1500&unsafe_from=off"
    page = visits(link)
    expect(page.locator(".results[data-pane='0'] button.hit")).to_have_count(5)
    expect(page.locator("[name='where'] >> nth=0")).to_have_value("width < 1500")
    expect(page.locator("[name='is_safe'] >> nth=0")).not_to_be_checked()
    expect(page.locator("[name='run'] >> nth=0")).to_have_value("second")
    expect(page.locator(".active >> nth=0")).to_have_text("2 on")


def test_back_and_forward_bring_back_queries(visits: Visits, server: Server, expect: Any) -> None:
    first, second = [one["image_id"] for one in server.get("/api/runs/first/trials?limit=2")]
    page = visits()
    for image_id in (first, second):
        page.locator(f".trial[data-image='{image_id}']").click()
        expect(page.locator(".seen-caption")).to_have_text(caption(image_id))
    page.go_back()
    expect(page.locator(".seen-caption")).to_have_text(caption(first))
    page.go_forward()
    expect(page.locator(".seen-caption")).to_have_text(caption(second))
    expect(page).to_have_title(f"{caption(second)} – voxseek")


def test_a_link_to_a_picture_asks_for_the_picture_again(visits: Visits, expect: Any) -> None:
    page = visits("#q=image:zebra.png")
    expect(page.locator(".lead")).to_contain_text("doesn't carry it")
    expect(page.locator("button.hit")).to_have_count(0)


def test_a_hit_can_be_searched_for(visits: Visits, trial: int, expect: Any) -> None:
    page = visits(f"#q=trial:{trial}")
    page.locator("button.hit").nth(3).click()
    wanted = rows_shown(page)[3]
    page.get_by_role("button", name="Search for this picture").click()
    expect(page.locator("#details")).to_be_hidden()
    expect(page.locator("button.hit img").first).to_have_attribute(
        "src", f"/api/pictures/drawn/{wanted}?size=384"
    )


def test_trials_are_found_by_their_captions(visits: Visits, server: Server, expect: Any) -> None:
    trials = server.get("/api/runs/first/trials?limit=1000")
    odd = [one for one in trials if "odd" in one["caption"]]
    page = visits()
    page.locator("#find").fill("odd")
    expect(page.locator("#place")).to_contain_text(f"of {len(odd)}")
    expect(page.locator(".trial").first).to_have_attribute("data-image", str(odd[0]["image_id"]))
    page.locator("#find").fill("no such picture")
    expect(page.locator("#place")).to_have_text("none found")
