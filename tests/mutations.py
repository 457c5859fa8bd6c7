"""One-line mutations (a sign, an index, a mask), each with the test that must fall.

``tests/test_mutations.py`` applies each to a copy of the code and runs the named test there.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """Replace ``original``, which stands exactly once in ``file``, by ``mutated``; ``test`` must fail."""

    file: str
    original: str
    mutated: str
    test: str


MUTATIONS = (
    Mutation(
        "rlhf_core/returns.py",
        "errors = rewards + gamma * next_values - values",
        "errors = rewards + gamma * values - next_values",
        "tests/test_returns.py::test_hand_computed_table",
    ),
    Mutation(
        "rlhf_core/returns.py",
        "return _discounted_sum(errors, gamma * lam)",
        "return _discounted_sum(errors, lam)",
        "tests/test_returns.py::test_hand_computed_table",
    ),
    Mutation(
        "rlhf_core/returns.py",
        "for t in reversed(range(x.shape[1])):",
        "for t in range(x.shape[1]):",
        "tests/test_returns.py::test_lambda_one_is_reward_to_go_minus_value",
    ),
    Mutation(
        "rlhf_core/returns.py",
        "return torch.where(mask, _discounted_sum(torch.where(mask, rewards, 0), gamma), 0)",
        "return torch.where(mask, _discounted_sum(rewards.roll(1, 1), gamma), 0)",
        "tests/test_returns.py::test_hand_computed_table",
    ),
    Mutation(
        "rlhf_core/masking.py",
        "return mean, squares / (count - 1).clamp(min=1)",
        "return mean, squares / count",
        "tests/test_masking.py::test_hand_computed_moments_ignore_what_is_masked",
    ),
    Mutation(
        "rlhf_core/masking.py",
        "smallest = global_min(torch.where(mask, x, torch.inf).min())",
        "smallest = torch.where(mask, x, torch.inf).min()",
        "tests/test_distributed.py::test_moments_and_whitening_are_those_of_one_process",
    ),
    Mutation(
        "rlhf_core/masking.py",
        "largest = global_max(torch.where(mask, x, -torch.inf).max())",
        "largest = torch.where(mask, x, -torch.inf).max()",
        "tests/test_distributed.py::test_moments_and_whitening_are_those_of_one_process",
    ),
    Mutation(
        "rlhf_core/metrics.py",
        "return int(global_sum(torch.tensor(len(rollout.sequences))))",
        "return len(rollout.sequences)",
        "tests/test_distributed.py::test_the_kl_controller_is_fed_the_responses_of_all_processes",
    ),
    Mutation(
        "rlhf_core/rewards.py",
        "within = float(global_sum((values - mean).square().sum()))",
        "within = float((values - mean).square().sum())",
        "tests/test_distributed.py::test_score_moments_are_those_of_one_process",
    ),
    Mutation(
        "rlhf_core/update.py",
        "float(global_sum(torch.tensor(total, dtype=torch.float64)))",
        "float(total)",
        "tests/test_distributed.py::test_an_update_measures_and_whitens_over_all_processes",
    ),
    Mutation(
        "rlhf_core/masking.py",
        "return torch.where(mask, x, 0).sum() / mask.sum()",
        "return torch.where(mask, x, 0).mean()",
        "tests/test_masking.py::test_hand_computed_moments_ignore_what_is_masked",
    ),
    Mutation(
        "rlhf_core/losses.py",
        "unclipped = -advantages * ratio",
        "unclipped = advantages * ratio",
        "tests/test_losses.py::test_policy_loss_by_hand",
    ),
    Mutation(
        "rlhf_core/losses.py",
        "loss = masked_mean(torch.maximum(unclipped, clipped), mask)",
        "loss = masked_mean(torch.minimum(unclipped, clipped), mask)",
        "tests/test_losses.py::test_policy_loss_takes_the_pessimistic_side",
    ),
    Mutation(
        "rlhf_core/losses.py",
        "token_loss = 0.5 * torch.maximum(plain_error, clipped_error)",
        "token_loss = 0.5 * torch.minimum(plain_error, clipped_error)",
        "tests/test_losses.py::test_value_loss_by_hand",
    ),
    Mutation(
        "rlhf_core/losses.py",
        "plain_error = torch.where(mask, new_values - returns, 0).square()",
        "plain_error = (new_values - returns).square()",
        "tests/test_losses.py::test_masked_nan_reaches_neither_loss_nor_gradient",
    ),
    Mutation(
        "rlhf_core/kl.py",
        "torch.expm1(-log_ratio) + log_ratio",
        "torch.expm1(log_ratio) - log_ratio",
        "tests/test_kl.py::test_hand_computed_estimates",
    ),
    Mutation(
        "rlhf_core/kl.py",
        "error = mean_response_kl / self.target - 1",
        "error = 1 - mean_response_kl / self.target",
        "tests/test_kl.py::test_adaptive_controller_by_hand",
    ),
    Mutation(
        "rlhf_core/rewards.py",
        "return token_scores - kl_coef * kl",
        "return token_scores + kl_coef * kl",
        "tests/test_trainer.py::test_penalty_and_credit_meet_in_the_rewards",
    ),
    Mutation(
        "rlhf_core/metrics.py",
        "total = global_sum((rollout.logprobs - rollout.ref_logprobs).sum(1).sum())",
        "total = global_sum((rollout.logprobs - rollout.ref_logprobs).mean(1).sum())",
        "tests/test_trainer.py::test_metrics_by_hand",
    ),
    Mutation(
        "rlhf_core/trainer.py",
        "self.kl_controller.update(mean_response_kl(rollout), response_count(rollout))",
        "self.kl_controller.update(float(rollout.kl.sum(1).mean()), response_count(rollout))",
        "tests/test_trainer.py::test_the_controller_is_fed_k1_whatever_penalises",
    ),
    Mutation(
        "rlhf_core/trainer.py",
        "returns=advantages + rollout.values,",
        "returns=advantages,",
        "tests/test_end_to_end.py::test_returns_are_the_lambda_returns",
    ),
    Mutation(
        "rlhf_core/buffer.py",
        "advantages=masked_whiten(held.advantages, held.sequences.response_mask),",
        "advantages=held.advantages,",
        "tests/test_engine.py::test_buffer_whitens_once_over_everything_and_keeps_rows_together",
    ),
    Mutation(
        "rlhf_core/update.py",
        "(loss * token_share).backward()",
        "loss.backward()",
        "tests/test_trainer.py::test_micro_batching_never_changes_the_gradient",
    ),
    Mutation(
        "rlhf_core/update.py",
        'if measured["ratio"] > config.ratio_threshold:',
        'if measured["ratio"] < config.ratio_threshold:',
        "tests/test_trainer.py::test_a_minibatch_above_the_ratio_threshold_is_skipped_without_a_step",
    ),
    Mutation(
        "rlhf_core/health.py",
        "policy.vocab_size > reward.vocab_size:",
        "policy.vocab_size > 2 * reward.vocab_size:",
        "tests/test_trainer.py::test_a_policy_that_draws_ids_the_reward_model_cannot_read_is_refused_at_construction",
    ),
    Mutation(
        "rlhf_core/streams.py",
        "return int(stream(seed, name).integers(2**63))",
        "return seed",
        "tests/test_engine.py::test_the_seed_of_initial_weights_is_a_stream_of_the_runs_seed",
    ),
    Mutation(
        "rlhf_core/batching.py",
        "rows = max(1, token_budget // int(lengths[order[start]]))",
        "rows = 1 + token_budget // int(lengths[order[start]])",
        "tests/test_engine.py::test_micro_batches_hold_every_row_once_within_the_budget",
    ),
    Mutation(
        "redistributors/credit.py",
        "weights = beta * credit + (1 - beta) * last_token(mask)",
        "weights = beta * credit + last_token(mask)",
        "tests/test_redistributors.py::test_conserves_the_score_where_declared",
    ),
    Mutation(
        "redistributors/attention.py",
        "return total / seen_by.clamp(min=1)",
        "return total / (seen_by + 1)",
        "tests/test_redistributors.py::test_the_mean_over_rows_divides_by_the_rows_that_could_see_a_token",
    ),
    Mutation(
        "models/attention_taps.py",
        "return keys <= rows[..., None] if self.causal",
        "return keys < rows[..., None] if self.causal",
        "tests/test_attention.py::test_a_mean_over_rows_counts_the_rows_that_could_see_a_token[llama-gqa-windows0]",
    ),
    Mutation(
        "models/attention_taps.py",
        "return (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).any(1)",
        "return torch.ones_like(mask, dtype=torch.bool).any(1)",
        "tests/test_attention.py::test_a_mean_over_rows_counts_the_rows_that_could_see_a_token[mistral-windows1]",
    ),
    Mutation(
        "models/attention.py",
        "(attention.visible(columns) & wanted[..., None])",
        "(attention.visible(columns))",
        "tests/test_attention.py::test_unused_rows_see_nothing",
    ),
    Mutation(
        "redistributors/attention.py",
        "return torch.where(layout.response_mask, layout.response_positions - 1, -1)",
        "return torch.where(layout.response_mask, layout.response_positions, -1)",
        "tests/test_redistributors.py::test_the_mean_over_rows_divides_by_the_rows_that_could_see_a_token",
    ),
    Mutation(
        "models/attention_taps.py",
        "logits = logits * self.scaling",
        "logits = logits / self.scaling",
        "tests/test_attention.py::test_rows_are_those_of_eager_attention[gpt2-ragged]",
    ),
    Mutation(
        "models/attention_taps.py",
        "device=rows.device) > rows[:, None, :, None]",
        "device=rows.device) >= rows[:, None, :, None]",
        "tests/test_attention.py::test_rows_are_those_of_eager_attention[llama-gqa-full]",
    ),
    Mutation(
        "models/attention_taps.py",
        "logits.masked_fill(~mask, lowest) if mask",
        "logits.masked_fill(mask, lowest) if mask",
        "tests/test_attention.py::test_rows_are_those_of_eager_attention[mistral-ragged]",
    ),
    Mutation(
        "models/attention.py",
        "total = total + request.reduce",
        "total = request.reduce",
        "tests/test_attention.py::test_rows_are_those_of_eager_attention[gpt2-ragged]",
    ),
    Mutation(
        "models/attention.py",
        "columns, wanted = chunk.clamp(min=0), chunk >= 0",
        "columns, wanted = chunk.clamp(min=0), chunk >= -1",
        "tests/test_attention.py::test_unused_rows_have_no_weight",
    ),
    Mutation(
        "models/attention_check.py",
        "if not size <= tolerance:",
        "if size > 1e9:",
        "tests/test_attention.py::test_check_refuses_a_tap_that_is_off[llama-gqa-scaling]",
    ),
    Mutation(
        "models/attention_taps.py",
        "if not model._supports_sdpa:",
        "if False:",
        "tests/test_attention.py::test_gpt_oss_is_refused_for_its_sinks",
    ),
    Mutation(
        "models/classifier_head.py",
        "last = attention_mask.sum(1) - 1",
        "last = attention_mask.shape[1] - attention_mask.sum(1) * 0 - 1",
        "tests/test_reward.py::test_agrees_with_transformers_where_its_pooling_is_right[gpt2]",
    ),
    Mutation(
        "models/reward.py",
        "logits[:, 1] - logits[:, 0]",
        "logits[:, 0] - logits[:, 1]",
        "tests/test_reward.py::test_logit_difference_is_positive_minus_negative",
    ),
    Mutation(
        "models/reward.py",
        "scores[chosen] = batch_scores.to(home)",
        "scores[: len(chosen)] = batch_scores.to(home)",
        "tests/test_reward.py::test_score_and_evidence_do_not_depend_on_batch_padding_or_pad_id[1-gpt2]",
    ),
    Mutation(
        "models/reward.py",
        "nn.Module.eval(model)",
        "nn.Module.train(model)",
        "tests/test_reward.py::test_scoring_twice_gives_equal_bits_and_no_gradient",
    ),
    Mutation(
        "models/forward.py",
        "rows.response_positions[response_mask] - 1",
        "rows.response_positions[response_mask]",
        "tests/test_value_head.py::test_a_value_is_that_of_the_state_before_its_token",
    ),
    Mutation(
        "models/distribution.py",
        "(steps < min_lengths)",
        "(steps <= min_lengths)",
        "tests/test_sampling.py::test_min_length_bans_eos_on_exactly_that_many_tokens",
    ),
    Mutation(
        "models/sampling.py",
        "* total, right=True)",
        "* total)",
        "tests/test_sampling.py::test_inverse_cdf_by_hand",
    ),
    Mutation(
        "models/sampling.py",
        "uniforms[rows, step]",
        "uniforms[: len(rows), step]",
        "tests/test_sampling.py::test_cached_sampling_draws_what_the_teacher_forced_pass_says",
    ),
    Mutation(
        "models/loading.py",
        're.compile("drop|jitter")',
        're.compile("attention_dropout|jitter")',
        "tests/test_policy.py::test_every_kind_of_dropout_is_zeroed",
    ),
    Mutation(
        "models/reference.py",
        "with self.adapters.disable_adapter():",
        "if True:",
        "tests/test_policy.py::test_kl_is_exactly_zero_at_the_start_and_the_reference_never_moves",
    ),
    Mutation(
        "models/reference.py",
        "and status.merged_adapters == []",
        "",
        "tests/test_policy.py::test_a_merged_adapter_is_refused",
    ),
    Mutation(
        "models/prompts.py",
        "if context is not None and len(prompt) + most > context:",
        "if context is not None and len(prompt) > context:",
        "tests/test_reward.py::test_prompts_that_could_not_be_scored_are_all_listed_in_advance",
    ),
    Mutation(
        "models/policy.py",
        "min_lengths=sequences.min_lengths[row]",
        "min_lengths=0 * sequences.min_lengths[row]",
        "tests/test_sampling.py::test_sampled_frequencies_match_the_trained_probabilities",
    ),
    Mutation(
        "models/modes.py",
        "_switch(checkpointed, torch.is_grad_enabled())",
        "_switch(checkpointed, False)",
        "tests/test_policy.py::test_checkpointing_runs_only_where_gradients_flow_and_modes_are_put_back",
    ),
    Mutation(
        "models/distribution.py",
        "torch.where(logprobs.isneginf(), 0.0, logprobs - ref_logprobs)",
        "logprobs - ref_logprobs",
        "tests/test_policy.py::test_kl_is_exactly_zero_at_the_start_and_the_reference_never_moves",
    ),
    Mutation(
        "models/objectives.py",
        "torch.arange(len(row.ids) - len(row.labels), len(row.ids))",
        "torch.arange(len(row.labels))",
        "tests/test_training.py::test_labels_belong_to_the_last_beginnings",
    ),
    Mutation(
        "models/objectives.py",
        "else logits[..., 1] - logits[..., 0]",
        "else logits[..., 0] - logits[..., 1]",
        "tests/test_training.py::test_training_and_ppo_score_the_same_folder_alike",
    ),
    Mutation(
        "benchmarks/toy.py",
        "if token in BOUNDARIES:",
        "if token == END:",
        "tests/test_toy.py::test_contributions_by_hand",
    ),
    Mutation(
        "benchmarks/tasks.py",
        "toy.true_contributions(words([*prompt, *response]))[len(prompt) :]",
        "toy.true_contributions(words([*response]))",
        "tests/test_tasks.py::test_toy_truth_counts_the_prompt_but_credits_the_response",
    ),
    Mutation(
        "benchmarks/statistics.py",
        "factors = len(p_values) - np.arange(len(p_values))",
        "factors = np.arange(len(p_values)) + 1",
        "tests/test_statistics.py::test_holm_by_hand",
    ),
    Mutation(
        "benchmarks/statistics.py",
        "return self.low <= other.high and other.low <= self.high",
        "return self.low <= other.high and other.high <= self.high",
        "tests/test_statistics.py::test_overlap_is_symmetric",
    ),
    Mutation(
        "benchmarks/viewer.py",
        "return html.escape(visible(text), quote=True)",
        "return visible(text)",
        "tests/test_viewer.py::test_hostile_text_stays_text",
    ),
    Mutation(
        "benchmarks/comparison.py",
        "config=replace(with_settings(config, arm.changes), seed=seed)",
        "config=with_settings(config, arm.changes)",
        "tests/test_experiment.py::test_a_run_by_itself",
    ),
    Mutation(
        "models/objectives.py",
        'learned = batch["attention_mask"] & (columns >= starts[:, None])',
        'learned = batch["attention_mask"]',
        "tests/test_training.py::test_only_responses_are_learned",
    ),
    Mutation(
        "models/prompted_reward.py",
        "left_padded(self._renderings(sequences.prompts()), sequences.prompt_ids.device)",
        "left_padded(sequences.prompts(), sequences.prompt_ids.device)",
        "tests/test_finetuning.py::test_a_reward_model_reads_its_own_prompts_and_credits_the_same_tokens",
    ),
    Mutation(
        "benchmarks/samplers.py",
        "return replace(drawn, min_lengths=torch.zeros_like(drawn.min_lengths))",
        "return drawn",
        "tests/test_samplers.py::test_unrestricted_logprobs_miss_the_mass_of_eos_and_nothing_else",
    ),
    Mutation(
        "benchmarks/formats.py",
        "chosen=texts[choice], rejected=texts[1 - choice]",
        "chosen=texts[1 - choice], rejected=texts[choice]",
        "tests/test_formats.py::test_comparisons",
    ),
    Mutation(
        "benchmarks/preference_rows.py",
        "return [*row.reward_prompt, *response]",
        "return [*row.prompt, *response]",
        "tests/test_formats.py::test_the_reward_model_reads_its_own_prompt_and_the_same_response",
    ),
    Mutation(
        "benchmarks/outcomes.py",
        "return float(score[reached[0]]) if len(reached) else None",
        "return float(score[reached[-1]]) if len(reached) else None",
        "tests/test_outcomes.py::test_reward_at_a_level_has_two_readings",
    ),
    Mutation(
        "benchmarks/outcomes.py",
        "parted = drops.mean() > error and proxies[:, -1].mean() >= proxies[:, best].mean()",
        "parted = drops.mean() > error",
        "tests/test_outcomes.py::test_proxy_and_gold_part_only_where_gold_falls_and_the_proxy_does_not",
    ),
    Mutation(
        "benchmarks/reward_accuracy.py",
        "return 0.5 if margin == 0 else float(margin > 0)",
        "return float(margin >= 0)",
        "tests/test_formats.py::test_accuracy_beside_the_longer_response",
    ),
    Mutation(
        "benchmarks/memory_model.py",
        "blocks = math.ceil(numbers / 64)",
        "blocks = math.ceil(numbers / 32)",
        "tests/test_memory.py::test_4_bit_weights_take_what_bitsandbytes_makes_of_them",
    ),
    Mutation(
        "benchmarks/memory_model.py",
        "2 * shape.layers * shape.key_heads",
        "2 * shape.layers * shape.heads",
        "tests/test_memory.py::test_the_cache_is_as_large_as_transformers_makes_it",
    ),
    Mutation(
        "benchmarks/memory_model.py",
        "4 * heads + 3 * b * i,",
        "4 * heads + 2 * b * i,",
        "tests/test_memory.py::test_activations_kept_for_the_backward_pass",
    ),
    Mutation(
        "benchmarks/memory_model.py",
        "(rank * into, out * rank)",
        "(rank * into, into * rank)",
        "tests/test_memory.py::test_adapters_are_pefts_own",
    ),
    Mutation(
        "benchmarks/win_rates.py",
        "decision if order == 0 else 1 - decision",
        "decision",
        "tests/test_win_rates.py::test_orders_that_disagree_are_a_tie",
    ),
    Mutation(
        "benchmarks/win_rates.py",
        "leverage * (0.5 - p)",
        "leverage * (p - 0.5)",
        "tests/test_win_rates.py::test_regression_maximises_the_penalised_likelihood",
    ),
    Mutation(
        "benchmarks/win_rates.py",
        "+ z**2 / (4 * n**2)",
        "",
        "tests/test_win_rates.py::test_wilson_interval_is_scipys_where_there_are_no_ties",
    ),
    Mutation(
        "benchmarks/responses.py",
        "uniform[[prompt.row - 1 for prompt in prompts[some]]]",
        "uniform[: len(prompts[some])]",
        "tests/test_preference.py::test_responses_depend_neither_on_batches_nor_on_other_prompts",
    ),
    Mutation(
        "benchmarks/preference.py",
        "if one.output != other.output:",
        "if True:",
        "tests/test_preference.py::test_both_are_given_the_same_uniforms_and_equal_texts_are_not_judged",
    ),
)
