"""Responses that nobody sampled, in the form of those that are."""

import pytest
import torch
from fakes import ragged_sequences

from rlhf_core.given_sequences import given_sequences


def test_rows_come_back_as_they_were_given():
    prompts, responses = [[4], [5, 6, 7]], [[1, 2, 3], [8]]
    sequences = given_sequences(prompts, responses, finished=True)
    assert sequences.prompts() == prompts
    assert sequences.responses() == responses
    assert sequences.finished.tolist() == [True, True]
    assert sequences.min_lengths.tolist() == [0, 0]
    assert sequences.max_lengths.tolist() == [3, 1]
    assert not given_sequences(prompts, responses, finished=False).finished.any()


def test_they_are_padded_as_sampled_ones_are():
    sampled = ragged_sequences()
    given = given_sequences(sampled.prompts(), sampled.responses(), finished=False)
    for name in ("prompt_mask", "response_mask"):
        assert getattr(given, name).equal(getattr(sampled, name)), name
    assert (given.response_ids * given.response_mask).equal(sampled.response_ids * sampled.response_mask)
    assert given.response_ids.dtype == torch.long


@pytest.mark.parametrize(
    ("prompts", "responses", "said"),
    [
        ([], [], "got 0 prompts and 0 responses"),
        ([[1], [2]], [[1]], "got 2 prompts and 1 response;"),
        ([[1], [2]], [[1], []], "row 1 is empty"),
        ([[]], [[1]], "row 0 is empty"),
    ],
)
def test_rows_without_tokens_are_refused(prompts, responses, said):
    with pytest.raises(ValueError, match=f"given_sequences: {said}"):
        given_sequences(prompts, responses, finished=True)
