"""The figure of classes that differ in one limb: frames of the embedded dataset, one camera, one recorded take.

python -m docs.drawings.problem       # needs the extra "motion"; writes docs/pictures/idea/problem.jpg
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.image import imsave

from art.data.motion.render import TRACKED, Renderer, clip_poses, sample_params
from art.data.motion.takes import CLASSES
from art.eval.report.style import INK, MUTED, TRACKLET_COLORS, blank_axes, figure_pixels, new_figure

SHOWN = ("walk", "walk and hold out the right arm", "walk and lift the left knee")
FRAMES, COLUMNS, PIXELS = 24, 6, 212


def main() -> None:
    """Render, draw and write the figure."""
    names = [motion_class.name for motion_class in CLASSES]
    figure = new_figure(7.2, 4.35, dpi=180, layout=None)
    figure.patch.set(facecolor="white", alpha=1.0)
    params = sample_params(CLASSES[names.index("walk")], "test", seed=0, class_index=0, index=6, frames=FRAMES)
    at = np.linspace(0, FRAMES - 1, COLUMNS).round().astype(int)
    with Renderer(PIXELS) as renderer:
        for row, name in enumerate(SHOWN):
            motion_class = CLASSES[names.index(name)]
            frames, joints = renderer.render(clip_poses(motion_class, params), params.view)
            axes = figure.add_axes((0.01, 0.995 - 0.333 * (row + 1), 0.98, 0.276))
            blank_axes(axes)
            strip = np.concatenate(list(frames[at]), axis=1)
            axes.imshow(strip, extent=(0, COLUMNS, 1, 0), aspect=1)
            axes.vlines(range(COLUMNS + 1), 0, 1, color=MUTED, linewidth=0.8)
            axes.hlines((0, 1), 0, COLUMNS, color=MUTED, linewidth=0.8)  # the sky is white, like the page
            axes.set_title(name, loc="left", fontsize=10.5, color=INK, pad=4)
            if motion_class.joint is None:
                continue
            limb = joints[at, TRACKED.index(motion_class.joint)]
            for column in range(1, COLUMNS - 1):
                x, y = limb[column] + (column, 0)
                axes.scatter(x, y, s=190, facecolors="none", edgecolors=TRACKLET_COLORS[0], linewidths=2)
    path = Path(__file__).parents[1] / "pictures" / "idea" / "problem.jpg"
    imsave(path, figure_pixels(figure), format="jpeg", pil_kwargs={"quality": 72, "optimize": True})
    print(f"drew {path.relative_to(path.parents[3])}, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
