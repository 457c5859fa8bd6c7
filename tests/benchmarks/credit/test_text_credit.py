"""Any text's credit without training: the policy's own tokens, EOS at the end, sums equal to the score, and what these
models cannot measure left out or refused."""

import pytest
import torch
from texts import byte_level

from benchmarks import credit_of_text
from benchmarks.credit.text_credit import LEARNS, credit_of_texts, given_texts
from models import load_policy, load_reward_model
from models.tiny import save_tiny
from redistributors import REDISTRIBUTORS, Sparse, Uniform
from rlhf_core import PPOConfig, PPOTrainer
from rlhf_core.given_sequences import given_sequences
from rlhf_core.rewards import ScoreMoments
from rlhf_core.rollout import Draw, measure, sample

ROWS = [{"prompt": "the cat", "response": " sat on the 😀 mat"}, {"prompt": "once", "response": ""}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A policy and a reward model that share a byte-level tokenizer."""
    tokenizer, found = byte_level(), {}
    for head in ("lm", "classifier"):
        found[head] = save_tiny(
            tmp_path_factory.mktemp(head),
            head=head,
            vocab_size=len(tokenizer),
            eos_ids=tokenizer.eos_token_id,
            context=128,
        )
        tokenizer.save_pretrained(found[head])
    return found


@pytest.fixture(scope="module")
def models(folders):
    return load_policy(folders["lm"]), load_reward_model(folders["classifier"])


def test_a_text_is_the_policys_tokens_and_its_eos(models):
    policy, reward = models
    sequences = given_texts(policy, reward, ROWS)
    first, second = sequences.responses()
    assert policy.decode([first]) == [" sat on the 😀 mat"]
    assert first[-1] == second[0] == policy.tokenizer.eos_token_id
    assert len(second) == 1
    assert sequences.prompts() == policy.encode(["the cat", "once"])
    assert sequences.finished.tolist() == [True, True]
    assert [row["prompt"] for row in sequences.given] == ["the cat", "once"]


def test_all_methods_that_can_be_measured_keep_the_score(models):
    policy, reward = models
    found = credit_of_texts(policy, reward, ROWS)
    assert set(found.table) | set(found.left_out) == set(REDISTRIBUTORS)
    assert set(found.left_out) == {"log-ratio", "potential-projection"}
    assert "no auxiliary model 'dpo'" in found.left_out["log-ratio"]
    assert found.left_out["potential-projection"] == LEARNS
    scores = reward.score(found.table.rollout.sequences, frozenset()).scores
    for credit in found.table.values():
        torch.testing.assert_close(credit.token_scores.sum(1), scores, rtol=1e-4, atol=1e-4)
    shown, empty = found.maps()
    assert "".join(shown.tokens) == " sat on the 😀 mat⟨eos⟩"
    assert empty.tokens == ("⟨eos⟩",)
    assert shown.prompt == "the cat"


def test_a_given_response_is_measured_as_a_sampled_one(models):
    policy, reward = models
    config = PPOConfig(rollout_batch_size=2, minibatch_size=2, min_length=0, max_length=(5, 5))
    drawn = sample(policy, [[3, 4, 5], [6]], config, Draw(seed=0, name="sampling", step=0))
    given = given_sequences(drawn.prompts(), drawn.responses(), finished=False)
    one, other = (
        measure(policy, reward, sequences, frozenset(), config=config, moments=ScoreMoments())
        for sequences in (drawn, given)
    )
    for name in ("logprobs", "values", "kl", "raw_scores"):
        assert getattr(one, name).equal(getattr(other, name)), name


def test_a_function_gets_the_prompt_the_response_and_its_columns(models):
    policy, _ = models
    heard = []

    def reward(prompts, responses, answer):
        heard.append((list(prompts), list(responses), list(answer)))
        return [float(len(response)) for response in responses]

    found = credit_of_texts(policy, reward, [{"prompt": "a", "response": "bcd", "answer": 7}], "sparse,uniform")
    assert heard[0] == (["a"], ["bcd"], [7])
    assert list(found.table) == ["sparse", "uniform"]
    assert found.maps()[0].score == 3.0


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("sparse,log-ratio", "log-ratio: .*no auxiliary model 'dpo'.*With these models there are sparse, uniform, abc"),
        ("potential-projection", "it learns while a policy is trained"),
        ("sparce", "no redistributor 'sparce'"),
        ("sparse@lam=1", "sparse-lam1; name methods without @"),
        ("", "none named"),
    ],
)
def test_a_method_that_cannot_be_measured_is_refused_where_it_is_named(models, methods, said):
    with pytest.raises(ValueError, match=said):
        credit_of_texts(*models, ROWS, methods)


def test_texts_that_do_not_fit_are_named(models):
    with pytest.raises(ValueError, match="text 2: prompts: row 0: .* exceed the context 128"):
        credit_of_texts(*models, [ROWS[0], {"prompt": "a", "response": "Q" * 200}])
    with pytest.raises(ValueError, match="text 1: .*is empty"):
        credit_of_texts(*models, [{"prompt": "", "response": "a"}])


def test_settings_of_methods_are_read(models):
    found = credit_of_texts(*models, ROWS, ["sparse", "uniform(beta=0.5)"])
    assert list(found.table) == ["sparse", "uniform-beta0.5"]
    half = found.table["uniform-beta0.5"].token_scores
    assert half.equal(Uniform(beta=0.5)(found.table.rollout))
    assert found.table["sparse"].token_scores.equal(Sparse()(found.table.rollout))


def test_it_is_what_a_trainer_would_collect_and_redistribute(models):
    policy, reward = models
    found = credit_of_texts(policy, reward, ROWS, "abc")
    method = REDISTRIBUTORS["abc"]()
    trainer = PPOTrainer(policy, reward, method, PPOConfig(rollout_batch_size=2, minibatch_size=2, max_length=(9, 9)))
    assert found.table["abc"].token_scores.equal(trainer.redistribute(found.table.rollout))


def test_it_is_drawn_in_a_notebook_and_written_out(models, tmp_path):
    found = credit_of_texts(*models, ROWS)
    drawn = found._repr_html_()
    assert drawn.count('<section class="credit">') == 2
    assert "left out: potential-projection: it learns" in drawn
    assert "left out: log-ratio" in repr(found)
    found.write(tmp_path / "new" / "page.html")
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert f"2 texts, {len(found.table)} methods, nothing trained. Left out, since" in page
    assert "what they need: log-ratio, potential-projection." in page


def test_the_command_prints_and_writes(folders, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(" sat on the mat\n")
    flags = ["--policy", folders["lm"], "--reward_model", folders["classifier"], "--text", str(tmp_path / "text.txt")]
    out = tmp_path / "page.html"
    credit_of_text.main([*flags, "--prompt", "the cat", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "the cat … score" in printed
    assert "integrated-gradients" in printed
    assert "left out: potential-projection" in printed
    assert out.read_text(encoding="utf-8").count('<section class="credit">') == 1
    with pytest.raises(SystemExit):
        credit_of_text.main([*flags, "--prompt", "the cat", "--out", str(out)])
    assert "page.html exists; give another file, or --overwrite true" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        credit_of_text.main(flags)
    assert "has no prompt: give one with --prompt" in capsys.readouterr().err


def test_what_is_misspelt_is_refused_before_a_model_is_read():
    with pytest.raises(ValueError, match="no redistributor 'sparce'"):
        credit_of_text.credit("no folder", "nor this", ROWS, "sparce")
    with pytest.raises(ValueError, match="my_rewards:concise names a function, and this command takes a classifier"):
        credit_of_text.CreditSettings(policy="a", reward_model="my_rewards:concise", text="b")
    with pytest.raises(ValueError, match="text 1 has no 'response'"):
        credit_of_text.credit("no folder", "nor this", [{"prompt": "a"}], "sparse")


def test_from_python_models_are_named_or_given(folders, models):
    by_name = credit_of_text.credit(folders["lm"], folders["classifier"], ROWS, "abc")
    given = credit_of_text.credit(*models, ROWS, ["abc"])
    assert by_name.table["abc"].token_scores.equal(given.table["abc"].token_scores)
