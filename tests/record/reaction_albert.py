"""Records what Hugging Face makes of RXNMapper's ALBERT in ``tests/data/reaction_albert.json``.

Not a test and not needed to run the tests: it wants ``torch`` (2.13.0), ``transformers`` (4.57.6)
and the files of ``rxnmapper==0.4.3`` in an environment of their own, and is run from anywhere as

    python tests/record/reaction_albert.py

For each reaction, in which one token is masked, the file holds ``ids``, what the network reads;
``likely``, the most probable token at each position; and ``logits``, the five largest at the mask.
"""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import torch
from transformers import AlbertForMaskedLM

TARGET = Path(__file__).parents[1] / "data" / "reaction_albert.json"
# As in rxnmapper/smiles_utils.py.
TOKEN = re.compile(
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|"
    r"\%[0-9]{2}|[0-9])"
)
REACTIONS = (
    "CCN=C=NCCCN(C)C.ClCCl.NCc1ccccc1.O=C([MASK])c1ccccc1>>O=C(NCc1ccccc1)c1ccccc1",
    "ClCCl.NCc1ccccc1.O=C([MASK])c1ccccc1>>O=C(NCc1ccccc1)c1ccccc1",
    "CC(=O)Cl.CCN>>CC[MASK]C(C)=O",
    "CCOC(=O)c1ccccc1.O.[Na+].[MASK]>>O=C(O)c1ccccc1",
    "C1CCNCC1.O=[N+]([O-])c1ccc([MASK])cc1>>O=[N+]([O-])c1ccc(N2CCCCC2)cc1",
)


def record(model: AlbertForMaskedLM, vocabulary: list[str], reaction: str) -> dict:
    """What the file holds for a reaction."""
    tokens = ["[CLS]", *TOKEN.findall(reaction), "[SEP]"]
    ids = [vocabulary.index(token) for token in tokens]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    at_mask = logits[tokens.index("[MASK]")]
    return {
        "reaction": reaction,
        "ids": ids,
        "likely": logits.argmax(axis=-1).tolist(),
        "logits": {vocabulary[i]: round(float(at_mask[i]), 4) for i in np.argsort(-at_mask)[:5]},
    }


def main() -> None:
    """Writes the file."""
    (folder,) = importlib.util.find_spec("rxnmapper").submodule_search_locations
    (path,) = Path(folder).glob("models/transformers/albert*")
    model = AlbertForMaskedLM.from_pretrained(path).double().eval()
    vocabulary = (path / "vocab.txt").read_text("utf-8").splitlines()
    records = [record(model, vocabulary, reaction) for reaction in REACTIONS]
    TARGET.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
