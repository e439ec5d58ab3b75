"""Families over a single noun, and over the name of a country.

Families of nouns take the same nouns, and families of countries the same countries; only the description tells
them apart. Knows only facts that are beyond dispute.
"""

from __future__ import annotations

import random

from shoal.tasks.procedural import vocabulary
from shoal.tasks.procedural.family import Family, balanced, lines, over
from shoal.tasks.procedural.material import noun

# Country: its capital, its continent.
COUNTRIES = {
    line.split(",")[0].strip(): (line.split(",")[1].strip(), line.split(",")[2].strip())
    for line in """
    France, Paris, Europe; Germany, Berlin, Europe; Italy, Rome, Europe; Spain, Madrid, Europe;
    Portugal, Lisbon, Europe; Austria, Vienna, Europe; Greece, Athens, Europe; Poland, Warsaw, Europe;
    Norway, Oslo, Europe; Sweden, Stockholm, Europe; Finland, Helsinki, Europe; Denmark, Copenhagen, Europe;
    Ireland, Dublin, Europe; Hungary, Budapest, Europe; Belgium, Brussels, Europe; Romania, Bucharest, Europe;
    Bulgaria, Sofia, Europe; Croatia, Zagreb, Europe; Serbia, Belgrade, Europe; Iceland, Reykjavik, Europe;
    Ukraine, Kyiv, Europe; Switzerland, Bern, Europe; Slovakia, Bratislava, Europe; Estonia, Tallinn, Europe;
    Latvia, Riga, Europe; Lithuania, Vilnius, Europe; Slovenia, Ljubljana, Europe; Albania, Tirana, Europe;
    Japan, Tokyo, Asia; China, Beijing, Asia; Thailand, Bangkok, Asia; Vietnam, Hanoi, Asia;
    Nepal, Kathmandu, Asia; Mongolia, Ulaanbaatar, Asia; Iran, Tehran, Asia; Iraq, Baghdad, Asia;
    Pakistan, Islamabad, Asia; Bangladesh, Dhaka, Asia; Jordan, Amman, Asia; Lebanon, Beirut, Asia;
    Syria, Damascus, Asia; Oman, Muscat, Asia; Qatar, Doha, Asia; Laos, Vientiane, Asia;
    Cambodia, Phnom Penh, Asia; South Korea, Seoul, Asia; North Korea, Pyongyang, Asia;
    Saudi Arabia, Riyadh, Asia; Afghanistan, Kabul, Asia; Uzbekistan, Tashkent, Asia; Bhutan, Thimphu, Asia;
    Egypt, Cairo, Africa; Kenya, Nairobi, Africa; Ghana, Accra, Africa; Nigeria, Abuja, Africa;
    Morocco, Rabat, Africa; Tunisia, Tunis, Africa; Algeria, Algiers, Africa; Libya, Tripoli, Africa;
    Senegal, Dakar, Africa; Uganda, Kampala, Africa; Rwanda, Kigali, Africa; Zambia, Lusaka, Africa;
    Zimbabwe, Harare, Africa; Angola, Luanda, Africa; Mali, Bamako, Africa; Somalia, Mogadishu, Africa;
    Namibia, Windhoek, Africa; Botswana, Gaborone, Africa; Ethiopia, Addis Ababa, Africa;
    Madagascar, Antananarivo, Africa; Sudan, Khartoum, Africa; Mozambique, Maputo, Africa;
    Peru, Lima, South America; Chile, Santiago, South America; Argentina, Buenos Aires, South America;
    Colombia, Bogota, South America; Venezuela, Caracas, South America; Ecuador, Quito, South America;
    Uruguay, Montevideo, South America; Paraguay, Asuncion, South America; Brazil, Brasilia, South America;
    Suriname, Paramaribo, South America; Guyana, Georgetown, South America
    """.split(";")
}
CONTINENTS = ("Europe", "Asia", "Africa", "South America")

