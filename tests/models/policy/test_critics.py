"""Critics apart from the policy: the same start, no gradient across, saved and restored to the bit."""

import json
from pathlib import Path

import pytest
import torch
from policies import LORA, NOTHING, rolled_out, sample, sft_adapter
from safetensors.torch import load_file

from models import load_policy
from models.policy.critic_loading import check_critic_settings
from models.policy.critics import FOLDER
from models.tiny import save_tiny

FAMILIES = ("gpt2", "llama")
CASES = [(family, kind) for family in FAMILIES for kind in ("lora", "adapter", "model", "model, lora")]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        base = save_tiny(root / family, family, dropout=0.1)
        save_tiny(root / f"{family}-reward", family, head="classifier", seed=5)
        sft_adapter(family, base, root / f"{family}-adapter")
    return root


def loaded(root: Path, family: str, kind: str, **settings):
    """An adapter as critic, of a fresh adapter or a copied one; or a model, beside all weights or an adapter."""
    folder = root / (f"{family}-adapter" if kind == "adapter" else family)
    settings |= {"lora": LORA} if "lora" in kind else {}
    model = kind.startswith("model")
    own = {"critic_model": str(root / f"{family}-reward")} if model else {}
    return load_policy(str(folder), critic="model" if model else "adapter", **own, **settings)


