"""A microscope for diffusion transformers."""
