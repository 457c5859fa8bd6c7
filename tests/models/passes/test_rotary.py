"""A row's numbers do not depend on its company or on the steps before it, whatever the rotary embedding looks at."""

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Phi3ForSequenceClassification,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
)

from models import load_policy, load_reward_model
from models.passes.forward import response_predictions
from models.passes.layout import right_padded as right_padded_rows
from models.passes.repeated_prompts import every_copy_read
from models.passes.rotary import TableARow, read_rows_alone
from models.passes.sampling import CachedDecoder, left_padded
from models.rewards.classifier_head import find_head, require_own_logits
from models.tiny import tiny_tokenizer
from models.training.objectives import language_loss
from models.training.settings import TrainingSettings
from models.training.supervised import train_language_model
from models.weights.language_model_check import check_language_model
from rlhf_core.types import Limits, Sequences

SWITCH = 16
SHAPE = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": SWITCH,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
PHI3 = {**SHAPE, "max_position_embeddings": 64, "original_max_position_embeddings": SWITCH, "rope_parameters": LONG}


def drawn_wide(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3, generator=generator)
    return model.eval()


def phi3() -> PreTrainedModel:
    return Phi3ForCausalLM(Phi3Config(**PHI3))


def phimoe() -> PreTrainedModel:
    rope = {**LONG, "short_mscale": 1.1, "long_mscale": 1.3}
    return PhimoeForCausalLM(PhimoeConfig(**{**PHI3, "rope_parameters": rope}, num_local_experts=4))


def llama(rope: dict[str, object], context: int) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=context, rope_parameters=rope))


def falcon() -> PreTrainedModel:
    return FalconForCausalLM(FalconConfig(**SHAPE, max_position_embeddings=SWITCH, rope_parameters=DYNAMIC))


def gemma3() -> PreTrainedModel:
    """One table a type of layer."""
    kinds = ["sliding_attention", "full_attention"]
    rope = {kinds[0]: {"rope_type": "default", "rope_theta": 1e4}, kinds[1]: DYNAMIC}
    here = {"max_position_embeddings": SWITCH, "layer_types": kinds, "sliding_window": 5, "head_dim": 8}
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **here, rope_parameters=rope))


def llama4(**changes: int) -> PreTrainedModel:
    """Complex tables; every other layer without positions, in chunks."""
    shape = {**SHAPE, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2, "num_hidden_layers": 4}
    config = Llama4TextConfig(**shape, max_position_embeddings=64, rope_parameters=LONG, attention_chunk_size=8)
    config.update(changes)
    return Llama4ForCausalLM(config)


MODELS = {
    "phi3": phi3,
    "phimoe": phimoe,
    "llama longrope": lambda: llama(LONG, 64),
    "llama dynamic": lambda: llama(DYNAMIC, SWITCH),
    "falcon dynamic": falcon,
    "gemma3 dynamic": gemma3,
    "llama4 longrope": llama4,
}


def right_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7)
    return ids, torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_row_beside_others_is_what_transformers_computes_of_it_alone(name: str) -> None:
    model = drawn_wide(MODELS[name]())
    rows = [torch.arange(n) % 29 + 2 for n in (5, 30, 16, 17, 24)]
    alone = [copy.deepcopy(model)(input_ids=row[None], use_cache=False).logits[0] for row in rows]
    ids, mask = right_padded(rows)
    together = copy.deepcopy(model)(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    assert float((together[0, :5] - alone[0]).abs().max()) > 1e-3, "its company moves it, or nothing is tested"
    read_rows_alone(model)
    for _ in range(2):  # a second time, after longer rows
        found = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        for row, wanted in zip(found, alone, strict=True):
            torch.testing.assert_close(row[: len(wanted)], wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e4},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": SWITCH},
    ],
)
def test_a_table_that_never_changes_is_left_alone(rope: dict[str, object]) -> None:
    model = llama(rope, 64)
    read_rows_alone(model)
    assert not any(isinstance(module, TableARow) for module in model.modules())


def test_the_names_of_what_is_saved_stay_and_twice_is_once() -> None:
    model = phi3()
    names = list(model.state_dict())
    read_rows_alone(model)
    read_rows_alone(model)
    assert list(model.state_dict()) == names
    assert sum(isinstance(module, TableARow) for module in model.modules()) == 1


