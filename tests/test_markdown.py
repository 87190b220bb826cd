"""The markdown renderer: safe on any text, and a stream ends in the same HTML as a full render."""

from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from threadkeep.server import markdown
from threadkeep.server.markdown import StreamRenderer, render

TAG_WORDS = """
a blockquote br code em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong
table tbody td th thead tr ul
"""
TAGS = set(TAG_WORDS.split())
ATTRIBUTES = {"href", "title", "target", "rel", "class", "start", "data-language"}

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "<style>body{display:none}</style>",
    "<base href=//evil.example>",
    "<form action=//evil.example><button>x</button></form>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<!--><img src=x onerror=alert(1)>-->",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](&#x6A;avascript:alert(1))",
    "[x](java&Tab;script:alert(1))",
    "[x](vbscript:msgbox(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "<javascript:alert(1)>",
    '[x](https://a.example "onmouseover=alert(1)")',
    '[x](https://a.example/"onmouseover="alert(1))',
    "![x](https://evil.example/track.png)",
    '![x" onerror="alert(1)](https://evil.example/a.png)',
    "![x](javascript:alert(1))",
    "![x](data:image/svg+xml;base64,PHN2Zy8+)",
    '```"><script>alert(1)</script>\nx\n```',
    "```html\n<script>alert(1)</script>\n```",
    '```python"onclick=alert(1)\nx\n```',
    "| a |\n|---|\n| <script>alert(1)</script> |",
    "`<script>alert(1)</script>`",
    "- <script>alert(1)</script>",
    "# <img src=x onerror=alert(1)>",
    "https://a.example/<script>alert(1)</script>",
    "\x00<script>\x00alert(1)</script>",
    "\ud800<script>alert(1)</script>",
]

# Text in which the marks that open and close blocks are likely, so that chunks cut them.
MARKS = """
# - * + > | ` ``` ~~~ === --- |-|- a|b |:-| 1. 2) [ ]( ) ![ [a]: < & _ ** ~~ http://a.b/ \\ x word
"""
PIECES = st.sampled_from(MARKS.split()) | st.sampled_from(
    [" ", "    ", "\n", "\n\n", "\n    ", "\n  ", "\r", "\r\n", "\t", "\x00", "\ud800"]
)
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=40).map("".join)


def shown(deltas: list[str]) -> list[str]:
    """What a page shows after all deltas."""
    stream, blocks = StreamRenderer(), list[str]()
    for delta in deltas:
        first, changed = stream.feed(delta)
        assert first <= len(blocks)
        blocks[first:] = changed
    first, changed = stream.finish()
    blocks[first:] = changed
    return blocks


def chunks(text: str, sizes: list[int]) -> list[str]:
    result, rest = [], text
    for size in sizes:
        result.append(rest[:size])
        rest = rest[size:]
    return [*result, rest]


