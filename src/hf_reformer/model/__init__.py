"""The model: everything that travels with a checkpoint, flat, since transformers copies only modules beside the model's own."""
