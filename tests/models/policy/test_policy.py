"""The policy's master tests: ratio 1, KL 0, padding; on GPT-2 (absolute positions) and Llama (rotary, grouped queries),
with every dropout of the folder at 0.1 and the model in train mode."""

import functools
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from policies import (
    HIGH,
    LORA,
    LOW,
    NOTHING,
    PROMPTS,
    LastRow,
    build,
    plain_adapter,
    rolled_out,
    sample,
    sft_adapter,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from models import CausalPolicy, LoraSettings, load_policy, load_reward_model
from models.passes.distribution import CHUNK_CELLS
from models.passes.forward import head_ends_it
from models.tiny import save_tiny, tiny_gpt2, tiny_llama
from models.weights.language_model import remove_randomness
from models.weights.language_model_check import check_language_model
from rlhf_core.batching import micro_batches
from rlhf_core.evidence import EvidenceRequest, FullKL
from rlhf_core.random_streams import seed_of
from rlhf_core.types import Sequences


def step(policy: CausalPolicy, s: Sequences, lr: float = 0.05) -> None:
    """One step towards a smaller log-probability of what was sampled."""
    optimizer = torch.optim.SGD(policy.parameters(), lr=lr)
    policy.evaluate(s, NOTHING).logprobs.mean().backward()
    optimizer.step()
    optimizer.zero_grad()


# -- ratio 1


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
def test_the_ratio_is_one_before_any_update_for_every_partition(folders, family, kind, checkpointing):
    policy = build(folders, family, kind, gradient_checkpointing=checkpointing)
    s = sample(policy, temperature=0.8)
    old = rolled_out(policy, s, temperature=0.8)
    assert torch.equal(policy.evaluate(s, NOTHING, temperature=0.8).logprobs, old.logprobs)
    budgets = [list(micro_batches(s, budget)) for budget in (1, 20, 35, 10_000)]
    for partition in [*budgets, [torch.tensor([5, 0]), torch.tensor([2, 4, 1, 3])]]:
        assert sorted(torch.cat(partition).tolist()) == list(range(6))
        for rows in partition:
            new = policy.evaluate(s.select(rows), NOTHING, temperature=0.8)
            width = new.logprobs.shape[1]
            assert (new.logprobs - old.logprobs[rows, :width]).abs().max() < 1e-5
            assert (new.values - old.values[rows, :width]).abs().max() < 1e-5


# -- KL 0


def test_kl_is_exactly_zero_at_the_start_and_the_reference_never_moves(policy):
    s = sample(policy)
    start = rolled_out(policy, s, frozenset({FullKL()}))
    reference = policy.reference_logprobs(s)
    assert torch.equal(start.logprobs, reference)
    assert start.evidence[FullKL()].eq(0).all()
    for _ in range(3):
        step(policy, s)
    after = rolled_out(policy, s, frozenset({FullKL()}))
    assert torch.equal(policy.reference_logprobs(s), reference)
    assert after.evidence[FullKL()][s.response_mask].gt(0).all()
    assert after.logprobs[s.response_mask].mean() < start.logprobs[s.response_mask].mean()


def test_kl_stays_exactly_zero_once_attention_is_read(policy):
    """A tap may change how attention is computed; it has to for both models."""
    s, request = sample(policy), LastRow(source="policy")
    assert policy.provides(request)
    assert torch.equal(rolled_out(policy, s, frozenset({request})).logprobs, policy.reference_logprobs(s))


def test_an_adapter_is_its_own_reference_not_the_bare_base(folders, family):
    bare, tuned = build(folders, family, "full"), build(folders, family, "adapter")
    s = sample(tuned)
    assert (tuned.reference_logprobs(s) - bare.reference_logprobs(s)).abs().max() > 0.1
    own = plain_adapter(folders[family, "model"], folders[family, "adapter"])
    with torch.no_grad():
        row = torch.tensor([s.prompts()[0] + s.responses()[0]])
        p = own(row).logits[0].log_softmax(-1)[4:-1]
    expected = p.gather(1, s.response_ids[0, : len(p), None])[:, 0]
    assert torch.allclose(tuned.reference_logprobs(s)[0, : len(p)], expected, atol=1e-5)


def test_only_what_should_be_trained_is(folders, family):
    names = {}
    for kind in ("full", "lora", "adapter"):
        policy = build(folders, family, kind)
        s = sample(policy)
        policy.reference_logprobs(s)
        evaluation = policy.evaluate(s, NOTHING)
        (evaluation.logprobs + evaluation.values).sum().backward()
        names[kind] = {name for name, p in policy._lm.named_parameters() if p.grad is not None}
        assert len(names[kind]) + 2 == len(policy.parameters())
        assert all(p.grad is not None and p.dtype == torch.float32 for p in policy.parameters())
    assert all("lora" in name and ".default." in name for name in names["lora"] | names["adapter"])
    assert not any("lora" in name for name in names["full"])


def test_nothing_of_the_reference_can_be_trained_while_it_runs(folders, family):
    policy = build(folders, family, "adapter")
    with policy._network.reference.active():
        assert not [name for name, p in policy._lm.named_parameters() if ".reference." in name and p.requires_grad]
    assert not [name for name, p in policy._lm.named_parameters() if ".reference." in name and p.requires_grad]
    assert all(p.requires_grad for p in policy.parameters())


def test_an_adapter_switched_from_outside_is_noticed(folders, family):
    policy = build(folders, family, "lora")
    s = sample(policy)
    with policy._network.reference.adapters.disable_adapter(), pytest.raises(RuntimeError, match="adapter 'default'"):
        policy.reference_logprobs(s)
    assert torch.equal(policy.reference_logprobs(s), rolled_out(policy, s).logprobs)


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_a_merged_adapter_is_refused(folders, family, kind):
    policy = build(folders, family, kind)
    s, adapters = sample(policy), policy._network.reference.adapters
    adapters.merge_adapter()
    with pytest.raises(RuntimeError, match=r"adapter 'default' must be .* unmerged .*merged_adapters=\['default'\]"):
        policy.reference_logprobs(s)
    adapters.unmerge_adapter()
    assert policy.reference_logprobs(s).isfinite().all()


def test_a_reference_pass_that_leaves_something_else_behind_is_an_error(folders, family):
    fresh, tuned = (build(folders, family, kind)._network.reference for kind in ("lora", "adapter"))
    with (
        pytest.raises(RuntimeError, match=r"adapter 'default' must be .* merged_adapters=\['default'\]"),
        fresh.active(),
    ):
        fresh.adapters.merge_adapter()
    with (
        pytest.raises(RuntimeError, match=r"adapter 'default' must be .* active_adapters=\['reference'\]"),
        tuned.active(),
    ):
        tuned.adapters.set_adapter = lambda *_, **__: None


def test_an_error_inside_the_reference_pass_leaves_the_trained_adapter_on(folders, family):
    policy = build(folders, family, "adapter")
    with pytest.raises(KeyError), policy._network.reference.active():
        raise KeyError
    assert policy._network.reference.adapters.active_adapter == "default"
    assert all(p.requires_grad for p in policy.parameters())


# -- padding


def padded_with_garbage(s: Sequences, left: int, right: int, pad: int) -> Sequences:
    """More padding on both sides, every padded slot holding ``pad``."""

    def widen(ids, mask, sides):
        mask = torch.nn.functional.pad(mask, sides)
        return torch.where(mask, torch.nn.functional.pad(ids, sides), pad), mask

    prompt_ids, prompt_mask = widen(s.prompt_ids, s.prompt_mask, (left, 0))
    response_ids, response_mask = widen(s.response_ids, s.response_mask, (0, right))
    return replace(
        s, prompt_ids=prompt_ids, prompt_mask=prompt_mask, response_ids=response_ids, response_mask=response_mask
    )


def test_padding_changes_nothing(policy):
    """A row alone, and inside a batch padded further on both sides with any id, EOS included."""
    step(policy, sample(policy))
    s, needs = sample(policy), frozenset({FullKL(), LastRow(source="policy"), LastRow(source="reference", layer=0)})

    def measured(sequences):
        found, reference = rolled_out(policy, sequences, needs), policy.reference_logprobs(sequences)
        return [found.logprobs, found.values, found.entropy, reference, *(found.evidence[r] for r in needs)]

    alone = [measured(s.select(torch.tensor([i]))) for i in range(len(s))]
    for pad in (0, 1, 17):
        together = measured(padded_with_garbage(s, 3, 4, pad))
        for i, row in enumerate(alone):
            for batched, single in zip(together, row, strict=True):
                n = single.shape[1]
                assert torch.allclose(batched[i, :n], single[0], atol=1e-5)
                assert batched[i, n:].eq(0).all()


def test_gradients_do_not_depend_on_padding_or_batching(policy):
    s = sample(policy)

    def gradients(parts):
        for p in policy.parameters():
            p.grad = None
        for part in parts:
            e = policy.evaluate(part, NOTHING)
            (e.logprobs + 0.3 * e.values + 0.1 * e.entropy).sum().backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters()])

    together = gradients([padded_with_garbage(s, 2, 5, 1)])
    assert together.abs().max() > 0.1
    apart = gradients([s.select(torch.tensor([i])) for i in range(len(s))])
    assert (apart - together).abs().max() < 1e-5 * together.abs().max()


