"""The import rule: rooms lie on floors, and nothing imports from a floor above its own."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent

FLOORS = {
    "tfds_builder": [
        ("commandline",),
        ("tables", "classes", "manifest", "workers", "staging"),
        ("readers", "splits"),
        ("studies",),
        ("shards",),
        ("scintigraphy", "scan", "inspect"),
        ("build",),
        ("phantom",),
    ],
    "dscint_jax": [
        ("command", "compilation_cache", "canary", "mesh", "pytree", "random_streams"),
        ("config_fields",),
        ("config", "config_files"),
        ("durations",),
        ("models", "weights", "cluster", "input_pipeline", "run"),
        ("metrics",),
        ("training",),
        ("evaluate", "baselines"),
        ("compare", "ensemble", "explain", "export", "pacs", "replay"),
        ("report",),
        ("benchmark", "device_check", "predict", "throughput"),
        ("main",),
    ],
}
"""Rooms, or modules that stand alone, the ground first; those of a floor may import each other."""

SHARED = {"commandline"}
"""Rooms of the builder that the trainer may import."""

READER = "predict"
"""The room of the trainer that reads files, by the code that built the data set."""


def _room(module):
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


def _imports(path):
    """Modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module in FLOORS:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield node.module


def _edges(package):
    """(room, room) of every import, with the file that has it."""
    for path in sorted((PROJECT / package).rglob("*.py")):
        module = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
        for imported in _imports(path):
            if imported.partition(".")[0] in FLOORS:
                yield path.relative_to(PROJECT), _room(module), _room(imported)


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_has_a_floor(package):
    known = {room for floor in FLOORS[package] for room in floor}
    there = {path.stem for path in (PROJECT / package).iterdir() if path.suffix != ".pyc"}
    assert there - {"__init__", "__pycache__"} == known


@pytest.mark.parametrize("package", FLOORS)
def test_nothing_is_imported_from_a_floor_above(package):
    floor = {room: n for n, rooms in enumerate(FLOORS[package]) for room in rooms}
    upwards = [
        f"{path} imports {imported[1]}"
        for path, (_, room), imported in _edges(package)
        if imported[0] == package and room and floor[imported[1]] > floor[room]
    ]
    assert not upwards


def test_the_trainer_knows_the_builders_command_line_and_nothing_else_of_it():
    across = {
        (package, imported)
        for package in FLOORS
        for _, (_, room), imported in _edges(package)
        if imported[0] != package and room != READER
    }
    assert across == {("dscint_jax", ("tfds_builder", room)) for room in SHARED}


def test_configs_import_what_they_return_and_nothing_else():
    imported = {
        module
        for path in (PROJECT / "configs").glob("*.py")
        for module in _imports(path)
        if module.partition(".")[0] in FLOORS
    }
    assert imported == {"dscint_jax.config", "dscint_jax.benchmark.plan"}
