"""Whether a method from elsewhere keeps the contract of a redistributor: asked before any run, and by ``check``."""

import warnings

from benchmarks.runs.arms import Arm
from redistributors import REDISTRIBUTORS
from redistributors.contract import contract_report
from rlhf_core.config import PPOConfig


def require_contract(arm: Arm, config: PPOConfig) -> None:
    """Run the tests of ``redistributors.check`` on a method from elsewhere, or on one that holds such a method.

    Those of the registry pass them in this project's own tests.

    With ``first_step_checks`` "warn", a broken contract is a warning, as evidence is made up for these tests, which a
    method may not expect.

    Raises:
        ValueError: the method breaks the contract; says how.
    """
    if is_registered(arm):
        return
    failed = [test for test in contract_report(arm.redistributor()).tests if test.result == "fail"]
    if not failed:
        return
    said = "; ".join(f"{test.name}: {test.seen}" for test in failed)
    broken = f"breaks the contract of a redistributor (redistributors.check): {said}"
    if config.first_step_checks == "warn":
        warnings.warn(f"{arm.label}: {broken}", RuntimeWarning, stacklevel=2)
        return
    raise ValueError(f"{broken}. (config.first_step_checks='warn' goes on regardless.)")


def is_registered(arm: Arm) -> bool:
    """Whether a method, and any that it holds, is one of this project's."""
    inner = (value for value in arm.settings.values() if isinstance(value, Arm))
    return (arm.method in REDISTRIBUTORS or arm.method.startswith("redistributors.")) and all(map(is_registered, inner))
