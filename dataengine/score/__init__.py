"""Score: images and captions in; CLIP scores, heads, embeddings and measures out."""
