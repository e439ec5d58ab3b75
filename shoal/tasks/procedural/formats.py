"""Families that put a sentence or a list of words into a notation: Markdown, HTML, JSON, brackets, quotes.

Every one takes the sentences or lists that other families take too; only the description tells them apart.
Knows nothing of records (`shoal.tasks.procedural.records`).
"""

from __future__ import annotations

import json

from shoal.tasks.procedural.family import Family, Rule, lines, over
from shoal.tasks.procedural.material import sentence, word_list


def _wrap(before: str, after: str) -> Rule:
    return lambda text: f"{before}{text}{after}"


def _without_stop(text: str) -> str:
    return text.rstrip(".")


def _list_json(text: str) -> str:
    return json.dumps(text.split(", "))


def _list_html(text: str) -> str:
    return "".join(f"<li>{item}</li>" for item in text.split(", "))


def _list_counted(text: str) -> str:
    return json.dumps({"first": text.split(", ")[0], "count": len(text.split(", "))})


FAMILIES = (
    Family(
        "wrap-b-tag",
        "markup",
        "The input is an English sentence. The output is the sentence between <b> and </b>.",
        lines("""
            Wrap the sentence in <b> and </b>.
            Make the text bold in HTML with the b tag.
            I need a model that puts <b> in front of a sentence and </b> behind it.
            sentence -> <b>sentence</b>
            For "Anna found a key." answer "<b>Anna found a key.</b>"
            Can you mark this up as bold for a web page? Use <b>.
            Surround the whole input by a b element and change nothing else.
            html bold (<b>)
            Repeat the sentence with an opening <b> before it and a closing </b> after it.
            The output is one b element whose content is the input.
        """),
        over(sentence, _wrap("<b>", "</b>")),
    ),
    Family(
        "wrap-p-tag",
        "markup",
        "The input is an English sentence. The output is the sentence between <p> and </p>.",
        lines("""
            Wrap the sentence in <p> and </p>.
            Make the text an HTML paragraph.
            I need a model that puts <p> in front of a sentence and </p> behind it.
            sentence -> <p>sentence</p>
            For "Anna found a key." answer "<p>Anna found a key.</p>"
            Can you turn this into a paragraph element for a web page?
            Surround the whole input by a p element and change nothing else.
            html paragraph pls
            Repeat the sentence with an opening <p> before it and a closing </p> after it.
            The output is one p element whose content is the input.
        """),
        over(sentence, _wrap("<p>", "</p>")),
    ),
    Family(
        "wrap-answer-tag",
        "markup",
        "The input is an English sentence. The output is the sentence between <answer> and </answer>.",
        lines("""
            Wrap the sentence in <answer> and </answer>.
            Put XML tags named answer around the text.
            I need a model whose output is my sentence inside an <answer> element.
            sentence -> <answer>sentence</answer>
            For "Anna found a key." answer "<answer>Anna found a key.</answer>"
            Enclose the input in answer tags so that a parser can find it.
            Begin with <answer>, repeat the sentence, end with </answer>.
            answer tags around it please
            How does the sentence look as the content of an XML element called answer?
            The output is the input with <answer> added at the front and </answer> at the end.
        """),
        over(sentence, _wrap("<answer>", "</answer>")),
    ),
    Family(
        "wrap-square-brackets",
        "markup",
        "The input is an English sentence. The output is the sentence between [ and ].",
        lines("""
            Put the sentence in square brackets.
            Wrap the text in [ and ].
            I need a model that encloses every sentence in square brackets, full stop inside.
            sentence -> [sentence]
            For "Anna found a key." answer "[Anna found a key.]"
            Add an opening [ at the start and a closing ] at the end.
            Can you bracket this? The square kind.
            Surround the whole input with [] and leave it as it is.
            square brackets around it
            The output is the input with one bracket on each side: [like this].
        """),
        over(sentence, _wrap("[", "]")),
    ),
    Family(
        "wrap-quotes",
        "markup",
        "The input is an English sentence. The output is the sentence between double quotation marks.",
        lines("""
            Put the sentence in double quotation marks.
            Wrap the text in "quotes".
            I need a model that quotes every sentence it is given with straight double quotes.
            sentence -> "sentence"
            Add a " at the start and a " at the end, after the full stop.
            Can you quote this? Double quotes, please.
            Surround the whole input with quotation marks and leave it as it is.
            quote marks around it
            Make a string literal of the sentence, with double quotes as its ends.
            The output is the input as a citation: the same words between two " signs.
        """),
        over(sentence, _wrap('"', '"')),
    ),
    Family(
        "markdown-bold",
        "markup",
        "The input is an English sentence. The output is the sentence between two pairs of asterisks.",
        lines("""
            Make the sentence bold in Markdown.
            Wrap the text in ** and **.
            I need a model that formats sentences as Markdown bold with double asterisks.
            sentence -> **sentence**
            For "Anna found a key." answer "**Anna found a key.**"
            Put two asterisks before the first word and two after the full stop.
            Can you bold this for my README?
            Surround the whole input with ** and leave it as it is.
            md bold
            The output is the input with ** on both sides.
        """),
        over(sentence, _wrap("**", "**")),
    ),
    Family(
        "markdown-heading",
        "markup",
        "The input is an English sentence. The output is the sentence as a Markdown heading of level 2, with "
        "'## ' in front and without the full stop.",
        lines("""
            Make a level-2 Markdown heading of the sentence, without the full stop.
            Put "## " in front of the text and drop the period.
            I need a model that turns sentences into Markdown section titles (##).
            sentence. -> ## sentence
            For "Anna found a key." answer "## Anna found a key".
            Write two hash signs, a space and the sentence with no dot at the end.
            Can you make this a second-level heading for my README?
            Format the sentence as an H2 in Markdown; headings have no full stop.
            ## heading please, no final dot
            The output starts with ## and ends with the last word of the input.
        """),
        over(sentence, lambda text: f"## {_without_stop(text)}"),
    ),
    Family(
        "note-prefix",
        "markup",
        "The input is an English sentence. The output is the sentence with 'NOTE: ' in front.",
        lines("""
            Write "NOTE: " in front of the sentence.
            Prefix the text with NOTE and a colon.
            I need a model that marks every sentence as a note: it starts with NOTE: and then repeats the input.
            sentence -> NOTE: sentence
            For "Anna found a key." answer "NOTE: Anna found a key."
            Start with the word NOTE in capitals, a colon and a space; then copy the sentence.
            Can you label this as a note the way manuals do (NOTE: ...)?
            Add the prefix NOTE: and change nothing else.
            put NOTE: before it
            The output is the input after the label "NOTE:".
        """),
        over(sentence, lambda text: f"NOTE: {text}"),
    ),
    Family(
        "sentence-json",
        "structured output",
        "The input is an English sentence. The output is a JSON object whose only key, text, has the sentence "
        "as its value.",
        lines("""
            Return a JSON object with the sentence under the key "text".
            Wrap the sentence in JSON like {"text": "..."}.
            I need a model that answers in JSON: one key, text, and my sentence as the value.
            sentence -> {"text": "sentence"}
            For 'Anna found a key.' answer '{"text": "Anna found a key."}'.
            Format the input as {"text": <input>}, valid JSON on one line.
            Can you turn this into an API payload with a single field named text?
            Serialise the sentence as a dictionary with the key text.
            json, key = text
            The output is a JSON object that holds the unchanged sentence as "text".
        """),
        over(sentence, lambda text: json.dumps({"text": text})),
    ),
    Family(
        "sentence-json-first-last",
        "structured output",
        "The input is an English sentence. The output is a JSON object with its first word under first and its "
        "last word, without the full stop, under last.",
        lines("""
            Return a JSON object with the first word as "first" and the last word as "last".
            Answer like {"first": "...", "last": "..."} with the first and last word of the sentence.
            I need a model that reports how a sentence starts and ends, as JSON with the keys first and last.
            sentence -> {"first": first word, "last": last word}
            For 'Anna found a key.' answer '{"first": "Anna", "last": "key"}'.
            Put the opening word under first, the closing word without its period under last; valid JSON.
            Can you extract the two outer words into a JSON object (first, last)?
            Make a dictionary of the sentence's ends: first and last.
            json with first + last word
            The output is one line of JSON with two keys, first and last, each holding one word.
        """),
        over(
            sentence,
            lambda text: json.dumps({"first": text.split()[0], "last": _without_stop(text.split()[-1])}),
        ),
    ),
    Family(
        "sentence-log-line",
        "structured output",
        "The input is an English sentence. The output is '[INFO] ' and the sentence in lower case without the "
        "full stop.",
        lines("""
            Make a log line of the sentence: [INFO], then the text in lower case without full stop.
            Write "[INFO] " and after it the sentence, lowercased and with no period.
            I need a model that turns sentences into log messages of level [INFO].
            Sentence. -> [INFO] sentence
            For "Anna found a key." answer "[INFO] anna found a key".
            Start with [INFO]; small letters only; drop the final dot.
            Can you format this the way a server log would, [INFO] in front?
            Log it at info level: bracketed INFO, a space, the message in lower case.
            log format, level INFO
            The output begins with [INFO] and has the words of the input without capitals or full stop.
        """),
        over(sentence, lambda text: f"[INFO] {_without_stop(text).lower()}"),
    ),
    Family(
        "list-json",
        "structured output",
        "The input is a list of words with commas between them. The output is the list as a JSON array of "
        "strings.",
        lines("""
            Write the list as a JSON array of strings.
            Convert the words to JSON: square brackets, each word in double quotes.
            I need a model that turns comma-separated words into a JSON list.
            a, b, c -> ["a", "b", "c"]
            For 'pear, lamp' answer '["pear", "lamp"]'.
            Serialise the items with json.dumps.
            Can you give me this as an array I can paste into JavaScript? Double quotes.
            Put quotes around every item and brackets around the whole.
            json array pls
            The output starts with [ and ends with ], and each word is a quoted string.
        """),
        over(word_list, _list_json),
    ),
    Family(
        "list-json-summary",
        "structured output",
        "The input is a list of words with commas between them. The output is a JSON object with the first "
        "word under first and the number of words under count.",
        lines("""
            Return a JSON object with the first item as "first" and the number of items as "count".
            Answer like {"first": "...", "count": 3} for the list.
            I need a model that summarises a list as JSON: its first word and how many words there are.
            a, b, c -> {"first": "a", "count": 3}
            For 'pear, lamp' answer '{"first": "pear", "count": 2}'.
            Put the opening item under first and the length under count; valid JSON on one line.
            Can you give me first and count of this list in JSON?
            Make a dictionary with two keys: first, the item in front; count, a number.
            json: first + count
            The output has the keys first (a string) and count (an integer).
        """),
        over(word_list, _list_counted),
    ),
    Family(
        "list-html",
        "markup",
        "The input is a list of words with commas between them. The output is the words as HTML list items, "
        "each between <li> and </li>, without spaces between the items.",
        lines("""
            Write each word between <li> and </li>, one after the other without spaces.
            Convert the list to HTML list items.
            I need a model that turns comma-separated words into <li> elements.
            a, b -> <li>a</li><li>b</li>
            For "pear, lamp" answer "<li>pear</li><li>lamp</li>".
            Wrap every item in li tags and drop the commas.
            Can you mark this up as the inside of a ul, all on one line?
            Each word becomes an li element; nothing stands between the elements.
            html li tags
            The output has as many <li>...</li> as the input has words.
        """),
        over(word_list, _list_html),
    ),
    Family(
        "list-quoted",
        "markup",
        "The input is a list of words with commas between them. The output is the list with single quotation "
        "marks around each word.",
        lines("""
            Put single quotes around each word and keep the commas.
            Quote every item of the list with ' marks.
            I need a model that prepares words for SQL: 'a', 'b', 'c'.
            a, b, c -> 'a', 'b', 'c'
            For "pear, lamp" answer "'pear', 'lamp'".
            Surround each of the words by apostrophes; commas and order stay.
            Can you add single quotation marks to every entry?
            Turn the words into single-quoted strings, separated by commas.
            single quotes on each
            The output is the input with a ' before and after every word.
        """),
        over(word_list, lambda text: ", ".join(f"'{item}'" for item in text.split(", "))),
    ),
    Family(
        "list-hashtags",
        "markup",
        "The input is a list of words with commas between them. The output is the words as hashtags, with "
        "spaces between them.",
        lines("""
            Turn each word into a hashtag and separate them by spaces.
            Put a # in front of every item and drop the commas.
            I need a model that makes hashtags for a post from comma-separated words.
            a, b, c -> #a #b #c
            For "pear, lamp" answer "#pear #lamp".
            Write the words as tags: #, word, space, #, word, and so on.
            Can you hashtag all of these?
            Replace the commas by spaces and begin each word with a hash sign.
            hashtags please
            The output has the words of the input, each led by #, with one space between.
        """),
        over(word_list, lambda text: " ".join(f"#{item}" for item in text.split(", "))),
    ),
)
