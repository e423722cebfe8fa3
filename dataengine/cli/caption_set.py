"""`caption-set`: sign captions that no training set may hold."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from rich.console import Console

from dataengine.config.load import load_config
from dataengine.dedup.caption_set import read_captions, write_caption_set
from dataengine.dedup.signing import signature_spec
from dataengine.errors import ConfigError, InputError
from dataengine.storage.inputs import find_files, input_address
from dataengine.storage.rundir import RunDirectory


def print_caption_set(config_path: Path, files: list[str], to: str, column: str, overrides: list[str]) -> None:
    """Write the set, and say what to put into the config."""
    config = load_config(config_path, overrides)
    if config.dedup.captions is None:
        raise ConfigError(f"{config_path}: dedup.captions is null, so no caption is compared with any; set it")
    root = RunDirectory.open(config.root, config.storage_options, config.name).root
    folder = input_address(root, to).rstrip("/")
    manifest = f"{folder}/manifest.json"
    if root.exists(manifest):
        raise InputError(f"--to {folder}: holds a set already, and sets never change; name a new folder")
    addresses = find_files(root, files, "caption-set")
    captions = [chunk for address in addresses for chunk in read_captions(root, address, column).chunks]
    rows = pa.chunked_array(captions, pa.string())
    number = write_caption_set(root, folder, rows, signature_spec(config.dedup.captions, config.seed))
    console = Console(soft_wrap=True)
    console.print(f"{number:,} different captions out of {len(rows):,} rows. A run of this config drops what copies")
    console.print("them, exactly or nearly, as [bold]contaminated[/bold], once it says:\n")
    console.print(f'dedup:\n  against:\n    - "{manifest}"', highlight=False, markup=False)