def saved(model: PreTrainedModel, folder: Path) -> str:
    drawn_wide(model).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_sampling_is_the_teacher_forced_pass_across_the_switch(tmp_path: Path) -> None:
    """Row 0 stays below, row 1 crosses it, row 2 may cross it and need not, row 3 starts beyond."""
    policy = load_policy(saved(phi3(), tmp_path))
    prompts = [[2, 3, 4], list(range(5, 17)), [8, 9, 10, 11, 12, 13, 14], list(range(3, 23))]
    limits = Limits(min_lengths=torch.tensor([4, 8, 1, 8]), max_lengths=torch.tensor([4, 8, 12, 8]))
    uniforms = torch.rand(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    together = policy.sample(prompts, limits, uniforms)
    with torch.no_grad():
        logprobs = policy.evaluate(together, frozenset()).logprobs
    for row in range(4):
        part = torch.tensor([row])
        only = Limits(min_lengths=limits.min_lengths[part], max_lengths=limits.max_lengths[part])
        alone = policy.sample([prompts[row]], only, uniforms[part])
        n = int(alone.response_lengths)
        assert alone.response_ids[0].tolist() == together.response_ids[row, :n].tolist()
        with torch.no_grad():
            theirs = policy.evaluate(alone, frozenset()).logprobs[0]
            reference = policy.reference_logprobs(alone)[0]
        torch.testing.assert_close(logprobs[row, :n], theirs, rtol=0, atol=1e-5)
        torch.testing.assert_close(reference, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_every_cached_step_gives_the_logits_of_the_pass_over_the_whole_response() -> None:
    """Row 0 ends before the switch though it might have crossed it, row 1 crosses it."""
    model = drawn_wide(phi3())
    read_rows_alone(model)
    prompts, response = [[4, 5, 6, 7, 8], list(range(9, 20))], torch.tensor([[3, 9, 27, 2, 6, 18, 5], [2] * 7])
    ids, mask = left_padded(prompts, torch.device("cpu"))
    most = torch.tensor([12, 7])
    decoder = CachedDecoder(model, room=most)
    steps = [decoder.start(ids, mask), *(decoder.advance(tokens) for tokens in response[:, :-1].T)]
    sequences = Sequences(
        prompt_ids=ids,
        prompt_mask=mask,
        response_ids=response,
        response_mask=torch.ones_like(response, dtype=torch.bool),
        min_lengths=torch.ones_like(most),
        max_lengths=most,
        finished=torch.ones(2, dtype=torch.bool),
    )
    whole = response_predictions(model, right_padded_rows(sequences), sequences.response_mask).logits.view(2, 7, -1)
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["phi3", "llama dynamic"])
def test_copies_of_a_prompt_share_its_prefill_where_they_share_a_table(name: str) -> None:
    """Dynamic NTK has a table for every length beyond the switch, LongRoPE one for all."""
    model, shapes = drawn_wide(MODELS[name]()), list[int]()
    read_rows_alone(model)
    model.get_input_embeddings().register_forward_pre_hook(lambda _, given: shapes.append(len(given[0])))
    prompt, most = list(range(4, 10)), torch.tensor([2, 7, 20, 14, 20])
    tokens = torch.randint(2, 32, (12, 5), generator=torch.Generator().manual_seed(0))
    found = []
    for reading in (nullcontext, every_copy_read):
        with reading():
            decoder = CachedDecoder(model, room=most)
            steps = [decoder.start(*left_padded([prompt] * 5, torch.device("cpu"))), *map(decoder.advance, tokens)]
        found.append(torch.stack(steps))
    assert (shapes[0], shapes[13]) == (2 if name == "phi3" else 3, 5)
    for row, length in enumerate(most.tolist()):
        once, each = (steps[: length + 1, row] for steps in found)
        torch.testing.assert_close(once, each, rtol=1e-4, atol=2e-5)


def test_without_a_table_a_row_such_models_are_refused() -> None:
    with pytest.raises(ValueError, match="Phi3ForCausalLM cannot be a policy: its teacher-forced pass"):
        check_language_model(drawn_wide(phi3()), 32)
    classifier = drawn_wide(Phi3ForSequenceClassification(Phi3Config(**PHI3, num_labels=1)))
    with pytest.raises(ValueError, match=r"18 and 15 tokens score otherwise together than alone.*rotary"):
        require_own_logits(classifier, find_head(classifier), 1e-4)


@torch.no_grad()
def test_a_score_does_not_depend_on_company(tmp_path: Path) -> None:
    model = Phi3ForSequenceClassification(Phi3Config(**PHI3, num_labels=1))
    reward = load_reward_model(saved(model, tmp_path), score="single_logit")
    rows = [[2, 3, 4, 5], [6] * 20, [7, 8] * 8]
    plain = [float(model(input_ids=torch.tensor([row])).logits) for row in rows]
    torch.testing.assert_close(reward.score_ids(rows), torch.tensor(plain), rtol=0, atol=1e-5)
    assert [float(reward.score_ids([row])) for row in rows] == pytest.approx(plain, abs=1e-5)


def test_training_reads_rows_alone() -> None:
    """The loss of a padded batch is that of its rows one by one."""
    model = drawn_wide(phi3())
    fresh = copy.deepcopy(model)
    rows = [torch.arange(n) % 29 + 2 for n in (6, 26)]
    settings = TrainingSettings(steps=1, batch_size=2, learning_rate=1e-6)
    train_language_model(model, [row.tolist() for row in rows], [rows[0].tolist()], settings)
    assert any(isinstance(module, TableARow) for module in model.modules())
    read_rows_alone(fresh)
    ids, mask = right_padded(rows)
    labels = torch.where(mask, ids, -100)
    with torch.no_grad():
        together = language_loss(fresh, {"input_ids": ids, "attention_mask": mask, "labels": labels})
        short, long = (
            language_loss(
                fresh, {"input_ids": row[None], "attention_mask": torch.ones(1, len(row)), "labels": row[None]}
            )
            for row in rows
        )
    assert float(together) == pytest.approx((5 * float(short) + 25 * float(long)) / 30, abs=1e-5)


def test_a_switch_far_from_any_probe_is_brought_to_it() -> None:
    """Llama 4 scales its queries by the column, padding included, from ``floor_scale`` on: no short probe sees it."""
    model = drawn_wide(llama4())
    read_rows_alone(model)
    check_language_model(model, 32)  # 8,192 lies beyond its context
    near = drawn_wide(llama4(floor_scale=32))
    read_rows_alone(near)
    with pytest.raises(ValueError, match=r"sampling pass .* past its switches \(.*floor_scale.*lower in its config"):
        check_language_model(near, 32)
    assert {module.floor_scale for module in near.modules() if hasattr(module, "floor_scale")} == {32}
