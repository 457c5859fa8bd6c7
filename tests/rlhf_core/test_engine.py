"""Buffer, batching, streams, rewards, config: the small parts of the engine."""

import inspect
import json
import math
import re
import sys
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import TablePolicy, ragged_sequences, sequences_of, unchecked

from rlhf_core import KLConfig, PPOConfig, RolloutBuffer, ScoreConfig, Sequences, TokenReward
from rlhf_core.batching import micro_batches, row_batches
from rlhf_core.optimizer import make_optimizer, make_schedule
from rlhf_core.prompts import encoded, shuffled_batch
from rlhf_core.random_streams import seed_of, stream, uniforms
from rlhf_core.rewards import ScoreMoments, normalise_scores, penalised
from rlhf_core.rollout import LENGTHS, Draw, sample
from rlhf_core.run.loggers import JSONLines, TensorBoard, WeightsAndBiases
from rlhf_core.scorers.callables import as_reward_model
from rlhf_core.types import TENSORS, Experience


def experience_of(sequences, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = sequences.response_mask
    tensors = [torch.where(mask, torch.randn(mask.shape, generator=generator), 0) for _ in range(4)]
    named = dict(zip(("logprobs", "values", "advantages", "returns"), tensors))
    return Experience(sequences=sequences, ref_logprobs=named["logprobs"], **named)


def test_sequences_refuse_masks_with_holes_and_empty_rows():
    good = ragged_sequences()
    parts = {name: getattr(good, name) for name in good.__dataclass_fields__}
    holes = good.response_mask.clone()
    holes[2, 1] = False
    with pytest.raises(ValueError, match="row 2 of response_mask is empty or not right-padded"):
        Sequences(**{**parts, "response_mask": holes})
    with pytest.raises(ValueError, match="row 0 of prompt_mask is empty or not left-padded"):
        Sequences(**{**parts, "prompt_mask": good.prompt_mask.flip(1)})
    for name in ("prompt_mask", "response_mask"):
        nothing = getattr(good, name).clone()
        nothing[1] = False
        with pytest.raises(ValueError, match=f"row 1 of {name} is empty"):
            Sequences(**{**parts, name: nothing})
    with pytest.raises(ValueError, match="row 0 has 4 response tokens with min_lengths 0 and max_lengths 3"):
        Sequences(**{**parts, "max_lengths": good.max_lengths - 1})


def test_select_trims_and_concatenate_pads():
    whole = ragged_sequences()
    parts = [whole.select(torch.tensor([1])), whole.select(torch.tensor([0, 2, 3]))]
    assert parts[0].response_ids.shape == (1, 1)
    again = Sequences.concatenate(parts)
    order = [1, 0, 2, 3]
    assert again.responses() == [whole.responses()[row] for row in order]
    assert again.prompts() == [whole.prompts()[row] for row in order]


def test_selected_moved_and_stacked_rows_know_their_tokens():
    whole = ragged_sequences()
    some = whole.select(torch.tensor([2, 0]))
    for sequences in (whole, some, Sequences.concatenate([some, whole]), some.to(torch.device("meta"))):
        real = some if sequences.prompt_ids.is_meta else sequences
        assert torch.equal(sequences.counts.prompt, real.prompt_mask.sum(1))
        assert torch.equal(sequences.counts.response, real.response_mask.sum(1))
        assert torch.equal(sequences.counts.total, real.lengths)


@pytest.mark.parametrize("budget", [1, 7, 12, 10_000])
def test_micro_batches_hold_every_row_once_within_the_budget(budget):
    sequences = ragged_sequences()
    lengths = sequences.prompt_lengths + sequences.response_lengths
    batches = [rows.tolist() for rows in micro_batches(sequences, budget)]
    assert sorted(sum(batches, [])) == [0, 1, 2, 3]
    for rows in batches:
        assert len(rows) == 1 or len(rows) * int(lengths[rows].max()) <= budget


def lengths_of(*lengths: int):
    return ragged_sequences((1,) * len(lengths), tuple(length - 1 for length in lengths))


def test_micro_batches_end_where_padding_would_cost_more_than_another_pass():
    """Up to an eighth of the budget (100 tokens) any row may join; beyond, only one of three quarters' length."""
    rows = [r.tolist() for r in micro_batches(lengths_of(80, 2, 76, 100, 3, 70), 800)]
    assert rows == [[3, 0, 2], [5, 4], [1]]
    assert [len(r) for r in micro_batches(lengths_of(*range(2, 101)), 10**6)] == [99]  # all small for the budget
    padded = sum(len(r) * max(r.tolist()) for r in micro_batches(lengths_of(*range(2, 101)), 1000))
    assert padded < 1.35 * sum(range(2, 101))


def test_rows_that_are_sampled_side_by_side_fill_the_budget():
    rows = [r.tolist() for r in row_batches(torch.tensor([5, 10, 1, 9, 40]), 20)]
    assert rows == [[4], [1, 3], [0, 2]]


def test_a_rollout_sampled_in_parts_is_the_same():
    policy, prompts = TablePolicy(), [[1], [2, 3], [4, 5, 1], [2], [3, 3, 3, 3]]
    draw = Draw(seed=3, name="sampling", step=2)
    settings = {"min_length": 2, "max_length": (3, 9), "minibatch_size": 1, "rollout_batch_size": 5}
    whole = sample(policy, prompts, PPOConfig(**settings), draw)
    parts = sample(policy, prompts, PPOConfig(**settings, sampling_tokens=11), draw)
    for name in TENSORS:
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


def test_an_error_in_a_part_says_which_rows_the_part_had():
    class Broken(TablePolicy):
        def sample(self, prompts, limits, uniforms, **settings):
            raise FloatingPointError("logits are NaN in rows [0]")

    settings = PPOConfig(min_length=1, max_length=(4, 4), minibatch_size=1, rollout_batch_size=2, sampling_tokens=5)
    with pytest.raises(FloatingPointError, match=r"in rows \[0\] \(rows are counted within the part \[1\] of"):
        sample(Broken(), [[1], [2, 3]], settings, Draw(seed=0, name="sampling", step=0))


def test_buffer_whitens_once_over_everything_and_keeps_rows_together():
    buffer = RolloutBuffer()
    first, second = experience_of(ragged_sequences()), experience_of(ragged_sequences((9, 2), (1, 2)), seed=1)
    buffer.add(first)
    buffer.add(second)
    assert len(buffer) == 6
    held = buffer.contents()
    batches = list(buffer.minibatches(4, np.random.default_rng(0)))
    assert [len(batch.sequences) for batch in batches] == [4, 2]
    white = torch.cat([batch.advantages[batch.sequences.response_mask] for batch in batches])
    assert float(white.mean()) == pytest.approx(0, abs=1e-6)
    assert float(white.var()) == pytest.approx(1, abs=1e-4)
    rows = {tuple(row): held.returns[i] for i, row in enumerate(held.sequences.responses())}
    for batch in batches:
        for i, row in enumerate(batch.sequences.responses()):
            assert torch.equal(batch.returns[i, : len(row)], rows[tuple(row)][: len(row)])


def test_an_empty_buffer_says_so():
    with pytest.raises(ValueError, match="nothing was added"):
        RolloutBuffer().contents()


def test_streams_are_named_and_stateless():
    assert stream(1, "prompts", 2).random() == stream(1, "prompts", 2).random()
    draws = {
        stream(*key).random() for key in ((1, "prompts", 2), (1, "lengths", 2), (2, "prompts", 2), (1, "prompts", 3))
    }
    assert len(draws) == 4


def test_the_seed_of_initial_weights_is_a_stream_of_the_runs_seed():
    assert seed_of(1, "init") == seed_of(1, "init")
    seeds = {seed_of(seed, name) for seed in range(20) for name in ("init", "prompts", "sampling")}
    assert len(seeds) == 60
    torch.Generator().manual_seed(max(seeds))
    assert all(seed >= 0 for seed in seeds)


def test_length_limits_and_uniforms_never_share_a_generator():
    """numpy takes (seed, name, 0) and (seed, name, 0, 0) for one key."""
    for limits, draws in (("lengths", "sampling"), ("evaluation_lengths", "evaluation")):
        assert LENGTHS[draws] == limits
        assert stream(1, limits, 0).random() != stream(1, draws, 0, 0).random()


def test_a_longer_limit_only_appends_uniforms():
    assert torch.equal(uniforms(0, "sampling", 3, 4, 5), uniforms(0, "sampling", 3, 6, 9)[:4, :5])


def test_prompts_are_used_once_per_epoch_in_a_seeded_order():
    ids = [[i] for i in range(10)]
    config = PPOConfig(rollout_batch_size=4, minibatch_size=4)
    seen = [p[0] for step in range(5) for p in shuffled_batch(ids, config, step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert shuffled_batch(ids, config, 1) == shuffled_batch(ids, config, 1)
    assert shuffled_batch(ids, replace(config, seed=1), 1) != shuffled_batch(ids, config, 1)


def encode(prompts):
    """As users meet it, who have no type checker at run time."""
    return inspect.unwrap(encoded)(TablePolicy(), TokenReward(lambda *_: []), prompts, PPOConfig())


def test_prompts_of_both_kinds_or_none_are_refused():
    with pytest.raises(ValueError, match="of one kind, got 1 texts and 1 lists of token ids"):
        encode(["1", [2]])
    with pytest.raises(ValueError, match="no prompts"):
        encode([])
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        encode(["1", ""])


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ("1 2", r"got one text; for a single prompt give \['1 2'\]"),
        ([1, 2, 3], r"prompt 0 must be a text, a list of token ids \(integers\), .*, got 1; prompt 1 .*, got 3$"),
        ([[1], ["a"]], r"prompt 1 must be .*, got \['a'\]"),
        ([[1], [2.0]], r"prompt 1 must be .*, got \[2.0\]"),
        ([None], "prompt 0 must be .*, got None"),
        ([[1], [[2]]], r"prompt 1 must be .*, got \[\[2\]\]"),
    ],
)
def test_what_is_no_list_of_prompts_is_shown(prompts, words):
    with pytest.raises(ValueError, match=words):
        encode(prompts)


def test_ids_may_be_tensors_and_arrays():
    assert encode([torch.tensor([1, 2]), torch.tensor([3])]) == [[1, 2], [3]]
    assert encode([np.array([1, 2]), (3,)]) == [[1, 2], [3]]


def test_running_moments_equal_those_of_all_scores():
    scores = torch.randn(30, generator=torch.Generator().manual_seed(0)) * 5 + 2
    moments = ScoreMoments()
    for part in scores.split([1, 4, 25]):
        moments = moments.including(part)
    assert moments.mean == pytest.approx(float(scores.double().mean()))
    assert moments.std == pytest.approx(float(scores.double().std()))
    assert ScoreMoments().including(scores[:1]).std == 0


def test_score_normalisation_by_hand():
    moments = ScoreMoments().including(torch.tensor([1.0, 3.0, 5.0]))  # mean 3, std 2
    raw = torch.tensor([7.0, 1.0])
    plain, scale = normalise_scores(raw, moments, ScoreConfig())
    assert (plain.tolist(), scale) == ([7.0, 1.0], 1.0)
    both, scale = normalise_scores(raw, moments, ScoreConfig(centring="running_mean", scaling="running_std", clip=1.5))
    assert (both.tolist(), scale) == ([1.5, -1.0], 0.5)


def test_penalty_by_hand():
    assert penalised(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, -1.0]]), 0.5).tolist() == [[0.0, 0.5]]


