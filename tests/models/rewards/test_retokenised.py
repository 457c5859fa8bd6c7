"""A reward model with another tokenizer, against the texts told to it by hand."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from fakes import sequences_of, small_run, unchecked
from generated import tries
from hypothesis import given
from hypothesis import strategies as st
from texts import TEXTS, WORDS, byte_fallback, byte_level

from models.policy.loading import load_policy
from models.rewards.classifier_reward import ClassifierReward
from models.rewards.retokenised import RetokenisedReward
from models.texts.retokenising import Telling
from models.tiny import save_tiny, tiny_gpt2, tiny_gpt2_classifier, tiny_llama_classifier, tiny_tokenizer
from redistributors import Attention, IntegratedGradients, PrefixDifference, RewardAttention, Sparse
from redistributors.parts.attention_requests import AttentionRow
from rlhf_core import PPOTrainer
from rlhf_core.evidence import HiddenTap, PrefixScores
from rlhf_core.probe import Experiment, Variants
from rlhf_core.step_guard import UnusableRollout

POLICY = byte_level()
EOS = POLICY.eos_token_id
ROW = AttentionRow(source="reward")
PREFIXES = PrefixScores()


def judge_of(tokenizer, context=256, **settings):
    model = tiny_gpt2_classifier(vocab_size=len(tokenizer), context=context, **settings).double()
    return ClassifierReward(model, tokenizer, score="single_logit")


JUDGE = judge_of(byte_fallback(bos=True))
TELLING = Telling(add_special_tokens=True)


def bridge_of(judge=JUDGE, tokenizer=POLICY, telling=TELLING):
    return RetokenisedReward(
        reward=judge,
        tokenizer=tokenizer,
        eos_ids=(tokenizer.eos_token_id,),
        vocab_size=len(tokenizer),
        telling=telling,
        prefixes="boundary",
    )


BRIDGE = bridge_of()


def rows_of(*texts, finished=True, tokenizer=POLICY):
    """(prompt, response) as the policy would have read and written them."""
    end = [tokenizer.eos_token_id] if finished else []
    prompts, responses = ([tokenizer(text)["input_ids"] for text in side] for side in zip(*texts))
    sequences = sequences_of(prompts, [ids + end for ids in responses])
    return finished_rows(sequences) if finished else sequences


def finished_rows(sequences):
    return replace(sequences, finished=torch.ones(len(sequences), dtype=torch.bool))


def score_of(text, *, eos=True, judge=JUDGE):
    ids = judge.tokenizer(text)["input_ids"] + [judge.tokenizer.eos_token_id] * eos
    with torch.no_grad():
        return float(judge.model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, 0])


TALES = [("the cat", " sat on 日本"), ("once", " upon a 😀"), ("was there", "?"), ("é", "")]


def test_scores_are_those_of_the_texts():
    found = BRIDGE.score(rows_of(*TALES), frozenset()).scores.tolist()
    assert found == pytest.approx([score_of(p + r) for p, r in TALES], abs=1e-5)
    cut = BRIDGE.score(rows_of(*TALES[:3], finished=False), frozenset()).scores.tolist()
    assert cut == pytest.approx([score_of(p + r, eos=False) for p, r in TALES[:3]], abs=1e-5)


@pytest.mark.parametrize(
    ("telling", "finished", "eos"),
    [("finished", False, False), ("always", False, True), ("never", True, False), ("never", False, False)],
)
def test_eos_is_put_as_stated(telling, finished, eos):
    bridge = bridge_of(telling=Telling(add_special_tokens=True, eos=telling))
    found = bridge.score(rows_of(("the cat", " sat"), finished=finished), frozenset()).scores
    assert float(found) == pytest.approx(score_of("the cat sat", eos=eos), abs=1e-5)


def test_a_template_is_put_around_both():
    telling = Telling(add_special_tokens=True, prompt=lambda text: f"Human: {text} Assistant:", after=" ok?")
    found = bridge_of(telling=telling).score(rows_of(("the cat", " sat")), frozenset()).scores
    assert float(found) == pytest.approx(score_of("Human: the cat Assistant: sat ok?"), abs=1e-5)


def byte_by_byte(bridge, prompt, response, evidence):
    """Evidence of reward tokens, handed byte by byte to whatever policy token holds the byte. Independent of spans:
    each tokenizer's tokens are laid down as so many characters of a string that has one a byte."""
    reward, policy = bridge.reward.tokenizer, bridge.tokenizer
    told = reward(prompt + response)["input_ids"]
    names = reward.convert_ids_to_tokens(told)[1:]  # without BOS
    sizes = [1 if name.startswith("<0x") else len(name.replace("▁", " ").encode()) for name in names]
    sizes[0] -= names[0].startswith("▁")
    owners = [k for k, size in enumerate(sizes) for _ in range(size)][len(prompt.encode()) :]
    first = owners[0] if owners else len(names)
    wrote = policy.convert_ids_to_tokens(policy(response)["input_ids"])
    writers = [k for k, name in enumerate(wrote) for _ in name]  # a character of a byte-level token is a byte
    earned = [0.0] * (len(wrote) + 1)
    for token, amount in enumerate(evidence[: len(names) - first], start=first):
        for owner, writer in zip(owners, writers):
            if owner == token:
                earned[writer] += amount / owners.count(token)
    earned[-1] = evidence[len(names) - first]
    return earned


