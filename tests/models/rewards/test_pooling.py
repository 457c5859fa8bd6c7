"""``pooling="hf"`` reads what transformers reads where pad and EOS are one token, in scores and in evidence."""

import inspect

import pytest
import torch
from reward_rows import ReadRow, sequences
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from models import LoraSettings, load_reward_ensemble, load_reward_model
from models.rewards.classifier_head import require_pooling
from models.rewards.classifier_reward import ClassifierReward
from models.tiny import EOS_ID, llama_config, save_tiny, tiny_llama_classifier, tiny_tokenizer
from models.training.finetuning import adapted_reward_model
from models.weights.source import ModelSource
from rlhf_core.evidence import PrefixScores
from rlhf_core.probe import Variants
from rlhf_core.run.description import described
from rlhf_core.scorers.aggregation import Mean

ROWS = [
    ([5, 6, 7], [8, 9, EOS_ID]),
    ([10], [11]),
    ([12, EOS_ID], [14, EOS_ID, 16, EOS_ID, EOS_ID]),
    ([3, EOS_ID], [EOS_ID]),
    ([EOS_ID], [EOS_ID]),
]
BERT = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param, head="classifier", padding="eos")


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def scores(reward, rows=ROWS):
    return reward.score(sequences(rows), frozenset()).scores


@torch.no_grad()
def logits(theirs, rows):
    """Of each row alone, by transformers."""
    return torch.stack([theirs(input_ids=torch.tensor([row])).logits[0, 0] for row in rows])


def test_hf_is_what_transformers_gives_and_last_reads_the_eos(folder, theirs):
    hf, last = scores(load_reward_model(folder, pooling="hf")), scores(load_reward_model(folder))
    whole = [prompt + response for prompt, response in ROWS]
    torch.testing.assert_close(hf, logits(theirs, whole), atol=1e-5, rtol=0)
    assert theirs.config.pad_token_id == EOS_ID
    padded = torch.tensor([row + [EOS_ID] * (9 - len(row)) for row in whole])
    with torch.no_grad():
        batch = theirs(input_ids=padded, attention_mask=padded.ne(EOS_ID).long()).logits[:, 0]
    torch.testing.assert_close(hf[:2], batch[:2], atol=1e-5, rtol=0)  # where its mask hides no token of the row
    assert ((hf - last).abs() > 1e-2).tolist()[:4] == [True, False, True, True]
    with torch.no_grad():
        hidden = [theirs.base_model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in whole]
    torch.testing.assert_close(last, theirs.score(torch.stack(hidden))[:, 0].detach(), atol=1e-5, rtol=0)


def test_beginnings_and_shortened_responses_are_read_as_transformers_reads_them(folder, theirs):
    reward = load_reward_model(folder, pooling="hf")
    rows = sequences(ROWS)
    scored = reward.score(rows, frozenset({PrefixScores()})).evidence[PrefixScores()]
    torch.testing.assert_close(reward.probe(rows).prefix_scores(), scored, atol=1e-5, rtol=0)
    for row, (prompt, response) in enumerate(ROWS):
        beginnings = [prompt + response[:end] for end in range(len(response))]
        found = scored[row, : len(response)]
        torch.testing.assert_close(found, logits(theirs, beginnings), atol=1e-5, rtol=0)
    keep = torch.ones(1, 6, 5, dtype=torch.bool)
    keep[0, range(5), range(5)] = False
    prompt, response = ROWS[2]
    kept = [prompt + [token for token, stands in zip(response, one, strict=True) if stands] for one in keep[0]]
    found = reward.probe(sequences([ROWS[2]])).scores(Variants(keep=keep, absent="delete"))[0]
    torch.testing.assert_close(found, logits(theirs, kept), atol=1e-5, rtol=0)


def test_gradients_and_attention_are_those_of_the_token_that_is_read(folder, theirs):
    reward = load_reward_model(folder, pooling="hf")
    rows = sequences(ROWS)
    point = reward.probe(rows).embedding_gradients(1.0, "zero")
    torch.testing.assert_close(point.scores, scores(reward), atol=1e-5, rtol=0)
    assert not point.contributions[0, 2]  # EOS comes after what is read
    attended = reward.score(rows, frozenset({ReadRow()})).evidence[ReadRow()]
    read_at = reward.probe(rows).attention(
        lambda maps: maps.layout.read_positions[:, None].expand_as(maps.layout.response_mask).float()
    )
    assert read_at[:, 0].tolist() == [4, 1, 4, 0, 0]
    theirs.config._attn_implementation = "eager"
    for row, read in ((0, 4), (2, 4)):
        prompt, response = ROWS[row]
        with torch.no_grad():
            own = theirs(input_ids=torch.tensor([prompt + response]), output_attentions=True).attentions[-1]
        wanted = own[0, :, read, len(prompt) :].mean(0)
        torch.testing.assert_close(attended[row, : len(response)], wanted, atol=1e-5, rtol=0)


def test_the_pooling_stands_beside_the_score(folder):
    hf, last = load_reward_model(folder, pooling="hf"), load_reward_model(folder)
    kind = type(last.model).__name__
    assert repr(hf) == f"ClassifierReward({kind}, score=single_logit (pooling='hf', which skips token 1 at the end))"
    assert repr(last) == f"ClassifierReward({kind}, score=single_logit)"
    assert "pooling='hf', which skips token 1 at the end" in described(hf)
    assert described(last) != described(hf)


def test_a_pooling_that_cannot_be_is_refused():
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match=r"pooling must be one of last, hf, got 'lst'; did you mean 'last'"):
        inspect.unwrap(require_pooling)("lst")
    with pytest.raises(ValueError, match=r"LlamaForSequenceClassification: pooling='hf' skips the pad token .* none"):
        ClassifierReward(tiny_llama_classifier(), tokenizer, pooling="hf")
    tokenizer.cls_token = "w2"
    with pytest.raises(ValueError, match=r"BertForSequenceClassification: pooling='hf' is for decoders"):
        ClassifierReward(BertForSequenceClassification(BERT), tokenizer, pooling="hf")


class ReadsTheLast(LlamaForSequenceClassification):
    """Pools by the mask, as we do by default."""

    def forward(self, input_ids, attention_mask, return_dict=True):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self.score(hidden)[:, -1])


def test_a_class_that_pools_otherwise_is_refused():
    """Known by rows that end with the pad token; without them both would agree."""
    model = ReadsTheLast(llama_config(pad_id=EOS_ID))
    ClassifierReward(model, tiny_tokenizer())
    with pytest.raises(ValueError, match="ReadsTheLast: its head, applied to .* differs from its own forward pass"):
        ClassifierReward(model, tiny_tokenizer(), pooling="hf")


def test_an_adapter_is_pooled_by_the_pad_token_of_its_base(tmp_path):
    base = save_tiny(tmp_path / "base", "llama", padding="eos")
    trained = adapted_reward_model(ModelSource(name_or_path=base), LoraSettings(rank=2), seed=0, checkpointing=False)
    (tmp_path / "adapter").mkdir()
    trained.save(str(tmp_path / "adapter"))
    hf = load_reward_model(str(tmp_path / "adapter"), pooling="hf")
    assert hf.model.config.pad_token_id == EOS_ID
    whole = [prompt + response for prompt, response in ROWS]
    torch.testing.assert_close(scores(hf), logits(hf.model, whole), atol=1e-5, rtol=0)
    both = load_reward_ensemble([str(tmp_path / "adapter")], aggregate=Mean(), pooling="hf")
    torch.testing.assert_close(scores(both), scores(hf), atol=1e-5, rtol=0)
