"""Is "sparse diverges when responses are long" sparsity, or the published stack's sampling mistakes?"""

from typing import Any

from benchmarks.experiments.settings import SamplingMismatch
from benchmarks.runs.script import Script


def experiment() -> Any:
    """What runs and is drawn, imported once the settings are read."""
    from benchmarks.experiments.sampling_mismatch import EXPERIMENT

    return EXPERIMENT


SCRIPT = Script(
    name="sampling_mismatch",
    summary="The same arms under our sampler and under the published stack's mistakes: EOS banned while sampling but "
    "not in the log-probabilities, and dropout while sampling.",
    defaults={"controls": ""},
    experiment=experiment,
    options=SamplingMismatch,
)

if __name__ == "__main__":
    SCRIPT.main()
