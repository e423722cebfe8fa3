"""The Ray-job entry point: `ray job submit -- python pipelines/build.py CONFIG [--set KEY.PATH=VALUE] [--until STAGE]`.

The same code, options and exit codes as `dataengine run`.
"""

from __future__ import annotations

import sys

from dataengine.cli.app import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    main()
