"""Photos and videos to faces with embeddings."""
