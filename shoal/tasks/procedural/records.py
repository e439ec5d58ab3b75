"""Families over the record of a person: `Anna Weber, 34, nurse, Lyon`.

Every one takes the same records; only the description tells which field or which notation is wanted. Knows
nothing of messages or tables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from shoal.tasks.procedural.family import Family, balanced, lines, over
from shoal.tasks.procedural.material import record
from shoal.tasks.procedural.vocabulary import with_article

AGES = ("minor", "adult", "senior")


@dataclass(frozen=True)
class Person:
    """The fields of a record."""

    name: str
    age: int
    job: str
    city: str


def read_person(text: str) -> Person:
    """The person of a record as `shoal.tasks.procedural.material.record` writes it."""
    name, age, job, city = text.split(", ")
    return Person(name, int(age), job, city)


def _as_json(text: str) -> str:
    person = read_person(text)
    return json.dumps({"name": person.name, "age": person.age, "job": person.job, "city": person.city})


def _as_xml(text: str) -> str:
    person = read_person(text)
    return (
        f"<name>{person.name}</name><age>{person.age}</age><job>{person.job}</job><city>{person.city}</city>"
    )


def _as_pairs(text: str) -> str:
    person = read_person(text)
    return f"name={person.name}; age={person.age}; job={person.job}; city={person.city}"


def _as_lines(text: str) -> str:
    person = read_person(text)
    return f"Name: {person.name}\nAge: {person.age}\nJob: {person.job}\nCity: {person.city}"


def _as_sentence(text: str) -> str:
    person = read_person(text)
    return f"{person.name} is {with_article(person.job)} from {person.city}."


def _surname_first(text: str) -> str:
    first, surname = read_person(text).name.split()
    return f"{surname}, {first}"


def _initials(text: str) -> str:
    return "".join(f"{part[0]}." for part in read_person(text).name.split())


def _age_group(text: str) -> str:
    age = read_person(text).age
    return "minor" if age < 18 else "adult" if age < 65 else "senior"


FAMILIES = (
    Family(
        "record-json",
        "structured output",
        "The input is a person's name, age, job and city. The output is a JSON object with the keys name, age, "
        "job and city; age is a number.",
        lines("""
            Convert the record to JSON with the keys name, age, job and city.
            Return {"name": ..., "age": ..., "job": ..., "city": ...} for the person; age is a number.
            I need a model that turns comma-separated person records into JSON objects (name, age, job, city).
            Anna Weber, 34, nurse, Lyon -> {"name": "Anna Weber", "age": 34, "job": "nurse", "city": "Lyon"}
            Make one JSON object on one line; keys in the order name, age, job, city.
            The four values are name, age, job and city. Write them as JSON, the age without quotes.
            Can you parse this row into a JSON dictionary with name, age, job, city?
            Serialise the person as JSON under the usual keys: name, age (integer), job, city.
            row to json (name/age/job/city)
            The output is valid JSON with exactly four fields: name, age, job, city.
        """),
        over(record, _as_json),
    ),
    Family(
        "record-xml",
        "structured output",
        "The input is a person's name, age, job and city. The output is the four values in the XML tags name, "
        "age, job and city, without spaces between the elements.",
        lines("""
            Put the four values in XML tags: <name>, <age>, <job>, <city>.
            Convert the record to <name>..</name><age>..</age><job>..</job><city>..</city>.
            I need a model that turns person records into XML elements on one line.
            A B, 34, nurse, Lyon -> <name>A B</name><age>34</age><job>nurse</job><city>Lyon</city>
            Wrap name, age, job and city each in a tag of that name, nothing in between.
            Can you write this row as XML? The elements are name, age, job, city.
            Tag every field: name, age, job, city; drop the commas.
            Mark up the person with one XML element for each of the four fields.
            row to xml tags (name, age, job, city)
            The output has four elements in the order of the input, called name, age, job and city.
        """),
        over(record, _as_xml),
    ),
    Family(
        "record-key-value",
        "structured output",
        "The input is a person's name, age, job and city. The output is name=..., age=..., job=..., city=... "
        "with semicolons and spaces between them.",
        lines("""
            Write the record as key=value pairs with semicolons: name, age, job, city.
            Convert to "name=...; age=...; job=...; city=...".
            I need a model that labels the four values of a record in the form key=value; key=value.
            Anna Weber, 34, nurse, Lyon -> name=Anna Weber; age=34; job=nurse; city=Lyon
            Put name=, age=, job= and city= before the values, and "; " between them.
            Can you give me this row as a settings string such as name=X; age=Y; job=Z; city=W?
            Each value gets its key and an equals sign; separate the pairs with semicolons.
            The keys are name, age, job and city. Join key and value by = and pairs by "; ".
            key=value; format pls (name age job city)
            The output is one line with four assignments: name, age, job, city.
        """),
        over(record, _as_pairs),
    ),
    Family(
        "record-lines",
        "structured output",
        "The input is a person's name, age, job and city. The output has four lines: Name: ..., Age: ..., "
        "Job: ..., City: ...",
        lines("""
            Write the record on four lines: Name, Age, Job and City, each with a colon and its value.
            Convert to a form with the lines "Name: ...", "Age: ...", "Job: ...", "City: ...".
            I need a model that prints a person's record as an index card, one labelled field a line.
            Anna Weber, 34, nurse, Lyon -> Name: Anna Weber / Age: 34 / Job: nurse / City: Lyon (new lines)
            One field on each line, with the labels Name:, Age:, Job: and City:.
            Can you lay this row out as a vertical list of label: value, labels capitalised?
            Break the record into four lines and label them Name, Age, Job, City.
            Make YAML of it, with the keys Name, Age, Job and City.
            Name: / Age: / Job: / City: on separate lines
            The output is four lines long, and every line is a label, a colon, a space and the value.
        """),
        over(record, _as_lines),
    ),
    Family(
        "record-table-row",
        "structured output",
        "The input is a person's name, age, job and city. The output is a row of a Markdown table with the "
        "four values.",
        lines("""
            Write the record as a row of a Markdown table.
            Convert to "| name | age | job | city |" with the person's values.
            I need a model that turns comma-separated values into a Markdown table row.
            Anna Weber, 34, nurse, Lyon -> | Anna Weber | 34 | nurse | Lyon |
            Put a pipe and a space before each value, and a pipe at the end.
            Can you make a table row of this for my README? Only the row, no header.
            Replace the commas with pipes and put a pipe on each end, spaces inside.
            Each value goes into a cell between vertical bars.
            md table row
            The output starts and ends with | and has four cells.
        """),
        over(record, lambda text: f"| {text.replace(', ', ' | ')} |"),
    ),
    Family(
        "record-semicolons",
        "structured output",
        "The input is a person's name, age, job and city. The output is the four values with semicolons and "
        "no spaces between them.",
        lines("""
            Separate the values by semicolons without spaces.
            Convert the record to CSV with ; as the delimiter.
            I need a model that exports records the way European spreadsheets want them: a;b;c;d.
            Anna Weber, 34, nurse, Lyon -> Anna Weber;34;nurse;Lyon
            Replace every comma and the space after it by a semicolon.
            Can you write this row as semicolon-separated values?
            Keep the four values and their order; put ; between them and nothing else.
            Join the fields with semicolons, no blanks around them.
            csv with ; pls
            The output has three semicolons and no comma.
        """),
        over(record, lambda text: text.replace(", ", ";")),
    ),
    Family(
        "record-sentence",
        "rewriting",
        "The input is a person's name, age, job and city. The output is a sentence of the form 'NAME is a JOB "
        "from CITY.'",
        lines("""
            Write a sentence of the form "NAME is a JOB from CITY." and leave the age out.
            Introduce the person: name, "is a", job, "from", city.
            I need a model that turns records into sentences like "Anna Weber is a nurse from Lyon."
            Anna Weber, 34, nurse, Lyon -> Anna Weber is a nurse from Lyon.
            Say in one sentence what the person does and where they come from, without the age.
            Can you describe this person as "X is a Y from Z."? Use "an" before a vowel.
            Fill the template: <name> is a/an <job> from <city>.
            Make the row a full sentence with name, job and city.
            sentence from row: who is a what from where
            The output is a short English sentence that states job and city of the person, full stop included.
        """),
        over(record, _as_sentence),
    ),
    Family(
        "record-age",
        "information extraction",
        "The input is a person's name, age, job and city. The output is the age as a number.",
        lines("""
            Give the age of the person.
            How old is this person? Answer with the number.
            I need a model that reads a person's record and returns only the age.
            Anna Weber, 34, nurse, Lyon -> 34
            Copy the second field.
            Which number is in the record?
            Return how many years old they are, digits only.
            age?
            Pick the age out of the row and leave name, job and city aside.
            The answer is the only number of the input.
        """),
        over(record, lambda text: str(read_person(text).age)),
    ),
    Family(
        "record-job",
        "information extraction",
        "The input is a person's name, age, job and city. The output is the job.",
        lines("""
            Give the job of the person.
            What does this person do for a living? One word.
            I need a model that reads a person's record and returns only the profession.
            Anna Weber, 34, nurse, Lyon -> nurse
            Copy the third field.
            Which occupation is in the record?
            Return the person's line of work as it is written.
            job?
            Pick the profession out of the row and leave name, age and city aside.
            The answer is the word between the age and the city.
        """),
        over(record, lambda text: read_person(text).job),
    ),
    Family(
        "record-city",
        "information extraction",
        "The input is a person's name, age, job and city. The output is the city.",
        lines("""
            Give the city of the person.
            Where does this person live? Name the city alone.
            I need a model that reads a person's record and returns only the city.
            Anna Weber, 34, nurse, Lyon -> Lyon
            Copy the fourth field.
            Which town is in the record?
            Return the place at the end of the row.
            city?
            Pick the city out of the row and leave name, age and job aside.
            The answer is whatever comes after the last comma.
        """),
        over(record, lambda text: read_person(text).city),
    ),
    Family(
        "record-surname-first",
        "rewriting",
        "The input is a person's name, age, job and city. The output is the surname, a comma and the first "
        "name.",
        lines("""
            Write the person's name as "Surname, First name".
            Give surname, comma, first name, and nothing else of the record.
            I need a model that lists people the library way: Weber, Anna.
            Anna Weber, 34, nurse, Lyon -> Weber, Anna
            Turn the name around with a comma between its parts; drop age, job and city.
            How would this person be filed in a phone book? Last name first.
            Take only the name and put the family name in front, followed by a comma.
            Last, First
            Format the name for a bibliography: family name, then given name.
            The answer has two words, the second of the record, a comma, then the first.
        """),
        over(record, _surname_first),
    ),
    Family(
        "record-initials",
        "rewriting",
        "The input is a person's name, age, job and city. The output is the initials of the name, each with a "
        "full stop, such as A.W.",
        lines("""
            Give the initials of the person with full stops, such as A.W.
            What are this person's initials? Capital, dot, capital, dot.
            I need a model that reduces the person of a record to initials like A.W.
            Anna Weber, 34, nurse, Lyon -> A.W.
            Take the first letter of the first name and of the surname, a dot after each.
            How would this person sign a memo in short? Letters and dots without spaces.
            Abbreviate the name to its two initials with periods; ignore the rest.
            initials (X.Y.)
            Return two capital letters, each followed by a period.
            The answer is four characters long: letter, dot, letter, dot.
        """),
        over(record, _initials),
    ),
    Family(
        "record-age-group",
        "classification",
        "The input is a person's name, age, job and city. The output is minor below 18, adult from 18 to 64 "
        "and senior from 65.",
        lines("""
            Classify the person by age: minor (below 18), adult (18 to 64) or senior (65 and more).
            Is the person a minor, an adult or a senior? Seniors are 65 or older.
            I need a model that answers minor, adult or senior for a person's record, by the age alone.
            Anna Weber, 34, nurse, Lyon -> adult
            Below 18 say "minor", from 65 on say "senior", else say "adult".
            Which age group is it? Labels: minor, adult, senior.
            Read the age and reply with minor, adult or senior.
            minor/adult/senior?
            Sort people into three groups: minor under eighteen, senior from sixty-five, adult between.
            The answer is one of three words, minor, adult and senior, and depends on nothing but the age.
        """),
        balanced(record, _age_group, AGES),
    ),
)
