"""The same network computed with less: fused activations, a head multiplied in parts, a tied gradient written once."""

import copy
from collections import Counter

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.activations import GELUTanh, NewGELUActivation

from models import LoraSettings, load_policy, load_reward_model
from models.passes import fused as lean
from models.passes.fused import VocabularyHead, make_lean, share_tied_gradient
from models.tiny import save_tiny, tiny_gpt2, tiny_gpt2_classifier, tiny_llama

IDS = torch.tensor([[2, 3, 2, 5, 2], [7, 8, 9, 7, 30]])  # tokens that come again: their gradients add up
PARTS = pytest.mark.parametrize("part", [1024, 5, 1])


def pair():
    """A model as transformers computes it, and its lean copy."""
    plain = tiny_gpt2()
    ours = copy.deepcopy(plain)
    make_lean(ours)
    share_tied_gradient(ours)
    return plain, ours


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def require_same_gradients(plain, ours):
    wanted, found = gradients(plain), gradients(ours)
    assert wanted.keys() == found.keys()
    for name, gradient in found.items():
        assert not gradient.is_sparse
        torch.testing.assert_close(gradient, wanted[name], atol=1e-4, rtol=1e-4)


class Operations(TorchDispatchMode):
    """How often each operation ran."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@PARTS
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (0, 6)])
def test_a_head_in_parts_is_a_linear_layer(part, shape, monkeypatch):
    monkeypatch.setattr(lean, "VOCABULARY_PART", part)
    generator = torch.Generator().manual_seed(0)
    weight, factor = torch.randn(23, 6, generator=generator), torch.randn(*shape[:-1], 23, generator=generator)
    head, plain = VocabularyHead(torch.nn.Parameter(weight.clone())), weight.clone().requires_grad_()
    mine, theirs = (torch.randn(shape, generator=generator.manual_seed(1)).requires_grad_() for _ in range(2))
    found, wanted = head(mine), functional.linear(theirs, plain)
    torch.testing.assert_close(found, wanted)
    (found * factor).sum().backward()
    (wanted * factor).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(head.weight.grad, plain.grad)


def test_a_frozen_head_gets_no_gradient():
    head = VocabularyHead(torch.nn.Parameter(torch.ones(5, 3), requires_grad=False))
    hidden = torch.ones(2, 3, requires_grad=True)
    head(hidden).sum().backward()
    assert head.weight.grad is None
    assert hidden.grad.eq(5).all()


def test_a_lean_model_computes_the_same_and_is_saved_under_the_same_names():
    plain, ours = pair()
    torch.testing.assert_close(ours(IDS).logits, plain(IDS).logits, atol=1e-5, rtol=0)
    assert not any(isinstance(module, NewGELUActivation) for module in ours.modules())
    assert type(ours.lm_head) is VocabularyHead
    assert ours.lm_head.weight is ours.transformer.wte.weight
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert ours.config.to_dict() == plain.config.to_dict()


def test_a_lean_model_has_the_same_gradients_over_micro_batches():
    plain, ours = pair()
    for model in (plain, ours):
        for row in range(len(IDS)):
            ids = IDS[row : row + 1]
            model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).sum().backward()
    require_same_gradients(plain, ours)


def test_no_gradient_of_the_whole_vocabulary_is_made_for_the_tokens_read():
    plain, ours = pair()
    ran = {}
    for name, model in (("plain", plain), ("ours", ours)):
        with Operations() as ran[name]:
            model(IDS).logits.sum().backward()
    assert ran["plain"].names["embedding_dense_backward"] == 2  # tokens and positions
    assert ran["ours"].names["embedding_dense_backward"] == 1


def test_a_loss_that_does_not_reach_the_head_leaves_a_dense_gradient():
    plain, ours = pair()
    for model in (plain, ours):
        model.transformer(IDS).last_hidden_state.square().sum().backward()
    require_same_gradients(plain, ours)


def test_what_is_untied_or_frozen_keeps_its_own_gradient():
    untied, frozen = tiny_llama(), tiny_gpt2().requires_grad_(False)
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    for model in (untied, frozen):
        share_tied_gradient(model)
        assert not model.get_input_embeddings().sparse


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_what_is_loaded_is_lean(lora, tmp_path):
    policy = load_policy(save_tiny(str(tmp_path / "policy")), lora=lora)
    lm = policy.language_model
    assert lm.get_input_embeddings().sparse == (lora is None)
    assert type(lm.get_output_embeddings()) is VocabularyHead
    folder = save_tiny(str(tmp_path / "reward"), head="classifier")
    for model in (lm, load_reward_model(folder, score="single_logit").model):
        kinds = {type(module) for module in model.modules()}
        assert GELUTanh in kinds
        assert NewGELUActivation not in kinds


def test_a_model_that_only_shows_its_head_is_made_lean_too():
    class Shows(type(tiny_gpt2())):
        def get_output_embeddings(self):
            return self.lm_head

        def set_output_embeddings(self, new_embeddings):
            raise AttributeError("no way in")

    model = Shows(tiny_gpt2().config)
    make_lean(model)
    assert type(model.lm_head) is VocabularyHead


def test_a_head_without_a_weight_of_its_own_shares_nothing():
    model = tiny_gpt2()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    make_lean(model)
    share_tied_gradient(model)
    assert not model.get_input_embeddings().sparse


def test_a_head_works_under_autocast():
    head = VocabularyHead(torch.nn.Parameter(torch.ones(5, 3)))
    hidden = torch.ones(2, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        head(hidden).float().sum().backward()
    assert hidden.grad.eq(5).all()
    assert head.weight.grad.eq(2).all()


def test_a_head_with_a_bias_and_a_classifier_keep_what_they_have():
    biased = tiny_llama()
    biased.lm_head = torch.nn.Linear(biased.config.hidden_size, biased.config.vocab_size)
    make_lean(biased)
    assert type(biased.lm_head) is torch.nn.Linear
    classifier = tiny_gpt2_classifier()
    make_lean(classifier)
    assert type(classifier.score) is torch.nn.Linear
