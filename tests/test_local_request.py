"""What of a talk the embedded model is shown, and what it may choose: without the model itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    WebSearchTool,
    handoff,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.local_talk import assistant, call, get_current_time, get_weather, user
from threadkeep import Memory
from threadkeep.local.choice import choosing, choosing_parameters, open_choice, options_of
from threadkeep.local.conversation import (
    HISTORY_TOKENS,
    Message,
    Turn,
    first_kept,
    read,
)
from threadkeep.local.errors import (
    UnsupportedByEmbeddedModelError,
)
from threadkeep.reminder import Note, Reminder


class TestWhatIsShown:
    """The part that needs no model: items become turns, and old turns go."""

    def test_items_become_turns(self) -> None:
        """A turn is what a user said and all that followed, notes before it included."""
        conversation = read(
            [
                {"role": "developer", "content": "Be kind."},
                user("Hi"),
                {"type": "reasoning", "id": "rs_1", "summary": []},
                assistant("Hello"),
                {"role": "system", "content": "It is Monday."},
                user("What time is it?"),
                *call("get_current_time", "16:20"),
            ]
        )
        assert conversation.preamble == [Message("system", "Be kind.")]
        assert [turn.messages for turn in conversation.turns] == [
            [Message("user", "Hi"), Message("assistant", "Hello")],
            [
                Message("system", "It is Monday."),
                Message("user", "What time is it?"),
                Message("system", "Result of get_current_time: 16:20"),
            ],
        ]
        assert conversation.newest.called == ["get_current_time"]

    def test_what_it_is_reminded_of_stands_before_the_question(self) -> None:
        """As facts, what they said of themselves alone, behind examples; tools see none of it."""
        notes = [
            Note("I am vegan", 0, "user", {}),
            Note("Suggest a beef", 0, "user", {}),
            Note("Try beef", 0, "assistant", {}),
        ]
        conversation = read([user("Hi"), assistant("Hello"), Reminder(notes), user("Dinner?")])
        first, *examples, hi, hello, facts, question = conversation.shown("Be kind.")
        assert first == Message("system", "Be kind.")
        assert [message.role for message in examples] == ["system", *["user", "assistant"] * 4]
        assert (hi.text, hello.text, question.text) == ("Hi", "Hello", "Dinner?")
        assert facts.text.splitlines()[:2] == ["Facts about the user:", "- I am vegan"]
        assert "beef" not in facts.text
        assert conversation.newest.user_text == "Dinner?"
        assert options_of(Memory("ann", database="sqlite://").tools(), []) == []

    def test_a_text_is_a_turn(self) -> None:
        """Input may be a string."""
        assert read("Hi").shown() == [Message("user", "Hi")]

    @pytest.mark.parametrize(
        ("item", "param"),
        [
            (
                {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]},
                "input[1].content[0]",
            ),
            (
                {"role": "user", "content": [{"type": "input_file", "file_id": "f"}]},
                "input[1].content[0]",
            ),
            ({"type": "computer_call_output", "call_id": "c", "output": {}}, "input[1]"),
            ({"role": "critic", "content": "Boo"}, "input[1]"),
            (
                {
                    "type": "function_call_output",
                    "call_id": "c",
                    "output": [{"type": "input_image", "image_url": "data:,"}],
                },
                "input[1].output[0]",
            ),
        ],
    )
    def test_what_the_model_can_not_take_in_is_refused_by_name(
        self, item: dict[str, Any], param: str
    ) -> None:
        """Nothing is dropped in silence: the error names the place."""
        with pytest.raises(UnsupportedByEmbeddedModelError) as caught:
            read([user("Hi"), item])
        assert caught.value.param == param

    def test_a_long_tool_output_is_cut_and_says_so(self) -> None:
        """A page that a tool fetched does not push the question out."""
        shown = read([user("Go"), *call("fetch", "x" * 50_000)]).shown()
        assert len(shown[-1].text) < 2_200
        assert "50000 characters" in shown[-1].text

    def test_ten_short_turns_stay_whole(self) -> None:
        """What a user said first is still shown ten turns of small talk later."""
        items = [user("My dog is called Biscuit."), assistant("What a nice name for a dog!")]
        for _ in range(10):
            items += [user("How do I boil an egg?"), assistant("Boil it in water. " * 14)]
        shown = read([*items, user("What is my dog's name?")]).shown()
        assert shown[0] == Message("user", "My dog is called Biscuit.")

    @given(st.lists(st.integers(1, 600), min_size=1, max_size=60))
    def test_what_is_shown_fits_and_ends_with_the_newest_turn(self, costs: list[int]) -> None:
        """The limit holds for every history of turns that are each within it."""
        first = first_kept(costs)
        assert 0 <= first < len(costs)
        assert sum(costs[first:]) <= HISTORY_TOKENS

    @given(st.lists(st.integers(1, 5_000), min_size=1, max_size=60))
    def test_the_beginning_moves_forward_only_and_a_giant_stays_while_newest(
        self, costs: list[int]
    ) -> None:
        """A longer history never brings a dropped turn back; a turn over the limit is not cut."""
        starts = [first_kept(costs[:length]) for length in range(1, len(costs) + 1)]
        assert all(before <= after for before, after in pairwise(starts))
        assert all(start <= newest for newest, start in enumerate(starts))

    def test_cuts_are_rare(self) -> None:
        """Of 200 turns at most one in five begins with a prompt whose cache is cold."""
        starts = [first_kept([100] * length) for length in range(1, 201)]
        moves = sum(before != after for before, after in pairwise(starts))
        assert 0 < moves <= 40


class TestWhatMayBeChosen:
    """The part of tool calling that needs no model."""

    options = options_of([get_current_time, get_weather], [])
    asked = Turn([Message("user", "What time is it?")])

    def chosen(self, settings: ModelSettings, turn: Turn) -> tuple[list[str], bool]:
        choice = open_choice(self.options, turn, settings)
        return [option.name for option in choice.options], choice.may_answer

    @pytest.mark.parametrize(
        ("tool_choice", "expected"),
        [
            (None, (["get_current_time", "get_weather"], True)),
            ("auto", (["get_current_time", "get_weather"], True)),
            ("none", ([], True)),
            ("required", (["get_current_time", "get_weather"], False)),
            ("get_weather", (["get_weather"], False)),
        ],
    )
    def test_tool_choice_is_kept(
        self, tool_choice: str | None, expected: tuple[list[str], bool]
    ) -> None:
        """The SDK's own words mean what they mean elsewhere."""
        assert self.chosen(ModelSettings(tool_choice=tool_choice), self.asked) == expected

    def test_a_tool_is_not_offered_twice_in_a_turn(self) -> None:
        """Or a small model would call it for ever; at the end it must answer."""
        once = Turn(self.asked.messages, ["get_current_time"])
        both = Turn(self.asked.messages, ["get_current_time", "get_weather"])
        assert self.chosen(ModelSettings(), once) == (["get_weather"], True)
        assert self.chosen(ModelSettings(tool_choice="required"), both) == ([], True)

    def test_only_the_names_on_offer_can_be_generated(self) -> None:
        """The grammar holds `answer` exactly where answering is allowed."""
        open_ = choosing_parameters(open_choice(self.options, self.asked, ModelSettings()))
        forced = choosing_parameters(
            open_choice(self.options, self.asked, ModelSettings(tool_choice="required"))
        )
        assert (
            open_["extra_body"]["grammar"]
            == 'root ::= ("answer" | "get_current_time" | "get_weather") "\\""'
        )
        assert '"answer"' not in forced["extra_body"]["grammar"]

    def test_handoffs_are_chosen_like_tools(self) -> None:
        """A handoff is a function with a name of its own."""
        options = options_of([], [handoff(Agent(name="Billing"))])
        assert [option.name for option in options] == ["transfer_to_billing"]
        assert not options[0].takes_arguments

    def test_hosted_tools_are_refused(self) -> None:
        """They run on OpenAI's servers."""
        with pytest.raises(UnsupportedByEmbeddedModelError):
            options_of([WebSearchTool()], [])

    def test_the_prompt_stays_the_same_up_to_the_users_words(self) -> None:
        """All but the last two messages come from the cache."""
        one, other = choosing(self.options, "What time is it?"), choosing(self.options, "Hi " * 900)
        assert one[:-2] == other[:-2]
        assert len(str(other[-2]["content"])) < 700
