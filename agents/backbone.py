"""The backbone: a language model under LoRA that reads items for a strategy, and learns from what PPO learns.

PPO learns pages from item vectors that stand still, and what its loss has to say of them is added up on the way. Every
few rollouts this goes back through the language model, a few texts at a time, into the adapter; then all items are read
anew, and PPO goes on with what it now sees.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from hawker.agents.page_ppo import PagePPO
from hawker.agents.writer_training import adapter, untouched
from hawker.policies.slate import SlateActor
from hawker.policies.writer import dtype_on, load_causal, load_tokenizer, save_model
from hawker.shop.artefacts import write_directory, write_json
from hawker.shop.catalog import TEXTS, Catalog, TextSchema
from hawker.shop.errors import InputError
from hawker.shop.language import LONGEST, TOKENS, Encoder, ModelEncoder
from hawker.shop.models import SOURCE


@dataclass(frozen=True)
class BackboneConfig:
    """How a language model learns to read items for pages.

    Attributes:
        model: A fetched model's name, a directory or a hub id.
        every: Rollouts of PPO to one step of the language model; those that teach the critic alone do not count.
        learning_rate: Adam's step size.
        largest: Norm that the gradient is shortened to.
        rank: Rank of the LoRA adapter on every linear layer (Hu et al. 2021, arXiv 2106.09685), scaled by 2.
        rows: Texts that the gradient goes through at once: what bounds the memory.
        seed: Decides the adapter's first weights.
    """

    model: str = "smollm2-135m"
    every: int = 2
    learning_rate: float = 5e-4
    largest: float = 1.0
    rank: int = 16
    rows: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what nothing can be learned with."""
        for name in ("every", "rank", "rows"):
            if getattr(self, name) < 1:
                raise InputError("bad config", where=f"backbone.{name}", got=getattr(self, name), expected="at least 1")
        for name in ("learning_rate", "largest"):
            if not 0 < getattr(self, name) < math.inf:  # NaN too
                expected = "a number above 0"
                raise InputError("bad config", where=f"backbone.{name}", got=getattr(self, name), expected=expected)


