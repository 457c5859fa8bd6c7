"""A policy in thirty lines, ragged batches, and rollouts to try redistributors on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from redistributors.trial_rollouts import made_up_evidence, part_of
from rlhf_core.config import KLConfig, PPOConfig
from rlhf_core.evidence import EvidenceRequest
from rlhf_core.types import Evaluation, Limits, Rollout, Sequences

EOS = 0


class TablePolicy:
    """Next-token logits and value depend on the previous token only; the reference is a frozen copy of the table."""

    compute_dtype = torch.float32

    def __init__(self, vocab: int = 6, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.nn.Parameter(torch.randn(vocab, vocab, generator=generator) * 0.5)
        self.value = torch.nn.Parameter(torch.zeros(vocab))
        self.reference = self.logits.detach().clone()

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        return [self.logits, self.value]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return [" ".join(map(str, row)) for row in ids]

    def validate(self, prompts: Sequence[Sequence[int]], max_length: int) -> None:
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {row} is empty")

    def provides(self, request: EvidenceRequest) -> bool:
        return False

    def save(self, folder: str) -> None:
        save_file({"logits": self.logits.detach(), "value": self.value.detach()}, f"{folder}/table.safetensors")

    def restore(self, folder: str) -> None:
        state = load_file(f"{folder}/table.safetensors")
        with torch.no_grad():
            self.logits.copy_(state["logits"])
            self.value.copy_(state["value"])

    def log_softmax(self, table: Tensor, previous: Tensor, banned: Tensor, temperature: float = 1.0) -> Tensor:
        logits = table[previous] / temperature
        eos = torch.arange(table.shape[0]) == EOS
        return logits.masked_fill(banned[..., None] & eos, -torch.inf).log_softmax(-1)

    def sample(
        self, prompts: Sequence[Sequence[int]], limits: Limits, uniforms: Tensor, *, temperature: float = 1.0
    ) -> Sequences:
        responses: list[list[int]] = []
        for row, prompt in enumerate(prompts):
            tokens: list[int] = []
            while len(tokens) < int(limits.max_lengths[row]) and EOS not in tokens:
                previous = torch.tensor((list(prompt) + tokens)[-1])
                banned = torch.tensor(len(tokens) < int(limits.min_lengths[row]))
                logprobs = self.log_softmax(self.logits, previous, banned, temperature or 1.0)
                cdf = logprobs.double().exp().cumsum(0)
                drawn = int((cdf <= uniforms[row, len(tokens)] * cdf[-1]).sum())
                tokens.append(drawn if temperature else int(logprobs.argmax()))
            responses.append(tokens)
        return sequences_of(prompts, responses, limits)

    def evaluate(
        self, sequences: Sequences, needs: frozenset[EvidenceRequest], *, temperature: float = 1.0
    ) -> Evaluation:
        previous, banned, mask = self._states(sequences)
        logprobs = self.log_softmax(self.logits, previous, banned, temperature)
        chosen = logprobs.gather(-1, sequences.response_ids[..., None])[..., 0]
        entropy = -(logprobs.exp() * logprobs.clamp(min=-1e9)).sum(-1)
        return Evaluation(
            logprobs=torch.where(mask, chosen, 0),
            values=torch.where(mask, self.value[previous], 0),
            entropy=torch.where(mask, entropy, 0),
            evidence={},
        )

    def reference_logprobs(self, sequences: Sequences, *, temperature: float = 1.0) -> Tensor:
        previous, banned, mask = self._states(sequences)
        logprobs = self.log_softmax(self.reference, previous, banned, temperature)
        return torch.where(mask, logprobs.gather(-1, sequences.response_ids[..., None])[..., 0], 0)

    def _states(self, sequences: Sequences) -> tuple[Tensor, Tensor, Tensor]:
        previous = torch.cat([sequences.prompt_ids[:, -1:], sequences.response_ids[:, :-1]], dim=1)
        steps = torch.arange(sequences.response_ids.shape[1])
        return previous, steps < sequences.min_lengths[:, None], sequences.response_mask


@dataclass(frozen=True)
class OfValues:
    """The critic of a table."""

    policy: TablePolicy
    apart: bool

    def parameters(self):
        return [self.policy.value]


class WithCritic(TablePolicy):
    """A table that tells its critic's parameters."""

    apart = True

    @property
    def critic(self):
        return OfValues(self, self.apart)


