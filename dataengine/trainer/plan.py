"""What a loader will do, in numbers, before a sample is read: steps, shares, and what buckets cost.

In go a view and a schedule; out come tables of plain numbers, and their text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dataengine.trainer.schedule import Schedule
from dataengine.trainer.view import View


@dataclass(frozen=True)
class Plan:
    """The plan of an epoch for `world_size` ranks."""

    view: View
    schedule: Schedule
    world_size: int

    def epoch(self) -> dict[str, int]:
        """Samples and steps of epoch 0, and the samples that it drops, pads, or takes from the next epoch."""
        steps = self.schedule.steps_left(self.schedule.start())
        draws, batch = self.schedule.epoch_draws, self.schedule.groups[0].batch
        over = steps * batch - draws if len({group.batch for group in self.schedule.groups}) == 1 else 0
        tail = self.schedule.tail
        return {
            "samples": draws,
            "steps": steps,
            "dropped": max(0, -over) if tail == "drop" else 0,
            "padded": over if tail == "pad" else 0,
            "carried": over if tail == "carry" else 0,
        }

    def streams(self) -> list[dict[str, Any]]:
        """A row per stream: its samples, its share of what is drawn, and the times that an epoch draws each sample."""
        groups, weights = self.schedule.groups, self.schedule.weights
        shares = [0.0] * len(self.view.streams)
        for group, weight in zip(groups, weights.groups, strict=True):
            within = sum(weights.streams[stream] for stream in group.streams)
            for stream in group.streams:
                shares[stream] = weight * group.batch * (weights.streams[stream] / within if within else 0.0)
        total = sum(shares)
        buckets = self.view.asked.buckets
        return [
            {
                "stream": stream.name,
                **({} if buckets is None or stream.bucket is None else {"shape": _text(buckets.shapes[stream.bucket])}),
                "samples": stream.chunks.num_rows,
                "share": share / total,
                "passes": share / total * self.schedule.epoch_draws / stream.chunks.num_rows,
            }
            for stream, share in zip(self.view.streams, shares, strict=True)
        ]

    def buckets(self) -> list[dict[str, Any]]:
        """A row per bucket: its pictures, the part of them that is cut off, and how many are scaled up."""
        sizes = {self.view.streams[group.streams[0]].bucket: group.batch for group in self.schedule.groups}
        return [
            row | {"global_batch": sizes.get(bucket, 0), "per_rank": sizes.get(bucket, 0) // self.world_size}
            for bucket, row in enumerate(self.view.fitting)
        ]

    def report(self) -> str:
        """The tables as text."""
        epoch = self.epoch()
        lines = [
            ", ".join(f"{name} {number:,}" for name, number in epoch.items() if number or name in ("samples", "steps"))
        ]
        for table in (self.streams(), self.buckets()):
            if table:
                lines += ["", *_table(table)]
        return "\n".join(lines)


def _text(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cells = [list(rows[0]), *([_cell(name, value) for name, value in row.items()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cell(name: str, value: Any) -> str:
    if name in ("share", "crop_loss", "upscaled"):
        return f"{value:.2%}"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
