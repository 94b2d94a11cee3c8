"""Small random checkpoints of models that read pictures, with their image processors."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as t

from exporter.checkpoint.pictures import drawn, read
from exporter.checkpoint.processor import pixels, read_processor

SIDE = 32
LABELS = {"num_labels": 6, "id2label": dict(enumerate(("ant", "bee", "cat", "dog", "elk", "fox")))}
_VIT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "image_size": SIDE,
    "patch_size": 4,
}  # fmt: skip
CONFIGS = {
    "ViT": lambda **more: t.ViTConfig(**_VIT, **more),
    "DeiT": lambda **more: t.DeiTConfig(**_VIT, **more),
    "Swin": lambda **more: t.SwinConfig(
        image_size=SIDE, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4, **more
    ),
    "ConvNext": lambda **more: t.ConvNextConfig(
        image_size=SIDE, patch_size=4, num_stages=2, hidden_sizes=[32, 64], depths=[2, 2], **more
    ),
    "ResNet": lambda **more: t.ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2], layer_type="bottleneck", **more
    ),
}
_SQUARE = {"height": SIDE, "width": SIDE}
PROCESSORS = {
    "ViT": lambda: t.ViTImageProcessorPil(size=_SQUARE),
    "DeiT": lambda: t.DeiTImageProcessorPil(size={"height": 40, "width": 40}, crop_size=_SQUARE),
    "Swin": lambda: t.ViTImageProcessorPil(size=_SQUARE, image_mean=[0.48, 0.45, 0.4], image_std=[0.2, 0.22, 0.25]),
    "ConvNext": lambda: t.ConvNextImageProcessorPil(size={"shortest_edge": SIDE}),
    "ResNet": lambda: t.ConvNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_pct=0.8),
}


def pictures(folder: Path, seed: int = 0) -> torch.Tensor:
    """What the processor of a folder makes of some drawn pictures."""
    return torch.from_numpy(pixels(read_processor(folder, trust=False), read(drawn(16, seed))))


def checkpoint(folder: Path, family: str, head: str = "ForImageClassification", **more: object) -> Path:
    """A random model whose answers differ from picture to picture, which the usual initialization's hardly do."""
    torch.manual_seed(0)
    settings = LABELS if head == "ForImageClassification" else {}
    model = getattr(t, f"{family}{head or 'Model'}")(CONFIGS[family](**settings | more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
            elif parameter.ndim == 4:  # as many inputs as add up
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    PROCESSORS[family]().save_pretrained(folder)
    if head == "ForImageClassification":  # centred, so that no class wins everywhere
        with torch.no_grad():
            mean = model(pixel_values=pictures(folder)).logits.mean(0)
            heads = [
                one for one in model.modules() if isinstance(one, torch.nn.Linear) and len(one.weight) == len(mean)
            ]
            heads[-1].bias -= mean
    model.save_pretrained(folder)
    return folder
