"""The house of src: which rooms there are, how large they may be, and that nothing stands in two of them."""

import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "timm_mvhybrid"
LARGEST_ROOM = 0.20
LONGEST_FILE = 400
REPEATED = 12
"""Lines that say something: blank ones do not count, and how far a line is indented does not matter."""

if not SOURCE.is_dir():
    pytest.skip("needs the checkout", allow_module_level=True)


def floors():
    """Rooms of each floor by the contract, the lowest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    return [
        {room.strip().removeprefix("timm_mvhybrid.") for room in floor.split("|")}
        for floor in reversed(contract["layers"])
    ]


def files():
    """Every file of a room, by the room's name; modules beside the rooms have none."""
    rooms = defaultdict(list)
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE).parts
        rooms[parts[0] if len(parts) > 1 else ""].append(file)
    return rooms


def num_lines(file):
    return len(file.read_text(encoding="utf-8").splitlines())


def repeated_lines(rooms):
    """Finds runs of lines that stand in two rooms: pairs of places, one for each two files."""
    seen = {}
    found = {}
    for room, paths in rooms.items():
        for file in paths:
            numbered = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
            lines = [(number, text.strip()) for number, text in numbered if text.strip()]
            for start in range(len(lines) - REPEATED + 1):
                run = tuple(text for _, text in lines[start : start + REPEATED])
                other, place = seen.setdefault(run, (room, f"{file}:{lines[start][0]}"))
                if other != room:
                    found.setdefault((place.split(":")[0], file), f"{place} = {file}:{lines[start][0]}")
    return list(found.values())


def test_contract_contributing_and_folders_name_the_same_rooms():
    contract = floors()
    on_disk = {file.parent.name for file in SOURCE.glob("*/__init__.py")}
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("src/timm_mvhybrid/ ")[1]
    listed = re.findall(r"^  (\w+)/ .* (\d+)$", tree.split("examples/")[0], re.MULTILINE)
    assert len(listed) == len(on_disk)
    assert dict(listed) == {room: str(floor) for floor, rooms in enumerate(contract, 1) for room in rooms}
    assert set().union(*contract) == on_disk
    numbers = [int(floor) for _, floor in listed]
    assert numbers == sorted(numbers), "lowest floor first"


def test_no_room_is_a_fifth_of_the_house():
    sizes = {room: sum(map(num_lines, paths)) for room, paths in files().items()}
    total = sum(sizes.values())
    assert {room: size for room, size in sizes.items() if size > LARGEST_ROOM * total} == {}


def test_files_are_short():
    lengths = {file: num_lines(file) for paths in files().values() for file in paths}
    assert {str(file): length for file, length in lengths.items() if length > LONGEST_FILE} == {}


def test_nothing_stands_in_two_rooms():
    assert repeated_lines(files()) == []


def test_lines_in_two_rooms_are_found(tmp_path):
    text = "\n".join(f"line {number}" for number in range(REPEATED))
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text(f"before\n\n{text}\n")
    second.write_text("\n".join(f"    {line}\n" for line in text.splitlines()))
    assert repeated_lines({"a": [first], "b": [second]}) == [f"{first}:3 = {second}:1"]
    assert repeated_lines({"a": [first, second]}) == []
    second.write_text(text.rsplit("\n", 1)[0])
    assert repeated_lines({"a": [first], "b": [second]}) == []
