"""The ablation of the paper's four parts on MovingShapes."""
