"""CLIP's layers against transformers' own CLIP, and weight files in the forms of others."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from index_builder.embeddings.space import EmbeddingSpace
from training.encoders.catalogue import name_encoder, open_encoder
from training.encoders.clip import ClipEncoder
from training.errors import EncoderError

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)

WIDTH, DIM, SIDE, PATCH = 32, 24, 32, 8


@pytest.fixture
def architectures(tmp_path: Path) -> None:
    """Register a small CLIP with open_clip, once for each activation."""
    import open_clip

    config: dict[str, Any] = {
        "embed_dim": DIM,
        "vision_cfg": {
            "image_size": SIDE,
            "layers": 2,
            "width": WIDTH,
            "head_width": 16,
            "patch_size": PATCH,
        },
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 49408,
            "width": WIDTH,
            "heads": 2,
            "layers": 1,
        },
    }
    (tmp_path / "models").mkdir()
    for name, quick_gelu in (("small-clip", False), ("small-clip-quickgelu", True)):
        content = json.dumps({**config, "quick_gelu": quick_gelu})
        (tmp_path / "models" / f"{name}.json").write_text(content)
    open_clip.add_model_config(tmp_path / "models")


def hugging_face_model(activation: str = "quick_gelu") -> Any:
    """Return a CLIP of transformers with random weights, large enough to tell activations apart."""
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 2}
    vision = {**shared, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": PATCH}
    text = {**shared, "num_hidden_layers": 1, "max_position_embeddings": 8, "vocab_size": 49408}
    torch.manual_seed(5)
    model = CLIPModel(
        CLIPConfig(
            vision_config={**vision, "hidden_act": activation, "projection_dim": DIM},
            text_config={**text, "hidden_act": activation},
            projection_dim=DIM,
        )
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    """Weights and configuration as transformers saves them."""
    hugging_face_model().save_pretrained(tmp_path / "hf")
    return tmp_path / "hf" / "model.safetensors"


@pytest.fixture
def batch(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((3, 3, SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize(
    ("activation", "name"), [("quick_gelu", "small-clip-quickgelu"), ("gelu", "small-clip")]
)
@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "vision alone"])
@pytest.mark.usefixtures("architectures")
def test_layers_equal_those_of_transformers(
    activation: str, name: str, form: str, batch: np.ndarray, tmp_path: Path
) -> None:
    from transformers import CLIPVisionModelWithProjection

    model = hugging_face_model(activation)
    model.save_pretrained(tmp_path / "hf")
    tower = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "hf").eval()
    file = tmp_path / "hf" / "model.safetensors"
    if form == "pytorch_model.bin":
        torch.save(load_file(file), file := tmp_path / "hf" / form)
    elif form == "vision alone":
        tower.save_pretrained(tmp_path / "tower")
        file = tmp_path / "tower" / "model.safetensors"
    with torch.inference_mode():
        found = tower(torch.from_numpy(batch))
        normed = tower.vision_model.post_layernorm(found.last_hidden_state)
        hidden = tower.visual_projection(normed)
    final = found.image_embeds / found.image_embeds.norm(dim=1, keepdim=True)
    expected = {
        "final": final,
        "hidden": hidden / hidden[:, :1].norm(dim=2, keepdim=True),
        "patches": normed[:, 1:],
    }
    for layer, tokens in expected.items():
        encoder = ClipEncoder(name, str(file), layer=layer)  # type: ignore[arg-type]
        assert encoder.space.row_shape == tokens.shape[1:]
        np.testing.assert_allclose(encoder.encode(batch), tokens.numpy(), atol=1e-5)


@pytest.mark.usefixtures("architectures")
def test_texts_equal_those_of_transformers(hugging_face: Path) -> None:
    import open_clip

    texts = ["a zebra", "two dogs on a beach"]
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer("small-clip")(texts)
        found = hugging_face_model().get_text_features(tokens)
    rows = getattr(found, "pooler_output", found)  # transformers 5 returns more than the rows
    expected = rows / rows.norm(dim=1, keepdim=True)
    actual = ClipEncoder("small-clip-quickgelu", str(hugging_face)).encode_texts(texts)
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5)


@pytest.mark.usefixtures("architectures")
def test_a_vision_tower_alone_holds_no_text(hugging_face: Path, tmp_path: Path) -> None:
    kept = {n: v for n, v in load_file(hugging_face).items() if not n.startswith(("text", "logit"))}
    save_file(kept, tmp_path / "tower.safetensors")
    encoder = ClipEncoder("small-clip-quickgelu", str(tmp_path / "tower.safetensors"))
    assert not encoder.takes_text
    with pytest.raises(EncoderError, match="of the vision tower alone; give a file of a whole"):
        encoder.encode_texts(["a zebra"])


class Archive(torch.nn.Module):
    """What OpenAI scripted: the weights, and three sizes beside them."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        for name, child in network.named_children():
            setattr(self, name, child)
        for name, weight in network.named_parameters(recurse=False):
            setattr(self, name, weight)
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("form", ["archive", "weights alone"])
@pytest.mark.usefixtures("architectures")
def test_files_of_openai_are_read(form: str, batch: np.ndarray, tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(1)
    network = open_clip.create_model("small-clip-quickgelu").eval()
    archive, file = Archive(network).half(), tmp_path / "ViT.pt"
    if form == "archive":
        torch.jit.script(archive).save(str(file))
    else:
        torch.save(archive.state_dict(), file)
    with torch.inference_mode():
        expected = network.half().float().encode_image(torch.from_numpy(batch), normalize=True)
    actual = ClipEncoder("small-clip-quickgelu", str(file)).encode(batch)
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5)
    with pytest.raises(EncoderError, match=r"trained with QuickGELU.*small-clip-quickgelu, or the"):
        ClipEncoder("small-clip", str(file))


