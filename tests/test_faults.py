"""Turns go on while tokens expire and servers restart: none fails, nothing is lost or doubled."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.backends import Lakebase
from tests.client import client_of, contents, post, stream, text_of_response
from tests.conftest import RunningApp, environment
from tests.lakebase import LakebaseStandIn


@contextmanager
def every_two_seconds(lakebase: LakebaseStandIn) -> Iterator[list[float]]:
    """Expires every token and restarts the server, again and again, until the block ends."""
    ended, restarts = threading.Event(), list[float]()

    def restart() -> None:
        while not ended.wait(2):
            lakebase.expire_tokens()
            lakebase.restart()
            restarts.append(time.monotonic())

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        yield restarts
    finally:
        ended.set()
        thread.join()


def test_turns_while_tokens_expire_and_the_server_restarts(
    workspace: LakebaseStandIn, prove: bool
) -> None:
    """Eight users talk, plain and streamed, to two servers on one Lakebase."""
    place = environment(Lakebase(workspace, workspace.new_database()))
    apps = [RunningApp(dict(place)) for _ in range(2)]
    until = time.monotonic() + (60 if prove else 9)
    workspace.token_seconds = 1.5
    said: dict[str, list[str]] = {f"session-{number}": [] for number in range(8)}
    failures: list[str] = []

    def talk(session_id: str) -> None:
        number = 0
        clients = [client_of(app.url) for app in apps]
        while time.monotonic() < until:
            client, text = clients[number % 2], f"{session_id}-{number}"
            if number % 3 == 2:
                response = stream(client, f"say {text}", session_id)[-1]["response"]
            else:
                reply = post(client, f"say {text}", session_id)
                response = reply.json()
                if reply.status_code != 200:
                    failures.append(reply.text)
                    break
            if response["status"] != "completed" or text_of_response(response) != text:
                failures.append(str(response))
            said[session_id] += [f"say {text}", text]
            number += 1
        for client in clients:
            client.close()

    with every_two_seconds(workspace) as restarts:
        talkers = [threading.Thread(target=talk, args=(session_id,)) for session_id in said]
        for talker in talkers:
            talker.start()
        for talker in talkers:
            talker.join()
    assert failures == []
    assert len(restarts) >= (20 if prove else 2)
    with client_of(apps[0].url) as client:
        for session_id, texts in said.items():
            assert len(texts) > 10
            assert contents(client, session_id) == texts
    turns = sum(map(len, said.values())) // 2
    print(f"{turns} turns, {len(restarts)} restarts, {workspace.minted} tokens")
    for app in apps:
        app.stop()
