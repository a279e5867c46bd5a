"""What all stages share; the stages' own tests train with it."""

import logging
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model

from hawker.agents import writer_training
from hawker.agents.writer_config import DpoConfig, SftConfig
from hawker.agents.writer_training import (
    Stage,
    adapter,
    agreement,
    arguments,
    digest_of,
    network,
    training,
    untouched,
    write_stage,
)
from hawker.policies.writer import load_causal
from hawker.shop.artefacts import read_json, write_json
from hawker.shop.errors import InputError
from hawker.shop.run import Run
from hawker.simulators.store import META


def test_places(tmp_path: Path):
    stage = Stage(Run(tmp_path), "grpo")
    assert stage.out == tmp_path / "writer/grpo"
    assert stage.checkpoint == tmp_path / "writer/grpo-checkpoint"
    assert stage.tensorboard == tmp_path / "tensorboard/writer-grpo"
    assert (stage.kind, Stage(Run(tmp_path), "reward").kind) == ("language model", "reward model")


def test_scratch_is_gone_and_randomness_put_back(tmp_path: Path, nothing_global: None):
    level = logging.getLogger("trl").level
    with training(Stage(Run(tmp_path), "sft")) as scratch:
        assert scratch.parent == tmp_path / "writer"
        torch.rand(3)
        logging.getLogger("trl").warning("about itself")
        warnings.warn("about itself", stacklevel=1)
    assert not any((tmp_path / "writer").iterdir())
    assert logging.getLogger("trl").level == level


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "writer sft: not enough memory; lower --rows or --rank"),
        (RuntimeError("probability tensor contains either `inf`, `nan`"), "the writer's probabilities are not finite"),
    ],
)
def test_what_ends_in_a_line(tmp_path: Path, error: Exception, message: str):
    with pytest.raises(InputError, match=message), training(Stage(Run(tmp_path), "sft")):
        raise error
    with pytest.raises(RuntimeError, match="another"), training(Stage(Run(tmp_path), "sft")):
        raise RuntimeError("another")


def test_arguments_of_a_cpu(tmp_path: Path):
    found = arguments(SftConfig(batch=12, rows=4, device="cpu"), tmp_path)
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (4, 3)
    assert (found["use_cpu"], found["bf16"], found["gradient_checkpointing"]) == (True, False, False)
    assert found["report_to"] == []
    assert found["lr_scheduler_type"] == "linear"
    assert arguments(DpoConfig(device="cpu"), tmp_path)["lr_scheduler_type"] == "constant"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # as peft makes the adapter
def test_an_adapter_learns_beside_weights_in_bfloat16(small_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is written is the model's own float32 weights and the adapter's, not what bfloat16 left of them."""
    config = SftConfig(rank=2, device="cpu")
    plain = load_causal(small_lm, torch.float32)
    monkeypatch.setattr(writer_training, "dtype_on", lambda device, path: torch.bfloat16)
    assert network(small_lm, replace(config, rank=0)).dtype == torch.float32  # its weights learn themselves
    model = network(small_lm, config)
    assert model.dtype == torch.bfloat16
    tuned = get_peft_model(model, adapter(config.rank))
    lora = {name: part for name, part in tuned.named_parameters() if "lora" in name}
    assert {part.dtype for part in lora.values()} == {torch.float32}
    with torch.no_grad():
        for part in lora.values():
            part.fill_(0.01)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(unwrap_model=lambda same: same), model=tuned)
    stage = Stage(Run(tmp_path), "sft")
    write_stage(stage, trainer, str(small_lm), config, {})
    assert read_json(stage.out / "source.json") == {"model": str(small_lm), "made_from": str(small_lm)}
    before, after = (dict(each.named_parameters()) for each in (plain, load_causal(stage.out, torch.float32)))
    name = "model.layers.0.mlp.up_proj.weight"
    # Each entry gains 2 (the scale) x rank x 0.01 x 0.01.
    torch.testing.assert_close(after[name], before[name] + 2 * 2 * 1e-4, atol=1e-6, rtol=0)
    torch.testing.assert_close(after["model.norm.weight"], before["model.norm.weight"], atol=0, rtol=0)


def test_adapter():
    assert adapter(0) is None
    lora = adapter(8, "SEQ_CLS")
    assert (lora.r, lora.lora_alpha, lora.modules_to_save) == (8, 16, ["score"])


def test_what_a_checkpoint_must_agree_on(small_lm: Path):
    same = [agreement(SftConfig(checkpoint_every=n), str(small_lm), "rows") for n in (1, 2)]
    assert same[0] == same[1]
    assert agreement(SftConfig(seed=1), str(small_lm), "rows") != same[0]
    assert agreement(SftConfig(), str(small_lm), "other rows") != same[0]
    assert digest_of([{"a": 1}]) != digest_of([{"a": 2}])


def test_the_untouched_model(small_lm: Path, tmp_path: Path):
    assert untouched(str(small_lm)) == str(small_lm)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((small_lm / name).read_bytes())
    write_json(tmp_path / "source.json", {"model": "x", "made_from": "the first"})
    assert untouched(str(tmp_path)) == "the first"


def test_a_writer_knows_the_log_of_its_run(small_lm: Path, tmp_path: Path):
    model = SimpleNamespace(model=load_causal(small_lm, torch.float32))
    model.accelerator = SimpleNamespace(unwrap_model=lambda same: same)
    stage = Stage(Run(tmp_path), "sft")
    write_json(stage.run.shoppers / META, {"logs_digest": "the log's"})
    write_stage(stage, model, str(small_lm), SftConfig(rank=0), {})
    assert read_json(stage.out / "source.json")["logs"] == "the log's"


def test_a_run_that_is_a_file(tmp_path: Path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="cannot write here"), training(Stage(Run(tmp_path / "run"), "sft")):
        pass
