"""Tapped attention rows against each architecture's own eager attention."""

import copy
import gc
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from attention_families import (
    COLUMNS,
    FAMILIES,
    HEADS,
    LENGTHS,
    REFUSED,
    VOCAB,
    ReadRow,
    batch,
    build,
    own_attention,
    run,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from models import LoraSettings, load_policy
from models.attention import reader as attention
from models.attention import taps as attention_taps
from models.attention.layer_attention import Map, Projections
from models.attention.reader import AttentionReader, UnsupportedAttention
from models.passes.cache import cache_name
from redistributors import DecoderAttention
from redistributors.parts.attention_requests import AttentionRowMean
from rlhf_core.evidence import AttentionTap, ColumnTap, Layout, ValueTap


@dataclass(frozen=True, kw_only=True)
class ReadingRows(AttentionTap):
    """Sum over every row that predicts a response token, mean over heads."""

    source: str = "policy"

    def rows(self, layout: Layout) -> Tensor:
        return torch.where(layout.response_mask, layout.response_positions - 1, -1)

    def reduce(self, weights: Tensor, rows: Tensor, layout: Layout) -> Tensor:
        return weights.sum(2).mean(1).gather(1, layout.response_positions)


def expected_read_row(maps: Tensor, layout: Layout) -> Tensor:
    out = torch.zeros(layout.response_mask.shape)
    for i, t in layout.response_mask.nonzero().tolist():
        out[i, t] = maps[i, :, layout.read_positions[i], layout.response_positions[i, t]].mean()
    return out


def expected_reading_rows(maps: Tensor, layout: Layout) -> Tensor:
    out = torch.zeros(layout.response_mask.shape)
    for i, t in layout.response_mask.nonzero().tolist():
        for s in range(int(layout.response_mask[i].sum())):
            out[i, t] += maps[i, :, layout.response_positions[i, s] - 1, layout.response_positions[i, t]].mean()
    return out


@pytest.mark.parametrize("padded", ["ragged", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_eager_attention(family: str, padded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family)
    ids, mask, layout = batch()
    if padded == "full":
        mask = torch.ones_like(mask)
    maps = own_attention(model, ids, mask)
    reader = AttentionReader(model)
    reader.check(VOCAB)
    assert reader.n_layers == 2
    # several chunks of rows, so that adding them up is tested too
    monkeypatch.setitem(attention.CHUNK_CELLS, "cpu", len(LENGTHS) * HEADS * COLUMNS * 2)
    requests = [cls(layer=layer) for cls in (ReadRow, ReadingRows) for layer in (0, -1)]
    with reader.capture(requests, layout) as evidence:
        run(model, ids, mask)
    for request in requests:
        expected = expected_read_row if isinstance(request, ReadRow) else expected_reading_rows
        wanted = expected(maps[request.layer], layout)
        rows = (
            layout.response_mask if isinstance(request, ReadRow) else layout.response_mask & (mask.sum(1) > 1)[:, None]
        )
        assert (evidence[request] - wanted)[rows].abs().max() < 1e-5
        assert evidence[request].dtype == torch.float32
        assert not evidence[request].requires_grad
        assert (evidence[request][~layout.response_mask] == 0).all()
    assert maps[0].std() > 0.02, "attention of this test model is too flat to tell rows apart"


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama-gqa", (99, 99)),
        ("mistral", (3, 3)),
        ("gpt_neo", (99, 3)),
        ("gemma2", (3, 99)),
        ("falcon-alibi", (99, 99)),
    ],
)
def test_a_mean_over_rows_counts_the_rows_that_could_see_a_token(
    family: str, windows: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By causality and sliding window of each layer, with padding and without (and then without a mask), off tap,
    method and map alike, in several chunks."""
    window = {"mistral": {"sliding_window": 3}, "gpt_neo": {"window_size": 3}, "gemma2": {"sliding_window": 3}}
    model = build(family, **window.get(family, {}))
    ids, ragged, layout = batch()
    all_maps = {mask: own_attention(model, ids, mask) for mask in (ragged, torch.ones_like(ragged))}
    reader = AttentionReader(model)
    monkeypatch.setitem(attention.CHUNK_CELLS, "cpu", len(LENGTHS) * HEADS * COLUMNS * 2)
    for mask, maps in all_maps.items():
        requests = [AttentionRowMean(source="policy", layer=layer) for layer in (0, 1)]
        with reader.capture(requests, layout) as evidence:
            run(model, ids, mask)
        for request, reach in zip(requests, windows, strict=True):
            for i, t in layout.response_mask[:3].nonzero().tolist():
                key = int(layout.response_positions[i, t])
                rows = [int(p) - 1 for p in layout.response_positions[i][layout.response_mask[i]]]
                seeing = [row for row in rows if key <= row < key + reach]
                weights = [float(maps[request.layer][i, :, row, key].mean()) for row in seeing]
                wanted = sum(weights) / len(weights) if weights else 0.0
                assert float(evidence[request][i, t]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("family", REFUSED)
def test_what_fits_no_tap_is_refused_by_name_and_left_as_it_was(family: str) -> None:
    model = build(family)
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedAttention, match=type(model).__name__):
        AttentionReader(model)
    assert model.config._attn_implementation == before
    assert not any(module._forward_hooks for module in model.modules())


def test_gpt_oss_is_refused_for_its_sinks() -> None:
    with pytest.raises(UnsupportedAttention, match="sink that is not a token"):
        AttentionReader(build("gpt_oss"))


@pytest.mark.parametrize("change", ["scaling", "mask", "key"])
@pytest.mark.parametrize("family", ["llama-gqa", "gpt_neo"])
def test_check_refuses_a_tap_that_is_off(family: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = AttentionReader(build(family))
    honest = attention_taps.Projections

    def lying(**fields: Any) -> Any:
        fields[change] = {
            "scaling": fields["scaling"] * 1.01,
            "mask": None,
            "key": fields["key"].flip(1),
        }[change]
        return honest(**fields)

    monkeypatch.setattr(attention_taps, "Projections", lying)
    with pytest.raises(UnsupportedAttention, match=r"(Llama|GPTNeo)Model.*attention weights of layer \d differ"):
        reader.check(VOCAB)


def test_check_refuses_a_model_that_the_tap_changes() -> None:
    model = build("gemma2", attn_logit_softcapping=None)
    model._supports_sdpa = True
    AttentionReader(model).check(VOCAB)
    capped = build("gpt_oss")
    capped._supports_sdpa = True  # sdpa then drops the sinks without a word
    with pytest.raises(UnsupportedAttention, match="GptOssModel read through its attention interface"):
        AttentionReader(capped).check(VOCAB)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "falcon"])
def test_check_leaves_modes_and_implementation_alone(family: str) -> None:
    model = build(family).train()
    model.base_model.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    reader = AttentionReader(model)
    implementation = model.config._attn_implementation
    reader.check(VOCAB)
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == implementation
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "falcon"])
def test_nothing_is_left_after_the_context(family: str) -> None:
    model = build(family)
    ids, mask, layout = batch()
    reader = AttentionReader(model)
    attributes = [set(vars(module)) for module in model.modules()]
    plain = run(model, ids, mask)
    tapped, evidence = reader.read([ReadRow()], layout, lambda: run(model, ids, mask))
    kept = evidence[ReadRow()].clone()
    with pytest.raises(KeyError, match="mine"), reader.capture([ReadRow()], layout):
        raise KeyError("mine")
    assert torch.equal(plain, tapped)
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert not any(module._forward_hooks for module in model.modules())
    assert len(attention_taps._SINKS) == 0
    run(model, ids.flip(1), mask)
    assert torch.equal(evidence[ReadRow()], kept)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "falcon"])
def test_two_models_do_not_disturb_each_other(family: str) -> None:
    first = build(family)
    second = type(first)(first.config).eval()  # even on one configuration object
    readers = [AttentionReader(model) for model in (first, second)]
    ids, mask, layout = batch()
    alone = []
    for model, reader in zip((first, second), readers, strict=True):
        with reader.capture([ReadRow()], layout) as evidence:
            run(model, ids, mask)
        alone.append(evidence[ReadRow()])
    with readers[0].capture([ReadRow()], layout) as outer:
        with readers[1].capture([ReadRow()], layout) as inner:
            run(second, ids, mask)
            run(first, ids, mask)
        run(second, ids, mask)
    assert torch.equal(outer[ReadRow()], alone[0])
    assert torch.equal(inner[ReadRow()], alone[1])
    assert not torch.equal(alone[0], alone[1])


def test_a_layer_that_never_ran_is_an_error() -> None:
    model = build("gpt2")
    _, _, layout = batch()
    with (
        pytest.raises(RuntimeError, match=r"GPT2Model: attention of layer \[1\] never ran"),
        AttentionReader(model).capture([ReadRow()], layout),
    ):
        pass


def test_wrong_use_is_refused() -> None:
    model = build("gpt2")
    ids, mask, layout = batch()
    reader = AttentionReader(model)
    with pytest.raises(ValueError, match="attention layers 0 to 1"):
        reader.capture([ReadRow(layer=2)], layout)
    with reader.capture([ReadRow()], layout):
        run(model, ids, mask)
        with pytest.raises(RuntimeError, match="ran twice"):
            run(model, ids, mask)
    with (
        pytest.raises(RuntimeError, match="do not nest"),
        reader.capture([ReadRow()], layout),
        reader.capture([ReadRow()], layout),
    ):
        pass
    cache = model(input_ids=ids[:, :6], use_cache=True)[cache_name(model)]
    with pytest.raises(RuntimeError, match="KV cache"), reader.capture([ReadRow()], layout):
        model(input_ids=ids[:, 6:], **{cache_name(model): cache})


class Largest(TorchDispatchMode):
    """The largest tensor any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple) else (result,):
            self.numel = max(self.numel, item.numel() if isinstance(item, Tensor) else 0)
        return result


@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "gptj"])
def test_no_map_is_made(family: str) -> None:
    """For GPT-J the model makes its own map; the tap must add nothing of that size."""
    model = build(family, hidden_size=8 * HEADS, vocab_size=VOCAB)
    columns = 100
    ids = torch.full((2, columns), 3)
    mask = torch.ones_like(ids)
    layout = Layout(
        response_positions=torch.arange(columns - 5, columns).expand(2, 5),
        response_mask=torch.ones(2, 5, dtype=torch.bool),
        read_positions=torch.full((2,), columns - 1),
    )
    reader = AttentionReader(model)
    projections = attention_taps.Projections(
        query=torch.randn(2, HEADS, columns, 8),
        key=torch.randn(2, 2, columns, 8),
        value=torch.randn(2, 2, columns, 8),
        scaling=1.0,
        mask=None,
        causal=True,
        log_totals=None,
    )
    with Largest() as tap_alone:
        attention._measure(projections, ReadRow(), layout)
    assert tap_alone.numel < 2 * HEADS * columns * columns / 10
    if family == "gptj":
        return
    mask[0, :3] = 0  # padding, so that the mask is a tensor
    with Largest() as largest, reader.capture([ReadRow(layer=0), ReadRow()], layout):
        run(model, ids, mask)
    assert largest.numel < 2 * HEADS * columns * columns


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # of PEFT's making
@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "gptj"])
def test_through_peft(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = build(family, AutoModelForCausalLM)
    targets = ["c_attn"] if family == "gpt2" else ["q_proj", "k_proj"]
    wrapped = get_peft_model(
        model, LoraConfig(target_modules=targets, init_lora_weights=False, fan_in_fan_out=family == "gpt2")
    )
    wrapped.eval()
    ids, mask, layout = batch()
    maps = wrapped(input_ids=ids, attention_mask=mask.long())  # before: plain, no tap
    reader = AttentionReader(wrapped)
    reader.check(VOCAB)
    with reader.capture([ReadRow()], layout) as evidence:
        after = wrapped(input_ids=ids, attention_mask=mask.long())
    assert torch.equal(maps.logits, after.logits)
    eager = copy.deepcopy(wrapped)
    eager.get_base_model().config._attn_implementation = "eager"
    own = eager(input_ids=ids, attention_mask=mask.long(), output_attentions=True).attentions[-1]
    assert (evidence[ReadRow()] - expected_read_row(own, layout)).abs().max() < 1e-5
    assert after.logits.requires_grad
    assert not evidence[ReadRow()].requires_grad


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForSequenceClassification])
@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "gptj", "gpt_neo", "bloom"])
def test_language_models_and_classifiers_pass_the_check(family: str, auto: Any) -> None:
    reader = AttentionReader(build(family, auto, num_labels=1))
    reader.check(VOCAB)
    assert reader.n_layers == 2


