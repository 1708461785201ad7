"""Draws synthetic portraits, framed like aligned CelebA photographs: `draw(index)` returns a face.

A relief is lit, and shapes with soft edges are blended over it from back to front, in linear light. Every
choice is drawn from a counter-based generator keyed by the index. A face takes 6 ms on one core.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 178, 218

Array = np.ndarray[Any, Any]
Option = TypeVar("Option")
Color = tuple[float, float, float]
Range = tuple[float, float]

GRID_Y, GRID_X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
CENTRE_X, CENTRE_Y = 88.5, 112.0  # between the eyes, as in aligned CelebA
VIGNETTE = 1.0 - ((GRID_X - CENTRE_X) / 250.0) ** 2 - ((GRID_Y - CENTRE_Y) / 300.0) ** 2
# The regions that contain a feature in every pose, so that only its own pixels are computed.
HEAD = np.s_[36:202, 20:158]
FACE = np.s_[66:194, 36:142]
EARS = np.s_[88:146, 12:166]
EYE = {-1: np.s_[80:128, 36:100], 1: np.s_[80:128, 78:142]}
GLASSES = np.s_[86:140, 22:156]
HAT = np.s_[0:124, 0:WIDTH]
MOUTH = np.s_[130:186, 48:130]
BODY = np.s_[150:HEIGHT, 0:WIDTH]

SKIN = [(0.93, 0.78, 0.70), (0.91, 0.72, 0.62), (0.86, 0.65, 0.53), (0.75, 0.53, 0.40),
        (0.60, 0.41, 0.30), (0.45, 0.30, 0.23)]  # fmt: skip
HAIR = [(0.12, 0.10, 0.10), (0.20, 0.14, 0.11), (0.32, 0.21, 0.15), (0.44, 0.28, 0.18),
        (0.50, 0.23, 0.14), (0.66, 0.36, 0.19), (0.60, 0.45, 0.30), (0.78, 0.62, 0.40),
        (0.88, 0.78, 0.60)]  # fmt: skip
IRIS = [(0.22, 0.13, 0.08), (0.36, 0.21, 0.10), (0.46, 0.36, 0.18), (0.36, 0.47, 0.32),
        (0.30, 0.48, 0.64), (0.45, 0.57, 0.64)]  # fmt: skip
FLESH = (0.45, 0.25, 0.18)  # how far light wraps around skin, per channel
BLUSH = np.array([0.0, 0.44, 0.47], np.float32)  # the share of light that blood absorbs
HOLLOW = np.array([0.16, 0.25, 0.25], np.float32)  # the same for the shade around the eyes
LIPSTICK = [(0.72, 0.12, 0.18), (0.78, 0.30, 0.36), (0.52, 0.14, 0.24), (0.80, 0.44, 0.42)]
SCENES = [  # colors above and below, and the two ends of the range of the blurred shapes
    ((0.62, 0.76, 0.84), (0.28, 0.42, 0.20), (0.20, 0.34, 0.14), (0.82, 0.86, 0.58)),  # garden
    ((0.74, 0.82, 0.88), (0.34, 0.50, 0.58), (0.90, 0.88, 0.80), (0.40, 0.55, 0.65)),  # shore
    ((0.92, 0.72, 0.52), (0.42, 0.30, 0.36), (0.98, 0.82, 0.56), (0.60, 0.36, 0.40)),  # dusk
    ((0.10, 0.10, 0.18), (0.20, 0.13, 0.15), (0.95, 0.60, 0.30), (0.45, 0.60, 0.90)),  # night
    ((0.80, 0.72, 0.62), (0.46, 0.34, 0.27), (0.92, 0.84, 0.70), (0.36, 0.25, 0.20)),  # room
    ((0.50, 0.53, 0.58), (0.30, 0.32, 0.36), (0.66, 0.68, 0.72), (0.24, 0.26, 0.30)),  # studio
    ((0.84, 0.83, 0.82), (0.62, 0.60, 0.60), (0.95, 0.94, 0.93), (0.70, 0.68, 0.68)),  # white
    ((0.52, 0.16, 0.18), (0.24, 0.08, 0.10), (0.70, 0.30, 0.26), (0.16, 0.06, 0.08)),  # curtain
    ((0.22, 0.34, 0.48), (0.10, 0.16, 0.26), (0.40, 0.54, 0.68), (0.10, 0.14, 0.22)),  # blue
]


@dataclass(frozen=True)
class Style:
    """A hair style: ranges in pixels, except for the wave, and the direction `flow` of the strands."""

    volume: Range  # distance of the hair's outline from the skull
    length: Range  # its end below the eyes; with 0 or less, the ears are visible
    line: Range  # the hairline above the eyes
    wave: Range
    flow: str


BALD = Style((0, 0), (0, 0), (0, 0), (0, 0), "none")
LONG = Style((8, 14), (80, 150), (34, 42), (0.0, 0.1), "part")
WAVY = Style((9, 17), (60, 150), (34, 42), (0.25, 0.5), "part")
BOB = Style((9, 14), (38, 60), (34, 42), (0.0, 0.15), "part")
FRINGE = Style((8, 14), (40, 140), (13, 18), (0.0, 0.15), "fall")
CURLY = Style((13, 22), (15, 80), (32, 40), (0, 0), "curl")
BUN = Style((2, 5), (-3, 0), (36, 43), (0, 0), "back")
SHORT = Style((5, 10), (-4, 0), (30, 40), (0.1, 0.3), "tousle")
SWEPT = Style((7, 13), (-4, 0), (34, 42), (0.0, 0.1), "part")
CROP = Style((2, 4), (-4, 0), (34, 44), (0.1, 0.3), "tousle")
AFRO = Style((6, 14), (-4, 0), (32, 40), (0, 0), "curl")
WOMEN = [LONG, LONG, WAVY, WAVY, WAVY, BOB, FRINGE, FRINGE, CURLY, BUN, SWEPT]
MEN = [SHORT, SHORT, SHORT, SWEPT, SWEPT, CROP, CROP, AFRO, BALD, LONG]


class Dice:
    """Random choices for one index, all made from the generator's uniform numbers."""

    def __init__(self, index: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=[0xFACE, index]))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._generator.random())

    def bell(self, spread: float) -> float:
        """A nearly normal number (a sum of three uniforms) with mean 0 and standard deviation `spread`."""
        return 2.0 * spread * sum(self.between(-0.5, 0.5) for _ in range(3))

    def chance(self, probability: float) -> bool:
        return self.between(0.0, 1.0) < probability

    def pick(self, options: list[Option]) -> Option:
        return options[int(self.between(0.0, len(options)))]

    def cloth(self) -> Array:
        """A color of clothes: any hue, seldom garish."""
        grey, pure = self.between(0.06, 0.85), self.between(0.1, 0.6)
        return linear(*(grey + pure * (self.between(0.0, 0.9) - grey) for _ in range(3)))

    def field(self, *shape: int) -> Array:
        return self._generator.random(shape, dtype=np.float32)

    def clouds(self) -> Array:
        """A random cutout (218, 178) of CLOUDS, with a standard deviation of about 1."""
        top, left = (int(self.between(0, 512 - side)) for side in (HEIGHT, WIDTH))
        return CLOUDS[top : top + HEIGHT, left : left + WIDTH]


