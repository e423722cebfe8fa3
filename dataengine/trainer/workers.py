"""The one seam to torch: its IterableDataset, and which DataLoader worker this process is.

Without torch installed there are no DataLoader workers, and the reader iterates all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

Item = TypeVar("Item", covariant=True)

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset as IterableDataset
else:
    try:
        from torch.utils.data import IterableDataset as IterableDataset
    except ImportError:

        class IterableDataset(Generic[Item]):
            """Stands in for torch's class, which only torch's DataLoader asks for."""


def worker_info() -> Any | None:
    """torch's WorkerInfo in a DataLoader worker; None in every other process."""
    try:
        from torch.utils.data import get_worker_info
    except ImportError:
        return None
    return get_worker_info()
