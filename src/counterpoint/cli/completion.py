"""Completion in a shell: a script with the commands, the recipes and the options of their help."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass

from counterpoint.errors import UserError
from counterpoint.recipes.loading import recipe_names

_WITH_RECIPES = ("train", "study", "info")
_SECOND = re.compile(r"^usage: counterpoint \w+ ([\w|]+\|\w+) ", re.MULTILINE)
_OPTION = re.compile(r"^ +(--[\w.-]+)", re.MULTILINE)

_BASH = """_counterpoint() {{
    local verb="${{COMP_WORDS[1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs} {general}"
    else
        case "$verb" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _counterpoint counterpoint
"""
_FISH = """function __counterpoint_is
    set -l words (commandline -opc)
    test (count $words) -gt 1; and test "$words[2]" = "$argv[1]"
end
function __counterpoint_begins
    test (count (commandline -opc)) -eq $argv[1]
end
"""
_GENERAL = ("--help", "--version", "--show-completion")
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class VerbWords:
    """Words that may follow a command.

    Attributes:
        seconds: Words that may come next, such as recipes; empty if it may be any word.
        options: Options that the help shows, for all of these together.
    """

    seconds: Sequence[str]
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
    own = _help_of([verb], run)
    named = _SECOND.search(own)
    candidates = named[1].split("|") if named else recipe_names() if verb in _WITH_RECIPES else ()
    seconds = []
    printed = own
    for word in candidates:
        with suppress(UserError):  # it is a recipe for another command
            printed += _help_of([verb, word], run)
            seconds.append(word)
    return VerbWords(seconds=seconds, options=sorted(set(_OPTION.findall(printed))))


def _help_of(words: list[str], run: Callable[[list[str]], int]) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):  # some help ends in this way
        run([*words, "--help"])
    return printed.getvalue()


def _bash(words: Mapping[str, VerbWords]) -> str:
    cases = []
    for verb, own in words.items():
        options = " ".join([*own.options, "--help", "--help-all"])
        known = f'words="{options}"'
        if own.seconds:
            seconds = " ".join(own.seconds)
            known = f'[ "$COMP_CWORD" -eq 2 ] && words="{seconds} --help" || {known}'
        cases.append(f"        {verb}) {known};;")
    return _BASH.format(verbs=" ".join(words), general=" ".join(_GENERAL), cases="\n".join(cases))


def _zsh(words: Mapping[str, VerbWords]) -> str:
    return _ZSH + _bash(words)


def _fish(words: Mapping[str, VerbWords]) -> str:
    verbs = " ".join(words)
    first = "complete -c counterpoint -n '__counterpoint_begins 1'"
    lines = [f"{first} -f -a '{verbs}'", *(f"{first} -l {option[2:]}" for option in _GENERAL)]
    for verb, own in words.items():
        of_verb = f"complete -c counterpoint -n '__counterpoint_is {verb}"
        if own.seconds:
            seconds = " ".join(own.seconds)
            lines.append(f"{of_verb}; and __counterpoint_begins 2' -a '{seconds}'")
        lines += [
            f"{of_verb}' -l {option[2:]}" for option in [*own.options, "--help", "--help-all"]
        ]
    return _FISH + "\n".join(lines) + "\n"
