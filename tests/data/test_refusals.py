"""Why an image is refused, in words."""

from raydino.data.refusals import Undecodable


def test_undecodable__reason_alone_is_the_text_when_there_is_no_detail() -> None:
    assert str(Undecodable("empty")) == "empty"
    assert str(Undecodable("truncated", "4 bytes missing")) == "truncated: 4 bytes missing"
