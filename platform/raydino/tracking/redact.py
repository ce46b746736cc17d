"""What must never reach a log, a tracker or a picture of a run: secrets in values, in keys and in addresses.

Two rules, because each alone misses half: a key whose words say secret (`aws.secret_key`) hides its value whatever it
looks like, and a text is searched for the known shapes of credentials whatever its key is called. Numbers and switches
are never secrets, so `tokens = 196` stays readable. The price of the rules is an occasional `***` too many, never a
secret too many of the shapes listed here; a secret of an unknown shape under a harmless key cannot be recognised by
anyone.
"""

import re
from collections.abc import Mapping

HIDDEN = "***"

_SECRET_WORDS = frozenset(
    "password passwd pwd passphrase secret secrets token apikey credential credentials authorization bearer cookie "
    "signature".split()
)
_SECRET_PAIRS = frozenset({("api", "key"), ("access", "key"), ("private", "key"), ("account", "key"), ("auth", "key")})
_PLAIN = re.compile(r"(?:true|false|none|null|[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?|)", re.IGNORECASE)

_KEY_NAMES = (
    r"(?:[a-z0-9]+[_-])*(?:password|passwd|pwd|passphrase|secret(?:[_-]?(?:access[_-]?)?key)?|token"
    r"|(?:api|access|account|private)[_-]?key|credentials?|signature|sig)"
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # A private key spans lines; an unfinished block is hidden to the end of the text.
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
    # user:password@host; the last @ before the path counts, because passwords hold @ too.
    (re.compile(r"(?<=://)[^/\s'\"<>?#]+@"), f"{HIDDEN}@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    # name=value and name: value, in query strings, connection strings, YAML and shell lines.
    (re.compile(rf"(?i)((?<![a-z]){_KEY_NAMES}['\"]?\s*[=:]\s*['\"]?)(?!\*\*\*)[^\s'\"&;,]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s]+"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), HIDDEN),  # AWS key id
    (re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,})"), HIDDEN),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), HIDDEN),  # Hugging Face
    (re.compile(r"\bAIza[0-9A-Za-z_-]{30,}"), HIDDEN),  # Google
    (re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"), HIDDEN),  # OpenAI-style
    (re.compile(r"\bxox[abeprs]-[A-Za-z0-9-]{10,}"), HIDDEN),  # Slack
    (re.compile(r"\bdapi[0-9a-f]{32}\b"), HIDDEN),  # Databricks
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), HIDDEN),  # JSON web token
)


def is_secret_key(key: str) -> bool:
    """Whether the words of a key (`aws.secret_key`, `HF_TOKEN`, `apiKey`) say that its value is a secret."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", key)]
    return not _SECRET_WORDS.isdisjoint(words) or any(
        pair in _SECRET_PAIRS for pair in zip(words, words[1:], strict=False)
    )


def redact_text(text: str) -> str:
    """`text` with every credential of a known shape, and the user part of every address, replaced by `***`."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_value(key: str, value: object) -> str:
    """`value` as text that may be shown under `key`: `***` under a secret's key, else the text without credentials."""
    text = str(value)
    if is_secret_key(key) and not _PLAIN.fullmatch(text):
        return HIDDEN
    return redact_text(text)


def redact(values: Mapping[str, object]) -> dict[str, str]:
    """`redact_value` over a flat mapping."""
    return {key: redact_value(key, value) for key, value in values.items()}