@pytest.mark.parametrize("padding", ["none", "eos", "own"])
def test_the_pad_token_does_not_matter(tmp_path, family, padding):
    policy = load_policy(save_tiny(tmp_path, family, padding=padding))
    assert policy.eos_ids == (1,)
    s = sample(policy)
    assert torch.equal(rolled_out(policy, s).logprobs, policy.evaluate(s, NOTHING).logprobs)
    assert any(1 in prompt for prompt in s.prompts())


# -- against the model's plain forward pass, one row and one token at a time


def test_everything_measured_agrees_with_plain_forward_passes(folders, family):
    policy = build(folders, family, "full")
    reference = AutoModelForCausalLM.from_pretrained(folders[family, "model"], attn_implementation="eager")
    step(policy, sample(policy))
    s, tap = sample(policy, temperature=0.7), LastRow(source="policy")
    found = rolled_out(policy, s, frozenset({FullKL(), tap}), temperature=0.7)
    found_reference = policy.reference_logprobs(s, temperature=0.7)
    trained = AutoModelForCausalLM.from_pretrained(folders[family, "model"], attn_implementation="eager")
    trained.load_state_dict(policy._lm.state_dict())
    for i, (prompt, response) in enumerate(zip(s.prompts(), s.responses(), strict=True)):
        with torch.no_grad():
            out, ref = (lm(torch.tensor([prompt + response]), output_attentions=True) for lm in (trained, reference))
        for t, token in enumerate(response):
            column = len(prompt) + t - 1
            p, q = (np.exp(o.logits[0, column].double().numpy() / 0.7) for o in (out, ref))
            if t < int(LOW[i]):
                p[1] = q[1] = 0.0
            p, q = p / p.sum(), q / q.sum()
            kept = p > 0
            assert float(found.logprobs[i, t]) == pytest.approx(np.log(p[token]), abs=1e-4)
            assert float(found_reference[i, t]) == pytest.approx(np.log(q[token]), abs=1e-4)
            assert float(found.entropy[i, t]) == pytest.approx(-(p[kept] * np.log(p[kept])).sum(), abs=1e-4)
            kl = (p[kept] * np.log(p[kept] / q[kept])).sum()
            assert float(found.evidence[FullKL()][i, t]) == pytest.approx(kl, abs=1e-4)
        last = out.attentions[-1][0, :, len(prompt) + len(response) - 2].mean(0)
        assert torch.allclose(found.evidence[tap][i, : len(response)], last[len(prompt) :], atol=1e-5)


