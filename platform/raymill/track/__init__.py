"""What a run leaves behind: followed metrics, MLflow runs, registered versions, lineage."""
