"""One PPO step of ours, timed by phase: the work, the models, and a process that answers requests for steps.

:mod:`~benchmarks.cost.engine_processes` runs this module; a line of JSON in is a request, a line out its answer.
"""

import json
import resource
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from benchmarks.cost.architectures import lora_of, random_model, random_models, shape_of
from benchmarks.cost.cases import Case
from benchmarks.cost.equal_rows import equal_rows
from benchmarks.cost.gpt2_sizes import gpt2_of
from benchmarks.cost.machine_floor import ADAM_BYTES, Work, clock, flop_counter, measured_rates
from benchmarks.cost.memory_prediction import packed, predict
from benchmarks.cost.memory_settings import CONTEXT_BYTES, MemorySettings
from models.policy.causal_policy import CausalPolicy
from models.policy.loading import load_policy
from models.policy.sampling_noise import sampling_noise
from models.progress_bars import save_without_bars
from models.tiny import EOS_ID, tiny_tokenizer
from redistributors import REDISTRIBUTORS
from rlhf_core.checks import log_ratio_bounds
from rlhf_core.config import PPOConfig
from rlhf_core.random_streams import stream
from rlhf_core.run.freed_memory import keep_freed_memory
from rlhf_core.tf32 import allow_tf32
from rlhf_core.trainer import PPOTrainer

PHASES = ("generate", "log-probabilities", "score", "redistribute", "returns", "update", "optimizer")
PREDICTED = {
    "generate": ("sample",),
    "log-probabilities": ("old log-probs", "reference"),
    "score": ("reward",),
    "update": ("update",),
}
"""The phases of the memory prediction that each phase here consists of."""
PROMPT_LENGTHS = (2, 8)


