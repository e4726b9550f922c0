"""The learned policy as plots: PNG, drawn without a display."""

import io
import itertools
from typing import TYPE_CHECKING

from vidurai_pipeline.rl.learning_curve import thin
from vidurai_pipeline.rl.states import Action
from vidurai_pipeline.rl.summary import IMPORTANCE, TOKENS, PolicySummary, bucket_in_words, heat_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Two or three letters for each action, for places where its name is too long.
SHORT = {
    Action.COMPRESS_NOW: "now",
    Action.COMPRESS_AGGRESSIVE: "agg",
    Action.COMPRESS_CONSERVATIVE: "con",
    Action.DECAY_LOW_VALUE: "dec",
    Action.DECAY_THRESHOLD_HIGH: "d+",
    Action.DECAY_THRESHOLD_LOW: "d-",
    Action.CONSOLIDATE: "mrg",
    Action.DO_NOTHING: "no",
}
# Blue and orange (Okabe & Ito's): told apart by all common kinds of colour vision.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#999999"
_INCHES, _DPI = (9.0, 4.2), 90
_POINTS = 60


def draw_heat_map(summary: PolicySummary) -> bytes:
    """The best action's value by tokens and importance."""
    import numpy as np  # noqa: PLC0415
    from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm  # noqa: PLC0415  (slow to import)
    from matplotlib.figure import Figure  # noqa: PLC0415

    grid = heat_map(summary.states)
    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title("What the policy does with a memory, and what that is worth", loc="left")
    if not grid.cells:
        return _png(figure, "nothing learned yet")
    values = np.array([[np.nan if cell is None else cell.value for cell in row] for row in grid.cells])
    colours = LinearSegmentedColormap.from_list("worth", [_ORANGE, "#F7F7F7", _BLUE]).with_extremes(bad="#E4E4E4")
    image = axes.imshow(values, cmap=colours, norm=TwoSlopeNorm(0.0, -grid.most, grid.most), aspect="auto")
    used = set()
    for row, line in enumerate(grid.cells):
        for column, cell in enumerate(line):
            if cell is not None:
                used.add(cell.action)
                ink = "white" if abs(cell.value) > 0.75 * grid.most else "black"
                text = f"{cell.value:+.0f}\n{SHORT[cell.action]}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(grid.tokens)), [_column(*bounds) for bounds in grid.tokens], rotation=45, ha="right")
    axes.set_yticks(range(len(grid.importances)), [bucket_in_words(IMPORTANCE, row) for row in grid.importances])
    axes.set_xlabel("size of the memory (tokens)")
    axes.set_ylabel("importance (0 to 1)")
    axes.tick_params(labelsize=8)
    figure.colorbar(image, ax=axes, label="value of the best action (points)")
    legend = ", ".join(f"{SHORT[action]} = {action.value}" for action in Action if action in used)
    figure.supxlabel(f"{legend}; grey: nothing learned", fontsize=9)
    return _png(figure)


def draw_curve(summary: PolicySummary) -> bytes:
    """Error before learning and mean reward, over the experiences learned."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    if not summary.curve:
        return _png(figure, "nothing learned yet")
    curve = thin(summary.curve, _POINTS)
    learned = list(itertools.accumulate(point.experiences for point in curve))
    dreams = [
        total
        for total, (point, following) in zip(learned, itertools.pairwise(curve), strict=False)
        if point.episode != following.episode
    ]
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.set_title("How wrong the table was about experiences that it had not learned yet", loc="left")
    upper.plot(learned, [point.rms_td_error for point in curve], color=_ORANGE, marker="o", markersize=3)
    upper.set_ylabel("RMS TD error\n(points)")
    upper.set_ylim(bottom=0)
    lower.set_title("What came of the memories, whatever was learned", loc="left")
    lower.plot(learned, [point.mean_reward for point in curve], color=_BLUE, marker="o", markersize=3)
    lower.axhline(0, color=_GREY, linewidth=0.8)
    lower.set_ylabel("mean reward\n(points)")
    lower.set_xlabel("experiences learned" + ("; dotted: a new dream began" if dreams else ""))
    lower.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E4E4E4")
        for place in dreams:
            axes.axvline(place, color=_GREY, linewidth=0.8, linestyle=":")
    return _png(figure)


def _column(start: int, end: int) -> str:
    if end - start == 1:
        return bucket_in_words(TOKENS, start)
    return f"{bucket_in_words(TOKENS, start).partition('-')[0]}-{bucket_in_words(TOKENS, end - 1).rpartition('-')[2]}"


def _png(figure: "Figure", text: str = "") -> bytes:
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=14, color=_GREY)
    buffer = io.BytesIO()
    # Without the library's version in it, the same table gives the same picture.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
