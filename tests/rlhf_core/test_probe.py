"""The probe against models run by hand: altered responses, beginnings, gradients, and what they cost."""

from dataclasses import dataclass, replace

import pytest
import torch
from fakes import TablePolicy, ragged_sequences, sequences_of
from judges import MODELS, by_hand, judge_of

from models.rewards.classifier_head import why_not_causal
from models.rewards.classifier_reward import ClassifierReward
from models.tiny import tiny_gpt2_classifier, tiny_tokenizer
from redistributors import PrefixDifference
from rlhf_core import TokenReward
from rlhf_core.checks import check_needs
from rlhf_core.evidence import HiddenTap, PrefixScores
from rlhf_core.probe import Experiment, Variants, generators

SEQUENCES = ragged_sequences()


@pytest.fixture(params=sorted(MODELS))
def judge(request):
    return judge_of(request.param)


def rows(sequences=SEQUENCES):
    return list(zip(sequences.prompts(), sequences.responses()))


def test_all_prefix_scores_from_one_pass_are_those_of_separate_forwards(judge):
    probe = judge.probe(SEQUENCES)
    found = probe.prefix_scores()
    riding = judge.score(SEQUENCES, frozenset({PrefixScores()})).evidence[PrefixScores()]
    for row, (prompt, response) in enumerate(rows()):
        wanted = [by_hand(judge, prompt + response[:t]) for t in range(len(response))]
        assert found[row, : len(response)].tolist() == pytest.approx(wanted, abs=1e-5)
        assert riding[row, : len(response)].tolist() == pytest.approx(wanted, abs=1e-5)
        assert not found[row, len(response) :].any()
        assert not riding[row, len(response) :].any()
    assert (probe.cost.forwards, probe.cost.backwards) == (4, 0)
    assert probe.cost.tokens == int(SEQUENCES.lengths.sum())


@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_variants_are_scored_as_the_texts_they_stand_for(tokens):
    judge = judge_of(micro_batch_tokens=tokens)
    keep = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    keep[:, 0] = False
    null = judge.tokenizer.pad_token_id
    for absent, alter in (
        ("delete", lambda response, kept: [t for t, stands in zip(response, kept) if stands]),
        ("replace", lambda response, kept: [t if stands else null for t, stands in zip(response, kept)]),
    ):
        found = judge.probe(SEQUENCES).scores(Variants(keep=keep, absent=absent))
        for row, (prompt, response) in enumerate(rows()):
            wanted = [by_hand(judge, prompt + alter(response, kept)) for kept in keep[row].tolist()]
            assert found[row].tolist() == pytest.approx(wanted, abs=1e-9)


def test_equal_variants_are_scored_once(judge):
    probe = judge.probe(SEQUENCES)
    keep = torch.ones(4, 7, 6, dtype=torch.bool)
    keep[:, 3, 5] = False  # padding in all rows but the longest
    scores = probe.scores(Variants(keep=keep, absent="delete"))
    assert probe.cost.forwards == 5
    assert (scores[:, :1] == scores)[[0, 1, 3]].all()
    assert scores[2, 3] != scores[2, 0]


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("baseline", ["null", "zero"])
def test_embedding_gradients_are_slopes_along_the_path(judge, alpha, baseline):
    """Central differences of the score, one token's share of the path at a time. (Llama's norms are float32 always.)"""
    h, close = (1e-5, 1e-5) if judge.name.startswith("GPT2") else (3e-4, 2e-2)
    embedding = judge.model.get_input_embeddings()
    probe = judge.probe(SEQUENCES)
    point = probe.embedding_gradients(alpha, baseline)
    null = torch.zeros(32).double() if baseline == "zero" else embedding.weight[judge.tokenizer.pad_token_id].detach()

    def score(ids, prompt, shares):
        with torch.no_grad():
            e = embedding(torch.tensor([ids]))
            e[0, prompt:] = null + torch.tensor(shares, dtype=torch.float64)[:, None] * (e[0, prompt:] - null)
            return float(judge.model(inputs_embeds=e, attention_mask=torch.ones(1, len(ids))).logits[0, 0])

    for row, (prompt, response) in enumerate(rows()):
        ids, shares = prompt + response, [alpha] * len(response)
        assert float(point.scores[row]) == pytest.approx(score(ids, len(prompt), shares), abs=1e-5)
        for t in range(len(response)):
            up, down = ([a + move * (i == t) for i, a in enumerate(shares)] for move in (h, -h))
            slope = (score(ids, len(prompt), up) - score(ids, len(prompt), down)) / (2 * h)
            assert float(point.contributions[row, t]) == pytest.approx(slope, abs=close, rel=close)
        assert not point.contributions[row, len(response) :].any()
    assert (probe.cost.forwards, probe.cost.backwards) == (4, 4)
    assert all(parameter.grad is None for parameter in judge.model.parameters())