def test_full_kl_in_many_small_chunks_is_the_same(folders, family, monkeypatch):
    policy = build(folders, family, "lora")
    step(policy, sample(policy))
    s, needs = sample(policy), frozenset({FullKL()})
    whole = rolled_out(policy, s, needs)
    monkeypatch.setitem(CHUNK_CELLS, "cpu", 3 * 32)
    parts = rolled_out(policy, s, needs)
    assert torch.equal(parts.evidence[FullKL()], whole.evidence[FullKL()])
    assert torch.equal(parts.entropy, whole.entropy)


@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
def test_logits_too_many_to_keep_are_made_again_with_the_same_result(folders, family, kind, monkeypatch):
    """In parts of 3 tokens, with gradient checkpointing or without; and never all logits at once."""
    results = []
    for kept, checkpointing in ((2**28, False), (0, False), (0, True)):
        monkeypatch.setattr("models.policy.causal_policy.KEPT_CELLS", kept)
        monkeypatch.setattr("models.passes.token_statistics.RECOMPUTED_CELLS", 3 * 32)
        policy, sizes = build(folders, family, kind, gradient_checkpointing=checkpointing), []
        policy._lm.get_output_embeddings().register_forward_hook(lambda _, __, out, to=sizes: to.append(out.numel()))
        s = sample(policy)
        sizes.clear()
        found = policy.evaluate(s, NOTHING)
        (found.logprobs.sum() + found.values.sum() + 0.1 * found.entropy.sum()).backward()
        results.append((found, [parameter.grad for parameter in policy.parameters()]))
        assert max(sizes) == (3 * 32 if kept == 0 else int(s.response_mask.sum()) * 32)
    (whole, gradients), *others = results
    for found, grads in others:
        for name in ("logprobs", "values", "entropy"):
            torch.testing.assert_close(getattr(found, name), getattr(whole, name), atol=1e-6, rtol=1e-5)
        for mine, theirs in zip(grads, gradients, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
def test_a_policy_in_parts_is_its_reference_in_parts(folders, family, kind, monkeypatch):
    policy = build(folders, family, kind)
    s = sample(policy)
    whole = policy.reference_logprobs(s)
    monkeypatch.setattr("models.policy.causal_policy.KEPT_CELLS", 0)
    monkeypatch.setattr("models.passes.token_statistics.RECOMPUTED_CELLS", 3 * 32)
    assert torch.equal(policy.reference_logprobs(s), rolled_out(policy, s).logprobs)
    step(policy, s)
    torch.testing.assert_close(policy.reference_logprobs(s), whole)


def test_a_head_that_does_more_than_read_the_trunk_is_found_out():
    for config, ends in (
        (transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1), True),
        (
            transformers.CohereConfig(
                vocab_size=9,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                num_key_value_heads=1,
                logit_scale=0.5,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            ),
            False,
        ),
        (
            transformers.ElectraConfig(
                vocab_size=9,
                hidden_size=8,
                embedding_size=4,
                num_hidden_layers=1,
                num_attention_heads=1,
                intermediate_size=8,
                is_decoder=True,
            ),
            False,
        ),
        (transformers.MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1), True),
    ):
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        assert head_ends_it(model) == ends, type(model).__name__


