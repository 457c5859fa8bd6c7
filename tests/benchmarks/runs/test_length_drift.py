"""The length canary: what scores, what is shown, what runs, and that uniform credit moves it."""

import io
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fakes import TablePolicy, sequences_of
from PIL import Image
from rich.console import Console
from table_task import TableTask, settings

from benchmarks.experiments.length_drift import EXPERIMENT, change, drifts, panels
from benchmarks.experiments.settings import LengthDrift as Options
from benchmarks.reporting.statistics import Summary
from benchmarks.runs.constant_score import ConstantScore, ConstantTask
from benchmarks.runs.settings import ComparisonSettings
from benchmarks.runs.single_run import identity
from benchmarks.tasks.definitions import Toy
from benchmarks.tasks.model_settings import Loading
from models.rewards.classifier_reward import ClassifierReward
from models.tiny import tiny_gpt2_classifier, tiny_tokenizer
from redistributors import RewardAttention, Uniform
from rlhf_core.checks import check_needs
from rlhf_core.config import PPOConfig
from rlhf_core.evidence import EvidenceRequest, PrefixScores
from rlhf_core.scorers.callables import TokenReward
from rlhf_core.trainer import PPOTrainer
from rlhf_core.types import HasIdRange, HasVocabulary, RewardModel, Scored, ValidatesPrompts

ONE = Options(values=(1.0,), lams=(1.0,), extras=(), lengths=(1, 5))


def run(chosen, options):
    text = io.StringIO()
    done = EXPERIMENT.run(chosen, TableTask(), {}, Console(file=text, width=160), options)
    return done, text.getvalue()


@dataclass(frozen=True)
class Lengths:
    """Scores a response by its length, and shows evidence that says so."""

    def score(self, sequences, needs):
        scores = sequences.response_lengths.float()
        shown = sequences.response_mask * scores[:, None]
        return Scored(scores=scores, evidence=dict.fromkeys(needs, shown))

    def provides(self, request: EvidenceRequest) -> bool:
        return request.source == "reward"


def test_the_score_is_constant_and_the_evidence_the_models_own():
    reward, sequences = ConstantScore(reward=Lengths(), value=-1.0), sequences_of([[1], [1]], [[2, 3], [4]])
    assert isinstance(reward, RewardModel)
    asked = frozenset({PrefixScores()})
    scored = reward.score(sequences, asked)
    assert scored.scores.tolist() == [-1, -1]
    assert scored.evidence[PrefixScores()].tolist() == [[2, 2], [1, 0]]
    assert reward.score(sequences, frozenset()).scores.tolist() == [-1, -1]
    assert reward.provides(PrefixScores())
    assert not reward.provides(PrefixScores(source="policy"))


def test_a_constant_score_says_of_itself_what_the_model_within_says():
    plain = ConstantScore(reward=Lengths(), value=1.0)
    assert not any(isinstance(plain, kind) for kind in (HasVocabulary, HasIdRange, ValidatesPrompts))
    assert not hasattr(plain, "why_not")
    classifier = ClassifierReward(tiny_gpt2_classifier(), tiny_tokenizer(), score="single_logit")
    full = ConstantScore(reward=classifier, value=1.0)
    assert (full.vocabulary, full.vocab_size) == (classifier.vocabulary, classifier.vocab_size)
    with pytest.raises(ValueError, match="it has attention layers 0 to 1, not 99"):
        check_needs(RewardAttention(layer=99), TablePolicy(), full)
    with pytest.raises(ValueError, match="cannot score"):
        full.validate([[2]], 10**6)


def test_a_reward_that_nobody_looks_at_is_not_asked():
    def broken(prompts, responses):
        raise AssertionError("asked")

    reward = ConstantScore(reward=TokenReward(broken), value=2.0)
    assert reward.score(sequences_of([[1]], [[2]]), frozenset()).scores.tolist() == [2]


def test_a_constant_task_keeps_models_and_prompts_and_knows_no_truth():
    task = ConstantTask(task=TableTask(), value=1.0)
    loaded, inner = task.load(), TableTask().load()
    assert loaded.train_prompts == inner.train_prompts
    assert loaded.fingerprint == inner.fingerprint
    assert loaded.gold is None
    assert loaded.contributions is None
    assert loaded.reward.score(sequences_of([[1]], [[3, 3]]), frozenset()).scores.tolist() == [1]
    assert (task.ppo, task.loading) == (TableTask().ppo, TableTask().loading)


def test_runs_of_one_value_are_not_those_of_another_but_do_not_depend_on_where_files_stand():
    here, there = (ConstantTask(task=Toy(cache=cache), value=1.0) for cache in ("here", "there"))
    assert identity(here) == identity(there)
    assert identity(here) != identity(replace(here, value=-1.0))


