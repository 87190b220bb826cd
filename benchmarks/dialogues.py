"""Does the agent still know, some turns later, what its user said? 30 short dialogues, scored.

Each dialogue tells one fact about the user, talks of other things for 1 to 10 turns, then asks. A
dialogue is right when the last reply holds one of the accepted answers as whole words, whatever
their case. They were written before any prompt was tuned.

    uv run python benchmarks/dialogues.py --url http://localhost:8000   # a running server
    uv run python benchmarks/dialogues.py --direct                      # SDK + embedded model, here
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Say = Callable[[str, str], Awaitable[str]]
"""Takes a session's id and what the user says; gives the agent's reply."""


@dataclass(frozen=True)
class Dialogue:
    fact: str
    question: str
    accepted: tuple[str, ...]
    talk: int
    """Turns between the fact and the question."""


DIALOGUES = (
    Dialogue("Hello, I live in SF!", "What city did I say I live in?", ("SF", "San Francisco"), 1),
    Dialogue("Hi, my name is Marta.", "What is my name?", ("Marta",), 10),
    Dialogue("I'm allergic to peanuts.", "What am I allergic to?", ("peanuts?",), 4),
    Dialogue("My dog is called Biscuit.", "What is my dog's name?", ("Biscuit",), 7),
    Dialogue("I work as a nurse.", "What is my job?", ("nurse",), 3),
    Dialogue("My favourite colour is teal.", "Which colour do I like best?", ("teal",), 9),
    Dialogue("I have two daughters.", "How many daughters do I have?", ("two", "2"), 2),
    Dialogue("I was born in 1987.", "What year was I born?", ("1987",), 6),
    Dialogue("I play the cello.", "Which instrument do I play?", ("cello",), 8),
    Dialogue("I'm learning Portuguese.", "Which language am I learning?", ("Portuguese",), 5),
    Dialogue("I drive an old Volvo.", "What car do I drive?", ("Volvo",), 10),
    Dialogue("I don't eat meat, I'm vegetarian.", "What is my diet?", ("vegetarian",), 1),
    Dialogue("My sister's name is Ingrid.", "What is my sister called?", ("Ingrid",), 4),
    Dialogue("We are moving to Lisbon in May.", "Where are we moving to?", ("Lisbon",), 7),
    Dialogue("I run a small bakery.", "What business do I run?", ("bakery",), 3),
    Dialogue("I have an exam on Thursday.", "What day is my exam?", ("Thursday",), 9),
    Dialogue("I support Celtic.", "Which football team do I support?", ("Celtic",), 2),
    Dialogue("I take my coffee with oat milk.", "What milk do I take?", ("oat",), 6),
    Dialogue("My flight leaves at 7:40.", "When does my flight leave?", ("7:40",), 8),
    Dialogue("I use Arch Linux.", "Which Linux do I use?", ("Arch",), 5),
    Dialogue("My project is called Heron.", "What is my project called?", ("Heron",), 10),
    Dialogue("I'm afraid of spiders.", "What am I afraid of?", ("spiders?",), 1),
    Dialogue("I sit at desk 42.", "What is my desk number?", ("42", "forty-two"), 4),
    Dialogue(
        "My anniversary is June 12.", "When is my anniversary?", ("June 12(th)?", "12 June"), 7
    ),
    Dialogue("I study marine biology.", "What do I study?", ("marine biology",), 3),
    Dialogue("My cat Pixel is three years old.", "How old is my cat?", ("three", "3"), 9),
    Dialogue("My boss is Mr Okafor.", "Who is my boss?", ("Okafor",), 2),
    Dialogue("I grew up in Norway.", "In which country did I grow up?", ("Norway",), 6),
    Dialogue("I want to run a marathon.", "What is my goal?", ("marathon",), 8),
    Dialogue("I collect old maps.", "What do I collect?", ("maps",), 5),
)

TALK = (
    "What is the capital of Canada?",
    "Tell me a short joke.",
    "How do I boil an egg?",
    "What is 12 times 11?",
    "Thanks, that helps.",
    "Name three kinds of fruit.",
    "Why is the sky blue?",
    "What's a good name for a boat?",
    "How many minutes are in a day?",
    "Who wrote Hamlet?",
    "Give me a tip for sleeping better.",
    "It rained all morning.",
    "What does 'ubiquitous' mean?",
    "Is a tomato a fruit?",
    "How do plants make food?",
    "Suggest a film for tonight.",
    "What is the tallest mountain?",
    "How do I remove a coffee stain?",
    "OK, good to know.",
    "Translate 'good morning' into French.",
    "What do bees do in winter?",
    "How far away is the moon?",
    "What should I cook with rice and beans?",
    "Who painted the Mona Lisa?",
    "What is a haiku?",
    "I had a long day.",
    "How do magnets work?",
    "Which planet is the largest?",
    "Give me a word that rhymes with light.",
    "How long should I steep green tea?",
    "What is inflation?",
)


def talk(number: int) -> list[str]:
    """The other talk of a dialogue: the same each time, another for each dialogue."""
    start = number * 7
    return [TALK[(start + i) % len(TALK)] for i in range(DIALOGUES[number].talk)]


def is_right(dialogue: Dialogue, reply: str) -> bool:
    """Whether a reply holds an accepted answer (each a regular expression) as whole words."""
    accepted = "|".join(dialogue.accepted)
    return re.search(rf"(?<!\w)({accepted})(?!\w)", reply, re.IGNORECASE) is not None


async def run(say: Say, *, verbose: bool = False) -> int:
    """Hold all dialogues, print those that failed and the figures; give the number right."""
    right = turns = 0
    started = time.monotonic()
    for number, dialogue in enumerate(DIALOGUES):
        session = f"dialogue-{number}-{time.time_ns()}"
        reply = ""
        for text in (dialogue.fact, *talk(number), dialogue.question):
            reply = await say(session, text)
            turns += 1
            if verbose:
                print(f"{number:2} > {text}\n   < {reply}")
        if is_right(dialogue, reply):
            right += 1
        else:
            print(f"wrong, {dialogue.talk} turns on: {dialogue.fact} {dialogue.question} {reply!r}")
        sys.stdout.flush()
    seconds = (time.monotonic() - started) / turns
    print(f"{right} of {len(DIALOGUES)} right, {seconds:.2f} seconds a turn, {turns} turns")
    return right


def over_http(url: str) -> Say:
    """Say things to a running server."""

    def post(session: str, text: str) -> str:
        body = {
            "input": [{"role": "user", "content": text}],
            # What other dialogues have told must not answer for this one.
            "custom_inputs": {"session_id": session, "temporary": True},
        }
        request = urllib.request.Request(
            f"{url.rstrip('/')}/invocations",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            reply: dict[str, Any] = json.load(response)
        parts = [part for item in reply["output"] for part in item.get("content") or ()]
        return " ".join(part["text"] for part in parts if part.get("type") == "output_text")

    async def say(session: str, text: str) -> str:
        return await asyncio.to_thread(post, session, text)

    return say


async def run_directly(*, verbose: bool) -> int:
    """Hold the dialogues in this process: SDK Runner, SDK session, embedded model, one tool."""
    from agents import Agent, Runner, SQLiteSession, function_tool, set_tracing_disabled

    from threadkeep.local import LocalRuntime

    set_tracing_disabled(True)

    @function_tool
    def get_current_time() -> str:
        """Get the current date and time."""
        return datetime.now(UTC).isoformat(timespec="seconds")

    runtime = LocalRuntime(None, on_progress=print)
    await runtime.start()
    agent: Agent[None] = Agent(
        name="Assistant",
        instructions=(
            "You are a helpful assistant. Remember what the user tells you about themselves and "
            "use it to answer their questions. Keep answers short."
        ),
        model=runtime.model(),
        tools=[get_current_time],
    )
    sessions: dict[str, SQLiteSession] = {}

    async def say(session: str, text: str) -> str:
        memory = sessions.setdefault(session, SQLiteSession(session))
        result = await Runner.run(agent, text, session=memory)
        calls = [item for item in result.new_items if item.type == "tool_call_item"]
        if calls and verbose:
            print(f"   ! {len(calls)} tool call(s)")
        return str(result.final_output)

    try:
        return await run(say, verbose=verbose)
    finally:
        await runtime.aclose()


def main() -> None:
    """Parse the arguments, run, and fail below `--least` right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a running server, e.g. http://localhost:8000")
    where.add_argument("--direct", action="store_true", help="the embedded model in this process")
    parser.add_argument("--least", type=int, default=25, help="fail below this score (25)")
    parser.add_argument("--verbose", action="store_true", help="print every turn")
    arguments = parser.parse_args()
    if arguments.direct:
        right = asyncio.run(run_directly(verbose=arguments.verbose))
    else:
        right = asyncio.run(run(over_http(arguments.url), verbose=arguments.verbose))
    sys.exit(right < arguments.least)


if __name__ == "__main__":
    main()