class Backbone(ModelEncoder):
    """A language model under a LoRA adapter as an encoder of texts; before it has learned, `ModelEncoder`'s vectors.

    It reads in float32 on every device, so that steps of the adapter are not rounded away, with no more layers than
    vectors depend on. Gradients are computed in bfloat16 where that is fast.

    Args:
        config: Which model, and how it learns.
        device: Where it computes.

    Raises:
        InputError: There is no such model, or transformers is not installed.
    """

    def __init__(self, config: BackboneConfig, device: torch.device) -> None:
        super().__init__(config.model, device)
        self._config = config

    @property
    def digest(self) -> str:  # it changes with every step
        """What the vectors depend on: the model's files, and the adapter as it is."""
        found = hashlib.sha256(super().digest.encode())
        for weight in self._weights:
            found.update(np.ascontiguousarray(weight.detach().cpu().numpy()).tobytes())
        return found.hexdigest()

    def pull(self, texts: Sequence[str], gradient: Tensor) -> None:
        """Add what a loss of the texts' vectors means for the adapter to its gradient.

        Args:
            texts: n texts; one that says nothing has a vector that stays as it is.
            gradient: Of the loss in their vectors, shape (n, width).
        """
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        place = torch.tensor([distinct[text] for text in texts], device=gradient.device)
        summed = gradient.new_zeros(len(distinct), self.width).index_add_(0, place, gradient).to(self.device)
        rows = self._tokens(list(distinct))
        for start in range(0, len(rows), self._config.rows):
            where, ids = zip(*rows[start : start + self._config.rows], strict=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._fast):
                vectors = self._read(ids)
            vectors.backward(summed[list(where)])

    def step(self) -> float:
        """Follow the gradient that was pulled, and return its norm as it was before it was shortened.

        Raises:
            InputError: It is not finite; the adapter is as it was.
        """
        norm = float(nn.utils.clip_grad_norm_(self._weights, self._config.largest))
        if not math.isfinite(norm):
            remedy = "lower backbone.learning_rate"
            raise InputError("the gradient is not finite", where=f"backbone {self.name}", remedy=remedy)
        self._adam.step()
        self._adam.zero_grad()
        return norm

    @torch.no_grad()
    def save(self, destination: Path) -> None:
        """Write the model with the adapter merged in, whole or not at all: ``load_encoder`` reads it by its path.

        On a CPU its vectors are those that the backbone has now; on a GPU `ModelEncoder` rounds to bfloat16.

        Raises:
            InputError: Something else stands there, or nothing can be written there.
        """
        from peft.tuners.lora import LoraLayer

        whole = load_causal(self._path, torch.float32)
        for name, layer in self._loaded[1].named_modules():
            if isinstance(layer, LoraLayer):
                lora: Any = layer  # whose kinds are too many for a type checker
                whole.base_model.get_submodule(name).weight += lora.get_delta_weight("default").cpu()
        with write_directory(destination, "language model") as scratch:
            save_model(whole, load_tokenizer(self._path), scratch)
            write_json(scratch / SOURCE, {"model": self.name, "made_from": untouched(self.name)})

    @cached_property
    def _dtype(self) -> torch.dtype:
        return torch.float32

    @cached_property
    def _fast(self) -> bool:
        return dtype_on(self.device, self._path) == torch.bfloat16

    @cached_property
    def _middle(self) -> int:
        """Which of the hidden states vectors are made of, as `ModelEncoder` has it; the first are the tokens' own."""
        return (int(self._loaded[1].config.get_text_config().num_hidden_layers) + 1) // 2

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from peft import inject_adapter_in_model

        tokenizer, model = super()._loaded
        layers = int(model.config.get_text_config().num_hidden_layers)
        for part in list(model.modules()):
            if isinstance(part, nn.ModuleList) and len(part) == layers:
                del part[(layers + 1) // 2 + 1 :]  # the last one's output would be scaled
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            inject_adapter_in_model(adapter(self._config.rank, "FEATURE_EXTRACTION"), model)
        generator = torch.Generator().manual_seed(self._config.seed)
        for name, weight in model.named_parameters():
            if "lora_A" in name:  # as peft begins, with a generator of our own
                weight.data.copy_(nn.init.kaiming_uniform_(torch.empty(weight.shape), 5**0.5, generator=generator))
        return tokenizer, model

    @cached_property
    def _weights(self) -> list[nn.Parameter]:
        """The adapter's."""
        return [weight for weight in self._loaded[1].parameters() if weight.requires_grad]

    @cached_property
    def _adam(self) -> torch.optim.Adam:
        return torch.optim.Adam(self._weights, self._config.learning_rate)

    def _tokens(self, texts: list[str]) -> list[tuple[int, list[int]]]:
        """Return the place and the token ids of each text that has some, the longest first."""
        options: dict[str, Any] = {"truncation": True, "max_length": TOKENS, "add_special_tokens": False}
        said = [(i, text[:LONGEST].encode("utf-8", "replace").decode()) for i, text in enumerate(texts) if text.strip()]
        if not said:
            return []
        ids = self._loaded[0]([text for _, text in said], **options)["input_ids"]
        found = [(i, row) for (i, _), row in zip(said, ids, strict=True) if row]
        return sorted(found, key=lambda each: -len(each[1]))

    def _read(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Return the vectors of texts from their token ids, with their gradient, shape (n, width)."""
        tokenizer, model = self._loaded
        first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        between = tokenizer("\n", add_special_tokens=False)["input_ids"]
        twice = [torch.tensor([*first, *row, *between, *row]) for row in ids]
        tokens = nn.utils.rnn.pad_sequence(twice, batch_first=True).to(self.device)
        ends = torch.tensor([len(row) for row in twice], device=self.device)[:, None]
        own = torch.tensor([len(row) for row in ids], device=self.device)[:, None]
        place = torch.arange(tokens.shape[1], device=self.device)
        mask, second = place < ends, (place < ends) & (place >= ends - own)
        states = model(input_ids=tokens, attention_mask=mask.long(), use_cache=False, output_hidden_states=True)
        hidden = states.hidden_states[self._middle].float()
        return nn.functional.normalize((hidden * second[:, :, None]).sum(1) / own, dim=1)

    def _pooled(self, ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        with torch.no_grad():
            vectors: npt.NDArray[np.float64] = self._read(ids).double().cpu().numpy()
        if not np.isfinite(vectors).all():
            raise InputError("the model gives vectors that are not finite", where=self._path)
        return vectors


def texts_of(items: pd.DataFrame) -> list[str]:
    """Return each item's title and description as the one text that `Catalog` reads.

    Raises:
        InputError: No item has any.
    """
    columns = [items[name].fillna("").astype(str) for name in TEXTS if name in items]
    texts = [". ".join(filter(None, parts)) for parts in zip(*columns, strict=True)]
    if not any(text.strip() for text in texts):
        raise InputError("the items have no texts that a language model could read", where="items", expected=TEXTS[0])
    return texts


def seen_by(catalog: Catalog, encoder: Encoder, vectors: npt.NDArray[np.float32]) -> Catalog:
    """Return a catalog whose texts another encoder has read.

    Args:
        catalog: The items.
        encoder: What has read them.
        vectors: Its vectors of them, shape (n_items, width).
    """
    start = catalog.features.width
    stop = start + (0 if catalog.text is None else catalog.text.width)
    found = np.hstack([catalog.vectors[:, :start], vectors, catalog.vectors[:, stop:]])
    text = TextSchema(encoder.name, encoder.digest, vectors.shape[1])
    return Catalog(catalog.item_ids, catalog.features, found, text, catalog.image_width)


class SlowSteps(BaseCallback):
    """Lets the backbone learn while PPO does, one step to many of PPO's.

    What PPO's loss says of the items' vectors is summed over all minibatches of ``every`` rollouts. The vectors' centre
    and scale stay those of the untouched model: the actor's weights go on meaning what they meant.

    Attributes:
        backbone: What learns.
        columns: Where the texts' vectors stand among those of the items.
        history: For each step the pages so far, the gradient's norm, and how far the vectors of items have moved from
            where they began, as a root mean square in the actor's units, in which all texts together have variance
            ``TEXT_VARIANCE``.
    """

    model: PagePPO

    def __init__(self, backbone: Backbone, texts: Sequence[str], catalog: Catalog, every: int) -> None:
        """Args: what learns, ``texts`` of the items (n_items,), the ``catalog`` that the actor sees, and how often."""
        super().__init__()
        assert catalog.text is not None, "the actor sees no texts"
        self.backbone, self.history = backbone, list[dict[str, float]]()
        self._texts, self._every, self._gathered = texts, every, 0
        self.columns = slice(catalog.features.width, catalog.features.width + catalog.text.width)
        self._first = torch.from_numpy(catalog.vectors[:, self.columns].copy())

    @property
    def _slate(self) -> SlateActor:
        return self.model.policy.actor.slate

    def _on_training_start(self) -> None:
        self._watch()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._gathered += self.model._actor_learns

    def _on_rollout_start(self) -> None:
        if self._gathered == self._every:
            self._turn()

    def _on_training_end(self) -> None:
        self.model._adam.beside = None
        self._slate.scale_items()

    def _watch(self) -> None:
        """Have the gradient of the items' scaled vectors added up from now on."""
        self._slate.scale_items()
        self.model._adam.beside, self._gathered = self._slate._scaled_items.requires_grad_(), 0

    def _turn(self) -> None:
        slate, columns, model = self._slate, self.columns, self.model
        minibatches = self._every * model.n_epochs * math.ceil(model.n_steps * model.n_envs / model.batch_size)
        summed, spread = slate._scaled_items.grad, slate.item_spread[columns]
        assert summed is not None
        self.backbone.pull(self._texts, summed[:, columns] / spread / minibatches)
        norm = self.backbone.step()
        vectors = torch.from_numpy(self.backbone.encode(self._texts)).to(slate.item_vectors)
        slate.item_vectors[:, columns] = vectors
        moved = (vectors - self._first.to(vectors)) / spread
        far = float(moved.square().sum(1).mean().sqrt())
        self.history.append({"pages": float(self.num_timesteps), "norm": norm, "moved": far})
        self._watch()
