"""Text from outside: what a terminal or spreadsheet would obey, and what must not be told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeface.errors import InputError
from edgeface.text import hide_secrets, name_of_key, printable, spreadsheet_cell, without_secrets

SECRET = "s3cretQ"


@given(st.text())
def test_printable_text_has_nothing_that_a_terminal_obeys(text: str) -> None:
    told = printable(text)
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in told)
    assert not set(told) & set("\u200b\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ufeff")
    told.encode()  # no half of a surrogate pair is left


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë 李 Ада", "Zoë 李 Ада"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nedgeface: forged", "a\\nedgeface: forged"),
        ("\udcff.png", "\\xff.png"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("می\u200cرود", "می\u200cرود"),  # a non-joiner between letters that join is seen
        ("क्\u200dष", "क्\u200dष"),
        ("Ada\u200d", "Ada\\u200d"),
    ],
)
def test_what_is_not_seen_is_escaped_and_letters_are_left_alone(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\uff1d1", "|cmd"])
def test_no_cell_begins_like_a_formula(text: str) -> None:
    assert str(spreadsheet_cell(text))[0] in "'\\"


@given(st.text("ab1.", min_size=0, max_size=3), st.sampled_from("@/?#:;&=%! \t'\"[]"), st.sampled_from("@/?#:;& "))
def test_no_part_of_a_password_in_an_address_is_told(filler: str, one: str, two: str) -> None:
    password = f"{SECRET}{filler}{one}{SECRET}{two}{SECRET}"
    for scheme in ("rtsp", "RTSP", "http", "postgresql"):
        address = f"{scheme}://admin:{password}@127.0.0.1:554/live"
        assert SECRET not in without_secrets(address), address
        assert SECRET not in hide_secrets(f"{address}: no frames; try again"), address


@pytest.mark.parametrize(
    "address",
    [
        f"rtsp://camera/live#token={SECRET}",
        f"rtsp://camera/live?{SECRET}",
        f"http://camera/video.mjpg;user=a;password={SECRET}?x=1",
        f"rtsp://camera/user=admin_password={SECRET}_channel=1_stream=0.sdp",
        f"http://camera/token/{SECRET}/live",
        f"http://camera/a%3Fpwd%3D{SECRET}",
        f"rtmp://server/app/{SECRET}",
        f"rtsp://admin:{SECRET}",
        f"rtsp:/admin:{SECRET}@camera/live",  # as a Path writes it
    ],
)
def test_no_secret_elsewhere_in_an_address_is_told(address: str) -> None:
    assert SECRET not in without_secrets(address)


def test_no_error_tells_a_password_in_an_address() -> None:
    error = InputError(path=f"http://ada:{SECRET}@host/a.jpg", expected="a file", found="an address")
    assert str(error) == "http://host/a.jpg: expected a file, found an address"
    assert str(error.with_path(f"rtsp://a:{SECRET}@host/")).startswith("rtsp://host/: http://host/a.jpg")


@pytest.mark.parametrize("key", ["ab" * 32, "12" * 16, "AbCd" * 8 + "EfG4XyZ9+/w=", "deadbeef" * 2])
def test_what_may_be_a_key_is_not_shown(key: str) -> None:
    assert key not in name_of_key(key)
    assert key not in name_of_key(f"{key} more")


@pytest.mark.parametrize("name", ["EDGEFACE_GALLERY_KEY", "/run/secrets/key", "vault kv get -field=key kiosk"])
def test_the_name_of_a_place_for_a_key_is_shown(name: str) -> None:
    assert name_of_key(name) == name


@pytest.mark.parametrize(
    "address",
    [f"host=db password={SECRET} dbname=x", f"host=db password = '{SECRET} \\' {SECRET}'", f"sslpassword={SECRET}"],
)
def test_a_password_in_postgres_other_form_of_address_is_hidden(address: str) -> None:
    assert SECRET not in hide_secrets(f"{address}: expected a gallery, found no file")
