"""Choose by words: a causal language model picks items by the labels that they have in its prompt.

An arm to compare with: candidates get shuffled one-token labels, and the softmax over the labels alone, masked to those
on the page, is the policy. It is computed in one pass over a page's prompt, and is a Plackett-Luce slate like that of
any other strategy, so that propensities are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hawker.policies.choice_prompts import (
    LETTERS,
    TEMPLATE,
    choice_messages,
    choice_text,
    fits,
    shopper_words,
    shuffled,
    with_fit,
)
from hawker.policies.prefix import placed, read_once
from hawker.policies.protocol import Strategy
from hawker.policies.slate import LOGIT_BOUND, PlackettLuce
from hawker.policies.writer import load_causal, load_tokenizer, save_model
from hawker.shop.artefacts import read_json, verify_directory, write_json
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.devices import mixed_precision
from hawker.shop.errors import InputError
from hawker.shop.models import quiet_transformers

KIND, CHOICE, VECTORS = "word choice", "choice.json", "items.safetensors"

MOST = 32
"""Candidates of a page that get a label; of more, those with the highest affinity."""

ROWS = 32
"""Prompts read at once."""

Floats = npt.NDArray[np.float32]


class _Asked(NamedTuple):
    """A page as it is asked for: the prompt's tokens, and the candidate's place that each label stands for."""

    tokens: list[int]
    places: list[int]


class WordChoice(Strategy):
    """Plackett-Luce slates from what a language model says of the labels of a page's candidates.

    The labels are dealt out in an order that is a function of what the prompt tells and of a seed: the policy is a
    function of the context, and the log-probability of a logged decision can be had again. How much the model likes a
    label (and its place in the list) whatever it stands for is learned from prompts that say nothing, whose items are
    all the same, for each number of candidates, and taken off the logits: contextual calibration, after Zhao et al.
    (2021), Calibrate Before Use, arXiv 2102.09690.

    Prompts are text: contexts are read by the host, once a batch. On a GPU, where prompts are read in bfloat16, the
    last digits of a page's logits depend on what is read beside it; a proposal's log-probability is that of its draw.

    Attributes:
        model: A causal language model of transformers, maybe with an adapter in it.
        tokenizer: Its tokenizer, as `hawker.policies.writer.load_tokenizer` returns it.
        builder: The contexts, whose features are told by name.
        items: What is said of each item, in the catalog's order; see `hawker.policies.choice_prompts.item_words`.
        seed: Decides the order of labels.
        trained_on: What made it, as in the training report.
        labels: The labels, letters that are one token each.
        label_bias: What was taken off the logits, by number of candidates; found when a number is first met.
    """

    name = "words"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        builder: ContextBuilder,
        items: Sequence[str],
        size: int,
        seed: int = 0,
        trained_on: dict[str, Any] | None = None,
    ) -> None:
        """Find the labels.

        Raises:
            InputError: The tokenizer has fewer than ``size`` letters that are one token after a space.
        """
        if len(items) != len(builder.catalog):
            raise ValueError("words are needed for every item of the catalog")
        self.model, self.tokenizer, self.builder = model, tokenizer, builder
        self.items, self.size, self.seed, self.trained_on = tuple(items), size, seed, trained_on or {}
        self._answer = self._tokens(TEMPLATE["answer"])
        labels = one_token_labels(tokenizer, self._answer)
        if len(labels) < max(size, 2):
            raise InputError(
                "the tokenizer has too few labels of one token",
                where="choose by words",
                got=f"{len(labels)} of {len(LETTERS)} letters",
                expected=f"at least {max(size, 2)}",
                remedy="name another model",
            )
        self.labels = tuple(labels)[:MOST]
        self.most = len(self.labels)
        self.label_bias: dict[int, Tensor] = {}
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._limit = min(int(positions or 1 << 30), int(tokenizer.model_max_length))
        self._labels = torch.tensor([labels[label] for label in self.labels], device=self.device)
        one, other = (self._prompt(text, (text,)) for text in TEMPLATE["content_free"])
        self._head = one[: _shared(one, other)]  # what every prompt begins with

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        found: torch.device = next(self.model.parameters()).device
        return found

    def distribution(self, context: Context[Tensor]) -> PlackettLuce:
        """Return the model's distribution over slates; equal pages are read once. Gradients go through it.

        Raises:
            InputError: A prompt is too long for the model.
        """
        host = context.map(lambda array: array.detach().cpu().numpy())
        pages, owner = self._pages(host)
        beyond = context.mask.shape[1]  # one place more, for labels that a page does not use
        places = torch.full((len(pages), self.most), beyond)
        for i, page in enumerate(pages):
            places[i, : len(page.places)] = torch.tensor(page.places)
        places = places.to(self.device)
        logits = torch.zeros(len(pages), beyond + 1, device=self.device).scatter(1, places, self._unbiased(pages))
        mask = torch.zeros(len(pages), beyond + 1, dtype=torch.bool, device=self.device).scatter(1, places, True)
        which = torch.tensor(owner, device=self.device)
        return PlackettLuce(
            logits[which, :-1].to(context.affinity.device), mask[which, :-1].to(context.mask.device), self.size
        )

    def _unbiased(self, pages: list[_Asked]) -> Tensor:
        """Return the logits of each page's labels without the labels' bias, (n, most), 0 where there is no label.

        Nothing is asked of pages with less than two candidates.
        """
        logits = torch.zeros(len(pages), self.most, device=self.device)
        asked = [i for i, page in enumerate(pages) if page.tokens]
        if not asked:
            return logits
        said = self._label_logits([pages[i].tokens for i in asked])
        counts = [len(pages[i].places) for i in asked]
        bias = torch.stack([self._bias(count) for count in counts])
        used = torch.arange(self.most, device=self.device) < torch.tensor(counts, device=self.device)[:, None]
        free = (said - bias).masked_fill(~used, 0.0)
        free = (free - free.sum(1, keepdim=True) / used.sum(1, keepdim=True)).masked_fill(~used, 0.0)
        bound = LOGIT_BOUND * torch.tanh(free / LOGIT_BOUND)
        return logits.index_copy(0, torch.tensor(asked, device=self.device), bound)

    @torch.no_grad()
    def _bias(self, count: int) -> Tensor:
        """Return what the labels of ``count`` items have whatever is said of them, (most,), 0 beyond."""
        if count not in self.label_bias:
            prompts = [self._prompt(text, (text,) * count) for text in TEMPLATE["content_free"]]
            said = self._label_logits(prompts)[:, :count]
            bias = torch.zeros(self.most, device=self.device)
            bias[:count] = said.log_softmax(1).mean(0)
            self.label_bias[count] = bias
        return self.label_bias[count]

    def _label_logits(self, prompts: list[list[int]]) -> Tensor:
        """Return the logits of all labels as the next token of each prompt, (n, most), float32.

        What comes before any page's own words is read once, and only the labels' rows of the output layer are used, in
        float32: bfloat16 would round logits to sixteenths.
        """
        head = self.model.get_output_embeddings()
        weight = head.weight[self._labels].float()
        hidden = torch.cat([self._last(prompts[i : i + ROWS]) for i in range(0, len(prompts), ROWS)])
        with torch.autocast(self.device.type, enabled=False):
            logits: Tensor = hidden @ weight.T
            return logits if head.bias is None else logits + head.bias[self._labels].float()

    def _last(self, prompts: list[list[int]]) -> Tensor:
        """Return the model's last state at the end of each prompt, (n, h) float32."""
        begin, width = min(_shared(self._head, tokens) for tokens in prompts), max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.tokenizer.pad_token_id)
        mask = torch.ones_like(ids)
        for row, tokens in enumerate(prompts):  # padded between what all share and what is the page's own
            ids[row, :begin] = torch.tensor(tokens[:begin])
            ids[row, begin + width - len(tokens) :] = torch.tensor(tokens[begin:])
            mask[row, begin : begin + width - len(tokens)] = 0
        ids, mask = ids.to(self.device), mask.to(self.device)
        with mixed_precision(self.device):
            cache = read_once(self.model, ids[:, :begin], mask[:, :begin])
            told = {name: places[:, begin:] for name, places in placed(self.model, mask).items()}
            states = self.model.base_model(
                input_ids=ids[:, begin:], attention_mask=mask, past_key_values=cache, use_cache=True, **told
            )
        last: Tensor = states.last_hidden_state[:, -1].float()
        return last

    def _pages(self, host: Context[npt.NDArray[Any]]) -> tuple[list[_Asked], list[int]]:
        """Return the distinct pages of a batch, and of each page which of them it is."""
        number: dict[bytes, int] = {}
        pages: list[_Asked] = []
        owner = []
        for shopper, candidates, mask, affinity in zip(
            host.shopper, host.candidates, host.mask, host.affinity, strict=True
        ):
            key = b"".join(np.ascontiguousarray(array).tobytes() for array in (shopper, candidates, mask, affinity))
            if key not in number:
                number[key] = len(pages)
                pages.append(self._asked(shopper, candidates, mask, affinity))
            owner.append(number[key])
        return pages, owner

    def _asked(
        self, shopper: Floats, candidates: npt.NDArray[Any], mask: npt.NDArray[np.bool_], affinity: Floats
    ) -> _Asked:
        eligible = np.flatnonzero(mask)
        if len(eligible) > self.most:
            best = np.lexsort((candidates[eligible], -affinity[eligible]))[: self.most]
            eligible = eligible[best]
        eligible = eligible[np.argsort(candidates[eligible])]  # whatever order candidates come in
        if len(eligible) < 2:
            return _Asked([], eligible.tolist())
        words = [self.items[int(item)] for item in candidates[eligible]]
        if (fitting := fits(affinity[eligible])) is not None:
            words = [with_fit(told, fit) for told, fit in zip(words, fitting, strict=True)]
        person = shopper_words(self.builder.shopper, shopper)
        order = shuffled(person, words, self.seed)
        return _Asked(self._prompt(person, [words[i] for i in order]), [int(eligible[i]) for i in order])

    def _prompt(self, shopper: str, items: Sequence[str]) -> list[int]:
        """Return the tokens of a prompt, up to where the label is said."""
        if self.tokenizer.chat_template:
            with quiet_transformers(Path(str(self.tokenizer.name_or_path))):
                asked = self.tokenizer.apply_chat_template(
                    choice_messages(shopper, items, self.labels), add_generation_prompt=True, return_dict=True
                )["input_ids"]
        else:
            asked = self.tokenizer(choice_text(shopper, items, self.labels))["input_ids"]
        tokens = [*asked, *self._answer]
        if len(tokens) > self._limit:
            raise InputError(
                "the prompt of a page is too long for the model",
                where="choose by words",
                got=f"{len(tokens):,} tokens",
                expected=f"at most {self._limit:,}",
            )
        return tokens

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def save(self, directory: Path) -> None:
        """Write model, words and schemas into a directory that is being written."""
        save_model(self.model, self.tokenizer, directory)
        save_file({"items": torch.from_numpy(np.array(self.builder.catalog.vectors))}, directory / VECTORS)
        bias = {str(count): values.tolist() for count, values in sorted(self.label_bias.items())}
        told = {"size": self.size, "seed": self.seed, "items": self.items, "label_bias": bias}
        write_json(directory / CHOICE, told | {"builder": self.builder.to_dict(), "trained_on": self.trained_on})

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> WordChoice:
        """Read a strategy that ``save`` wrote, verifying its checksums; in bfloat16 on a GPU that has it.

        Raises:
            InputError: Files are missing, changed or of another form.
        """
        directory = verify_directory(directory, KIND)
        values = read_json(directory / CHOICE)
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        try:
            vectors = load_file(directory / VECTORS)["items"].numpy()
            builder = ContextBuilder.from_dict(values["builder"], vectors, directory / CHOICE)
            model = load_causal(directory, torch.bfloat16 if bf16 else torch.float32).to(device)
            told = (values["items"], values["size"], values["seed"], values["trained_on"])
            choice = cls(model.requires_grad_(False).eval(), load_tokenizer(directory), builder, *told)
            bias = {int(count): torch.tensor(row, device=device) for count, row in values["label_bias"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, OSError, SafetensorError) as error:
            raise InputError("not a word choice of this version", where=directory, got=str(error)) from None
        choice.label_bias = bias
        return choice


def one_token_labels(tokenizer: Any, before: Sequence[int]) -> dict[str, int]:
    """Return the letters, in their order, that are one token of their own when said after a text, with their tokens.

    Args:
        tokenizer: The tokenizer.
        before: The tokens of ``TEMPLATE["answer"]``, after which a letter stands with a space before it.
    """
    found: dict[str, int] = {}
    for letter in LETTERS:
        tokens = tokenizer(f"{TEMPLATE['answer']} {letter}", add_special_tokens=False)["input_ids"]
        if list(tokens[:-1]) == list(before) and tokens[-1] not in found.values():
            found[letter] = int(tokens[-1])
    return found


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two prompts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
