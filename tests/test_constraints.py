"""Every package that an installation brings is pinned, in all extras that the tests use."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
EXTRAS = {"train", "data", "hub", "speech", "voices", "ray", "offline", "docs", "dev"}
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


def test_constraints_are_complete() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"]]
    for extra in EXTRAS:
        asked += project["optional-dependencies"][extra]
    found: set[str] = set()
    for requirement in map(Requirement, asked):
        found.add(plain(requirement.name))
        needed(requirement.name, set(requirement.extras), found)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {plain(re.split("[=><]", line)[0]) for line in lines if not line.startswith("#")}
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
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    exact = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    pinned = {plain(name): version for name, version in exact.items()}
    both = pinned.keys() & locked
    assert {name for name in both if pinned[name] not in locked[name]} == set()
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
        extra = re.sub(r"extra == '(.*)'", r"\1", entry.get("marker", ""))
        found.add((entry["name"], entry.get("specifier", ""), extra))
    assert found == wanted