def test_an_auxiliary_is_known_by_its_name_whatever_that_is():
    def with_auxiliaries(**named):
        return identity(ConstantTask(task=Toy(loading=Loading(auxiliaries=named)), value=1.0))

    assert with_auxiliaries(models="here") == with_auxiliaries(models="there")
    assert with_auxiliaries(models="here") != with_auxiliaries()
    assert with_auxiliaries(models="here") != with_auxiliaries(cache="here")


def test_every_setting_is_a_panel_and_a_centred_constant_is_run_once():
    made = panels(ComparisonSettings(), Options(lengths=(2, 9)))
    assert [panel.name for panel in made] == [
        *("+1-lam1", "-1-lam1", "+1-lam0.95", "-1-lam0.95"),
        *("+1-lam1-no-critic", "-1-lam1-no-critic", "+1-lam1-centred"),
    ]
    lengths = {"min_length": 2, "max_length": [9, 9]}
    assert made[3].changes == {"lam": 0.95, **lengths}
    assert made[5].changes == {"lam": 1.0, "value_coef": 0.0, **lengths}
    assert made[6].changes == {"lam": 1.0, "score.centring": "running_mean", **lengths}
    tasks = [pickle.loads(pickle.dumps(panel.task(TableTask()))) for panel in made]
    assert [task.value for task in tasks] == [1, -1, 1, -1, 1, -1, 1]
    assert len(panels(ComparisonSettings(), Options(extras=()))) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lengths": (3, 3)}, "1 <= fewest < most"),
        ({"values": ()}, "values must be different numbers"),
        ({"lams": (1.0, 1.0)}, "lams must be different"),
    ],
)
def test_impossible_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Options(**options)


def test_change_and_drift_by_hand():
    curve = np.array([[1.0] + [99.0] * 5 + [4.0] * 10, [2.0] + [99.0] * 5 + [1.0] * 10])
    assert change(curve).tolist() == [3, -1]
    assert change(np.array([[1.0, 5, 7]])).tolist() == [5]
    interval = Summary(mean=1, low=0.5, high=2, kind="95 % interval")
    assert drifts(interval) == "longer"
    assert drifts(replace(interval, low=-3, high=-1)) == "shorter"
    assert drifts(replace(interval, low=-3)) == "no"
    assert drifts(replace(interval, kind="range")) == "longer (range)"


@pytest.mark.slow
@pytest.mark.usefixtures("in_threads")
def test_the_script_runs_every_setting_once_and_writes_what_it_found(tmp_path):
    chosen = settings(tmp_path, steps=2, seeds=1)
    options = replace(ONE, values=(1.0, -1.0))
    done, printed = run(chosen, options)
    folder = tmp_path / "out" / "length_drift"
    assert {path.name for path in folder.iterdir()} == {"table.md", "table.csv", "drift.png", "drift.pdf"}
    assert sum(Image.open(folder / "drift.png").convert("L").histogram()[:128]) > 1000
    assert (folder / "table.md").read_text().count("\n| ") == 1 + 2 * 2
    assert "length at a constant score" in printed
    assert list(done.results) == ["+1-lam1", "-1-lam1"]
    for name, value in (("+1-lam1", 1), ("-1-lam1", -1)):
        assert set(done.results[name].curves["uniform"]["score"].ravel()) == {value}
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").glob("*/*/*/run.json")}
    assert len(runs) == 2 * 2
    run(chosen, options)
    assert runs == {path: path.stat().st_mtime_ns for path in runs}


def length_after(method, value, steps=12):
    """Mean length of the last responses of a policy trained at a constant score."""
    config = PPOConfig.from_paper(
        "positive_generation",
        learning_rate=0.05,
        rollout_batch_size=32,
        minibatch_size=8,
        lam=1.0,
        min_length=1,
        max_length=(12, 12),
        epochs=2,
    )
    reward = ConstantScore(reward=TokenReward(lambda prompts, responses: [0.0] * len(responses)), value=value)
    trainer = PPOTrainer(TablePolicy(), reward, method, config)
    for _ in range(steps):
        rollout = trainer.collect([[1]] * 32)
        trainer.update(trainer.estimate_returns(rollout, trainer.redistribute(rollout)))
        trainer.conclude(rollout)
    return float(trainer.evaluation_rollout([[1]] * 64).sequences.response_lengths.float().mean())


@pytest.mark.slow
def test_uniform_credit_grows_responses_worth_something_and_shrinks_the_others():
    torch.manual_seed(0)
    grown, shrunk = (length_after(Uniform(), value) for value in (1.0, -1.0))
    assert shrunk + 2 < grown
