"""How well an explanation fits the function it explains.

Faithfulness: `perturbation` and what is made of it (`deletion`, `insertion`, `area_between`),
`sensitivity_n`. Against a mask: `pointing_game`, `inside_mass`, `inside_rank`. Against the network:
`randomization`. Against each other: `agreement`. Over a data set: `evaluate_batches`, `compare`.
"""

from relax._progress import progress
from relax.evaluation._agreement import Agreement, agreement
from relax.evaluation._compare import compare, evaluate_batches, faithfulness
from relax.evaluation._complexity import entropy, gini
from relax.evaluation._curve import Curve
from relax.evaluation._features import patches
from relax.evaluation._localization import inside_mass, inside_rank, pointing_game
from relax.evaluation._perturbation import area_between, deletion, insertion, perturbation
from relax.evaluation._randomization import Randomization, randomization
from relax.evaluation._replacement import blur, noise
from relax.evaluation._sensitivity import sensitivity_n
from relax.evaluation._similarity import cosine, pearson, same_sign, spearman, ssim, top_k
from relax.evaluation._table import Table

__all__ = [
    "Agreement",
    "Curve",
    "Randomization",
    "Table",
    "agreement",
    "area_between",
    "blur",
    "compare",
    "cosine",
    "deletion",
    "entropy",
    "evaluate_batches",
    "faithfulness",
    "gini",
    "insertion",
    "inside_mass",
    "inside_rank",
    "noise",
    "patches",
    "pearson",
    "perturbation",
    "pointing_game",
    "progress",
    "randomization",
    "same_sign",
    "sensitivity_n",
    "spearman",
    "ssim",
    "top_k",
]