@pytest.mark.parametrize("four_bit", [False, True])
def test_rounding_in_a_trained_model_passes_the_check(data_folder, four_bit) -> None:
    """Single weights of it move by 0.08 and more of the largest; those of random models do not."""
    folder = data_folder / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no pretrained model at {folder}")
    policy = load_policy(str(folder), lora=LoraSettings(rank=4, alpha=4), dtype="bfloat16", four_bit=four_bit)
    assert [policy.why_not(request) for request in DecoderAttention().needs] == [""]


@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "gptj", "falcon"])
def test_half_precision_passes_the_check(family: str) -> None:
    AttentionReader(build(family).to(torch.bfloat16)).check(VOCAB)


def test_the_tap_is_not_saved_with_the_model() -> None:
    model = build("gpt2")
    AttentionReader(model)
    assert attention_taps.NAME not in model.config.to_json_string()


def test_sinks_do_not_keep_a_model_alive() -> None:
    model = build("gpt2")
    reader = AttentionReader(model)
    del reader, model
    gc.collect()
    assert len(attention_taps._SINKS) == 0


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["gpt2", "llama-gqa"])
def test_recomputation_by_gradient_checkpointing_does_not_fire_again(family: str) -> None:
    model = build(family).train()
    model.gradient_checkpointing_enable()
    ids, mask, layout = batch()
    reader = AttentionReader(model)
    calls: list[None] = []
    reader._layers[-1].register_forward_hook(lambda *_: calls.append(None))
    with reader.capture([ReadRow()], layout) as evidence:
        hidden = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
    kept = evidence[ReadRow()].clone()
    hidden[mask].square().sum().backward()
    assert len(calls) == 2
    assert torch.equal(evidence[ReadRow()], kept)


