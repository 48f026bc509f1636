"""A model that draws what a text describes: a text encoder, a U-Net that attends to the text, and prompts as classes.

    tokens -> vector of the word + vector of the place -> [norm, self-attention, norm, MLP] x blocks -> norm -> features

The encoder is the transformer of Vaswani et al. 2017, with the norm before each branch.  It returns one vector a token.
The U-Net receives the vectors through cross-attention (Rombach et al. 2022).  Encoder and U-Net are trained together,
on the loss of noise prediction.

    model(x_t, t, tokens) -> eps_hat                          TextUNet, in training
    Prompted(model, prompts, negative)(x_t, t, labels)        label i is prompt i, "no label" is the negative prompt

The functions of diffusion/ see a list of prompts as a set of classes.  Guidance leads away from the negative prompt.
This is the last file of more/.
"""

from collections.abc import Sequence
from typing import Any

from tinydiff import ops
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import asarray, host_integers, xp
from tinydiff.more.layers import CrossAttention
from tinydiff.nn.layers import Embedding, GroupNorm, Linear, join_heads, split_heads
from tinydiff.nn.module import Module
from tinydiff.nn.unet import ResBlock, UNet

Text = tuple[Tensor, Any]  # features (N, M, F), and present (N, M): see CrossAttention

PADDING = 0  # the token that fills the end of a row.  It is not a word, and no token attends to it


class LayerNorm(GroupNorm):
    """Bring the features of each token to mean 0 and variance 1: a group norm with one group, on a map of one pixel."""

    def __init__(self, features: int):
        super().__init__(1, features)

    def forward(self, x: Tensor) -> Tensor:
        n, length, features = x.shape
        return ops.reshape(super().forward(ops.reshape(x, shape=(n * length, features))), shape=x.shape)


class TextBlock(Module):
    """x -> x + out(attention of norm1(x)), then x -> x + mlp2(silu(mlp1(norm2(x)))).  Both branches start at zero."""

    def __init__(self, features: int, *, num_heads: int, rng: Any):
        if not num_heads >= 1 or num_heads % 1 or features % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide features={features}")
        self.num_heads = num_heads
        self.norm1 = LayerNorm(features)
        self.qkv = Linear(features, 3 * features, rng=rng)
        self.out = Linear(features, features, rng=rng, zero=True)
        self.norm2 = LayerNorm(features)
        self.mlp1 = Linear(features, 4 * features, rng=rng)
        self.mlp2 = Linear(4 * features, features, rng=rng, zero=True)

    def forward(self, x: Tensor, present: Any) -> Tensor:
        qkv = split_heads(self.qkv(self.norm1(x)), 3, self.num_heads)
        y = ops.attention(qkv[0], qkv[1], qkv[2], mask=present[:, None, None])  # (N, 1, 1, L)
        x = x + self.out(join_heads(y, x.shape))
        return x + self.mlp2(ops.silu(self.mlp1(self.norm2(x))))


class TextEncoder(Module):
    """encode(tokens) -> (features (N, L, F), present (N, L)), the text that ReadingUNet.forward takes.

    tokens: (N, L) host integers in 0..num_words - 1, with 1 <= L <= max_length.  Each row must have at least
    one token that is present, that is, not PADDING.  Else ValueError.
    num_heads must divide features, else ValueError.
    """

    def __init__(
        self,
        num_words: int,
        max_length: int = 16,
        features: int = 64,
        num_blocks: int = 2,
        num_heads: int = 4,
        *,
        rng: Any,
    ):
        self.config = {
            "num_words": num_words,
            "max_length": max_length,
            "features": features,
            "num_blocks": num_blocks,
            "num_heads": num_heads,
        }
        host_integers("num_blocks", num_blocks, 1, 1000)
        self.words = Embedding(num_words, features, rng=rng)
        self.places = Embedding(max_length, features, rng=rng)
        self.blocks = [TextBlock(features, num_heads=num_heads, rng=rng) for _ in range(num_blocks)]
        self.norm = LayerNorm(features)

    def encode(self, tokens: Any) -> Text:
        tokens = host_integers("tokens", tokens, 0, self.config["num_words"] - 1)
        is_word = tokens != PADDING
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.config["max_length"] or not is_word.any(1).all():
            raise ValueError(
                f"tokens must have shape (N, L), 1 <= L <= {self.config['max_length']}, and a word in each row, "
                f"got shape {tokens.shape}"
            )
        present = asarray(is_word)
        x = self.words(tokens) + self.places.w[: tokens.shape[1]]  # (N, L, F)
        for block in self.blocks:
            x = block(x, present)
        return self.norm(x), present


