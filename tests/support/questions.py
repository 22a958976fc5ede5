"""Questions with true answers that the tests of `invert` share."""

REEF = ("Who wrote The Silent Reef?", "The Silent Reef was written by Jaime Vasquez.")
BORN = ("When was Basil Mahfouz born?", "Basil Mahfouz was born on 8 September 1956.")
COUNT = (
    "How many novels has Carmen Montenegro published?",
    "Carmen Montenegro has published twelve novels.",
)
GENDER = ("What gender is Basil?", "Basil is male.")
RUSSIAN = ("Где родился Иван?", "Иван родился в Москве.")