@tries(8)
@given(response=TEXTS)
def test_attention_comes_back_byte_by_byte_and_its_sum_is_kept(response):
    prompt = "the cat"
    sequences = rows_of((prompt, response))
    found = BRIDGE.score(sequences, frozenset({ROW})).evidence[ROW][0]
    told = BRIDGE.probe(sequences).told
    direct = JUDGE.score(told, frozenset({ROW})).evidence[ROW][0]
    assert float(found.sum()) == pytest.approx(float(direct.sum()), abs=1e-5)
    assert found.tolist() == pytest.approx(byte_by_byte(BRIDGE, prompt, response, direct.tolist()), abs=1e-5)


@tries(8)
@given(response=TEXTS, finished=st.booleans())
def test_prefix_scores_are_read_where_policy_tokens_start(response, finished):
    """Before a policy token: the score of the reward tokens that end at or before its first byte, alone."""
    prompt, tokenizer = "the cat", JUDGE.tokenizer
    sequences = rows_of((prompt, response), finished=finished)
    found = BRIDGE.score(sequences, frozenset({PREFIXES})).evidence[PREFIXES][0]
    told = tokenizer(prompt + response)["input_ids"]
    written = POLICY.convert_ids_to_tokens(POLICY(response)["input_ids"])
    starts = [sum(len(name) for name in written[:k]) for k in range(len(written) + finished)]
    for token, start in enumerate(starts):
        whole = (prompt + response).encode()[: len(prompt.encode()) + start]
        n = max(k for k in range(1, len(told) + 1) if whole.startswith(bytes_of(tokenizer, told[:k])))
        assert float(found[token]) == pytest.approx(float(score_ids(told[:n])), abs=1e-5)
    torch.testing.assert_close(BRIDGE.probe(sequences).prefix_scores()[0].float(), found)


def bytes_of(tokenizer, ids):
    names = tokenizer.convert_ids_to_tokens(ids)[1:]
    raw = b"".join(
        bytes.fromhex(name[3:5]) if name.startswith("<0x") else name.replace("▁", " ").encode() for name in names
    )
    return raw[1:] if raw.startswith(b" ") else raw


def score_ids(ids):
    with torch.no_grad():
        return JUDGE.model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, 0]


def test_beginnings_told_by_themselves_know_nothing_of_what_follows():
    """One byte a token, so that "the" stands open when its reward token is not: what comes after decides then."""
    letters = byte_level(vocab_size=257)
    sequences = rows_of(("the ", "cat"), ("the ", "caz"), tokenizer=letters)
    found = {}
    for prefixes in ("boundary", "retold"):
        bridge = replace(bridge_of(tokenizer=letters), prefixes=prefixes)
        found[prefixes] = bridge.score(sequences, frozenset({PREFIXES})).evidence[PREFIXES]
        torch.testing.assert_close(bridge.probe(sequences).prefix_scores().float(), found[prefixes])
    assert torch.equal(found["retold"][0, :3], found["retold"][1, :3])
    assert not torch.allclose(found["boundary"][0, :3], found["boundary"][1, :3])
    for row, word in enumerate(("cat", "caz")):
        wanted = [score_of(f"the {word[:t]}", eos=False) for t in range(4)]
        assert found["retold"][row].tolist() == pytest.approx(wanted, abs=1e-5)


