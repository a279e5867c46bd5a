"""Attention with shared keys: what torch's own kernel gives, forward and back, alone and in a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hawker.policies.attention import NAME, Prompts, grouped_attention, use_grouped


@given(
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    queries=st.integers(1, 5),
    before=st.integers(0, 6),
    padded=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_it_is_what_torch_computes_from_copied_keys(groups, shared, queries, before, padded, seed):
    generator = torch.Generator().manual_seed(seed)
    keys = before + queries

    def drawn(heads: int, width: int) -> torch.Tensor:
        return torch.randn(2, heads, width, 4, generator=generator).requires_grad_()

    query, key, value = drawn(groups * shared, queries), drawn(groups, keys), drawn(groups, keys)
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(before).expand(2, 1, queries, keys).clone()
    seen[0, :, :, : min(padded, before)] = False
    copied = [each.repeat_interleave(shared, 1) for each in (key, value)]
    wanted = scaled_dot_product_attention(query, *copied, attn_mask=seen, scale=1.0)
    found = grouped_attention(query, key, value, seen)
    torch.testing.assert_close(found, wanted)
    aim = torch.randn(wanted.shape, generator=generator)
    torch.testing.assert_close(
        torch.autograd.grad((found * aim).sum(), (query, key, value)),
        torch.autograd.grad((wanted * aim).sum(), (query, key, value)),
    )


def test_in_bfloat16_it_adds_up_in_float32():
    """Weights over 600 keys, each a two-hundredth of what bfloat16 can tell from 1, still add up to 1."""
    query, key = torch.zeros(1, 2, 3, 4, dtype=torch.bfloat16), torch.zeros(1, 1, 600, 4, dtype=torch.bfloat16)
    seen = torch.ones(1, 1, 3, 600, dtype=torch.bool)
    seen[:, :, 0, 300:] = False
    found = grouped_attention(query, key, torch.ones_like(key), seen)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), torch.ones(1, 2, 3, 4), atol=0.01, rtol=0)


@given(
    owner=st.lists(st.integers(0, 2), min_size=1, max_size=7),
    groups=st.integers(1, 2),
    shared=st.integers(1, 3),
    own=st.integers(1, 3),
    kept=st.sets(st.integers(0, 6), min_size=1),
    seed=st.integers(0, 99),
)
def test_rows_see_their_prompts_as_if_each_had_a_copy(owner, groups, shared, own, kept, seed):
    """Prompts of five tokens, the second padded, with any number of rows each; some rows are dropped."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    n, rows = len(owner), torch.tensor(owner)
    keys, values = drawn(3, groups, 5, 4), drawn(3, groups, 5, 4)
    query, key, value = drawn(n, groups * shared, 1, 4), drawn(n, groups, own, 4), drawn(n, groups, own, 4)
    seen = torch.ones(3, 5, dtype=torch.bool)
    seen[1, :2] = False
    prompts = Prompts([(keys, values)], seen, rows)
    wanted = scaled_dot_product_attention(
        query,
        *(
            torch.cat([read[rows], said], 2).repeat_interleave(shared, 1)
            for read, said in ((keys, key), (values, value))
        ),
        attn_mask=torch.cat([seen[rows], torch.ones(n, own, dtype=torch.bool)], 1)[:, None, None],
        scale=1.0,
    ).transpose(1, 2)
    torch.testing.assert_close(prompts.attend(0, query, key, value), wanted)
    some = torch.tensor(sorted(i for i in kept if i < n) or [0])
    prompts.keep(some)
    torch.testing.assert_close(prompts.attend(0, query[some], key[some], value[some]), wanted[some])


@pytest.fixture
def model() -> LlamaForCausalLM:
    """A model with two heads of keys for four of queries, of weights that a generator gives."""
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    made, generator = LlamaForCausalLM(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in made.parameters():
            weights.copy_(torch.randn(weights.shape, generator=generator) * 0.2)
    return made


def read(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return logits and gradients for two texts, one of them padded."""
    ids, mask = torch.arange(14).reshape(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    logits = model(input_ids=ids, attention_mask=mask).logits[mask > 0]
    return logits, list(torch.autograd.grad(logits.square().sum(), list(model.parameters())))


def test_a_model_computes_the_same_with_it(model: LlamaForCausalLM):
    assert model.config._attn_implementation == "sdpa"
    wanted = read(model)
    use_grouped(model)
    assert model.config._attn_implementation == NAME
    found = read(model)
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-4)


def test_it_computes_by_itself_where_queries_share_keys(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch):
    calls = list[int]()

    def counted(*given: torch.Tensor) -> torch.Tensor:
        calls.append(given[0].shape[2])
        return grouped_attention(*given)

    monkeypatch.setattr("hawker.policies.attention.grouped_attention", counted)
    use_grouped(model)
    read(model)
    assert set(calls) == {7}
    calls.clear()
    model.generate(
        torch.arange(6).reshape(1, 6), max_new_tokens=2, do_sample=False
    )  # no mask, then one query at a time
    assert not calls


def test_what_it_does_not_know_is_left_to_transformers(model: LlamaForCausalLM):
    """A cap on scores would be left out unseen; transformers' own says that it cannot."""
    use_grouped(model)
    layer, seen = model.model.layers[0].self_attn, torch.ones(1, 1, 3, 3, dtype=torch.bool)
    attend = ALL_ATTENTION_FUNCTIONS[NAME]
    given = (torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), seen)
    assert attend(layer, *given, scaling=1.0)[0].shape == (1, 3, 4, 8)
    with pytest.raises(ValueError, match="softcap"):
        attend(layer, *given, scaling=1.0, softcap=5.0)


def test_a_model_that_attends_otherwise_is_left_alone_and_nothing_of_it_is_saved(
    model: LlamaForCausalLM, tmp_path: Path
):
    use_grouped(model)
    model.save_pretrained(tmp_path)
    assert NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    eager = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    use_grouped(eager)
    assert eager.config._attn_implementation == "eager"


def test_prompts_that_rows_share_are_not_for_attention_that_asks_for_more(model):
    use_grouped(model)
    prompts = Prompts(
        [(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8))], torch.ones(1, 3).bool(), torch.zeros(2).long()
    )
    with prompts.at_hand(), pytest.raises(NotImplementedError, match="softcap"):
        ALL_ATTENTION_FUNCTIONS[NAME](
            model.model.layers[0].self_attn,
            *(torch.zeros(2, heads, 1, 8) for heads in (4, 2, 2)),
            None,
            scaling=1.0,
            softcap=5.0,
        )
