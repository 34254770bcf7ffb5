"""From SMILES, which are molecules in one line, to the tokens that a network reads."""

import itertools
import re
from collections.abc import Sequence

from command_line import InputError

# Between reactants and product, and between molecules.
ARROW, DOT = ">>", "."

# Atoms, with all that is in brackets, bonds, parentheses and ring closures (Schwaller et al., 2018,
# doi:10.1039/C8SC02339E).
_TOKEN = re.compile(
    r"\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%\d\d|\d",
    re.ASCII,
)


def split_tokens(smiles: str) -> list[str]:
    """The tokens of SMILES, which together are the SMILES.

    Raises:
        InputError: some of it is no token.
    """
    tokens = []
    place = 0
    while place < len(smiles):
        token = _TOKEN.match(smiles, place)
        if token is None:
            raise InputError(f"{smiles!r} is no SMILES from {smiles[place:]!r} on")
        tokens.append(token[0])
        place = token.end()
    return tokens


def split_molecules(tokens: Sequence[str]) -> list[slice]:
    """Where each molecule is in a row of tokens, and each dot and arrow between them."""
    ends = [place for place, token in enumerate(tokens) if token in (ARROW, DOT)]
    cuts = sorted({0, *ends, *(end + 1 for end in ends), len(tokens)})
    return [slice(begin, end) for begin, end in itertools.pairwise(cuts)]
