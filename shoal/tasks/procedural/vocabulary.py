"""The words that generated inputs are made of.

Knows nothing of sentences or of the questions that are asked about them.
"""

from __future__ import annotations

FIRST_NAMES = tuple(
    """Anna Ben Carla David Elena Farid Grace Hugo Ines Jonas Karim Lena Marco Nadia Oscar Priya Quentin Rosa
    Samir Tara Ulrich Vera Walter Yara Zoe Amir Bella Cedric Diana Emil Fiona George Hanna Ivan Julia Kenji
    Laura Miguel Nora Omar Paula Rafael Sofia Thomas Viktor Wendy Yusuf Alice Bruno Clara Dmitri Esther Felix
    Greta Harold Irene Jack Kofi Lucy Mina""".split()
)
SURNAMES = tuple(
    """Weber Rossi Kim Silva Novak Jansen Okafor Patel Moreau Larsen Tanaka Costa Brown Haddad Fischer Lopez
    Petrov Nguyen Schmidt Walker Marino Berg Dubois Santos Kowalski Ahmed Murphy Sato Keller Ortiz Young
    Lindgren Mensah Romano Vogel Carter Ivanov Diaz Hughes Bauer""".split()
)
CITIES = tuple(
    """Lyon Oslo Turin Porto Leeds Ghent Kyoto Lima Boston Cairo Delhi Dublin Geneva Hanoi Lagos Lisbon Madrid
    Malmo Milan Munich Nairobi Naples Osaka Paris Prague Quito Rome Seattle Seville Sydney Tunis Vienna
    Warsaw Zurich Denver Austin Basel Bergen Bristol""".split()
)
ANIMALS = tuple(
    """cat dog horse cow goat rabbit fox owl tiger lion bear wolf parrot duck eagle turtle frog snake zebra
    camel donkey monkey spider swan whale dolphin shark penguin beaver badger otter hedgehog squirrel raven
    pigeon crab bee ant butterfly elephant giraffe kangaroo lizard hamster gorilla octopus ostrich antelope
    salamander leopard""".split()
)
FOODS = tuple(
    """apple pear plum cherry grape banana lemon mango carrot onion potato tomato cucumber pumpkin radish
    muffin pancake sandwich pizza sausage omelette cookie waffle burger salad soup pie cake bagel biscuit
    melon peach apricot fig olive eggplant artichoke mushroom walnut almond dumpling noodle pretzel yoghurt
    pudding""".split()
)
OBJECTS = tuple(
    """lamp chair table book clock mirror bottle basket pencil notebook hammer ladder bucket candle blanket
    pillow kettle spoon fork plate cup umbrella backpack wallet ticket letter key camera guitar drum violin
    trumpet piano bicycle ball kite puzzle doll map compass telescope rope bell coin ring scarf jacket hat
    boot glove button needle brush towel broom envelope anchor oven iron axe easel vase""".split()
)
JOBS = tuple(
    """nurse baker teacher farmer pilot lawyer plumber painter sailor tailor doctor dentist engineer architect
    actor editor electrician gardener butcher carpenter cook waiter librarian journalist mechanic musician
    photographer scientist secretary soldier surgeon translator driver banker barber chemist cashier clerk
    optician author""".split()
)
SPOTS = tuple(
    """library station market harbour museum garden bridge school bakery hospital hotel theatre airport church
    castle park beach factory office stadium kitchen cellar attic forest river lake village tower cafe
    warehouse""".split()
)
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "purple", "brown", "grey", "pink")
ADJECTIVES = tuple(
    """old new small large heavy light broken clean dirty cheap expensive strange beautiful quiet noisy narrow
    wide empty full warm cold soft hard bright dark wooden plastic round square tiny huge famous simple
    modern ancient sturdy lovely shiny dusty elegant""".split()
)
ADVERBS = tuple(
    """quickly slowly quietly carefully happily suddenly often rarely proudly gently secretly eagerly""".split()
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = tuple(
    """January February March April May June July August September October November December""".split()
)
NOUNS = ANIMALS + FOODS + OBJECTS + JOBS + SPOTS
NUMBER_WORDS = tuple(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split()
)
TENS_WORDS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def with_article(word: str) -> str:
    """`apple` -> `an apple`; right for the words of this module."""
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def number_in_words(number: int) -> str:
    """`47` -> `forty-seven`, for 0 to 99."""
    if number < 20:
        return NUMBER_WORDS[number]
    tens, ones = divmod(number, 10)
    return TENS_WORDS[tens] + (f"-{NUMBER_WORDS[ones]}" if ones else "")
