"""For those who write or choose Sessions: a suite that any of them can be put to.

from threadkeep.testing import score

print(asyncio.run(score(make)))  # make: an async function from a session id to a new Session
"""

from threadkeep.errors import NonconformanceError
from threadkeep.testing.check import Check, Damage, SessionFactory
from threadkeep.testing.conformance import Report, Result, checks, damage_checks, score

__all__ = [
    "Check",
    "Damage",
    "NonconformanceError",
    "Report",
    "Result",
    "SessionFactory",
    "checks",
    "damage_checks",
    "score",
]
