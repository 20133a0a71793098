"""leakmap: can the updates that federated clients send be turned back into their images?

Four verbs move five values::

    simulate(network, rule, batch)       -> Round           what really happened (holds the truth)
    observe(round, threat)               -> Observation     what the attacker holds
    attack(observation, how)             -> Reconstruction  what the attacker says
    score(reconstruction, batch, …)      -> Score           how much leaked

:func:`audit` does all of it for several clients, with floors, controls and a verdict; :func:`run_plan` does what
``leakmap audit`` does, and every other command is one call of a function that is here, too.

Each name is imported at first use, from the module that ``__init__.pyi`` says, so that ``import leakmap`` costs next to
nothing. ``EAGER_IMPORT=1`` imports everything at once.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
