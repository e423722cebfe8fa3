"""Preprocess: upright RGB pixels in, what an image tower reads out, in two variants that provenance names.

`exact` is open_clip's own transform, by Pillow. `fast` is the same arithmetic by torch, in a sixth of the time: both
resize by the same antialiased kernel, and one pixel in a hundred differs by a level of 255, one in 100,000 by two.
Either way there are two halves: `prepare` runs in threads that decode and gives bytes, `finish` runs beside the tower
and lays a batch out as floats. On a GPU the fast variant resizes in `finish`, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from dataengine.imaging import Reduced

MIN_SIDE = 512
"""Short side that a picture keeps when it is halved while decoded; towers read 224 to 512 pixels."""
MAX_ASPECT = 16
"""Longer images are cut to their middle: a 1 × 20,000 image scaled to a short side of 224 takes 3 GB."""


@dataclass(frozen=True)
class Preprocess:
    """A model's way from pixels to its input; equal ones prepare the same."""

    variant: str
    """fast or exact; what open_clip's transform does beyond a plain resize is left to it, and is exact always."""
    size: tuple[int, int]
    """Height and width that the tower reads."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    device: str
    transform: Any = field(compare=False)
    """open_clip's, up to where pixels become floats."""

    @classmethod
    def of(cls, transform: Any, shape: dict[str, Any], variant: str, device: str) -> Preprocess:
        """The variant asked for, of the transform and the preprocess_cfg that came with a model."""
        from torchvision.transforms import Compose

        size = shape["size"]
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        is_plain = shape["resize_mode"] == "squash" or (shape["resize_mode"] == "shortest" and height == width)
        return cls(
            variant if is_plain else "exact",
            (height, width),
            tuple(shape["mean"]),
            tuple(shape["std"]),
            shape["interpolation"],
            shape["resize_mode"],
            device,
            Compose(transform.transforms[:-2]),  # the last two make floats and normalise
        )

    def provenance(self) -> dict[str, Any]:
        """As plain JSON values."""
        names = ("variant", "size", "mean", "std", "interpolation", "resize_mode")
        return {name: getattr(self, name) for name in names}

    @property
    def needs_full_size(self) -> bool:
        """Whether pictures must not be halved while decoded."""
        return self.variant == "exact"

    def prepare(self, picture: Reduced) -> Any:
        """What `finish` needs of an upright picture; called in many threads at once."""
        rgb = _middle(picture.pixels)
        is_whole = picture.is_whole or rgb.shape != picture.pixels.shape
        if self.variant == "exact":
            from PIL import Image

            return np.asarray(self.transform(Image.fromarray(rgb)), np.uint8)
        if not is_whole:
            left, top, right, bottom = picture.box
            target = self._target(bottom - top, right - left)
            return self._cut(resize_box(rgb, picture.box, target, self.interpolation))
        if self.device != "cpu":
            return _pinned(rgb)
        return np.ascontiguousarray(self._cut(resize_bytes(rgb, self._target(*rgb.shape[:2]), self.interpolation)))

    def finish(self, prepared: Sequence[Any], layout: torch.memory_format) -> torch.Tensor:
        """Prepared images as a batch on the device: float32 [n, 3, height, width], normalised."""
        import torch

        if self.device != "cpu" and self.variant == "fast":
            pixels = torch.stack([self._resized_on_device(image) for image in prepared])
        else:
            batch = torch.from_numpy(np.stack(prepared))
            batch = batch.pin_memory() if self.device != "cpu" else batch
            pixels = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        # Step by step as torchvision does it, so that the exact variant has its bits.
        values = pixels.to(torch.float32, memory_format=layout).div_(255)
        mean, std = (torch.tensor(numbers, device=self.device).view(3, 1, 1) for numbers in (self.mean, self.std))
        return values.sub_(mean).div_(std)

    def _resized_on_device(self, image: torch.Tensor | NDArray[np.uint8]) -> torch.Tensor:
        import torch

        if isinstance(image, np.ndarray):  # resized already, because its edge shows less than whole pixels
            return torch.from_numpy(np.ascontiguousarray(image)).to(self.device, torch.float32).permute(2, 0, 1)
        on_device = image.to(self.device, non_blocking=True)
        height, width = image.shape[:2]
        return self._cut(resize_floats(on_device, self._target(height, width), self.interpolation)).permute(2, 0, 1)

    def _target(self, height: float, width: float) -> tuple[int, int]:
        """Height and width before the middle is cut out; torchvision's Resize rounds the long side down."""
        if self.resize_mode == "squash":
            return self.size
        side = self.size[0]
        return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)

    def _cut(self, pixels: Any) -> Any:
        """The middle [height, width, 3]; where the margin is odd, as torchvision's CenterCrop rounds it."""
        height, width = self.size
        top, left = round((pixels.shape[0] - height) / 2.0), round((pixels.shape[1] - width) / 2.0)
        return pixels[top : top + height, left : left + width]


def resize_bytes(rgb: NDArray[np.uint8], target: tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
    """`rgb` [height, width, 3] at `target` (height, width): Pillow's antialiased kernel in torch's vector code."""
    import torch

    if rgb.shape[:2] == target:
        return rgb
    planes = torch.from_numpy(rgb).permute(2, 0, 1)[None]  # channels last: the layout whose code is fast
    resized = torch.nn.functional.interpolate(planes, target, mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def resize_box(
    rgb: NDArray[np.uint8], box: tuple[float, float, float, float], target: tuple[int, int], interpolation: str
) -> NDArray[np.uint8]:
    """What `rgb` shows in `box` (left, top, right, bottom) at `target`: by Pillow, which alone takes parts of pixels.

    A JPEG of 2,049 pixels at a quarter has 513, the last of which shows a quarter; were it taken for a whole one, all
    of the picture would shift.
    """
    from PIL import Image

    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    return np.asarray(Image.fromarray(rgb).resize(target[::-1], resample, box), np.uint8)


def resize_floats(rgb: torch.Tensor, target: tuple[int, int], interpolation: str) -> torch.Tensor:
    """The same on a device that resizes floats only: uint8 [height, width, 3] in, whole numbers as float32 out.

    Rounded to bytes after each axis, because Pillow does so; in one go, overshoot at edges would differ by 7 levels.
    """
    import torch

    planes = rgb.permute(2, 0, 1)[None].to(torch.float32)
    for shape in ((planes.shape[2], target[1]), target):
        if planes.shape[2:] != shape:
            planes = torch.nn.functional.interpolate(planes, shape, mode=interpolation, antialias=True)
            planes = planes.round_().clamp_(0, 255)
    return planes[0].permute(1, 2, 0)


def _pinned(rgb: NDArray[np.uint8]) -> torch.Tensor:
    """A copy in memory that a GPU can fetch by itself."""
    import torch

    pinned = torch.empty(rgb.shape, dtype=torch.uint8, pin_memory=True)
    pinned.numpy()[:] = rgb
    return pinned


def _middle(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image, its long side cut to MAX_ASPECT times its short side around the centre."""
    height, width = rgb.shape[:2]
    most = MAX_ASPECT * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return np.ascontiguousarray(rgb[top : top + most, left : left + most])
