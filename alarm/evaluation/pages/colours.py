"""The colours of rewards on tokens, shared by the terminal and the pages."""

from __future__ import annotations

STEPS = (0.1, 0.3, 1.0, 3.0)  # a reward of less is of the palest colour, of 3 and more of the strongest

# blue and orange are told apart by all common kinds of colour vision; palest to strongest
ORANGE = ("#fdebd6", "#fbd3a5", "#f5ae66", "#e5832a", "#a94f00")
BLUE = ("#e2eefa", "#bdd8f3", "#86b7e6", "#4b8ed1", "#1c559e")
DARK_ORANGE = ("#3a2a17", "#5c3d17", "#8a5413", "#cf7a1e", "#ffb25e")
DARK_BLUE = ("#1b2a3d", "#1f3d61", "#275a94", "#4a8cd8", "#8cc2ff")


def _variables(orange: tuple[str, ...], blue: tuple[str, ...]) -> str:
    return " ".join(
        f"--{sign}{k}: {c};" for sign, cs in (("p", orange), ("n", blue)) for k, c in enumerate(cs, start=1)
    )


# .p1 to .p5 are positive, .n1 to .n5 negative; ink that contrasts with each, in light and in dark mode
REWARD_CSS = f"""
:root {{ --on: #111; --on4: #111; --on5: #fff; {_variables(ORANGE, BLUE)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --on: #f4f2ee; --on4: #0c0c0c; --on5: #0c0c0c;
  {_variables(DARK_ORANGE, DARK_BLUE)} }} }}
{" ".join(f".{sign}{k} {{ background: var(--{sign}{k}) }}" for sign in "pn" for k in range(1, 6))}
.p4, .n4 {{ color: var(--on4) }}
.p5, .n5 {{ color: var(--on5) }}
"""
