"""Families over a line of Python: what it gives, of which type, which error it raises, what it lacks.

The families of one kind of line take the same lines; only the description tells them apart. Nothing is run:
every line is drawn together with what is asked about it. Knows nothing of other languages.
"""

from __future__ import annotations

import builtins
import random
from collections.abc import Callable
from dataclasses import dataclass

from shoal.tasks.procedural import vocabulary
from shoal.tasks.procedural.family import Family, Make, Pair, lines

Choice = Callable[[random.Random], "Line"]
ERRORS = ("NameError", "TypeError", "ZeroDivisionError", "IndexError", "KeyError", "ValueError")


@dataclass(frozen=True)
class Line:
    """A line of code with what may be asked about it.

    `answer` is what it gives, or the error it raises, or its complete form; `kind` is the type of what it
    gives, or the sign that it lacks, or the name on its left.
    """

    code: str
    answer: str
    kind: str


def _expression(rng: random.Random) -> Line:
    word, other = rng.sample(vocabulary.NOUNS, 2)
    small, large = sorted(rng.sample(range(1, 30), 2))
    place = rng.randrange(3)
    return rng.choice(
        (
            Line(f'len("{word}")', str(len(word)), "int"),
            Line(f'"{word}".upper()', word.upper(), "str"),
            Line(f'"{word}"[{place}]', word[place], "str"),
            Line(f'"{word}" + "{other}"', word + other, "str"),
            Line(f"{large} + {small}", str(large + small), "int"),
            Line(f"{large} - {small}", str(large - small), "int"),
            Line(f"max({small}, {large})", str(large), "int"),
            Line(f"{small} > {large}", "False", "bool"),
            Line(f"{large} > {small}", "True", "bool"),
            Line(f'"{word}" == "{other}"', "False", "bool"),
            Line(f'"{word}" != "{other}"', "True", "bool"),
            Line(f'["{word}", "{other}"][{place % 2}]', (word, other)[place % 2], "str"),
            Line(f"[{small}, {large}][{place % 2}]", str((small, large)[place % 2]), "int"),
            Line(f'"{word}".capitalize()', word.capitalize(), "str"),
            Line(f'"{word}".startswith("{word[0]}")', "True", "bool"),
            Line(f'"{word}".endswith("{other}")', str(word.endswith(other)), "bool"),
        )
    )


def _failure(rng: random.Random) -> Line:
    word, other = rng.sample([noun for noun in vocabulary.NOUNS if not hasattr(builtins, noun)], 2)
    number, large = rng.randint(1, 30), rng.randint(5, 30)
    codes = {
        "NameError": (f"print({word})", f"{word} + {number}", f"len({word})"),
        "TypeError": (f'"{word}" + {number}', f"len({number})", f'{number} - "{word}"'),
        "ZeroDivisionError": (f"{number} / 0", f'len("{word}") / 0', f"{number} % 0"),
        "IndexError": (f'["{word}", "{other}"][{large}]', f'"{word}"[{large + 15}]', f"[{number}][{large}]"),
        "KeyError": (
            f'{{"{word}": {number}}}["{other}"]',
            f'{{}}["{word}"]',
            f'{{{number}: "{word}"}}["{other}"]',
        ),
        "ValueError": (f'int("{word}")', f'float("{word}")', f'[{number}, {large}].remove("{word}")'),
    }
    error = rng.choice(ERRORS)
    return Line(rng.choice(codes[error]), error, error)


def _incomplete(rng: random.Random) -> Line:
    word = rng.choice(vocabulary.NOUNS)
    number = rng.randint(1, 99)
    whole = rng.choice((f'print("{word}")', f'print(len("{word}"))', f'show("{word}", {number})'))
    branch = rng.choice(
        (f"if {word} > {number}:", f"for {word} in range({number}):", f"while {word} < {number}:")
    )
    branch = rng.choice((branch, f"def get_{word}(x):", f"class {word.capitalize()}:"))
    return rng.choice(
        (
            Line(whole[:-1], whole, "parenthesis"),
            Line(whole.replace(f'{word}"', word), whole, "quote"),
            Line(branch[:-1], branch, "colon"),
        )
    )


def _assignment(rng: random.Random) -> Line:
    left, right, word = rng.sample(vocabulary.NOUNS, 3)
    value = rng.choice(
        (str(rng.randint(1, 99)), f'"{word}"', f"{right} + {rng.randint(1, 99)}", f"len({right})")
    )
    name = rng.choice((left, f"{left}_{right}", f"{left}s", f"old_{left}"))
    return Line(f"{name} = {value}", value, name)


