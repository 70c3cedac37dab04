"""Credentials are split off addresses, and masked in texts."""

import pytest

from pipeline.credentials import masked, split


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("http://u:p@host:5000/x", ("http://host:5000/x", "u", "p")),
        ("postgresql+psycopg2://u:p/q@host/db", ("postgresql+psycopg2://host/db", "u", "p/q")),
        ("https://token@host", ("https://host", "token", "")),
        ("http://u:p@ss@host", ("http://host", "u", "p@ss")),
        ("http://host:5000/models@champion", ("http://host:5000/models@champion", "", "")),
        ("s3://bucket/a@b.csv", ("s3://bucket/a@b.csv", "", "")),
        ("models:/lookback@champion", ("models:/lookback@champion", "", "")),
        ("http://[::1", ("http://[::1", "", "")),
    ],
)
def test_user_and_password_are_split_off(address: str, parts: tuple[str, str, str]) -> None:
    assert split(address) == parts


def test_what_is_masked_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-en-123\n")
    masks = {
        "at http://u:p@h/x: away": "at http://***@h/x: away",
        '["s3://k:s/t@b/x", "s3://b/y"]': '["s3://***@b/x", "s3://b/y"]',
        "https://h/a?sv=1&sig=abc#end": "https://h/a?sv=***&sig=***#end",
        "url: /a?x=1&api_token=abc (refused)": "url: /a?x=1&api_token=*** (refused)",
        "header b'Bearer tok-en-123\\n'": "header b'Bearer ***\\n'",
    }
    assert {text: masked(text) for text in masks} == masks
    for plain in ("expected key=value, such as train.epochs=3", "s3://b/?.csv", "models:/a@b", "a@b.c"):
        assert masked(plain) == plain
