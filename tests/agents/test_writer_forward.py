"""What trl asks for is answered alike, with less work."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from trl.trainer.utils import add_fused_lm_head

from hawker.agents.writer_forward import read_pairs_once, read_prompts_once
from hawker.agents.writer_training import adapter
from hawker.policies.small_writer import small_model
from hawker.policies.writer import load_causal

ASKED = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def adapted(path: Path, numbers: torch.dtype = torch.float32) -> Any:
    """A model with a LoRA adapter that does something, as trl's trainers leave it."""
    from peft import get_peft_model

    model = load_causal(path, numbers)
    add_fused_lm_head(model, temperature=0.7, outputs=ASKED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that are on their way out
        tuned = get_peft_model(model, adapter(4))
    generator = torch.Generator().manual_seed(0)
    for name, weights in tuned.named_parameters():
        if "lora_" in name:
            weights.data = 0.2 * torch.randn(weights.shape, generator=generator)
    return tuned


def trainer_of(model: Any, device: str = "cpu") -> Any:
    accelerator = SimpleNamespace(unwrap_model=lambda wrapped: wrapped)
    return SimpleNamespace(model=model, accelerator=accelerator, args=SimpleNamespace(device=torch.device(device)))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model") / "lm", ["a pot for tea"] * 3)


def batch() -> dict[str, torch.Tensor]:
    """Prompts of up to seven tokens, some alike and some padded on the left, and answers of up to five."""
    ids = torch.randint(5, 250, (6, 12), generator=torch.Generator().manual_seed(1))
    mask, labels = torch.ones_like(ids), ids.clone()
    ids[1, :7] = ids[4, :7] = ids[0, :7]
    ids[3, :7] = ids[2, :7]
    mask[2:4, :3] = 0
    mask[5, 10:] = 0
    labels[:, :7] = -100
    labels[4, 7:9] = -100  # the others' answers begin earlier
    return {"input_ids": ids, "attention_mask": mask, "labels": labels.masked_fill(mask == 0, -100)}


def answered(model: Any, asked: dict[str, torch.Tensor]) -> tuple[Any, list[torch.Tensor]]:
    model.zero_grad()
    out = model(**asked, fused_lm_head=True)
    (out.log_probs * torch.arange(11)).sum().backward()
    return out, [weights.grad.clone() for weights in model.parameters() if weights.grad is not None]


def test_answers_and_gradients_are_trls(path: Path):
    model = adapted(path)
    theirs, slope = answered(model, batch())
    read_prompts_once(trainer_of(model), 0.7)
    ours, same = answered(model, batch())
    for name in (*ASKED, "loss"):
        assert torch.allclose(getattr(theirs, name).float(), getattr(ours, name).float(), atol=1e-5), name
    assert torch.equal(theirs.label_mask, ours.label_mask)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(slope, same, strict=True))
    assert model(**{k: v for k, v in batch().items() if k != "labels"}).logits.shape[:2] == (6, 12)


def test_pairs_are_scored_alike(path: Path):
    """Answers of other lengths, one the beginning of its rival, one the same as its rival."""
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(model, adapter(4, "SEQ_CLS"))
    ids = torch.randint(5, 250, (3, 12), generator=torch.Generator().manual_seed(1)).repeat(2, 1)
    mask, pad = torch.ones_like(ids), model.config.pad_token_id
    ids[3, 8:] = ids[3, 8:].flip(0)
    mask[4, 9:] = mask[2, 10:] = mask[5, 10:] = 0
    asked = {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}

    def scores() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        logits = model(**asked, use_cache=False).logits[:, 0]
        (logits * torch.arange(6)).sum().backward()
        return logits, [weights.grad.clone() for weights in model.parameters() if weights.grad is not None]

    model.train()
    theirs, slope = scores()
    read = []
    read_pairs_once(trainer_of(model))
    model.get_base_model().base_model.register_forward_hook(
        lambda *call: read.append(call[2].last_hidden_state.shape[:2].numel())
    )
    ours, same = scores()
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(slope, same, strict=True))
    assert sum(read) < ids.numel()
    model.eval()
    assert model(input_ids=ids[:3], attention_mask=mask[:3]).logits.shape == (3, 1)


def test_in_bfloat16_the_adapter_keeps_its_float32(path: Path):
    """Answers and slopes stay close to those of float32; what learns, and its slopes, are float32."""
    exact, low = adapted(path), adapted(path, torch.bfloat16)
    for model in (exact, low):
        read_prompts_once(trainer_of(model), 0.7)
    (theirs, slope), (ours, rough) = answered(exact, batch()), answered(low, batch())
    assert torch.allclose(theirs.log_probs, ours.log_probs.float(), atol=0.1)
    assert {each.dtype for each in rough} == {torch.float32}
    flat, other = (torch.cat([each.flatten() for each in some]) for some in (slope, rough))
    assert torch.nn.functional.cosine_similarity(flat, other, dim=0) > 0.99
    said = low.generate(
        input_ids=batch()["input_ids"][:, :7],
        attention_mask=batch()["attention_mask"][:, :7],
        generation_config=GenerationConfig(eos_token_id=0, pad_token_id=1, max_new_tokens=4, temperature=1.0),
    )
    assert said.shape[0] == 6
    assert 8 <= said.shape[1] <= 11


@pytest.mark.parametrize("begin", [1, 12])
def test_without_a_prompt_or_an_answer_trl_answers(path: Path, begin: int):
    model, asked = adapted(path), batch()
    asked["labels"] = asked["input_ids"].clone()
    asked["labels"][:, :begin] = -100
    theirs = model(**asked, fused_lm_head=True)
    read_prompts_once(trainer_of(model), 0.7)
    assert torch.equal(model(**asked, fused_lm_head=True).log_probs, theirs.log_probs)


def test_generation_says_the_same(path: Path):
    model, asked = adapted(path).eval(), batch()
    asked = {"input_ids": asked["input_ids"][:, :7], "attention_mask": asked["attention_mask"][:, :7]}
    config = GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=0, pad_token_id=1)
    theirs = model.generate(**asked, generation_config=config)
    config.temperature = 0.0  # trl sets one above 0
    read_prompts_once(trainer_of(model))
    assert torch.equal(model.generate(**asked, generation_config=config), theirs)


def test_on_a_gpu_nothing_changes(path: Path):
    model = adapted(path)
    before = model.get_base_model().forward
    read_prompts_once(trainer_of(model, "cuda"))
    assert model.get_base_model().forward == before
