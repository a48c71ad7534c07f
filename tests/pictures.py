"""What tests of pictures share."""

from matplotlib.figure import Figure


def drawn(fig: Figure) -> Figure:
    """Lay out and render: whatever does not fit or warns shows here."""
    fig.canvas.draw()
    return fig


def legend_words(fig: Figure) -> list[str]:
    return [text.get_text() for legend in fig.legends for text in legend.get_texts()]


def titles(fig: Figure) -> list[str]:
    return [ax.get_title() for ax in fig.axes if ax.get_title()]