def test_unused_rows_have_no_weight() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Total(AttentionTap):
        source: str = "policy"

        def rows(self, layout: Layout) -> Tensor:
            return torch.tensor([[0, -1], [11, 10], [-1, -1], [3, -1]])

        def reduce(self, weights: Tensor, rows: Tensor, layout: Layout) -> Tensor:
            return weights.mean(1).sum((1, 2))[:, None].expand(layout.response_mask.shape)

    model = build("gpt2")
    ids, mask, layout = batch()
    with AttentionReader(model).capture([Total()], layout) as evidence:
        run(model, ids, torch.ones_like(mask))
    assert evidence[Total()][:, 0].tolist() == pytest.approx([1, 2, 0, 1])


def test_unused_rows_see_nothing() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Seen(ReadingRows):
        def finish(self, total: Tensor, seen_by: Tensor) -> Tensor:
            return seen_by.float()

    model = build("bert")  # where every row sees every token
    ids, mask, layout = batch()
    with AttentionReader(model).capture([Seen()], layout) as evidence:
        run(model, ids, torch.ones_like(mask))
    lengths = layout.response_mask.sum(1, keepdim=True)
    assert torch.equal(evidence[Seen()], torch.where(layout.response_mask, lengths, 0).float())


def shown(model: Any, ids: Tensor, mask: Tensor) -> list[Projections]:
    """What the layers of ``model`` report in one pass."""
    reader, seen = AttentionReader(model), []
    with attention_taps.attached(reader._tap, model, reader._layers, lambda _, attention: seen.append(attention)):
        run(model, ids, mask)
    return seen


