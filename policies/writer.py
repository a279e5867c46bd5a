"""The writer: a causal language model that turns briefs into lines, and says how likely a given line is."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hawker.policies.attention import use_grouped
from hawker.policies.briefs import SURFACES, Brief, messages, plain_prompt
from hawker.policies.prefix import go_on, goes_on
from hawker.shop.artefacts import write_directory, write_json
from hawker.shop.errors import InputError
from hawker.shop.models import SOURCE, find_model, model_digest, quiet_transformers

ROWS = 128
"""Lines generated at once; fewer where memory is short."""

WIDE = 256
"""Numbers to a token from which on a CPU's matrix units are worth their conversions."""

POSITIONS = 2_048
"""Tokens whose likelihoods are computed at once: a row of logits holds a number for each entry of the vocabulary."""

Prompt = str | list[dict[str, str]]
"""What a model is asked: chat messages, or text to go on with where its tokenizer has no chat template."""


Owned = tuple[list[int], Callable[[str], None]]
"""A prompt's tokens, and who is told its line."""


def token_cap(surface: str) -> int:
    """Return how many tokens a line of a surface may take: at two characters each, more than fit."""
    return SURFACES[surface].longest // 2


@dataclass(eq=False)
class Writer:
    """A language model with its tokenizer; made by ``Writer.load``.

    Lines are drawn from the model's own distribution at a temperature, uncut by top-k or top-p, so that what is
    generated is what likelihoods and KL are about.

    Attributes:
        name: As it was asked for: a fetched model's name, a directory or a hub id.
        path: Its directory.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer; pads on the left, with the end-of-text token where it has no padding token.
        device: Where it computes.
    """

    name: str
    path: Path
    model: Any
    tokenizer: Any
    device: torch.device

    @classmethod
    def load(cls, name: str, device: torch.device, adapter: Path | None = None) -> Writer:
        """Read a model, in the numbers that ``dtype_on`` names.

        No code that a model brings along is run, and only safetensors are read. Nothing is fetched but a hub id that
        is not in the hub's cache.

        Args:
            name: A fetched model's name ("smollm2-135m"), a directory, or a hub id ("org/name").
            device: Where it computes.
            adapter: Directory of a LoRA adapter made by peft for this model; it is merged into the weights.

        Raises:
            InputError: There is no such model or adapter, it has no tokenizer that can be used, or transformers is
                not installed.
        """
        path = find_model(name)
        dtype = dtype_on(device, path)
        model = load_causal(path, dtype) if adapter is None else adapted(path, adapter).to(dtype)
        return cls(name, path, model.to(device).eval(), load_tokenizer(path), device)

    @cached_property
    def digest(self) -> str:
        """64 hex digits that change whenever a file of the model does; an adapter's files do not count."""
        return model_digest(self.path)

    @cached_property
    def limit(self) -> int:
        """Tokens of a prompt and its line that the model can read."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return min(int(positions or 1 << 30), int(self.tokenizer.model_max_length))

    def write(
        self,
        briefs: Sequence[Brief],
        count: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
        until: float = math.inf,
        ended: Callable[[int, str], None] = lambda brief, line: None,
    ) -> list[list[str]]:
        """Return ``count`` lines for each brief, as the model says them: stripped, not tidied, not checked.

        The same model, briefs, count, temperature, seed and device give the same lines. No global random state is
        changed. A line ends where the model ends it or at ``token_cap`` of its surface.

        Args:
            briefs: What to write for.
            count: Lines for each brief, at least 1.
            temperature: 0 takes the likeliest token every time; 1 is the model's own distribution.
            seed: Decides what is drawn.
            until: When to give up, as ``time.monotonic`` tells the time; looked at after every token.
            ended: Called with the number of a brief and a line for it as soon as the model has ended the line, which
                for most is before the longest one; not of lines that are cut off.

        Raises:
            InputError: A brief is too long for the model, the model's probabilities are not finite, or there is not
                enough memory for a single line.
            TimeoutError: It was ``until`` before every line had ended.
        """
        if count < 1 or not 0 <= temperature <= 100:  # NaN too
            got = f"count {count}, temperature {temperature}"
            raise InputError("cannot write so", where="writer", got=got, expected="count >= 1, temperature 0 to 100")
        prompts = [self._prompt_ids(brief) for brief in briefs]
        lines: list[list[str]] = [[] for _ in briefs]
        with _seeded(seed, self.device):
            for surface in dict.fromkeys(brief.surface for brief in briefs):  # a batch shares its cap
                rows = [i for i, brief in enumerate(briefs) if brief.surface == surface for _ in range(count)]
                owned = [(prompts[i], partial(ended, i)) for i in rows]
                said = self._generate(owned, token_cap(surface), temperature, until)
                for i, text in zip(rows, said, strict=True):
                    lines[i].append(text)
        return lines

    def log_likelihood(
        self, briefs: Sequence[Brief] | None, lines: Sequence[str]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return how likely lines are: nats per token, shape (n,), and how many tokens each has, shape (n,).

        The end of the text is not scored. Nats are NaN for a blank line, which has no tokens.

        Args:
            briefs: What each line is an answer to; None scores lines as texts of their own, which is how fluency is
                measured: an echo of the prompt gains nothing.
            lines: The lines.
        """
        starts = [self._start] * len(lines) if briefs is None else [self._prompt_ids(brief) for brief in briefs]
        space = "" if briefs is None or self.tokenizer.chat_template else " "
        texts = [_writable(space + line) if line.strip() else "" for line in lines]
        spoken = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        spoken = [ids[: max(self.limit - len(start), 0)] for start, ids in zip(starts, spoken, strict=True)]
        tokens = np.array([len(ids) for ids in spoken], np.int64)
        nats = np.full(len(lines), np.nan)
        order = [i for i in np.argsort([-len(starts[i]) - tokens[i] for i in range(len(lines))]) if tokens[i]]
        while order:
            size = max(1, POSITIONS // (len(starts[order[0]]) + int(tokens[order[0]])))
            some, order = order[:size], order[size:]
            nats[some] = self._mean_log_probs([starts[i] for i in some], [spoken[i] for i in some])
        return nats, tokens

    def save(self, destination: Path, made_from: str = "") -> None:
        """Write the model as safetensors, whole or not at all; ``find_model`` reads it.

        Args:
            destination: The directory to write.
            made_from: The untouched model that it was trained from, kept in ``source.json``.

        Raises:
            InputError: Something else stands there, or nothing can be written there.
        """
        with write_directory(destination, "language model") as scratch:
            save_model(self.model, self.tokenizer, scratch)
            write_json(scratch / SOURCE, {"model": self.name, "made_from": made_from or self.name})

    @cached_property
    def _start(self) -> list[int]:
        """What stands before a text of its own."""
        begin = self.tokenizer.bos_token_id
        return [self.tokenizer.eos_token_id if begin is None else begin]

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end a line: the tokenizer's, and every one that the model declares."""
        declared = self.model.generation_config.eos_token_id
        declared = [declared] if isinstance(declared, int) else list(declared or [])
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *declared]))

    def _prompt_ids(self, brief: Brief) -> list[int]:
        prompt = prompt_of(self.tokenizer, brief)
        if isinstance(prompt, str):
            ids = self.tokenizer(_writable(prompt))["input_ids"]
        else:
            with quiet_transformers(self.path):  # a template of the model's own may refuse what it is given
                ids = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
            ids = ids["input_ids"]
        most = self.limit - token_cap(brief.surface)
        if len(ids) > most:
            what = f"the prompt of {brief.title[:40]!r} is too long for the model"
            raise InputError(what, where=self.name, got=f"{len(ids):,} tokens", expected=f"at most {most:,}")
        return list(ids)

    def _generate(self, owned: Sequence[Owned], cap: int, temperature: float, until: float) -> list[str]:
        texts: list[str] = []
        size = ROWS
        while len(texts) < len(owned):
            rows = owned[len(texts) : len(texts) + size]
            try:
                texts += self._batch(rows, cap, temperature, until)
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise InputError("not enough memory for one line", where=self.name) from None
                size = len(rows) // 2
        return texts

    def _batch(self, owned: Sequence[Owned], cap: int, temperature: float, until: float) -> list[str]:
        def in_time() -> None:
            if time.monotonic() > until:
                raise TimeoutError

        def ended(row: int, said: list[int]) -> None:
            owned[row][1](self._text(said))

        prompts = [prompt for prompt, _ in owned]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.as_tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        try:
            said = go_on(self.model, ids, mask, cap, temperature, self.ends, in_time, ended)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise InputError("the model gives no finite probabilities", where=self.name) from None
        return [self._text(ids) for ids in said]

    def _text(self, said: list[int]) -> str:
        return str(self.tokenizer.decode(said, skip_special_tokens=True)).strip()

    @torch.no_grad()
    def _mean_log_probs(self, starts: list[list[int]], spoken: list[list[int]]) -> npt.NDArray[np.float64]:
        """Return the mean log-probability of the tokens spoken after each start, shape (n,)."""
        width = max(len(start) + len(ids) for start, ids in zip(starts, spoken, strict=True))
        ids = torch.full((len(starts), width), self.tokenizer.pad_token_id)
        mask, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for i, (start, line) in enumerate(zip(starts, spoken, strict=True)):
            length = len(start) + len(line)
            ids[i, :length] = torch.as_tensor(start + line)
            mask[i, :length] = 1
            scored[i, len(start) : length] = True
        ids, mask, scored = ids.to(self.device), mask.to(self.device), scored.to(self.device)
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        targets = ids[:, 1:].masked_fill(~scored[:, 1:], -100)
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100
        )
        sums = -losses.view(targets.shape).sum(1)
        return np.asarray((sums / scored.sum(1)).double().cpu().numpy())


