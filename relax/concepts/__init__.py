"""Concepts: relevance through single channels, and what they stand for.

`crp` explains through each concept of a layer by itself; `maximization` finds the samples of a
data set in which a concept is strongest, `references` cuts out what it sees in them, and `gallery`
draws that; `flow` is the graph of what the concepts of one layer hand to those of another.
"""

from relax.concepts._conditional import crp
from relax.concepts._flow import Edge, Flow, flow
from relax.concepts._gallery import Reference, gallery, references
from relax.concepts._maximization import Maximization, State, Top, maximization

__all__ = [
    "Edge",
    "Flow",
    "Maximization",
    "Reference",
    "State",
    "Top",
    "crp",
    "flow",
    "gallery",
    "maximization",
    "references",
]