def test_callables_become_reward_models():
    sequences = sequences_of([[1, 2], [3]], [[4, 0], [5]])
    by_text = as_reward_model(
        lambda prompts, responses: [len(p) + len(r) for p, r in zip(prompts, responses)], TablePolicy()
    )
    assert by_text.score(sequences, frozenset()).scores.tolist() == [7, 3]  # joined, they are "1 2 4 0" and "3 5"
    by_id = TokenReward(lambda prompts, responses: [p[-1] * 10 + r[0] for p, r in zip(prompts, responses)])
    assert as_reward_model(by_id, TablePolicy()) is by_id
    assert by_id.score(sequences, frozenset()).scores.tolist() == [24, 35]
    with pytest.raises(ValueError, match=r"scores of shape \(1,\) for 2 responses"):
        TokenReward(lambda prompts, responses: [1.0]).score(sequences, frozenset())


def test_config_lists_every_problem_at_once():
    with pytest.raises(ValueError) as error:
        PPOConfig(gamma=1.5, lam=-1, minibatch_size=99, max_length=(4, 2), weight_decay=0.1, kl=KLConfig(target=0.0))
    for words in ("gamma must be in", "lam must be in", "minibatch_size 99", "max_length", "adamw", "kl.target"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": float("nan")},
        {"temperature": 0},
        {"clip_range": math.inf},
        {"epochs": 0},
        {"schedule": "linear"},
        {"schedule_steps": 5},
        {"kl": KLConfig(horizon=0.0)},
        {"score": ScoreConfig(clip=-1.0)},
        {"min_length": 129},
    ],
    ids=str,
)
def test_config_refuses(bad):
    with pytest.raises(ValueError, match="PPOConfig"):
        PPOConfig(**bad)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"gamma": None}, "gamma must be a number, got None"),
        ({"gamma": "1"}, "gamma must be a number, got '1'"),
        ({"lam": True}, "lam must be a number, got True"),
        ({"epochs": 2.5}, "epochs must be an integer, got 2.5"),
        ({"epochs": math.inf}, "epochs must be an integer, got inf"),
        ({"epochs": None}, "epochs must be an integer, got None"),
        ({"rollout_batch_size": 16.0}, "rollout_batch_size must be an integer, got 16.0"),
        ({"minibatch_size": True}, "minibatch_size must be an integer, got True"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"schedule_steps": 2.5}, "schedule_steps must be an integer or None, got 2.5"),
        ({"target_kl": "1"}, "target_kl must be a number or None, got '1'"),
        ({"schedule": "cosine"}, "schedule must be one of constant, linear, got 'cosine'"),
        ({"optimizer": ["adam"]}, r"optimizer must be one of adam, adamw, got \['adam'\]"),
        ({"max_length": 15}, r"max_length must be a pair of integers \(low, high\), got 15"),
        ({"max_length": (8,)}, r"max_length must be a pair .*, got \(8,\)"),
        ({"max_length": (8.5, 15.5)}, r"max_length must be a pair .*, got \(8.5, 15.5\)"),
        ({"max_length": [8, 15]}, r"max_length must be a pair .*, got \[8, 15\]"),
        ({"kl": {"init_coef": 0.1}}, "kl must be a KLConfig, got {'init_coef': 0.1}"),
        ({"kl": KLConfig}, "kl must be a KLConfig, got <class .*KLConfig'>"),
        ({"kl": unchecked(KLConfig, target=None)}, "kl.target must be a number, got None"),
        ({"kl": unchecked(KLConfig, adaptive=1)}, "kl.adaptive must be True or False, got 1"),
        ({"kl": unchecked(KLConfig, kind="mse")}, "kl.kind must be one of k1, abs, k2, k3, full, got 'mse'"),
        ({"score": unchecked(ScoreConfig, clip="1")}, "score.clip must be a number or None, got '1'"),
    ],
    ids=str,
)
def test_config_refuses_other_kinds_than_annotated(bad, words):
    with pytest.raises(ValueError, match=f"^PPOConfig: {words}$"):
        unchecked(PPOConfig, **bad)


