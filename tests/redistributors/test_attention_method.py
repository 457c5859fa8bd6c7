"""Attention in general: ABC to the bit, and every reading against maps, hooks and finite differences of the model."""

import copy
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from attention_families import FAMILIES, HEADS, VOCAB, batch, build, own_attention
from fakes import TablePolicy, ragged_sequences, rollout_of, sequences_of, unchecked
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForSequenceClassification
from transformers.masking_utils import eager_mask

from benchmarks.runs.arms import parse_arms
from models.attention import reader as attention
from models.attention import taps as attention_taps
from models.attention.maps import attention_maps, map_gradients
from models.attention.reader import AttentionReader
from models.policy.loading import load_policy
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.loading import load_reward_model
from models.tiny import save_tiny, tiny_gpt2_classifier, tiny_llama_classifier, tiny_tokenizer
from redistributors import Attention, RewardAttention
from redistributors.parts.attention_readings import GradientRow, RolloutRow
from redistributors.parts.attention_requests import AttentionRow, MaxHeads, MeanHeads, OneHead, ValueRow
from rlhf_core import PPOConfig, PPOTrainer, TokenReward
from rlhf_core.checks import check_needs
from rlhf_core.evidence import ValueTap
from rlhf_core.probe import AttentionMaps, Experiment, MapGradients

READINGS = {
    "row": Attention(),
    "value_norms": Attention(reading="value_norms", layers=(0, 1)),
    "rollout": Attention(reading="rollout", layers="all"),
    "gradient": Attention(reading="gradient"),
}
REDUCED = {"mean": lambda maps: maps.mean(0), "max": lambda maps: maps.max(0), 2: lambda maps: maps[2]}
TINY = {"gpt2": tiny_gpt2_classifier, "llama": tiny_llama_classifier}
SEQUENCES = ragged_sequences(prompt_lengths=(2, 5, 1, 3))


@cache
def judge_of(family, micro_batch_tokens=4096):
    """GPT-2 in double precision; with others, eager attention is float32 inside, and has no mask for doubles."""
    tokenizer = tiny_tokenizer(vocab_size=VOCAB)
    if family in TINY:
        model = TINY[family](vocab_size=VOCAB)
    else:
        model = build(family, AutoModelForSequenceClassification, num_labels=1)
        tokenizer.cls_token = "w2"
    if family == "gpt2":
        model.double()
    return ClassifierReward(model, tokenizer, score="single_logit", micro_batch_tokens=micro_batch_tokens)


def responses_for(judge):
    """Ragged rows; where a model reads [CLS], they begin with it."""
    if judge.head.reads == "last":
        return SEQUENCES
    return sequences_of([[2, *prompt] for prompt in SEQUENCES.prompts()], SEQUENCES.responses())


def measured(judge, method, sequences=None):
    """The method's own weights, in a rollout with the judge's scores."""
    sequences = sequences or responses_for(judge)
    scored = judge.score(sequences, method.needs)
    return rollout_of(sequences, scored.scores, scored.evidence)


def rows_of(judge, sequences=None):
    """Each row by itself: ids, read position, columns of the response, and its maps (layer, head, query, key)."""
    sequences = sequences or responses_for(judge)
    for prompt, response in zip(sequences.prompts(), sequences.responses()):
        ids = torch.tensor([prompt + response])
        maps = torch.stack(own_attention(judge.model, ids, torch.ones_like(ids)))[:, 0].double().numpy()
        read = ids.shape[1] - 1 if judge.head.reads == "last" else 0
        yield ids, read, slice(len(prompt), ids.shape[1]), maps


@pytest.mark.parametrize("family", sorted(TINY))
@pytest.mark.parametrize("settings", [{}, {"layer": 0}, {"layer": 1, "beta": 1.0}, {"beta": 0.0}])
def test_abc_is_one_setting_to_the_bit(family, settings):
    abc = RewardAttention(**settings)
    same = Attention(layers=abc.layer, beta=abc.beta)
    judge = judge_of(family)
    rollout = measured(judge, abc)
    assert torch.equal(same(measured(judge, same)), abc(rollout))
    assert same.metrics(rollout) == abc.metrics(rollout)
    assert rollout.evidence[abc.request].any()


