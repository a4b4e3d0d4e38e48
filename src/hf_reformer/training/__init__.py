"""Training by recipes: `hf-reformer train` and `hf-reformer evaluate`, on `transformers.Trainer`."""
