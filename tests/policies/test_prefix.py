"""Prompts read once: the same logits and gradients as when every row is read, padding and repeats included."""

from typing import Any

import pytest
import torch

from hawker.policies import prefix
from hawker.policies.prefix import RAREST, go_on, goes_on, placed, read_once
from hawker.policies.small_writer import small_model
from hawker.policies.writer import load_causal


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return load_causal(small_model(tmp_path_factory.mktemp("model") / "lm", ["a pot for tea"] * 3), torch.float32)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four prompts of which two are the same, one shorter, and answers of three tokens."""
    ids = torch.randint(5, 250, (4, 9), generator=torch.Generator().manual_seed(0))
    ids[2, :6] = ids[0, :6]
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return ids, mask


def test_places_count_tokens(model):
    places = placed(model, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))
    assert places["position_ids"].tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_logits_and_gradients_are_those_of_the_whole(model):
    ids, mask = batch()
    found = []
    for once in (False, True):
        model.zero_grad()
        told = {"attention_mask": mask, **placed(model, mask)}
        if once:
            told["position_ids"] = told["position_ids"][:, 6:]
            told["past_key_values"] = read_once(model, ids[:, :6], mask[:, :6])
        logits = model(input_ids=ids[:, 6:] if once else ids, **told).logits[:, -3:]
        logits.square().mean().backward()
        found.append((logits.detach(), [p.grad.clone() for p in model.parameters()]))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_equal_prompts_are_read_once(model, monkeypatch: pytest.MonkeyPatch):
    ids, mask = batch()
    read = []
    plain = model.base_model.forward
    monkeypatch.setattr(model.base_model, "forward", lambda **told: read.append(told["input_ids"]) or plain(**told))
    assert read_once(model, ids[:, :6], mask[:, :6]).get_seq_length() == 6
    assert [len(rows) for rows in read] == [3]
    # What stands under padding does not make prompts differ.
    ids[3], mask[3], ids[3, :2] = ids[1], mask[1], 7
    read_once(model, ids[:, :6], mask[:, :6])
    assert len(read[1]) == 2


@pytest.mark.parametrize("seed", range(4))
def test_distinct_prompts_keep_their_order(model, seed: int):
    """They are told apart by sorting: each row is still to go on from its own prompt."""
    ids = torch.randint(5, 250, (4, 9), generator=torch.Generator().manual_seed(seed))
    mask, answer = torch.ones_like(ids), torch.tensor([[7, 8]] * 4)
    whole = torch.cat([mask, torch.ones_like(answer)], 1)
    told = {name: places[:, 9:] for name, places in placed(model, whole).items()}
    with torch.no_grad():
        cache = read_once(model, ids, mask)
        found = model(input_ids=answer, attention_mask=whole, past_key_values=cache, **told).logits
        expected = model(input_ids=torch.cat([ids, answer], 1)).logits[:, 9:]
    assert torch.allclose(found, expected, atol=1e-5)


def alike() -> tuple[torch.Tensor, torch.Tensor]:
    """Five prompts of up to 30 tokens that begin with the same 20, two of them equal, one nothing but these 20."""
    generator = torch.Generator().manual_seed(1)
    begin, lengths = torch.randint(5, 250, (20,), generator=generator), (30, 27, 20, 25, 27)
    ids, mask = torch.randint(5, 250, (5, 30), generator=generator), torch.zeros(5, 30, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, 30 - length : 50 - length] = begin
        mask[row, 30 - length :] = 1
    ids[4] = ids[1]
    ids[4, :3] = 7  # padding
    return ids, mask


def test_what_all_begin_with_is_read_once(model, monkeypatch: pytest.MonkeyPatch):
    ids, mask = alike()
    read, plain = [], model.base_model.forward
    monkeypatch.setattr(model.base_model, "forward", lambda **told: read.append(told["input_ids"]) or plain(**told))
    assert read_once(model, ids, mask).get_seq_length() == 30
    assert [tuple(rows.shape) for rows in read] == [(1, 20), (4, 10)]
    monkeypatch.setattr(prefix, "SHARED", 21)
    read_once(model, ids, mask)
    assert [tuple(rows.shape) for rows in read[2:]] == [(4, 30)]


@pytest.mark.parametrize("padded", [True, False])
def test_logits_and_gradients_where_prompts_begin_alike(model, padded: bool):
    ids, mask = alike() if padded else (part[[0, 0, 0]] for part in alike())
    if not padded:
        ids = ids.clone()
        ids[1, 25:], ids[2, 21:] = 9, 11
    answer = torch.randint(5, 250, (len(ids), 3), generator=torch.Generator().manual_seed(2))
    whole, found = torch.cat([mask, torch.ones_like(answer)], 1), []
    for once in (False, True):
        model.zero_grad()
        told: dict[str, Any] = {"attention_mask": whole, **placed(model, whole)}
        if once:
            told["position_ids"] = told["position_ids"][:, 30:]
            told["past_key_values"] = read_once(model, ids, mask)
        logits = model(input_ids=answer if once else torch.cat([ids, answer], 1), **told).logits[:, -3:]
        logits.square().mean().backward()
        found.append((logits.detach(), [p.grad.clone() for p in model.parameters()]))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert found[0][0].std() > 1e-3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_what_follows_prompts_that_begin_alike_is_what_the_model_generates(model):
    ids, mask = alike()
    greedy = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 1}
    whole = model.generate(input_ids=ids, attention_mask=mask, eos_token_id=[], **greedy)[:, 30:]
    assert go_on(model, ids, mask, 9, 0.0, []) == whole.tolist()


def test_what_follows_is_what_the_model_generates(model):
    ids, mask = batch()
    greedy = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 1}
    whole = model.generate(input_ids=ids, attention_mask=mask, eos_token_id=[], **greedy)[:, 9:]
    ends = [int(whole[0, 1]), int(whole[1, 4])]  # so that rows end one by one
    told: list[tuple[int, list[int]]] = []
    said = go_on(model, ids, mask, 9, 0.0, ends, ended=lambda row, tokens: told.append((row, list(tokens))))
    cut = [row for row, tokens in enumerate(said) if tokens[-1] not in ends]
    assert sorted(told) == [(row, tokens) for row, tokens in enumerate(said) if row not in cut]
    assert [len(tokens) for _, tokens in told] == sorted(len(tokens) for _, tokens in told)
    for row, tokens in zip(whole.tolist(), said, strict=True):
        length = next((i + 1 for i, token in enumerate(row) if token in ends), 9)
        assert tokens == row[:length]
    assert len({len(tokens) for tokens in said}) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_lines_of_one_prompt_go_on_from_what_is_there_once(model, monkeypatch: pytest.MonkeyPatch, temperature: float):
    """What is said is what is said where each line has its own copy, and lines that end are taken out."""
    ids, mask = alike()
    ids, mask, rows = ids.repeat_interleave(3, 0), mask.repeat_interleave(3, 0), []
    ends = list({said[1] for said in go_on(model, ids, mask, 2, 0.0, [])[:6]} | set(range(5, 90)))  # some end early
    plain = model.forward

    def watched(**told: Any) -> Any:
        rows.append((len(told["input_ids"]), told["attention_mask"].shape[1]))
        return plain(**told)

    found = []
    for once in (True, False):
        monkeypatch.setattr(prefix, "attends_grouped", lambda model, once=once: once)
        with torch.random.fork_rng(), monkeypatch.context() as patch:
            torch.manual_seed(3)
            patch.setattr(model, "forward", watched)
            found.append(go_on(model, ids, mask, 8, temperature, ends))
    assert found[0] == found[1]
    assert rows[0] == (15, 1)  # of its own a line has read its last token alone
    assert rows[len(rows) // 2] == (15, 30)
    assert min(rows)[0] < 15


def test_draws_follow_the_models_probabilities_without_what_is_rare(model):
    ids, mask = batch()
    ids, mask = ids[:1].expand(20_000, -1), mask[:1].expand(20_000, -1)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.random.set_rng_state(torch.Generator().manual_seed(0).get_state())
        said = go_on(model, ids, mask, 1, 0.1, [])
        expected = (model(input_ids=ids[:1]).logits[0, -1] / 0.1).softmax(0)
    expected = expected.masked_fill(expected < min(RAREST, float(expected.max()) / 10), 0.0)
    counts = torch.bincount(torch.tensor(said)[:, 0], minlength=len(expected)) / 20_000
    assert torch.allclose(counts, expected / expected.sum(), atol=0.015)
    assert not counts[expected == 0].any()


def test_only_models_that_go_on_from_a_cache(model):
    class Other:
        def forward(self, input_ids: torch.Tensor) -> None:
            """Read anew every time."""

    assert goes_on(model)
    assert not goes_on(Other())
    assert placed(Other(), torch.ones(1, 1)) == {}
