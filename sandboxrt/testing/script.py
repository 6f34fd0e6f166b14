r"""The small shell language of the fake engine: text in, a tree of commands out. Pure.

Understood: words with ``'...'``, ``"..."``, ``\``, ``$NAME``, ``${NAME}``, ``$$``, ``$?``; ``NAME=value`` before a
command or alone; ``;``, newline, ``&&``, ``||``, ``&``; ``( list )``; ``while list; do list; done``;
``for NAME in words; do list; done``; the redirections ``>``, ``>>``, ``<``, ``2>``, ``>&2``, ``2>&1``. All of it means
what it means in sh, so the same text runs in a real container; what is missing (pipelines, substitutions, globs,
functions) is refused with :class:`ScriptError`.
"""

from __future__ import annotations

import re
from typing import TypeAlias

import attrs

__all__ = ["AndOr", "For", "Group", "Item", "Node", "Redirect", "ScriptError", "Simple", "While", "Word", "parse"]


class ScriptError(Exception):
    """The text is no script of this language."""


@attrs.frozen
class Word:
    """A word as (is it a variable's name?, text) pieces, joined at run time."""

    pieces: tuple[tuple[bool, str], ...]

    @property
    def plain(self) -> str | None:
        """The text, if it has no variables."""
        return None if any(variable for variable, _ in self.pieces) else "".join(text for _, text in self.pieces)


@attrs.frozen
class Redirect:
    """``descriptor operator target``; the target of ``>&`` is a descriptor."""

    descriptor: int
    operator: str
    target: Word


@attrs.frozen
class Simple:
    """A command with its words, the assignments before it and its redirections."""

    words: tuple[Word, ...]
    assignments: tuple[tuple[str, Word], ...]
    redirects: tuple[Redirect, ...]


@attrs.frozen
class Group:
    """``( list )``, with redirections."""

    body: tuple[Item, ...]
    redirects: tuple[Redirect, ...]


@attrs.frozen
class While:
    """``while condition; do body; done``."""

    condition: tuple[Item, ...]
    body: tuple[Item, ...]


@attrs.frozen
class For:
    """``for name in words; do body; done``."""

    name: str
    words: tuple[Word, ...]
    body: tuple[Item, ...]


Node: TypeAlias = Simple | Group | While | For


@attrs.frozen
class AndOr:
    """Commands joined by ``&&`` and ``||``: the first, then (operator, next)."""

    first: Node
    rest: tuple[tuple[str, Node], ...]


@attrs.frozen
class Item:
    """One member of a list, in the background or not."""

    command: AndOr
    background: bool


_TOKEN = re.compile(
    r"(?P<space>[ \t]+|\#[^\n]*)|(?P<operator>&&|\|\||;|\n|&(?!>)|\(|\))"
    r"|(?P<redirect>[0-2]?(?:>>|>&|>|<))"
    r"""|(?P<word>(?:'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^\s'"\\;&|()<>])+)""",
    re.DOTALL,
)
_PIECE = re.compile(
    r"""'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|\\(?P<escaped>.)|(?P<bare>[^'"\\]+)""", re.DOTALL
)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+|[$?!]))")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=")
_ENDINGS = frozenset({"do", "done", ")"})


