"""The config of a run: strict, frozen models that say everything a published dataset depends on."""
