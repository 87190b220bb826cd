"""Markdown of a model's answer as HTML that is safe to put into the page.

Three layers keep an answer from doing harm: markdown-it-py never interprets raw HTML, nh3 lets only
the tags and attributes below through, and the page's Content Security Policy refuses the rest.

HTML comes as one string per top-level block, because a stream only ever changes its last blocks.
`StreamRenderer` holds the source from the first block that may still change and parses that alone.
Link reference definitions (`[1]: https://…`) stay text: they would let the last line of an answer
change its first, and the addresses in them become links anyway.

markdown-it-py, nh3 and Pygments are imported at the first use: they would double the time that
importing the server takes.
"""

import re
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import nh3
    from markdown_it import MarkdownIt
    from markdown_it.rules_core import StateCore
    from markdown_it.token import Token
    from pygments.lexer import Lexer

_TAGS = (
    "a blockquote br code em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong "
    "table tbody td th thead tr ul"
)
_URL_SCHEMES = {"http", "https", "mailto"}

# Lexers are regular expressions run on text that a stranger may have steered, so only the common
# languages are coloured, and only up to a size; the rest is shown as it is.
_LANGUAGE_WORDS = """
bash c c++ cpp cs csharp css diff docker dockerfile go golang graphql haskell hcl html ini java
javascript js json jsx kotlin less lua make makefile nginx objective-c perl php powershell proto
protobuf ps1 py python python3 r rb rs ruby rust scala scss sh shell sql swift terraform toml ts
tsx typescript xml yaml yml zig zsh
"""
_LANGUAGES = frozenset(_LANGUAGE_WORDS.split())
_LONGEST_COLOURED = 32_768

# An open block up to this size is rendered at every delta, a longer one when it has grown by a
# fixed share: the work for an answer of n characters then stays O(n), the screen is at most 1/32
# of the block behind.
_ALWAYS_RENDERED = 2_048
_GROWTH = 32

# Links and emphasis can take quadratic time on hostile text: a paragraph longer than this (some
# 1,500 words without a blank line) is shown as plain text.
_LONGEST_INLINE = 10_000

_SURROGATE = re.compile("[\ud800-\udfff]")
_LANGUAGE_NAME = re.compile(r"[\w+#.-]{1,32}", re.ASCII)


def render(text: str) -> list[str]:
    """Sanitised HTML of a whole answer, one string per top-level block."""
    return _blocks(_normalise(text))


class StreamRenderer:
    """The same HTML while the answer is being written.

    Each call answers `(k, blocks)`: replace what is shown from block `k` on by `blocks`. Right
    after `finish` the blocks shown equal `render` of all the deltas put together.
    """

    def __init__(self) -> None:
        self._waiting = ""  # came in, not rendered yet
        self._source = ""  # from the first block that may still change
        self._settled = 0  # number of blocks before it
        self._shown: list[str] = []  # what was last told of the blocks from there on

    def feed(self, delta: str) -> tuple[int, list[str]]:
        """Take the next characters; long open blocks are not rendered every time."""
        self._waiting += delta
        if len(self._waiting) * _GROWTH < len(self._source) - _ALWAYS_RENDERED:
            return self._settled + len(self._shown), []
        # "\r\n" is one line end even when it comes in two deltas.
        held = "\r" if self._waiting.endswith("\r") else ""
        return self._render(held)

    def finish(self) -> tuple[int, list[str]]:
        """Render what `feed` has put off; call it once after the last delta."""
        return self._render("")

    def _render(self, held: str) -> tuple[int, list[str]]:
        self._source += _normalise(self._waiting.removesuffix(held) if held else self._waiting)
        self._waiting = held
        blocks = _blocks(self._source)
        same = _common(self._shown, blocks)
        changed = self._settled + same, blocks[same:]
        self._shown = blocks
        self._settle()
        return changed

    def _settle(self) -> None:
        """Let go of the blocks that no further text can change.

        Only whole lines count: `#` begins a heading, yet `#foo` goes on with the paragraph above.
        After a whole line all blocks but the last stay as they are.
        """
        whole = self._source[: self._source.rfind("\n") + 1]
        starts = _starts(whole)
        if len(starts) < 2:
            return
        self._source = self._source[_line_offset(whole, starts[-1]) :]
        self._settled += len(starts) - 1
        del self._shown[: len(starts) - 1]


def _common(old: list[str], new: list[str]) -> int:
    """How many blocks at the beginning are alike."""
    for index, (before, after) in enumerate(zip(old, new, strict=False)):
        if before != after:
            return index
    return min(len(old), len(new))


def _line_offset(text: str, line: int) -> int:
    offset = 0
    for _ in range(line):
        offset = text.index("\n", offset) + 1
    return offset


