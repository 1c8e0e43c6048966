"""Records of a run: terminal output, MLflow runs, registered model versions, lineage."""
