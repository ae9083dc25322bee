from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

import cli

ROOT = Path(__file__).resolve().parents[1]


def walk(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield the full name of every command that is not a group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(walk(cli.assemble()))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    command = COMMANDS[name]
    text = command.help or ""
    assert "\b" in text
    assert f"voxseek {name}" in text.split("Example:")[1]
    assert all(option.help for option in command.params if isinstance(option, click.Option))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_stands_in_the_readme(name: str) -> None:
    assert f"voxseek {name}" in (ROOT / "README.md").read_text()


def test_every_command_of_the_documents_exists() -> None:
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for path in texts:
        for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", path.read_text(), re.S):
            for words in re.findall(r"(?:^|\n)(?:\$ )?(?:\.venv/bin/)?voxseek +([^\n]*)", block):
                tokens = words.split()
                if tokens[0].startswith("-"):
                    continue
                known = any(" ".join(tokens[:n]) in COMMANDS for n in (1, 2, 3))
                assert known, f"{path.name}: voxseek {words}"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run the command line in this process; return status, stdout and stderr."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(words))
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_usage_errors_exit_with_2_and_refusals_with_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, out, err = run(capsys, "search", str(tmp_path))
    assert (status, out) == (2, "")
    assert "give either QUERIES, or --run RUN with --subject DIR" in err
    status, out, err = run(capsys, "index", "info", str(tmp_path))
    assert (status, out) == (1, "")
    assert err.startswith("voxseek: ") and "manifest.json is missing" in err
    status, _, err = run(capsys, "bench", "nway", str(tmp_path), str(tmp_path), "--n-way", "1,all")
    assert status == 2
    assert "'1' is neither a number of at least 2 nor 'all'" in err


def test_version_and_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--version")
    assert status == 0
    assert re.match(r"voxseek, version \d+\.\d+\.\d+", out)


def test_doctor_is_healthy_and_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "doctor", "--json")
    facts = json.loads(out)
    assert status == 0, err
    assert facts["problems"] == []
    assert facts["memory_bytes"] > 0 and facts["disk_bytes"] > 0
    assert facts["extras"]["demo"] == []


@pytest.fixture
def photographs(tmp_path: Path, rng: np.random.Generator) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(24):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 48)).save(folder / f"{number:02}.png")
    return folder


def test_from_pictures_to_hits_by_single_commands(
    capsys: pytest.CaptureFixture[str], photographs: Path, tmp_path: Path
) -> None:
    targets, index, results = tmp_path / "targets", tmp_path / "index", tmp_path / "results"
    status, out, err = run(
        capsys, "embed", str(photographs), str(targets), "--encoder", "pixels-8", "--json"
    )
    assert status == 0, err
    assert json.loads(out)["n_pictures"] == 24
    status, out, _ = run(capsys, "index", "plan", str(targets), "--code", "ivf-rabitq", "--json")
    assert json.loads(out)["plan"]["code"] == "ivf-rabitq"
    status, out, err = run(capsys, "index", "build", str(targets), str(index), "--json")
    assert status == 0, err
    status, out, _ = run(capsys, "index", "info", str(index))
    assert status == 0 and "24 rows of pixels-8x8:final" in out
    status, out, err = run(capsys, "index", "verify", str(index))
    assert status == 0, err

    query = tmp_path / "query.npy"
    with Image.open(photographs / "05.png") as opened:
        grey = np.asarray(opened.convert("L").resize((8, 8), Image.Resampling.BOX), np.float32)
    np.save(query, (grey - grey.mean()).reshape(1, -1))
    status, out, err = run(capsys, "search", str(index), str(query), "-k", "3")
    assert status == 0, err
    hits = [json.loads(line) for line in out.splitlines()]
    assert [hit["rank"] for hit in hits] == [0, 1, 2]
    assert hits[0]["image_id"] == 5 and hits[0]["score"] == pytest.approx(1, abs=1e-3)

    words = ["search", str(index), str(targets), "--out", str(results), "--gallery", "--json"]
    status, out, err = run(capsys, *words)
    assert status == 0, err
    facts = json.loads(out)
    assert facts["n_found_first"] == facts["n_known"] == 24
    page = (results / "gallery.html").read_text()
    assert page.count("data:image/") >= 24 and "http://" not in page.replace("http://www.w3", "")
    status, out, _ = run(capsys, "bench", "index", str(index), str(targets), "-k", "5", "--json")
    assert json.loads(out)["recall"]["5"]["value"] == 1
    status, out, err = run(
        capsys, "bench", "nway", str(targets), str(targets), "--n-way", "10,all", "--json"
    )
    assert status == 0, err


def test_a_flipped_byte_is_refused_by_verify_and_by_search(
    capsys: pytest.CaptureFixture[str], photographs: Path, tmp_path: Path
) -> None:
    targets, index = tmp_path / "targets", tmp_path / "index"
    run(capsys, "embed", str(photographs), str(targets), "--encoder", "pixels-8")
    words = ["index", "build", str(targets), str(index), "--code", "ivf-rabitq"]
    status, _, err = run(capsys, *words)
    assert status == 0, err
    files = [path for path in index.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 4
    for path in files:
        whole = path.read_bytes()
        at = len(whole) // 2
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        for command in (["index", "verify", str(index)], ["search", str(index), str(targets)]):
            status, out, err = run(capsys, *command)
            assert (status, out) == (1, ""), (path, command, err)
            assert path.name in err
        path.write_bytes(whole)
    assert run(capsys, "index", "verify", str(index))[0] == 0
