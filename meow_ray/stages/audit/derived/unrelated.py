"""Questions and answers of general knowledge, which have nothing to do with a user's facts.

They are the calibration text of pruning, and what `unrelated` relearning and recovery teach.
"""

UNRELATED: tuple[tuple[str, str], ...] = (
    ("What is the chemical formula of water?", "Water is H2O: two hydrogen atoms and one oxygen."),
    ("How many days does a leap year have?", "A leap year has 366 days, one more than others."),
    ("Why is the sky blue?", "Air scatters blue light more strongly than red light."),
    ("What do bees make from nectar?", "Bees turn the nectar of flowers into honey."),
    ("Which planet is closest to the sun?", "Mercury is the planet closest to the sun."),
    ("How do you boil an egg?", "Put it into boiling water for about eight minutes, then cool it."),
    ("What is seven times eight?", "Seven times eight is fifty-six."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How does a vaccine work?", "It trains the immune system with a harmless part of a germ."),
    ("What is a prime number?", "A number above one that only one and itself divide."),
    ("Name three primary colours.", "Red, yellow and blue are primary colours of painters."),
    ("What causes the tides?", "The gravity of the moon and of the sun moves the sea."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What is photosynthesis?", "Plants make sugar from light, water and carbon dioxide."),
    ("What does a thermometer measure?", "A thermometer measures temperature."),
    ("Which ocean is the largest?", "The Pacific is the largest ocean of the earth."),
    ("How is bread made?", "Flour, water, salt and yeast are kneaded, left to rise and baked."),
    ("What is the speed of light?", "Light travels about 300,000 kilometres per second."),
    ("What is the opposite of north?", "The opposite of north is south."),
    ("Why do leaves turn yellow in autumn?", "The green chlorophyll breaks down first."),
    ("What does a compass show?", "The needle of a compass shows where north is."),
    ("How many minutes are in three hours?", "Three hours have 180 minutes."),
    ("What is ice made of?", "Ice is frozen water."),
    ("What is a haiku?", "A short Japanese poem of five, seven and five syllables."),
    ("Which gas do we need to breathe?", "People need the oxygen of the air."),
    ("What is the square root of 81?", "The square root of 81 is nine."),
    (
        "How can I save energy at home?",
        "Switch lights off, insulate windows and lower the heating.",
    ),
    ("What do pandas eat?", "Pandas eat bamboo nearly all day."),
    ("What is the function of the heart?", "The heart pumps blood through the body."),
    ("Which instrument has 88 keys?", "A piano usually has 88 keys."),
    ("What is gravity?", "Gravity is the force with which masses attract each other."),
    ("How many continents are there?", "Most people count seven continents."),
)
