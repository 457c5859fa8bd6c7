"""Prompts that leave no room for a response are one problem, however many they are."""

from models.texts.prompt_encoding import prompt_problems


def problems(lengths, most, context=10, **settings):
    return list(prompt_problems([[2] * n for n in lengths], most, **{"vocab_size": 32, **settings}, context=context))


def test_one_row_is_named_with_the_way_out():
    assert problems([3, 8], [4, 4]) == [
        "row 1: 8 prompt + 4 response tokens exceed the context 10 of the model's config (shorten or leave out such "
        "prompts, or allow responses of at most 2 tokens: max_length=(2, 2))"
    ]
    assert problems([6], [4]) == []
    assert problems([99], [99], context=None) == []


def test_many_rows_are_counted_and_the_first_few_named():
    (said,) = problems([7, 1, 8, 9, 7, 7, 7, 10], [4] * 8)
    assert said == (
        "7 of 8 rows exceed the context 10 of the model's config: row 0 (7 prompt + 4 response tokens), "
        "row 2 (8 prompt + 4), row 3 (9 prompt + 4), row 4 (7 prompt + 4), row 5 (7 prompt + 4), and 2 more "
        "(shorten or leave out such prompts)"
    )
    (said,) = problems([7, 8], [4, 5])
    assert ": row 0 (7 prompt + 4 response tokens), row 1 (8 prompt + 5) (shorten" in said


def test_other_problems_are_named_row_by_row_after_it():
    said = problems([0, 8, 1], [4] * 3, vocab_size=2)
    assert [each.split(" ")[:2] for each in said] == [["row", "1:"], ["row", "0"], ["row", "1"], ["row", "2"]]
