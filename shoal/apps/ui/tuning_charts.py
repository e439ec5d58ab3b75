"""The pictures of a study: losses of its trials, their curves, and the importance of its fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from shoal.apps.ui.charts import MARGIN, SHADES

Trials = Sequence[Mapping[str, Any]]
ORIGINS = {"defaults": SHADES[1], "nearest task": SHADES[2], "promoted": SHADES[4], "sampler": SHADES[0]}


def trial_losses(trials: Trials, *, height: int = 260) -> go.Figure:
    """Loss of every trial that came to an end or was pruned, by where its settings are from; and the best."""
    figure = go.Figure()
    done = [trial for trial in trials if trial["state"] == "complete"]
    best = list(accumulate((trial["loss"] for trial in done), min))
    figure.add_scatter(
        x=[trial["number"] for trial in done],
        y=best,
        mode="lines",
        line={"color": SHADES[5], "shape": "hv", "dash": "dot"},
        name="best so far",
    )
    for origin, colour in ORIGINS.items():
        own = [t for t in trials if t["origin"] == origin and t["loss"] is not None]
        if own:
            figure.add_scatter(
                x=[t["number"] for t in own],
                y=[t["loss"] for t in own],
                text=[_settings(t) for t in own],
                mode="markers",
                marker={
                    "color": colour,
                    "size": 9,
                    "symbol": ["circle" if t["state"] == "complete" else "x-thin-open" for t in own],
                },
                name=origin,
                hovertemplate="trial %{x}: %{y:.4f}<br>%{text}<extra></extra>",
            )
    figure.update_layout(height=height, margin=MARGIN, legend=_LEGEND)
    figure.update_xaxes(title_text="trial (× pruned)", showgrid=False, tickformat="d")
    figure.update_yaxes(title_text="loss")
    return figure


def trial_curves(trials: Trials, *, height: int = 260) -> go.Figure:
    """Loss by steps of every trial; the best one and the defaults stand out."""
    done = [trial for trial in trials if trial["state"] == "complete"]
    best = min(done, key=lambda trial: trial["loss"], default=None)
    figure = go.Figure()
    for trial in trials:
        if not trial["curve"]:
            continue
        steps, losses = zip(*trial["curve"], strict=True)
        first, own = trial["origin"] == "defaults", trial is best
        colour = SHADES[1] if first else SHADES[0] if own else "#c9d6d3"
        figure.add_scatter(
            x=steps,
            y=losses,
            mode="lines+markers",
            line={"color": colour, "width": 2.5 if first or own else 1},
            marker={"size": 5},
            name="defaults" if first else f"trial {trial['number']}, the best",
            showlegend=first or own,
            zorder=int(first or own),
            hovertemplate=f"trial {trial['number']}, step %{{x}}: %{{y:.4f}}<extra></extra>",
        )
    figure.update_layout(height=height, margin=MARGIN, legend=_LEGEND)
    figure.update_xaxes(title_text="steps", showgrid=False, rangemode="tozero")
    figure.update_yaxes(title_text="loss")
    return figure


def importance_bars(importance: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Share of every field in how losses differ, with its spread."""
    figure = go.Figure(
        go.Bar(
            x=[own["share"] for own in importance.values()],
            y=list(importance),
            error_x={"type": "data", "array": [own["spread"] for own in importance.values()], "width": 4},
            orientation="h",
            marker_color=SHADES[0],
        )
    )
    figure.update_layout(height=70 + 34 * len(importance), margin=MARGIN, showlegend=False)
    figure.update_xaxes(tickformat=".0%", range=[0, 1.2], showgrid=False)
    figure.update_yaxes(autorange="reversed")
    return figure


_LEGEND = {"orientation": "h", "yanchor": "bottom", "y": 1.02}


def _settings(trial: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in trial["settings"].items())


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
