"""A tiny language model made on the spot, for trying the writer without a download and for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hawker.policies.writer import save_model
from hawker.shop.artefacts import write_directory
from hawker.shop.models import quiet_transformers

CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]


def small_model(
    destination: Path, texts: Sequence[str], chat: bool = True, pad: bool = True, width: int = 32, seed: int = 0
) -> Path:
    """Write a random Llama of two layers with a tokenizer trained on texts, and return its directory.

    Args:
        destination: The directory to write.
        texts: What the tokenizer's 512 tokens are learned from; bytes are always among them.
        chat: Whether the tokenizer has a chat template.
        pad: Whether it has a padding token.
        width: Of the model's vectors, a multiple of 4.
        seed: Decides the weights.
    """
    with quiet_transformers(destination):
        from tokenizers import Tokenizer, decoders, pre_tokenizers
        from tokenizers.models import BPE
        from tokenizers.trainers import BpeTrainer
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        core: Any = Tokenizer(BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = BpeTrainer(
            vocab_size=512,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(texts, trainer)
        tokenizer: Any = PreTrainedTokenizerFast(
            tokenizer_object=core, eos_token="<|end|>", **({"pad_token": "<|pad|>"} if pad else {})
        )
        tokenizer.model_max_length = 2048
        if chat:
            tokenizer.chat_template = CHAT
        config = LlamaConfig(
            vocab_size=core.get_vocab_size(),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1 if pad else None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.random.set_rng_state(torch.Generator().manual_seed(seed).get_state())
            model: Any = LlamaForCausalLM(config)
    with write_directory(destination, "language model") as scratch:
        save_model(model, tokenizer, scratch)
    return destination