def trained(root, family, method, steps=2):
    """Figures of some steps, and the weights after them."""
    folders = {name: root / name for name in ("policy", "reward")}
    if not root.joinpath("policy").exists():
        for name, settings in {"policy": {"seed": 1}, "reward": {"head": "classifier", "seed": 2}}.items():
            folders[name].mkdir()
            save_tiny(str(folders[name]), family=family, dropout=0.1, std=0.3, **settings)
    policy = load_policy(str(folders["policy"]))
    reward = load_reward_model(str(folders["reward"]), score="single_logit")
    config = PPOConfig.from_paper(
        "positive_generation",
        learning_rate=1e-3,
        rollout_batch_size=4,
        minibatch_size=4,
        min_length=2,
        max_length=(3, 6),
        epochs=1,
    )
    learner = PPOTrainer(policy, reward, method, config)
    figures = [learner.step([[4, 5], [6], [7, 8, 9], [10]]) for _ in range(steps)]
    return figures, torch.cat([weights.detach().flatten() for weights in policy.parameters()])


@pytest.mark.parametrize("family", sorted(TINY))
def test_abc_and_its_setting_train_the_same_policy_to_the_bit(family, tmp_path):
    ours, theirs = (trained(tmp_path, family, method) for method in (Attention(), RewardAttention()))
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("reading", sorted(READINGS))
def test_two_steps_with_each_reading(reading, tmp_path):
    figures, weights = trained(tmp_path, "llama", replace(READINGS[reading], heads="max", sinks=1, floor=0.5))
    assert max(step["conservation_error"] for step in figures) < 1e-5
    assert weights.isfinite().all()


@pytest.mark.parametrize("heads", REDUCED)
@pytest.mark.parametrize("layers", [-1, (-1, 0)])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "bert"])
def test_a_row_is_that_of_the_models_own_maps(family, layers, heads):
    judge = judge_of(family)
    method = Attention(layers=layers, heads=heads)
    weights = method.weights(measured(judge, method))
    for row, (_, read, columns, maps) in enumerate(rows_of(judge)):
        wanted = np.mean([REDUCED[heads](maps[layer])[read, columns] for layer in method.layers], axis=0)
        assert weights[row, : len(wanted)].tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("heads", REDUCED)
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "bert"])
def test_rollout_is_the_product_of_whole_matrices(family, heads):
    judge = judge_of(family)
    for layers, order in ((("all"), (0, 1)), ((-1, 0), (0, 1))):
        method = Attention(reading="rollout", layers=layers, heads=heads)
        weights = method.weights(measured(judge, method))
        for row, (_, read, columns, maps) in enumerate(rows_of(judge)):
            product = np.eye(maps.shape[-1])
            for layer in order:
                reduced = REDUCED[heads](maps[layer])
                reduced = reduced / reduced.sum(1, keepdims=True)
                product = (0.5 * reduced + 0.5 * np.eye(len(reduced))) @ product
            assert product[read].sum() == pytest.approx(1)
            assert weights[row, : columns.stop - columns.start].tolist() == pytest.approx(
                product[read, columns], abs=1e-6
            )
            assert not weights[row, columns.stop - columns.start :].any()


def test_rollout_through_three_layers_keeps_their_order():
    model = tiny_gpt2_classifier(vocab_size=VOCAB, n_layers=3).double()
    judge = ClassifierReward(model, tiny_tokenizer(vocab_size=VOCAB), score="single_logit")
    method = Attention(reading="rollout", layers="all")
    weights = method.weights(measured(judge, method))
    for row, (_, read, columns, maps) in enumerate(rows_of(judge)):
        first, second, third = (0.5 * layer.mean(0) + 0.5 * np.eye(maps.shape[-1]) for layer in maps)
        wanted = (third @ second @ first)[read, columns]
        assert weights[row, : len(wanted)].tolist() == pytest.approx(wanted, abs=1e-6)


SHIFT = {}


