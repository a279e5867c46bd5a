"""The backbone learns to choose: its gradient, its steps, what it is told by PPO, and whether it pays."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.agents.backbone import Backbone, BackboneConfig, seen_by, texts_of
from hawker.shop.catalog import Catalog
from hawker.shop.errors import InputError
from hawker.shop.language import HashedEncoder, ModelEncoder, load_encoder

CPU = torch.device("cpu")
TEXTS = ["A quiet pot", "Warm wool for cold days", " ", "A quiet pot", "Good shoes. Made to last, in every weather"]


@pytest.fixture
def config(small_lm: Path) -> BackboneConfig:
    return BackboneConfig(str(small_lm), rank=4, rows=2, learning_rate=1e-2, largest=1e9)


def gradients(backbone: Backbone) -> torch.Tensor:
    """All that was pulled, in one row."""
    return torch.cat([torch.zeros(w.numel()) if w.grad is None else w.grad.flatten() for w in backbone._weights])


def weights(backbone: Backbone, adapter: bool) -> dict[str, torch.Tensor]:
    parameters = backbone._loaded[1].named_parameters()
    return {name: weight.detach().clone() for name, weight in parameters if ("lora_" in name) == adapter}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("nothing_global")
def test_it_begins_as_the_untouched_model(config, small_lm):
    backbone, plain = Backbone(config, CPU), ModelEncoder(str(small_lm), CPU)
    np.testing.assert_allclose(backbone.encode(TEXTS), plain.encode(TEXTS), atol=1e-6)
    assert backbone.width == plain.width == 32
    assert not backbone.encode(TEXTS)[2].any(), "what says nothing is zero"


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_a_gradient_in_chunks_is_the_gradient_in_one_piece(config, rows):
    """Autograd's own, of sum(gradient * vectors), where all texts are read at once, and twice if they stand twice."""
    pulled, plain = Backbone(dataclasses.replace(config, rows=rows), CPU), Backbone(config, CPU)
    for each in (pulled, plain):  # not where the adapter's second matrices are zero, and so half of the gradient
        for i, weight in enumerate(each._weights):
            weight.data = 0.1 * drawn(*weight.shape, seed=i)
    gradient = drawn(len(TEXTS), 32, seed=1)
    pulled.pull(TEXTS, gradient)
    spoken = [i for i, text in enumerate(TEXTS) if text.strip()]
    ids = plain._loaded[0]([TEXTS[i] for i in spoken], add_special_tokens=False)["input_ids"]
    (gradient[spoken] * plain._read(ids)).sum().backward()
    assert gradients(plain).norm() > 0.1
    torch.testing.assert_close(gradients(pulled), gradients(plain), atol=1e-5, rtol=1e-4)


def test_a_gradient_is_a_difference_quotient(config):
    backbone = Backbone(config, CPU)
    gradient, step = drawn(len(TEXTS), 32), 3e-3
    for i, weight in enumerate(backbone._weights):
        weight.data = 0.1 * drawn(*weight.shape, seed=i)
    backbone.pull(TEXTS, gradient)
    found = gradients(backbone)
    along, losses = found / found.norm(), []
    for sign in (1, -1):
        start = 0
        for weight in backbone._weights:
            weight.data += sign * (1 if sign == 1 else 2) * step * along[start : start + weight.numel()].view_as(weight)
            start += weight.numel()
        losses.append(float((gradient * torch.from_numpy(backbone.encode(TEXTS))).sum()))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(found.norm()), rel=0.02)


@pytest.mark.usefixtures("nothing_global")
def test_a_step_changes_the_adapter_alone_and_goes_downhill(config):
    backbone = Backbone(config, CPU)
    before, digest, vectors = (weights(backbone, adapter=False), backbone.digest, backbone.encode(TEXTS))
    adapter, gradient = weights(backbone, adapter=True), drawn(len(TEXTS), 32)
    backbone.pull(TEXTS, gradient)
    norm = float(gradients(backbone).norm())
    assert backbone.step() == pytest.approx(norm)
    assert not gradients(backbone).any(), "the next gradient begins at zero"
    assert all(torch.equal(value, before[name]) for name, value in weights(backbone, adapter=False).items())
    assert any(not torch.equal(value, adapter[name]) for name, value in weights(backbone, adapter=True).items())
    after = backbone.encode(TEXTS)
    assert (gradient.numpy() * (after - vectors)).sum() < 0
    assert not after[2].any()
    assert backbone.digest != digest


@pytest.mark.parametrize("largest", [1e9, 0.5])
def test_a_gradient_is_shortened(config, largest):
    """After its first step Adam's first moments are a tenth of the gradient that it was given."""
    backbone = Backbone(dataclasses.replace(config, largest=largest), CPU)
    backbone.pull(TEXTS, drawn(len(TEXTS), 32))
    norm = backbone.step()
    assert norm > 1
    moments = torch.cat([state["exp_avg"].flatten() for state in backbone._adam.state.values()])
    assert float(moments.norm()) == pytest.approx(0.1 * min(norm, largest), rel=1e-4)


def test_what_is_no_number_ends_it(config):
    backbone = Backbone(config, CPU)
    before = weights(backbone, adapter=True)
    backbone.pull(TEXTS, torch.full((len(TEXTS), 32), torch.inf))
    with pytest.raises(InputError, match="gradient is not finite"):
        backbone.step()
    assert all(torch.equal(value, before[name]) for name, value in weights(backbone, adapter=True).items())


def test_a_saved_one_reads_new_items_alike(config, tmp_path):
    backbone = Backbone(config, CPU)
    untouched = backbone.encode(["An item that nobody knew"])
    for i in range(3):
        backbone.pull(TEXTS, drawn(len(TEXTS), 32, seed=i))
        backbone.step()
    backbone.save(tmp_path / "tuned")
    again = load_encoder(str(tmp_path / "tuned"), CPU)
    new = ["An item that nobody knew", *TEXTS]
    np.testing.assert_allclose(again.encode(new), backbone.encode(new), atol=1e-5)
    assert np.abs(again.encode(new[:1]) - untouched).max() > 1e-3
    assert {path.suffix for path in (tmp_path / "tuned").iterdir()} <= {".json", ".safetensors", ".jinja"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("every", 0), ("rank", 0), ("rows", 0), ("learning_rate", 0.0), ("learning_rate", np.inf), ("largest", np.nan)],
)
def test_a_bad_config_is_refused(name, value):
    with pytest.raises(InputError, match=rf"backbone\.{name}"):
        BackboneConfig(**{name: value})


ITEMS = pd.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ["Tea pot", None, "Wool hat"],
        "description": ["Quiet.", "", "Warm."],
        "price": [1.0, 2.0, 4.0],
        "image_embedding": [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]],
    }
)


def test_a_catalog_seen_by_another_differs_in_its_texts(config):
    backbone, hashed = Backbone(config, CPU), Catalog.from_items(ITEMS, HashedEncoder(8))
    expected = Catalog.from_items(ITEMS, backbone)
    found = seen_by(hashed, backbone, backbone.encode(texts_of(ITEMS)))
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    assert found.text == expected.text
    assert found.to_dict() == expected.to_dict()
    bare = seen_by(Catalog.from_items(ITEMS), backbone, backbone.encode(texts_of(ITEMS)))
    np.testing.assert_array_equal(bare.vectors, expected.vectors)


@pytest.mark.parametrize("items", [ITEMS[["item_id"]], ITEMS.assign(title="", description=" ")])
def test_items_without_texts_are_refused(items):
    with pytest.raises(InputError, match="no texts"):
        texts_of(items)