def noise(dice: Dice, side: int, octaves: int) -> Array:
    """Fractal noise (side, side) with mean 0 and standard deviation 1: a sum of enlarged small grids."""
    total = np.zeros((side, side), np.float32)
    for octave in range(octaves):
        cells = side >> (octaves + 1 - octave)
        grid = Image.fromarray(dice.field(cells, cells))
        total += 0.75**octave * np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))
    return (total - total.mean()) / total.std()


def linear(red: float, green: float, blue: float) -> Array:
    """Converts a color to linear light, in which light adds up. Gamma 2 is close to sRGB and cheap."""
    return np.array([red, green, blue], np.float32) ** 2


def ramp(stops: list[Color], position: float) -> Array:
    positions = np.linspace(0.0, 1.0, len(stops))
    return linear(*(float(np.interp(position, positions, part)) for part in np.transpose(stops)))


def spread(color: Array) -> Array:
    return color[:, None, None]


def cover(distance: Array, soft: float = 1.2) -> Array:
    """The coverage 0..1 of a shape from the signed distance in pixels; its edge is `soft` pixels wide."""
    amount = distance * (-1.0 / soft)
    amount += 0.5
    np.minimum(np.maximum(amount, 0.0, out=amount), 1.0, out=amount)
    return amount * amount * (3.0 - 2.0 * amount)


def bump(x: Array, y: Array, cx: float, cy: float, wide: float, tall: float) -> Array:
    x, y = (x - cx) * (1.0 / wide), (y - cy) * (1.0 / tall)
    return np.exp(-x * x - y * y)


def ellipse(x: Array, y: Array, cx: float, cy: float, wide: float, tall: float) -> Array:
    """Signed distance to an ellipse, exact to first order at its edge."""
    x, y = (x - cx) / wide, (y - cy) / tall
    reach = np.sqrt(x * x + y * y) + 1e-6
    return reach * (reach - 1.0) / np.sqrt((x / wide) ** 2 + (y / tall) ** 2 + 1e-9)


def band(y: Array, top: Array, bottom: Array, sides: Array) -> Array:
    """Distance to the region between two curves and within `sides`."""
    return np.maximum(np.maximum(top - y, y - bottom), sides)


def paint(canvas: Array, color: Array, amount: Array) -> None:
    """Blends a color (3,) or a picture (3, h, w) over the canvas, in place."""
    for plane, part in zip(canvas, color, strict=True):
        step = part - plane
        step *= amount
        plane += step


CLOUDS = noise(Dice(1 << 40), 512, 4)
STRANDS = CLOUDS[::64].ravel()


def strands(position: Array) -> Array:
    """Noise as a function of a position across the strands: equal positions have equal values."""
    return STRANDS.take((position * 64.0).astype(np.intp) & 4095)


@dataclass
class Sitter:
    """The person, the pose and the light, and the coordinates of every pixel on the head."""

    dice: Dice
    feminine: bool
    age: float  # 0 young .. 1 old
    skin: Array
    hair: Array
    style: Style
    smile: float
    wide: float  # half the width of the face
    chin: float  # distance below the eyes
    yaw: float
    shift: float  # horizontal shift of the skull behind the face, by yaw
    light: Array  # direction
    key: Array  # color of the directed light
    fill: Array  # color of the light from everywhere
    x: Array  # (218, 178), coordinates in the plane of the picture, upright with the head
    y: Array
    u: Array  # coordinates on the face, turned with it
    v: Array


