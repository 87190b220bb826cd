"""The dialects mirror each other: the same named statements, with the same parameters."""

from __future__ import annotations

import re

import pytest

from threadkeep.database import load_statements
from threadkeep.migrate import load_migrations

SQLITE, POSTGRES = load_statements("sqlite"), load_statements("postgres")


OF_THE_DRIVER = {"call_id", "retried", "channel"}
"""Given by the Postgres driver itself: for statements that may be made again, and for signals."""


def parameters(text: str) -> set[str]:
    code = re.sub(r"--.*", "", text)
    return set(re.findall(r"(?<![:\w]):([a-z_]+)", code)) - OF_THE_DRIVER


def test_the_dialects_have_the_same_statements() -> None:
    """Features call them by name, on either."""
    assert SQLITE.keys() == POSTGRES.keys()


@pytest.mark.parametrize("name", sorted(SQLITE))
def test_a_statement_takes_the_same_parameters(name: str) -> None:
    """In either dialect."""
    assert parameters(SQLITE[name]) == parameters(POSTGRES[name])


def test_the_migrations_are_the_same_steps() -> None:
    """By number and name."""
    steps = [[(m.version, m.name) for m in load_migrations(d)] for d in ("sqlite", "postgres")]
    assert steps[0] == steps[1]
