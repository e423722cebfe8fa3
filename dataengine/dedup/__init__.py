"""Finding duplicates: exact classes, and verified near-duplicate pairs of captions and of images."""
