"""Writes one page of the API reference for every public module, from its docstrings."""

from pathlib import Path

import mkdocs_gen_files

SOURCE = Path("src")
ROOMS = (
    "streams", "blocks", "systems", "speech", "formats", "data", "train", "runtime", "evaluate",
    "recipes",
)  # fmt: skip

navigation = mkdocs_gen_files.Nav()
for room in ROOMS:
    for path in sorted((SOURCE / "counterpoint" / room).rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[-1] == "__init__" or any(part.startswith("_") for part in parts):
            continue
        page = Path(*parts[1:]).with_suffix(".md")
        navigation[parts[1:]] = page.as_posix()
        with mkdocs_gen_files.open(Path("reference") / page, "w") as file:
            file.write(f"::: {'.'.join(parts)}\n")

with mkdocs_gen_files.open("reference/SUMMARY.md", "w") as file:
    file.writelines(navigation.build_literate_nav())
