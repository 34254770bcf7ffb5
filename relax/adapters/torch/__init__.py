"""Modules of PyTorch as JAX functions: Hugging Face, torchvision, timm, your own; unchanged."""

from relax.adapters.torch._module import difference, to_jax

__all__ = ["difference", "to_jax"]
