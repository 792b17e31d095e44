"""All families of reasoning questions, by name."""

from counterpoint.data.tasks.reasoning.arithmetic import ARITHMETIC
from counterpoint.data.tasks.reasoning.dyck import DYCK
from counterpoint.data.tasks.reasoning.equations import EQUATIONS
from counterpoint.data.tasks.reasoning.family import Family
from counterpoint.data.tasks.reasoning.graphs import GRAPHS
from counterpoint.data.tasks.reasoning.listops import LISTOPS
from counterpoint.data.tasks.reasoning.rewriting import REWRITING
from counterpoint.data.tasks.reasoning.sorting import SORTING
from counterpoint.data.tasks.reasoning.word_problems import WORD_PROBLEMS

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        ARITHMETIC,
        EQUATIONS,
        LISTOPS,
        DYCK,
        GRAPHS,
        REWRITING,
        SORTING,
        WORD_PROBLEMS,
    )
}
"""Families of which corpora are made; see `counterpoint.data.tasks.reasoning.corpus.Reasoning`."""
