"""Stable Diffusion: the U-Net of any pipeline of diffusers, fine-tuned on latents and prompts."""