class Engine:
    """Our trainer on a case's models, with a stopwatch on every phase."""

    def __init__(self, case: Case) -> None:
        self.case, self.device = case, torch.device(case.device)
        torch.manual_seed(0)
        context = max(1024, PROMPT_LENGTHS[1] + case.lengths[1])
        self.shape = gpt2_of(case.layers, case.hidden, case.vocab, context=context, num_labels=2, pad_id=EOS_ID)
        self.settings = memory_settings(case)
        policy, self.reward = random_models(self.settings, self.shape, self.shape, self.device)
        if case.loading:
            policy = loaded(case, self.settings, self.shape)
        self.reward.micro_batch_tokens = case.micro_batch_tokens
        config = PPOConfig.from_paper(
            "positive_generation",
            rollout_batch_size=case.prompts,
            minibatch_size=case.minibatch_size,
            micro_batch_tokens=case.micro_batch_tokens,
            min_length=case.lengths[0],
            max_length=case.lengths,
            first_step_checks="warn",
            **case.ppo,
        )
        self.trainer = PPOTrainer(policy, self.reward, REDISTRIBUTORS["abc"](), config)
        self.policy = cast(CausalPolicy, self.trainer.policy)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.peaks: defaultdict[str, int] = defaultdict(int)
        self.optimizer_steps = 0
        self._most = 0
        self._count: Callable[[], int] | None = None
        self._flops: defaultdict[str, int] = defaultdict(int)
        self._watch(self.policy, "sample", "generate")
        self._watch(self.policy, "evaluate", "log-probabilities")
        self._watch(self.policy, "reference_logprobs", "log-probabilities")
        self._watch(self.reward, "score", "score")
        self.trainer.optimizer.register_step_pre_hook(self._before_optimizer)
        self.trainer.optimizer.register_step_post_hook(self._after_optimizer)

    @property
    def weights(self) -> int:
        """Parameters of the policy's language model."""
        return sum(parameter.numel() for parameter in self.policy.language_model.parameters())

    def prompts(self, step: int) -> list[list[int]]:
        """The step's prompts, 2 to 8 tokens, as in the paper."""
        generator = stream(self.case.prompts, "prompts", step)
        lengths = generator.integers(*PROMPT_LENGTHS, endpoint=True, size=self.case.prompts)
        return [generator.integers(EOS_ID + 1, self.case.vocab, size=length).tolist() for length in lengths]

    def step(self) -> dict[str, Any]:
        """Take the next step; its prompts, seconds by phase, and the work that was done."""
        prompts = self.prompts(self.trainer.steps_done)
        self.seconds.clear()
        self.peaks.clear()
        self.optimizer_steps = 0
        start = clock(self.device)
        rollout = self.trainer.collect(prompts)
        with self._phase("redistribute"):
            token_scores = self.trainer.redistribute(rollout)
        with self._phase("returns"):
            experience = self.trainer.estimate_returns(rollout, token_scores)
        with self._phase("update"):
            self.trainer.update(experience)
        self.seconds["update"] -= self.seconds["optimizer"]
        self.trainer.conclude(rollout)
        return {
            "prompts": prompts,
            "cpu_seconds": clock(self.device) - start,
            "phases": dict(self.seconds),
            "tokens": int(rollout.sequences.response_mask.sum()),
            "lengths": rollout.sequences.response_lengths.tolist(),
            "optimizer_steps": self.optimizer_steps,
            "peak_bytes": self._peak(),
            "peaks": dict(self.peaks),
        }

    def predicted(self) -> dict[str, float]:
        """Bytes that the memory model expects on a card at each phase's fullest moment, without the CUDA context. It
        counts every row at its longest."""
        shapes = shape_of(self.shape, "lm", "the policy"), shape_of(self.shape, "classifier", "the reward model")
        found = predict(self.settings, *shapes)
        return {name: max(map(found.total, phases)) - CONTEXT_BYTES for name, phases in PREDICTED.items()}

    def noise(self) -> dict[str, float]:
        """Differences before anything is learned, in nats per token: each row as a minibatch of one against the rollout
        it came from, and what checks allow there; the policy against its reference; and the pass that drew the tokens
        against the one that gives their log-probabilities."""
        rollout = self.trainer.collect(self.prompts(0))
        rows, mask = torch.arange(len(rollout.sequences)), rollout.sequences.response_mask
        with torch.no_grad():
            alone = [self.policy.evaluate(rollout.sequences.select(row[None]), frozenset()) for row in rows]
        logprobs = torch.cat([one.logprobs[0] for one in alone])
        ratios = (logprobs - rollout.logprobs[mask]).abs()
        gaps = (rollout.logprobs - rollout.ref_logprobs).abs()
        drawn = sampling_noise(self.policy, rollout.sequences, temperature=self.trainer.config.temperature)[mask].abs()
        return {
            "max": float(ratios.max()),
            "mean": float(ratios.mean()),
            "allowed": log_ratio_bounds(self.policy.compute_dtype)[0],
            "reference": float(gaps.max()),
            "drawn max": float(drawn.max()),
            "drawn mean": float(drawn.mean()),
        }

    def count(self) -> dict[str, Any]:
        """Take the next step without timing it; its operations, and the least seconds of each phase on this machine."""
        answer, work = self.counted_step()
        rates = measured_rates(self.policy.compute_dtype, self.device)
        floor = {phase: one.least(rates) for phase, one in work.items()}
        return answer | {"flops": sum(one.flops for one in work.values()), "floor": floor, "rates": asdict(rates)}

    def counted_step(self) -> tuple[dict[str, Any], dict[str, Work]]:
        """A step, not timed, and what it asks of the machine at least, by phase."""
        with flop_counter() as counter:
            self._count = lambda: int(counter.get_total_flops())
            self._flops.clear()
            answer = self.step()
        self._count = None
        self._flops["update"] -= self._flops["optimizer"]
        return answer, {phase: Work(flops=self._flops[phase], bytes=b) for phase, b in self._bytes(answer).items()}

    def _bytes(self, answer: dict[str, Any]) -> dict[str, float]:
        """Bytes no implementation can avoid: the weights once per pass (forward, and backward beside the gradients it
        writes), one pass per token while sampling, and Adam's states."""
        width = torch.finfo(getattr(torch, self.case.dtype)).bits // 8
        weights, trained = width * self.weights, sum(p.numel() for p in self.policy.parameters())
        return {  # at best one pass holds every row
            "generate": weights * max(answer["lengths"]),
            "log-probabilities": 2 * weights,
            "score": weights,
            **{"redistribute": 0.0, "returns": 0.0},
            "update": answer["optimizer_steps"] * (2 * weights + width * trained),
            "optimizer": answer["optimizer_steps"] * ADAM_BYTES * trained,
        }

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        on_card = self.device.type == "cuda"
        start, before = clock(self.device), self._count() if self._count else 0
        if on_card:
            self._most = max(self._most, torch.cuda.max_memory_allocated(self.device))
            torch.cuda.reset_peak_memory_stats(self.device)
        yield
        self.seconds[name] += clock(self.device) - start
        if on_card:
            self.peaks[name] = max(self.peaks[name], torch.cuda.max_memory_allocated(self.device))
        if self._count:
            self._flops[name] += self._count() - before

    def _watch(self, owner: Any, method: str, phase: str) -> None:
        original = getattr(owner, method)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            if torch.is_grad_enabled() and method == "evaluate":  # a part of the update
                return original(*arguments, **keywords)
            with self._phase(phase):
                return original(*arguments, **keywords)

        setattr(owner, method, watched)

    def _before_optimizer(self, *_: Any) -> None:
        self._since = clock(self.device)

    def _after_optimizer(self, *_: Any) -> None:
        self.seconds["optimizer"] += clock(self.device) - self._since
        self.optimizer_steps += 1

    def _peak(self) -> int:
        if self.device.type == "cuda":
            self._most = max(self._most, torch.cuda.max_memory_allocated(self.device))
            return self._most
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def save(self, folder: str) -> dict[str, str | int]:
        """Policy and reward model as folders that another stack can load."""
        return saved(Path(folder), self.policy.language_model, self.reward.model)

    @torch.no_grad()
    def fixed(self, prompt: list[int], response: list[int]) -> dict[str, float]:
        """Summed log-probability and score of one given response, EOS not banned."""
        sequences = equal_rows(torch.tensor([prompt]), torch.tensor([response]))
        logprobs = self.policy.evaluate(sequences, frozenset()).logprobs
        score = self.reward.score(sequences, frozenset()).scores
        return {"logprob": float(logprobs.sum()), "score": float(score)}


