"""Tools around a trained model: predict, explain, analyze the bank, export, serve, profile and publish it."""