def sitter(dice: Dice) -> Sitter:
    """Chooses a person, a pose and a light, and maps the pixels to the head."""
    feminine, age, tone = dice.chance(0.56), dice.between(0, 1) ** 1.6, dice.between(0, 1) ** 1.4
    hair = linear(*dice.pick(HAIR[:3] if tone > 0.55 else HAIR)) * dice.between(0.8, 1.2)
    if age > 0.7 and dice.chance(0.7):
        hair = hair + dice.between(0.3, 1.0) * (linear(0.66, 0.65, 0.65) - hair)
    yaw, pitch, roll = dice.bell(0.21), dice.bell(0.4), dice.bell(0.05)
    scale = dice.between(0.95, 1.08)
    across = (GRID_X - CENTRE_X - dice.bell(1.3)) / scale
    down = (GRID_Y - CENTRE_Y - dice.bell(1.3)) / scale
    x = across * float(np.cos(roll)) + down * float(np.sin(roll))
    y = down * float(np.cos(roll)) - across * float(np.sin(roll))
    # The head turns like a sphere: the face moves, and its far side becomes narrower. The nose and the parts
    # below it stand out, and so move a little further.
    radius, shift = 66.0, -66.0 * float(np.sin(yaw))
    depth = np.sqrt(np.maximum(1.0 - ((x - shift) / radius) ** 2 - (y / 90.0) ** 2, 0.03))
    u = (x - shift) * float(np.cos(yaw)) - depth * (radius * float(np.sin(yaw)))
    u -= yaw * 5.0 * np.clip(y / 40.0, 0.0, 1.0)
    light = np.array([dice.pick([-1, 1]) * dice.between(0.15, 0.9), -dice.between(0.3, 0.75), 0.75])
    light = (light / np.linalg.norm(light)).astype(np.float32)
    tint = dice.between(-1, 1) * np.array([0.08, 0.0, -0.1], np.float32)
    key, fill = (1 + tint) * dice.between(0.95, 1.15), (1 - tint) * dice.between(0.17, 0.30)
    style, smile = dice.pick(WOMEN if feminine else MEN), dice.between(0, 1)
    wide = dice.between(40, 45) if feminine else dice.between(43, 48)
    chin = dice.between(61, 67) if feminine else dice.between(65, 71)
    return Sitter(
        dice=dice, feminine=feminine, age=age, skin=ramp(SKIN, tone), hair=hair, style=style,
        smile=smile, wide=wide, chin=chin, yaw=yaw, shift=shift, light=light, key=key, fill=fill,
        x=x, y=y, u=u, v=y + pitch * y * y / 250.0,
    )  # fmt: skip


def shade(sit: Sitter, height: Array, wrap: Color = (0.15, 0.15, 0.15)) -> Array:
    """The light (3, h, w) on a surface that is given by its height towards the viewer.

    Light wraps around into the shade by `wrap` per channel: on skin, red wraps furthest, since it scatters
    below the surface.
    """
    slope_y, slope_x = np.gradient(height)
    size = 1.0 / np.sqrt(slope_x * slope_x + slope_y * slope_y + 1.0)
    facing = (sit.light[2] - slope_x * sit.light[0] - slope_y * sit.light[1]) * size
    light = spread(sit.fill) * (1.0 + 0.4 * slope_y * size)  # surfaces that face up get more of it
    for plane, key, reach in zip(light, sit.key, wrap, strict=True):
        direct = facing + reach
        np.maximum(direct, 0.0, out=direct)
        direct *= key / (1.0 + reach)
        plane += direct
    return light


def background(sit: Sitter) -> Array:
    """A background out of focus (3, 218, 178): a gradient under large blurred shapes."""
    dice = sit.dice
    above, below, one, two = dice.pick(SCENES)
    angle = dice.bell(0.5)
    turned = (GRID_X / WIDTH - 0.5) * float(np.sin(angle)) + GRID_Y / HEIGHT * float(np.cos(angle))
    canvas = np.repeat(linear(*above), HEIGHT * WIDTH).reshape(3, HEIGHT, WIDTH)
    paint(canvas, linear(*below), cover(0.5 - turned))
    size = dice.between(10, 40)
    for _ in range(7):
        x, y, radius = dice.between(0, WIDTH), dice.between(0, 190), size * dice.between(0.6, 1.4)
        rows = slice(max(0, int(y - 1.4 * radius)), int(y + 1.4 * radius))
        columns = slice(max(0, int(x - 1.4 * radius)), int(x + 1.4 * radius))
        away = np.sqrt((GRID_X[:1, columns] - x) ** 2 + (GRID_Y[rows, :1] - y) ** 2)
        amount = cover(away - radius, radius * 0.7) * dice.between(0.2, 0.6)
        paint(canvas[:, rows, columns], ramp([one, two], dice.between(0, 1)), amount)
    canvas *= dice.between(0.7, 1.1) * (1.0 + 0.05 * dice.clouds())
    return canvas


def head(sit: Sitter) -> tuple[Array, Array]:
    """The distance to the outline of the head, and the position 0..1 between its middle and its edge.

    When the head turns, the forehead moves with the skull, and the chin with the face.
    """
    dice, low = sit.dice, np.clip((sit.y - 6.0) / (sit.chin - 6.0), -1.0, 1.2)
    middle = sit.shift * (0.5 - 0.42 * np.maximum(low, 0.0) - 0.2 * np.minimum(low, 0.0))
    taper = dice.between(0.25, 0.36) if sit.feminine else dice.between(0.16, 0.28)
    half = sit.wide * (1.0 - taper * np.maximum(low, 0.0) ** 2)
    power = dice.between(2.1, 2.35) if sit.feminine else dice.between(2.2, 2.5)
    tall = np.where(sit.y < 6.0, np.float32(73.0), np.float32(sit.chin - 6.0))
    reach = np.abs((sit.x - middle) / half) ** power + np.abs((sit.y - 6.0) / tall) ** power
    reach = reach ** (1.0 / power)
    return (reach - 1.0) * half, reach


