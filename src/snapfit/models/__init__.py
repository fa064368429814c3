"""What differs between architectures: opening, describing and reading models."""