def test_config_takes_whole_numbers_as_numbers_and_none_where_it_means_something():
    assert PPOConfig(gamma=1, learning_rate=1, score=ScoreConfig(clip=2), max_grad_norm=None, target_kl=np.float64(1))


def test_paper_settings_carry_over():
    config = PPOConfig.from_paper("positive_generation")
    assert (config.rollout_batch_size, config.min_length, config.max_length, config.max_grad_norm) == (
        16,
        8,
        (8, 15),
        None,
    )
    assert (config.gamma, config.lam, config.learning_rate, config.epochs, config.minibatch_size) == (
        1,
        0.95,
        1.41e-5,
        4,
        1,
    )
    assert (config.kl.init_coef, config.kl.target, config.kl.horizon, config.kl.kind) == (0.2, 6, 10_000, "k1")
    assert (config.clip_range, config.value_clip_range, config.value_coef, config.ratio_threshold) == (
        0.2,
        0.2,
        0.1,
        10,
    )
    assert PPOConfig.from_paper("summarisation").rollout_batch_size == 4
    dialogue = PPOConfig.from_paper("dialogue", seed=3)
    assert (dialogue.epochs, dialogue.max_length, dialogue.seed) == (10, (256, 256), 3)
    with pytest.raises(TypeError, match=r"no setting 'cliprange'; did you mean 'clip_range'\?"):
        PPOConfig.from_paper("dialogue", cliprange=0.1)
    assert PPOConfig.from_paper("dialogue", kl=KLConfig(init_coef=0.1)).kl.target == 6
    with pytest.raises(Exception, match="chess"):
        PPOConfig.from_paper("chess")  # type: ignore[arg-type]
    assert json.dumps(asdict(config))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("init_kl_coef", "kl=KLConfig(init_coef=...)"),
        ("target", "kl=KLConfig(target=...)"),
        ("adap_kl_ctrl", "kl=KLConfig(adaptive=...)"),
        ("kl_penalty", "kl=KLConfig(kind=...), where TRL's 'kl' is 'k1'"),
        ("score_clip", "score=ScoreConfig(clip=...)"),
        ("use_score_norm", "score=ScoreConfig(centring='running_mean')"),
        ("use_score_scaling", "score=ScoreConfig(scaling='running_std')"),
        ("early_stopping", "'target_kl', which is off at None"),
        ("whiten_rewards", "nothing at all, as rewards are never whitened"),
    ],
)
def test_the_papers_other_names_are_refused_with_ours(name, words):
    for make in (PPOConfig, partial(PPOConfig.from_paper, "dialogue")):
        with pytest.raises(TypeError, match=re.escape(f"PPOConfig: no setting {name!r}; did you mean {words}?")):
            make(**{name: 1})
    assert re.search(rf"\b{name}\b", inspect.getdoc(PPOConfig.from_paper))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PPOConfig(lr=1e-4), "PPOConfig: no setting 'lr'; did you mean 'learning_rate'?"),
        (lambda: PPOConfig(kl_coef=0.1), "did you mean kl=KLConfig(init_coef=...)?"),
        (lambda: PPOConfig(learning_rte=1e-4), "did you mean 'learning_rate'?"),
        (lambda: replace(PPOConfig(), epoch=1), "did you mean 'epochs'?"),
        (lambda: KLConfig(coef=0.1), "KLConfig: no setting 'coef'; did you mean 'init_coef'?"),
        (lambda: KLConfig(kl_coef=0.1), "did you mean 'init_coef'?"),
        (lambda: ScoreConfig(scale="running_std"), "ScoreConfig: no setting 'scale'; did you mean 'scaling'?"),
        (lambda: unchecked(PPOConfig, advantages="roo"), "prime, got 'roo'; did you mean 'rloo'?"),
        (lambda: unchecked(PPOConfig, kl=unchecked(KLConfig, kind="K3")), "got 'K3'; did you mean 'k3'?"),
    ],
)
def test_the_nearest_setting_is_named(make, words):
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        make()