@dataclass
class Mane:
    """All of the hair, without an opening for the face."""

    window: tuple[slice, slice]  # the region of the canvas that the arrays below cover
    length: float
    distance: Array  # distance to the outline of the hair
    across: Array  # position -1..1 between its sides
    color: Array


def mane(sit: Sitter) -> Mane:
    """Makes the hair: one mass that hangs from a round crown, with lit strands and a band of shine."""
    dice, flow = sit.dice, sit.style.flow
    volume, length = dice.between(*sit.style.volume), dice.between(*sit.style.length)
    window = np.s_[16 : min(HEIGHT, int(136 + 1.1 * length)), 0:WIDTH]
    wide, tall = sit.wide + volume, 60.0 + 0.7 * volume
    x, y = sit.x[window] - sit.shift * (0.72 if length > 0 else 0.6), sit.y[window] + 12.0
    down = y / tall
    up = np.minimum(down, 0.0)
    # Short hair closes in on the skull towards the ears, long hair widens towards its ends.
    flare = dice.between(0.0, 0.14) if length > 0 else -(volume + 1.0) / 13.0
    half, high = wide + flare * np.maximum(y, 0.0), up * up
    across = x / half
    distance = (np.sqrt(across * across + high) - 1.0) * half
    across /= np.sqrt(np.maximum(1.0 - high, 0.02))
    square = across * across

    knots, phase = dice.clouds()[window], dice.between(0, 6)
    parted = across + dice.bell(0.25) * up
    strand = 3.0 * across
    if flow == "part":  # arcs that start at the parting and end as upright strands
        strand = np.sqrt(parted * parted + 0.6 * high) * 2.5 + np.sign(parted) * 20.0
    elif flow == "tousle":
        strand = 2.2 * across + dice.bell(1.5) * down + 0.07 * knots
    bend = dice.between(*sit.style.wave) * np.clip(down + 0.8, 0.0, 1.0)
    strand += bend * np.sin(down * dice.between(5, 8) + phase + np.sign(parted)) + 40.0 + phase
    if flow != "curl":
        line = 0.65 * strands(strand) + 0.45 * strands(strand * 2.1 + 0.2 * down)
    else:
        curl_y = 0.42 * y + 1.3 * knots[::-1]
        curl_x = 0.42 * x + 1.3 * knots + 0.5 * np.sin(curl_y)
        line = 1.1 * np.sin(curl_x) * np.sin(curl_y) + 0.3 * knots
    distance += 1.8 * line if flow == "curl" else 0.5 * line + 0.4 * knots
    ends = y - 12.0 - length + 8.0 * square - 4.0 * knots[:, ::-1]
    distance = np.maximum(distance, ends * 0.4)

    light = shade(sit, 44.0 * np.sqrt(np.maximum(1.0 - 0.85 * (square + high), 0.03)))
    if flow == "part":
        line -= 0.8 * cover(np.abs(parted) - 0.01, 0.1) * (up < -0.3)
    shine = np.exp(-(((down + 0.6 - 0.35 * square + 0.04 * line) / 0.15) ** 2))
    shine *= np.maximum(0.5 + 0.4 * line, 0.0) * (0.3 if flow == "curl" else 1.0)
    body = np.maximum(0.8 + 0.32 * line, 0.1)
    for plane, tint in zip(light, sit.hair, strict=True):
        plane *= tint * body + (0.35 * tint + 0.025) * shine
    return Mane(window, length, distance, across, light)


def hair_behind(sit: Sitter, canvas: Array, hair: Mane) -> None:
    canvas, x, y = canvas[:, *hair.window], sit.x[hair.window], sit.y[hair.window]
    if hair.length > 0:
        paint(canvas, hair.color * 0.45, cover(hair.distance, 2.2))
    if sit.style is BUN:
        spot = ellipse(x, y, sit.shift, -74.0, sit.dice.between(13, 19), 14.0)
        paint(canvas, hair.color * 0.9, cover(spot, 2.0))


def hair_front(sit: Sitter, canvas: Array, hair: Mane, head_distance: Array) -> None:
    """Draws the hair around the face, and the shadow that it casts."""
    dice, style, canvas = sit.dice, sit.style, canvas[:, *hair.window]
    u, v = sit.u[hair.window], sit.v[hair.window]
    line = dice.between(*style.line) + (0.0 if sit.feminine else 5.0 * sit.age)
    power = dice.between(1.8, 2.4) if style.flow == "part" else dice.between(2.3, 3.0)
    lean = 0.0 if style.flow == "fall" else dice.bell(0.15)
    edge = {"back": 0.3, "fall": 2.2, "tousle": 2.0}.get(style.flow, 0.8)
    rise = 20.0 - v + lean * u - edge * strands(hair.across * 2.5)
    half = sit.wide - (3.5 if hair.length > 0 else 1.0) + 0.1 * np.maximum(v - 20.0, 0.0)
    reach = np.abs(u / half) ** power + np.clip(rise / (20.0 + line), 0.0, 3.0) ** power
    opening = (reach ** (1.0 / power) - 1.0) * half * 0.8
    if not sit.feminine:  # the hairline lies further back at the temples
        opening -= 5.0 * bump(np.abs(u), v, 24.0, -line, 9.0, 14.0)
    distance = np.maximum(hair.distance, -opening)
    canvas *= 1.0 - 0.4 * cover(distance - 2.5, 11.0) * cover(head_distance[hair.window])
    paint(canvas, hair.color, cover(distance, 2.0))