def shifted_attention(module, query, key, value, *_, scaling=None, **__):
    """Attention written out, with one weight of one module moved."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    seen = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    if module in SHIFT:
        where, size = SHIFT[module]
        weights = weights.index_put(
            (torch.tensor([0]), *(torch.tensor([i]) for i in where)),
            torch.tensor(size, dtype=weights.dtype),
            accumulate=True,
        )
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("shifted", shifted_attention)
AttentionMaskInterface.register("shifted", eager_mask)


@pytest.mark.parametrize("family", sorted(TINY))
def test_gradients_are_finite_differences_of_single_weights(family):
    """∂r/∂A by moving one weight after softmax, in an attention of our own. (Llama's norms are float32 always.)"""
    judge = judge_of(family)
    h, close = (1e-5, 1e-7) if family == "gpt2" else (3e-3, 2e-3)
    sequences = sequences_of([[3, 4]], [[5, 6, 7]])
    modules = AttentionReader(judge.model)._layers
    found = judge.score(
        sequences, frozenset({GradientRow(layers=(layer,), heads=OneHead(head)) for layer in (0, 1) for head in (0, 3)})
    )
    ((ids, read, _, maps),) = rows_of(judge, sequences)
    moved = copy.deepcopy(judge.model).double()
    moved.config._attn_implementation = "shifted"
    places = [name for name, module in judge.model.named_modules() if module in modules]

    def score(layer, where, size):
        SHIFT.clear()
        SHIFT[moved.get_submodule(places[layer])] = (where, size)
        with torch.no_grad():
            return float(moved(input_ids=ids).logits[0, 0])

    biggest = 0.0
    for request, evidence in found.evidence.items():
        (layer,), head = request.layers, request.heads.index
        for t in range(3):
            where = (head, read, 2 + t)
            slope = (score(layer, where, h) - score(layer, where, -h)) / (2 * h)
            wanted = slope * maps[layer][where]
            biggest = max(biggest, abs(wanted))
            assert evidence[0, t].tolist() == pytest.approx([max(wanted, 0), max(-wanted, 0)], abs=close)
    SHIFT.clear()
    assert biggest > 100 * close


@pytest.mark.parametrize("heads", REDUCED)
@pytest.mark.parametrize("layers", [(-1,), (0, 1)])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "bert"])
def test_gradient_times_attention_by_hand(family, layers, heads):
    judge = judge_of(family)
    method = Attention(reading="gradient", layers=layers, heads=heads)
    weights = {
        sign: method.weights(replace(r, scores=sign * torch.ones(4)))
        for sign in (1, -1)
        for r in [measured(judge, method)]
    }
    plain = copy.deepcopy(judge.model).requires_grad_(True)
    plain.config._attn_implementation = "eager"
    for row, (ids, read, columns, _) in enumerate(rows_of(judge)):
        out = plain(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True)
        gradients = torch.autograd.grad(out.logits[0, 0], out.attentions)
        for sign in (1, -1):
            products = [sign * (out.attentions[i] * gradients[i])[0].detach().numpy() for i in layers]
            wanted = np.mean([REDUCED[heads](np.maximum(p, 0))[read, columns] for p in products], axis=0)
            assert weights[sign][row, : len(wanted)].tolist() == pytest.approx(wanted, abs=1e-5)
    assert max(float(some.max()) for some in weights.values()) > 1e-3


VALUES = {  # the module that makes values, and which of its output's thirds they are
    "gpt2": (lambda model, layer: model.base_model.h[layer].attn.c_attn, slice(2, 3)),
    "llama": (lambda model, layer: model.base_model.layers[layer].self_attn.v_proj, slice(0, 1)),
    "mistral": (lambda model, layer: model.base_model.layers[layer].self_attn.v_proj, slice(0, 1)),
    "gptj": (lambda model, layer: model.base_model.h[layer].attn.v_proj, slice(0, 1)),
    "gpt_neo": (lambda model, layer: model.base_model.h[layer].attn.attention.v_proj, slice(0, 1)),
}


