"""Geometry: the papers' conventions, and that the way there and back ends where it began."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from rislib.data import Geometry, Letterbox, Stretch, geometry_for, make_batch, to_tensor
from rislib.nouns import Preprocessing, Sample

CLIP = Preprocessing(
    size=64,
    resize="letterbox",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)


def blob(height: int, width: int) -> np.ndarray:
    """A smooth shape that stays clear of the border."""
    y, x = np.mgrid[:height, :width]
    angle = np.arctan2((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5)
    radius = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5)
    return radius < 0.32 + 0.06 * np.sin(3 * angle)


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", [Letterbox, Stretch])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (480, 640, 416),
        (427, 333, 480),
        (97, 331, 416),
        (500, 61, 480),
        (61, 500, 480),
        (33, 47, 128),
        (64, 64, 64),
    ],
)
def test_a_mask_comes_back(kind: type[Geometry], height: int, width: int, size: int) -> None:
    geometry, mask = kind(height, width, size), blob(height, width)
    there = geometry.mask(mask)
    assert there.shape == (size, size) and there.dtype == np.float32
    assert there.min() >= 0 and there.max() <= 1
    back = geometry.inverse(there)
    assert back.shape == (height, width) and back.dtype == np.float32
    found = back > 0.5
    assert (found & mask).sum() / (found | mask).sum() > 0.97


def test_letterbox_has_the_corner_points_of_cris() -> None:
    """CRIS maps (0, 0), (w, 0), (0, h) to the corners of the centred picture."""
    geometry = Letterbox(height=480, width=640, size=416)
    corners = np.array([[0, 0], [640, 0], [0, 480]])
    mapped = corners * geometry.scale + geometry.offset
    np.testing.assert_allclose(mapped, [[0, 52], [416, 52], [0, 364]], atol=1e-9)
    tall = Letterbox(height=100, width=25, size=200)
    np.testing.assert_allclose(
        np.array([[0, 0], [25, 100]]) * tall.scale + tall.offset, [[75, 0], [125, 200]]
    )


def test_stretch_maps_outer_edges_to_outer_edges() -> None:
    geometry = Stretch(height=30, width=70, size=48)
    edges = np.array([[-0.5, -0.5], [69.5, 29.5]])
    np.testing.assert_allclose(edges * geometry.scale + geometry.offset, [[-0.5, -0.5], [47.5, 47.5]])


def cubic_weight(distance: float) -> float:
    """The cubic convolution kernel with a = -0.75, as in OpenCV's `interpolateCubic`."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def linear_weight(distance: float) -> float:
    return max(0.0, 1 - abs(distance))


def warp_affine(plane: np.ndarray, geometry: Geometry, weight: object, border: float) -> np.ndarray:
    """What `cv2.warpAffine` computes, pixel by pixel: dst(x', y') = src((x' - offset) / scale)."""
    result = np.zeros((geometry.size, geometry.size))
    (scale, _), (offset_x, offset_y) = geometry.scale, geometry.offset
    for i in range(geometry.size):
        for j in range(geometry.size):
            y, x = (i - offset_y) / scale, (j - offset_x) / scale
            for row in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for column in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                    inside = 0 <= row < geometry.height and 0 <= column < geometry.width
                    value = plane[row, column] if inside else border
                    result[i, j] += weight(y - row) * weight(x - column) * value
    return result


@pytest.mark.parametrize(("height", "width"), [(19, 26), (40, 11)])
def test_letterbox_samples_as_opencv_does(height: int, width: int) -> None:
    image, mask = noise(height, width), blob(height, width)
    geometry = Letterbox(height, width, 24, colour=(123, 117, 104))
    for channel, border in enumerate(geometry.colour):
        expected = warp_affine(np.asarray(image)[..., channel], geometry, cubic_weight, border)
        found = np.asarray(geometry.image(image), dtype=float)[..., channel]
        assert np.abs(found - expected.clip(0, 255)).max() < 0.51  # rounded to whole values
    np.testing.assert_allclose(geometry.mask(mask), warp_affine(mask, geometry, linear_weight, 0), atol=1e-4)


def test_letterbox_inverse_samples_as_opencv_does() -> None:
    """A square picture's inverse is the forward transform of the opposite scale."""
    there, back = Letterbox(17, 17, 24), Letterbox(24, 24, 17)
    probability = np.random.default_rng(0).random((24, 24), dtype=np.float32)
    expected = warp_affine(probability, back, cubic_weight, 0)
    np.testing.assert_allclose(there.inverse(probability), expected, atol=1e-4)


@pytest.mark.parametrize("kind", [Letterbox, Stretch])
def test_nothing_changes_at_the_same_size(kind: type[Geometry]) -> None:
    geometry, image, mask = kind(64, 64, 64), noise(64, 64), blob(64, 64)
    assert (np.asarray(geometry.image(image)) == np.asarray(image)).all()
    assert (geometry.mask(mask) == mask).all()
    probability = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    np.testing.assert_allclose(geometry.inverse(probability), probability, atol=1e-6)


