"""The command line. Commands parse, call and print; heavy imports happen inside them, so that `--help` is quick."""
