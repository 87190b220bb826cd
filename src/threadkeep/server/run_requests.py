"""From what a client sent to what a run is asked to do, now or again in another process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast, get_args

from agents import Agent, ModelProvider, RunConfig, TResponseInputItem

from threadkeep.database import Database
from threadkeep.errors import AgentCodeError, InvalidInputError
from threadkeep.history import check_id, json_text
from threadkeep.memory import Memory
from threadkeep.memory_store import Likeness
from threadkeep.recall import TOKENS, Recall
from threadkeep.run_request import Concurrency, OneContext, RunRequest
from threadkeep.runs import continuation_key
from threadkeep.server.contexts import ContextType, OwnContexts
from threadkeep.server.requests import ResponsesRequest, input_items


@dataclass(frozen=True)
class AgentContext:
    """What one run is about: given to `create_agent`, and to tools as the SDK's context.

    Args:
        session_id: The conversation.
        owner: Whose it is; None when the server has one user only.
        request: What the client sent.
        memory: What is remembered of the user, across conversations.
    """

    session_id: str
    owner: str | None
    request: ResponsesRequest
    memory: Memory


CreateAgent = Callable[[AgentContext], Agent[Any]]
CreateContext = Callable[[AgentContext], Any]
GetSessionId = Callable[[ResponsesRequest], str]
SharedMemory = Callable[[AgentContext], str | None]


class RunRequests:
    """Makes the requests of runs.

    Args:
        create_agent: Makes the agent of a run.
        get_session_id: Tells the session of a request.
        models: Gives a model by its name.
        model_name: That of the default model, for the reply.
        concurrency: What becomes of a turn whose session has one at work, unless the client says.
        create_context: Makes the SDK's context of a run; None: it is the `AgentContext`.
        recall_tokens: How many tokens are recalled for a turn, about.
        facts_only: Whether of past sessions only what users said of themselves is recalled.
        shared_memory: Names the shared memories of a run; None: they are the owner's own.
        likeness: How an embedding model finds memories; None: words alone tell.

    Raises:
        AgentCodeError: What it gives can't be stored.

    Attributes:
        models, likeness: As above.
        database: Where memories are; set once it is open.
    """

    database: Database

    def __init__(
        self,
        create_agent: CreateAgent,
        get_session_id: GetSessionId,
        models: ModelProvider,
        model_name: str,
        concurrency: Concurrency,
        create_context: CreateContext | None = None,
        *,
        recall_tokens: int = TOKENS,
        facts_only: bool = False,
        shared_memory: SharedMemory | None = None,
        likeness: Likeness | None = None,
    ) -> None:
        self._create_agent = create_agent
        self._get_session_id = get_session_id
        self.models = models
        self._model_name = model_name
        self._concurrency = concurrency
        self._recall_tokens = recall_tokens
        self._facts_only = facts_only
        self._shared_memory = shared_memory
        self.likeness = likeness
        self._context_type = create_context and ContextType.of(create_context)

    def make(
        self,
        body: ResponsesRequest,
        session_id: str,
        owner: str,
        items: list[TResponseInputItem],
        *,
        idempotency_key: str | None = None,
        request_hash: str = "",
        goes_on_from: str = "",
    ) -> RunRequest:
        """A request that a client has sent.

        Raises:
            InvalidInputError: Its `concurrency` or `temporary` can't be used.
        """
        context = self.context(body, session_id, owner)
        temporary = _temporary_of(body)
        recall = Recall(
            context.memory,
            session_id=session_id,
            user=owner,
            tokens=self._recall_tokens,
            temporary=temporary,
            keeps=body.store,
            facts_only=self._facts_only,
        )
        contexts = OwnContexts(self._context_type, context) if self._context_type else None
        source = {"body": body.model_dump(mode="json"), "goes_on_from": goes_on_from}
        return RunRequest(
            session_id=session_id,
            owner=owner,
            items=items,
            make_agent=partial(self._create_agent, context),
            contexts=contexts or OneContext(context),
            # Traces would carry what users write to OpenAI, unasked.
            run_config=RunConfig(
                model_provider=self.models,
                tracing_disabled=True,
                call_model_input_filter=recall,
            ),
            model=self._model_name,
            source=json_text(source),
            store=body.store,
            background=body.background,
            metadata=body.metadata or {},
            previous_response_id=goes_on_from or body.previous_response_id,
            idempotency_key=idempotency_key,
            request_hash=request_hash,
            concurrency=self._concurrency_of(body),
            goes_on_from=goes_on_from,
            temporary=temporary,
            recalled=lambda: recall.references,
        )

    def first_agent(self) -> Agent[Any]:
        """An agent as a first turn would have it, for the embedded model to read ahead."""
        body = ResponsesRequest(input="Hello")
        return self._create_agent(self.context(body, self._get_session_id(body), ""))

    def context(self, body: ResponsesRequest, session_id: str, owner: str) -> AgentContext:
        """What a run is about."""
        own = Memory.of(self.database, owner, likeness=self.likeness)
        context = AgentContext(session_id, owner or None, body, own)
        shared = self._shared_memory(context) if self._shared_memory else None
        if shared is None:
            return context
        return replace(context, memory=Memory.of(self.database, owner, shared, self.likeness))

    def restore(self, session_id: str, owner: str, row: Mapping[str, Any]) -> RunRequest:
        """The request of a stored run, to be made again.

        Args:
            session_id: Its session.
            owner: Whose it is.
            row: Its `request`, `request_hash` and `idempotency_key`; and `goes_on_from`, when it is
                another run that is to go on with its turn.

        Raises:
            ValidationError: It was stored by a release whose requests we do not know.
        """
        source = json.loads(row["request"])
        body = ResponsesRequest.model_validate(source["body"])
        ended = row.get("goes_on_from")
        return self.make(
            body,
            session_id,
            owner,
            input_items(body.input),
            idempotency_key=continuation_key(ended) if ended else row["idempotency_key"],
            request_hash="" if ended else row["request_hash"],
            goes_on_from=ended or source["goes_on_from"],
        )

    def session_id(self, body: ResponsesRequest) -> str:
        """The session of a request; whose fault it is when that is no id, the error tells.

        Raises:
            InvalidInputError: It is no id.
            AgentCodeError: `get_session_id` gave no text.
        """
        told: object = self._get_session_id(body)
        given = (body.custom_inputs or {}).get("session_id")
        if isinstance(told, str) or (told is not None and told is given):
            return check_id(told, "custom_inputs.session_id")
        raise AgentCodeError(
            "get_session_id in agent_server/agent.py must return a string, not "
            f"{type(told).__name__}."
        )

    def _concurrency_of(self, body: ResponsesRequest) -> Concurrency:
        asked = (body.custom_inputs or {}).get("concurrency")
        if asked is None:
            return self._concurrency
        if asked not in get_args(Concurrency):
            raise InvalidInputError(
                f"custom_inputs.concurrency must be one of {', '.join(get_args(Concurrency))}.",
                param="custom_inputs.concurrency",
            )
        return cast(Concurrency, asked)


def _temporary_of(body: ResponsesRequest) -> bool:
    temporary = (body.custom_inputs or {}).get("temporary", False)
    if not isinstance(temporary, bool):
        raise InvalidInputError(
            "custom_inputs.temporary must be true or false.",
            param="custom_inputs.temporary",
            code="invalid_type",
        )
    return temporary
