import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_models import TEXT, patch_model, tokens_of

from culm.bytelatent.patches import columns_of, taken
from culm.bytelatent.spacebyte import spacelike


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_columns_are_those_of_the_ends_filled_up_with_the_last(rows):
    columns, counts = columns_of(torch.tensor(rows))
    for row, found, count in zip(rows, columns.tolist(), counts.tolist(), strict=True):
        expected = [place for place, end in enumerate(row) if end]
        assert found[:count] == expected
        assert set(found[count:]) <= {8}


def test_a_plan_expects_patches():
    columns, _ = columns_of(torch.empty(2, 100, dtype=torch.bool, device="meta"), 4.5)
    assert columns.shape == (2, 23)


def test_taken_rows_and_their_gradients_are_those_of_indexing():
    values = torch.randn(3, 5, 2, requires_grad=True)
    places = torch.tensor([[0, 4, 4], [1, 1, 1], [3, 2, 0]])
    rows = torch.arange(3)[:, None]
    assert torch.equal(taken(values, places), values[rows, places])
    weights = torch.randn(3, 3, 2)
    (own,) = torch.autograd.grad((taken(values, places) * weights).sum(), values)
    (indexed,) = torch.autograd.grad((values[rows, places] * weights).sum(), values)
    torch.testing.assert_close(own, indexed)


def test_spacebyte_ends_after_words_and_spares_characters_of_several_bytes():
    text = "Hi, we're é b".encode()
    ends = patch_model("spacebyte").ends(tokens_of(text))[0].tolist()
    marked = "".join("|" if end else "." for end in ends)
    #                 H i ,   w e ' r e   é é   b
    assert marked == "|.|...|..|..|."
    assert spacelike(torch.tensor([256, 0x80, 0xC3, 0x41, 0x20])).tolist() == [1, 0, 1, 0, 1]


def test_megabyte_ends_after_the_first_byte_and_before_each_fourth():
    ends = patch_model("megabyte").ends(tokens_of(TEXT))[0].nonzero()[:, 0].tolist()
    assert ends == [0, *range(3, len(TEXT), 4)]
