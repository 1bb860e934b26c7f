"""What an IR is: contract, lineage, embeddings, and how much work the model is."""