def body(sit: Sitter, canvas: Array, head_distance: Array) -> None:
    """Draws neck, shoulders and clothes, which stay upright when the head tilts."""
    dice = sit.dice
    x, y = GRID_X[BODY] - CENTRE_X - sit.shift * 0.55, GRID_Y[BODY]
    canvas = canvas[:, *BODY]
    thick = dice.between(18, 21) if sit.feminine else dice.between(24, 29)
    flank = thick + 0.011 * np.maximum(y - 176.0, 0.0) ** 2
    bow = dice.between(0.0038, 0.005) if sit.feminine else dice.between(0.0028, 0.004)
    fall = dice.between(186, 193) + bow * x * x
    round_neck = flank * np.sqrt(np.clip(1.0 - (x / flank) ** 2, 0.04, 1.0))
    height = 0.8 * round_neck + 9.0 * np.log1p(np.exp(np.clip((y - fall) / 4.0, -9, 9)))
    for hand in (-1, 1):
        sinew = (x - hand * (4 + (212 - y) * 0.45)) / 4.0
        height += 2.2 * np.exp(-sinew * sinew)
    # The head's shadow on the neck is its outline, moved down and away from the light.
    cast = np.roll(head_distance, (13, -round(9 * float(sit.light[0]))), (0, 1))[BODY]
    flesh = shade(sit, height, FLESH)
    flesh *= 1.0 - 0.62 * cover(cast - 3.0, 20.0)
    flesh *= spread(sit.skin)
    shape = np.minimum(np.abs(x) - flank, fall - y)
    paint(canvas, flesh, cover(shape, 1.6))

    women, men = ["round", "scoop", "vee"], ["round", "vee", "suit", "suit"]
    kind = dice.pick(women if sit.feminine else men)
    weave = dice.clouds()[BODY]
    light = shade(sit, height + 1.8 * weave) * (1.0 + 0.06 * weave)
    cloth = dice.cloth() * (0.3 if kind == "suit" else 1.0)
    if kind in ("round", "scoop"):
        wide, deep = (3.0, dice.between(9, 15)) if kind == "round" else (14.0, dice.between(16, 26))
        neckline = ellipse(x, y, 0.0, 190.0, thick + wide, deep)
    else:
        deep = dice.between(212, 224) if kind == "vee" else dice.between(226, 250)
        neckline = (np.abs(x) - (deep - y) * (thick + 6.0) / (deep - 183.0)) * 0.8
    over = fall - 2.5 - y
    if kind == "suit":
        collar = np.maximum(over + 1.0, (204.0 - y) * thick / 18.0 - np.abs(x))
        collar = np.maximum(collar, np.abs(x) - thick - 8.0)
        shirt = dice.pick([linear(0.92, 0.92, 0.92), linear(0.7, 0.8, 0.9), dice.cloth()])
        paint(canvas, spread(shirt) * light, cover(collar))
        canvas *= 1.0 - 0.35 * cover(np.abs(collar + 1.0) - 0.5) * cover(np.abs(x) - thick)
        if dice.chance(0.7):
            tie = np.maximum(np.abs(x) - 3.5 - 0.12 * np.maximum(y - 205.0, 0.0), 202.0 - y)
            paint(canvas, spread(dice.cloth()) * light, cover(tie))
    worn = np.maximum(over, -neckline)
    canvas *= 1.0 - 0.35 * cover(worn - 2.0, 8.0) * cover(np.minimum(shape, over))
    paint(canvas, spread(cloth) * light, cover(worn, 1.4))
    canvas *= 1.0 - 0.3 * cover(np.abs(worn + 2.6) - 0.5) * cover(worn)


def ears(sit: Sitter, canvas: Array) -> None:
    canvas, x, y = canvas[:, *EARS], sit.x[EARS], sit.y[EARS]
    for hand in (-1.0, 1.0):
        middle = sit.shift * 0.55 + hand * (sit.wide + 0.5)
        outer = ellipse(x + hand * 0.15 * (y - 6.0), y, middle, 7.0, 6.5, 13.5)
        hollow = np.exp(-(((outer + 4.2) / 1.6) ** 2))
        relief = 6.0 * np.sqrt(np.clip(-outer / 6.0, 0.0, 1.0) + 0.02) - 3.0 * hollow
        tint = sit.skin * np.array([0.95, 0.74, 0.7], np.float32)
        paint(canvas, spread(tint) * shade(sit, relief, FLESH), cover(outer, 1.6))