@pytest.mark.parametrize("heads", REDUCED)
@pytest.mark.parametrize("family", VALUES)
def test_value_norms_are_those_of_the_projected_values(family, heads):
    judge = judge_of(family)
    method = Attention(reading="value_norms", layers=0, heads=heads)
    weights = method.weights(measured(judge, method))
    find, third = VALUES[family]
    for row, (ids, read, columns, maps) in enumerate(rows_of(judge)):
        projected = output_of(find(judge.model, 0), judge.model, ids)
        width = 32 if family == "gpt2" else projected.shape[-1]
        values = projected[0].split(width, dim=-1)[third][0]
        channels = 32 // HEADS
        norms = values.unflatten(-1, (-1, channels)).norm(dim=-1).T.numpy()  # (value head, key)
        norms = np.repeat(norms, HEADS // len(norms), axis=0)
        wanted = REDUCED[heads](maps[0][:, read] * norms)[columns]
        assert weights[row, : len(wanted)].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@torch.no_grad()
def output_of(module, model, ids):
    caught = []
    with module.register_forward_hook(lambda *given: caught.append(given[-1])):
        model(input_ids=ids)
    return caught[0]


@dataclass(frozen=True, kw_only=True)
class Everything(ValueTap):
    """Sum over the rows that predict the response, of weights times the first channel of the value."""

    source: str = "reward"

    def rows(self, layout):
        return torch.where(layout.response_mask, layout.response_positions - 1, -1)

    def factors(self, values):
        return values[..., 0]

    def reduce(self, weights, rows, layout):
        return MaxHeads()(weights).sum(1).gather(1, layout.response_positions)


def test_value_weighted_rows_add_up_over_chunks(monkeypatch):
    ids, mask, layout = batch()
    mask = torch.ones_like(mask)
    found = []
    for cells in (2**19, len(ids) * HEADS * ids.shape[1] * 2):
        monkeypatch.setitem(attention.CHUNK_CELLS, "cpu", cells)
        model = build("llama-gqa")
        with AttentionReader(model).capture([Everything()], layout) as evidence, torch.no_grad():
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        found.append(evidence[Everything()])
    torch.testing.assert_close(*found)
    assert found[0].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shows_maps_and_gradients_and_is_left_as_it_was(family):
    model = build(family)
    ids, mask, _ = batch()
    mask = mask.flip(1)  # padding on the right
    wanted = own_attention(model, ids, mask)
    reader = AttentionReader(model)
    before = [name for _, name in attention_taps.implementations(model)]
    weights = attention_maps(model, ids, mask)
    same, gradients = map_gradients(model, ids, mask, lambda hidden: hidden[:, 0].sum(-1) + hidden[:, -1].sum(-1))
    assert [name for _, name in attention_taps.implementations(model)] == before
    assert len(weights) == len(gradients) == reader.n_layers
    inside = (mask[:, None, :, None] & mask[:, None, None]).expand_as(weights[0])
    for ours, again, own, gradient in zip(weights, same, wanted, gradients):
        assert torch.equal(ours[inside], own[inside])
        torch.testing.assert_close(ours, again, atol=1e-6, rtol=1e-5)
        assert not ours[~inside].any()
        assert not gradient[~inside].any()
        assert gradient.any()
        assert not gradient.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("tokens", [1, 12, 4096])
@pytest.mark.parametrize(
    "request_", [RolloutRow(layers="all", heads=MeanHeads()), GradientRow(layers=(0, 1), heads=MaxHeads())]
)
def test_rows_are_the_same_alone_and_however_they_are_cut(request_, tokens):
    judge = judge_of("llama", micro_batch_tokens=tokens)
    together = judge.score(SEQUENCES, frozenset({request_})).evidence[request_]
    for row in range(4):
        alone = judge.score(SEQUENCES.select(torch.tensor([row])), frozenset({request_})).evidence[request_]
        torch.testing.assert_close(together[row : row + 1, : alone.shape[1]], alone, atol=1e-6, rtol=1e-5)
    assert not together[~SEQUENCES.response_mask].any()
    assert not together.requires_grad


def test_passes_are_counted():
    probe = judge_of("gpt2").probe(SEQUENCES)
    RolloutRow(layers="all", heads=MeanHeads()).measure(probe)
    assert (probe.cost.forwards, probe.cost.backwards, probe.cost.tokens) == (4, 0, int(SEQUENCES.lengths.sum()))
    GradientRow(layers="all", heads=MeanHeads()).measure(probe)
    assert (probe.cost.forwards, probe.cost.backwards, probe.cost.tokens) == (8, 4, 2 * int(SEQUENCES.lengths.sum()))
    assert probe.cost.seconds > 0


def test_a_tap_still_reads_after_maps_were_made_and_after_a_failure():
    judge = judge_of.__wrapped__("gpt2")
    judge.model.requires_grad_(False)
    own = attention_taps.implementations(judge.model)
    before = measured(judge, READINGS["row"]).evidence
    gradients = measured(judge, READINGS["gradient"]).evidence

    def fails(maps):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        judge.probe(SEQUENCES).attention_gradients(fails)
    with pytest.raises(KeyError, match="mine"):
        judge.probe(SEQUENCES).attention(fails)
    after = measured(judge, READINGS["row"]).evidence
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(value.any() for value in gradients.values())
    assert attention_taps.implementations(judge.model) == own


def test_an_experiment_of_ones_own_may_make_vectors_of_maps():
    @dataclass(frozen=True, kw_only=True)
    class PerHead(Experiment):
        source: str = "reward"
        uses = frozenset({"attention"})

        def shape(self, batch, response):
            return (batch, response, HEADS)

        def measure(self, probe):
            return probe.attention(self.reduce)

        def reduce(self, maps):
            row = torch.arange(len(maps.weights[0]))
            read = maps.weights[-1][row, :, maps.layout.read_positions]
            return torch.stack([head.gather(1, maps.layout.response_positions) for head in read.unbind(1)], -1)

    judge = judge_of("llama")
    found = judge.score(SEQUENCES, frozenset({PerHead()})).evidence[PerHead()]
    for row, (_, read, columns, maps) in enumerate(rows_of(judge)):
        wanted = torch.from_numpy(maps[-1][:, read, columns]).T.float()
        torch.testing.assert_close(found[row, : len(wanted)], wanted, atol=1e-6, rtol=1e-5)
    assert not found[~SEQUENCES.response_mask].any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes.*")
@pytest.mark.filterwarnings("ignore::FutureWarning:bitsandbytes.*")
def test_gradients_go_through_a_four_bit_trunk(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path, "llama", head="classifier", hidden_size=64, std=0.05)
    exact, rounded = (load_reward_model(folder, score="single_logit", four_bit=four_bit) for four_bit in (False, True))
    method = Attention(reading="gradient", layers="all")
    ours, theirs = (
        method.weights(replace(measured(judge, method), scores=torch.ones(4))) for judge in (rounded, exact)
    )
    assert 0 < (ours - theirs).abs().max() < 0.5 * theirs.max()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_inside_the_model_are_part_of_its_maps():
    from peft import LoraConfig, get_peft_model

    model = tiny_gpt2_classifier(vocab_size=VOCAB).double()
    lora = LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    get_peft_model(model, lora).eval()
    judge = ClassifierReward(model, tiny_tokenizer(vocab_size=VOCAB), score="single_logit")
    method = Attention(reading="rollout", layers="all")
    weights = method.weights(measured(judge, method))
    for row, (_, read, columns, maps) in enumerate(rows_of(judge)):
        first, second = (0.5 * layer.mean(0) + 0.5 * np.eye(maps.shape[-1]) for layer in maps)
        assert weights[row, : columns.stop - columns.start].tolist() == pytest.approx(
            (second @ first)[read, columns], abs=1e-6
        )
    assert measured(judge, READINGS["gradient"]).evidence[READINGS["gradient"].requests[0]].any()


def credit_of(method, weights, score=1.0):
    (request,) = method.requests
    rollout = rollout_of(sequences_of([[1]], [[1] * len(weights)]), [score], {request: torch.tensor([weights])})
    return method(rollout)[0].tolist(), method.metrics(rollout)["credit_fallback"]


@pytest.mark.parametrize(
    ("settings", "weights", "credit"),
    [
        ({"sinks": 1}, [0.6, 0.1, 0.2, 0.1], [0, 0.25, 0.5, 0.25]),
        ({"sinks": 3}, [0.6, 0.1, 0.2, 0.1], [0, 0, 0, 1]),
        ({"floor": 1.0}, [0.1, 0.2, 0.3, 0.4], [0, 0, 0.25, 0.75]),
        ({"floor": 0.4}, [0.1, 0.2, 0.3, 0.4], [0, 1 / 6, 2 / 6, 3 / 6]),
        ({"floor": 1.0, "sinks": 1}, [9.0, 0.2, 0.3, 0.1], [0, 0, 1, 0]),
        ({"sinks": 1, "beta": 0.5}, [0.6, 0.1, 0.2, 0.1], [0, 0.125, 0.25, 0.625]),
    ],
)
def test_sinks_and_floor_by_hand(settings, weights, credit):
    given, fallback = credit_of(Attention(**({"beta": 1.0} | settings)), weights)
    assert given == pytest.approx(credit)
    assert fallback == 0


@pytest.mark.parametrize(
    ("settings", "weights"), [({"sinks": 2}, [0.5, 0.5]), ({"sinks": 1}, [1.0]), ({"floor": 1.0}, [0.25] * 4)]
)
def test_where_nothing_is_left_the_last_token_gets_all(settings, weights):
    given, fallback = credit_of(Attention(beta=1.0, **settings), weights, score=-2.0)
    assert given == pytest.approx([0] * (len(weights) - 1) + [-2])
    assert fallback == 1


def test_layers_are_averaged():
    method = Attention(layers=[0, -1], beta=1.0)
    assert method.layers == (0, -1)
    first, last = method.requests
    evidence = {first: torch.tensor([[0.2, 0.2]]), last: torch.tensor([[0.4, 0.0]])}
    assert method(rollout_of(sequences_of([[1]], [[1, 1]]), [4.0], evidence)).tolist() == [
        [pytest.approx(3), pytest.approx(1)]
    ]


def test_a_gradient_pays_what_pulled_the_way_of_the_score():
    method = Attention(reading="gradient", beta=1.0)
    sides = [[0.3, 0.0], [0.1, 0.2], [0.0, 0.6]]
    assert credit_of(method, sides)[0] == pytest.approx([0.75, 0.25, 0])
    assert credit_of(method, sides, score=-4.0)[0] == pytest.approx([0, -1, -3])


def test_negative_or_unbounded_weights_are_refused():
    for bad in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"non-negative, got {bad}.* at row 0, token 1"):
            credit_of(Attention(sinks=2), [0.1, bad, 0.2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reading": "flow"}, "reading must be one of row, value_norms, rollout, gradient, got 'flow'$"),
        ({"reading": ["row"]}, r"reading must be one of .*, got \['row'\]$"),
        ({"layers": "last"}, "layer is .*, got 'last'$"),
        ({"layers": (0, 1.5)}, "layer is .*, got 1.5$"),
        ({"layers": True}, "layer is .*, got True$"),
        ({"layers": []}, r"at least one layer, and none twice, got \[\]$"),
        ({"layers": [1, 1]}, r"none twice, got \[1, 1\]$"),
        ({"layers": "all"}, r"reading='row'\): a row is read off layers named by number.* not layers='all'"),
        ({"reading": "rollout"}, r"reading='rollout'\): a rollout multiplies .* write layers='all' instead of \(-1,\)"),
        ({"heads": "median"}, "heads must be mean, max or a head's index, got 'median'$"),
        ({"heads": True}, "heads must be .*, got True$"),
        ({"heads": 1.0}, "heads must be .*, got 1.0$"),
        ({"sinks": -1}, "sinks is a number of first response tokens, 0 or more, got -1$"),
        ({"sinks": True}, "sinks .*, got True$"),
        ({"sinks": 0.5}, "sinks .*, got 0.5$"),
        ({"floor": -0.1}, "floor is a multiple of the mean weight, 0 or more, got -0.1$"),
        ({"floor": float("inf")}, "floor .*, got inf$"),
        ({"floor": float("nan")}, "floor .*, got nan$"),
        ({"floor": "1"}, "floor .*, got '1'$"),
        ({"beta": 2}, "beta .*, got 2$"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^Attention.*{message}"):
        unchecked(Attention, **settings)


def test_an_arm_may_name_several_layers():
    deep, rollout = parse_arms(
        "attention(heads=max,layers=[-1,-2],sinks=1),attention(reading=rollout,layers=all)@lam=1"
    )
    assert deep.redistributor() == Attention(heads="max", layers=(-1, -2), sinks=1)
    assert rollout.redistributor() == READINGS["rollout"]
    assert hash(deep.redistributor()) == hash(Attention(heads="max", layers=[-1, -2], sinks=1))


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (Attention(layers=2), "it has attention layers 0 to 1, not 2"),
        (Attention(heads=4), "it has heads 0 to 3, not 4"),
        (Attention(reading="value_norms", heads=-5), "it has heads 0 to 3, not -5"),
        (Attention(reading="value_norms", layers=-3), "it has attention layers 0 to 1, not -3"),
        (Attention(reading="rollout", layers=(0, 3, 4)), "it has attention layers 0 to 1, not 3, 4"),
        (Attention(reading="rollout", layers="all", heads=9), "it has heads 0 to 3, not 9"),
        (Attention(reading="rollout", layers=(1, -1)), r"of its 2 attention layers \(1, -1\) names one twice"),
        (Attention(reading="gradient", layers=(2,)), "it has attention layers 0 to 1, not 2"),
        (Attention(reading="gradient", heads=4), "it has heads 0 to 3, not 4"),
    ],
)
def test_what_a_model_lacks_is_said_before_training(method, reason):
    judge = judge_of("gpt2")
    with pytest.raises(ValueError, match=reason):
        check_needs(method, TablePolicy(), judge)
    with pytest.raises(ValueError, match=reason):
        judge.score(SEQUENCES, method.needs)


@pytest.mark.parametrize("reading", ["rollout", "gradient", "value_norms"])
def test_what_shows_no_attention_says_so(reading):
    method = READINGS[reading]
    scorer = TokenReward(lambda prompts, responses: [0.0] * len(prompts))
    assert "callable" in scorer.why_not(method.requests[0])
    assert not scorer.provides(method.requests[0])
    probe = judge_of("gpt2").probe(SEQUENCES)
    from rlhf_core.scorers.callables import CallableProbe

    deaf = CallableProbe(scores_of=lambda prompts, responses: torch.zeros(len(prompts)), sequences=SEQUENCES)
    assert probe.sequences is SEQUENCES
    for ability in (deaf.attention, deaf.attention_gradients):
        with pytest.raises(ValueError, match="a callable has no attention"):
            ability(lambda maps: torch.zeros(4, 6))


def test_a_model_that_only_shows_maps_has_rollout_but_no_value_norms():
    judge = judge_of("falcon-alibi")
    assert judge._attention._tap.name == "eager attention"
    for request in READINGS["value_norms"].requests:
        assert "FalconForSequenceClassification returns whole attention maps only" in judge.why_not(request)
    for reading in ("row", "rollout", "gradient"):
        assert all(value.any() for value in measured(judge, READINGS[reading]).evidence.values())


def test_maps_that_the_score_does_not_depend_on_are_refused(monkeypatch):
    judge = judge_of.__wrapped__("gpt2")
    forward = type(judge.model.base_model).forward

    def copied(self, *arguments, **options):
        out = forward(self, *arguments, **options)
        if out.attentions:
            out.attentions = tuple(weights.clone() for weights in out.attentions)
        return out

    monkeypatch.setattr(type(judge.model.base_model), "forward", copied)
    assert "its score does not depend on (layers [0, 1])" in judge.why_not(READINGS["gradient"].requests[0])
    assert judge.provides(READINGS["rollout"].requests[0])


def test_requests_of_equal_settings_are_shared():
    assert Attention().needs == RewardAttention().needs == {AttentionRow(source="reward")}
    assert ValueRow(source="reward") != AttentionRow(source="reward")
    assert AttentionMaps is not MapGradients
