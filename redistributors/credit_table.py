"""Put one frozen rollout through many methods: same responses, scores and values, so that only credit differs.

Nothing is trained, and no model runs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from redistributors.parts.credit import restricted
from redistributors.registry import REDISTRIBUTORS
from rlhf_core.advantages import ESTIMATORS
from rlhf_core.checks import check_gamma, check_placement, require_token_scores
from rlhf_core.config import PPOConfig
from rlhf_core.metrics import credit_metrics, critic_metrics
from rlhf_core.names import method_name, nearest
from rlhf_core.pages import heat_map
from rlhf_core.pages.credit_maps import credit_maps
from rlhf_core.pages.document import escaped
from rlhf_core.pages.heat_map import CreditMap
from rlhf_core.pages.token_texts import Decode
from rlhf_core.rewards import penalised
from rlhf_core.types import Redistributor, ReportsMetrics, Rollout

Named = str | Redistributor | Callable[[], Redistributor]
"""A method: its name, itself, or what makes it, as the registry's entries do."""
LONGEST_LABEL = 60
"""Characters of a label that is made of a method and its settings."""
DRAWN = 4
"""Responses that a notebook draws."""
COLUMNS = {
    "credited tokens": "credit_concentration",
    "sum error": "conservation_error",
    "explained variance": "explained_variance",
    "… over position": "explained_variance_over_position",
    "return variance": "return_variance",
    "advantage variance": "advantage_variance",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Credit:
    """The credit of one method for a rollout; tensors are in score units, 0 on padding."""

    token_scores: Float[Tensor, "batch response"]
    """The score, spread over the tokens."""
    rewards: Float[Tensor, "batch response"]
    """Token scores less the KL penalty."""
    returns: Float[Tensor, "batch response"]
    """The targets of a critic; equal to the values if the estimator needs no critic."""
    advantages: Float[Tensor, "batch response"]
    """Advantages of the config's estimator, not whitened."""
    figures: Mapping[str, float]
    """By the names a trainer logs them under: ``explained_variance`` and ``explained_variance_over_position`` of the
    rollout's values, ``credit_concentration`` (tokens), ``conservation_error``, the variances of returns and advantages
    (score units squared), and the method's own; what is undefined is left out."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CreditTable(Mapping[str, Credit]):
    """Every method's credit by its label, ``credits``, for the responses of ``rollout``.

    Printed, it is a table with a row for each method. A notebook draws it, with heat maps of the first responses, whose
    token ids ``decode`` turns into texts.
    """

    credits: Mapping[str, Credit]
    rollout: Rollout
    decode: Decode

    def __getitem__(self, label: str) -> Credit:
        if label not in self.credits:
            raise KeyError(f"no method {label!r}{nearest(label, self.credits)}; there are {', '.join(self.credits)}")
        return self.credits[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self.credits)

    def __len__(self) -> int:
        return len(self.credits)

    def __repr__(self) -> str:
        rows = self._lines()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def maps(self) -> list[CreditMap]:
        """A heat map of each response, for ``rlhf_core.pages.heat_map.write``, say."""
        return credit_maps(
            self.rollout, {label: credit.token_scores for label, credit in self.credits.items()}, self.decode
        )

    def _repr_html_(self) -> str:
        head, *rows = (f"<td>{'</td><td>'.join(map(escaped, line))}</td>" for line in self._lines())
        table = "".join(f"<tr>{row}</tr>" for row in rows)
        maps = self.maps()
        more = f"<p>{DRAWN} of {len(maps)} responses; .maps() has all.</p>" if len(maps) > DRAWN else ""
        drawn = "\n".join(map(heat_map.section, maps[:DRAWN]))
        head = head.replace("td>", "th>")
        return f"<style>{heat_map.CSS}</style><table><tr>{head}</tr>{table}</table>\n{drawn}\n{more}"

    def _lines(self) -> list[list[str]]:
        return [["method", *COLUMNS], *([label, *_cells(credit)] for label, credit in self.credits.items())]


def ids_as_texts(rows: Sequence[Sequence[int]]) -> list[str]:
    """Token ids as text, for a rollout without a known tokenizer."""
    return ["".join(f"⟨{token}⟩" for token in row) for row in rows]


def _cells(credit: Credit) -> list[str]:
    return [f"{credit.figures[name]:z.3g}" if name in credit.figures else "–" for name in COLUMNS.values()]


def compare_on(
    rollout: Rollout,
    methods: Iterable[Named] | Mapping[str, Named],
    *,
    config: PPOConfig | None = None,
    kl_coef: float | None = None,
    decode: Decode = ids_as_texts,
) -> CreditTable:
    """Every method's credit for ``rollout``; each method sees only the evidence that it asks for.

    ``methods``: names of the registry, instances, or both, or any of them by labels of your own; else the label is the
    name, or what is typed for the instance. A method that learns is compared as it is. ``config`` sets how advantages
    follow from token scores (``gamma``, ``lam``, ``advantages``); the default is ``PPOConfig()``. ``kl_coef`` is the
    penalty in score units per nat, by default the config's at the first step. ``decode`` makes texts of token ids where
    the table is drawn: ``policy.decode``, or ``policy.decode_with_special``.

    ``trainer.collect(prompts, methods=[...])`` collects a rollout that holds the evidence of all.

    Raises:
        KeyError: a name that the registry lacks.
        TypeError: what is not a redistributor.
        ValueError: no methods, two of one label, evidence that the rollout does not hold, a gamma that a method cannot
            take, or rows that the config's estimator cannot group.
        HealthError, FloatingPointError: token scores that break the contract.
    """
    made, config = _by_label(methods), config or PPOConfig()
    coef = config.kl.init_coef if kl_coef is None else kl_coef
    _require_evidence(made, rollout)
    credits = {label: _credit(one, rollout, config, coef) for label, one in made.items()}
    return CreditTable(credits=credits, rollout=rollout, decode=decode)


def _credit(method: Redistributor, rollout: Rollout, config: PPOConfig, kl_coef: float) -> Credit:
    check_gamma(method, config.gamma)
    own, estimator = restricted(rollout, method), ESTIMATORS[config.advantages]
    token_scores = method(own)
    require_token_scores(token_scores, own, method)
    check_placement(token_scores, own, method, config.gamma)
    rewards = penalised(token_scores, rollout.kl, kl_coef)
    experience = estimator.estimate(rewards, rollout, config)
    return Credit(
        token_scores=token_scores,
        rewards=rewards,
        returns=experience.returns,
        advantages=experience.advantages,
        figures={
            **credit_metrics(token_scores, rollout),
            **estimator.defined(critic_metrics(experience)),
            **(method.metrics(own) if isinstance(method, ReportsMetrics) else {}),
        },
    )


def _by_label(methods: Iterable[Named] | Mapping[str, Named]) -> dict[str, Redistributor]:
    if isinstance(methods, Mapping):
        made = {label: _method(one) for label, one in methods.items()}
    else:
        given = [(one, _method(one)) for one in ([methods] if isinstance(methods, str) else methods)]
        labels = [one if isinstance(one, str) else _label(method) for one, method in given]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(
                f"compare_on: {', '.join(twice)} is named twice; give labels, compare_on(rollout, {{...}})"
            )
        made = {label: method for label, (_, method) in zip(labels, given, strict=True)}
    if not made:
        raise ValueError("compare_on: no methods; name some, such as compare_on(rollout, ['sparse', 'uniform'])")
    return made


def _label(method: Redistributor) -> str:
    """A method as it is typed, or only its class if the settings would not fit a table."""
    label = method_name(method)
    return label if len(label) <= LONGEST_LABEL else type(method).__name__


def _method(named: Named) -> Redistributor:
    made = REDISTRIBUTORS[named] if isinstance(named, str) else named
    if isinstance(made, type | partial):
        made = made()
    if not isinstance(made, Redistributor):
        raise TypeError(f"compare_on: {made!r} is not a redistributor: that has needs, causal, conserving; see check")
    return made


def _require_evidence(methods: Mapping[str, Redistributor], rollout: Rollout) -> None:
    lacking = {label: sorted(map(repr, one.needs - rollout.evidence.keys())) for label, one in methods.items()}
    said = [f"{label} needs {', '.join(requests)}" for label, requests in lacking.items() if requests]
    if said:
        raise ValueError(
            f"compare_on: this rollout does not hold all evidence: {'; '.join(said)}. Collect one that does: "
            "trainer.collect(prompts, methods=[...]) with the methods themselves"
        )
