"""Guards: what importing the package costs, needs and does. Each looks at a fresh interpreter."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
CORE_DEPENDENCIES = ("torch", "numpy", "safetensors", "jaxtyping")
CORE_FOLDERS = ("streams", "blocks", "systems")
HEAVY_TORCH = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
)


def modules(*folders: str) -> list[str]:
    """Dotted names of all modules of the package, or of some of its folders."""
    roots = [SOURCE / "counterpoint" / folder for folder in folders] or [SOURCE / "counterpoint"]
    paths = sorted(path for root in roots for path in root.rglob("*.py"))
    names = (".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in paths)
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def run(script: str, folder: Path, *arguments: object) -> str:
    """Standard output of a script in a fresh interpreter that must end well and print no error."""
    command = [sys.executable, "-c", script, *map(json.dumps, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=50)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def required_distributions(*names: str) -> set[str]:
    """Distributions that some distributions need, themselves included, extras left out."""
    found: set[str] = set()
    pending = list(names)
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        for requirement in requirements:
            if "extra ==" not in requirement:
                pending.append(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    return found


def hidden_packages() -> list[str]:
    """Importable third-party names that the core must live without."""
    allowed = required_distributions(*CORE_DEPENDENCIES) | {"counterpoint"}
    return [
        name
        for name, distributions in importlib.metadata.packages_distributions().items()
        if not any(re.sub(r"[-_.]+", "-", owner).lower() in allowed for owner in distributions)
    ]


IMPORT_WITHOUT = """
import importlib, json, sys
from importlib.machinery import PathFinder
names, hidden = map(json.loads, sys.argv[1:])

class HidingFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = HidingFinder
for name in names:
    importlib.import_module(name)
"""

IMPORT_AND_COMPARE = """
import importlib, json, multiprocessing, os, signal, sys, threading
import torch

def world():
    return (
        [thread.name for thread in threading.enumerate()], multiprocessing.active_children(),
        dict(os.environ), os.listdir(), [signal.getsignal(n) for n in signal.valid_signals()],
        torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(),
        torch.get_rng_state().tolist(), torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
    )

before = world()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    assert world() == before, f"importing {name} changed the world"
"""

IMPORT_AND_LIST = """
import json, sys
import jaxtyping, numpy, safetensors, torch
before = set(sys.modules)
from counterpoint import Layout, TwoStream, generate
added = sorted(set(sys.modules) - before)
from counterpoint.systems import sketch, moshi, single_stream, two_stream
for config in (moshi.tiny(), single_stream.tiny(), two_stream.tiny()):
    sketch(config)
print(json.dumps([added, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Modules that importing the package adds, and all those with which shapes are known."""
    added, loaded = json.loads(run(IMPORT_AND_LIST, tmp_path_factory.mktemp("listed")))
    return added, loaded


def test_core_imports_only_its_dependencies(tmp_path: Path) -> None:
    hidden = hidden_packages()
    assert {"pytest", "hypothesis", "beartype"} <= set(hidden)
    names = ["counterpoint", *modules(*CORE_FOLDERS)]
    assert run(IMPORT_WITHOUT, tmp_path, names, hidden) == ""


def test_core_check_finds_another_package(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="No module named 'hypothesis'"):
        run(IMPORT_WITHOUT, tmp_path, ["hypothesis"], hidden_packages())


def test_importing_prints_nothing_and_starts_nothing(tmp_path: Path) -> None:
    assert run(IMPORT_AND_COMPARE, tmp_path, modules()) == ""


def test_import_check_finds_a_side_effect(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("import torch\ntorch.manual_seed(1)\n")
    with pytest.raises(AssertionError, match="importing loud changed the world"):
        run(IMPORT_AND_COMPARE, tmp_path, ["loud"])


IMPORT_ALONE = """
import sys
import counterpoint
print("torch" in sys.modules)
"""


def test_importing_the_package_alone_does_not_import_torch(tmp_path: Path) -> None:
    assert run(IMPORT_ALONE, tmp_path) == "False\n"


def test_import_adds_no_heavy_modules_to_torch(listed: tuple[list[str], list[str]]) -> None:
    """The half second that `benchmarks/bench_import.py` measures, without a stopwatch."""
    added, _ = listed
    assert "counterpoint.streams.spec" in added
    packages = {name.split(".")[0] for name in added} - sys.stdlib_module_names
    assert packages <= {"counterpoint", *CORE_DEPENDENCIES}
    assert [name for name in added if name.startswith(HEAVY_TORCH)] == []
    assert [name for name in added if name.startswith("counterpoint.cli")] == []


def test_shapes_are_known_without_the_compiler(listed: tuple[list[str], list[str]]) -> None:
    """Every verb asks a config for its layout first: importing the compiler takes seconds."""
    _, loaded = listed
    assert [name for name in loaded if name.startswith(HEAVY_TORCH)] == []
