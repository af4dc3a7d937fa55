"""MovingShapes: a synthetic video instance segmentation data set.

Every video is a pure function of (version, configuration, seed, index).
"""

from mssts.data.moving_shapes.dataset import SPLITS, render_video, write_dataset, write_split
from mssts.data.moving_shapes.version0 import CATEGORIES, MovingShapesConfig
from mssts.data.moving_shapes.version1 import CATEGORIES as CATEGORIES_1
from mssts.data.moving_shapes.version1 import SCENARIOS, MovingShapes1Config
from mssts.data.moving_shapes.video import MIN_VISIBLE_PIXELS, MovingShapesVideo

__all__ = [
    "CATEGORIES",
    "CATEGORIES_1",
    "MIN_VISIBLE_PIXELS",
    "SCENARIOS",
    "SPLITS",
    "MovingShapes1Config",
    "MovingShapesConfig",
    "MovingShapesVideo",
    "render_video",
    "write_dataset",
    "write_split",
]
