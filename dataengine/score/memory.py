"""Memory: how the lack of it shows in torch, OpenCV and Python, which each have a way of their own."""

from __future__ import annotations


class MemoryShort(Exception):
    """A batch did not fit the device, and batches are half as large from now on: begin the part again."""


def is_short_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory was refused, on a CPU or a device."""
    import cv2
    import torch

    if isinstance(error, cv2.error):
        return bool(error.code == cv2.Error.StsNoMem)
    # On a CPU torch raises no error of its own for it.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