def face(sit: Sitter, canvas: Array, head_distance: Array, reach: Array) -> float:
    """Draws the head as a lit relief; returns the distance of the tip of the nose below the eyes."""
    dice, u, v, side = sit.dice, sit.u[FACE], sit.v[FACE], np.abs(sit.u[FACE])
    tip, broad = dice.between(21, 27), dice.between(0.85, 1.2) * (0.92 if sit.feminine else 1.08)
    along = np.clip((v + 8.0) / (tip + 8.0), 0.0, 1.0)
    ridge = u - sit.yaw * 11.0 * along * along  # the nose stands out, so it moves further
    relief = 50.0 * np.sqrt(np.maximum(1.0 - reach * reach, 0.0) + 0.012)
    carved = relief[FACE]
    bridge = np.exp(-((ridge / (4.0 * broad + 2.8 * along)) ** 2))
    carved += dice.between(8.0, 11.0) * along * cover(v - tip - 3.0, 13.0) * bridge
    for tall, x, middle, below, wide, high in (
        (3.8, ridge, 0.0, tip, 5.5 * broad, 5.5),
        (3.4, np.abs(ridge), 7.0 * broad, tip + 1.5, 3.2, 4.0),
        (-7.0 + 2.0 * sit.feminine, side, 16.0, -1.0, 11.0, 8.0),  # eye sockets
        (3.6 - 1.8 * sit.feminine, side, 17.0, -13.0, 15.0, 5.0),  # brows
        (3.5, side, 19.5, 0.0, 8.5, 5.5),  # eyeballs
        (3.5 + 2.0 * sit.smile, side, 25.0, 20.0, 12.0, 10.0),  # cheeks
        (4.0, u, 0.0, 40.0, 19.0, 13.0),  # jaws
        (-1.8, u, 0.0, sit.chin - 19.0, 9.0, 3.5),
        (5.5, u, 0.0, sit.chin - 10.0, 11.0, 8.0),  # chin
    ):
        carved += tall * bump(x, v, middle, below, wide, high)
    fold = (side - 11.0 - 0.5 * (v - tip)) / 2.4  # from the nose to the corners of the mouth
    fold = np.exp(-fold * fold - ((v - tip - 9.0) / 9.0) ** 2)
    carved -= fold * (0.3 + 1.2 * sit.smile + 1.0 * sit.age)
    if sit.age > 0.4:
        furrows = np.cos(v * 1.05 + 0.002 * u * u) * bump(u, v, 0, -28, 24, 9)
        carved -= 0.8 * (sit.age - 0.4) * furrows

    light = shade(sit, relief[HEAD], FLESH)
    gleam = np.maximum(light[1] - 0.85, 0.0) ** 2 * dice.between(0.05, 0.3)
    light *= 1.0 + 0.025 * dice.clouds()[HEAD]
    light *= spread(sit.skin)
    light += gleam
    paint(canvas[:, *HEAD], light, cover(head_distance[HEAD], 1.6))

    canvas, inside = canvas[:, *FACE], cover(head_distance[FACE], 1.6)
    blush = 0.7 * bump(side, v, 26, 21, 13, 10) + 0.8 * bump(ridge, v, 0, tip, 8, 6)
    canvas *= 1.0 - spread(BLUSH) * (inside * blush * dice.between(0.2, 0.65))
    canvas *= 1.0 - spread(HOLLOW) * (inside * bump(side, v, 17, 1, 12, 9))
    if dice.chance(0.12):
        freckles = cover(1.5 - dice.clouds()[FACE], 0.8) * bump(u, v, 0, 14, 30, 13)
        canvas *= 1.0 - 0.3 * inside * freckles
    nostrils = bump(np.abs(ridge), v, 4.6 * broad, tip + 4.5, 2.3 * broad, 1.5)
    paint(canvas, sit.skin * 0.1, 0.6 * nostrils)
    return tip


def eyes(sit: Sitter, picture: Array) -> None:
    dice = sit.dice
    painted = sit.feminine and dice.chance(0.75)
    powder = dice.pick([sit.skin * 0.4, sit.skin * 0.25, dice.cloth() * sit.skin])
    half, upper, lower = dice.between(9.2, 10.6), dice.between(4.0, 5.6), dice.between(2.4, 3.4)
    upper -= 0.9 * sit.smile
    iris = ramp(IRIS, dice.between(0.0, 0.3 if sit.skin[0] < 0.5 else 1.0))
    radius, look = dice.between(4.2, 4.8), dice.bell(0.8) + sit.yaw
    tilt, lift, arch = dice.between(-0.04, 0.14), dice.between(12.5, 16), dice.between(2, 5)
    thick = dice.between(0.8, 1.6) + (0.0 if sit.feminine else 0.8)
    white = spread(linear(0.92, 0.9, 0.89)) * float(0.25 + 0.65 * sit.key.mean())
    for hand, window in EYE.items():
        canvas = picture[:, *window]
        x = sit.u[window] * hand - 19.5  # towards the temple
        y = sit.v[window] + tilt * x
        inside = np.maximum(1.0 - (x / half) ** 2, 0.0)
        lid, base = -upper * np.sqrt(inside) * (0.55 + 0.45 * inside), lower * inside
        flat = np.abs(x) - half
        if painted:
            paint(canvas, powder, 0.6 * bump(x, y, 1.0, -upper - 1.5, half, 4.5))
        crease = np.maximum(np.abs(y - lid + 3.2 + 0.06 * x) - 0.5, flat)
        paint(canvas, sit.skin * 0.3, 0.55 * cover(crease, 2.0))
        bag = (0.2 + 0.3 * sit.age) * bump(x, y, 0.0, lower + 4.5, half, 2.0)
        paint(canvas, sit.skin * 0.35, bag)
        amount = cover(band(y, lid, base, flat))
        dim = np.clip(0.5 + (y - lid) * 0.16, 0.3, 1.0) * (1.0 - 0.45 * (x / half) ** 2)
        paint(canvas, white * dim, amount)
        away = np.hypot(x - look * hand, y + 0.6)
        paint(canvas, spread(iris) * ((0.7 + 0.15 * y) * dim), amount * cover(away - radius))
        paint(canvas, iris * 0.1, 0.8 * amount * cover(np.abs(away - radius) - 0.4, 1.4))
        paint(canvas, linear(0.04, 0.03, 0.03), amount * cover(away - radius * 0.45))
        glint = np.hypot(x - (look + float(np.sign(sit.light[0])) * 1.5) * hand, y + 2.1)
        paint(canvas, linear(1, 1, 1), 0.95 * amount * cover(glint - 1.0))
        lash = np.abs(y - lid + 0.3) - (0.8 + 0.4 * painted) * (0.8 + 0.05 * x)
        paint(canvas, sit.hair * 0.08 + 0.004, 0.92 * cover(np.maximum(lash, flat - 1.3 * painted)))
        rim = np.maximum(np.abs(y - base - 0.2) - 0.4, flat)
        paint(canvas, sit.skin * 0.2, (0.75 if painted else 0.5) * cover(rim))
        paint(canvas, linear(0.75, 0.45, 0.42), 0.5 * bump(x, y, 0.8 - half, 0.3, 1.5, 1.2))
        # The brow rises from the nose, bends, thins towards the temple, and is made of hairs.
        along = np.clip((x + 11.0) / 25.0, 0.0, 1.0)
        curve = -lift - arch * np.sin(along * 2.4) + 3.0 * np.maximum(along - 0.55, 0.0)
        stroke = np.maximum(np.abs(y - curve) - thick * (1.6 - along), np.abs(x - 1.5) - 12.5)
        hairs = 0.74 + 0.16 * strands(x * 0.3 + y * 0.25)
        paint(canvas, sit.hair * 0.45, cover(stroke, 2.6) * np.minimum(hairs, 0.95))