def _asking(draw: Choice, answer: Callable[[Line], str]) -> Make:
    def make(rng: random.Random) -> Pair:
        line = draw(rng)
        return line.code, answer(line)

    return make


def _of_each_type(rng: random.Random) -> Line:
    wanted = rng.choice(("int", "str", "bool"))
    line = _expression(rng)
    while line.kind != wanted:
        line = _expression(rng)
    return line


FAMILIES = (
    Family(
        "expression-value",
        "code",
        "The input is a Python expression. The output is its value as print shows it.",
        lines("""
            Evaluate the Python expression and write what print shows.
            What does this expression give in Python? No quotation marks around strings.
            I need a model that predicts the output of tiny Python expressions.
            max(3, 8) -> 8
            For '"owl".upper()' answer 'OWL'.
            What appears on the screen after print(<this>)?
            Work out the value of the code, as printed.
            Play the Python interpreter: I give an expression, you give str() of its value.
            output?
            The answer is the value of the expression: a number, a word, True or False.
        """),
        _asking(_expression, lambda line: line.answer),
    ),
    Family(
        "expression-type",
        "code",
        "The input is a Python expression. The output is the name of the type of its value: int, str or bool.",
        lines("""
            Name the type of the expression's value: int, str or bool.
            Is the value of this Python expression an int, a str or a bool?
            I need a model that predicts type(...).__name__: int, str or bool.
            max(3, 8) -> int
            For '"owl".upper()' answer 'str'; for '3 > 2' answer 'bool'; for '3 + 2' answer 'int'.
            Do not evaluate it; only say int, str or bool.
            Which type does the code return? One word of int, str, bool.
            Annotate the expression with its type (bool for comparisons, int for numbers, str for text).
            int/str/bool?
            Classify Python expressions as int, str or bool by what they give.
        """),
        _asking(_of_each_type, lambda line: line.kind),
    ),
    Family(
        "expression-print",
        "code",
        "The input is a Python expression. The output is the same expression inside print( and ).",
        lines("""
            Wrap the expression in print( and ).
            Write a print call around the code.
            I need a model that turns a Python expression into a statement that prints it.
            max(3, 8) -> print(max(3, 8))
            For '"owl".upper()' answer 'print("owl".upper())'.
            Put print( in front and ) behind; do not evaluate anything.
            How would I show this value on the screen in Python? Write the line of code.
            Make the expression the argument of print.
            print(...) around it
            The answer is a call of print whose argument is the input, unchanged.
        """),
        _asking(_expression, lambda line: f"print({line.code})"),
    ),
    Family(
        "expression-assign",
        "code",
        "The input is a Python expression. The output is the expression after 'result = '.",
        lines("""
            Assign the expression to the variable result.
            Write "result = " in front of the code.
            I need a model that stores any Python expression in a variable called result.
            max(3, 8) -> result = max(3, 8)
            For '"owl".upper()' answer 'result = "owl".upper()'.
            Turn the expression into an assignment; the name on the left is result.
            How do I save this value as result in Python? One line of code.
            Make it a statement: result, equals sign, the expression as it is.
            save in result
            The answer is the unchanged input on the right of "result =".
        """),
        _asking(_expression, lambda line: f"result = {line.code}"),
    ),
    Family(
        "error-name",
        "code",
        "The input is a Python expression that fails, with no variables defined. The output is the name of "
        "the error: NameError, TypeError, ZeroDivisionError, IndexError, KeyError or ValueError.",
        lines("""
            Name the error that this Python code raises, such as TypeError.
            Which exception is it: NameError, TypeError, ZeroDivisionError, IndexError, KeyError or ValueError?
            I need a model that predicts the class of the exception for a failing line of Python.
            5 / 0 -> ZeroDivisionError
            For 'int("owl")' answer 'ValueError'; an unknown name gives 'NameError'.
            No variables are defined. What error does the line end in? Give the class name.
            Answer with one of NameError, TypeError, ZeroDivisionError, IndexError, KeyError, ValueError.
            The code crashes; copy the first word of the last line of the traceback.
            which error?
            Classify broken Python expressions by their exception: Name-, Type-, ZeroDivision-, Index-, Key- or
              ValueError.
        """),
        _asking(_failure, lambda line: line.answer),
    ),
    Family(
        "missing-sign",
        "code",
        "The input is a line of Python that lacks one sign. The output is parenthesis, quote or colon, "
        "whichever is missing.",
        lines("""
            Say what is missing from the line of Python: parenthesis, quote or colon.
            Which sign was forgotten? Answer parenthesis, quote or colon.
            I need a model that finds the syntax error: a missing parenthesis, quote or colon.
            print("owl" -> parenthesis
            For 'if owl > 3' answer 'colon'; for 'print("owl)' answer 'quote'.
            The line does not parse. Is a parenthesis, a quote or a colon lacking?
            Classify the bug as parenthesis, quote or colon.
            Name the character class that would repair the code: parenthesis, quote, colon.
            parenthesis/quote/colon?
            Spot the typo in the code and answer with one word: colon, quote or parenthesis.
        """),
        _asking(_incomplete, lambda line: line.kind),
    ),
    Family(
        "repair-line",
        "code",
        "The input is a line of Python that lacks a parenthesis, a quotation mark or a colon. The output is "
        "the line with the sign put in.",
        lines("""
            Repair the line of Python by putting in the missing sign.
            Fix the syntax error and write the whole line.
            I need a model that corrects lines which lack a ), a " or a final colon.
            print("owl" -> print("owl")
            For 'if owl > 3' answer 'if owl > 3:'.
            One character was forgotten; write the code with it.
            How should this line read so that Python accepts it?
            Debug it: add the parenthesis, quote or colon that is lacking and change nothing else.
            fix it pls
            The answer is the input with one character more.
        """),
        _asking(_incomplete, lambda line: line.answer),
    ),
    Family(
        "assigned-name",
        "code",
        "The input is an assignment in Python. The output is the name of the variable that is assigned.",
        lines("""
            Give the name of the variable that is assigned.
            Which variable gets a value here?
            I need a model that returns the left-hand side of an assignment.
            old_lamp = 7 -> old_lamp
            For 'owls = len(fox)' answer 'owls'.
            Copy what stands before the equals sign.
            What is the target of this Python assignment?
            Extract the variable's name and leave the value out.
            left of the =
            The answer is the identifier at the start of the line.
        """),
        _asking(_assignment, lambda line: line.kind),
    ),
    Family(
        "assigned-value",
        "code",
        "The input is an assignment in Python. The output is the expression to the right of the equals sign.",
        lines("""
            Give the expression on the right of the equals sign.
            What is assigned here? Copy it as code.
            I need a model that returns the right-hand side of an assignment.
            old_lamp = 7 -> 7
            For 'owls = len(fox)' answer 'len(fox)'.
            Copy what stands after the equals sign, quotes included.
            Which expression does the variable get?
            Leave out the name and the =, keep the rest of the line.
            right of the =
            The answer is the end of the line, from behind "= ".
        """),
        _asking(_assignment, lambda line: line.answer),
    ),
    Family(
        "comment-out",
        "code",
        "The input is an assignment in Python. The output is the same line as a comment: '# ' and the line.",
        lines("""
            Comment the line out.
            Put "# " in front of the code.
            I need a model that turns a line of Python into a comment.
            old_lamp = 7 -> # old_lamp = 7
            For 'owls = len(fox)' answer '# owls = len(fox)'.
            Disable the statement with a hash sign and a space.
            How do I keep this line in the file without running it? Write it so.
            Prefix the assignment with # and a blank.
            comment it out
            The answer is a hash, a space and the input unchanged.
        """),
        _asking(_assignment, lambda line: f"# {line.code}"),
    ),
    Family(
        "constant-name",
        "code",
        "The input is an assignment in Python. The output is the assignment with the variable's name in "
        "capital letters.",
        lines("""
            Make the variable a constant: its name in capital letters, the value unchanged.
            Write the name before the equals sign in upper case.
            I need a model that renames the assigned variable to UPPER_CASE and leaves the right side alone.
            old_lamp = 7 -> OLD_LAMP = 7
            For 'owls = len(fox)' answer 'OWLS = len(fox)'.
            Only the left-hand side goes to capitals.
            How would this assignment look by the naming rule for constants?
            Uppercase the target of the assignment and copy the rest.
            CONSTANT naming
            The answer is the same assignment, but everything left of = is capitalised throughout.
        """),
        _asking(_assignment, lambda line: f"{line.kind.upper()} = {line.answer}"),
    ),
)
