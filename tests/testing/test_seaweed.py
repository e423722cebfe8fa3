"""A store's server that does not start says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataengine.testing.seaweed import serving


def test_a_server_that_ends_is_told_with_its_log(tmp_path: Path) -> None:
    weed = tmp_path / "weed"
    weed.write_text('#!/bin/sh\necho "no room on the disk" > "${1#-logdir=}/weed.host.INFO.1"\nexit 3\n')
    weed.chmod(0o755)
    told = pytest.raises(RuntimeError, match=r"exit code 3; the end of its log:\nno room on the disk")
    with told, serving(str(weed), tmp_path):
        raise AssertionError("nothing was served")
