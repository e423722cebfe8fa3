"""Answers questions about published datasets: what was kept, what was dropped, why, and is it whole."""
