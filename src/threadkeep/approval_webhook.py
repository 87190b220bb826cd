"""Tells a URL of each call that waits for a person, signed as Standard Webhooks.

Whoever claims an approval in the database calls the URL, and then stores that this is done, or when
it is tried again. A process that dies in between leaves the claim to run out, and the URL is called
again: at least once, and by the `webhook-id`, which is the approval's, receivers tell repeats. Of
the URL, the secret and the call itself nothing is logged.

The form is that of https://github.com/standard-webhooks/standard-webhooks (its spec folder).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Self

import httpx2

from threadkeep.approvals import get_approval
from threadkeep.database import Database, Row
from threadkeep.errors import ApprovalNotFoundError, DatabaseError, SettingsError
from threadkeep.failures import log_fault
from threadkeep.settings import Settings

LOOK_SECONDS = 1.0
"""Between two looks, at most: replicas do not all look at once."""

TIMEOUT_SECONDS = 10.0
"""How long a call may take, from the connection to the status."""

LEASE_MS = 60_000
"""How long nobody else makes a call that somebody is at, in milliseconds."""

PAUSES_MS = (5_000, 60_000, 600_000, 3_600_000, 6 * 3_600_000)
"""Before the next try after one, two, … that failed, in milliseconds; the last one from then on."""

BATCH = 20
"""How many calls are made at once."""

_PREFIX = "whsec_"
_MIN_BYTES, _MAX_BYTES = 24, 64

_logger = logging.getLogger("threadkeep")


class Webhook:
    """A URL to call, and the secret that calls are signed with.

    Args:
        url: Of http or https.
        secret: `whsec_` and 24 to 64 bytes in base64, or any text of at least 24 characters.

    Raises:
        SettingsError: One of them can't be used.
    """

    def __init__(self, url: str, secret: str) -> None:
        self._url = _parsed(url)
        self._key = _key(secret)

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """What the settings say; None when they name no URL.

        Raises:
            SettingsError: What they say can't be used.
        """
        if settings.approval_webhook_url is None:
            return None
        if settings.approval_webhook_secret is None:
            raise SettingsError(
                "APPROVAL_WEBHOOK_SECRET: is missing, and APPROVAL_WEBHOOK_URL is set. Set it to "
                f"{_PREFIX} and 24 to 64 random bytes in base64, and tell the receiver."
            )
        return cls(settings.approval_webhook_url, settings.approval_webhook_secret)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx2.AsyncClient]:
        """What `send` calls with; while it is there, its log does not name the URL."""

        def tells_nothing(record: logging.LogRecord) -> bool:
            return str(self._url) not in record.getMessage()

        logger = logging.getLogger("httpx2")
        logger.addFilter(tells_nothing)
        try:
            # A redirect would hand on to others what is for this URL alone.
            async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS, follow_redirects=False) as made:
                yield made
        finally:
            logger.removeFilter(tells_nothing)

    async def send(self, client: httpx2.AsyncClient, message_id: str, body: str) -> str | None:
        """Calls the URL once; gives why that failed, or None.

        Args:
            client: Of this webhook.
            message_id: The same in every try.
            body: JSON.
        """
        headers = {"Content-Type": "application/json", **self._signed(message_id, body)}
        try:
            async with (
                asyncio.timeout(TIMEOUT_SECONDS),
                client.stream("POST", self._url, content=body.encode(), headers=headers) as reply,
            ):
                return None if reply.is_success else f"status {reply.status_code}"
        except (httpx2.HTTPError, TimeoutError) as error:  # its words may name the URL
            return type(error).__name__

    def _signed(self, message_id: str, body: str) -> dict[str, str]:
        now = str(int(time.time()))
        content = f"{message_id}.{now}.{body}".encode()
        signature = base64.b64encode(hmac.digest(self._key, content, hashlib.sha256)).decode()
        return {
            "webhook-id": message_id,
            "webhook-timestamp": now,
            "webhook-signature": f"v1,{signature}",
        }


def _parsed(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingsError(
            "APPROVAL_WEBHOOK_URL: is no URL that can be called. It must be of the form "
            "https://host/path, or http://host/path."
        )
    return parsed


def _key(secret: str) -> bytes:
    if not secret.startswith(_PREFIX):
        if len(secret) < _MIN_BYTES:
            raise SettingsError(
                f"APPROVAL_WEBHOOK_SECRET: is too short. It must have at least {_MIN_BYTES} "
                f"characters, or be {_PREFIX} and {_MIN_BYTES} to {_MAX_BYTES} bytes in base64."
            )
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):  # the latter for what is not ASCII
        key = b""
    if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise SettingsError(
            f"APPROVAL_WEBHOOK_SECRET: behind {_PREFIX} there must be {_MIN_BYTES} to "
            f"{_MAX_BYTES} bytes in base64."
        )
    return key


async def tell_all(database: Database, webhook: Webhook, client: httpx2.AsyncClient) -> int:
    """Tells the webhook of what waits for a person, as far as it is time for that.

    Args:
        database: Where approvals lie.
        webhook: Whom to tell.
        client: Of the webhook.

    Returns:
        How many approvals it was told of.

    Raises:
        DatabaseError: They could not be looked for.
    """
    told = 0
    while rows := await database.call("claim_approvals_to_tell", lease=LEASE_MS, limit=BATCH):
        tellings = (_tell(database, webhook, client, row) for row in rows if row["is_pending"])
        for outcome in await asyncio.gather(*tellings, return_exceptions=True):
            if isinstance(outcome, BaseException):  # its claim runs out, and it is told of again
                log_fault("Telling the webhook of an approval", outcome)
            else:
                told += outcome
    return told


async def keep_telling(database: Database, webhook: Webhook) -> None:
    """Does so again and again, until it is cancelled."""
    while True:
        try:
            async with webhook.client() as client:
                while True:
                    await tell_all(database, webhook, client)
                    await _pause()
        except DatabaseError as error:
            _logger.warning("Nobody was told of approvals: %s", error)
        except Exception as error:  # noqa: BLE001 - the environment has a part in the client
            log_fault("Telling the webhook of approvals", error)
        await _pause()


async def _pause() -> None:
    await asyncio.sleep(LOOK_SECONDS * random.uniform(0.5, 1))  # noqa: S311 - no secret


async def _tell(database: Database, webhook: Webhook, client: httpx2.AsyncClient, row: Row) -> bool:
    """Tells of one approval that was claimed, if it is pending still; gives whether it did."""
    approval_id, tries = row["approval_id"], row["tell_tries"]
    approval = await _find_pending(database, approval_id, row["owner"])
    failure, again_after = None, None
    if approval is not None:
        failure = await webhook.send(client, approval_id, _body(approval, row["owner"]))
    if failure is not None:
        again_after = PAUSES_MS[min(tries, len(PAUSES_MS)) - 1]
        _logger.warning(
            "The webhook was not told of approval %s (%s, try %d). It is tried again in %d s.",
            approval_id,
            failure,
            tries,
            again_after // 1000,
        )
    await database.call(
        "record_telling",
        approval_id=approval_id,
        owner=row["owner"],
        tell_tries=tries,
        again_after=again_after,
    )
    return approval is not None and failure is None


async def _find_pending(database: Database, approval_id: str, owner: str) -> dict[str, Any] | None:
    try:
        approval = await get_approval(database, approval_id, owner)
    except ApprovalNotFoundError:  # deleted with its session, just now
        return None
    return approval if approval["status"] == "pending" else None


def _body(approval: dict[str, Any], owner: str) -> str:
    """The message, the same in every try: its time is that of the approval."""
    made_at = datetime.fromtimestamp(approval["created_at"], UTC)
    return json.dumps(
        {
            "type": "approval.requested",
            "timestamp": made_at.isoformat().replace("+00:00", "Z"),
            "data": approval | {"owner": owner or None},
        }
    )
