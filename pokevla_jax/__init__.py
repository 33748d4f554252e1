"""PokeVLA in JAX: pre-train, adapt, evaluate and serve a small vision-language-action model."""

__version__ = "0.1.0"
