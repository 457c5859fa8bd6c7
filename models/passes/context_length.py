"""The longest text that a model was built for."""

from transformers import PreTrainedModel

LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len")


def context_length(model: PreTrainedModel) -> int | None:
    """Longest row the model was built for, in tokens; None if its config names no limit."""
    config = model.config.get_text_config(decoder=True)
    limits = [value for name in LIMITS if isinstance(value := getattr(config, name, None), int) and value > 0]
    # RoBERTa counts positions from padding_idx + 1, so its table is larger than its context
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    offset = getattr(table, "padding_idx", None)
    return min(limits, default=None) if offset is None or not limits else min(limits) - offset - 1
