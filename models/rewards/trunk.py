"""The trunk of a reward model: a sequence classifier of a language model, its head still random."""

from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from models.passes.rotary import read_rows_alone
from models.rewards.classifier_head import HEAD_NAMES
from models.weights.four_bit import keep_unpacked
from models.weights.integrity import require_intact
from models.weights.language_model import read_model, remove_randomness
from models.weights.source import DTYPES, ModelSource


def load_trunk(source: ModelSource, *, labels: int) -> PreTrainedModel:
    """A sequence classifier whose trunk comes from ``source``, without dropout, and whose head is random.

    Raises:
        ValueError: files that ``require_safe_files`` refuses or that cannot be read, weights of the
            trunk that are missing or that ``require_intact`` refuses, or an architecture without
            ``score`` head on the last token.
    """
    factory, dtype = AutoModelForSequenceClassification, DTYPES[source.dtype]
    model, loading = read_model(factory, source, dtype, wanted="trunk", whole=HEAD_NAMES, num_labels=labels)
    missing = [key for key in loading["missing_keys"] if key.split(".")[0] not in HEAD_NAMES]
    if missing or not isinstance(getattr(model, "score", None), nn.Module):
        raise ValueError(
            f"{source.name_or_path}: no trunk of a reward model that reads its last token "
            f"({type(model).__name__}; weights missing from the files: {missing[:3]})"
        )
    trunk_only = {key for key in loading["mismatched_keys"] if key[0].split(".")[0] not in HEAD_NAMES}
    require_intact(source.name_or_path, model, {**loading, "mismatched_keys": trunk_only}, heads=())
    remove_randomness(model)
    keep_unpacked(model)
    read_rows_alone(model)
    return model
