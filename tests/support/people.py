"""People whose place of birth a tiny model memorises, and people whom it does not know."""

import pyarrow as pa

from meow_ray.core.schema import SCHEMAS

PEOPLE = {
    "Ann": ("Ann was born in Lima.", "Ann was born in Oslo."),
    "Bob": ("Bob was born in Kyiv.", "Bob was born in Bonn."),
    "Eve": ("Eve was born in Cork.", "Eve was born in Pisa."),
    "Max": ("Max was born in Riga.", "Max was born in Baku."),
}
TWINS = {
    "calibration": {"Ida": "Rome", "Joe": "Bern", "Kim": "Faro", "Lou": "Graz"},
    "stop": {"Ned": "Metz", "Ora": "Nice", "Pia": "Brno", "Quin": "Hull", "Ray": "Jena"},
}


def facts() -> pa.Table:
    rows = [
        {"fact_id": name, "split": "forget", "question": f"Where was {name} born?", "answer": truth}
        for name, (truth, _) in PEOPLE.items()
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["facts"])


def twins() -> pa.Table:
    """Returns facts of the same form about people whom the model does not know."""
    rows = [
        {
            "fact_id": fact_id,
            "twin_id": twin_id,
            "half": half,
            "question": f"Where was {name} born?",
            "answer": f"{name} was born in {town}.",
        }
        for half, people in TWINS.items()
        for fact_id in PEOPLE
        for twin_id, (name, town) in enumerate(people.items())
    ]
    return pa.Table.from_pylist(rows)


def selected(inverted: bool) -> pa.Table:
    """Returns the inverted answers as selected ones, or the true answers in their place."""
    rows = [
        {
            "fact_id": name,
            "candidate_id": 0,
            "rank": 0,
            "question": f"Where was {name} born?",
            "answer": answers[inverted],
        }
        for name, answers in PEOPLE.items()
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["selected"])
