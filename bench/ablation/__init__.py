"""The ablation of the paper's four parts on MovingShapes.

It found (30 runs, bench/results/ablation_movingshapes.json) that the three attention parts together bring 1.6 ± 0.5
points of AP, that three seeds show no certain gain for any of them alone, and none by the discriminator.
docs/benchmarks.md has the table.
"""
