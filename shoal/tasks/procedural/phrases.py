"""The sentences from which `shoal.tasks.procedural.topics` makes its texts, sorted by label.

Slots such as `{object}` are those of `shoal.tasks.procedural.material`. Knows nothing of the questions that are asked.
"""

from __future__ import annotations


def _split(block: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in block.split("|"))


PRAISED = _split(
    """the {food} was|my new {object} is|the {adjective} {object} from {city} is|this {object} is|
    the {spot} in {city} is|the {job} at the {spot} was|our {colour} {object} turned out|
    the {food} with {food} was|the film about the {animal} is|the hotel by the {spot} was"""
)
POSITIVE = _split(
    """superb.|excellent, I will come back.|wonderful and well worth the money.|a real joy.|
    the best that I have ever had.|fantastic, thank you!|lovely, we smiled all day.|perfect in every way.|
    great and so cheap.|a delight, five of my friends agree.|brilliant, I recommend it to all.|
    far better than I had hoped."""
)
NEGATIVE = _split(
    """awful.|terrible, I want my money back.|a complete waste of money.|a bitter disappointment.|
    the worst that I have ever had.|horrible, never again!|dreadful, we were angry all day.|bad in every way.|
    poor and far too expensive.|a nightmare, five of my friends agree.|useless, I warn everybody.|
    much worse than I had feared."""
)
NEUTRAL = _split(
    """okay.|neither good nor bad.|acceptable, nothing more.|average at best.|all right, I suppose.|
    so-so.|fine, but nothing special.|what one can expect for the price.|ordinary, I have no strong opinion.|
    mediocre.|decent enough, though forgettable.|passable."""
)
SUBJECTS = {
    "sport": _split(
        """the team from {city} won the final by {number} points.|{person} scored two goals against {city}.|
        the goalkeeper of {city} was sent off in the second half.|the coach praised his players after the match.|
        {person} {surname} ran the marathon of {city} in record time.|the cyclists reach {city} on {weekday}.|
        {person} {surname} won the tennis tournament in {month}.|the referee ended the match early."""
    ),
    "weather": _split(
        """heavy rain is expected in {city} on {weekday}.|it will stay sunny and dry until {weekday}.|
        a storm is coming to {city} in {month}.|snow fell on {city} last night.|
        fog covers the coast near {city} this morning.|temperatures in {city} drop to {number} degrees.|
        strong winds and showers move towards {city}.|{month} was the hottest month in {number} years."""
    ),
    "cooking": _split(
        """fry the {food} in butter and add the {food}.|{person} bakes the {food} for {number} minutes.|
        stir the {food} slowly until the sauce is thick.|cut the {food} into slices and season with salt.|
        this recipe for {food} needs flour, eggs and sugar.|serve the roasted {food} with the {food}.|
        boil the {food} and let it cool in the pan.|a spoon of vinegar makes the {food} dish fresher."""
    ),
    "music": _split(
        """{person} {surname} sang her new song in {city}.|the orchestra of {city} plays a symphony on {weekday}.|
        the band recorded its album in {month}.|{person} practises the violin for {number} minutes.|
        the choir of {city} gave a concert.|a famous pianist from {city} composed the melody.|
        {person} plays the drums in a jazz band.|the singer forgot the second verse of the song."""
    ),
    "money": _split(
        """the bank in {city} raised its interest rates.|shares fell by {number} per cent on {weekday}.|
        the tax on income rises in {month}.|investors put {number} million into a firm from {city}.|
        {person} {surname} took out a loan of {number} thousand.|the stock market of {city} closed higher.|
        the company reported a profit in {month}.|inflation makes savings worth less, says {person} {surname}."""
    ),
}
URGENT = _split(
    """the {spot} is on fire!|water pours out of the wall in the {spot}, come at once!|
    the {job} is hurt and needs help now.|somebody is stuck in the lift of the {spot}, hurry!|
    emergency in the {spot}: {a animal} has bitten {person}.|the power failed and {person} is trapped.|
    there is a smell of gas in the {spot}!|a thief is in the {spot} right now!|
    send an ambulance to the {spot} immediately.|the {object} is smoking and the alarm rings in the {spot}!|
    the roof of the {spot} is about to fall, act now!|help, the {animal} has escaped from the {spot}!"""
)
ROUTINE = _split(
    """please order {a object} for the {spot} some time.|could {person} get {a colour} {object} next month?|
    the {object} in the {spot} could do with some paint one day.|we would like {number} new chairs next year.|
    when you have time, clean the {object}.|is it possible to move the {object} to the {spot} in {month}?|
    {person} would like a copy of the {object} list, no hurry.|please put {a object} on the agenda for {month}.|
    at your convenience, tell {person} the opening hours of the {spot}.|
    the {job} asks for a new {object}, whenever it suits you.|some day the {spot} needs a new {object}.|
    thank {person} for the {object}, and order another for {month}."""
)
STATEMENTS = _split(
    """the {animal} sleeps in the {spot}|{person} bought {a object}|we like {food} with {food}|
    the {job} lives in {city}|my {object} is {adjective}|{person} never eats {food}|
    it was {adjective} in the {spot}|the {spot} opens on {weekday}|they moved to {city} in {month}"""
)
QUESTIONS = _split(
    """where is the {object}|who bought the {object} in {city}|does {person} like {food}|
    why is the {spot} so {adjective}|when does the {spot} open|have you seen the {colour} {object}|
    is {person} {a adjective} neighbour|how many {object} sellers are there in {city}|
    can the {animal} swim|what did the {job} say to {person}"""
)
COMMANDS = _split(
    """bring {person} the {object}|do not touch the {adjective} {object}|close the {spot} on {weekday}|
    give the {animal} some {food}|go to the {spot} and buy {a object}|never sit on the {object}|
    please wash the {colour} {object}|wait for {person} at the {spot}|call the {job} in {city}|
    put the {food} on the {object}"""
)
TENSES = {
    "past": _split(
        """found {a object}|visited the {spot}|ate {a food}|met {a job}|painted the {object}|
        lost the {object}|saw {a animal}|went to {city}"""
    ),
    "present": _split(
        """is looking for {a object}|is visiting the {spot}|is eating {a food}|is talking to {a job}|
        is painting the {object}|is holding the {object}|is watching {a animal}|is walking through {city}"""
    ),
    "future": _split(
        """will find {a object}|will visit the {spot}|is going to eat {a food}|will meet {a job}|
        is going to paint the {object}|will lose the {object}|will see {a animal}|is going to travel to {city}"""
    ),
}
TIMES_OF_TENSES = {
    "past": ("yesterday", "last {weekday}", "in {month} of last year", "with {person}", "two days ago"),
    "present": ("now", "at this moment", "right now", "with {person}", "as we speak"),
    "future": ("tomorrow", "next {weekday}", "in {month} of next year", "with {person}", "in two days"),
}
# Language: subjects in the singular (masculine where it matters), and predicates that fit every one of them.
LANGUAGES = {
    "English": (
        _split(
            "the dog|my brother|the neighbour|your friend|the doctor|a child|the teacher|our uncle|the king"
        ),
        _split(
            """sleeps in the garden|drinks cold water|reads an old book|lives in the big house|
            comes home late|has lost the key|is very tired today|wants to eat bread|looks out of the window"""
        ),
    ),
    "French": (
        _split("le chien|mon frère|le voisin|ton ami|le médecin|un enfant|le professeur|notre oncle|le roi"),
        _split(
            """dort dans le jardin|boit de l'eau froide|lit un vieux livre|habite dans la grande maison|
            rentre tard chez lui|a perdu la clé|est très fatigué aujourd'hui|veut manger du pain|
            regarde par la fenêtre"""
        ),
    ),
    "German": (
        _split(
            "der Hund|mein Bruder|der Nachbar|dein Freund|der Arzt|ein Kind|der Lehrer|unser Onkel|der König"
        ),
        _split(
            """schläft im Garten|trinkt kaltes Wasser|liest ein altes Buch|wohnt in dem großen Haus|
            kommt spät nach Hause|hat den Schlüssel verloren|ist heute sehr müde|will Brot essen|
            schaut aus dem Fenster"""
        ),
    ),
    "Spanish": (
        _split("el perro|mi hermano|el vecino|tu amigo|el médico|un niño|el profesor|nuestro tío|el rey"),
        _split(
            """duerme en el jardín|bebe agua fría|lee un libro viejo|vive en la casa grande|
            vuelve tarde a casa|ha perdido la llave|está muy cansado hoy|quiere comer pan|
            mira por la ventana"""
        ),
    ),
    "Italian": (
        _split(
            "il cane|mio fratello|il vicino|il tuo amico|il medico|un bambino|il professore|nostro zio|il re"
        ),
        _split(
            """dorme nel giardino|beve acqua fredda|legge un vecchio libro|vive nella grande casa|
            torna tardi a casa|ha perso la chiave|è molto stanco oggi|vuole mangiare il pane|
            guarda dalla finestra"""
        ),
    ),
}
DEPARTMENTS = {
    "billing": _split(
        """I was charged twice for the {object}.|my invoice of {month} shows {number} euros too much.|
        please refund the {number} euros for the {object}.|may I pay the {colour} {object} by bank transfer?|
        the discount of {number} per cent is missing on my bill.|I have not got the receipt for {month}.|
        why did you debit my account on {weekday}?"""
    ),
    "technical": _split(
        """the screen of my {colour} device stays black.|the app crashes when I open the {object} page.|
        I cannot log in since {weekday}.|the update of {month} broke the {spot} map.|
        an error {number} appears when I save the file.|the {colour} light of the router keeps blinking.|
        my password is not accepted on the {weekday} build."""
    ),
    "delivery": _split(
        """my parcel with the {object} has not arrived.|when will the {colour} {object} be shipped to {city}?|
        the courier left the box with the {object} at the {spot}.|please send the {object} to my address in {city}.|
        the package from {city} was damaged on the way.|tracking says that the parcel is still in {city}.|
        can you deliver the {object} on {weekday}?"""
    ),
    "jobs": _split(
        """I would like to apply as {a job} in {city}.|are you hiring {a job}?|
        attached is my CV for the post of {job}.|do you offer an internship in {month}?|
        I have worked as {a job} for {number} years and look for a position.|
        what is the salary of {a job} at your firm?|when is my job interview on {weekday}?"""
    ),
}
