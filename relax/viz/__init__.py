"""Pictures of relevance: images, text, tables, time series, spectrograms and videos.

`heatmap`, `overlay`, `contours`, `grid`, and `text` need numpy alone; `save` needs pillow, and what
returns a figure needs matplotlib: ``pip install "relax-lrp[viz]"``. Red speaks for the output, blue
against it, white is zero.
"""

from relax.viz._bars import bars
from relax.viz._colors import color_limit
from relax.viz._contours import contours
from relax.viz._figure import figure
from relax.viz._frames import frames
from relax.viz._images import grid, heatmap, overlay, picture, save
from relax.viz._page import page
from relax.viz._series import series, spectrogram
from relax.viz._text import Text, text
from relax.viz._text_bars import text_bars
from relax.viz._words import words

__all__ = [
    "Text",
    "bars",
    "color_limit",
    "contours",
    "figure",
    "frames",
    "grid",
    "heatmap",
    "overlay",
    "page",
    "picture",
    "save",
    "series",
    "spectrogram",
    "text",
    "text_bars",
    "words",
]
