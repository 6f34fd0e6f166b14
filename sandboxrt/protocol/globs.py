"""Patterns of file names: ``**``, ``*``, ``?`` and ``[...]``, as a test on relative paths.

``*``, ``?`` and ``[...]`` match within one component, names that begin with a dot included; ``**`` as a whole
component matches any number of them, none included.

Source: protocol.md §3.3.
"""

from __future__ import annotations

import re

import attrs

__all__ = ["Glob", "GlobError", "name_filter", "parse_glob"]

_MAX_CHARACTERS = 4096
_MAX_COMPONENTS = 64


class GlobError(Exception):
    """The pattern means nothing; the message says why."""


@attrs.frozen
class _Component:
    """The pattern of one component: pieces of fixed length, with any text between each two of them.

    Each piece is searched for once, from the left: no pattern makes that take longer than the name is long.
    """

    pieces: tuple[re.Pattern[str], ...]
    lengths: tuple[int, ...]

    def matches(self, name: str) -> bool:
        if len(self.pieces) == 1:
            return self.pieces[0].fullmatch(name) is not None
        end = len(name) - self.lengths[-1]
        start = self.lengths[0]
        if start > end or not self.pieces[0].match(name) or not self.pieces[-1].fullmatch(name, end):
            return False
        for piece in self.pieces[1:-1]:
            found = piece.search(name, start, end)
            if found is None:
                return False
            start = found.end()
        return True


@attrs.frozen
class Glob:
    """A pattern that is understood.

    Attributes:
        prefix: The leading components that have no wildcards, joined with ``/``; every match is below it, or is it.
        max_depth: How many components a match has at most, ``None`` = any number.
    """

    prefix: str
    max_depth: int | None
    _components: tuple[_Component | None, ...]

    def matches(self, path: str) -> bool:
        """Whether a relative path (components joined with ``/``) is meant."""
        names, wanted = path.split("/"), self._components
        at = name = 0
        any_depth, resume = -1, 0
        while name < len(names):
            component = wanted[at] if at < len(wanted) else _NOTHING
            if component is None:
                any_depth, resume = at, name
                at += 1
            elif component.matches(names[name]):
                at += 1
                name += 1
            elif any_depth >= 0:
                # The last '**' takes one component more; earlier ones need never be asked again.
                resume += 1
                at, name = any_depth + 1, resume
            else:
                return False
        # At the end of a pattern '**' means what is inside, not the folder itself.
        return at == len(wanted)


_NOTHING = _Component((re.compile("(?!)"),), (0,))


def parse_glob(pattern: str) -> Glob:
    """Understand a pattern.

    Raises:
        GlobError: It is empty, too long, absolute, leads outside, or has a bracket without end.
    """
    if len(pattern) > _MAX_CHARACTERS:
        raise GlobError(f"The pattern is longer than {_MAX_CHARACTERS} characters")
    if "\0" in pattern:
        raise GlobError("The pattern contains a NUL character")
    if pattern.startswith("/"):
        raise GlobError("The pattern must be relative to 'path'")
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not parts:
        raise GlobError("The pattern is empty")
    if ".." in parts:
        raise GlobError("The pattern must not lead out of 'path' with '..'")
    # Two of them in a row mean what one means.
    parts = [part for index, part in enumerate(parts) if part != "**" or parts[index - 1 : index] != ["**"]]
    if len(parts) > _MAX_COMPONENTS:
        raise GlobError(f"The pattern has more than {_MAX_COMPONENTS} components")
    plain = next((index for index, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    return Glob("/".join(parts[:plain]), None if "**" in parts else len(parts), _components(parts))


def name_filter(pattern: str) -> Glob:
    """Understand a filter: one without ``/`` tests the last component, at any depth; other ones the whole path.

    Raises:
        GlobError: As :func:`parse_glob`.
    """
    return parse_glob(pattern if "/" in pattern or "**" in pattern else f"**/{pattern}")


def _components(parts: list[str]) -> tuple[_Component | None, ...]:
    components = tuple(None if part == "**" else _component(part) for part in parts)
    # What a final '**' matches has at least one component.
    return (*components, _component("*")) if components[-1] is None else components


def _component(part: str) -> _Component:
    pieces, lengths = [""], [0]
    index = 0
    while index < len(part):
        character = part[index]
        index += 1
        if character == "*":
            pieces.append("")
            lengths.append(0)
            continue
        if character == "[":
            end = part.find("]", index + (2 if part[index : index + 1] in ("!", "^") else 1))
            if end < 0:
                raise GlobError("The pattern has a '[' without its ']'")
            pieces[-1] += _bracket(part[index:end])
            index = end + 1
        else:
            pieces[-1] += "." if character == "?" else re.escape(character)
        lengths[-1] += 1
    try:
        return _Component(tuple(re.compile(piece, re.DOTALL) for piece in pieces), tuple(lengths))
    except re.error as error:
        raise GlobError(f"The pattern cannot be understood: {error}") from None


def _bracket(inner: str) -> str:
    negated = inner[0] in "!^"
    inner = inner[1:] if negated else inner
    # Only ranges keep their meaning; everything else stands for itself.
    ranges = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner)
    return f"[{'^' if negated else ''}{ranges}]"
