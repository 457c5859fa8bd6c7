"""First-order leave-one-out: against captum and a linear model, and through 4-bit weights."""

import warnings
from dataclasses import replace

import pytest
import torch
from fakes import TablePolicy, evidence_for, ragged_sequences, rollout_of, sequences_of, unchecked
from judges import judge_of

from models.rewards.loading import load_reward_model
from models.tiny import save_tiny
from redistributors import Gradient
from redistributors.gradient import EmbeddingGradient
from rlhf_core import PPOConfig, PPOTrainer, TokenReward
from rlhf_core.checks import check_needs

SEQUENCES = ragged_sequences()


@pytest.fixture(params=["gpt2", "llama"])
def judge(request):
    return judge_of(request.param)


def attributions(judge, request, sequences=SEQUENCES):
    return request.measure(judge.probe(sequences))


def null_embedding(judge, baseline):
    weight = judge.model.get_input_embeddings().weight.detach()
    return torch.zeros_like(weight[0]) if baseline == "zero" else weight[judge.tokenizer.pad_token_id]


@pytest.mark.parametrize("baseline", ["null", "zero"])
def test_it_is_captums_gradient_times_the_distance_from_the_baseline(judge, baseline):
    """With a baseline of zeros, captum's InputXGradient itself; with another, its Saliency times the distance."""
    from captum.attr import InputXGradient, Saliency

    found = attributions(judge, EmbeddingGradient(baseline=baseline))
    embedding = judge.model.get_input_embeddings()
    for row, (prompt, response) in enumerate(zip(SEQUENCES.prompts(), SEQUENCES.responses())):
        embedded = embedding(torch.tensor([prompt + response])).detach()

        def score(inputs):
            return judge.model(inputs_embeds=inputs).logits[:, 0]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if baseline == "zero":
                products = InputXGradient(score).attribute(embedded)
            else:
                slopes = Saliency(score).attribute(embedded.clone(), abs=False)
                products = slopes * (embedded - null_embedding(judge, baseline))
        wanted = products.sum(-1)[0, len(prompt) :].detach()
        torch.testing.assert_close(found[row, : len(response)], wanted, atol=1e-5, rtol=1e-5)
        assert not found[row, len(response) :].any()


def linear_in_its_embeddings(judge):
    """The same classifier without layers: its score is a linear function of the last token's embedding."""
    judge.model.transformer.h = torch.nn.ModuleList()
    judge.model.transformer.ln_f = torch.nn.Identity()
    return judge


@pytest.mark.parametrize("baseline", ["null", "zero"])
def test_on_a_linear_model_it_is_what_the_score_loses(baseline):
    judge = linear_in_its_embeddings(judge_of("gpt2"))
    found = attributions(judge, EmbeddingGradient(baseline=baseline))
    weight = judge.model.score.weight.detach()[0]
    for row, response in enumerate(SEQUENCES.responses()):
        moved = judge.model.get_input_embeddings().weight.detach()[response[-1]] - null_embedding(judge, baseline)
        wanted = [0.0] * (len(response) - 1) + [float(weight @ moved)]
        assert found[row, : len(response)].tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("residual", ["last", "uniform", "nowhere"])
def test_the_residual_goes_where_stated(residual):
    """By hand: attributions 0.5, -1 and 0.25 at a scale of 2 leave 3.5 of a score of 3."""
    method = Gradient(residual=residual)
    given = {method.request: torch.tensor([[0.5, -1.0, 0.25]])}
    rollout = rollout_of(sequences_of([[1]], [[2, 3, 4]]), [1.0], given)
    rollout = replace(rollout, scores=torch.tensor([3.0]), score_scale=2.0)
    third = 3.5 / 3
    wanted = {"last": [1, -2, 4], "uniform": [1 + third, -2 + third, 0.5 + third], "nowhere": [1, -2, 0.5]}[residual]
    assert method(rollout)[0].tolist() == pytest.approx(wanted)
    assert method.metrics(rollout) == {"credit_residual": pytest.approx(3.5)}
    assert method.conserving == (residual != "nowhere")


def test_the_metric_is_a_mean_over_responses_of_what_is_not_attributed():
    method = Gradient()
    rollout = rollout_of(SEQUENCES, (2.0, -3.0, 0.0, 0.5), evidence_for(method, SEQUENCES.response_mask))
    left = [score - sum(row) for score, row in zip((2.0, -3.0, 0.0, 0.5), rollout.evidence[method.request].tolist())]
    assert method.metrics(rollout)["credit_residual"] == pytest.approx(sum(map(abs, left)) / 4, rel=1e-5)


def test_a_row_is_the_same_alone_and_in_any_batch(judge):
    together = attributions(judge, EmbeddingGradient())
    for row, response in enumerate(SEQUENCES.responses()):
        alone = attributions(judge, EmbeddingGradient(), SEQUENCES.select(torch.tensor([row])))
        torch.testing.assert_close(alone[0], together[row, : len(response)], atol=1e-6, rtol=1e-6)


def test_it_costs_a_forward_and_a_backward_pass(judge):
    probe = judge.probe(SEQUENCES)
    EmbeddingGradient().measure(probe)
    assert (probe.cost.forwards, probe.cost.backwards) == (4, 4)


def test_it_reaches_through_4_bit_weights(tmp_path):
    """Close to what the same weights give once they are unpacked into float32, and unlike what they were before."""
    bnb = pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path, "llama", head="classifier", hidden_size=64, std=0.15, padding="own")
    packed, unpacked = (load_reward_model(folder, score="single_logit", four_bit=bits) for bits in (True, False))
    original = attributions(unpacked, EmbeddingGradient())
    layers = dict(unpacked.model.named_modules())
    for name, layer in packed.model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            layers[name].weight.data = weight.float().reshape(layers[name].weight.shape)
    found, wanted = (attributions(judge, EmbeddingGradient()) for judge in (packed, unpacked))
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)  # products are rounded to bfloat16
    assert (found - original).abs().max() > 0.5
    assert all(parameter.grad is None for parameter in packed.model.parameters())


def test_two_steps_of_training_through_it():
    config = PPOConfig(rollout_batch_size=4, minibatch_size=4, min_length=1, max_length=(2, 5))
    learner = PPOTrainer(TablePolicy(), judge_of(), Gradient(), config)
    for _ in range(2):
        figures = learner.step([[1], [2, 3], [4], [5]])
        assert figures["conservation_error"] < 1e-5
        assert figures["credit_residual"] >= 0


def test_what_cannot_be_is_refused():
    for name in ("baseline", "residual"):
        for value in ("mean", None, ["zero"]):
            with pytest.raises(ValueError, match=f"^Gradient: {name} must be one of .*, got "):
                unchecked(Gradient, **{name: value})
    fixed = TokenReward(lambda prompts, responses: [0.0] * len(prompts))
    with pytest.raises(ValueError, match=r"Gradient.*but not embedding_gradients"):
        check_needs(Gradient(), TablePolicy(), fixed)


def test_zero_needs_no_null_token():
    judge = judge_of(padding="none")
    judge._classifier = replace(judge._classifier, null_id=None)
    assert judge.provides(EmbeddingGradient(baseline="zero"))
    assert 'no null token (mask, padding, unknown or EOS); use baseline="zero"' in judge.why_not(EmbeddingGradient())
