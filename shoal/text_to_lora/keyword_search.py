"""Keywords of many names in a text, in one pass, in the time of the text however many keywords there are.

A keyword counts where it occurs as whole words in any case, with any white space between its words, or with a
plural s. The words of all keywords are a tree (Fredkin, "Trie memory", CACM 1960) that is walked from each
part of the text, at most as deep as a keyword is long.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_PARTS = re.compile(r"\w+|\s+|[^\w\s]")
MAX_PARTS = 64  # words, spaces and signs of a keyword


class _Node(dict[str, "_Node"]):
    """A place in the tree: what may follow, and whose keywords end here."""

    __slots__ = ("names",)
    names: frozenset[str]


def parts_of(text: str) -> list[str]:
    """Words, signs and spaces of a text, in lower case; any white space is one space."""
    return [" " if part.isspace() else part for part in _PARTS.findall(text.strip().lower())]


class KeywordSearch:
    """Finds the names whose keywords occur in a text."""

    def __init__(self, keywords: Mapping[str, Sequence[str]]) -> None:
        """Take the keywords of every name, of at most `MAX_PARTS` parts each."""
        self._root = _node()
        for name, phrases in keywords.items():
            for phrase in phrases:
                for form in (phrase, phrase.strip() + "s"):
                    node = self._root
                    for part in parts_of(form):
                        if part not in node:
                            node[part] = _node()
                        node = node[part]
                    node.names |= {name}

    def find(self, text: str) -> set[str]:
        """The names of keywords in a text."""
        parts, found = parts_of(text), set[str]()
        for begin in range(len(parts)):
            node, at = self._root, begin
            if begin and _is_word(parts[begin - 1]):  # no sign right behind a word begins a keyword
                continue
            while at < len(parts) and parts[at] in node:
                node, at = node[parts[at]], at + 1
                if node.names and not (at < len(parts) and _is_word(parts[at])):
                    found |= node.names
        return found


def _node() -> _Node:
    node = _Node()
    node.names = frozenset()
    return node


def _is_word(part: str) -> bool:
    return part[0].isalnum() or part[0] == "_"