def memory_settings(case: Case) -> MemorySettings:
    """What the memory of a case depends on."""
    return MemorySettings(
        dtype=case.dtype,
        autocast=case.autocast,
        four_bit=case.four_bit,
        sampling_dtype=case.sampling_dtype,
        training=case.training,
        gradient_checkpointing=case.loading.get("gradient_checkpointing", False),
        rollout_batch_size=case.prompts,
        minibatch_size=case.minibatch_size,
        micro_batch_tokens=case.micro_batch_tokens,
        reward_micro_batch_tokens=case.micro_batch_tokens,
        prompt_tokens=PROMPT_LENGTHS[1],
        response_tokens=case.lengths[1],
    )


def loaded(case: Case, settings: MemorySettings, shape: PreTrainedConfig) -> CausalPolicy:
    """The case's policy, saved with random weights and loaded with the case's own settings of ``load_policy``."""
    model = random_model(shape, "lm", torch.float32, False, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        save_without_bars(model, folder)
        tiny_tokenizer(vocab_size=case.vocab).save_pretrained(folder)
        return load_policy(
            folder,
            lora=lora_of(settings),
            four_bit=packed(settings, "policy"),
            dtype=case.dtype,
            autocast=None if case.autocast == "none" else case.autocast,
            sampling_dtype=None if case.sampling_dtype == "none" else case.sampling_dtype,
            device=case.device,
            **case.loading,
        )


def saved(folder: Path, policy: PreTrainedModel, reward: PreTrainedModel) -> dict[str, str | int]:
    """Save both models under ``folder``; where they are, and the id of EOS, as the published stack takes it."""
    for name, model in (("policy", policy), ("reward", reward)):
        save_without_bars(model, folder / name)
    return {"policy": str(folder / "policy"), "reward": str(folder / "reward"), "eos_id": EOS_ID}


def built(case: Mapping[str, Any]) -> Engine:
    """The engine of a case as JSON gives it."""
    of = Case(**{**case, "lengths": tuple(case["lengths"])})
    if of.keep_freed_memory:
        keep_freed_memory()
    if of.tf32 and not allow_tf32():
        raise ValueError("tf32: no card here has it; leave the case out")
    return Engine(of)


def main() -> None:
    """Build the case that the command line holds; each line that comes in names a method of the engine and what it is
    given, and gets a line with the answer."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    torch.set_num_threads(1)
    engine = built(json.loads(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(engine, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
