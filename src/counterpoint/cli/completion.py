"""Completion in a shell: a script with the commands, the recipes and the options of their help."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass

from counterpoint.errors import UserError
from counterpoint.recipes.loading import recipe_names

_WITH_RECIPES = ("train", "study", "info")
_OPTION = re.compile(r"^ +(--[\w.-]+)", re.MULTILINE)

_BASH = """_counterpoint() {{
    local verb="${{COMP_WORDS[1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs} --help --version"
    else
        case "$verb" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _counterpoint counterpoint
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class VerbWords:
    """Words that may follow a command.

    Attributes:
        recipes: Names of recipes; empty if the command takes none.
        options: Options that the help shows, for all recipes together.
    """

    recipes: Sequence[str]
    options: Sequence[str]


def completion(shell: str, verbs: Sequence[str], run: Callable[[list[str]], int]) -> str:
    """Return the script that completes the words after ``counterpoint``.

    Args:
        shell: "bash", "zsh" or "fish".
        verbs: All commands.
        run: Function that runs a command, whose help is read.

    Raises:
        UserError: There is no script for the shell.
    """
    writers = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in writers:
        raise UserError(
            f"`--show-completion` must be followed by {', '.join(writers)}: got {shell!r}."
        )
    return writers[shell]({verb: _words(verb, run) for verb in verbs})


def _words(verb: str, run: Callable[[list[str]], int]) -> VerbWords:
    printed = io.StringIO()
    recipes = []
    with redirect_stdout(printed):
        for recipe in recipe_names() if verb in _WITH_RECIPES else ():
            with suppress(UserError):  # it is a recipe for another command
                _print_help([verb, recipe], run)
                recipes.append(recipe)
        if verb not in _WITH_RECIPES:
            _print_help([verb], run)
    return VerbWords(recipes=recipes, options=sorted(set(_OPTION.findall(printed.getvalue()))))


def _print_help(words: list[str], run: Callable[[list[str]], int]) -> None:
    with suppress(SystemExit):  # some help ends in this way
        run([*words, "--help"])


def _bash(words: Mapping[str, VerbWords]) -> str:
    cases = []
    for verb, own in words.items():
        options = " ".join([*own.options, "--help", "--help-all"])
        known = f'words="{options}"'
        if own.recipes:
            recipes = " ".join(own.recipes)
            known = f'[ "$COMP_CWORD" -eq 2 ] && words="{recipes} --help" || {known}'
        cases.append(f"        {verb}) {known};;")
    return _BASH.format(verbs=" ".join(words), cases="\n".join(cases))


def _zsh(words: Mapping[str, VerbWords]) -> str:
    return _ZSH + _bash(words)


def _fish(words: Mapping[str, VerbWords]) -> str:
    verbs = " ".join(words)
    lines = [f"complete -c counterpoint -n __fish_use_subcommand -a '{verbs}'"]
    for verb, own in words.items():
        after = f"complete -c counterpoint -n '__fish_seen_subcommand_from {verb}'"
        if own.recipes:
            recipes = " ".join(own.recipes)
            lines.append(f"{after} -a '{recipes}'")
        lines += [f"{after} -l {option[2:]}" for option in [*own.options, "--help", "--help-all"]]
    return "\n".join(lines) + "\n"
