"""Endpoints by topic, and the one place where domain errors become HTTP.

``recommender ─▶ routers ─▶ JSON``. Routers parse, call, and shape the answer; they compute nothing.
"""