IRREGULAR = {
    "wolf": "wolves",
    "octopus": "octopuses",
    "knife": "knives",
    "scarf": "scarves",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "mango": "mangoes",
}
CATEGORIES = {
    word: category
    for category, words in (
        ("animal", vocabulary.ANIMALS),
        ("food", vocabulary.FOODS),
        ("object", vocabulary.OBJECTS),
        ("job", vocabulary.JOBS),
        ("place", vocabulary.SPOTS),
    )
    for word in words
}
LETTERS = ("vowel", "consonant")


def plural(word: str) -> str:
    """The plural of a noun of the vocabulary."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _country(rng: random.Random) -> str:
    return rng.choice(list(COUNTRIES))


def _opening_noun(rng: random.Random) -> str:
    """One of the nouns that begin with a vowel, or of about twice as many others."""
    vowels = [word for word in vocabulary.NOUNS if word[0] in "aeiou"]
    others = [word for word in vocabulary.NOUNS if word[0] not in "aeiou"]
    return rng.choice(vowels + others[::3])


def _first_letter_kind(word: str) -> str:
    return "vowel" if word[0] in "aeiou" else "consonant"


FAMILIES = (
    Family(
        "noun-plural",
        "words",
        "The input is an English noun in the singular. The output is its plural.",
        lines("""
            Give the plural of the noun.
            What is the word for more than one of these?
            I need a model that turns English singulars into plurals.
            dog -> dogs; knife -> knives
            One lamp, two ...? Write the missing form.
            Pluralise the word.
            Put the noun into the plural, minding the spelling (cherry, cherries).
            plural form
            The answer is the same noun, but for several of its kind.
            How do you write the word if there are many?
            Inflect the noun for number: plural.
            Add s, es or ies, whichever English spelling asks for.
        """),
        over(noun, plural),
    ),
    Family(
        "noun-article",
        "words",
        "The input is an English noun. The output is the noun with its indefinite article: 'a dog', 'an owl'.",
        lines("""
            Put "a" or "an" in front of the noun.
            Which indefinite article is right? Write it with the noun.
            I need a model that adds the correct article, a or an, to a noun.
            dog -> a dog; owl -> an owl
            Write the word with its article, "an" before a vowel.
            Is it a or an? Give article and word.
            Complete the phrase "This is ..." with the article and the noun, without "This is".
            a/an + word
            The answer is two words, the article and the noun.
            Turn apple into "an apple" and lamp into "a lamp".
            Prefix the noun with the indefinite article.
            Make a noun phrase with a or an.
        """),
        over(noun, vocabulary.with_article),
    ),
    Family(
        "noun-category",
        "classification",
        "The input is an English noun. The output says what it names: animal, food, object, job or place.",
        lines("""
            Is it an animal, a food, an object, a job or a place? Answer with that one word.
            Classify the noun as animal, food, object, job or place.
            I need a model that sorts words into the categories animal, food, object, job and place.
            owl -> animal; plum -> food; lamp -> object; nurse -> job; museum -> place
            What kind of thing does the word name? Choose from: animal, food, object, job, place.
            Label each word with "animal", "food", "object", "job" or "place".
            Tell the category of the noun (animal / food / object / job / place).
            semantic class: animal, food, object, job, place
            The answer is one of five words: animal, food, object, job, place.
            Does it live, is it eaten, used, done for a living or visited? Say animal, food, object, job or
              place.
            Put the word into one of five drawers: animal, food, object, job, place.
            Name the hypernym of the noun, out of animal, food, object, job and place.
        """),
        balanced(noun, CATEGORIES.__getitem__, tuple(dict.fromkeys(CATEGORIES.values()))),
    ),
    Family(
        "noun-first-letter",
        "words",
        "The input is an English noun. The output is its first letter as a capital.",
        lines("""
            Give the first letter of the word as a capital.
            With which letter does the word begin? Write it in upper case.
            I need a model that returns the initial of a word, capitalised.
            dog -> D
            Under which letter would an index list this word?
            One capital letter: the one that starts the word.
            Return word[0].upper().
            initial, uppercase
            The answer is a single capital letter.
            Name the letter tab in the telephone book where the word belongs.
            Take the letter at the front and make it big.
            Copy only the first character and capitalise it.
        """),
        over(noun, lambda word: word[0].upper()),
    ),
    Family(
        "noun-vowel-start",
        "classification",
        "The input is an English noun. The output is 'vowel' if its first letter is a, e, i, o or u, and "
        "'consonant' if not.",
        lines("""
            Does the word begin with a vowel or a consonant? Answer with that word.
            Classify the first letter: vowel or consonant.
            I need a model that says "vowel" for words with a, e, i, o, u in front and "consonant" otherwise.
            owl -> vowel; dog -> consonant
            Look at the initial and answer vowel or consonant.
            Say vowel if the word starts with one of a, e, i, o, u; say consonant if it does not.
            What sort of letter starts the word, a vowel or a consonant?
            first letter: vowel / consonant
            The answer is either "vowel" or "consonant", by the first letter.
            Label nouns by how they start, with the labels vowel and consonant.
            Check the first character against aeiou: report "vowel" on a match, else "consonant".
            Tell me whether the noun opens with a vowel or with a consonant.
        """),
        balanced(_opening_noun, _first_letter_kind, LETTERS),
    ),
    Family(
        "noun-twice",
        "words",
        "The input is an English noun. The output is the noun twice, with a hyphen between.",
        lines("""
            Write the word twice with a hyphen between.
            Repeat the noun, joining both by a hyphen.
            I need a model that doubles words, as in dog-dog.
            dog -> dog-dog
            Say it two times, hyphenated.
            Copy the word, add "-", copy the word again.
            Echo the noun as baby talk would: lamp-lamp.
            double it with a dash
            The answer is the same word before and after a hyphen.
            Reduplicate the word.
            Return f"{word}-{word}".
            Make a twin of the word and connect the two with a hyphen.
        """),
        over(noun, lambda word: f"{word}-{word}"),
    ),
    Family(
        "noun-question",
        "words",
        "The input is an English noun. The output is the question 'Where is the NOUN?'.",
        lines("""
            Ask where the thing is: "Where is the ...?"
            Make the question "Where is the X?" out of the noun.
            I need a model that asks for the whereabouts of whatever I name.
            dog -> Where is the dog?
            Put the word into the question "Where is the ...?".
            Suppose you are looking for it: what do you ask? Begin with Where is the.
            Form a question with "where", the article "the" and the noun.
            where is the ...?
            The answer is a question of four words that starts with Where.
            Turn the noun into an enquiry about its place.
            Ask the way to it, or to him or her, as in "Where is the station?"
            Fill in the template Where is the {word}?
        """),
        over(noun, lambda word: f"Where is the {word}?"),
    ),
    Family(
        "country-capital",
        "facts",
        "The input is the name of a country. The output is its capital.",
        lines("""
            Give the capital of the country.
            What is the capital city of this country?
            I need a model that answers with the capital when I type a country.
            France -> Paris
            Name the city from which the country is governed.
            Which city is the country's capital? Just the name.
            Geography quiz: country in, capital out.
            capital?
            The answer is the name of a city, the capital.
            Japan has Tokyo; which capital has this country?
            Return the capital for the country.
            Tell me the seat of government, as an atlas marks it.
        """),
        over(_country, lambda country: COUNTRIES[country][0]),
    ),
    Family(
        "country-continent",
        "classification",
        "The input is the name of a country. The output is its continent: Europe, Asia, Africa or South "
        "America.",
        lines("""
            On which continent is the country: Europe, Asia, Africa or South America?
            Give the continent, one of Europe, Asia, Africa and South America.
            I need a model that sorts countries into Europe, Asia, Africa and South America.
            France -> Europe; Japan -> Asia; Kenya -> Africa; Peru -> South America
            Where in the world is it? Choose from Europe, Asia, Africa, South America.
            Label countries by continent ("Europe", "Asia", "Africa", "South America").
            Which part of the world does the country belong to (Europe / Asia / Africa / South America)?
            continent? Europe, Asia, Africa or South America
            The answer is Europe, Asia, Africa or South America.
            Geography quiz: country in, continent out.
            Say in what continent one has to look for this country on the globe: Africa, Asia, Europe or
              South America.
            Assign the country to its continent.
        """),
        balanced(_country, lambda country: COUNTRIES[country][1], CONTINENTS),
    ),
)
