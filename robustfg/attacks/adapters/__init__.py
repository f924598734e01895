"""Attacks of other libraries as attacks of robustfg, to check one against the other within one run.

The libraries are optional: ``pip install 'robustfg[peers]'``.
"""

from robustfg.attacks.adapters.advlib import AdvLib
from robustfg.attacks.adapters.art import ART
from robustfg.attacks.adapters.foolbox import Foolbox
from robustfg.attacks.adapters.pyautoattack import PyAutoAttack

__all__ = ["ART", "AdvLib", "Foolbox", "PyAutoAttack"]
