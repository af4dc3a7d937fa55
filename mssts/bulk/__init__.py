"""Prediction of many videos on many machines, in which nothing is lost.

`predict_many` lists the videos (`mssts.media.sources`), a driver gives each whole one to a worker (`driver.py`), a
worker predicts it and writes a file of its own (`worker.py`, `parts.py`), and the files become one `results.json`.
Ray starts the workers and says which of them are gone (`ray_cluster.py`); the rest knows nothing of it.
"""
