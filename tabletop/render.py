"""Draws scenes: analytic shapes with one pixel of anti-aliasing, all frames of an entity at once."""

import numpy as np

from tabletop.captions import Claim, Thing
from tabletop.scenes import BOTCHES, FRAMES, SIZE, TABLE_EDGE, TABLE_TOP, WORLD, Entity, Scene, make_scene

PAINT = {
    "red": (222, 38, 42), "yellow": (250, 208, 20), "green": (30, 160, 62), "blue": (32, 76, 222), "dark": (52, 50, 62),
}  # fmt: skip
PIXEL = WORLD / SIZE  # units
_Y, _X = (np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5) * PIXEL  # centres of pixels, in units


def _background() -> np.ndarray:
    wall = np.array([216, 224, 234], np.float32) - (_Y / WORLD * 34)[..., None]
    table = np.array([158, 146, 136], np.float32) - ((_Y - TABLE_TOP) / WORLD * 30)[..., None]
    cover = np.clip((_Y - TABLE_TOP) / PIXEL + 0.5, 0, 1) * np.clip((TABLE_EDGE - _X) / PIXEL + 0.5, 0, 1)
    return np.asarray(wall + (table - wall) * cover[..., None])


_BACKGROUND = _background()


def _distance(shape: str, x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Signed distance in units (negative inside) to a shape of width w and height h, x and y from its centre."""
    if shape == "ball":
        return np.asarray(np.hypot(x, y * (w / h)) - w / 2)
    if shape == "cone":  # an upright triangle: two slanted sides and the base
        slope = np.hypot(h, w / 2)
        sides = (np.abs(x) * h - (y + h / 2) * (w / 2)) / slope
        return np.asarray(np.maximum(sides, y - h / 2))
    return np.asarray(np.maximum(np.abs(x) - w / 2, np.abs(y) - h / 2))


def _draw(frames: np.ndarray, entity: Entity, look: Thing, where: np.ndarray) -> None:
    """Blend one look of an entity into the frames `where` it is visible; a dark rim makes its outline."""
    index = np.flatnonzero(where)
    if not len(index):
        return
    x, bottom, w, h = (
        a[index, None, None].astype(np.float32) for a in (entity.x, entity.bottom, entity.width, entity.height)
    )
    rows = slice(max(0, int((bottom - h).min() / PIXEL) - 2), max(0, int(bottom.max() / PIXEL) + 3))
    columns = slice(max(0, int((x - w / 2).min() / PIXEL) - 2), max(0, int((x + w / 2).max() / PIXEL) + 3))
    across, down = _X[rows, columns] - x, _Y[rows, columns] - (bottom - h / 2)
    distance = _distance(look.shape, across, down, w, h) / PIXEL
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    rim = np.clip(1.5 + distance, 0, 1)[..., None] * 0.12
    shade = 1 - 0.06 * np.clip(down / h, -1, 1)[..., None]
    paint = np.array(PAINT[look.color], np.float32) * (1 - rim) * shade
    under = frames[index, rows, columns]
    frames[index, rows, columns] = under + (paint - under) * alpha


def render(scene: Scene) -> np.ndarray:
    """The scene as uint8 (F, H, W, 3)."""
    frames = np.repeat((_BACKGROUND * scene.light)[None], FRAMES, 0)
    for entity in scene.entities:
        looks = {entity.look(f) for f in range(FRAMES)}
        for look in sorted(looks, key=str):
            of_look = np.array([entity.look(f) == look for f in range(FRAMES)])
            _draw(frames, entity, look, entity.visible & of_look)
    return np.clip(frames + 0.5, 0, 255).astype(np.uint8)


def random_clip(claim: Claim, rng: np.random.Generator, botched: float) -> tuple[np.ndarray, str | None]:
    """A rendered clip of the claim and its botch, None where there is none. botched: the probability of one."""
    botch = str(rng.choice(BOTCHES[claim.kind])) if rng.random() < botched else None
    return render(make_scene(claim, rng, botch)), botch