def test_logits_that_are_scaled_after_the_head_are_kept(folders, family, monkeypatch):
    policy = build(folders, family, "full")
    forward = policy._lm.forward

    @functools.wraps(forward)  # with its signature, which says what it calls its cache
    def scaled(*arguments, **keywords):
        output = forward(*arguments, **keywords)
        output.logits = output.logits * 0.5
        return output

    policy._lm.forward = scaled
    s = sample(policy)
    wanted = rolled_out(policy, s).logprobs
    monkeypatch.setattr("models.policy.causal_policy.KEPT_CELLS", 0)
    assert not policy._head_ends(policy._lm)
    torch.testing.assert_close(policy.evaluate(s, NOTHING).logprobs, wanted)


def test_a_banned_eos_in_a_response_has_probability_zero(folders, family):
    policy = build(folders, family, "full")
    s = sample(policy)
    s.response_ids[1, 1], s.response_ids[1, 0] = 1, 5
    assert rolled_out(policy, s).logprobs[1, 1] == -torch.inf
    assert policy.reference_logprobs(s)[1, 1] == -torch.inf
    assert rolled_out(policy, replace(s, min_lengths=torch.zeros_like(LOW))).logprobs[1, 1].isfinite()


# -- modes and dropout


def test_checkpointing_runs_only_where_gradients_flow_and_modes_are_put_back(folders, family):
    policy = build(folders, family, "lora", gradient_checkpointing=True)
    calls, lm = [], policy._lm
    for module in lm.modules():
        original = getattr(module, "_gradient_checkpointing_func", None)
        if original is not None:

            def counted(*arguments, original=original, **keywords):
                calls.append(lm.training)
                return original(*arguments, **keywords)

            module._gradient_checkpointing_func = counted
    list(lm.modules())[-1].training = False
    modes = [module.training for module in lm.modules()]
    assert lm.training
    s = sample(policy)
    rolled_out(policy, s, frozenset({FullKL(), LastRow(source="policy")}))
    policy.reference_logprobs(s)
    assert calls == []
    plain = build(folders, family, "lora")
    for one in (policy, plain):
        one.evaluate(s, NOTHING).logprobs.sum().backward()
    assert calls == [True] * 2  # layers
    assert [module.training for module in lm.modules()] == modes
    for mine, theirs in zip(policy.parameters()[:-2], plain.parameters()[:-2], strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-5)


