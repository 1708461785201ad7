"""Draws synthetic portraits, framed like aligned CelebA photographs: `draw(index)` returns a face.

Shapes with soft edges are blended from back to front, in linear light, and the head is a relief that is lit
from one side. All random choices come from a counter-based generator that is keyed by the index. All lengths
are in pixels.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 178, 218
EYES_X, EYES_Y = 89, 112  # the pixel between the eyes, as in aligned CelebA
EYE = 19.5  # the distance from there to the middle of each eye
MOUTH, CHIN = 38, 66  # the distances below the eyes


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """Converts sRGB values in [0, 1] to linear light (3, 1, 1). Gamma 2 is cheap and close to sRGB's."""
    return np.square(np.array([red, green, blue], np.float32))[:, None, None]


PALE, BROWN = rgb(0.97, 0.80, 0.71), rgb(0.46, 0.29, 0.21)  # the palest and the darkest skin
# Dark skin goes only with the first two colors of hair and of eyes.
HAIR = [rgb(0.12, 0.10, 0.10), rgb(0.24, 0.16, 0.13), rgb(0.42, 0.27, 0.18), rgb(0.62, 0.33, 0.18),
        rgb(0.82, 0.66, 0.42), rgb(0.66, 0.65, 0.65)]  # fmt: skip
IRIS = [rgb(0.25, 0.15, 0.09), rgb(0.42, 0.30, 0.14), rgb(0.34, 0.46, 0.32), rgb(0.32, 0.50, 0.64)]
WHITE, BLACK, LIPSTICK = rgb(0.92, 0.90, 0.88), rgb(0.10, 0.05, 0.05), rgb(0.70, 0.20, 0.26)
BLOOD = rgb(0.92, 0.66, 0.66)  # multiplies the color of skin where it is red: lips, cheeks, nose, ears
SCATTER = rgb(0.67, 0.50, 0.42)  # how far each color of light wraps around skin into the shade


@dataclass
class Canvas:
    """A picture (3, h, w) in linear light, and the positions (h, w) of its pixels.

    Positions are measured from the point between the eyes, x to the right and y down. They are rotated like
    the head.
    """

    pixels: np.ndarray
    x: np.ndarray
    y: np.ndarray

    def around(self, x: int, y: int, wide: int, tall: int) -> "Canvas":
        """A view of the part within `wide` and `tall` of a point: painting on it also paints the whole."""
        rows = slice(max(EYES_Y + y - tall, 0), EYES_Y + y + tall)
        columns = slice(max(EYES_X + x - wide, 0), EYES_X + x + wide)
        return Canvas(self.pixels[:, rows, columns], self.x[rows, columns], self.y[rows, columns])

    def paint(self, color: np.ndarray, amount: np.ndarray) -> None:
        """Blends a color (3, 1, 1) or a picture (3, h, w) over this one, by an amount 0..1 (h, w)."""
        self.pixels += (color - self.pixels) * amount


