import ast
import inspect

import pytest

from dscint_jax.report import checklists
from tfds_builder.commandline.files import read_json

LISTS = {name: read_json(checklists.FOLDER / f"{name}.json") for name in checklists.ORDER}


def _facts():
    """The names that the code gives to facts."""
    tree = ast.parse(inspect.getsource(checklists))
    keys = [key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys]
    return {key.value for key in keys if isinstance(key, ast.Constant)}


@pytest.mark.parametrize("name", LISTS)
def test_every_item_is_filled_from_a_fact_that_there_is(name):
    asked = {fact for _, _, fact in LISTS[name]["items"] if fact}
    assert asked <= _facts()


def test_numbered_items_are_complete():
    numbers = {name: [item[0] for item in LISTS[name]["items"]] for name in LISTS}
    assert numbers["claim_2024"] == [str(n) for n in range(1, 45)]
    assert numbers["metrics"] == [str(n) for n in range(1, 31)]
    tripod = numbers["tripod_ai"]
    assert len(set(tripod)) == len(tripod) == 52
    assert {int(number.rstrip("abcdefg")) for number in tripod} == set(range(1, 28))


def test_what_the_run_does_not_tell_is_not_reported():
    facts = dict.fromkeys(_facts()) | {"goal": "to tell a from b"}
    card, claim, *_ = checklists.checklist_tables(facts)
    rows = {row[0]: row for row in claim.rows}
    assert rows["6"][2] == "to tell a from b"
    assert rows["35"][2] == rows["44"][2] == "not reported"
    assert claim.title == "CLAIM: 1 of 44 items told by the run"
    assert "2024 update" in claim.note
    assert card.name == "model_card"