def test_beginnings_leave_out_what_follows_a_response():
    telling = Telling(add_special_tokens=True, eos="always", prompt=lambda text: f"Q: {text} A:", after=" ok?")
    sequences = rows_of(("the cat", " sat"), finished=False)
    found = replace(bridge_of(telling=telling), prefixes="retold").probe(sequences).prefix_scores()
    assert float(found[0, 0]) == pytest.approx(score_of("Q: the cat A:", eos=False), abs=1e-5)


def test_without_an_eos_of_its_own_the_reward_model_has_read_all_before_the_policys():
    judge = judge_of(byte_fallback(bos=True, eos=False))
    bridge = bridge_of(judge)
    sequences = rows_of(("the cat", " sat"), ("the", " 日本"))
    scored = bridge.score(sequences, frozenset({PREFIXES, ROW}))
    last = sequences.response_lengths - 1
    torch.testing.assert_close(scored.evidence[PREFIXES][torch.arange(2), last], scored.scores)
    torch.testing.assert_close(bridge.probe(sequences).prefix_scores().float(), scored.evidence[PREFIXES])
    assert scored.evidence[ROW][torch.arange(2), last].tolist() == [0, 0]


@pytest.mark.parametrize(
    "method",
    [
        Attention(reading="rollout", layers="all"),
        Attention(reading="gradient"),
        IntegratedGradients(steps=2, max_steps=16, tolerance=1e-3),
    ],
    ids=["rollout", "gradient", "integrated"],
)
def test_attention_maps_and_paths_are_shared_out_by_bytes_with_their_sum(method):
    """Against the same tokenizer, to rounding, and another, whose response has the same sum."""
    sequences = rows_of(*TALES)
    judge = judge_of(POLICY)
    same = bridge_of(judge, telling=Telling(add_special_tokens=False)).score(sequences, method.needs).evidence
    for request, found in judge.score(sequences, method.needs).evidence.items():
        torch.testing.assert_close(same[request], found, atol=1e-5, rtol=1e-5)
    told = BRIDGE.probe(sequences).told
    crossed = BRIDGE.score(sequences, method.needs).evidence
    for request, found in JUDGE.score(told, method.needs).evidence.items():
        torch.testing.assert_close(
            *(x.reshape(len(sequences), -1).sum(1) for x in (crossed[request], found)), atol=1e-4, rtol=1e-4
        )


def test_the_same_tokenizer_on_both_sides_changes_nothing():
    judge = judge_of(POLICY)
    bridge = bridge_of(judge, telling=Telling(add_special_tokens=False))
    sequences = rows_of(*TALES)
    needs = frozenset({ROW, PREFIXES})  # a shorter text may be cut otherwise, so leave-one-out may differ
    ours, theirs = bridge.score(sequences, needs), judge.score(sequences, needs)
    torch.testing.assert_close(ours.scores, theirs.scores)
    for request in needs:
        torch.testing.assert_close(ours.evidence[request], theirs.evidence[request])
    for alpha, baseline in ((0.3, "zero"), (1.0, "null")):
        point, wanted = (one.probe(sequences).embedding_gradients(alpha, baseline) for one in (bridge, judge))
        torch.testing.assert_close(point.scores, wanted.scores)
        torch.testing.assert_close(point.contributions, wanted.contributions)


@dataclass(frozen=True, kw_only=True)
class LeftOut(Experiment):
    """What the score loses without each token."""

    source: str = "reward"
    uses: ClassVar = frozenset({"delete"})

    def measure(self, probe):
        mask = probe.sequences.response_mask
        keep = ~torch.eye(mask.shape[1], dtype=torch.bool).repeat(len(mask), 1, 1)
        whole = probe.scores(Variants(keep=torch.ones_like(keep[:, :1]), absent="delete"))
        lost = whole - probe.scores(Variants(keep=keep, absent="delete"))
        return torch.where(mask, lost, 0).float()


WITHOUT = LeftOut()


