"""Responses that a reward model's tokenizer does not give back: skipped and counted, or read as it reads them."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import sequences_of, small_run, unchecked
from texts import byte_fallback, byte_level
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers import models as cores
from transformers import PreTrainedTokenizerFast

from models.policy.loading import load_policy
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.retokenised import RetokenisedReward
from models.texts.retokenising import Telling, normalised
from models.tiny import tiny_gpt2_classifier, tiny_llama
from redistributors import PrefixDifference, RewardAttention, Sparse
from redistributors.parts.attention_requests import AttentionRow
from rlhf_core import PPOTrainer
from rlhf_core.probe import Variants
from rlhf_core.step_guard import UnusableRollout

LETTERS = [*"abcdefghijklmnopqrstuvwxyz ", "B", "\n", "é", "e", "\ufb01"]
ROW = AttentionRow(source="reward")


def letters(normalizer=None):
    """One token a letter, after whatever the normalizer makes of a text."""
    names = ["<unk>", "<eos>", *dict.fromkeys(LETTERS)]
    core = Tokenizer(cores.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    if normalizer is not None:
        core.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")


PLAIN = letters()
FOLDING = letters(
    normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace("\n", " ")]
    )
)
SAID = Telling(add_special_tokens=False, eos="never")


def bridge_of(tokenizer, reading, *, context=64, policy=PLAIN, telling=SAID):
    judge = ClassifierReward(
        tiny_gpt2_classifier(vocab_size=len(tokenizer), context=context).double(), tokenizer, score="single_logit"
    )
    return RetokenisedReward(
        reward=judge,
        tokenizer=policy,
        eos_ids=(policy.eos_token_id,),
        vocab_size=len(policy),
        telling=telling,
        prefixes="boundary",
        reading=reading,
    )


def rows_of(*pairs, tokenizer=PLAIN):
    prompts, responses = ([tokenizer(text)["input_ids"] for text in side] for side in zip(*pairs))
    return sequences_of(prompts, responses)


def test_a_lossy_reading_scores_what_comes_back_and_places_it_by_the_letters_it_was_made_of():
    bridge = bridge_of(FOLDING, "normalised")
    rows = rows_of(("ab", "cB\né\ufb01d"))
    scored = bridge.score(rows, frozenset({ROW}))
    ids = FOLDING.convert_tokens_to_ids(list("abcb efid"))
    assert float(scored.scores) == pytest.approx(float(bridge.reward.score_ids([ids])), abs=1e-6)
    probe = bridge.probe(rows)
    assert probe.told.responses() == [ids[2:]]
    theirs = bridge.reward.score(probe.told, frozenset({ROW})).evidence[ROW][0].tolist()
    ours = scored.evidence[ROW][0].tolist()
    c, b, space, e, f, i, d = theirs
    assert ours == pytest.approx([c, b, space, e, f + i, d], abs=1e-6)


def test_a_text_that_survives_reads_the_same_under_both_readings():
    rows = rows_of(("ab", "cd e"), ("a", "f"))
    exact, lossy = bridge_of(PLAIN, "exact"), bridge_of(PLAIN, "normalised")
    needs = frozenset({ROW})
    one, other = exact.score(rows, needs), lossy.score(rows, needs)
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(one.evidence[ROW], other.evidence[ROW])


def test_what_a_policy_may_sample_is_scored_or_makes_the_rollout_unusable():
    """A broken character, the text of a special token, nothing but special tokens, white space, too many tokens."""
    policy = byte_level(pad_token="<pad>")
    bytes_of = byte_fallback(bos=True)
    bridge = bridge_of(bytes_of, "exact", context=24, policy=policy, telling=Telling(add_special_tokens=True))
    half = policy("😀")["input_ids"][:2]
    typed = [token for letter in "</s>" for token in policy(letter)["input_ids"]]
    pad, eos = policy.pad_token_id, policy.eos_token_id
    for response in (
        half,
        typed,
        [pad],
        [pad, eos],
        [eos],
        policy(" \n\n ")["input_ids"],
        policy("\ufffd")["input_ids"],
    ):
        scored = bridge.score(sequences_of([policy("cat")["input_ids"]], [response]), frozenset({ROW}))
        assert scored.scores.isfinite().all()
        assert scored.evidence[ROW].isfinite().all()
    long = sequences_of([policy("cat")["input_ids"]], [policy("😀" * 6)["input_ids"]])
    bridge.validate(long.prompts(), 4)
    with pytest.raises(UnusableRollout, match=r"row 0 takes 2\d tokens of GPT2ForSequenceClassification, .* most 24"):
        bridge.score(long, frozenset())
    short = bridge.probe(sequences_of([policy("cat")["input_ids"]], [policy("aaaaaaaaaaaa")["input_ids"]]))
    keep = torch.zeros(1, 1, short.crossing.shape[1], dtype=torch.bool)
    assert short.scores(Variants(keep=keep, absent="delete")).isfinite().all()


def policy_folder(folder):
    tiny_llama(vocab_size=len(PLAIN)).save_pretrained(folder)
    PLAIN.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return policy_folder(tmp_path_factory.mktemp("policy"))


@pytest.mark.filterwarnings("ignore:the tokenizer of")
def test_a_run_goes_on_where_a_response_does_not_survive_and_again_when_it_is_resumed(saved, tmp_path):
    config = small_run(max_skipped=99)
    for steps in (3, 6):
        bridge = bridge_of(FOLDING, "exact")
        PPOTrainer(load_policy(saved), bridge, Sparse(), config).fit(
            ["ab", "cd", "e", "f"], steps, out=tmp_path / "run", resume=True
        )
    lines = [json.loads(line) for line in Path(tmp_path, "run", "metrics.jsonl").read_text().splitlines()]
    skipped = [json.loads(line) for line in Path(tmp_path, "run", "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    counted = [line["step"] for line in lines if line.get("skipped_rollout")]
    assert counted == [one["step"] for one in skipped if one["what"] == "rollout"]
    assert counted
    assert all("comes back as" in one["reason"] and "reading='normalised'" in one["reason"] for one in skipped)
    assert any(one["what"] == "evaluation" for one in skipped)  # before the first step too


@pytest.mark.parametrize("method", [Sparse(), RewardAttention(), PrefixDifference()], ids=lambda m: type(m).__name__)
def test_a_run_with_a_lossy_reading_skips_nothing(saved, tmp_path, method):
    bridge = bridge_of(FOLDING, "normalised")
    out = tmp_path / "run"
    PPOTrainer(load_policy(saved), bridge, method, small_run()).fit(["aB", "c\nd", "é", "f"], 2, out=out)
    assert not (out / "skipped.jsonl").exists()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_prompt_that_does_not_survive_is_refused_with_the_way_out():
    with pytest.warns(UserWarning, match="rewrites texts"):
        bridge = bridge_of(FOLDING, "exact")
    prompts = [PLAIN(text)["input_ids"] for text in ("ab", "aB")]
    with pytest.raises(ValueError, match=r"row 1: its text 'aB' comes back as 'ab' .*reading='normalised'"):
        bridge.validate(prompts, 4)
    replace(bridge, reading="normalised").validate(prompts, 4)


@pytest.mark.parametrize(
    ("normalizer", "known"),
    [
        (normalizers.Lowercase(), "the café"),
        (normalizers.NFKC(), "fifi"),
        (normalizers.BertNormalizer(), "the cafe"),
        (normalizers.Replace("\n", " "), "café  fi"),
        (normalizers.NFC(), ""),
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), ""),
        (None, ""),
    ],
)
def test_a_tokenizer_that_rewrites_is_known_when_it_is_loaded(normalizer, known):
    tokenizer = letters(normalizer)
    said = normalised(tokenizer)
    assert known in said
    assert bool(said) == bool(known)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bridge_of(tokenizer, "exact")
        bridge_of(tokenizer, "normalised")
    assert len(caught) == bool(known)


def test_a_reading_must_be_one_that_can_be_had():
    with pytest.raises(ValueError, match="reading must be one of exact, normalised, got 'lossy'"):
        unchecked(lambda: bridge_of(PLAIN, "exact"), reading="lossy")
