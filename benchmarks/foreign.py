"""Families of attack code that we did not write, by name. What runs them is `art_attacks.py`; tables and docs only need the names."""

from __future__ import annotations

FOREIGN = {
    "art_knockoff_random": "KnockoffNets of the Adversarial Robustness Toolbox, random",
    "art_knockoff_adaptive": "KnockoffNets of the Adversarial Robustness Toolbox, adaptive",
    "art_copycat": "CopycatCNN of the Adversarial Robustness Toolbox",
}