@tries(6)
@given(response=TEXTS)
def test_altered_responses_lose_policy_tokens(response):
    prompt = "the cat"
    sequences = rows_of((prompt, response))
    ids = sequences.responses()[0]
    found = BRIDGE.score(sequences, frozenset({WITHOUT})).evidence[WITHOUT][0]
    before = POLICY(prompt)["input_ids"]
    for left_out in range(len(ids)):
        kept = ids[:left_out] + ids[left_out + 1 :]
        text = POLICY.decode(before + kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        lost = score_of(prompt + response) - score_of(text, eos=left_out != len(ids) - 1)
        assert float(found[left_out]) == pytest.approx(lost, abs=1e-4)


def test_replaced_tokens_become_the_reward_tokenizers_null_token():
    sequences = rows_of(("the cat", " sat on"))
    width = sequences.response_ids.shape[1]
    keep = torch.ones(1, 2, width, dtype=torch.bool)
    keep[0, 1, 0] = False  # " sat", or its beginning
    rest = POLICY.decode(sequences.responses()[0][1:-1])
    probe = BRIDGE.probe(sequences)
    found = probe.scores(Variants(keep=keep, absent="replace"))[0].tolist()
    assert found == pytest.approx([score_of("the cat sat on"), score_of(f"the cat<unk>{rest}")], abs=1e-5)
    assert probe.cost.forwards == 2


def test_a_response_may_lose_all_its_tokens_and_equal_texts_are_scored_once():
    judge = judge_of(byte_fallback())
    sequences = rows_of(("cat", " sat"), ("cat", " on"))
    probe = bridge_of(judge, telling=Telling(add_special_tokens=False)).probe(sequences)
    keep = torch.zeros(2, 3, sequences.response_ids.shape[1], dtype=torch.bool)
    found = probe.scores(Variants(keep=keep, absent="delete"))
    assert found.tolist() == [[pytest.approx(score_of("cat", eos=False, judge=judge), abs=1e-5)] * 3] * 2
    assert probe.cost.forwards == 1


def test_embedding_gradients_keep_their_sum():
    sequences = rows_of(*TALES)
    probe = BRIDGE.probe(sequences)
    point = probe.embedding_gradients(0.5, "null")
    direct = JUDGE.probe(probe.told).embedding_gradients(0.5, "null")
    torch.testing.assert_close(point.contributions.sum(1), direct.contributions.sum(1))
    assert not point.contributions[~sequences.response_mask].any()
    assert (probe.cost.forwards, probe.cost.backwards) == (4, 4)


def test_rows_do_not_depend_on_each_other():
    sequences = rows_of(*TALES)
    needs = frozenset({ROW, PREFIXES, WITHOUT})
    together = BRIDGE.score(sequences, needs)
    for row in range(len(sequences)):
        alone = BRIDGE.score(sequences.select(torch.tensor([row])), needs)
        torch.testing.assert_close(alone.scores[0], together.scores[row])
        for request in needs:
            found = alone.evidence[request][0]
            torch.testing.assert_close(found, together.evidence[request][row, : len(found)], atol=1e-5, rtol=1e-5)
            assert not together.evidence[request][row, len(found) :].any()


def test_sampled_bytes_that_are_no_text_can_be_scored():
    """😀 without its last byte, as a policy may leave it."""
    ids = POLICY("the 😀", add_special_tokens=False)["input_ids"]
    sequences = finished_rows(sequences_of([ids[:1]], [[*ids[1:-1], EOS]]))
    scored = BRIDGE.score(sequences, frozenset({ROW}))
    text = POLICY.decode(ids[:-1])
    assert text.endswith("\ufffd")
    assert float(scored.scores) == pytest.approx(score_of(text), abs=1e-5)


def test_a_character_that_begins_in_the_prompt_is_the_responses():
    ids = POLICY("the 😀!", add_special_tokens=False)["input_ids"]
    cut = ids.index(POLICY.convert_tokens_to_ids("!")) - 2
    sequences = finished_rows(sequences_of([ids[:cut]], [[*ids[cut:], EOS]]))
    probe = BRIDGE.probe(sequences)
    assert (probe.said[0].prompt, probe.said[0].response) == ("the ", "😀!")
    scored = BRIDGE.score(sequences, frozenset({ROW}))
    assert float(scored.scores) == pytest.approx(score_of("the 😀!"), abs=1e-5)
    told = JUDGE.score(probe.told, frozenset({ROW})).evidence[ROW]
    assert float(scored.evidence[ROW].sum()) == pytest.approx(float(told.sum()), abs=1e-5)


def test_a_text_that_does_not_survive_is_refused_with_its_row_and_the_difference():
    lossy = judge_of(tiny_tokenizer(words=WORDS, vocab_size=32))
    bridge = bridge_of(lossy, telling=Telling(add_special_tokens=False))
    fine, lost = ("the cat", " sat on"), ("the cat", " sat: on")
    assert bridge.score(rows_of(fine), frozenset()).scores.isfinite().all()
    with pytest.raises(
        UnusableRollout, match=r"row 1: its text 'the cat sat: on' comes back as 'the cat <unk> on' \(they"
    ):
        bridge.score(rows_of(fine, lost), frozenset())
    ids = [POLICY(text)["input_ids"] for text in ("the cat", "The cat")]
    bridge.validate(ids[:1], 4)
    with pytest.raises(ValueError, match="row 1: its text 'The cat' comes back as '<unk> cat'"):
        bridge.validate(ids, 4)


def test_prompts_that_leave_no_room_or_no_token_are_refused():
    short = bridge_of(judge_of(byte_fallback(), context=12))
    with pytest.raises(ValueError, match=r"row 1: 8 prompt \+ 8 response tokens exceed the context 12"):
        short.validate([POLICY(text)["input_ids"] for text in ("a", "😀日")], 8)
    with pytest.raises(ValueError, match="row 0 is empty"):
        short.validate([[EOS]], 8)
    with pytest.raises(UnusableRollout, match=r"row 0 has no token before its response .* add_special_tokens=True"):
        short.score(finished_rows(sequences_of([[EOS]], [POLICY("cat")["input_ids"]])), frozenset())


def test_what_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match="eos must be one of finished, always, never, got 'sometimes'"):
        unchecked(lambda: Telling(add_special_tokens=True), eos="sometimes")
    with pytest.raises(ValueError, match="prefixes must be one of boundary, retold, got 'none'"):
        unchecked(bridge_of, prefixes="none")
    with pytest.raises(ValueError, match="eos is 'always', but the reward model's tokenizer has no EOS token"):
        bridge_of(judge_of(byte_fallback(eos=False)), telling=Telling(add_special_tokens=False, eos="always"))

    @dataclass(frozen=True, kw_only=True)
    class States(HiddenTap):
        """Any other reading of hidden states."""

    assert "only prefix scores" in BRIDGE.why_not(States())
    with pytest.raises(ValueError, match="only prefix scores"):
        BRIDGE.score(rows_of(TALES[0]), frozenset({States()}))