def _normalise(text: str) -> str:
    """One kind of line end, and nothing that UTF-8 cannot say."""
    return _SURROGATE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def _blocks(source: str) -> list[str]:
    """The HTML of each top-level block."""
    parser, cleaner = _parser(), _cleaner()
    tokens = parser.parse(source)
    return [
        cleaner.clean(parser.renderer.render(tokens[first:last], parser.options, {}))
        for first, last in _spans(tokens)
    ]


def _starts(source: str) -> list[int]:
    """First line of each top-level block, without the cost of its inline part."""
    tokens: list[Token] = []
    parser = _parser()
    parser.block.parse(source, parser, {}, tokens)
    return [lines[0] for first, _ in _spans(tokens) if (lines := tokens[first].map)]


def _spans(tokens: "Sequence[Token]") -> list[tuple[int, int]]:
    """The slice of tokens that each top-level block is made of."""
    ends = [
        index + 1 for index, token in enumerate(tokens) if token.level == 0 and token.nesting <= 0
    ]
    return list(zip([0, *ends], ends, strict=False))


@cache
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    options = {"html": False, "linkify": True, "breaks": True, "highlight": _code}
    parser = MarkdownIt("js-default", options).disable("reference")
    if parser.linkify is None:
        raise TypeError("markdown-it was made without linkify")
    # `agent.py` is a file, not a host in Paraguay: only what names its scheme is a link.
    parser.linkify.set({"fuzzy_link": False, "fuzzy_email": False})
    for schema in ("//", "ftp:"):
        parser.linkify.add(schema, None)
    parser.core.ruler.before("inline", "long_text", _long_text)
    parser.add_render_rule("long_text", _render_long_text)
    parser.core.ruler.push("images", _images_to_links)
    parser.core.ruler.push("alignment", _alignment_to_classes)
    return parser


@cache
def _cleaner() -> "nh3.Cleaner":
    import nh3

    alignments = {"align-left", "align-center", "align-right"}
    return nh3.Cleaner(
        tags=set(_TAGS.split()),
        attributes={"a": {"href", "title"}, "ol": {"start"}, "pre": {"data-language"}},
        allowed_classes={"th": alignments, "td": alignments, "span": _token_classes()},
        set_tag_attribute_values={"a": {"target": "_blank"}},
        url_schemes=_URL_SCHEMES,
        link_rel="noopener noreferrer",
    )


def _token_classes() -> set[str]:
    from pygments.token import STANDARD_TYPES

    return {name for name in STANDARD_TYPES.values() if name}


def _long_text(state: "StateCore") -> None:
    for token in state.tokens:
        if token.type == "inline" and len(token.content) > _LONGEST_INLINE:
            token.type = "long_text"


def _render_long_text(_renderer: Any, tokens: "Sequence[Token]", index: int, *_options: Any) -> str:
    return escape(tokens[index].content).replace("\n", "<br>\n")


def _images_to_links(state: "StateCore") -> None:
    """Loading an image tells its host who reads this answer; a link leaves that to the reader."""
    for token in state.tokens:
        if token.children:
            token.children = _without_images(token.children)


def _without_images(children: "list[Token]") -> "list[Token]":
    result: list[Token] = []
    in_link = 0
    for token in children:
        in_link += (token.type == "link_open") - (token.type == "link_close")
        if token.type == "image":
            result += _image_as_text(token, in_link > 0)
        else:
            result.append(token)
    return result


def _image_as_text(image: "Token", in_link: bool) -> "list[Token]":
    from markdown_it.token import Token

    source = str(image.attrs.get("src", ""))
    text = Token("text", "", 0, content=image.content or source)
    if in_link:
        return [text]
    opening = Token("link_open", "a", 1, attrs={"href": source})
    return [opening, text, Token("link_close", "a", -1)]


def _alignment_to_classes(state: "StateCore") -> None:
    """The page's policy allows no inline style."""
    for token in state.tokens:
        if token.type in ("th_open", "td_open") and (style := token.attrs.pop("style", None)):
            token.attrs["class"] = str(style).replace("text-align:", "align-")


def _code(code: str, language: str, _attributes: str) -> str:
    """A fenced block, coloured where its language is known (markdown-it's `highlight` option)."""
    name = language.lower()
    label = f' data-language="{escape(name)}"' if _LANGUAGE_NAME.fullmatch(name) else ""
    return f"<pre{label}><code>{_coloured(code, name)}</code></pre>"


def _coloured(code: str, language: str) -> str:
    if language not in _LANGUAGES or len(code) > _LONGEST_COLOURED:
        return escape(code, quote=False)
    from pygments import highlight

    html: str = highlight(code, _lexer(language), _formatter())
    return html


@cache
def _lexer(language: str) -> "Lexer":
    from pygments.lexers import get_lexer_by_name

    return get_lexer_by_name(language, stripnl=False, ensurenl=False)


@cache
def _formatter() -> Any:
    from pygments.formatters import HtmlFormatter

    return HtmlFormatter(nowrap=True)