class Allowed(HTMLParser):
    """Fails on anything that could act: a tag, an attribute or an address off the lists above."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= ATTRIBUTES
        values = dict(attrs)
        if tag == "a":
            assert values["target"] == "_blank"
            assert values["rel"] == "noopener noreferrer"
            assert urlsplit(values.get("href") or "").scheme in {"", "http", "https", "mailto"}

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def assert_harmless(blocks: list[str]) -> None:
    for block in blocks:
        Allowed().feed(block)


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 9), max_size=60))
@example("para\n#foo", [6, 1])
@example("a\r\n\r\nb", [2, 2])
@example("para\nx | y\n--|-z", [14])
@example("- a\n\n  b\n\nc", [4, 2, 3])
def test_a_stream_ends_in_the_same_html_as_a_full_render(text: str, sizes: list[int]) -> None:
    """Whatever the text and wherever it is cut, and nothing in it is able to act."""
    whole = render(text)
    assert shown(chunks(text, sizes)) == whole
    assert_harmless(whole)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=30).map("\n\n".join))
def test_blocks_that_were_let_go_never_change(text: str) -> None:
    """The same holds letter by letter, when all blocks but the last are given up on the way."""
    assert shown(list(text)) == render(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_markdown_is_shown_as_text(text: str) -> None:
    """Nothing of it becomes markup that acts, in one piece or letter by letter."""
    blocks = render(text)
    assert blocks
    assert_harmless(blocks)
    assert shown(list(text)) == blocks


@pytest.mark.parametrize("text", ["", "\n\n", "   ", "\r"])
def test_blank_text_has_no_blocks(text: str) -> None:
    """An answer that is only white space shows nothing."""
    assert render(text) == []


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a **b** _c_ ~~d~~ `e`", "<p>a <strong>b</strong> <em>c</em> <s>d</s> <code>e</code></p>"),
        ("one\ntwo", "<p>one<br>\ntwo</p>"),
        ("- a\n- b", "<ul>\n<li>a</li>\n<li>b</li>\n</ul>"),
        ("3. a\n4. b", '<ol start="3">\n<li>a</li>\n<li>b</li>\n</ol>'),
        ("> q", "<blockquote>\n<p>q</p>\n</blockquote>"),
        ("## h", "<h2>h</h2>"),
        ("---", "<hr>"),
        ("edit agent.py", "<p>edit agent.py</p>"),
        ("[1]: https-less", "<p>[1]: https-less</p>"),
        ("<b>raw</b>", "<p>&lt;b&gt;raw&lt;/b&gt;</p>"),
    ],
)
def test_everyday_markdown(text: str, html: str) -> None:
    """The parts of markdown that models use."""
    assert "".join(render(text)).strip() == html


LINK = '<a href="{}" target="_blank" rel="noopener noreferrer">{}</a>'


@pytest.mark.parametrize(
    ("text", "href", "label"),
    [
        ("[docs](https://a.example/x)", "https://a.example/x", "docs"),
        ("https://a.example/x", "https://a.example/x", "https://a.example/x"),
        ("<https://a.example>", "https://a.example", "https://a.example"),
        ("[mail](mailto:a@a.example)", "mailto:a@a.example", "mail"),
        ("![a cat](https://a.example/cat.png)", "https://a.example/cat.png", "a cat"),
        (
            "![](https://a.example/cat.png)",
            "https://a.example/cat.png",
            "https://a.example/cat.png",
        ),
        ("[![badge](https://i.example/b)](https://a.example)", "https://a.example", "badge"),
    ],
)
def test_links_open_elsewhere_and_images_are_links(text: str, href: str, label: str) -> None:
    """A link tells its target nothing of this page, and no image is loaded from another host."""
    assert render(text) == [f"<p>{LINK.format(href, label)}</p>\n"]


def test_a_table_carries_its_alignment_in_classes() -> None:
    """The page's policy refuses inline styles."""
    [html] = render("| a | b | c | d |\n|---|:--|--:|:-:|\n| 1 | 2 | 3 | 4 |")
    assert '<td>1</td>\n<td class="align-left">2</td>\n<td class="align-right">3</td>' in html
    assert '<th class="align-center">d</th>' in html
    assert "style" not in html


def test_code_is_coloured_with_classes_and_names_its_language() -> None:
    """Blank lines and the text itself stay as the model wrote them."""
    [html] = render("```Python\n\ndef f():\n    return '<'\n```")
    assert html.startswith('<pre data-language="python"><code>\n<span class="k">def</span>')
    assert "'&lt;'" in html


@pytest.mark.parametrize(
    ("fence", "opening"),
    [
        ("```\na < b\n```", "<pre><code>"),
        ("```klingon\na < b\n```", '<pre data-language="klingon"><code>'),
        ('```x"y\na < b\n```', "<pre><code>"),
        ("    a < b", "<pre><code>"),
    ],
)
def test_code_of_an_unknown_language_is_plain(fence: str, opening: str) -> None:
    """It is escaped and not coloured; only a name that looks like one becomes the label."""
    assert render(fence) == [f"{opening}a &lt; b\n</code></pre>\n"]


def test_very_long_code_and_paragraphs_are_plain() -> None:
    """Colouring and inline parsing cost too much on text of any length, so they have a bound."""
    assert "<span" not in render("```python\n" + "x = 1\n" * 6000 + "```")[0]
    [html] = render("*a*\n" * 3000)
    assert html.startswith("<p>\n*a*<br>\n*a*<br>\n")


@pytest.mark.parametrize(
    "text",
    [
        "```python\n" + "value = compute(1, 2)\n" * 4_000,
        "word " * 16_000,
        "- an entry of a list\n" * 1_000,
        "| a | b |\n|---|---|\n" + "| one | two |\n" * 1_000,
        "A paragraph of some words.\n\n" * 3_000,
    ],
    ids=["fence", "paragraph", "list", "table", "paragraphs"],
)
def test_a_long_answer_costs_work_in_proportion_to_its_length(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 80 KB in one open block: counted are the characters parsed and sent, not the time."""
    parsed = sent = 0

    def blocks(source: str) -> list[str]:
        nonlocal parsed
        parsed += len(source)
        return [source]

    monkeypatch.setattr(markdown, "_blocks", blocks)
    stream = StreamRenderer()
    for start in range(0, len(text), 20):
        _, changed = stream.feed(text[start : start + 20])
        sent += sum(map(len, changed))
    stream.finish()
    # Rendered at each of its 4,000 deltas, 80 KB would be 160,000,000 characters.
    assert parsed < 100 * len(text)
    assert sent < 100 * len(text)