@pytest.mark.parametrize("family", ["gpt2", "llama", "llama-gqa", "bert", "mistral"])
def test_the_kernels_totals_make_the_weights_on_some_keys_and_the_softmax_all(family: str) -> None:
    """In batches without padding, where there is no mask; keys before, across and behind the rows, and none."""
    model = build(family, **({"sliding_window": 99} if family == "mistral" else {}))
    ids, mask, _ = batch()
    maps = own_attention(model, ids, torch.ones_like(mask))
    rows = torch.tensor([[3, 4, 6], [0, 1, 2], [9, 9, 11], [2, 7, 5]])
    for layer, of_layer in enumerate(shown(model, ids, torch.ones_like(mask))):
        assert of_layer.mask is None
        assert of_layer.log_totals is not None
        for other in (of_layer, replace(of_layer, log_totals=None)):
            for keys in (slice(0, 3), slice(2, 9), slice(8, None), slice(6, 6), slice(6, 4), slice(None)):
                wanted = torch.stack([maps[layer][row, :, rows[row]] for row in range(4)])[..., keys]
                torch.testing.assert_close(other.weights(rows, keys), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama-gqa", "gptj", "mistral", "gemma2"])
def test_where_the_kernel_gives_no_totals_all_keys_are_looked_at(family: str) -> None:
    """Padded rows, and taps that do not see the kernel."""
    model = build(family)
    ids, mask, _ = batch()
    maps = own_attention(model, ids, mask)
    rows = torch.tensor([[3, 4], [8, 11], [5, 10], [11, 11]])
    for layer, of_layer in enumerate(shown(model, ids, mask)):
        assert isinstance(of_layer, Map) or of_layer.log_totals is None
        wanted = torch.stack([maps[layer][row, :, rows[row]] for row in range(4)])[..., 4:10]
        torch.testing.assert_close(of_layer.weights(rows, slice(4, 10)), wanted, atol=1e-5, rtol=0)


def test_totals_of_numbers_that_autocast_rounded_are_not_used() -> None:
    """Else weights would no longer sum to 1."""
    model = build("llama")
    ids, mask, _ = batch()
    reader, seen = AttentionReader(model), []
    rows = torch.arange(COLUMNS).expand(len(LENGTHS), -1)
    with (
        attention_taps.attached(reader._tap, model, reader._layers, lambda _, attention: seen.append(attention)),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        run(model, ids, torch.ones_like(mask))
    assert {of_layer.query.dtype for of_layer in seen} == {torch.float32}
    for of_layer in seen:
        assert (of_layer.weights(rows).sum(-1) - 1).abs().max() < 1e-5


def test_totals_that_float32_rounds_too_much_are_not_used() -> None:
    """At a logarithm of some hundreds, weights would sum to 1 within 1e-4 only."""
    model = build("llama")
    ids, mask, _ = batch()
    reader, seen = AttentionReader(model), []
    for factor in (1, 1000):
        for layer in reader._layers:
            layer.q_proj.weight.data.mul_(factor)
        with attention_taps.attached(reader._tap, model, reader._layers, lambda _, attention: seen.append(attention)):
            run(model, ids, torch.ones_like(mask))
    usable = [of_layer.log_totals is not None for of_layer in seen]
    assert usable == [True] * reader.n_layers + [False] * reader.n_layers


def test_rows_that_see_a_key_are_counted() -> None:
    """Rows 1, 3, 3 and 0, 2 and one unwanted, of four keys."""
    zeros = torch.zeros(2, 1, 4, 1)
    rows, wanted = torch.tensor([[1, 3, 3], [0, 2, 3]]), torch.tensor([[True] * 3, [True, True, False]])
    causal = Projections(query=zeros, key=zeros, value=zeros, scaling=1.0, mask=None, causal=True, log_totals=None)
    assert causal.seen_by(rows, wanted).tolist() == [[3, 3, 2, 2], [2, 1, 1, 0]]
    assert causal.reach(rows) == 4
    assert causal.reach(rows[:, :1]) == 2
    both_ways = replace(causal, causal=False)
    assert both_ways.seen_by(rows, wanted).tolist() == [[3] * 4, [2] * 4]
    assert both_ways.reach(rows[:, :1]) == 4
    window = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
    for masked in (replace(causal, mask=window.bool()[None, None]), Map(window.float().expand(2, 1, 4, 4))):
        assert masked.seen_by(rows, wanted).tolist() == [[1, 1, 2, 2], [1, 1, 1, 0]]
        assert masked.reach(rows[:, :1]) == 4


@dataclass(frozen=True, kw_only=True)
class Columns(ColumnTap):
    """The largest weight of any head, summed over the rows that predict a response token."""

    source: str = "policy"

    def rows(self, layout: Layout) -> Tensor:
        return torch.where(layout.response_mask, layout.response_positions - 1, -1)

    def of_columns(self, weights: Tensor) -> Tensor:
        return weights.amax(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class ValueColumns(Columns, ValueTap):
    """The same of weights times how far the first channel of the value lies from 0."""

    def factors(self, values: Tensor) -> Tensor:
        return values[..., 0].abs()


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "bert", "mistral", "falcon-alibi", "gptj", "gemma2"])
def test_evidence_by_column_is_that_of_whole_rows(family: str, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of taps, methods and maps; values where they are shown."""
    model = build(family)
    ids, mask, layout = batch()
    mask = mask if padded else torch.ones_like(mask)
    monkeypatch.setitem(attention.CHUNK_CELLS, "cpu", len(LENGTHS) * HEADS * COLUMNS * 2)
    requests = [tap for tap in (Columns(), ValueColumns()) if not AttentionReader(model).why_not(tap)]
    with AttentionReader(model).capture(requests, layout) as by_column:
        run(model, ids, mask)
    of_layer = shown(model, ids, mask)[-1]
    every = of_layer.weights(torch.arange(COLUMNS).expand(len(LENGTHS), -1))
    for request in requests:
        factors = request.factors(of_layer.value) if isinstance(request, ValueTap) else torch.ones(len(LENGTHS), 1, 1)
        weights = every * factors.repeat_interleave(HEADS // factors.shape[1], 1)[:, :, None]
        for i, t in layout.response_mask.nonzero().tolist():
            rows = layout.response_positions[i][layout.response_mask[i]] - 1
            wanted = weights[i, :, rows, layout.response_positions[i, t]].amax(0).sum()
            assert float(by_column[request][i, t]) == pytest.approx(float(wanted), abs=1e-5)


def test_only_columns_from_the_response_on_that_rows_look_at_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []

    @dataclass(frozen=True, kw_only=True)
    class Widths(Columns):
        def of_columns(self, weights: Tensor) -> Tensor:
            widths.append(weights.shape[3])
            return super().of_columns(weights)

    model = build("llama")
    ids, mask, layout = batch()
    monkeypatch.setitem(attention.CHUNK_CELLS, "cpu", len(LENGTHS) * HEADS * COLUMNS)  # one row at a time
    with AttentionReader(model).capture([Widths()], layout):
        run(model, ids, torch.ones_like(mask))
    # the first response token stands in column 6; rows 5 7 10 10, 6 8, 7 9, 8 10, 9, and 10 predict the tokens
    assert widths == [5, 3, 4, 5, 4, 5]
