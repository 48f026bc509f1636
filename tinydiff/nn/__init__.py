"""Layers and the U-Net.  Start with module.py."""

from tinydiff.nn.layers import Attention, Conv2d, CrossAttention, Embedding, GroupNorm, Linear
from tinydiff.nn.module import Module
from tinydiff.nn.text import Prompted, TextEncoder, TextUNet
from tinydiff.nn.unet import UNet

__all__ = [
    "Attention",
    "Conv2d",
    "CrossAttention",
    "Embedding",
    "GroupNorm",
    "Linear",
    "Module",
    "Prompted",
    "TextEncoder",
    "TextUNet",
    "UNet",
]
