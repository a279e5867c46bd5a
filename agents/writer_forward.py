"""What trl asks of a model, with less work: prompts are read once, and nothing of them meets the vocabulary.

trl's trainers ask for the likelihood of an answer's tokens by ``model(..., labels=labels, fused_lm_head=True)``, where
labels are -100 for the prompt. On a CPU that forward multiplies the prompt's positions by the vocabulary too, and a
prompt is read anew for every line that is written for it; so it is for generation. Prompts are many times as long as
lines of copy, so that nearly all time goes there. And where a frozen model computes in bfloat16, so does the adapter on
it, whose weights and steps stay float32.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hawker.agents.lora import fuse_adapters
from hawker.policies.prefix import AT_ONCE, go_on, goes_on, placed, read_once

IGNORED = -100
"""The label of a token that is not scored."""


def read_prompts_once(trainer: Any, temperature: float = 1.0) -> None:
    """Let the models of a trl trainer read each prompt once a batch, where they learn on a CPU.

    On a GPU trl's own kernels score answers alone, and what is computed twice there saves memory.

    Args:
        trainer: One of trl's that has given its models a fused head: SFT, DPO, GRPO or RLOO.
        temperature: What logits are divided by, as trl was told.
    """
    if trainer.args.device.type != "cpu":
        return
    trained = trainer.accelerator.unwrap_model(trainer.model)
    models: list[Any] = [trained, getattr(trainer, "ref_model", None)]
    for model in (each for each in models if each is not None):
        base = _below_adapter(model)
        base.forward = types.MethodType(_scoring(base, temperature), base)
        model.generate = functools.partial(_generate, base)
        fuse_adapters(base)


def read_pairs_once(trainer: Any) -> None:
    """Let the model of a trl trainer read what the two answers of a pair begin with once, where it learns on a CPU.

    Args:
        trainer: A RewardTrainer. A model that cannot go on from what it has read is left as it is.
    """
    base = _below_adapter(trainer.accelerator.unwrap_model(trainer.model))
    if trainer.args.device.type != "cpu" or not goes_on(base):
        return
    plain = base.forward

    def forward(self: Any, **kwargs: Any) -> Any:
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        if not self.training:  # no pairs, then
            return plain(**kwargs)
        chosen, rejected = ids.chunk(2)
        alike = int((chosen == rejected).int().cumprod(1).sum(1).min())
        begin = min(alike, int(mask.sum(1).min()) - 1)  # of every answer a token is left, whose score counts
        if begin == 0:
            return plain(**kwargs)
        cache = read_once(self, ids[:, :begin], mask[:, :begin])
        places = {name: each[:, begin:] for name, each in placed(self, mask).items()}
        return plain(input_ids=ids[:, begin:], attention_mask=mask, past_key_values=cache, use_cache=True, **places)

    base.forward = types.MethodType(forward, base)


def _below_adapter(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _scoring(model: Any, temperature: float) -> Any:
    plain = model.forward

    @functools.wraps(type(model).forward)  # generation looks at the signature
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        with _numbers(self):
            return scored(self, *args, **kwargs) if fused_lm_head else plain(*args, **kwargs)

    def scored(self: Any, *args: Any, **kwargs: Any) -> Any:
        ids, mask, labels = (kwargs[name] for name in ("input_ids", "attention_mask", "labels"))
        begin = int((labels[:, 1:] != IGNORED).any(0).int().argmax())  # the position that says an answer's first token
        if begin == 0:  # nothing stands before it
            return plain(*args, fused_lm_head=True, **kwargs)
        cache = read_once(self, ids[:, :begin], mask[:, :begin])
        said = plain(
            input_ids=ids[:, begin:-1],
            attention_mask=mask[:, :-1],
            past_key_values=cache,
            use_cache=True,
            **{name: places[:, begin:-1] for name, places in placed(self, mask).items()},
        ).logits
        return _scored(said, labels, temperature, kwargs.get("num_items_in_batch"))

    return forward


def _scored(said: Tensor, labels: Tensor, temperature: float, items: Any) -> Any:
    """Return trl's output for labels (B, T): of each but the first its log-probability and more, (B, T - 1).

    Args:
        said: Logits (B, W, V) of the last W of T - 1 positions; no label before them counts.
        labels: Tokens; ``IGNORED`` where none is scored.
        temperature: What logits are divided by.
        items: Answers' tokens in the whole step, where several batches make one; else None.
    """
    from trl.trainer.utils import FusedCausalLMOutput

    wanted = labels[:, 1:] != IGNORED
    scored = wanted[:, -said.shape[1] :]
    token, rows = labels[:, -said.shape[1] :][scored], scored.flatten().nonzero()[:, 0]
    apply: Any = _Likelihood.apply  # which is untyped
    log_probs, entropy, squared, mean, top = apply(said.flatten(0, 1), rows, token, temperature)

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(wanted.shape).masked_scatter(wanted, values)

    return FusedCausalLMOutput(
        loss=-log_probs.sum() / (wanted.sum().clamp(min=1) if items is None else items),
        log_probs=spread(log_probs),
        entropy=spread(entropy),
        log_sum_sq_probs=spread(squared),
        mean_logits=spread(mean),
        is_top1=spread(top),
        label_mask=wanted,
    )


class _Likelihood(torch.autograd.Function):
    """Tokens' log-probabilities, a few rows of logits at once, which stay in a core's own memory; see ``_scored``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, token: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Return of some rows of logits (R, V), by number (n,): five of what trl asks for, (n,) each, in its order.

        Gradients go through the first, the log-probability of the token.
        """
        ctx.save_for_backward(logits, rows, token)
        ctx.temperature, found = temperature, []
        for some, which in zip(rows.split(AT_ONCE), token.split(AT_ONCE), strict=True):
            log_p = logits[some].float().div_(temperature)
            mean, top = log_p.mean(1), log_p.argmax(1) == which
            log_p -= log_p.logsumexp(1, keepdim=True)
            p = log_p.exp()
            entropy, squared = -torch.linalg.vecdot(p, log_p), torch.linalg.vecdot(p, p).log()
            found.append((log_p.gather(1, which[:, None])[:, 0], entropy, squared, mean, top))
        answer = tuple(torch.cat(part) for part in zip(*found, strict=True))
        ctx.mark_non_differentiable(*answer[1:])
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, *_: Any) -> tuple[Tensor, None, None, None]:
        logits, rows, token = ctx.saved_tensors
        back, slope = torch.zeros_like(logits), slope / ctx.temperature
        for some, which, by in zip(*(each.split(AT_ONCE) for each in (rows, token, slope)), strict=True):
            p = logits[some].float().div_(ctx.temperature).softmax(1).mul_(-by[:, None])
            back[some] = p.scatter_add_(1, which[:, None], by[:, None]).to(back.dtype)
        return back, None, None, None


def _numbers(model: Any) -> Any:
    """Let a model in bfloat16 compute with a float32 adapter in bfloat16 too; others compute as they are."""
    return torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16)


def _generate(model: Any, *, input_ids: Tensor, attention_mask: Tensor, generation_config: Any, **_: Any) -> Tensor:
    """Return prompts with their answers, padded on the right, shape (n, width + longest answer), as trl expects them.

    Of the configuration, what `hawker.agents.writer_grpo` sets counts: the longest answer and the temperature.
    """
    ends, most = generation_config.eos_token_id, generation_config.max_new_tokens
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    with _numbers(model):
        said = go_on(model, input_ids, attention_mask, most, generation_config.temperature, ends)
    answers = torch.full((len(said), max(map(len, said))), generation_config.pad_token_id).to(input_ids)
    for answer, tokens in zip(answers, said, strict=True):
        answer[: len(tokens)] = torch.as_tensor(tokens)
    return torch.cat([input_ids, answers], 1)
