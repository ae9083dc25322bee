from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from tests.training.reference.published import Published, published
from training.errors import ReferenceWeightsError
from training.reference_weights import ReferenceFinalPrior, load_reference

LAYER = "net.causal_transformer.layers.1."


@pytest.fixture(scope="module")
def tokens_model() -> Published:
    return published("mindeye_tokens")


def test_the_numbers_follow_from_the_shapes(tokens_model: Published, tmp_path: Path) -> None:
    found = tokens_model.load(tmp_path)
    assert (found.epoch, found.n_voxels, found.latent_dim, found.n_blocks) == (239, 40, 16, 2)
    assert (found.tokens, found.dim, found.projector_dim) == (70, 8, 24)
    prior = found.prior
    assert (prior.depth, prior.n_heads, prior.head_dim, prior.n_steps) == (2, 2, 40, 100)
    assert not isinstance(prior, ReferenceFinalPrior)
    assert found.image_embed_scale == pytest.approx(8**0.5)


def test_the_numbers_of_the_final_model_follow_too(tmp_path: Path) -> None:
    found = published("mindeye_final").load(tmp_path)
    assert (found.tokens, found.dim) == (1, 12)
    assert isinstance(found.prior, ReferenceFinalPrior)
    assert (found.prior.n_text, found.prior.n_steps) == (30, 50)
    assert found.prior.has_time_table and found.prior.inner_norm


def test_weights_are_those_of_the_file(tokens_model: Published, tmp_path: Path) -> None:
    found, theirs = tokens_model.load(tmp_path), tokens_model.weights
    for ours, name in (
        (found.voxel_layer["weight"], "voxel2clip.lin0.0.weight"),
        (found.trunk["stem.0.bias"], "voxel2clip.lin0.1.bias"),
        (found.trunk["blocks.1.0.weight"], "voxel2clip.mlp.1.0.weight"),
        (found.trunk["head.bias"], "voxel2clip.lin1.bias"),
        (found.projector["layers.8.weight"], "voxel2clip.projector.8.weight"),
        (found.prior.weights["layers.1.mlp.narrow.weight"], f"{LAYER}1.5.weight"),
        (found.prior.weights["null_brain"], "net.null_brain_embeds"),
    ):
        assert torch.equal(ours, theirs[name]), name


def test_names_of_a_run_on_several_devices(tokens_model: Published, tmp_path: Path) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in tokens_model.weights.items()}
    found = load_reference(tokens_model.save(tmp_path / "last.pth", model_state_dict=wrapped))
    assert torch.equal(found.trunk["head.bias"], tokens_model.weights["voxel2clip.lin1.bias"])


def test_the_temperature_of_older_revisions_is_no_weight(
    tokens_model: Published, tmp_path: Path
) -> None:
    older = {**tokens_model.weights, "voxel2clip.temp": torch.tensor(0.006)}
    assert load_reference(tokens_model.save(tmp_path / "last.pth", model_state_dict=older))


@pytest.mark.parametrize(
    "function_of",
    [lambda rates: OneCycleLR._annealing_cos, lambda rates: rates.get_lr],
    ids=["a static function", "a method, and with it the optimizer"],
)
def test_learning_rates_of_older_versions_are_passed_over(
    function_of: Callable[[OneCycleLR], Any], tokens_model: Published, tmp_path: Path
) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    rates = OneCycleLR(optimizer, 3e-4, total_steps=10)
    weight.sum().backward()
    optimizer.step()
    path = tokens_model.save(
        tmp_path / "last.pth",
        optimizer_state_dict=optimizer.state_dict(),
        lr_scheduler={"anneal_func": function_of(rates), "total_steps": 10},
    )
    assert "builtins.getattr" in torch.serialization.get_unsafe_globals_in_checkpoint(path)
    assert load_reference(path).epoch == 239


class Code:
    """Something that runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({os.fspath(self.path)!r}, 'w')",)


def test_a_file_with_code_is_refused_and_not_run(tokens_model: Published, tmp_path: Path) -> None:
    path = tokens_model.save(tmp_path / "last.pth", lr_scheduler=Code(tmp_path / "made"))
    with pytest.raises(
        ReferenceWeightsError, match=r"last\.pth can't be read: .*exec.* Expected last\.pth"
    ):
        load_reference(path)
    assert not (tmp_path / "made").exists()


def test_a_truncated_file_is_named(tokens_model: Published, tmp_path: Path) -> None:
    path = tokens_model.save(tmp_path / "last.pth")
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(
        ReferenceWeightsError, match=r"last\.pth can't be read: .*Download it again"
    ):
        load_reference(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ReferenceWeightsError, match=r"absent\.pth is not a file\. Expected last\.pth as Train"
    ):
        load_reference(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("saved", "found"),
    [({"state_dict": {}, "epoch": 1}, r"\['epoch', 'state_dict'\]"), ([1], "list")],
)
def test_another_dictionary_is_refused(saved: object, found: str, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "last.pth")
    with pytest.raises(
        ReferenceWeightsError, match=f"holds {found}. .*with an epoch and a model_state_dict"
    ):
        load_reference(tmp_path / "last.pth")


def changed(name: str, change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def edit(weights: dict[str, Any]) -> None:
        weights[name] = change(weights[name])

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop(f"{LAYER}0.to_q.weight"), r"layers\.1\.0\.to_q\.weight is missing among"),
        (lambda w: w.pop("voxel2clip.lin0.0.weight"), r"lin0\.0\.weight is missing among"),
        (
            lambda w: w.update({"net.other": torch.ones(1), "net.more": torch.ones(1)}),
            r"2 weights have no place in the network, the first is net\.more",
        ),
        (
            changed(f"{LAYER}1.5.weight", lambda t: t[:, 1:]),
            r"layers\.1\.1\.5\.weight has shape \(8, 31\), expected \(8, 32\)",
        ),
        (
            changed("voxel2clip.lin0.0.weight", lambda t: t[0]),
            r"lin0\.0\.weight has shape \(40,\), expected 2 axes",
        ),
        (
            changed("voxel2clip.lin1.weight", lambda t: t[:-1]),
            r"lin1\.weight has 559 outputs, expected a multiple of the width of a token, 8",
        ),
        (
            changed("net.learned_query", Tensor.double),
            r"net\.learned_query is torch\.float64, expected torch\.float32",
        ),
        (changed("net.learned_query", lambda _: 3), "net.learned_query is int, expected"),
        (
            changed(f"{LAYER}0.rotary_emb.freqs", lambda t: t * 2),
            r"layers\.1\.0\.rotary_emb\.freqs is not 10000 \*\* -\(2 i / 32\)",
        ),
        (
            changed("noise_scheduler.alphas_cumprod", lambda t: t**2),
            r"alphas_cumprod is not the cosine schedule of 100 steps",
        ),
    ],
)
def test_another_network_is_refused(
    edit: Callable[[dict[str, Any]], None], message: str, tokens_model: Published, tmp_path: Path
) -> None:
    weights: dict[str, Any] = dict(tokens_model.weights)
    edit(weights)
    path = tokens_model.save(tmp_path / "last.pth", model_state_dict=weights)
    with pytest.raises(ReferenceWeightsError, match=message) as refused:
        load_reference(path)
    assert str(path) in str(refused.value)
    assert "give a last.pth that Train_MindEye.py saved" in str(refused.value)