def unchecked(make: Callable[[], Any], **values: object) -> Any:
    """``make(**values)`` of a dataclass as users meet it, without the type checker of these tests in front."""
    built = make()
    for name, value in values.items():
        object.__setattr__(built, name, value)
    if hasattr(built, "__post_init__"):
        built.__post_init__()
    return built


def sequences_of(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], limits: Limits | None = None
) -> Sequences:
    """Pad token lists; EOS-terminated rows are finished."""
    p, r = max(map(len, prompts)), max(map(len, responses))
    lengths = torch.tensor([len(row) for row in responses])
    return Sequences(
        prompt_ids=torch.tensor([[0] * (p - len(row)) + list(row) for row in prompts]),
        prompt_mask=torch.tensor([[False] * (p - len(row)) + [True] * len(row) for row in prompts]),
        response_ids=torch.tensor([list(row) + [0] * (r - len(row)) for row in responses]),
        response_mask=torch.arange(r) < lengths[:, None],
        min_lengths=limits.min_lengths if limits else torch.zeros(len(prompts), dtype=torch.long),
        max_lengths=limits.max_lengths if limits else lengths,
        finished=torch.tensor([row[-1] == EOS for row in responses]),
    )


def ragged_sequences(lengths: Sequence[int] = (4, 1, 6, 3), prompt_lengths: Sequence[int] = (2, 5, 1, 3)) -> Sequences:
    """Rows of the given lengths, tokens 1 to 5."""
    tokens = torch.Generator().manual_seed(7)
    rows = [torch.randint(1, 6, (n,), generator=tokens).tolist() for n in (*prompt_lengths, *lengths)]
    return sequences_of(rows[: len(prompt_lengths)], rows[len(prompt_lengths) :])


def rollout_of(
    sequences: Sequences, scores: Sequence[float] | Tensor, evidence: Mapping[EvidenceRequest, Tensor] | None = None
) -> Rollout:
    """A rollout with random figures, 0 on padding, and the given scores."""
    generator = torch.Generator().manual_seed(3)
    mask = sequences.response_mask

    def noise() -> Tensor:
        return torch.where(mask, torch.randn(mask.shape, generator=generator), 0)

    values = torch.as_tensor(scores, dtype=torch.float32)
    return Rollout(
        sequences=sequences,
        logprobs=noise(),
        ref_logprobs=noise(),
        values=noise(),
        kl=noise(),
        raw_scores=values,
        scores=values,
        score_scale=1.0,
        evidence=evidence or {},
    )


def one_row(rollout: Rollout, row: int) -> Rollout:
    """One row of everything, without its padding."""
    return part_of(rollout, [row], int(rollout.sequences.response_lengths[row]))


def evidence_for(redistributor: Any, mask: Tensor, seed: int = 1) -> dict[EvidenceRequest, Tensor]:
    """Made-up evidence: weights in [0, 1) for attention, numbers of both signs for the rest; 0 on padding."""
    return made_up_evidence(redistributor.needs, mask, seed=seed)


def small_run(**changes: Any) -> PPOConfig:
    """Steps of four short responses."""
    return PPOConfig.from_paper(
        "positive_generation",
        learning_rate=1e-3,
        minibatch_size=4,
        rollout_batch_size=4,
        min_length=1,
        max_length=(3, 8),
        epochs=1,
        kl=KLConfig(init_coef=0.05),
        **changes,
    )


def unheard(prompts: Any, responses: Any) -> Any:
    """A reward function that nobody may call."""
    raise AssertionError("nobody asked for a score")