@pytest.mark.parametrize("kind", [Letterbox, Stretch])
def test_wrong_sizes_are_refused(kind: type[Geometry]) -> None:
    geometry = kind(30, 40, 64)
    with pytest.raises(ValueError, match="30, 40"):
        geometry.image(noise(40, 30))
    with pytest.raises(ValueError, match="30, 40"):
        geometry.mask(blob(40, 30))
    with pytest.raises(ValueError, match="64, 64"):
        geometry.inverse(np.zeros((32, 32)))
    with pytest.raises(ValueError, match="positive"):
        kind(0, 40, 64)


def test_to_tensor_normalises_and_pads_with_the_mean() -> None:
    tensor = to_tensor(Image.new("RGB", (64, 32), (255, 0, 51)), CLIP)
    assert tensor.shape == (3, 64, 64) and tensor.dtype == torch.float32
    expected = [(value - m) / s for value, m, s in zip((1, 0, 0.2), CLIP.mean, CLIP.std, strict=True)]
    torch.testing.assert_close(tensor[:, 32, 32], torch.tensor(expected))
    assert tensor[:, 0, 0].abs().max() < 0.01


def test_geometry_for_refuses_unknown_ways() -> None:
    with pytest.raises(ValueError, match="crop"):
        geometry_for(Preprocessing(64, "crop", CLIP.mean, CLIP.std), 10, 10)


def sample(height: int, width: int, expression: str, count: int | None = None) -> Sample:
    mask = blob(height, width)
    instances = None if count is None else np.stack([mask] * count)
    return Sample(noise(height, width), expression, mask, 1, 2, 3, 4, "val", "cat", instances=instances)


def tokenize(expressions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.tensor([[len(words), 0] for words in expressions])
    return tokens, tokens != 0


def test_batches() -> None:
    samples = [sample(30, 50, "one"), sample(64, 64, "three")]
    batch = make_batch(samples, CLIP, tokenize)
    assert batch.image.shape == (2, 3, 64, 64) and batch.mask.shape == (2, 1, 64, 64)
    assert batch.tokens.tolist() == [[3, 0], [5, 0]] and batch.token_mask.tolist() == [[True, False]] * 2
    assert batch.instances is None
    for row, member in enumerate(samples):
        geometry = geometry_for(CLIP, *member.mask.shape)
        assert (batch.mask[row, 0].numpy() == geometry.mask(member.mask)).all()
        torch.testing.assert_close(batch.image[row], to_tensor(member.image, CLIP))
    with pytest.raises(ValueError):
        make_batch([], CLIP, tokenize)


def test_a_picture_that_several_samples_show_is_in_the_batch_once() -> None:
    first, other = sample(30, 50, "one"), replace(sample(64, 64, "three"), image_id=7)
    batch = make_batch(
        [first, other, replace(first, expression="three")], CLIP, tokenize, share_pictures=True
    )
    assert batch.picture.tolist() == [0, 1, 0] and batch.image.shape == (2, 3, 64, 64)
    alone = make_batch([first, other], CLIP, tokenize, share_pictures=True)
    assert alone.picture is None
    torch.testing.assert_close(batch.image, alone.image)
    torch.testing.assert_close(batch.mask[[0, 1]], alone.mask)
    torch.testing.assert_close(batch.mask[2], batch.mask[0])


def test_instances_are_filled_up_with_empty_masks() -> None:
    batch = make_batch([sample(64, 64, "a", 1), sample(64, 64, "b", 3)], CLIP, tokenize)
    assert batch.instances.shape == (2, 3, 64, 64)
    assert batch.instances.sum(dim=(2, 3)).gt(0).tolist() == [[True, False, False], [True, True, True]]
    assert make_batch([sample(64, 64, "a", 1), sample(64, 64, "b")], CLIP, tokenize).instances is None


def test_a_picture_far_too_large_is_averaged_not_sampled() -> None:
    """Every second pixel black: at an eighth of the size that is gray, not a pattern of its own."""
    board = np.indices((512, 512)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(board[..., None], 3, axis=2).astype(np.uint8))
    small = np.asarray(Letterbox(512, 512, 64).image(image)).astype(int)
    assert abs(small[2:-2, 2:-2] - 127.5).max() < 3


def test_averaging_moves_nothing() -> None:
    """A large disc comes back where it was, at sizes that blocks do not divide."""
    y, x = np.mgrid[:431, :613]
    disc = (x - 350) ** 2 + (y - 180) ** 2 < 120**2
    geometry = Letterbox(431, 613, 96)
    back = geometry.inverse(geometry.mask(disc)) > 0.5
    assert (back & disc).sum() / (back | disc).sum() > 0.97
    rows, columns = back.nonzero()
    assert abs(columns.mean() - 350) < 0.5 and abs(rows.mean() - 180) < 0.5
