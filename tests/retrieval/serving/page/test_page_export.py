"""What is copied runs, and what is downloaded holds the hits."""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.retrieval.serving.page.conftest import ROOT, Server, Visits
from tests.retrieval.serving.page.test_page_queries import rows_shown
from tests.retrieval.serving.page.world import FORMULA, World


def copied(page: Any, kind: str) -> str:
    page.locator("#export summary").click()
    page.locator(f"[data-export='{kind}']").click()
    page.locator("#toast").wait_for(state="visible")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def downloaded(page: Any, kind: str) -> str:
    page.locator("#export summary").click()
    with page.expect_download() as download:
        page.locator(f"[data-export='{kind}']").click()
    return Path(download.value.path()).read_bytes().decode()


def ready(visits: Visits, link: str, expect: Any, n: int) -> Any:
    page = visits(link)
    expect(page.locator(".results[data-pane='0'] button.hit")).to_have_count(n)
    return page


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_command_finds_the_same(
    visits: Visits, server: Server, trial: int, expect: Any
) -> None:
    where = "caption <> 'it''s'"
    page = ready(visits, f"#q=trial:{trial}&k=5&where={where}", expect, 5)
    command = copied(page, "curl")
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    expected = server.search(
        {"index": "drawn", "queries": [{"run": "first", "image_id": trial}], "k": 5, "where": where}
    )
    assert json.loads(finished.stdout)["results"] == expected["results"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_command_reads_a_picture_from_its_file(
    visits: Visits, world: World, tmp_path: Path, expect: Any
) -> None:
    path = tmp_path / "a cat's picture.png"
    path.write_bytes((world.pictures / "011.png").read_bytes())
    page = visits()
    expect(page.locator(".trial").first).to_be_visible()
    page.locator("#file").set_input_files(path)
    expect(page.locator("button.hit")).to_have_count(16)
    command = copied(page, "curl")
    finished = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(finished.stdout)["results"][0]["hits"][0]["row"] == 11


def test_the_python_program_finds_the_same(
    visits: Visits, server: Server, trial: int, expect: Any
) -> None:
    page = ready(visits, f"#q=trial:{trial}&k=4&unsafe_from=off", expect, 4)
    program = copied(page, "python")
    finished = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, check=True
    )
    answer = server.search(
        {
            "index": "drawn",
            "queries": [{"run": "first", "image_id": trial}],
            "k": 4,
            "unsafe_from": None,
        }
    )
    rows = [int(line.split()[1]) for line in finished.stdout.splitlines()]
    assert rows == [hit["row"] for hit in answer["results"][0]["hits"]]


def test_the_python_program_reads_a_picture_from_its_file(
    visits: Visits, world: World, expect: Any
) -> None:
    page = visits()
    expect(page.locator(".trial").first).to_be_visible()
    page.locator("#file").set_input_files(world.pictures / "012.png")
    expect(page.locator("button.hit")).to_have_count(16)
    finished = subprocess.run(
        [sys.executable, "-"],
        input=copied(page, "python"),
        cwd=world.pictures,
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.split()[:2] == ["0", "12"]


def run_command(command: str, world: World, folder: Path) -> list[dict[str, Any]]:
    """Run a copied command with folders in place of their names."""
    names = {"drawn": world.drawn, "first": world.runs[0], "simulated": world.subject}
    for name, target in names.items():
        assert f"'{name}'" in command
        command = command.replace(f"'{name}'", shlex.quote(str(target)))
    wrapped = f'voxseek() {{ {shlex.quote(sys.executable)} {ROOT}/cli.py "$@"; }}; {command}'
    finished = subprocess.run(
        ["bash", "-c", wrapped], cwd=folder, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in finished.stdout.splitlines()]


def test_the_command_finds_the_same(
    visits: Visits, server: Server, world: World, tmp_path: Path, expect: Any
) -> None:
    image_id = server.get("/api/runs/first/trials?limit=5")[4]["image_id"]
    filters = "&where=caption+<>+'it''s'&unsafe_from=off&duplicate_from=0.9&n_candidates=60"
    page = ready(visits, f"#q=trial:{image_id}&k=6{filters}", expect, 6)
    lines = run_command(copied(page, "voxseek"), world, tmp_path)
    answer = server.search(
        {
            "index": "drawn",
            "queries": [{"run": "first", "image_id": image_id}],
            "k": 6,
            "where": "caption <> 'it''s'",
            "unsafe_from": None,
            "duplicate_from": 0.9,
            "n_candidates": 60,
        }
    )
    hits = answer["results"][0]["hits"]
    assert [line["row"] for line in lines] == [hit["row"] for hit in hits]
    assert [line["score"] for line in lines] == pytest.approx(
        [hit["score"] for hit in hits], abs=1e-3
    )


def test_the_command_of_a_mixture(
    visits: Visits, world: World, tmp_path: Path, trial: int, expect: Any
) -> None:
    page = visits(f"#q=trial:{trial}")
    page.locator("#mix").click()
    page.locator("#file").set_input_files(world.pictures / "013.png")
    page.locator(".mixture input[type='range']").nth(1).fill("-0.5")
    expect(page.locator(".mixture output").nth(1)).to_have_text("−0.50")
    page.locator("[name='k'] >> nth=0").fill("5")
    page.locator("[name='k'] >> nth=0").press("Enter")
    expect(page.locator("button.hit")).to_have_count(5)
    (tmp_path / "013.png").write_bytes((world.pictures / "013.png").read_bytes())
    lines = run_command(copied(page, "voxseek"), world, tmp_path)
    assert [line["row"] for line in lines] == rows_shown(page)


def test_the_link_is_the_address(visits: Visits, trial: int, expect: Any) -> None:
    page = ready(visits, f"#q=trial:{trial}&k=4", expect, 4)
    assert copied(page, "link") == page.url


def test_csv_holds_the_hits_and_no_formula(
    visits: Visits, server: Server, trial: int, expect: Any
) -> None:
    page = ready(visits, f"#q=trial:{trial}&where=image_id+IN+(7,8)", expect, 2)
    lines = list(csv.DictReader(io.StringIO(downloaded(page, "csv"), newline="")))
    answer = server.search(
        {
            "index": "drawn",
            "queries": [{"run": "first", "image_id": trial}],
            "where": "image_id IN (7,8)",
        }
    )
    for line, hit in zip(lines, answer["results"][0]["hits"], strict=True):
        assert (int(line["rank"]), int(line["row"])) == (hit["rank"], hit["row"])
        assert float(line["score"]) == hit["score"]
        caption = hit["metadata"]["caption"]
        assert line["caption"] == (f"'{caption}" if caption == FORMULA else caption)


def test_json_holds_the_answers_of_both_sides(
    visits: Visits, server: Server, trial: int, expect: Any
) -> None:
    page = ready(visits, f"#q=trial:{trial}&compare=1&run=first&b.run=second", expect, 16)
    expect(page.locator(".results[data-pane='1'] button.hit")).to_have_count(16)
    content = json.loads(downloaded(page, "json"))
    for side, run in (("A", "first"), ("B", "second")):
        answer = server.search({"index": "drawn", "queries": [{"run": run, "image_id": trial}]})
        assert content[side]["results"] == answer["results"]