def test_contributions_of_a_model_in_half_precision_are_summed_in_float32():
    model = tiny_gpt2_classifier(vocab_size=33).bfloat16()
    judge = ClassifierReward(model, tiny_tokenizer(vocab_size=33), score="single_logit")
    ids = [5, 6, 7, 8, 9]
    embedded = model.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
    logits = model.score(model.base_model(inputs_embeds=embedded).last_hidden_state[:, -1])
    (gradient,) = torch.autograd.grad(logits.sum(), embedded)
    wanted = (gradient.double() * embedded.double()).sum(-1)[0, 2:]
    found = judge.probe(sequences_of([ids[:2]], [ids[2:]])).embedding_gradients(1.0, "zero").contributions[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-8)


@dataclass(frozen=True, kw_only=True)
class ShortestScores(Experiment):
    """Scores without, and with only, the first token: a request of another shape than tokens have."""

    source: str = "reward"
    uses = frozenset({"delete"})

    def shape(self, batch, response):
        return (batch, 2)

    def measure(self, probe):
        first = torch.arange(probe.sequences.response_ids.shape[1]) == 0
        keep = torch.stack([torch.zeros_like(first), first]).expand(len(probe.sequences), -1, -1)
        return probe.scores(Variants(keep=keep, absent="delete"))


def test_an_experiment_measures_the_same_with_a_model_and_with_a_callable_of_its_scores(judge):
    def scorer(prompts, responses):
        return [by_hand(judge, prompt + response) for prompt, response in zip(prompts, responses)]

    request = ShortestScores()
    assert judge.provides(request)
    assert TokenReward(scorer).provides(request)
    ours = judge.score(SEQUENCES, frozenset({request})).evidence[request]
    theirs = TokenReward(scorer).score(SEQUENCES, frozenset({request})).evidence[request]
    torch.testing.assert_close(ours.float(), theirs, atol=1e-5, rtol=1e-5)
    assert ours[0, 0] == pytest.approx(by_hand(judge, rows()[0][0]), abs=1e-5)


def test_an_experiment_of_another_shape_than_it_states_is_refused(judge):
    @dataclass(frozen=True, kw_only=True)
    class Wrong(ShortestScores):
        def shape(self, batch, response):
            return (batch, 3)

    with pytest.raises(ValueError, match=r"Wrong.* measured a tensor of shape \(4, 2\), not the \(4, 3\)"):
        judge.score(SEQUENCES, frozenset({Wrong()}))


def test_what_a_model_cannot_measure_is_said_before_training():
    @dataclass(frozen=True, kw_only=True)
    class Beyond(Experiment):
        source: str = "reward"
        uses = frozenset({"replace", "telepathy"})

    judge = judge_of(padding="none")
    judge._classifier = replace(judge._classifier, null_id=None)
    reason = judge.why_not(Beyond())
    assert 'no null token (mask, padding, unknown or EOS); use absent="delete"' in reason
    assert "not telepathy" in reason
    with pytest.raises(ValueError, match=r'no null token \(mask, padding, unknown or EOS\); use absent="delete"'):
        judge.probe(SEQUENCES).scores(Variants(keep=torch.zeros(4, 1, 6, dtype=torch.bool), absent="replace"))
    with pytest.raises(ValueError, match=r'no null token \(mask, padding, unknown or EOS\); use baseline="zero"'):
        judge.probe(SEQUENCES).embedding_gradients(1.0, "null")
    fixed = TokenReward(lambda prompts, responses: [0.0] * len(prompts))
    assert "but not replace, telepathy" in fixed.why_not(Beyond())
    with pytest.raises(ValueError, match=r"prefix-difference.*callable returns a score and nothing else"):
        check_needs(PrefixDifference(), TablePolicy(), fixed)
    with pytest.raises(ValueError, match=r"variants of shape \(4, 6\)"):
        judge.probe(SEQUENCES).scores(_flat_variants())


