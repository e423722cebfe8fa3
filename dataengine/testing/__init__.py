"""Rendered test material: pictures with true captions, so that tests and the quickstart need no download."""
