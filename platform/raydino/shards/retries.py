"""Storage that does not answer: what is tried again, what is not, and which errors say nothing against what is stored."""

import errno
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 4  # one try and three retries
_HOPELESS = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "INVALID_ACCESS_KEY",
    "SIGNATURE_DOES_NOT_MATCH",
    "PERMISSION",
    "CREDENTIALS",
)
_NETWORK = {errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPIPE}
_PASSING = _NETWORK | {errno.EIO, errno.EAGAIN, errno.ESTALE, errno.EBUSY}  # the others of a network file system
# What object stores say when they are overloaded, in pyarrow's and fsspec's words; a damaged file is an OSError to pyarrow too.
_OVERLOADED = re.compile(
    r"(?:status|error|code)[ :]*(?:50\d|429)|\b503\b|NETWORK_CONNECTION|SERVICE_UNAVAILABLE|SLOW_?DOWN|INTERNAL_FAILURE"
    r"|TIME(?:D )?_?OUT|THROTTL|RATE LIMIT|CONNECTION (?:RESET|REFUSED|CLOSED|ABORTED)",
    re.IGNORECASE,
)


def with_retries(action: Callable[[], T]) -> T:
    """Do `action`, again up to three times after an OSError that may pass; waits of about 0.2, 0.4 and 0.8 s with
    jitter.

    A missing file, a refused access and wrong credentials do not get better by asking again and are raised at once.
    """
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError as error:
            if attempt == ATTEMPTS - 1 or any(word in str(error).upper() for word in _HOPELESS):
                raise
            # Drawn from the system: workers that failed together must not ask again together.
            time.sleep(0.2 * 2**attempt * random.SystemRandom().uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """Whether an error of reading says that storage does not answer now, and nothing about what is stored there."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and (error.errno in _PASSING or bool(_OVERLOADED.search(str(error))))
