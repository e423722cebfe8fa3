"""Runs steps: plans their parts, sends each part to a worker once its needs are committed, and knows nothing of stages.

The only package that imports ray, and only in `cluster.py`.
"""