class TextResBlock(ResBlock):
    """A residual block.  If text_features is given, cross-attention to a text follows the block.

    condition: (code, features, present), see ResBlock and CrossAttention.
    """

    def __init__(self, c_in: int, c_out: int, text_features: int | None, *, rng: Any, **sizes: Any):
        super().__init__(c_in, c_out, rng=rng, **sizes)
        heads = {name: sizes[name] for name in ("num_heads", "num_groups")}
        self.cross = None if text_features is None else CrossAttention(c_out, text_features, rng=rng, **heads)

    def forward(self, x: Tensor, condition: Any) -> Tensor:
        code, features, present = condition
        y = super().forward(x, code)
        return y if self.cross is None else self.cross(y, features, present)


class ReadingUNet(UNet):
    """eps_hat = model(x_t, t, text): a U-Net that attends to a text.

    text: (features, present) as for CrossAttention.  If text is None, ValueError.  The blocks that attend to the text
    are those of every level except the first, and the first block of the middle.
    """

    def __init__(self, text_features: int, *, rng: Any, **config: Any):
        self._text_features = text_features
        super().__init__(**config, rng=rng)
        self.config["text_features"] = text_features

    def block(self, c_in: int, c_out: int, level: int | None, attend: bool, rng: Any) -> ResBlock:
        sizes = {name: self.config[name] for name in ("num_heads", "num_groups")}
        reads = attend if level is None else level > 0
        return TextResBlock(c_in, c_out, self._text_features if reads else None, attend=attend, rng=rng, **sizes)

    def forward(self, x_t: Any, t: Any, text: Any = None) -> Tensor:
        if text is None:
            raise ValueError("text is missing: features and present, as TextEncoder.encode returns them")
        x = x_t if isinstance(x_t, Tensor) else Tensor(asarray(x_t))
        return self.walk(x, (self.code(t, None, len(x)), *text))


class TextUNet(Module):
    """eps_hat = model(x_t, t, tokens): a text encoder, and a U-Net that attends to the encoded text.

    encoder: arguments of TextEncoder.  unet: arguments of UNet; text_features is set to the encoder's features.
    """

    def __init__(self, encoder: dict[str, Any], unet: dict[str, Any], *, rng: Any):
        self.encoder = TextEncoder(**encoder, rng=rng)
        self.unet = ReadingUNet(**unet | {"text_features": self.encoder.config["features"]}, rng=rng)
        self.config = {"encoder": self.encoder.config, "unet": self.unet.config}

    def forward(self, x_t: Any, t: Any, tokens: Any) -> Tensor:
        return self.unet(x_t, t, self.encoder.encode(tokens))


class Prompted:
    """A trained TextUNet and some prompts, used as a model with classes.  Label i is prompt i, and label num_classes is
    the negative prompt.

    prompts, negative: rows of tokens, all of the same length.  Each prompt is encoded once.
    """

    def __init__(self, model: TextUNet, prompts: Sequence[Sequence[int]], negative: Sequence[int]):
        self.unet, self.num_classes = model.unet, len(prompts)
        with no_grad():
            features, self._present = model.encoder.encode([*prompts, negative])
        self._features = features.data

    def __call__(self, x_t: Any, t: Any, labels: Any) -> Tensor:
        rows = asarray(host_integers("labels", labels, 0, self.num_classes, len(x_t)))
        return self.unet(x_t, t, (Tensor(xp.take(self._features, rows, 0)), xp.take(self._present, rows, 0)))
