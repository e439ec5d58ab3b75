"""The pictures: how much adapters change each layer and module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

SEA = [[0.0, "#eef6f4"], [0.35, "#9ad1c8"], [0.7, "#2a9d8f"], [1.0, "#0b3f47"]]
SHALLOWS = [[0.0, "#f3f9f8"], [1.0, "#6fbfb2"]]  # on which dark words can be read
SHADES = ["#0f766e", "#e07a3f", "#3d5a98", "#b8912b", "#8a4f9e", "#5b6b69", "#c2456e", "#58a4b0"]
PLAIN = {"displayModeBar": False}
_LAYER = re.compile(r"\.(\d+)\.([A-Za-z0-9_.]+)$")
MARGIN = {"l": 8, "r": 8, "t": 8, "b": 8}


def heat_map(norms: Mapping[str, float], *, top: float | None = None, height: int = 250) -> go.Figure:
    """Norm of the delta weight per layer and module.

    Args:
        norms: module -> norm.
        top: value of the darkest colour, for pictures that are compared.
        height: in pixels.
    """
    places = {(int(m[1]), m[2]): norm for name, norm in norms.items() if (m := _LAYER.search(name))}
    layers = range(min(i for i, _ in places), max(i for i, _ in places) + 1) if places else range(0)
    modules = list(dict.fromkeys(module for _, module in places))
    short = [module.rsplit(".", 1)[-1] for module in modules]
    figure = go.Figure(
        go.Heatmap(
            z=[[places.get((layer, module)) for layer in layers] for module in modules],
            x=list(layers),
            y=short if len(set(short)) == len(short) else modules,
            colorscale=SEA,
            zmin=0,
            zmax=top or max(places.values(), default=0.0) or 1.0,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": "norm", "side": "right"}, "thickness": 10, "outlinewidth": 0},
            hovertemplate="layer %{x}, %{y}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_layout(height=height, margin=MARGIN)
    figure.update_xaxes(title_text="layer", dtick=1 if len(layers) <= 16 else 2, showgrid=False)
    figure.update_yaxes(showgrid=False, autorange="reversed")
    return figure


def falling_line(curve: Sequence[tuple[int, float]], *, height: int = 150) -> go.Figure:
    """Loss by steps of refining, nats per token."""
    steps, losses = zip(*curve, strict=True)
    figure = go.Figure(go.Scatter(x=steps, y=losses, mode="lines+markers", line={"color": SHADES[0]}))
    figure.update_layout(height=height, margin=MARGIN, showlegend=False)
    figure.update_xaxes(title_text="steps", showgrid=False)
    figure.update_yaxes(title_text="loss", rangemode="tozero")
    return figure


def layer_lines(adapters: Mapping[str, Mapping[str, float]], *, height: int = 230) -> go.Figure:
    """Norm of the whole change per layer, one line an adapter."""
    figure = go.Figure()
    for name, norms in adapters.items():
        squares: dict[int, float] = {}
        for module, norm in norms.items():
            if m := _LAYER.search(module):
                squares[int(m[1])] = squares.get(int(m[1]), 0.0) + norm**2
        layers = sorted(squares)
        figure.add_scatter(
            x=layers,
            y=[squares[layer] ** 0.5 for layer in layers],
            name=name,
            mode="lines+markers",
            cliponaxis=False,
        )
    figure.update_layout(
        height=height,
        margin=MARGIN,
        colorway=SHADES,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02},  # above the lines, in any number of rows
        showlegend=len(adapters) > 1,
    )
    figure.update_xaxes(title_text="layer", showgrid=False)
    figure.update_yaxes(title_text="norm", rangemode="tozero")
    return figure


def kept_bars(kept: Mapping[str, float], *, height: int = 240) -> go.Figure:
    """Share of the parents' gain that a merge keeps, a bar for each task; 1 is as good as routing."""
    figure = go.Figure(go.Bar(x=list(kept.values()), y=list(kept), orientation="h", marker_color=SHADES[0]))
    figure.add_vline(x=1, line_dash="dot", line_color=SHADES[5])
    figure.update_layout(height=height, margin=MARGIN, showlegend=False)
    figure.update_xaxes(title_text="share kept", tickformat=".0%", rangemode="tozero", showgrid=False)
    figure.update_yaxes(autorange="reversed")
    return figure


def trade_offs(members: Mapping[str, Mapping[str, float]], *, height: int = 240) -> go.Figure:
    """What the merges of one search keep of two tasks; those on the Pareto front are joined."""
    one, two = list(next(iter(members.values())))[:2]
    points = {name: (kept.get(one, 0.0), kept.get(two, 0.0)) for name, kept in members.items()}
    front = sorted(
        (x, y)
        for x, y in points.values()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    )
    # Neighbours have their names on different sides, and the last one its name within the picture.
    in_order = sorted(points, key=lambda name: points[name])
    sides = {name: ("top right", "bottom left")[place % 2] for place, name in enumerate(in_order)}
    sides[in_order[-1]] = "middle left"
    figure = go.Figure()
    figure.add_scatter(x=[x for x, _ in front], y=[y for _, y in front], mode="lines", line_color=SHADES[0])
    figure.add_scatter(
        x=[x for x, _ in points.values()],
        y=[y for _, y in points.values()],
        text=[name.partition(".")[2] or name for name in points],
        mode="markers+text",
        textposition=[sides[name] for name in points],
        marker={"color": SHADES[1], "size": 10},
        cliponaxis=False,
    )
    figure.update_layout(height=height, margin=MARGIN, showlegend=False)
    figure.update_xaxes(title_text=f"kept of {one}", tickformat=".0%", showgrid=False)
    figure.update_yaxes(title_text=f"kept of {two}", tickformat=".0%", showgrid=False)
    return figure


def score_matrix(
    steps: Sequence[str], skills: Sequence[str], scores: Sequence[Sequence[float | None]]
) -> go.Figure:
    """Scores over time, in points: a row for each step, a column for each skill, empty before its own."""
    figure = go.Figure(
        go.Heatmap(
            z=scores,
            x=list(skills),
            y=list(steps),
            text=[["" if score is None else f"{score:.0f}" for score in row] for row in scores],
            texttemplate="%{text}",
            textfont={"color": SEA[-1][1]},
            colorscale=SHALLOWS,
            zmin=0,
            zmax=100,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": "ROUGE-L", "side": "right"}, "thickness": 10, "outlinewidth": 0},
            hovertemplate="%{y}: %{x} %{z:.1f}<extra></extra>",
        )
    )
    figure.update_layout(height=110 + 34 * len(steps), margin=MARGIN)
    figure.update_xaxes(type="category", side="top", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure
