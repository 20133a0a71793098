"""What a network is asked: the task, and the objects of pictures."""
