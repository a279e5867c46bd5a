from pathlib import Path

import torch

from hawker.policies.small_writer import small_model
from hawker.policies.writer import Writer
from hawker.shop.models import find_model, model_digest

TEXTS = ["A quiet pot for slow mornings", "Warm wool for cold days"]


def test_it_is_a_model_like_any_other(tmp_path: Path, nothing_global: None):
    path = small_model(tmp_path / "model", TEXTS)
    assert find_model(str(path)) == path
    writer = Writer.load(str(path), torch.device("cpu"))
    text = "Warm mornings \u2603"
    assert writer.tokenizer.decode(writer.tokenizer(text)["input_ids"]) == text
    assert sum(parameter.numel() for parameter in writer.model.parameters()) < 50_000


def test_the_seed_decides_the_weights(tmp_path: Path):
    paths = [small_model(tmp_path / str(i), TEXTS, seed=seed) for i, seed in enumerate((0, 0, 1))]
    digests = [model_digest(path) for path in paths]
    assert digests[0] == digests[1] != digests[2]


def test_without_chat_and_padding(tmp_path: Path):
    writer = Writer.load(str(small_model(tmp_path / "model", TEXTS, chat=False, pad=False)), torch.device("cpu"))
    assert writer.tokenizer.chat_template is None
    assert writer.tokenizer.pad_token_id == writer.tokenizer.eos_token_id == 0
