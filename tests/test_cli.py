from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import cli
from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from tests.index_builder.conftest import draw_cone

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


@pytest.fixture
def folders(tmp_path: Path, rng: np.random.Generator) -> list[str]:
    """Two embedding folders of one space, and predictions in it."""
    space = EmbeddingSpace("ViT-L-14/openai", "final", 1, 48, True)
    for name, n in (("english", 500), ("others", 300), ("predictions", 40)):
        with EmbeddingWriter(tmp_path / name, space, command="test", details={}) as writer:
            captions = [f"{name} {i}" for i in range(n)]
            writer.write(draw_cone(rng, n), pa.table({"url": captions, "caption": captions}))
            writer.finish()
    return [str(tmp_path / name) for name in ("english", "others")]


def digests(index: Path) -> dict[str, str]:
    return {
        str(path.relative_to(index)): sha256_file(path)
        for path in index.rglob("*")
        if path.is_file()
    }


def test_an_index_of_several_folders_by_single_commands(
    capsys: pytest.CaptureFixture[str], folders: list[str], tmp_path: Path
) -> None:
    index = tmp_path / "index"
    design = ["--code", "ivf-rabitq", "--tier", "disk", "--rerank", "sq8", "--bits", "2"]
    design += ["--rows-per-shard", "300", "--recall", "0.8"]
    words = ["index", "plan", *folders, *design, "--no-hours", "--json"]
    status, out, err = run(capsys, *words)
    assert status == 0, err
    planned = json.loads(out)["plan"]
    assert (planned["n_rows"], planned["n_shards"]) == (800, 3)
    fields = ("code", "tier", "rerank", "bits")
    assert [planned[name] for name in fields] == ["ivf-rabitq", "disk", "sq8", 2]

    words = ["index", "build", *folders, str(index), *design]
    status, out, err = run(capsys, *words, "--dry-run", "--json")
    assert status == 0 and not index.exists()
    assert json.loads(out) == planned
    words += ["--columns", "caption", "--queries", str(tmp_path / "predictions")]
    status, out, err = run(capsys, *words, "--executor", "processes", "--workers", "2", "--json")
    assert status == 0, err
    manifest = json.loads(out)
    assert manifest["columns"] == ["caption"] and len(manifest["sources"]) == 2
    words[words.index(str(index))] = str(tmp_path / "serial")
    assert run(capsys, *words)[0] == 0
    assert digests(tmp_path / "serial") == digests(index)

    status, out, _ = run(capsys, "index", "info", str(index))
    assert status == 0 and "800 rows of ViT-L-14/openai:final" in out
    assert "english" in out and "others" in out
    words = ["index", "tune", str(index), "--recall", "0.7", "--n-queries", "25", "--json"]
    status, out, err = run(capsys, *words, "--queries", str(tmp_path / "predictions"))
    assert status == 0, err
    tuned = json.loads(out)["certificate"]
    assert tuned["target_recall"] == 0.7
    assert {name: each["n_queries"] for name, each in tuned["query_sets"].items()} == {
        "held_out": 25,
        "queries": 25,
    }
    status, out, err = run(capsys, "index", "verify", str(index), "--json")
    assert status == 0, err
    assert json.loads(out)["n_searches"] == 16

    status, out, err = run(capsys, "search", str(index), folders[1], "-k", "1")
    assert status == 0, err
    hits = [json.loads(line) for line in out.splitlines()]
    found = sum(hit["row"] == 500 + hit["query"] for hit in hits)
    assert len(hits) == 300 and found > 270
    assert {name for hit in hits for name in hit} >= {"caption"} and "url" not in hits[0]

    for folder in folders:
        Path(folder).rename(f"{folder}-moved")
    status, _, err = run(capsys, "index", "verify", str(index))
    assert status == 1 and "pass --embeddings" in err
    moved = [word for folder in folders for word in ("--embeddings", f"{folder}-moved")]
    for command in (["index", "verify"], ["index", "tune"]):
        status, _, err = run(capsys, *command, str(index), *moved)
        assert status == 0, err
    status, _, err = run(capsys, "index", "verify", str(index), *moved[:2])
    assert status == 1 and "--embeddings was given 1 times" in err


def test_billions_of_rows_are_planned_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["index", "plan", "--rows", "5526641167", "--space", "ViT-L-14:final:1x768"]
    status, out, err = run(capsys, *words, "--memory", "64GiB", "--no-hours", "--json")
    assert status == 0, err
    facts = json.loads(out)
    assert facts["plan"]["n_rows"] == 5526641167
    assert facts["plan"]["ram_bytes"] <= 64 << 30
    assert sum(design["is_chosen"] for design in facts["designs"]) == 1
    status, _, err = run(capsys, *words[:4], "--no-hours")
    assert status == 2 and "--rows needs --space" in err
    for given in ([], ["embeddings", *words[2:]]):
        status, _, err = run(capsys, "index", "plan", *given)
        assert status == 2 and "give either EMBEDDINGS, or --rows N with --space SPACE" in err


def test_options_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], folders: list[str], tmp_path: Path
) -> None:
    index = str(tmp_path / "index")
    words = ["index", "build", *folders, index, "--scheduler", "tcp://127.0.0.1:1"]
    status, _, err = run(capsys, *words)
    assert status == 2 and "--scheduler goes with --executor dask" in err
    status, _, err = run(capsys, "index", "build", folders[0], folders[0], index)
    assert status == 1 and "was given 2 times; expected each folder once" in err
    status, _, err = run(
        capsys, "index", "build", folders[0], index, "--code", "flat", "--bits", "1"
    )
    assert status == 1 and "bits is 1, and a flat index has no codes" in err
    status, _, err = run(capsys, "index", "build", *folders, index, "--columns", "license")
    assert status == 1 and "has no metadata column 'license'; it has url, caption" in err
    assert not Path(index).exists()
