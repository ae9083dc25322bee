"""A published checkpoint as a run: its predictions are those of the published code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner

import cli
from index_builder.embeddings.space import EmbeddingSpace
from tests.training.reference.published import NAMES, published, relative_difference
from training.checkpoint import Run
from training.errors import RunError
from training.predict import predict
from training.reference_run import import_reference, recipe_of, space_of
from training.subjects.subject import write_subject


@pytest.mark.parametrize("name", NAMES)
def test_an_imported_run_predicts_what_the_published_code_does(name: str, tmp_path: Path) -> None:
    frozen = published(name)
    frozen.save(tmp_path / "last.pth")
    command = ["model", "import", str(tmp_path / "last.pth"), str(tmp_path / "run")]
    result = CliRunner().invoke(cli.assemble(), [*command, "--subject-name", "subj01"])
    assert result.exit_code == 0, result.output
    run = Run.open(tmp_path / "run")
    voxels = frozen.run["voxels"]
    with torch.inference_mode():
        tokens, retrieval = run.model.decode(voxels, 0)
        clean = run.model.prior(
            frozen.run["noised"], frozen.run["step"], frozen.run["tokens"].reshape(tokens.shape)
        )
    assert relative_difference(tokens.flatten(), frozen.run["tokens"].flatten()) < 1e-4
    assert relative_difference(retrieval.flatten(), frozen.run["retrieval"].flatten()) < 1e-4
    assert relative_difference(clean.flatten(), frozen.run["clean"].flatten()) < 1e-4

    n = len(voxels)
    subject = write_subject(
        tmp_path / "subj01",
        name="subj01",
        voxels=voxels.numpy(),
        trials=pa.table(
            {
                "trial": np.arange(n),
                "image_id": np.arange(n),
                "session": np.zeros(n, np.int64),
                "repeat": np.zeros(n, np.int64),
                "split": ["test"] * n,
            }
        ),
        rois={"all": np.ones(voxels.shape[1], bool)},
        images=None,
        command="test",
        details={},
    )
    out = predict(tmp_path / "run", subject, tmp_path / "predictions")
    expected = torch.nn.functional.normalize(frozen.run["retrieval"].reshape(n, -1), dim=1)
    found = torch.from_numpy(out.take(np.arange(n)).astype(np.float32)).reshape(n, -1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # stored as float16
    sampled = predict(tmp_path / "run", subject, tmp_path / "prior", head="prior")
    assert np.isfinite(sampled.take(np.arange(n)).astype(np.float32)).all()


@pytest.mark.parametrize(
    ("tokens", "dim", "expected"),
    [
        (257, 768, "ViT-L-14/openai:hidden:257x768:any"),
        (256, 1664, "ViT-bigG-14-squashed/laion2b_s39b_b160k:patches:256x1664:any"),
        (1, 768, "ViT-L-14/openai:final:1x768:any"),
    ],
)
def test_the_space_follows_from_the_shape(
    tokens: int, dim: int, expected: str, tmp_path: Path
) -> None:
    reference = replace(published("mindeye_tokens").load(tmp_path), tokens=tokens, dim=dim)
    assert space_of(reference) == EmbeddingSpace.parse(expected)
    target = recipe_of(reference).target
    assert target is not None and (target.tokens, target.dim) == (tokens, dim)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    published("mindeye_tokens").save(tmp_path / "last.pth")
    command = ["model", "import", str(tmp_path / "last.pth"), str(tmp_path / "run")]
    command += ["--subject-name", "subj01"]
    assert CliRunner().invoke(cli.assemble(), command).exit_code == 0
    again = CliRunner().invoke(cli.assemble(), command)
    assert again.exit_code == 1
    with pytest.raises(RunError, match="holds a finished run; import into a new folder"):
        import_reference(tmp_path / "last.pth", tmp_path / "run", subject_name="subj01")
