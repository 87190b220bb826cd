"""The ids in the paths of the API. One that can't be stored names nothing: it is a 404."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import AfterValidator

from threadkeep.errors import (
    ApprovalNotFoundError,
    InvalidInputError,
    MemoryNotFoundError,
    NotFoundError,
    ResponseNotFoundError,
    SessionNotFoundError,
)
from threadkeep.history import check_id


def _storable(missing: type[NotFoundError], value: str) -> str:
    try:
        return check_id(value, "id")
    except InvalidInputError as error:
        raise missing from error


ApprovalId = Annotated[str, AfterValidator(partial(_storable, ApprovalNotFoundError))]
MemoryId = Annotated[str, AfterValidator(partial(_storable, MemoryNotFoundError))]
ResponseId = Annotated[str, AfterValidator(partial(_storable, ResponseNotFoundError))]
SessionId = Annotated[str, AfterValidator(partial(_storable, SessionNotFoundError))]
