"""`python -m dataengine` is the same command line as `dataengine`."""

from dataengine.cli.app import main

if __name__ == "__main__":
    main()
