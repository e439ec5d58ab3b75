"""Families that put a sentence into a longer frame: a citation, an element with attributes, a radio call.

Every one takes the sentences of `shoal.tasks.procedural.material`; only the description tells them apart. Knows
nothing of the plainer marks (`shoal.tasks.procedural.formats`).
"""

from __future__ import annotations

from shoal.tasks.procedural.family import Family, Rule, lines, over
from shoal.tasks.procedural.material import sentence


def _between(before: str, after: str) -> Rule:
    return lambda text: f"{before}{text}{after}"


FAMILIES = (
    Family(
        "over-suffix",
        "formatting",
        "The input is an English sentence. The output is the sentence followed by a space and the word OVER.",
        lines("""
            Say OVER after the sentence, as on the radio.
            Append a space and the word OVER to the text.
            I need a model that repeats what I say and ends with OVER, like a radio operator.
            text -> text OVER
            For "Anna found a key." answer "Anna found a key. OVER"
            Repeat the sentence and then add OVER in capitals.
            Can you close my message the way walkie-talkie users do, with OVER?
            put OVER at the end
            The answer is the input with "OVER" behind the full stop.
            Finish every sentence with the radio word OVER, after the period.
            Copy the text; write OVER as its last word.
            Nothing changes except that OVER comes after it all.
        """),
        over(sentence, _between("", " OVER")),
    ),
    Family(
        "markdown-quote",
        "formatting",
        "The input is an English sentence. The output is a Markdown block quote: '> ' and the sentence.",
        lines("""
            Make the sentence a Markdown block quote.
            Write "> " in front of the sentence.
            I need a model that quotes text as e-mail programs do, with > at the start of the line.
            text -> > text
            For "Anna found a key." answer "> Anna found a key."
            Can you turn this into a blockquote in Markdown?
            Put a greater-than sign and a space before the text and leave the text alone.
            blockquote it with >
            The answer is the input after the characters "> ".
            Quote the sentence in a reply: a > leads the line.
            Start the line with > and repeat what I typed.
            Format it as a citation in Markdown syntax (>).
        """),
        over(sentence, _between("> ", "")),
    ),
    Family(
        "xml-sentence",
        "formatting",
        "The input is an English sentence. The output is the sentence inside a <sentence> element.",
        lines("""
            Put the sentence between <sentence> and </sentence>.
            Wrap the text in an XML element called sentence.
            I need a model that tags its input: <sentence>...</sentence>.
            text -> <sentence>text</sentence>
            For "Anna found a key." answer "<sentence>Anna found a key.</sentence>"
            Can you mark this up as XML with the tag name sentence?
            Surround the whole input with a start tag <sentence> and an end tag.
            xml tag: sentence
            The answer is the input as the content of the element "sentence".
            Annotate my text for a corpus, where each sentence stands in <sentence> tags.
            Add the XML tags of a sentence element and change nothing else.
            Repeat the text; it must start with <sentence> and end with </sentence>.
        """),
        over(sentence, _between("<sentence>", "</sentence>")),
    ),
    Family(
        "html-paragraph-class",
        "formatting",
        "The input is an English sentence. The output is the sentence inside an HTML paragraph of the class "
        "'note': <p class=\"note\">...</p>.",
        lines("""
            Put the sentence in an HTML paragraph with the class note.
            Write <p class="note"> before the sentence and </p> after it.
            I need a model that makes <p class="note"> paragraphs out of sentences.
            text -> <p class="note">text</p>
            Wrap the text in a p element whose class attribute is "note".
            Can you format this as an HTML paragraph, class note?
            Surround the whole input with a p tag that has class="note".
            html p, class "note"
            The answer is the input as the content of <p class="note">.
            Mark up my sentence for a web page: a paragraph that belongs to the class note.
            Return HTML: one paragraph of class note that holds the sentence unchanged.
            Begin with <p class="note">, repeat the text, finish with </p>.
        """),
        over(sentence, _between('<p class="note">', "</p>")),
    ),
)
