"""What a card's memory can read in a second, as its maker publishes it: decoding reads the weights for each token."""

from __future__ import annotations

# Bytes per second, by the names that CUDA's driver gives, from NVIDIA's data sheets of the product named ("GPU memory
# bandwidth"); the GeForce's from its specifications page. A card that is not here has no figure, and none is guessed.
PEAK_BYTES_PER_S = {
    "NVIDIA H200": 4.8e12,  # H200 data sheet, SXM and NVL
    "NVIDIA H100 80GB HBM3": 3.35e12,  # H100 data sheet, SXM
    "NVIDIA H100 NVL": 3.9e12,  # H100 data sheet, NVL
    "NVIDIA H100 PCIe": 2.0e12,  # H100 PCIe product brief
    "NVIDIA A100-SXM4-80GB": 2.039e12,  # A100 data sheet
    "NVIDIA A100 80GB PCIe": 1.935e12,  # A100 data sheet
    "NVIDIA A100-SXM4-40GB": 1.555e12,  # A100 data sheet
    "NVIDIA L40S": 864e9,  # L40S data sheet
    "NVIDIA L4": 300e9,  # L4 data sheet
    "NVIDIA A10": 600e9,  # A10 data sheet
    "NVIDIA GeForce RTX 4090": 1008e9,
}


def share_of_peak(card: str, bytes_per_token: int | None, tokens_per_s: float | None) -> float | None:
    """The share of a card's published bandwidth that so many bytes for each token take; None where it is not known."""
    peak = PEAK_BYTES_PER_S.get(card)
    if peak is None or bytes_per_token is None or tokens_per_s is None:
        return None
    return bytes_per_token * tokens_per_s / peak