def test_defaults_suit_a_run_of_ones_own():
    config = PPOConfig()
    assert config.max_length == (128, 128)
    steps = config.epochs * config.rollout_batch_size // config.minibatch_size
    assert (config.rollout_batch_size, config.min_length, config.max_grad_norm, steps) == (64, 1, 1.0, 16)


def rates(config, steps):
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], config)
    schedule = make_schedule(optimizer, config)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_learning_rate_schedules_by_hand():
    assert rates(PPOConfig(learning_rate=1.0), 3) == [1, 1, 1]
    linear = PPOConfig(learning_rate=1.0, schedule="linear", schedule_steps=4)
    assert rates(linear, 5) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    warm = PPOConfig(learning_rate=1.0, warmup_steps=3)
    assert rates(warm, 5) == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="nothing to train"):
        make_optimizer([], PPOConfig())


def test_json_lines_never_overwrite_and_never_write_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = JSONLines(path)
    lines.log(1, {"score": 0.5, "odd": float("nan")})
    lines.close()
    assert json.loads(path.read_text()) == {"step": 1, "score": 0.5, "odd": "nan"}
    with pytest.raises(FileExistsError, match=r"metrics\.jsonl exists"):
        JSONLines(path)


SAMPLE = {"step": 2, "prompt": "a\n# b", "response": "<b>c</b>", "score": 0.5, "length": 3, "finished": True}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_metric(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoard(str(tmp_path))
    logger.log(1, {"score": 0.5})
    logger.log(2, {"score": 1.5, "kl": 0.25})
    logger.log_samples(2, [SAMPLE, SAMPLE])
    logger.close()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("score")] == [(1, 0.5), (2, 1.5)]
    assert [event.value for event in events.Scalars("kl")] == [0.25]
    [text] = events.Tensors("samples/text_summary")
    assert text.step == 2
    shown = text.tensor_proto.string_val[0].decode()
    assert shown.count("score 0.5, 3 tokens\n\n    a\n    # b → <b>c</b>") == 2  # an indented block is no markup


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("torch.utils.tensorboard", lambda: TensorBoard("unused"), "tensorboard"),
        ("wandb", lambda: WeightsAndBiases("unused"), "wandb"),
    ],
)
def test_a_missing_extra_is_named(module, make, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"dense-rlhf\[{extra}\]"):
        make()


def test_weights_and_biases_gets_every_metric(monkeypatch):
    logged = []

    class Run:
        def log(self, metrics, step):
            logged.append((step, metrics))

        def finish(self):
            logged.append("finished")

    stub = SimpleNamespace(init=lambda project, name: Run(), Table=lambda columns, data: (columns, data))
    monkeypatch.setitem(sys.modules, "wandb", stub)
    logger = WeightsAndBiases("project")
    logger.log(3, {"score": 0.5})
    logger.log_samples(3, [SAMPLE])
    logger.close()
    assert logged == [(3, {"score": 0.5}), (3, {"samples": ([*SAMPLE], [[*SAMPLE.values()]])}), "finished"]
