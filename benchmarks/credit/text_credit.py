"""The credit of methods for given texts, without training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.credit.given_texts import Row, checked_rows
from benchmarks.runs.arms import parse_arms
from models.policy.causal_policy import CausalPolicy
from redistributors.credit_table import CreditTable, compare_on
from redistributors.registry import REDISTRIBUTORS
from rlhf_core.checks import check_id_range, check_needs, check_vocabulary, needs_of
from rlhf_core.config import PPOConfig
from rlhf_core.given_sequences import given_sequences
from rlhf_core.names import counted, method_name
from rlhf_core.pages import heat_map
from rlhf_core.pages.document import escaped
from rlhf_core.pages.heat_map import CreditMap
from rlhf_core.prompts import encoded, own_rows
from rlhf_core.rewards import ScoreMoments
from rlhf_core.rollout import measure
from rlhf_core.scorers.callables import as_reward_model
from rlhf_core.scorers.signatures import RewardFunction
from rlhf_core.types import Learns, Policy, Redistributor, RewardModel, Sequences

ALL = "all"
LEARNS = "it learns while a policy is trained, and has learned nothing here"


@dataclass(frozen=True, eq=False, kw_only=True)
class TextCredit:
    """Every method's credit for the same texts, and why other methods were left out. A notebook draws it."""

    table: CreditTable
    left_out: Mapping[str, str]
    """The reason by the method's name."""

    def maps(self) -> list[CreditMap]:
        """A heat map of each text."""
        return self.table.maps()

    def write(self, path: str | Path, title: str = "Credit, token by token") -> None:
        """Write a page with a heat map of each text."""
        texts, methods = len(self.table.rollout.sequences), len(self.table)
        about = f"{counted(texts, 'text')}, {counted(methods, 'method')}, nothing trained."
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if self.left_out:
            about += f" Left out, since texts and these models lack what they need: {', '.join(self.left_out)}."
        heat_map.write(title, self.maps(), Path(path), about)

    def __repr__(self) -> str:
        return "\n".join([repr(self.table), *left_out_lines(self.left_out)])

    def _repr_html_(self) -> str:
        return self.table._repr_html_() + "".join(f"<p>{escaped(line)}</p>" for line in left_out_lines(self.left_out))


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """A line for each method that was left out."""
    return [f"left out: {name}: {reason}" for name, reason in left_out.items()]


def credit_of_texts(
    policy: CausalPolicy,
    reward: RewardModel | RewardFunction,
    rows: Sequence[Row],
    methods: str | Sequence[str] = ALL,
) -> TextCredit:
    """What each method makes of the score of every text, as if ``policy`` had written it and ended it with EOS.

    ``rows``: mappings with ``prompt`` (a text or a chat), ``response`` (a text) and columns that a reward function asks
    for. ``reward``: a reward model or a callable, as for ``PPOTrainer``. ``methods``: names, with settings in brackets
    where wanted (``uniform(beta=0.8)``), as a list or one text; "all" is every registered method that works with these
    models, and leaves out the others with the reason. The response is encoded by itself, by the policy's tokenizer.

    Raises:
        ValueError: a row without prompt or response, or one that policy or reward model cannot read; a method that is
            unknown, or named and impossible with these models; models with different tokenizers.
        TypeError: a reward that is neither a reward model nor a callable on texts.
    """
    rows = checked_rows(rows)
    model = as_reward_model(reward, policy)
    check_vocabulary(policy, model)
    check_id_range(policy, model)
    made, left_out = possible_methods(named_methods(methods), policy, model)
    if left_out and methods != ALL:
        possible, _ = possible_methods(named_methods(ALL), policy, model)
        reasons = "; ".join(f"{label}: {reason}" for label, reason in left_out.items())
        raise ValueError(f"{reasons}. With these models there are {', '.join(possible)}")
    sequences = given_texts(policy, model, rows)
    needs = needs_of(made.values(), policy, model)
    rollout = measure(policy, model, sequences, needs, config=PPOConfig(), moments=ScoreMoments())
    return TextCredit(table=compare_on(rollout, made, decode=policy.decode_with_special), left_out=left_out)


def named_methods(methods: str | Sequence[str]) -> dict[str, Redistributor]:
    """Methods by label, from the ``methods`` of :func:`credit_of_texts`.

    Raises:
        ValueError: none, an unknown one, or one that would change PPO settings.
    """
    arms = parse_arms(tuple(REDISTRIBUTORS) if methods == ALL else methods)
    changing = [arm.label for arm in arms if arm.changes]
    if changing or not arms:
        raise ValueError(f"methods: {', '.join(changing) or 'none named'}; name methods without @, or give 'all'")
    return {arm.label: arm.redistributor() for arm in arms}


def possible_methods(
    methods: Mapping[str, Redistributor], policy: Policy, reward: RewardModel
) -> tuple[dict[str, Redistributor], dict[str, str]]:
    """Those that can credit texts with these models, and why the others cannot."""
    reasons = {label: _why_not(method, policy, reward) for label, method in methods.items()}
    possible = {label: method for label, method in methods.items() if not reasons[label]}
    return possible, {label: reason for label, reason in reasons.items() if reason}


def given_texts(policy: CausalPolicy, reward: RewardModel, rows: Sequence[Row]) -> Sequences:
    """The rows as the policy would have written them: EOS ends each response.

    Raises:
        ValueError: a prompt that policy or reward model refuses, or that leaves no room for its response.
    """
    prompts = [{name: value for name, value in row.items() if name != "response"} for row in rows]
    responses, ids = policy.encode_responses([row["response"] for row in rows]), []
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True), 1):
        if not response:
            raise ValueError(f"text {number}: the response is empty, and this policy has no EOS that would end it")
        room = replace(PPOConfig(), max_length=(len(response), len(response)))
        try:
            ids += encoded(policy, reward, [prompt], room)
        except ValueError as error:
            raise ValueError(f"text {number}: {error}") from error
    return replace(given_sequences(ids, responses, finished=bool(policy.eos_ids)), given=own_rows(prompts, 1))


def _why_not(method: Redistributor, policy: Policy, reward: RewardModel) -> str:
    """Why a method cannot credit texts with these models; empty if it can."""
    if isinstance(method, Learns):
        return LEARNS
    try:
        check_needs(method, policy, reward)
    except ValueError as error:
        return str(error).removeprefix(f"{method_name(method)} ")
    return ""