def prompt_of(tokenizer: Any, brief: Brief) -> Prompt:
    """Return what a model with this tokenizer is asked for a brief."""
    return messages(brief) if tokenizer.chat_template else plain_prompt(brief)


def answer_of(tokenizer: Any, line: str) -> Prompt:
    """Return a line in the form in which a model with this tokenizer would answer."""
    return [{"role": "assistant", "content": line}] if tokenizer.chat_template else f" {line}"


def dtype_on(device: torch.device, path: Path) -> torch.dtype:
    """Return the numbers that a model computes in on a device: bfloat16 where that is fast, else float32.

    That is on a GPU that has it, and on a CPU with matrix units for it (AMX), where 576 x 1,536 weights times 32 rows
    take a third of the time; models less than ``WIDE`` would lose more to conversions than they gain.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    told: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch has not always told
    units = device.type == "cpu" and bool(told.get("amx_bf16", False))
    return torch.bfloat16 if units and _width(path) >= WIDE else torch.float32


def _width(path: Path) -> int:
    with quiet_transformers(path):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    return int(getattr(config.get_text_config(), "hidden_size", 0))


def load_causal(path: Path, dtype: torch.dtype) -> Any:
    """Return the causal language model of a directory.

    Raises:
        InputError: It holds none that transformers can read.
    """
    with quiet_transformers(path):
        from transformers import AutoModelForCausalLM

        options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, **options)
    if not goes_on(model):
        raise InputError("the model cannot go on from what it has read", where=path, remedy="name one with attention")
    use_grouped(model)
    return model


def load_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a directory, padding on the left.

    Raises:
        InputError: It holds none that transformers can read, or one without an end-of-text token.
    """
    with quiet_transformers(path):
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-text token", where=path, remedy="name another model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def save_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write a model, without the place it was read from, and its tokenizer into a directory that is being written."""
    with quiet_transformers(directory):
        name, model.config.name_or_path = model.config.name_or_path, ""
        try:
            model.save_pretrained(directory)
        finally:
            model.config.name_or_path = name
        tokenizer.save_pretrained(directory)


def adapted(path: Path, adapter: Path) -> Any:
    """Return a model with a LoRA adapter merged into its weights, in float32: bfloat16 would round most of it away.

    Raises:
        InputError: The directory holds no adapter, or the model's none that transformers can read.
    """
    model = load_causal(path, torch.float32)
    if not (adapter / "adapter_config.json").is_file() or not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(
            "not a LoRA adapter", where=adapter, expected="a directory with adapter_config.json and *.safetensors"
        )
    with quiet_transformers(adapter), warnings.catch_warnings():
        from peft import PeftModel

        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that are on their way out
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let what draws from torch's global generators draw from a seed of its own, and leave them as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.random.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        if device.type == "cuda":
            torch.cuda.set_rng_state(torch.Generator(device).manual_seed(seed).get_state(), device)
        yield


def _writable(text: str) -> str:
    """Replace halves of surrogate pairs, which no tokenizer takes, by question marks."""
    return text.encode("utf-8", "replace").decode()
