"""A sequence of texts like a tuple of them."""

import pytest

from dcprune.datasets.texts import Texts

WORDS = ("cat", "", "Hündin", "鳥", "cat dog")


def test_like_a_tuple() -> None:
    texts = Texts(WORDS)
    assert tuple(texts) == WORDS
    assert len(texts) == 5
    assert (texts[2], texts[-1]) == ("Hündin", "cat dog")
    assert texts[1:4] == WORDS[1:4]
    assert texts[::-2] == WORDS[::-2]
    assert "鳥" in texts
    for index in (5, -6):
        with pytest.raises(IndexError):
            texts[index]


def test_appending() -> None:
    texts = Texts()
    assert not texts
    texts.append("é")
    assert tuple(texts) == ("é",)


def test_distinct() -> None:
    assert Texts(map(str, range(1000))).distinct()
    assert not Texts([*map(str, range(1000)), "7"]).distinct()
    assert Texts().distinct()
