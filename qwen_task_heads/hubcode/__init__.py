"""The only code that travels with a published model: flat, on transformers, its dependencies and siblings."""