class Person:
    """Random properties of a person, which several parts of the portrait share."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.woman = rng.random() < 0.55
        self.long_hair = self.woman and rng.random() < 0.85
        self.smile = rng.random()  # 0..1
        # How far the outline of the head is shifted to the left because the head is turned.
        self.turn = rng.normal(0, 5)
        tone = rng.random() ** 1.5  # 0 pale .. 1 brown
        self.skin = PALE ** (1 - tone) * BROWN**tone
        colors = 2 if tone > 0.6 else None
        self.hair = rng.choice(HAIR[:colors]) * rng.uniform(0.7, 1.3)
        self.iris = rng.choice(IRIS[:colors])
        light = [rng.choice([-1, 1]) * rng.uniform(0.2, 0.8), rng.uniform(-0.7, -0.3), 0.8]
        # The direction from which light comes: to the right, down, and towards the viewer.
        self.light = np.array(light, np.float32) / math.hypot(*light)


def any_color(rng: np.random.Generator) -> np.ndarray:
    """Returns a color of any hue and brightness that is not garish."""
    return rgb(*rng.uniform(0.15, 1) * rng.uniform(0.6, 1, 3))


def noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Returns smooth noise in [-0.5, 0.5] for a whole picture: a random grid (cells, cells), enlarged."""
    grid = Image.fromarray(rng.random((cells, cells), np.float32) - 0.5)
    return np.asarray(grid.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def cover(distance: np.ndarray, soft: float = 1.5) -> np.ndarray:
    """Converts the distance to a shape's edge, negative inside, to a coverage 0..1, blurred over `soft`."""
    amount = np.clip(0.5 - distance / soft, 0, 1)
    return amount * amount * (3 - 2 * amount)


def ellipse(x: np.ndarray, y: np.ndarray, wide: float, tall: float, power: float = 2) -> np.ndarray:
    """The distance to an ellipse around (0, 0), accurate near its edge. A higher power makes it squarer."""
    reach = np.abs(x / wide) ** power + np.abs(y / tall) ** power
    return (reach ** (1 / power) - 1) * min(wide, tall)


def band(y: np.ndarray, top: np.ndarray, bottom: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """The distance to the region between the curves `top` and `bottom` in which `sides` is negative."""
    return np.maximum(np.maximum(top - y, y - bottom), sides)


def bump(x: np.ndarray, y: np.ndarray, wide: float, tall: float) -> np.ndarray:
    """A Gaussian hill of height 1 at (0, 0)."""
    return np.exp(-((x / wide) ** 2) - (y / tall) ** 2)


def shade(light: np.ndarray, height: np.ndarray) -> np.ndarray:
    """The brightness (3, h, w) of a relief of this height (h, w), lit from the direction `light` (3,)."""
    down, right = np.gradient(height)
    facing = (light[2] - right * light[0] - down * light[1]) / np.sqrt(right**2 + down**2 + 1)
    return 0.25 + 1.15 / (1 + SCATTER) * np.maximum(facing + SCATTER, 0)


def background(rng: np.random.Generator, canvas: Canvas) -> None:
    """Paints one color, and over it large spots that are out of focus."""
    canvas.pixels[:] = any_color(rng)
    for _ in range(4):
        x, y, size = rng.uniform(-90, 90), rng.uniform(-110, 110), rng.uniform(20, 80)
        spot = ellipse(canvas.x - x, canvas.y - y, size, size)
        canvas.paint(any_color(rng), rng.uniform(0.3, 0.9) * cover(spot, size))


def hair_mass(person: Person, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distance to the outline of the hair, which also covers the face, and its picture."""
    rng, long = person.rng, person.long_hair
    x, y = canvas.x + 0.8 * person.turn, canvas.y + 10
    volume = rng.uniform(4, 14)
    # Below the temples, long hair hangs down and widens, and short hair closes in on the skull.
    flare = rng.uniform(0, 0.15) if long else -0.6
    half = np.maximum(45 + volume + flare * np.maximum(y, 0), 9)
    up = np.minimum(y / (62 + volume), 0)
    # The position from the left side of the hair (-1) to the right side (1). Its lines meet at the crown.
    across = np.clip(x / half / np.sqrt(np.maximum(1 - up**2, 0.02)), -2, 2)
    curl = rng.random() ** 3
    # This is constant along a strand. Waves and noise bend the strands.
    strand = 25 * across + 2 * rng.random() * np.sin(y / 9 + 2 * across) + (2 + 12 * curl) * noise(rng, 30)
    lines = 0.4 * np.sin(strand) + 0.3 * np.sin(2.3 * strand) + 0.3 * np.sin(4.1 * strand)
    length = rng.uniform(40, 150) if long else rng.uniform(0, 10)
    ends = (y - length - 8 * across**2) / 2 - 2 * lines
    distance = np.maximum(ellipse(x / half, up, 1, 1, 2.3) * half + (1 + 2 * curl) * lines, ends)
    shine = 0.5 * bump(up + 0.6 - 0.3 * across**2, across, 0.2, 1)
    light = np.maximum(0.95 - 0.6 * across**2 + 0.3 * person.light[0] * across + shine, 0.2)
    return distance, person.hair * (light * (1 + 0.4 * lines)) + 0.03 * shine


def hair_front(person: Person, canvas: Canvas, distance: np.ndarray, picture: np.ndarray) -> None:
    """Paints the hair around the face, and its shadow on the head."""
    rng = person.rng
    line = rng.uniform(14, 20) if rng.random() < 0.3 else rng.uniform(30, 46)
    y = np.minimum(canvas.y - 20 + rng.normal(0, 0.2) * canvas.x, 0)
    opening = ellipse(canvas.x + 0.3 * person.turn, y, 40, line + 20, rng.uniform(1.8, 2.6))
    canvas.paint(BLACK, 0.4 * cover(-opening - 2, 10) * cover(distance, 8))
    canvas.paint(picture, cover(np.maximum(distance, -opening), 2))


def body(person: Person, canvas: Canvas) -> None:
    """Paints neck, shoulders and clothes."""
    rng, part = person.rng, canvas.around(0, 80, 100, 45)
    x, y = part.x + 0.5 * person.turn, part.y
    neck = rng.uniform(18, 22) if person.woman else rng.uniform(23, 28)
    shoulder = rng.uniform(76, 84) + rng.uniform(0.003, 0.005) * x**2
    height = 25 * np.exp(-((x / neck) ** 2)) + 20 * (1 - np.exp(-np.maximum(y - shoulder, 0) / 8))
    light = shade(person.light, height)
    shadow = 1 - 0.6 * cover(y - CHIN - 6, 20)
    part.paint(person.skin * light * shadow, cover(np.minimum(np.abs(x) - neck, shoulder - y)))
    neckline = ellipse(x, y - 76, neck + rng.uniform(2, 14), rng.uniform(9, 26))
    part.paint(any_color(rng) * light, cover(np.maximum(shoulder - 2 - y, -neckline)))


def ears(person: Person, canvas: Canvas) -> None:
    """Paints both ears. Later, hair may cover them."""
    outline = ellipse(np.abs(canvas.x + 0.7 * person.turn) - 45, canvas.y - 8, 6, 13)
    canvas.paint(person.skin * BLOOD**0.4 * (0.8 - 0.4 * np.exp(-((outline + 3) ** 2))), cover(outline))


def head(person: Person, canvas: Canvas) -> None:
    """Paints the head as a lit relief with nose, cheeks and chin, and perhaps a beard."""
    rng, part = person.rng, canvas.around(0, -2, 64, 82)
    x, y, side = part.x, part.y, np.abs(part.x)
    low = np.clip(y / CHIN, 0, 1)
    half = rng.uniform(42, 47) * (1 - rng.uniform(0.15, 0.3) * low**2)
    outline = ellipse((x + person.turn * (1 - low)) / half, y / CHIN, 1, 1, 2.3)
    height = 50 * np.sqrt(np.maximum(1 - (outline + 1) ** 2, 0) + 0.01)
    tip, broad = rng.uniform(20, 26), rng.uniform(0.85, 1.2)  # of the nose
    along = np.clip((y + 8) / (tip + 8), 0, 1)
    nose = np.abs(x - 0.5 * person.turn * along) / broad
    height += 9 * along * cover(y - tip - 3, 12) * np.exp(-((nose / (4 + 3 * along)) ** 2))
    height -= 5 * bump(side - 16, y + 1, 11, 8)  # eye sockets
    height += (3 + 3 * person.smile) * bump(side - 24, y - 20, 12, 10)  # cheeks
    height += 4 * bump(x, y - MOUTH, 19, 13) + 5 * bump(x, y - CHIN + 10, 11, 8)
    blush = 0.5 * bump(side - 26, y - 21, 13, 10) + 0.6 * bump(nose, y - tip, 8, 6)
    skin = person.skin * (1 + (BLOOD - 1) * blush)
    skin *= 1 - 0.8 * bump(nose - 4.6, y - tip - 5, 2.3, 1.5)  # nostrils
    if not person.woman and rng.random() < 0.4:
        beard = cover(tip + 10 - y - 0.012 * x**2, 8)
        skin += (0.8 * person.hair - skin) * (rng.uniform(0.3, 0.9) * beard)
    part.paint(skin * shade(person.light, height), cover(outline * half))


def eyes(person: Person, canvas: Canvas) -> None:
    """Paints both eyes with lids, lashes and brows."""
    rng, part = person.rng, canvas.around(0, -4, 42, 22)
    x, y = np.abs(part.x) - EYE, part.y  # towards the temple, and down
    half = rng.uniform(9, 10.5)
    bow, sides = np.maximum(1 - (x / half) ** 2, 0), np.abs(x) - half
    lid, rim = (person.smile - rng.uniform(4, 5.6)) * np.sqrt(bow), rng.uniform(2.4, 3.4) * bow
    inside = cover(band(y, lid, rim, sides))
    gaze = part.x - np.copysign(EYE, part.x) - rng.normal(0, 1)
    disc = ellipse(gaze, y + 0.6, 4.5, 4.5)
    part.paint(WHITE * np.clip(0.5 + 0.15 * (y - lid), 0.3, 1), inside)
    part.paint(person.iris, inside * cover(disc))
    part.paint(BLACK, inside * np.maximum(cover(disc + 2.5), 0.6 * cover(np.abs(disc) - 0.4)))
    part.paint(WHITE, inside * cover(ellipse(gaze - 1.5, y + 2, 1, 1)))
    part.paint(BLACK, 0.9 * cover(band(y, lid - (1.4 if person.woman else 0.8), lid + 0.8, sides)))
    brow = 0.1 * x - rng.uniform(13, 16) - 3 * np.sin((x + 11) / 10)
    stroke = np.maximum(np.abs(y - brow) - rng.uniform(1, 1.8), np.abs(x - 1) - 12)
    part.paint(person.hair * 0.4, 0.85 * cover(stroke, 2.5))


def mouth(person: Person, canvas: Canvas) -> None:
    """Paints the lips, and teeth if the smile opens them."""
    rng, smile, part = person.rng, person.smile, canvas.around(0, 42, 32, 22)
    x, y = part.x, part.y
    half, full, gap = rng.uniform(13, 15) + 4 * smile, rng.uniform(4, 6), max(0, 11 * (smile - 0.45))
    bow, sides = np.clip(1 - (x / half) ** 2, 0, 1), np.abs(x) - half
    roof = MOUTH + (1 + 5 * smile - 0.3 * gap) * (bow - 0.6)  # the corners of a smile lie higher
    floor = roof + gap * bow
    lipstick = person.woman * rng.random()
    lips = (1 - lipstick) * person.skin * BLOOD + lipstick * LIPSTICK
    part.paint(lips * 0.6, cover(band(y, roof - 0.75 * full * bow, roof, sides)))
    part.paint(lips * (1 - 0.06 * (y - floor)), cover(band(y, floor, floor + full * bow, sides)))
    part.paint(WHITE * bow**0.5, min(gap, 1) * cover(band(y, roof, floor, sides)))
    part.paint(BLACK, 0.5 * cover(np.maximum(np.abs(y - roof) - 0.4, sides)))


def glasses(rng: np.random.Generator, canvas: Canvas) -> None:
    """Paints the frame and arms of a pair of glasses."""
    part = canvas.around(0, 2, 60, 24)
    x, y = np.abs(part.x) - EYE, part.y - 2
    thick = rng.uniform(0.7, 1.5)
    lens = ellipse(x, y, rng.uniform(13, 16), rng.uniform(10, 13), rng.uniform(2, 4))
    arms = np.maximum(np.maximum(np.abs(y + 3) - thick, x - 25), -lens)
    part.paint(any_color(rng) * 0.4, cover(np.minimum(np.abs(lens) - thick, arms)))


def draw(index: int) -> np.ndarray:
    """Draws portrait `index`: RGB (218, 178, 3) uint8. The same index gives the same picture."""
    rng = np.random.Generator(np.random.Philox(key=index))
    tilt, scale = rng.normal(0, 0.05), rng.uniform(0.95, 1.06)
    cos, sin = math.cos(tilt) / scale, math.sin(tilt) / scale
    down, right = np.mgrid[-EYES_Y : HEIGHT - EYES_Y, -EYES_X : WIDTH - EYES_X].astype(np.float32)
    pixels = np.empty((3, HEIGHT, WIDTH), np.float32)
    canvas = Canvas(pixels, x=cos * right + sin * down, y=cos * down - sin * right)
    background(rng, canvas)
    person = Person(rng)
    outline, hair = hair_mass(person, canvas)
    canvas.paint(0.5 * hair, cover(outline, 2))  # behind the head
    for feature in (body, ears, head, eyes, mouth):
        feature(person, canvas)
    if rng.random() < 0.15:
        glasses(rng, canvas)
    hair_front(person, canvas, outline, hair)
    grain = 6 * rng.random((HEIGHT, WIDTH), np.float32)
    picture = np.clip(255 * np.sqrt(np.maximum(pixels, 0)) + grain, 0, 255)
    return np.ascontiguousarray(picture.astype(np.uint8).transpose(1, 2, 0))
