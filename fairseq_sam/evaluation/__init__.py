"""A trained model with its data: loaded, its sentences, its task's scores, its embeddings."""