def moved(policy):
    """Every trained weight is another than at the start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture(params=CASES, ids=" ".join)
def policy(request, root):
    return loaded(root, *request.param)


def ids(parameters) -> set[int]:
    return set(map(id, parameters))


def test_policy_and_reference_start_equal_and_every_ratio_at_1(policy):
    s = sample(policy)
    first = rolled_out(policy, s)
    assert torch.equal(first.logprobs, policy.reference_logprobs(s))
    again = policy.evaluate(s, NOTHING)
    torch.testing.assert_close(again.logprobs.detach(), first.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.values.detach(), first.values, atol=1e-5, rtol=0)


def test_the_policy_is_the_one_without_it(root, policy, request):
    family, kind = request.node.callspec.params["policy"]
    folder = root / (f"{family}-adapter" if kind == "adapter" else family)
    plain = load_policy(str(folder), lora=LORA if "lora" in kind else None)
    s = sample(plain)
    assert torch.equal(rolled_out(policy, s).logprobs, rolled_out(plain, s).logprobs)
    assert len(policy.parameters()) - len(policy.critic.parameters()) == len(plain.parameters()) - 2


def test_no_gradient_crosses(policy):
    moved(policy)
    s = sample(policy)
    critic = policy.critic.parameters()
    own = [one for one in policy.parameters() if id(one) not in ids(critic)]
    policy.evaluate(s, NOTHING).values.square().sum().backward()
    assert all(one.grad is None for one in own)
    assert sum(one.grad is not None and bool(one.grad.any()) for one in critic) > 2
    for one in critic:
        one.grad = None
    policy.evaluate(s, NOTHING).logprobs.sum().backward()
    assert all(one.grad is None for one in critic)
    assert sum(one.grad is not None and bool(one.grad.any()) for one in own) > 2


def test_moving_one_leaves_the_other_where_it_is(policy):
    s = sample(policy)
    critic = policy.critic.parameters()
    before = rolled_out(policy, s)
    with torch.no_grad():
        for one in critic:
            one.add_(0.1)
    after = rolled_out(policy, s)
    assert torch.equal(after.logprobs, before.logprobs)
    assert not torch.equal(after.values, before.values)
    with torch.no_grad():
        for one in policy.parameters():
            if id(one) not in ids(critic):
                one.add_(0.1)
    last = rolled_out(policy, s)
    assert torch.equal(last.values, after.values)
    assert not torch.equal(last.logprobs, after.logprobs)


def test_a_value_is_that_of_the_state_before_its_token(policy):
    moved(policy)
    s = sample(policy)
    before = rolled_out(policy, s).values
    s.response_ids[0, 2] = (s.response_ids[0, 2] + 1) % 32
    after = rolled_out(policy, s).values
    torch.testing.assert_close(after[0, :3], before[0, :3], atol=1e-6, rtol=0)
    assert abs(float(after[0, 3] - before[0, 3])) > 1e-5
    assert torch.equal(after[1:], before[1:])


def test_checkpointing_changes_no_gradient(root, policy, request):
    checkpointed = moved(loaded(root, *request.node.callspec.params["policy"], gradient_checkpointing=True))
    for one in (moved(policy), checkpointed):
        evaluation = one.evaluate(sample(one), NOTHING)
        (evaluation.values.square().sum() + evaluation.logprobs.sum()).backward()
    for one, other in zip(policy.parameters(), checkpointed.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
    assert checkpointed.critic.checkpointed


def test_saved_and_loaded_again_and_restored_to_the_bit(root, policy, request, tmp_path):
    family, kind = request.node.callspec.params["policy"]
    moved(policy).save(str(tmp_path))
    s = sample(policy)
    wanted = rolled_out(policy, s)
    critic = "model" if kind.startswith("model") else "adapter"
    again = load_policy(str(tmp_path), critic=critic)
    restored = loaded(root, family, kind)
    restored.restore(str(tmp_path))
    assert wanted.values.abs().max() > 0
    for one in (again, restored):
        assert torch.equal(rolled_out(one, s).values, wanted.values)
        assert torch.equal(rolled_out(one, s).logprobs, wanted.logprobs)
    assert not load_policy(str(tmp_path)).value_head.linear.weight.any()  # which belongs to another trunk


def test_an_adapter_critic_holds_no_weight_of_the_base_twice(root):
    policy = loaded(root, "llama", "adapter")
    trunk = policy.critic.trunk
    held = {weight.data_ptr() for weight in policy.language_model.parameters() if not weight.requires_grad}
    own = [weight for weight in trunk.parameters() if weight.data_ptr() not in held]
    assert ids(own) == ids(one for one in trunk.parameters() if one.requires_grad)
    assert {name for name, weight in trunk.named_parameters() if weight.requires_grad} == {
        name for name, weight in policy.language_model.named_parameters() if weight.requires_grad
    }


def test_in_4_bits_too(root, tmp_path):
    base = save_tiny(tmp_path / "base", "llama", hidden_size=64, std=0.15)
    policy = load_policy(base, lora=LORA, four_bit=True, critic="adapter")
    s = sample(policy)
    assert torch.equal(rolled_out(policy, s).logprobs, policy.reference_logprobs(s))
    packed = [module for module in policy.language_model.modules() if hasattr(module, "quant_state")]
    twins = [module for module in policy.critic.trunk.modules() if hasattr(module, "quant_state")]
    assert packed
    assert all(one.weight is other.weight for one, other in zip(packed, twins, strict=True))
    assert all(one.quant_state is other.quant_state for one, other in zip(packed, twins, strict=True))
    moved(policy)
    policy.evaluate(s, NOTHING).values.square().sum().backward()
    critic = policy.critic.parameters()
    assert all(one.grad is None for one in policy.parameters() if id(one) not in ids(critic))
    assert any(bool(one.grad.any()) for one in critic if one.grad is not None)


def named(config: Path, labels: list[str]) -> None:
    """Name the labels of a classifier."""
    settings = json.loads(config.read_text())
    if labels:
        settings |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config.write_text(json.dumps(settings))


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_a_classifiers_head_is_where_values_begin(root, tmp_path, labels):
    """By hand; of a head that tells no score, at zero."""
    reward = save_tiny(tmp_path / "reward", "llama", head="classifier", num_labels=labels, seed=5)
    named(Path(reward, "config.json"), ["NEGATIVE", "POSITIVE"] if labels == 2 else [])
    policy = load_policy(str(root / "llama"), critic="model", critic_model=reward)
    score = load_file(Path(reward, "model.safetensors"))["score.weight"]
    wanted = torch.tensor({1: [1.0], 2: [-1.0, 1.0], 3: [0.0, 0.0, 0.0]}[labels]) @ score
    torch.testing.assert_close(policy.value_head.linear.weight[0].detach(), wanted)
    assert not policy.value_head.linear.bias.any()
    s = sample(policy)
    assert bool(rolled_out(policy, s).values.any()) == (labels < 3)


def test_a_saved_critic_and_a_language_model_are_critic_models(root, policy, request, tmp_path):
    family, kind = request.node.callspec.params["policy"]
    plain = load_policy(str(root / family), critic="model", critic_model=str(root / family))
    s = sample(plain)
    assert not rolled_out(plain, s).values.any()
    if not kind.startswith("model"):
        return
    moved(policy).save(str(tmp_path))
    other = load_policy(str(root / family), critic="model", critic_model=str(tmp_path / FOLDER))
    assert torch.equal(rolled_out(other, s).values, rolled_out(policy, s).values)


def test_prompts_that_only_the_policy_could_read_are_refused(root, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = AutoModelForCausalLM.from_pretrained(root / "gpt2")
    lm.config.n_positions = lm.config.max_position_embeddings = 16
    lm.transformer.wpe.weight = torch.nn.Parameter(lm.transformer.wpe.weight[:16].clone())
    lm.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(root / "gpt2").save_pretrained(tmp_path)
    policy = load_policy(str(root / "gpt2"), critic="model", critic_model=str(tmp_path))
    with pytest.raises(ValueError, match="16"):
        policy.validate([[2] * 10], 20)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"critic": "adapter"}, "give lora=LoraSettings"),
        ({"critic": "model"}, "needs critic_model"),
        ({"critic_model": "somewhere"}, "belongs to critic='model'"),
        ({"critic": "adapter", "lora": LORA, "critic_model": "somewhere"}, "belongs to critic='model'"),
        ({"critic": "model", "critic_model": "llama-adapter"}, "is an adapter.*merge"),
        ({"critic": "model", "critic_model": "bert"}, "BertModel cannot be a critic: its states before a token move"),
        ({"critic": "model", "critic_model": "words"}, "must share the policy's tokenizer"),
    ],
)
def test_critics_that_cannot_be_are_refused_with_the_way_out(root, settings, words):
    if settings.get("critic_model") == "bert":
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        BertForSequenceClassification(config).save_pretrained(root / "bert")
        load_policy(str(root / "llama")).tokenizer.save_pretrained(root / "bert")
    elif settings.get("critic_model") == "words":
        save_tiny(root / "words", "llama", vocab_size=40)
    if "critic_model" in settings:
        settings = settings | {"critic_model": str(root / settings["critic_model"])}
    with pytest.raises((ValueError, TypeError), match=words):
        load_policy(str(root / "llama"), **settings)


def test_another_word_for_a_kind_gets_the_nearest():
    with pytest.raises(ValueError, match=r"'adaptor'; did you mean 'adapter'\?"):
        check_critic_settings("adaptor", None)


def test_a_policy_saved_with_a_model_is_no_start_for_an_adapter(root, tmp_path):
    loaded(root, "llama", "model, lora").save(str(tmp_path))
    with pytest.raises(ValueError, match="no adapter; choose critic='model'"):
        load_policy(str(tmp_path), critic="adapter")


def test_another_critic_is_not_restored(root, tmp_path):
    loaded(root, "llama", "lora").save(str(tmp_path))
    policy = loaded(root, "llama", "model, lora")
    before = [one.clone() for one in policy.parameters()]
    with pytest.raises((ValueError, OSError)):
        policy.restore(str(tmp_path))
    with pytest.raises(OSError, match="value_head"):
        load_policy(str(root / "llama"), lora=LORA).restore(str(tmp_path))
    assert all(torch.equal(one, other) for one, other in zip(before, policy.parameters(), strict=True))
