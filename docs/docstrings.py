"""How docstrings are read for the site: loaded by mkdocstrings, see mkdocs.yml."""

import re
from typing import Any

import griffe


class Sections(griffe.Extension):
    """An example is code, as in a doctest, and a source stands out."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of anything that has one."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^Source: ", "**Source:** ", text, flags=re.MULTILINE)
