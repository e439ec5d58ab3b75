"""The documented import path: the real classes of `shoal`, under the name that the guide imports them by."""

from shoal import SakanaAIIntegration, TextToLoRAConfig, Transformer2Config

__all__ = ["SakanaAIIntegration", "TextToLoRAConfig", "Transformer2Config"]