def mouth(sit: Sitter, canvas: Array) -> None:
    dice, canvas, smile = sit.dice, canvas[:, *MOUTH], sit.smile
    u, v = sit.u[MOUTH], sit.v[MOUTH]
    half, level = dice.between(14.0, 16.0) + 4.0 * smile, dice.between(37, 40)
    gap = dice.between(4.0, 8.0) * smile if smile > 0.4 else dice.pick([0.0, 0.0, 0.0, 4.0])
    full = dice.between(0.8, 1.2) * (1.1 if sit.feminine else 0.85)
    lips = sit.skin * np.array([0.8, 0.42, 0.42], np.float32)
    painted = sit.feminine and dice.chance(0.7)
    if painted:
        lips = 0.25 * lips + 0.75 * linear(*dice.pick(LIPSTICK)) * float(0.4 + 0.6 * sit.skin[0])
    part = np.clip(1.0 - (u / half) ** 2, 0.0, 1.0)
    line = level + (1.0 + 4.5 * smile) * (part - 0.6)  # the corners of a smile lie higher
    roof, floor = line - 0.35 * gap * part, line + 0.65 * gap * part**0.8
    bow = 1.0 - 0.3 * np.exp(-((u / 2.6) ** 2))
    top, bottom = roof - 4.0 * full * part**0.9 * bow, floor + 5.4 * full * part**0.7
    flat = np.abs(u) - half
    lit = float(0.25 + 0.7 * sit.key.mean()) * (1.0 + 0.35 * float(sit.light[0]) * u / half)
    under = bump(u, v, 0.0, level + 6.0 + 0.65 * gap + 5.0 * full, half * 0.6, 2.4)
    paint(canvas, sit.skin * 0.3, 0.4 * under)
    paint(canvas, spread(lips) * (0.72 * lit), 0.9 * cover(band(v, top, roof, flat), 1.6))
    rounded = 1.05 - 0.5 * np.clip((v - floor) / (5.4 * full) - 0.3, 0.0, 1.0)
    paint(canvas, spread(lips) * (rounded * lit), 0.9 * cover(band(v, floor, bottom, flat), 1.6))
    gloss = bump(u, v, sit.light[0] * 5.0, level + 0.7 + 0.65 * gap + 2.6 * full, half * 0.4, 1.2)
    paint(canvas, linear(1, 0.92, 0.9), (0.32 if painted else 0.16) * gloss)
    if gap:
        inside = band(v, roof, floor, flat)
        paint(canvas, linear(0.22, 0.06, 0.06), cover(inside))
        teeth = np.maximum(inside, v - roof - min(4.8, 0.7 * gap + 0.8))
        dim = (1.0 - 0.75 * (u / half) ** 2) * (1.0 - 0.12 * np.abs(np.sin(u * 0.62)) ** 8)
        paint(canvas, spread(linear(0.92, 0.9, 0.86)) * (dim * lit), cover(teeth, 1.0))
        tongue = np.maximum(inside + 0.8, roof + 0.8 * gap - v)
        paint(canvas, linear(0.6, 0.25, 0.25), 0.7 * cover(tongue, 2.5))
    seam = np.maximum(np.abs(v - roof) - 0.4, flat)
    paint(canvas, lips * 0.1, (0.35 if gap else 0.8) * cover(seam, 1.6))
    corner = bump(np.abs(u), v, half, level - 0.6 - 2.7 * smile, 2.0, 1.6)
    paint(canvas, sit.skin * 0.2, 0.5 * corner)


def beard(sit: Sitter, canvas: Array, head_distance: Array, tip: float) -> None:
    dice, u, v, canvas = sit.dice, sit.u[HEAD], sit.v[HEAD], canvas[:, *HEAD]
    kind = dice.pick(["full", "full", "stubble", "stubble", "goatee", "moustache"])
    bare = ellipse(u, v, 0.0, 41.0, 15.5, 7.0)  # the lips
    shape = ellipse(u, v, 0.0, tip + 9.0, 17.0, 4.5)
    if kind == "goatee":
        shape = np.minimum(shape, ellipse(u, v, 0.0, 54.0, 17.0, 17.0))
    elif kind != "moustache":
        cheek = tip + 13.0 - 0.02 * np.maximum(np.abs(u) - 8.0, 0.0) ** 2 - v
        shape = np.minimum(shape, cheek)
    shape = np.maximum(np.maximum(shape, -bare), head_distance[HEAD])
    speckle = dice.clouds()[HEAD]
    texture = np.clip(0.8 + 0.2 * speckle + 0.15 * strands(u * 0.25 + 0.04 * v), 0.2, 1.0)
    amount = (0.4 if kind == "stubble" else 0.88) * dice.between(0.8, 1.0)
    paint(canvas, spread(sit.hair) * (0.5 + 0.15 * speckle), cover(shape, 7.0) * texture * amount)


