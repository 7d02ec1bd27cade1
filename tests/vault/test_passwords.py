"""Passwords as they are kept."""

import pytest

from app.domain.errors import Refusal
from app.services.passwords import MAX_LENGTH, checked
from app.vault import passwords


def test_a_password_fits_what_was_kept_of_it_and_no_other_does() -> None:
    kept = passwords.derive("correct horse battery")
    assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert "horse" not in kept
    assert passwords.fits("correct horse battery", kept)
    for other in ("correct horse batterY", "correct horse battery ", "", "\0", "\ud800"):
        assert not passwords.fits(other, kept)
    assert passwords.derive("correct horse battery") != kept


@pytest.mark.parametrize("kept", ["", "x", "$argon2id$", "$argon2i$v=19$m=19456,t=2,p=1$AAAA$AAAA", "$2b$12$abc"])
def test_what_is_no_hash_fits_nothing_and_is_outdated(kept: str) -> None:
    assert not passwords.fits("correct horse battery", kept)
    assert passwords.is_outdated(kept)


def test_nobody_s_hash_costs_what_everybody_s_does() -> None:
    assert not passwords.is_outdated(passwords.NOBODY)
    assert not passwords.fits("", passwords.NOBODY)


@pytest.mark.parametrize(
    "password",
    ["", " " * 12, "elevenchars", "aaaaaaaaaaaaaaaa", "abcdabcdabcdabcd", "Ada@Example.com", "\ud800bcdefghijkl"],
)
def test_a_password_that_anybody_would_guess_is_refused(password: str) -> None:
    with pytest.raises(Refusal) as refused:
        checked(password, "password", "ada@example.com", "Ada")
    assert refused.value.field == ["password"]
    assert not password.strip() or password not in refused.value.message


def test_long_passwords_of_any_script_are_welcome() -> None:
    for password in ("пароль-длинный", "correct horse battery", "x1y2z" * (MAX_LENGTH // 5)):
        assert checked(password, "password") == password
