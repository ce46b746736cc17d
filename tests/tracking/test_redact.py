"""Ten planted secrets, and texts that must stay as they are."""

import pytest

from raydino.tracking.redact import HIDDEN, is_secret_key, redact, redact_text, redact_value

PLANTED = {
    "AWS key id": ("AKIAIOSFODNN7EXAMPLE", "using AKIAIOSFODNN7EXAMPLE for s3"),
    "AWS secret": (
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    ),
    "GitHub": (
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "origin https://ghp_16C7e42F292c6912E7710c838347Ae178B4a@host/r.git",
    ),
    "Hugging Face": ("hf_abcdefghijklmnopqrstuvwxyz012345", "HF_TOKEN: hf_abcdefghijklmnopqrstuvwxyz012345"),
    "address": ("s3cr@t:pass", "mlflow at https://anna:s3cr@t:pass@tracker.example:5000/x"),
    "bearer": ("abc123DEF456ghi789", "Authorization: Bearer abc123DEF456ghi789"),
    "JWT": (
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
        "got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    ),
    "signed address": (
        "d41d8cd98f00b204",
        "https://bucket.example/x?X-Amz-Expires=60&X-Amz-Signature=d41d8cd98f00b204",
    ),
    "Azure": ("Zm9vYmFyYmF6cXV4==", "DefaultEndpointsProtocol=https;AccountName=lab;AccountKey=Zm9vYmFyYmF6cXV4==;X=1"),
    "private key": (
        "MIIEowIBAAKCAQEA",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
    ),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_redact_text__hides_planted_secret(kind: str) -> None:
    secret, text = PLANTED[kind]
    assert secret in text
    clean = redact_text(text)
    assert secret not in clean and HIDDEN in clean
    assert redact_text(clean) == clean  # what is clean stays as it is


def test_redact_text__keeps_what_stands_around() -> None:
    assert (
        redact_text("https://anna:pw@tracker.example:5000/x?run=1") == f"https://{HIDDEN}@tracker.example:5000/x?run=1"
    )
    assert redact_text("a=1&token=xyz&b=2") == f"a=1&token={HIDDEN}&b=2"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/folder/images",
        "sqlite:////home/anna/runs/mlflow.db",
        "vit_small_patch16_224",
        "teacher_temperature: {start: 0.07, end: 0.07}",
        "cls_token and mask_token are learned",
        "mail anna@lab.example about https://docs.example/page",
        "dinov2-9f86d081884c7d65",
        "basic idea",
    ],
)
def test_redact_text__leaves_ordinary_text_alone(text: str) -> None:
    assert redact_text(text) == text


@pytest.mark.parametrize(
    "key", ["password", "aws.secret_key", "HF_TOKEN", "apiKey", "API_KEY", "db-credentials", "private_key"]
)
def test_redact_value__a_secret_key_hides_any_value(key: str) -> None:
    assert is_secret_key(key) and redact_value(key, "plain words") == HIDDEN


@pytest.mark.parametrize("key", ["tokens_per_image", "backbone.patch_size", "keys", "monkey", "method.head.prototypes"])
def test_is_secret_key__ordinary_keys(key: str) -> None:
    assert not is_secret_key(key)


def test_redact__numbers_and_switches_under_a_secret_word_stay() -> None:
    assert redact({"token": 196, "secret": True, "signature": None}) == {
        "token": "196",
        "secret": "True",
        "signature": "None",
    }
    assert redact({"data.path": "s3://id:key@bucket/x"}) == {"data.path": f"s3://{HIDDEN}@bucket/x"}
