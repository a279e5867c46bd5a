"""The writer learns from pairs of lines, by trl: directly (DPO), and through a model of preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hawker.agents.writer_config import DpoConfig, RewardModelConfig, TuneConfig, check
from hawker.agents.writer_data import Pair
from hawker.agents.writer_forward import read_pairs_once, read_prompts_once
from hawker.agents.writer_training import (
    Progress,
    Stage,
    adapter,
    agreement,
    arguments,
    dataset,
    digest_of,
    fine_tune,
    network,
    training,
    write_stage,
)
from hawker.policies.writer import Prompt, answer_of, dtype_on, load_tokenizer
from hawker.shop.artefacts import CHECKSUMS, sha256, verify_directory
from hawker.shop.devices import resolve_device
from hawker.shop.errors import InputError
from hawker.shop.figures import figure
from hawker.shop.models import find_model, quiet_transformers
from hawker.shop.run import Run

HELD_OUT = 0.1
"""Share of the pairs that a model of preferences is judged on and not trained on."""

SCORED = 32
"""Lines scored at once."""


@dataclass(eq=False)
class PreferenceModel:
    """A model that scores answers as people would rank them; made by ``PreferenceModel.load``.

    Attributes:
        path: Its directory.
        model: A sequence classifier with one output.
        tokenizer: Its tokenizer.
        device: Where it computes.
    """

    path: Path
    model: Any
    tokenizer: Any
    device: torch.device

    @classmethod
    def load(cls, path: Path, device: torch.device) -> PreferenceModel:
        """Read a model that ``fit_preferences`` has written.

        Raises:
            InputError: There is none, or a file of it was changed.
        """
        path = verify_directory(path, "reward model")
        return cls(path, _load_scorer(path, dtype_on(device, path)).to(device).eval(), load_tokenizer(path), device)

    @property
    def digest(self) -> str:
        """SHA-256 of the artefact's list of checksums."""
        return sha256(self.path / CHECKSUMS)

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], lines: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return the score of each line as an answer to its prompt, shape (n,); the higher, the better."""
        ids = [_answer_ids(self.tokenizer, prompt, line) for prompt, line in zip(prompts, lines, strict=True)]
        scores = np.zeros(len(ids))
        for start in range(0, len(ids), SCORED):
            rows = ids[start : start + SCORED]
            tokens = torch.full((len(rows), max(map(len, rows))), self.tokenizer.pad_token_id)
            mask = torch.zeros_like(tokens)
            for i, row in enumerate(rows):
                tokens[i, : len(row)] = torch.as_tensor(row)
                mask[i, : len(row)] = 1
            logits = self.model(input_ids=tokens.to(self.device), attention_mask=mask.to(self.device)).logits
            scores[start : start + SCORED] = logits[:, 0].double().cpu().numpy()
        return scores


def fit_preferences(
    run: Run, model: str, pairs: Sequence[Pair], config: RewardModelConfig, resume: bool, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """Learn a model of preferences from pairs and write it to RUN/writer/reward.

    A tenth of the prompts is held out; how often the model ranks their pairs rightly is a figure of the report.

    Args:
        run: Gets ``writer/reward``, its checkpoint and its curves.
        model: The language model whose weights it begins with.
        pairs: At least ten.
        config: How to train.
        resume: Go on from the stage's checkpoint, if it has one.
        progress: Called after each step.

    Raises:
        InputError: No such model, too few pairs, or as in `hawker.agents.writer_training.fine_tune`.
    """
    check(config)
    stage, path = Stage(run, "reward"), find_model(model)
    tokenizer = load_tokenizer(path)
    learned, held_out = _split(pairs, config.seed)
    rows = _rows(tokenizer, learned, config)
    agree = agreement(config, model, digest_of(rows))
    with training(stage) as scratch:
        from trl.trainer.reward_config import RewardConfig as TrlConfig
        from trl.trainer.reward_trainer import RewardTrainer

        torch.random.set_rng_state(torch.Generator().manual_seed(config.seed).get_state())  # of the new head
        scorer = _load_scorer(path, torch.float32)  # the head learns, too: what is fast is left to autocast
        fast = dtype_on(resolve_device(config.device), path) == torch.bfloat16
        trainer: Any = RewardTrainer(
            model=scorer,
            args=TrlConfig(**(arguments(config, scratch) | {"bf16": fast}), max_length=None),
            train_dataset=dataset(rows),
            processing_class=tokenizer,
            peft_config=adapter(config.rank, "SEQ_CLS"),
        )
        read_pairs_once(trainer)
        report = fine_tune(trainer, stage, agree, resume, progress)
        judge = PreferenceModel(stage.out, trainer.model.eval(), tokenizer, trainer.args.device)
        prompts = [asked(tokenizer, pair.prompt) for pair in held_out]
        with trainer.accelerator.autocast():
            margin = judge.score(prompts, [p.chosen for p in held_out])
            margin = margin - judge.score(prompts, [p.rejected for p in held_out])
        right, n = float((margin > 0).mean()), len(held_out)
        half = 1.96 * (right * (1 - right) / n) ** 0.5
        report |= {"stage": "reward", "model": model, "pairs": len(pairs), "seed": config.seed}
        report["figures"] = {"prefs.accuracy": figure(right, right - half, right + half, n, "share of unseen pairs")}
        write_stage(stage, trainer, model, config, report)
    return stage.out, report


def dpo(
    run: Run, model: str, pairs: Sequence[Pair], config: DpoConfig, resume: bool, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """Train a writer on pairs, directly, and write it to RUN/writer/dpo.

    Args:
        run: Gets ``writer/dpo``, its checkpoint and its curves.
        model: The writer to begin with; staying close to it is what beta weighs.
        pairs: At least one.
        config: How to train.
        resume: Go on from the stage's checkpoint, if it has one.
        progress: Called after each step.

    Raises:
        InputError: No such model, no pairs, or as in `hawker.agents.writer_training.fine_tune`.
    """
    check(config)
    stage, path = Stage(run, "dpo"), find_model(model)
    tokenizer = load_tokenizer(path)
    rows = _rows(tokenizer, pairs, config)
    agree = agreement(config, model, digest_of(rows))
    with training(stage) as scratch:
        from trl.trainer.dpo_config import DPOConfig as TrlConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        trainer: Any = DPOTrainer(
            model=network(path, config),
            args=TrlConfig(**arguments(config, scratch), max_length=None, beta=config.beta),
            train_dataset=dataset(rows),
            processing_class=tokenizer,
            peft_config=adapter(config.rank),
        )
        read_prompts_once(trainer)
        report = fine_tune(trainer, stage, agree, resume, progress)
        report |= {"stage": "dpo", "model": model, "pairs": len(pairs), "seed": config.seed}
        write_stage(stage, trainer, model, config, report)
    return stage.out, report


def asked(tokenizer: Any, prompt: Prompt) -> Prompt:
    """Return a prompt in the form that a tokenizer takes: chat messages, or text where it has no chat."""
    if tokenizer.chat_template:
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


def _rows(tokenizer: Any, pairs: Sequence[Pair], config: TuneConfig) -> list[dict[str, Any]]:
    """Return what trl learns from, in order: all pairs shuffled, again and again, until there are enough."""
    if not pairs:
        raise InputError("no pairs to learn from", where="writer")
    generator, n = np.random.default_rng(config.seed), config.steps * config.batch
    order = np.concatenate([generator.permutation(len(pairs)) for _ in range(-(-n // len(pairs)))])[:n]
    rows = [
        {
            "prompt": asked(tokenizer, pair.prompt),
            "chosen": answer_of(tokenizer, pair.chosen),
            "rejected": answer_of(tokenizer, pair.rejected),
        }
        for pair in pairs
    ]
    return [rows[i] for i in order]


def _split(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return pairs to learn from and pairs to judge by; no prompt has pairs in both."""
    prompts = list(dict.fromkeys(str(pair.prompt) for pair in pairs))
    few = len(pairs) < 10 or len(prompts) < 2
    if few:
        got = f"{len(pairs)} pairs of {len(prompts)} prompts"
        raise InputError("too few pairs to judge what was learned", where="writer reward", got=got, expected="10 of 2")
    order = np.random.default_rng(seed).permutation(len(prompts))
    kept = {prompts[i] for i in order[: max(1, round(HELD_OUT * len(prompts)))]}
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[str(pair.prompt) in kept].append(pair)
    return sides


def _answer_ids(tokenizer: Any, prompt: Prompt, line: str) -> list[int]:
    """Return the tokens of a prompt and its answer, as trl's RewardTrainer sees them."""
    if isinstance(prompt, str):
        return list(tokenizer(f"{prompt} {line}{tokenizer.eos_token}")["input_ids"])
    answered = [*prompt, {"role": "assistant", "content": line}]
    return list(tokenizer.apply_chat_template(answered, return_dict=True)["input_ids"])


def _load_scorer(path: Path, dtype: torch.dtype) -> Any:
    with quiet_transformers(path):
        from transformers import AutoModelForSequenceClassification

        options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
        return AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, num_labels=1, **options)
