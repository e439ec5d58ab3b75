"""Patterns by which a task description closes its set of answers, and those that say it does not.

Literal tables of words: `shoal.text_to_lora.label_sets` reads label sets with them. Knows text only.
"""

from __future__ import annotations

import re


def _any(text: str) -> str:
    """A pattern that matches any of the alternatives, which are separated by bars and wrapped at will."""
    return "(?:" + "|".join(" ".join(part.split()) for part in text.split("|")) + ")"


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


QUOTED = re.compile(r"[\"“”]([^\"“”]{1,60})[\"“”]|(?<!\w)['‘`]([^'’`]{1,60})['’`](?!\w)")
_OPEN_LIST = _any(
    r"""such as|e\.?g\b|for example|for instance|including|includes?|etc|and so on|and so forth
    |and the like|likewise|or similar|among others|among the answers|separated by|all that apply
    |which details|what details|some call for|sort of reply|from .{0,40}\bto\b.{0,40}[\"”]"""
)
OPEN = _pattern(rf"\b{_OPEN_LIST}")
# The answer is a text of its own, whatever list stands beside it.
_MAKES = _any("write|produce|generate|create|compose|craft|formulate|make up")
_TEXT = _any("a|an|one|the|me|some|new|your|short|simple|whatever|questions?|hypothes")
WRITES = _pattern(
    rf"\b{_MAKES} {_TEXT}\b|\b"
    + _any(
        r"""questions?\b.{0,80}\b(?:answered|answerable|settle|reply|resolve|decid)|question about|question on
        |question that|question editing|question generat|question writer|question exploring|question is|inquir
        |interrogative|querie|rewrite|rephrase|paraphrase|transform|translate|extract|span|verbatim|copy
        |copied
        |quote the|verbalise|triple|list of|entity|entities|closed-book|trivia|encyclopedic|highlight
        |multi-hop
        |detect and return|produces?\b.{0,30}\bquestion|key=value|fill in|slot|sentence by sentence|mark up
        |question generation|skip vague|continuation|define|definitions|respond with relevant
        |complete the recipes
        |complete recipes|for each token|all its sentences|convert commands
        |(?:do not|don't|never) (?:tell|say|judge|label|classify|answer)"""
    )
    + r"\b"
)
EVEN_IF = _pattern(r"\b(?:regardless|no matter|accounting|even if|depending|ignor|whatever)")
PLACEHOLDERS = {
    *("span", "number", "string", "phrase", "value", "name", "title", "both", "nothing", "something"),
    *("date", "time", "place", "word", "sentence"),
}
# Ways to arrange a text, and words for labels in general: neither is an answer.
ORDERS = {"ascending", "descending", "alphabetical", "alphabetically"}
KINDS_ALONE = {"labels", "categories", "classes", "folders", "groups", "topics", "types", "kinds", "tags"}
SORTS = _pattern(
    r"\b"
    + _any(
        r"""classif|label|categor|which|what|kind|sort|type|tag|assign|decide|pick|choose|answer|belong
        |name the|domain|triage|route|detect|identify|determine|predict|intent|urgency
        |topic|count|severity|priority|grade|rate\b|how \w+ly|sentiment|tone|language|month"""
    )
)
LETTERS = re.compile(
    r"(?:,|:|\b(?:with|say|answer|reply|under|winner)) [\"'“‘]?(A)[\"'”’]? or [\"'“‘]?(B)\b(?! \w)"
)
NUMBERS = {
    **{"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10},
    **{"eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16},
}
KINDS = _any(
    """labels?|class|classes|category|categories|options?|choices|answers?|tags?|intents?|topics?|types?|kinds?
    |groups?|values|words|names|emotions?|genres?|fields?|subjects?|domains?|moods?|sentiments?
        |languages?|months?"""
)
_ONE = _any("one|exactly one|just one|only one")
_FROM = _any("of|out of|from|among|between")
# What a closed list of labels comes after, by trust; the list runs to the end of its clause. A strong cue
# says that one of the list is the answer; after a weak one the list needs its "or".
STRONG = (
    r"\b(?:labels?|class|classes|category|categories|options?|choices|answers?|tags?|choose|intents?)"
    r"(?: in use| to use|:)?(?: are|:| is one of|,? namely)\s+",
    rf"\b(?:any|each|{_ONE})(?: label| word| class| tag)?(?: {_FROM})?(?: these| the following)?"
    r"(?: \w+)?(?: \w+)?:\s+",
    rf"\b{_ONE} {_FROM}\s+",
    rf"\b(?:choose|chosen|pick|select|choosing|choice)(?: one)?(?: {_FROM}|:)\s+",
    r"\b(?:decide|choose|distinguish|pick|judge)(?: \w+)? (?:between|among)\s+",
    r"\b(?:out of|among):? ",
)
_WEAK = (
    rf"\b{KINDS}:\s+",
    r"\b(?:classify|classified|label|labell?ed|sort|tag|mark|categori[sz]e|rate|grade|file|put|flag|assign)\b"
    r"[^.?!:;,\x00]*? (?:as|into|under)(?: either| being)?:? ",
    r"\b(?:route|send|forward|direct)\b [^.?!:;,\x00]*? to(?: either)?:? ",
    r"\b(?:assign|give|predict|set) an? (?:priority|severity|urgency|level|rating|grade|status|label) of ",
    r"\b(?:classify|categori[sz]e|predict)\b[^.?!()]* \((?=[^()]*(?:/|, or |,[^,()]+,)[^()]*\)[.?!]?$)",
    r"\b(?:answer|reply|respond|answering|replying)(?: with| by)?"
    r"(?: only| just| exactly| either| a single)?:? ",
    r"\b(?:say|output|print|return|write|give)(?: with)?(?: only| just| exactly| either)?:? ",
    r":\s+",
    r"\?\s+",
    r"^",
)
CUES = tuple(map(_pattern, (*STRONG, *_WEAK)))
_SUBJECT = _any("the|a|an|this|each|it|these|they|two|you|some|somebody|someone|one")
WHETHER = _pattern(
    rf"\b(?:(?:whether|if) {_SUBJECT}\b[^.?!:;,]*? (?:is|are|was|were)"
    rf"|(?:^|\. )(?:is|are|was|were) {_SUBJECT}\b[^.?!:;,]*?)(?: about| from)?(?: either| an?)? "
    r"(?P<list>[\w-]+(?:, (?:an? )?[\w-]+)*,? or (?:an? )?(?:not )?[\w-]+)"
    r"(?: (?:about|towards?|on|for|in) [^.?!,]*)?[.?!]?$"
)
LAST = _pattern(r"^(?:or|and|else|otherwise)\s+")
_MORE = _any("more|less|fewer|later|earlier|above|below|over|under")
JOINT = _pattern(rf"\s(?:or(?! {_MORE}\b)|and|versus|vs\.?)\s")
CLAUSE_END = re.compile(r"[.?!:()—\n](?:\s|$)|\)|\s[-–—]\s|$")
TRAILING = _pattern(
    ",? "
    + _any(
        """only|nothing else|and nothing else|respectively|instead|accordingly
        |for (?:each|every|the|this|that|it) .*|for what .*|to (?:each|every|the|it|this) .*|depending on .*
        |based on .*|according to .*
        |as (?:the )?(?:answer|label|output).*"""
    )
    + "$"
)
# Words that stand in prose, and hardly in a label without quotes: at its beginning, and anywhere.
_BEGINS = _any(
    r"""use|(?:return|output|print) just|one (?:label|domain|number)|exactly|tag|under|strictly|about|being
    |regarding|using|one word|a single|down|usually|namely|wanted|or|and|no one|a|an|the|it|its|that|which|who
    |whether|if|when|where|what|how|in|on|at|by|of|to|for|from|with|not|your|my|his|their|this|these|those|any
    |all|some|each|every|more|other (?=\w)|others|something|anything|nothing else|only|just|as|is|are|was|be
    |has|have|so|then|you|i|we|they|he|she|say|answer|reply|return|write|output|print|give|choose|pick|please
    |no other"""
)
_HOLDS = _any(
    """under|that|which|who|whether|if|when|where|is|are|was|were|has|have|its|their|your|it|them|they|you|i|we
    |should|must|can|one of|according|based|using|following|else|otherwise|means?"""
)
PROSE = _pattern(rf"^{_BEGINS}\b|\b{_HOLDS}\b")
_QUOTE = "[\"'“”‘’]?"
YES_NO = _pattern(
    r"\b(?:answer|say|reply|respond|output|print|return|write|give|choose|format|use|either|with|in|a"
    r"|simple)\b"
    rf"[^.?!]{{0,40}}?[\"'“‘(]?\b(yes)\b{_QUOTE},?(?: or |/|, | and |, or ){_QUOTE}(no)\b"
    r"(?![- ]?(?:question|one|type))"
    rf"|{_QUOTE}\b(yes)\b{_QUOTE},? (?:if|when|where|for)\b.{{3,160}}?{_QUOTE}\b(no)\b{_QUOTE},?"
    r"(?: if| when| otherwise| where| for| in| elsewhere|[.;]|$)"
)
TRUE_FALSE = _pattern(
    r"\b(?:answer|say|reply|respond|output|print|return|write|as|is)\b[^.?!]{0,30}?"
    rf"{_QUOTE}\b(true)\b{_QUOTE}(?: or |/|, ){_QUOTE}(false)\b"
)
NOT_POLAR = _pattern(
    r"\bquestions? (?:about|slightly|asked)|\blist, a|\b(?:yes|no|true|false)[\"'”’]? means\b"
    r"|\byes[-/ ]?(?:or )?no questions?\b"
)