def _flat_variants():
    variants = Variants(keep=torch.ones(4, 1, 6, dtype=torch.bool), absent="delete")
    object.__setattr__(variants, "keep", torch.ones(4, 6, dtype=torch.bool))
    return variants


def test_a_model_that_reads_on_has_no_prefix_scores():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    tokenizer = tiny_tokenizer(padding="own")
    tokenizer.cls_token = "w2"
    bert = ClassifierReward(BertForSequenceClassification(config), tokenizer, score="single_logit")
    assert "reads its score at the first token" in bert.why_not(PrefixScores())
    # a decoder's form of head on a trunk whose states see what follows
    judge = judge_of()
    for layer in judge.model.transformer.h:
        layer.attn.is_causal = False
        layer.attn.forward = _mixing(layer.attn.forward)
    assert "it is not causal" in judge.why_not(PrefixScores())


@pytest.mark.parametrize("size", [3, 8, 9])
def test_whether_a_model_reads_on_is_found_out_with_few_tokens(size):
    model = tiny_gpt2_classifier(vocab_size=size)
    judge = ClassifierReward(model, tiny_tokenizer(vocab_size=size), score="single_logit")
    assert judge.why_not(PrefixScores()) == ""
    for layer in model.transformer.h:
        layer.attn.forward = _mixing(layer.attn.forward)
    assert "it is not causal" in why_not_causal(model, judge.head)


def _mixing(forward):
    def mixed(*arguments, **options):
        out, *rest = forward(*arguments, **options)
        return (out + out.mean(1, keepdim=True), *rest)

    return mixed


def test_a_hidden_tap_may_give_a_vector_a_token(judge):
    @dataclass(frozen=True, kw_only=True)
    class FirstTwo(HiddenTap):
        def shape(self, batch, response):
            return (batch, response, 2)

        def read(self, hidden, score):
            return hidden[..., :2]

    answer = judge.score(SEQUENCES, frozenset({FirstTwo()})).evidence[FirstTwo()]
    assert answer.shape == (4, 6, 2)
    with torch.no_grad():
        ids = torch.tensor([SEQUENCES.prompts()[0] + SEQUENCES.responses()[0]])
        hidden = judge.model.base_model(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(answer[0, :4].double(), hidden[1:5, :2], atol=1e-5, rtol=1e-5)
    assert not answer[~SEQUENCES.response_mask].any()


def test_a_row_draws_the_same_alone_and_in_any_batch():
    drawn = [torch.rand(3, generator=g) for g in generators("shapley", SEQUENCES)]
    alone = [torch.rand(3, generator=generators("shapley", SEQUENCES.select(torch.tensor([i])))[0]) for i in range(4)]
    assert all(map(torch.equal, drawn, alone))
    assert not torch.equal(drawn[0], drawn[1])
    other = torch.rand(3, generator=generators("owen", SEQUENCES)[0])
    assert not torch.equal(drawn[0], other)


def test_a_prompt_of_one_token_may_lose_its_whole_response(judge):
    sequences = sequences_of([[3]], [[4, 5]])
    nothing = judge.probe(sequences).scores(Variants(keep=torch.zeros(1, 1, 2, dtype=torch.bool), absent="delete"))
    assert float(nothing) == pytest.approx(by_hand(judge, [3]), abs=1e-9)
    assert float(judge.probe(sequences).prefix_scores()[0, 0]) == pytest.approx(by_hand(judge, [3]), abs=1e-5)
