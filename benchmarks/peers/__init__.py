"""Attacks of leakmap, of a hand-written loop and of other tools on the same client, timed alike.

``works`` says what is attacked, ``contestants`` and ``of_*`` who attacks, ``worker`` serves one of them in a process of
its own, ``environments`` starts such processes, ``measures`` asks them in turn, ``page`` writes down what came out.
"""
