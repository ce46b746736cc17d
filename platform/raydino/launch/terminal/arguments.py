"""What commands share that train nothing (evaluations, studies, pictures, reports, exports): flags written by hand."""

import argparse
import os
from collections.abc import Mapping

from raydino.config import ConfigError


def parser_of(description: str) -> argparse.ArgumentParser:
    """A parser whose help begins with a script's docstring as it stands, because its lines are commands."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def check_least(options: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Raise ConfigError for the first number that was given below its least, by name of the flag."""
    for field, bound in least.items():
        if (value := getattr(options, field)) is not None and value < bound:
            raise ConfigError(f"{field} = {value}: give at least {bound}.")


def share_cores() -> None:
    """Have threads that wait leave their core, unless the environment says otherwise; before torch comes, which reads it once.

    Those that spin at a barrier make small products 75 times slower on cores that others use too."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
