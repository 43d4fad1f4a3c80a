"""GIM: edge attribution with gradients that do not vanish in saturated softmaxes (Edin et al. 2025, arXiv 2505.17630).

The scale of every norm is a constant; the Jacobian of each attention softmax is taken at temperature 2; where two
activations are multiplied each gets an even share of the gradient: values (and patterns) a half, queries and keys a
quarter, both branches of a gated MLP a half. Same passes as EAP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from circuitfind.methods.eap import EAP
from circuitfind.model.rules import Rules


@dataclass(frozen=True)
class GIM(EAP):
    """See the module.

    Attributes:
        temperature: At which the Jacobian of each softmax is taken.
    """

    temperature: float = 2.0

    name: ClassVar[str] = "gim"

    def rules(self) -> Rules:
        return Rules(
            freeze_norms=True,
            temperature=self.temperature,
            query_key_share=0.25,
            value_share=0.5,
            gate_share=0.5,
        )
