"""The only code that travels with a published model. Flat; imports torch, transformers and siblings only."""
