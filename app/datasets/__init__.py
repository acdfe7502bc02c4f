"""Where ratings come from: a local folder, a download, or invented ones.

``locate`` decides and reads, ``movielens`` (over ``csv_table``) reads and validates one folder, ``download`` fetches
one, ``synthetic`` (over ``synthetic_titles`` and ``synthetic_transitions``) invents one. Everything above this room
sees only ``movielens.RawData``. This file imports nothing, so that asking where the data lies costs neither pandas nor
the network.
"""