@pytest.mark.usefixtures("architectures")
def test_the_activation_that_the_configuration_states_is_required(hugging_face: Path) -> None:
    with pytest.raises(EncoderError, match=r"trained with QuickGELU, and small-clip computes the"):
        ClipEncoder("small-clip", str(hugging_face))
    config = hugging_face.parent / "config.json"
    config.write_text("<html>")
    with pytest.raises(EncoderError, match=r"config\.json is no configuration of a CLIP model"):
        ClipEncoder("small-clip", str(hugging_face))
    config.unlink()
    ClipEncoder("small-clip", str(hugging_face))


@pytest.mark.usefixtures("architectures")
def test_a_tag_brings_its_activation(
    batch: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    told = {"url": "", "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small-clip", {"famous": told})
    torch.manual_seed(2)
    network = open_clip.create_model("small-clip-quickgelu").eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr(
        open_clip.factory, "download_pretrained", lambda *_, **__: str(tmp_path / "weights.pt")
    )
    with torch.inference_mode():
        expected = network.encode_image(torch.from_numpy(batch), normalize=True).numpy()
    np.testing.assert_allclose(
        ClipEncoder("small-clip", "famous").encode(batch), expected, atol=1e-6
    )


@pytest.mark.usefixtures("architectures")
def test_damaged_and_foreign_files_are_named(hugging_face: Path, tmp_path: Path) -> None:
    def opened(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, tmp_path / "changed.safetensors")
        ClipEncoder("small-clip-quickgelu", str(tmp_path / "changed.safetensors"))

    whole = load_file(hugging_face)
    for name in ("page.pt", "page.safetensors"):
        (tmp_path / name).write_text("<html>Not Found</html>")
        with pytest.raises(EncoderError, match=rf"weights .*{name} can't be read"):
            ClipEncoder("small-clip", str(tmp_path / name))
    with pytest.raises(EncoderError, match=r"holds 'vision_model\.extra', which no CLIP model"):
        opened({**whole, "vision_model.extra": torch.zeros(1)})
    key = "vision_model.encoder.layers.1.self_attn.k_proj.weight"
    with pytest.raises(EncoderError, match=r"lacks a part of visual.*self_attn\.q_proj"):
        opened({name: tensor for name, tensor in whole.items() if name != key})
    with pytest.raises(EncoderError, match=r"other weights than CLIP has: ln_final\.bias"):
        opened({n: v for n, v in whole.items() if n != "text_model.final_layer_norm.bias"})


def test_an_archive_that_runs_code_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/constants.pkl", b"")
        archive.writestr("evil/code/__torch__.py", b"def __setstate__(self, state): ...")
    with pytest.raises(EncoderError, match=r"holds code that runs while it is read \(evil/code/"):
        ClipEncoder("ViT-B-32", str(tmp_path / "evil.pt"))
    with zipfile.ZipFile(tmp_path / "torn.pt", "w") as archive:
        archive.writestr("torn/constants.pkl", b"")
    with pytest.raises(EncoderError, match=r"torn\.pt can't be read as a TorchScript archive"):
        ClipEncoder("ViT-B-32", str(tmp_path / "torn.pt"))


@pytest.mark.usefixtures("architectures")
def test_squashed_pictures_are_another_space(hugging_face: Path, rng: np.random.Generator) -> None:
    mean, std = (
        np.array([0.48145466, 0.4578275, 0.40821073]),
        np.array([0.26862954, 0.26130258, 0.27577711]),
    )
    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    plain, squashed = (
        open_encoder(name, pretrained=str(hugging_face), layer="patches")
        for name in ("small-clip-quickgelu", "small-clip-quickgelu-squashed")
    )
    prepared = squashed.prepare(Image.fromarray(pixels))
    expected = (((pixels / 255 + 1) / 2 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(prepared, expected, atol=1e-5)
    weights = plain.space.model.partition("/")[2]
    n_patches = (SIDE // PATCH) ** 2
    assert squashed.space == EmbeddingSpace(
        f"small-clip-quickgelu-squashed/{weights}", "patches", n_patches, WIDTH, False
    )
    assert plain.space.model == f"small-clip-quickgelu/{weights}"
    file = str(hugging_face)
    assert name_encoder(squashed.space, pretrained=file)[0] == "small-clip-quickgelu-squashed"
    final = open_encoder("small-clip-quickgelu-squashed", pretrained=file)
    assert not final.takes_text
    with pytest.raises(EncoderError, match=r"squashed pictures.*Leave -squashed out of"):
        final.encode_texts(["a zebra"])  # type: ignore[attr-defined]


def test_patches_of_vit_big_g_14_are_256_of_1664() -> None:
    import open_clip

    config = open_clip.get_model_config("ViT-bigG-14")["vision_cfg"]
    assert (config["image_size"] // config["patch_size"]) ** 2 == 256
    assert config["width"] == 1664