@pytest.mark.parametrize("name", ["OPT", "Falcon", "Bloom", "GPTNeoX", "Phi"])
def test_every_kind_of_dropout_is_zeroed(name):
    """Modules, attributes of modules, attributes of the config read in the forward pass, and layer drop."""
    lm = architecture(name)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        lm.train()
        assert not torch.equal(lm(ids).logits, lm(ids).logits)
        remove_randomness(lm)
        trained = lm(ids).logits
        assert torch.equal(trained, lm.eval()(ids).logits)


# -- architectures


def architecture(name: str) -> transformers.PreTrainedModel:
    """A tiny model of another family, with dropout where it has any."""
    attention = {"num_attention_heads": 4, "num_hidden_layers": 2}
    hidden = {"vocab_size": 32, "hidden_size": 32, **attention}
    modern = {**hidden, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}
    settings = {
        "OPT": {**hidden, "ffn_dim": 64, "word_embed_proj_dim": 16, "dropout": 0.1, "layerdrop": 0.3},
        "Falcon": {**hidden, "hidden_dropout": 0.1, "attention_dropout": 0.1, "alibi": False},
        "Bloom": {"vocab_size": 32, "hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.1},
        "GPTNeoX": {**hidden, "intermediate_size": 64, "hidden_dropout": 0.1, "attention_dropout": 0.1},
        "Phi": {**modern, "resid_pdrop": 0.1, "embd_pdrop": 0.1},
        "Gemma2": {**modern, "head_dim": 8, "final_logit_softcapping": 1.0, "sliding_window": 4},
        "Cohere": {**modern, "logit_scale": 0.2},
        "Granite": {**modern, "logits_scaling": 3.0},
        "Mistral": {**modern, "sliding_window": 3},
        "Mamba": {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        "Bert": {**hidden, "intermediate_size": 64},
    }[name]
    torch.manual_seed(0)
    special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": 1}
    lm = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**settings, **special))
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return lm


@pytest.mark.parametrize(
    "name", ["OPT", "Falcon", "Bloom", "GPTNeoX", "Phi", "Gemma2", "Cohere", "Granite", "Mistral", "Mamba"]
)
def test_other_architectures_pass_the_check_or_are_refused_by_name(name):
    """Their own heads (projection, soft-capping, scaling), positions (ALiBi, sliding windows) and caches."""
    lm = architecture(name)
    remove_randomness(lm)
    assert check_language_model(lm, 32) == (16 if name == "OPT" else 32)
    assert not lm.training


