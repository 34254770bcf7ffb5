"""The trained network that the command line explains if it is given no other, and its classes.

It stands for a user's own: a plain module of Flax, in which nothing knows of relevance, and errors,
plans and accounts name its lines as they would a user's.
"""
