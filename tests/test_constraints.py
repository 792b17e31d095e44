"""Every package that an installation brings is pinned, in all extras that the tests use."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
EXTRAS = {"train", "data", "hub", "speech", "voices", "ray", "offline", "peers", "docs", "dev"}
# Torch chooses its own setuptools, and what it needs for a GPU.
LEFT_TO_TORCH = re.compile(r"setuptools|nvidia-.*|cuda-.*|triton|pytorch-triton.*")


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: set[str], found: set[str]) -> None:
    """Add what an installed package needs, and what that needs."""
    try:
        lines = requires(name) or []
    except PackageNotFoundError:  # needed on another system only, or not installed here
        return
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        applies = marker is None or any(marker.evaluate({"extra": e}) for e in extras | {""})
        if applies and (child := plain(requirement.name)) not in found:
            found.add(child)
            needed(child, set(requirement.extras), found)


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_the_oldest_python_can_have_what_is_pinned() -> None:
    """Of the packages that are installed here; the oldest Python is the one that we promise."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = f"{project['requires-python'].removeprefix('>=')}.0"
    asked = 0
    refused = set()
    for pin in constraints():
        if pin.marker is not None and not pin.marker.evaluate({"python_full_version": oldest}):
            continue
        try:
            found = metadata(pin.name)
        except PackageNotFoundError:
            continue
        supported = found["Requires-Python"] or ""
        if pin.specifier.contains(found["Version"]):
            asked += 1
            refused |= set() if SpecifierSet(supported).contains(oldest) else {pin.name}
    assert asked > 50
    assert refused == set()


def test_constraints_are_complete() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"]]
    for extra in EXTRAS:
        asked += project["optional-dependencies"][extra]
    found: set[str] = set()
    for requirement in map(Requirement, asked):
        found.add(plain(requirement.name))
        needed(requirement.name, set(requirement.extras), found)
    pinned = {plain(requirement.name) for requirement in constraints()}
    missing = found - pinned
    assert {name for name in missing if not LEFT_TO_TORCH.fullmatch(name)} == set()
    assert {"torch", "numpy", "ray"} <= found  # what those need is looked at where it is installed


def test_everything_is_installed_under_the_constraints() -> None:
    rules = re.sub(r"\\\n", " ", (ROOT / "Makefile").read_text()).splitlines()
    installs = [
        line for line in rules if re.search(r"\$\((INSTALL|PIP)\) ", line) and ":=" not in line
    ]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)


def test_the_lock_holds_the_same_versions_and_only_addresses_of_the_public_index() -> None:
    """Where a package has several versions, some are for Pythons that the newest one left."""
    text = (ROOT / "uv.lock").read_text()
    addresses = set(re.findall(r'"(\w+://[^/"]*)', text))
    assert addresses == {"https://pypi.org", "https://files.pythonhosted.org"}
    packages = tomllib.loads(text)["package"]
    locked: dict[str, set[str]] = {}
    for package in packages:
        locked.setdefault(package["name"], set()).add(package["version"])
    pinned: dict[str, set[str]] = {}
    for requirement in constraints():
        exact = {one.version for one in requirement.specifier if one.operator == "=="}
        pinned.setdefault(plain(requirement.name), set()).update(exact)
    both = pinned.keys() & locked
    assert {name for name in both if not pinned[name] <= locked[name]} == set()
    assert {"numpy", "safetensors", "tyro"} <= both


def test_the_lock_is_of_this_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [(line, "") for line in project["dependencies"]]
    asked += [(line, e) for e, own in project["optional-dependencies"].items() for line in own]
    wanted = set()
    for line, extra in asked:
        requirement = Requirement(line)
        wanted.add((plain(requirement.name), str(requirement.specifier), extra))
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    (own,) = (package for package in packages if package["name"] == project["name"])
    found = set()
    for entry in own["metadata"]["requires-dist"]:
        extras = re.findall(r"extra == '(.*?)'", entry.get("marker", ""))
        found.add((entry["name"], entry.get("specifier", ""), "".join(extras)))
    assert found == wanted