def test_a_model_that_sees_the_future_is_refused():
    lm = architecture("Bert")
    remove_randomness(lm)
    with pytest.raises(ValueError, match=r"BertLMHeadModel cannot be a policy: its (teacher-forced|sampling) pass"):
        check_language_model(lm, 32)


def test_a_model_whose_positions_ignore_left_padding_is_refused():
    lm = tiny_gpt2()
    forward = lm.transformer.forward

    def deaf(*arguments, position_ids=None, **keywords):
        return forward(*arguments, **keywords)

    lm.transformer.forward = deaf
    with pytest.raises(ValueError, match="sampling pass"):
        check_language_model(lm, 32)


def test_dropout_left_over_is_refused():
    lm = tiny_llama(dropout=0.1)
    with pytest.raises(ValueError, match="train mode"):
        check_language_model(lm, 32)


def test_a_model_without_attention_is_a_policy_that_provides_none(tmp_path):
    folder = save_tiny(tmp_path, "gpt2")
    Path(folder, "model.safetensors").unlink()
    architecture("Mamba").save_pretrained(folder)
    policy = load_policy(folder)
    s, request = sample(policy), LastRow(source="policy")
    start = rolled_out(policy, s).logprobs
    assert torch.equal(start, policy.evaluate(s, NOTHING).logprobs)
    for i in range(len(s)):
        alone = sample(policy, [PROMPTS[i]], LOW[i : i + 1], HIGH[i : i + 1])
        assert rolled_out(policy, alone).logprobs.shape[0] == 1
        row = s.select(torch.tensor([i]))
        assert torch.allclose(rolled_out(policy, row).logprobs[0], start[i, : row.response_ids.shape[1]], atol=1e-5)
    assert not policy.provides(request)
    assert "Mamba" in policy.why_not(request)
    with pytest.raises(ValueError, match="Mamba"):
        rolled_out(policy, s, frozenset({request}))


# -- evidence


def test_what_is_provided(folders, family):
    policy = build(folders, family, "lora")
    assert policy.provides(FullKL())
    assert not policy.provides(FullKL(source="reward"))
    for source, layer, given in [
        ("policy", -1, True),
        ("reference", 1, True),
        ("policy", 2, False),
        ("reward", 0, False),
    ]:
        assert policy.provides(LastRow(source=source, layer=layer)) is given
    assert not policy.provides(EvidenceRequest(source="policy"))
    with pytest.raises(ValueError, match="cannot measure"):
        rolled_out(policy, sample(policy), frozenset({LastRow(source="reward")}))
    with pytest.raises(ValueError, match="no_grad"):
        policy.evaluate(sample(policy), frozenset({FullKL()}))


def test_attention_of_policy_and_reference_are_each_their_own(policy):
    s = sample(policy)
    mine, theirs = LastRow(source="policy"), LastRow(source="reference")
    before = rolled_out(policy, s, frozenset({mine, theirs})).evidence
    assert torch.equal(before[mine], before[theirs])
    step(policy, s, lr=0.5)
    after = rolled_out(policy, s, frozenset({mine, theirs})).evidence
    assert torch.equal(after[theirs], before[theirs])
    assert (after[mine] - before[mine]).abs().max() > 1e-3


# -- tokens, folders, refusals