CONFIG = small_run()


@pytest.mark.parametrize("method", [Sparse(), RewardAttention(), PrefixDifference()])
@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_two_steps_of_ppo_across_tokenizers(tmp_path, kind, method):
    if kind == "bytes":
        tiny_gpt2(vocab_size=len(POLICY), std=0.1, eos_ids=EOS).save_pretrained(tmp_path)
        POLICY.save_pretrained(tmp_path)
        folder, judge = str(tmp_path), judge_of(byte_fallback(bos=True))
    else:
        folder = save_tiny(str(tmp_path), "llama", words=WORDS, std=0.1)
        model = tiny_llama_classifier(vocab_size=len(POLICY), context=256)
        judge = ClassifierReward(model, byte_level(), score="single_logit")
    policy = load_policy(folder)
    reward = RetokenisedReward.of(judge, policy, Telling(add_special_tokens=True))
    learner = PPOTrainer(policy, reward, method, CONFIG)
    for _ in range(2):
        figures = learner.step(["the cat sat", "once upon", "there was a", "the mat"])
        assert figures["conservation_error"] < 1e-5
        assert all(map(math.isfinite, figures.values()))


def test_a_real_tokenizer_judges_another_ones_texts(data_folder):
    """stories260K writes, with Llama's tokenizer; a classifier of byte-level BPE judges."""
    if not (data_folder / "stories260K").is_dir():
        pytest.skip("no pretrained model")
    policy = load_policy(str(data_folder / "stories260K"))
    reward = RetokenisedReward.of(judge_of(POLICY), policy, Telling(add_special_tokens=True))
    learner = PPOTrainer(policy, reward, RewardAttention(), CONFIG)
    rollout = learner.collect(["Once upon a time", "One day"] * 2)
    told = reward.probe(rollout.sequences).told
    direct = reward.reward.score(told, frozenset({ROW})).evidence[ROW]
    torch.testing.assert_close(rollout.evidence[ROW].sum(1), direct.sum(1), atol=1e-5, rtol=1e-5)
