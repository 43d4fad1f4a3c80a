"""RelP: edge attribution with the backward pass of layer-wise relevance propagation (Jafari et al. 2025, arXiv 2508.21258).

LN-rule: the scale of every norm is a constant. Identity-rule: an activation passes x on as x * (act(x) / x), the factor a
constant. Half-rule: each branch of a gated MLP gets half of the gradient of their product. AH-rule, an option as in the
paper's quick start: attention patterns are constants. Same passes as EAP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from circuitfind.methods.eap import EAP
from circuitfind.model.rules import Rules


@dataclass(frozen=True)
class RelP(EAP):
    """See the module.

    Attributes:
        freeze_attention: Whether attention patterns are constants (AH-rule).
    """

    freeze_attention: bool = False

    name: ClassVar[str] = "relp"

    def rules(self) -> Rules:
        return Rules(
            freeze_norms=True, activation="identity", gate_share=0.5, freeze_pattern=self.freeze_attention
        )
