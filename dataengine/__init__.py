"""dataengine turns URL lists and existing shards into published image-text datasets that trainers read directly."""

__version__ = "0.1.0"
