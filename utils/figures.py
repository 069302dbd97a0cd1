"""Pictures of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.files import writing


def save_curves(path: Path, title: str, history: Sequence[Mapping[str, Any]]) -> None:
    """Losses and validation accuracy over the epochs; the best epoch (by loss) is marked."""
    epochs = [row["epoch"] for row in history]
    best = min(history, key=lambda row: row["validation_loss"])
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    losses, accuracy = figure.subplots(1, 2)
    losses.plot(epochs, [row["train_loss"] for row in history], ".-", label="training")
    losses.plot(epochs, [row["validation_loss"] for row in history], ".-", label="validation")
    losses.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    accuracy.plot(
        epochs, [100 * row["validation_accuracy"] for row in history], ".-C1", label="validation"
    )
    accuracy.set(xlabel="epoch", ylabel="accuracy / %")
    for axes in (losses, accuracy):
        axes.axvline(
            best["epoch"], color="0.6", linestyle=":", label=f"best epoch: {best['epoch']}"
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    with writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
