"""Training keeps a model where it is: on the CPU beside cards, and on one card among several."""

import pytest
import torch
from transformers import Trainer

from models.tiny import tiny_gpt2
from models.training.settings import TrainingSettings
from models.training.supervised import _arguments, train_language_model

SETTINGS = TrainingSettings(steps=1, batch_size=2)


@pytest.fixture
def four_cards(monkeypatch):
    """A machine whose torch sees four cards that nothing may be put on."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def test_a_model_on_the_cpu_is_trained_there_beside_cards(four_cards, monkeypatch):
    used = []
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self: used.append((self.args.device, self.args.n_gpu)) or train(self))
    # torch's generators of cards that are none cannot be saved
    monkeypatch.setattr(torch.random, "fork_rng", lambda **_: torch.enable_grad())
    monkeypatch.setattr("models.training.supervised._generators_restored", torch.enable_grad)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    model = tiny_gpt2()
    figures = train_language_model(model, [[2, 3, 4], [5, 6]], [[2, 3]], SETTINGS)
    assert used == [(torch.device("cpu"), 0)]
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert figures["train_loss"] > 0


@pytest.mark.parametrize("card", ["cuda", "cuda:0"])
def test_a_model_on_a_card_has_one_of_four(four_cards, tmp_path, card):
    arguments = _arguments(SETTINGS, str(tmp_path), torch.device(card))
    assert (arguments.device, arguments.n_gpu, arguments.train_batch_size) == (torch.device("cuda:0"), 1, 2)


def test_a_model_on_a_later_card_is_not_moved_to_the_first(four_cards, tmp_path):
    with pytest.raises(ValueError, match=r"on cuda:2, and Trainer would move it to cuda:0; .*CUDA_VISIBLE_DEVICES"):
        _arguments(SETTINGS, str(tmp_path), torch.device("cuda:2"))
