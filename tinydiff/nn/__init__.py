"""Layers and the U-Net.  Read next: module.py."""

from tinydiff.nn.layers import Attention, Conv2d, Embedding, GroupNorm, Linear
from tinydiff.nn.module import Module
from tinydiff.nn.unet import UNet

__all__ = ["Attention", "Conv2d", "Embedding", "GroupNorm", "Linear", "Module", "UNet"]