def test_eos_ids_are_the_union_unless_given(tmp_path, family):
    folder = save_tiny(tmp_path, family, eos_ids=[4, 5])
    Path(folder, "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 9]}))
    assert load_policy(folder).eos_ids == (1, 4, 5, 9)
    assert load_policy(folder, eos_ids=(7,)).eos_ids == (7,)
    with pytest.raises(ValueError, match=r"EOS ids \[32\] .* vocabulary of 32"):
        load_policy(folder, eos_ids=(32,))
    policy = load_policy(folder)
    s = sample(policy, high=torch.full((6,), 12))
    ends = torch.isin(s.response_ids, torch.tensor(policy.eos_ids)) & s.response_mask
    steps = torch.arange(s.response_ids.shape[1])
    assert not (ends & (steps < LOW[:, None])).any()
    assert torch.equal(ends.any(1), s.finished)
    assert ends.sum(1).max() == 1


def test_texts_go_through_the_tokenizer(folders, family):
    policy = build(folders, family, "adapter")  # whose folder has no tokenizer: the base's
    assert policy.encode(["w2 w3", "w9"]) == [[2, 3], [9]]
    assert policy.decode([[2, 3, 1], [9]]) == ["w2 w3", "w9"]


@pytest.mark.parametrize(("eos_ids", "end"), [((1,), [1]), ((1, 3), [1]), ((3, 4), [3]), ((), [])])
def test_a_whole_response_ends_with_the_tokenizers_own_eos(folders, eos_ids, end):
    policy = load_policy(folders["gpt2", "model"], eos_ids=eos_ids)
    assert policy.tokenizer.eos_token_id == 1
    assert policy.encode_responses(["w2 w3", ""]) == [[2, 3, *end], end]


def test_validate_lists_every_bad_row(folders, family):
    policy = build(folders, family, "full")
    policy.validate(PROMPTS, 57)
    with pytest.raises(ValueError, match=r"row 3: 60 prompt \+ 5 response.*row 1 is empty.*row 2 holds ids \[32, -1\]"):
        policy.validate([[2], [], [32, 3, -1], [2] * 60], 5)
    with pytest.raises(ValueError, match="row 1 is empty"):
        policy.validate(policy.encode(["w2", " "]), 5)
    with pytest.raises(ValueError, match="row 5: 7 prompt"):
        sample(policy, high=torch.tensor([12, 12, 12, 12, 12, 58]))


@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
def test_saved_policies_load_anywhere_with_identical_logits(tmp_path, folders, family, kind):
    policy = build(folders, family, kind)
    step(policy, sample(policy))
    policy.save(str(tmp_path))
    assert not [*tmp_path.glob("*.bin"), *tmp_path.glob("*.pt")]
    if kind == "full":
        plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        plain = plain_adapter(folders[family, "model"], tmp_path)
    ids = torch.tensor([[2, 3, 4, 5]])
    policy._lm.eval()
    with torch.no_grad():
        theirs, mine = plain.eval()(ids).logits, policy._lm(ids).logits
    assert torch.allclose(theirs, mine, atol=1e-5) if family == "gpt2" else torch.equal(theirs, mine)  # a fused GELU
    s, again = sample(policy), load_policy(str(tmp_path))
    first, second = rolled_out(policy, s), rolled_out(again, s)
    assert torch.equal(first.logprobs, second.logprobs)
    assert torch.equal(first.values, second.values)
    assert first.values.abs().max() > 0
    assert torch.equal(again.reference_logprobs(s), second.logprobs)


def test_the_seed_decides_a_fresh_adapter(folders, family):
    def a(seed):
        return load_policy(folders[family, "model"], lora=LORA, seed=seed).parameters()[0]

    before = torch.get_rng_state()
    assert torch.equal(a(3), a(3))
    assert not torch.equal(a(3), a(4))
    assert torch.equal(a(seed_of(3, "init")), a(seed_of(3, "init")))
    assert not torch.equal(a(seed_of(3, "init")), a(seed_of(4, "init")))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generation_config_that_transformers_would_not_save_does_not_stop_saving(tmp_path, family):
    folder = save_tiny(tmp_path / "in", family)
    Path(folder, "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "top_p": 0.33}))
    (tmp_path / "out").mkdir()
    load_policy(folder).save(str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_unsafe_or_untrainable_requests_are_refused_with_the_way_out(folders):
    model, adapter = folders["llama", "model"], folders["llama", "adapter"]
    with pytest.raises(ValueError, match="4-bit weights cannot be trained; give lora"):
        load_policy(model, four_bit=True)
    with pytest.raises(ValueError, match=r"bfloat16 loses every update .* lora="):
        load_policy(model, dtype="bfloat16")
    with pytest.raises(ValueError, match="leave out LoraSettings"):
        load_policy(adapter, lora=LORA)
    for revision in (None, "main"):
        with pytest.raises(ValueError, match="40 hex digits"):
            load_policy(model, trust_remote_code=True, revision=revision)
    with pytest.raises(ValueError, match="rank and alpha"):
        LoraSettings(rank=0)


@pytest.mark.parametrize(
    "load", [load_policy, partial(load_reward_model, score="single_logit")], ids=["policy", "reward"]
)
def test_what_is_no_folder_is_said_at_once(load, tmp_path, monkeypatch):
    def network(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("models.weights.adapters.cached_file", network)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [])
    for name in (str(tmp_path / "none"), "./none", "../no/such", "runs/1/policy", "policy/", r"C:\models", "~/policy"):
        with pytest.raises(
            FileNotFoundError, match=f"there is no folder {re.escape(repr(name))}.* the form owner/name"
        ):
            load(name)
    with pytest.raises(AssertionError, match="the hub was asked"):
        load("owner/name")

    def unknown_host(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown_host)
    monkeypatch.setattr("models.weights.source.getproxies", dict)
    with pytest.raises(
        FileNotFoundError, match=r"no folder 'owner/name', and without a network \(huggingface.co is not"
    ):
        load("owner/name")
    monkeypatch.setattr("models.weights.source.getproxies", lambda: {"https": "proxy"})  # which would look it up
    with pytest.raises(AssertionError, match="the hub was asked"):
        load("owner/name")
    monkeypatch.setattr("models.weights.source.is_offline_mode", lambda: True)
    for name in ("owner/name", "gpt3"):
        with pytest.raises(FileNotFoundError, match=rf"no folder '{name}', and offline \(HF_HUB_OFFLINE\).*owner/name"):
            load(name)
    cached = {("owner/name", "adapter_config.json", "v1"): str(tmp_path)}
    monkeypatch.setattr(
        "models.weights.source.try_to_load_from_cache",
        lambda name, file, revision: cached.get((name, file, revision)),
    )
    with pytest.raises(AssertionError, match="the hub was asked"):
        load("owner/name", revision="v1")


def test_incomplete_folders_are_refused(tmp_path, folders):
    headless = shutil.copytree(folders["llama", "model"], tmp_path / "headless")
    state = load_file(headless / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"not a complete LlamaForCausalLM: \['lm_head.weight'\]"):
        load_policy(str(headless))
    mute = shutil.copytree(folders["gpt2", "model"], tmp_path / "mute")
    for file in mute.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        load_policy(str(mute))


def test_adapters_that_would_drag_the_reference_along_are_refused(tmp_path, folders):
    folder = sft_adapter("gpt2", folders["gpt2", "model"], tmp_path / "biased", bias="lora_only")
    with pytest.raises(ValueError, match="bias='none'"):
        load_policy(folder)


# -- a real pretrained model


def test_stories260k_writes_text_and_keeps_ratio_one_and_kl_zero(data_folder):
    folder = data_folder / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    for lora in (None, LoraSettings(rank=8)):
        policy = load_policy(str(folder), lora=lora)
        prompts = policy.encode(["Once upon a time", "Lily and Tom went to the park.", "The dog"])
        assert all(prompt[0] == 1 for prompt in prompts)
        low, high = torch.tensor([20, 0, 40]), torch.tensor([40, 30, 40])
        s = sample(policy, prompts, low, high)
        start = rolled_out(policy, s, frozenset({FullKL()}))
        assert torch.equal(policy.reference_logprobs(s), start.logprobs)
        assert start.evidence[FullKL()].eq(0).all()
        for rows in micro_batches(s, 60):
            new = policy.evaluate(s.select(rows), NOTHING).logprobs
            assert (new - start.logprobs[rows, : new.shape[1]]).abs().max() < 1e-5
        # a trained model gives its own samples far more than 1 / 512 a token
        assert start.logprobs[s.response_mask].mean() > -3
        assert all(len(text.split()) > 3 and text.isascii() for text in policy.decode(s.responses()))
