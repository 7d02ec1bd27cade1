"""Identities sort by time of birth."""

from app.domain.ids import new_id


def test_an_identity_is_a_uuid_of_version_7() -> None:
    made = new_id()
    assert made.version == 7
    assert made.variant == "specified in RFC 4122"


def test_later_identities_sort_after_earlier_ones() -> None:
    first = new_id()
    while (later := new_id()).int >> 80 == first.int >> 80:
        pass
    assert later > first
