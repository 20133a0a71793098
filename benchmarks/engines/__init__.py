"""How true and how fast the engines of gradient matching are: ``exact`` beside ``frozen``."""