def parse(text: str) -> tuple[Item, ...]:
    """The commands of a script.

    Raises:
        ScriptError: With what was not understood.
    """
    parser = _Parser(_tokens(text))
    items = parser.list_of_items()
    if parser.peek() is not None:
        raise ScriptError(f"unexpected {parser.peek()!r}")
    return items


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ScriptError(f"not understood: {text[at : at + 20]!r}")
        kind = str(match.lastgroup)
        if kind != "space":
            tokens.append((kind, match.group()))
        at = match.end()
    return tokens


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0

    def peek(self) -> str | None:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else None

    def _kind(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        text = self.peek()
        if text is None:
            raise ScriptError("unexpected end of the script")
        self._at += 1
        return text

    def _expect(self, text: str) -> None:
        while text != "\n" and self.peek() in (";", "\n"):
            self._at += 1
        if self._take() != text:
            raise ScriptError(f"expected {text!r}, found {self._tokens[self._at - 1][1]!r}")

    def list_of_items(self) -> tuple[Item, ...]:
        items: list[Item] = []
        while True:
            while self.peek() in (";", "\n"):
                self._at += 1
            if self.peek() is None or self.peek() in _ENDINGS:
                return tuple(items)
            command = self._and_or()
            background = self.peek() == "&"
            if background:
                self._at += 1
            elif self.peek() not in (None, ";", "\n", *_ENDINGS):
                raise ScriptError(f"unexpected {self.peek()!r}")
            items.append(Item(command, background))

    def _and_or(self) -> AndOr:
        first = self._command()
        rest = []
        while self.peek() in ("&&", "||"):
            operator = self._take()
            while self.peek() == "\n":
                self._at += 1
            rest.append((operator, self._command()))
        return AndOr(first, tuple(rest))

    def _command(self) -> Node:
        text = self.peek()
        if text == "(":
            self._at += 1
            body = self.list_of_items()
            self._expect(")")
            return Group(body, self._redirects())
        if text == "while":
            self._at += 1
            condition = self.list_of_items()
            return While(condition, self._do_block())
        if text == "for":
            self._at += 1
            name = self._take()
            self._expect("in")
            words = []
            while self._kind() == "word":
                words.append(_word(self._take()))
            return For(name, tuple(words), self._do_block())
        return self._simple()

    def _do_block(self) -> tuple[Item, ...]:
        self._expect("do")
        body = self.list_of_items()
        self._expect("done")
        return body

    def _redirects(self) -> tuple[Redirect, ...]:
        redirects = []
        while self._kind() == "redirect":
            redirects.append(self._redirect())
        return tuple(redirects)

    def _redirect(self) -> Redirect:
        operator = self._take()
        descriptor = int(operator[0]) if operator[0].isdigit() else 0 if operator == "<" else 1
        if self._kind() != "word":
            raise ScriptError(f"{operator} without a target")
        return Redirect(descriptor, operator.lstrip("012"), _word(self._take()))

    def _simple(self) -> Simple:
        words: list[Word] = []
        assignments = []
        redirects = []
        while self._kind() in ("word", "redirect"):
            if self._kind() == "redirect":
                redirects.append(self._redirect())
                continue
            text = self._take()
            match = _ASSIGNMENT.match(text)
            if match and not words:
                assignments.append((match.group(1), _word(text[match.end() :])))
            else:
                words.append(_word(text))
        if not words and not assignments and not redirects:
            raise ScriptError(f"unexpected {self.peek()!r}")
        return Simple(tuple(words), tuple(assignments), tuple(redirects))


def _word(text: str) -> Word:
    pieces: list[tuple[bool, str]] = []
    for match in _PIECE.finditer(text):
        if match["single"] is not None:
            pieces.append((False, match["single"]))
        elif match["escaped"] is not None:
            pieces.append((False, match["escaped"]))
        elif match["double"] is not None:
            pieces.extend(_expand(match["double"], quoted=True))
        else:
            pieces.extend(_expand(match["bare"], quoted=False))
    return Word(tuple(pieces))


def _expand(text: str, *, quoted: bool) -> list[tuple[bool, str]]:
    if "`" in text or "$(" in text:
        raise ScriptError("command substitution is not part of this language")
    pieces = []
    at = 0
    for match in _VARIABLE.finditer(text):
        if quoted and match.start() and text[match.start() - 1] == "\\":
            continue
        pieces.append((False, _unescape(text[at : match.start()]) if quoted else text[at : match.start()]))
        pieces.append((True, match.group(1) or match.group(2)))
        at = match.end()
    pieces.append((False, _unescape(text[at:]) if quoted else text[at:]))
    return pieces


def _unescape(text: str) -> str:
    return re.sub(r'\\([$"\\`])', r"\1", text)
