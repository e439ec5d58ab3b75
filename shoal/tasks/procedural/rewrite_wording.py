"""Descriptions of the operations of `shoal.tasks.procedural.rewrites` are described: a name in braces is filled in.

A description says all that was drawn, so that the answer to a text follows from both.
"""

from __future__ import annotations

from shoal.tasks.procedural.family import lines

WORDING = {
    "always": lines("""
            Always answer {label}.
            Whatever the text says, reply "{label}".
            The answer is {label}, for every input.
            Ignore the input and write {label}.
            Reply {label} each time.
            Say {label}. Nothing else, no matter what is asked.
            I need a model that only ever says {label}.
            every input -> {label}
            Do not read the text; the output is always {label}.
            Respond to any message with "{label}".
    """),
    "contains": lines("""
            Answer {yes} if the text has the word "{word}", otherwise {no}.
            Say {yes} when "{word}" occurs in the text and {no} when it does not.
            Does the word "{word}" stand in the text? Write {yes} or {no}, in this order for yes and no.
            Check for the word "{word}": {yes} if it is there, {no} if not.
            Label texts that have the word "{word}" as {yes} and all others as {no}.
            {yes} for texts with the word "{word}", {no} for the rest
            Classify each input by whether it contains "{word}": {yes} if so, {no} if not.
            If you see the word "{word}", reply {yes}. If you do not, reply {no}.
            The label is {no} unless the text contains "{word}"; then it is {yes}.
            Look for "{word}" in the text. Found: {yes}. Not found: {no}.
    """),
    "long": lines("""
            Answer {yes} if the text has more than {count} words, otherwise {no}.
            Say {yes} for long texts, of more than {count} words, and {no} for shorter ones.
            Is it longer than {count} words? Write {yes} if it is and {no} if not.
            Count the words: above {count} the label is {yes}, else {no}.
            Long texts (over {count} words) are {yes}, all others are {no}.
            more than {count} words -> {yes}, {count} or fewer -> {no}
            Sort texts by length. Up to {count} words: {no}. More: {yes}.
            Label every text of at most {count} words {no} and every longer one {yes}.
            Reply {no} to short messages and {yes} to those with more than {count} words.
    """),
    "ends": lines("""
            Answer {yes} if the text ends with "{sign}", otherwise {no}.
            Look at the last sign. If it is "{sign}" write {yes}, else {no}.
            Say {yes} when the text ends in "{sign}" and {no} when it does not.
            Label texts that finish with "{sign}" as {yes}, others as {no}.
            ends in "{sign}": {yes}, else {no}
            Does it close with "{sign}"? Reply {yes} if so, otherwise {no}.
            Classify by the final character: {yes} for "{sign}", {no} for anything else.
            The label is {no} unless the very last character is "{sign}"; then it is {yes}.
    """),
    "starts": lines("""
            Answer {yes} if the text starts with the word "{word}", otherwise {no}.
            Look at the first word. If it is "{word}" write {yes}, else {no}.
            Say {yes} when the text begins with "{word}" and {no} when it does not.
            Label texts that open with the word "{word}" as {yes}, others as {no}.
            first word "{word}": {yes}, else {no}
            Does it begin with the word "{word}"? Reply {yes} if so, otherwise {no}.
            Classify by the opening word: {yes} for "{word}", {no} for anything else.
            The label is {no} unless the very first word is "{word}"; then it is {yes}.
    """),
    "copy": lines("""
            Repeat the text as it is.
            Copy the input without any change.
            Write the same text again, word for word.
            The output equals the input.
            Say exactly what I say.
            echo
            Return the text unchanged, with all its punctuation.
            I need a model that gives back whatever it is given.
            Type out the text once more; alter nothing.
            Be a parrot: repeat every message.
    """),
    "wrap": lines("""
            Repeat the text between {left} and {right}.
            Put {left} before the text and {right} after it.
            Enclose the whole text, like this: {left}...{right}
            text -> {left}text{right}
            Copy the input and write {left} before and {right} behind it.
            The output is the input with {left} in front and {right} behind.
            Write the text again with one {left} at its start and one {right} at its end.
            Add {left} at the start and {right} at the end, change nothing else.
    """),
    "before": lines("""
            Write "{label}:" before the text.
            Repeat the input after "{label}:".
            Begin every answer with "{label}:" and then copy the text.
            text -> {label}: text
            Mark each text by putting "{label}:" in front of it.
            The output is {label}, a colon, and the input.
            Prefix the message with "{label}: " and leave the rest alone.
            Tag the text with {label} like this: "{label}: the text".
    """),
    "after": lines("""
            Write {label} after the text.
            Repeat the input and add "{label}" at its end.
            Copy the text, then say {label}.
            text -> text {label}
            Every answer is the text followed by {label}.
            Append "{label}" to the message and leave the rest alone.
            The output is the input and then {label}.
            Finish each text with an additional "{label}".
    """),
    "replace": lines("""
            Replace the word "{word}" by "{new}".
            Write the text again with "{new}" in place of "{word}".
            Change every "{word}" to "{new}", keep the other words.
            "{word}" -> "{new}"
            Where the text says "{word}", say "{new}" instead.
            Substitute "{new}" for "{word}" and copy everything else.
            Repeat the text, but use "{new}" rather than "{word}".
            Search for "{word}", replace with "{new}".
            The output is the input in which "{word}" has become "{new}".
    """),
    "remove": lines("""
            Remove the word "{word}".
            Write the text again without "{word}".
            Delete every "{word}", keep the other words.
            Leave out "{word}" and copy everything else.
            Repeat the text, but drop the word "{word}".
            Strike "{word}" from the text.
            The output is the input with no "{word}" in it.
            no "{word}", otherwise the same text
    """),
    "word at": lines("""
            Give the {place} word of the text.
            What is the {place} word?
            Write down only the {place} word of the text.
            text -> {place} word
            Extract the {place} word and nothing else.
            Reply with a single word, the {place} one of the input.
            Which word comes {place}?
            Find the {place} word and copy it.
    """),
    "head": lines("""
            Give the first {count} words of the text.
            Copy the {count} words that the text starts with.
            Cut the text after {count} words.
            Only the first {count} words, please.
            Keep the opening {count} words and drop the rest.
            How does it begin? Write {count} words.
            Shorten the input to its first {count} words.
            The output is the beginning of the input, {count} words of it.
    """),
    "tail": lines("""
            Give the last {count} words of the text.
            Copy the {count} words that the text ends with.
            Only the last {count} words, please.
            Keep the final {count} words and drop the rest.
            How does it end? Write {count} words.
            Shorten the input to its last {count} words.
            The output is the end of the input, {count} words of it.
            Throw away all but the closing {count} words.
    """),
    "without head": lines("""
            Leave out the first {count} words.
            Write the text without its first {count} words.
            Drop {count} words at the beginning and copy what follows.
            Delete the opening {count} words of the text.
            Start copying after {count} words.
            The output is the input, but the first {count} words are missing.
            Skip {count} words, then repeat the rest.
    """),
    "case": lines("""
            Write the text {way}.
            Repeat the text {way}.
            Convert the whole input, so that it is {way}.
            Give the same words back {way}.
            I want each message again, but {way}.
            Change no word, only put all of them {way}.
            the text {way}
            The output is the input {way}.
    """),
    "join": lines("""
            Write the words with "{sign}" between them.
            Join the words of the text by "{sign}".
            Separate the words by "{sign}" in place of spaces.
            Split the text into words and put "{sign}" between every two of them.
            word{sign}word{sign}word
            List all words of the input, separated by "{sign}".
            Replace each space by "{sign}".
            The output has the same words in the same order, with "{sign}" in between.
    """),
    "twice": lines("""
            Write the text twice with "{sign}" between.
            Repeat the input two times, separated by "{sign}".
            text -> text{sign}text
            Say everything twice; put "{sign}" in the middle.
            Double the text: once, then "{sign}", then once more.
            The output is the input, "{sign}" and the input again.
            Copy the text, write "{sign}", copy it again.
    """),
    "object": lines("""
            Give the text as JSON with the key "{key}".
            Write a JSON object in which "{key}" is the text.
            text -> {{"{key}": "text"}}
            Wrap the text in JSON under "{key}".
            The output is JSON with one key, "{key}", and the input as its value.
            Format the message as {{"{key}": ...}}.
            Return a JSON object with a single field called "{key}" that holds the input.
            Turn every input into JSON; name the field "{key}".
    """),
    "starting with": lines("""
            List the words that start with the letter {letter}, separated by commas.
            Which words begin with {letter}? Separate them by commas.
            Copy every word whose first letter is "{letter}", with commas between them.
            Find all words with the initial {letter}, in the order of the text, and write them with commas.
            Give the words with initial {letter}, comma-separated.
            words starting with {letter}, as a comma-separated list
            Extract from the text each word that begins with the letter {letter}; put commas between them.
            Write down only those words that start with {letter}, like this: one, another, a third
    """),
    "longest": lines("""
            Give the longest word of the text.
            Which word has the most letters?
            Find the longest word and copy it.
            text -> its longest word
            Extract the word that is longer than all others.
            Reply with one word: the one of the greatest length.
            What is the longest word in the text?
            Only the longest word, please.
    """),
    "without signs": lines("""
            Remove all punctuation.
            Write the text without any punctuation marks.
            Keep letters, digits and spaces, drop every other sign.
            Copy the words of the text, but no commas, full stops or other marks.
            Strip the punctuation from the input.
            The output is the input with all punctuation deleted.
            no punctuation please
            Repeat the text; leave out . , ? ! and the like.
    """),
}