def glasses(sit: Sitter, canvas: Array) -> None:
    dice, canvas, u, v = sit.dice, canvas[:, *GLASSES], sit.u[GLASSES], sit.v[GLASSES] - 2.0
    frame = dice.pick([linear(0.07, 0.06, 0.06), linear(0.28, 0.15, 0.08), dice.cloth() * 0.5])
    thick, power, side = dice.between(0.7, 1.6), dice.between(2.0, 4.0), np.abs(u)
    wide, tall, dark = dice.between(13.5, 16), dice.between(10.5, 13.5), dice.chance(0.2)
    reach = np.abs((side - 19.5) / wide) ** power + np.abs(v / tall) ** power
    lens = (reach ** (1.0 / power) - 1.0) * tall
    glare = np.clip(0.5 + (u * np.sign(sit.light[0]) - v * 1.5) / 40.0, 0.0, 1.0)
    tint = spread(linear(0.15, 0.14, 0.15)) + 0.12 * glare**3 if dark else linear(0.8, 0.85, 0.9)
    paint(canvas, tint, cover(lens) * (0.93 if dark else 0.12 * glare))
    paint(canvas, sit.skin * 0.2, 0.3 * cover(np.abs(lens - 1.5) - thick, 3.5))  # its shadow
    bridge = np.maximum(np.abs(v + 3.5 - 0.12 * side) - thick, side + wide - 19.5)
    arm = np.maximum(np.abs(v + 4.0) - thick, 19.0 + wide - side)
    arm = np.maximum(arm, np.abs(sit.x[GLASSES] - sit.shift * 0.55) - sit.wide)
    paint(canvas, frame, cover(np.minimum(np.minimum(np.abs(lens) - thick, bridge), arm)))
    paint(canvas, frame + 0.2, 0.4 * cover(np.maximum(np.abs(lens + 0.4) - 0.4, v + tall * 0.5)))


def hat(sit: Sitter, canvas: Array) -> None:
    dice, felt, canvas = sit.dice, sit.dice.cloth(), canvas[:, *HAT]
    x, y = sit.x[HAT] - sit.shift * 0.68, sit.y[HAT]
    room, knitted = max(sit.style.volume[1], 6), dice.chance(0.5)
    wide, tall = sit.wide + room + 1.0, 47.0 + 0.7 * room + dice.between(0, 4)
    edge = 0.003 * x * x - 28.0
    crown = ellipse(x, np.minimum(y, -28.0), 0.0, -28.0, wide, tall)
    dome = np.maximum(crown, y - edge)
    inner = np.maximum(1.0 - (x / wide) ** 2 - ((y + 28.0) / tall) ** 2, 0.02)
    ribs = 0.5 * np.sin(x * 1.1) if knitted else 0.0
    cloth = spread(felt) * shade(sit, 40.0 * np.sqrt(inner) + ribs)
    shadow = np.maximum(np.abs(y - edge) - 9.0, np.abs(x) - sit.wide + 6.0)
    canvas *= 1.0 - 0.5 * cover(shadow, 18.0)
    paint(canvas, cloth, cover(dome, 1.6))
    if knitted:
        fold = np.maximum(np.abs(y - edge + 6.0) - 8.0, crown - 1.5)
        paint(canvas, cloth * 0.75, cover(fold, 1.6))
    else:
        paint(canvas, cloth * 0.3, cover(np.maximum(edge - 12.0 - y, dome)))
        brim = ellipse(x, y - 0.003 * x * x, 0.0, -30.0, wide + dice.between(14, 34), 7.0)
        paint(canvas, spread(felt) * (0.8 - 0.04 * (y + 30.0)), cover(brim, 1.6))


def develop(sit: Sitter, canvas: Array) -> Array:
    """Converts linear light to a photograph: exposure, vignette, gamma and film grain."""
    dice = sit.dice
    canvas *= dice.between(0.9, 1.12) * VIGNETTE
    picture = 255.0 * np.sqrt(np.maximum(canvas, 0.0, out=canvas))
    picture += dice.between(2.5, 7.5) * (dice.field(HEIGHT, WIDTH) - 0.5) + 0.5
    np.minimum(np.maximum(picture, 0.0, out=picture), 255.0, out=picture)
    return np.ascontiguousarray(picture.astype(np.uint8).transpose(1, 2, 0))


def draw(index: int) -> Array:
    """Draws portrait `index`: RGB (218, 178, 3) uint8. The same index gives the same picture."""
    sit = sitter(Dice(index))
    canvas, (distance, reach) = background(sit), head(sit)
    hair = None if sit.style is BALD else mane(sit)
    if hair:
        hair_behind(sit, canvas, hair)
    body(sit, canvas, distance)
    ears(sit, canvas)
    tip = face(sit, canvas, distance, reach)
    mouth(sit, canvas)
    if not sit.feminine and sit.dice.chance(0.5):
        beard(sit, canvas, distance, tip)
    eyes(sit, canvas)
    if hair:
        hair_front(sit, canvas, hair, distance)
    if sit.dice.chance(0.16):
        glasses(sit, canvas)
    if sit.style.flow != "curl" and sit.dice.chance(0.08):
        hat(sit, canvas)
    return develop(sit, canvas)
