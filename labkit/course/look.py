"""How the course's figures look, and how a student plays with one: sliders where they can run, still pictures elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "RED", "play", "use_look"]

BLUE, ORANGE, GREEN, RED, GREY = "#1d6fd1", "#d97706", "#15803d", "#b91c1c", "#8fa3bd"


def use_look() -> None:
    """Set matplotlib's defaults for the rest of the notebook."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"figure.dpi": 100, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})


def play(draw: Callable[..., None], *, stills: Sequence[Mapping[str, Any]], **controls: Sequence[Any]) -> None:
    """Call ``draw`` with the values of sliders, again whenever one is moved.

    Where there are no widgets (no ipywidgets, no notebook, or ``LABKIT_STILLS=1``) it is called once for each of ``stills``.

    Parameters
    ----------
    draw : makes one whole figure and shows it; takes the controls by name
    stills : the settings of the still pictures, two or three of them; the first is also where the sliders begin
    controls : the values that each may take, in order
    """
    widgets = _widgets()
    if widgets is None:
        for settings in stills:
            draw(**settings)
        return
    from IPython.display import display

    sliders = {
        name: widgets.SelectionSlider(
            options=list(values),
            value=stills[0][name],
            description=name.replace("_", " "),
            continuous_update=False,
            style={"description_width": "initial"},
        )
        for name, values in controls.items()
    }
    display(widgets.VBox([*sliders.values(), widgets.interactive_output(draw, sliders)]))  # type: ignore[no-untyped-call]


def _widgets() -> Any:
    """The module ipywidgets where a notebook can show it, else None."""
    if os.environ.get("LABKIT_STILLS"):
        return None
    try:
        import ipywidgets
        from IPython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    return ipywidgets if shell is not None and hasattr(shell, "kernel") else None
