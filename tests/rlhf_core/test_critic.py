"""What the engine knows of a critic: its warm-up, the norms of its gradient, and settings that make no sense."""

from dataclasses import replace

import pytest
import torch
from fakes import TablePolicy, WithCritic
from resumable import left_behind
from table_trainer import CONFIG, PROMPTS, batch, trainer

from rlhf_core.advantages import ESTIMATORS
from rlhf_core.config import WITH_A_CRITIC, PPOConfig
from rlhf_core.critic import HasCritic, clipped_together, total_norm

WARM = replace(CONFIG, critic_warmup=2)
OUT = ("whole", "parts")


class Shared(WithCritic):
    """A table whose values lean on its logits, so that the value loss would move them."""

    apart = False

    def evaluate(self, sequences, needs, *, temperature=1.0):
        found = super().evaluate(sequences, needs, temperature=temperature)
        previous, _, mask = self._states(sequences)
        leaning = self.logits.mean(1)[previous] * (1 + self.value[previous])
        return replace(found, values=found.values + torch.where(mask, leaning, 0))


KINDS = (WithCritic, Shared)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "adamw", "weight_decay": 0.5}])
def test_in_the_warm_up_the_critic_learns_and_the_policy_keeps_every_bit(kind, optimizer):
    policy = kind()
    learner = trainer(config=replace(WARM, **optimizer), policy=policy)
    before, coef = policy.logits.detach().clone(), learner.kl_controller.coef
    for step in (1, 2):
        value = policy.value.detach().clone()
        figures = learner.step(batch())
        assert torch.equal(policy.logits, before)
        assert not torch.equal(policy.value, value)
        assert policy.logits not in learner.optimizer.state
        assert figures["critic_warmup_steps"] == step
        assert figures["ratio_max"] == pytest.approx(1, abs=1e-6)
        assert {"value_loss", "explained_variance"} <= figures.keys()
    assert learner.kl_controller.coef == coef
    figures = learner.step(batch())
    assert figures["critic_warmup_steps"] == 2
    assert not torch.equal(policy.logits, before)
    learner.step(batch())
    assert learner.kl_controller.coef != coef


def test_a_warm_up_of_no_step_is_none_and_nothing_is_logged_of_it():
    plain, telling = (trainer(policy=policy) for policy in (TablePolicy(), WithCritic()))
    one, other = plain.step(batch()), telling.step(batch())
    assert "critic_warmup_steps" not in one
    assert {*other} - {*one} == {"critic_gradient_norm"}


def test_a_run_that_stops_in_its_warm_up_goes_on_with_it(tmp_path):
    def fit(out, steps, *, resume=False):
        made = trainer(config=replace(WARM, critic_warmup=3), policy=WithCritic())
        made.fit(PROMPTS * 4, steps, out=tmp_path / out, eval_every=3, resume=resume)

    fit("whole", 5)
    fit("parts", 2)
    fit("parts", 5, resume=True)
    (tensors, state, records), (others, state2, records2) = (
        left_behind(tmp_path / out, 5) for out in ("whole", "parts")
    )
    assert all(torch.equal(tensors[name], others[name]) for name in tensors.keys() | others.keys())
    assert (state, records) == (state2, records2)


@pytest.mark.parametrize(("kind", "moved_by_it"), [(WithCritic, False), (Shared, True)])
def test_a_critic_apart_is_clipped_by_its_own_norm(kind, moved_by_it):
    """A value loss a thousand times as large changes nothing of the policy, unless they share a trunk."""

    def logits(value_coef):
        policy = kind()
        config = replace(CONFIG, value_coef=value_coef, max_grad_norm=0.01)
        trainer(config=config, policy=policy).step(batch())
        return policy.logits.detach()

    assert torch.equal(logits(0.1), logits(100.0)) != moved_by_it


def test_norms_by_hand():
    policy = WithCritic()
    policy.logits.grad, policy.value.grad = torch.full((6, 6), 0.5), torch.full((6,), 4.0)
    groups = clipped_together(policy)
    assert {name: [id(one) for one in group] for name, group in groups.items()} == {
        "gradient_norm": [id(policy.logits)],
        "critic_gradient_norm": [id(policy.value)],
    }
    assert [*clipped_together(Shared())] == [*clipped_together(TablePolicy())] == ["gradient_norm"]
    assert total_norm([3.0, 4.0]) == 5


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # no minibatch was stepped on
def test_a_gradient_of_the_critic_that_is_not_finite_is_refused_too():
    policy = WithCritic()
    policy.value.register_hook(lambda gradient: gradient * torch.nan)
    before = policy.logits.detach().clone()
    figures = trainer(config=replace(CONFIG, max_skipped=100), policy=policy).step(batch())
    assert figures["refused_minibatches"] > 0
    assert torch.equal(policy.logits, before)
    assert not policy.value.any()


def test_what_would_never_learn_is_refused_at_construction():
    groups = {"advantages": "rloo", "responses_per_prompt": 2}
    with pytest.raises(ValueError, match="'rloo' have no critic.*leave critic at 'shared', or use advantages 'gae'"):
        trainer(config=replace(CONFIG, **groups), policy=WithCritic())
    trainer(config=replace(CONFIG, **groups), policy=Shared())
    with pytest.raises(ValueError, match="critic_warmup 2 needs a policy.*HasCritic.*TablePolicy does not"):
        trainer(config=WARM, policy=TablePolicy())
    assert isinstance(WithCritic(), HasCritic)
    assert not isinstance(TablePolicy(), HasCritic)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"critic_warmup": -1}, "critic_warmup must be 0 or more"),
        ({"critic_warmup": 2, "value_coef": 0.0}, "value_coef 0 keeps it from learning"),
        ({"critic_warmup": 2, "schedule": "linear", "schedule_steps": 2}, "must exceed critic_warmup 2"),
        ({"critic_warmup": 2, "advantages": "reinforce_plus_plus"}, "have none; leave it out"),
    ],
)
def test_warm_ups_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        PPOConfig(**settings)


def test_the_estimators_with_a_critic_are_those_that_the_config_knows():
    assert {name for name, estimator in ESTIMATORS.items() if estimator.critic} == WITH_A_CRITIC
